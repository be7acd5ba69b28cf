// The one HTTP request tests make.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace omni::test {

struct HttpReply {
  int status = 0;  // 200, 404, ...
  std::string body;
};

// GET http://address/path, with an IPv4 address: "127.0.0.1:9400". Unavailable if nobody listens or
// the answer is cut short, DeadlineExceeded if no byte comes for `deadline`.
absl::StatusOr<HttpReply> HttpGet(const std::string& address, const std::string& path,
                                  absl::Duration deadline = absl::Seconds(30));
// From 127.0.0.1:port.
absl::StatusOr<HttpReply> HttpGet(int port, const std::string& path,
                                  absl::Duration deadline = absl::Seconds(30));

}  // namespace omni::test
