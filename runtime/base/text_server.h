// One text over HTTP, as Prometheus scrapes it. civetweb, which prometheus-cpp brings, is built
// without IPv6 in Debian, and keeps a thread for every connection.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/base/doorstep.h"
#include "runtime/base/unique_fd.h"

namespace omni {

class TextServer {
 public:
  // Answers GET of `path` with what `text` returns, on a thread of its own; one request at a time,
  // each within two seconds. `address`: see PlaceToListen; errors as ListenOn.
  static absl::StatusOr<std::unique_ptr<TextServer>> Create(const std::string& address,
                                                            const std::string& path,
                                                            std::function<std::string()> text);
  ~TextServer();

  int port() const { return port_; }

 private:
  TextServer() = default;
  void Run();
  void Answer(int fd);

  std::string path_;
  std::function<std::string()> text_;
  int port_ = 0;
  std::unique_ptr<Doorstep> door_;
  UniqueFd wake_;  // eventfd, readable when it is over
  std::thread thread_;
};

}  // namespace omni
