// The coordinator's listening sockets. Only connections that speak HTTP/2 are handed to gRPC:
// scanners, browsers and half-open connections cost it nothing (runtime/base/doorstep.h), and gRPC
// 1.51, which stops listening for good once accept fails for want of descriptors, accepts nothing.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <thread>

#include "absl/status/statusor.h"
#include "runtime/base/doorstep.h"
#include "runtime/base/unique_fd.h"

namespace omni::scheduler {

class FrontDoor {
 public:
  // `address`: "host:port", see PlaceToListen; port 0: any free one. Errors as ListenOn.
  static absl::StatusOr<std::unique_ptr<FrontDoor>> Open(const std::string& address);
  ~FrontDoor();  // stops accepting

  // From now on, on a thread of its own; takes the descriptor.
  void Start(std::function<void(int fd)> on_connection);

  const std::string& address() const { return address_; }  // as others reach it, with the real port
  const std::string& note() const { return note_; }        // of PlaceToListen

 private:
  FrontDoor() = default;
  void Run();

  std::string address_, note_;
  std::vector<UniqueFd> listeners_;  // until Start
  std::unique_ptr<Doorstep> door_;
  UniqueFd wake_;  // eventfd: ends the thread
  std::function<void(int fd)> on_connection_;
  std::thread thread_;
};

}  // namespace omni::scheduler
