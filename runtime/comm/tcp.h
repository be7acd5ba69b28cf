// Communicators over sockets: CPU runs on several hosts, and tests of faults. A listener is made
// first, so that its address can be told to the others (the coordinator exchanges them).
//
// One socket per pair of ranks and group, reno and TCP_NODELAY, plus one per pair for news.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "runtime/comm/communicator.h"
#include "runtime/comm/options.h"

namespace omni {

class TcpListener {
 public:
  // Listens on a free port of `host` ("127.0.0.1", "::1", a name; "": every address). The address
  // the others use has `advertised_host` in it, if that is not empty.
  static absl::StatusOr<TcpListener> Create(const std::string& host,
                                            const std::string& advertised_host = "");
  ~TcpListener();
  TcpListener(TcpListener&& other) noexcept;
  TcpListener& operator=(TcpListener&& other) noexcept;

  const std::string& address() const { return address_; }  // "127.0.0.1:40123"

 private:
  friend absl::StatusOr<std::unique_ptr<Communicator>> ConnectTcp(TcpListener,
                                                                  absl::Span<const std::string>,
                                                                  int32_t, const CommOptions&);
  TcpListener(int fd, std::string address) : fd_(fd), address_(std::move(address)) {}

  int fd_ = -1;
  std::string address_;
};

// addresses[r] is rank r's listener; `listener` is this rank's own. Waits for all ranks.
//   Unavailable, DeadlineExceeded    a rank did not come within options.connect_deadline; named
//   FailedPrecondition               a rank is of another generation
//   PermissionDenied                 a rank has another options.token
absl::StatusOr<std::unique_ptr<Communicator>> ConnectTcp(TcpListener listener,
                                                         absl::Span<const std::string> addresses,
                                                         int32_t rank,
                                                         const CommOptions& options = {});

}  // namespace omni
