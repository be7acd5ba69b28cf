#include "scheduler/front_door.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/eventfd.h>

#include <vector>

#include "runtime/base/address.h"
#include "runtime/base/check.h"
#include "runtime/base/process.h"
#include "runtime/base/status.h"

namespace omni::scheduler {
namespace {

constexpr char kHttp2Preface[] = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

}  // namespace

absl::StatusOr<std::unique_ptr<FrontDoor>> FrontDoor::Open(const std::string& address) {
  OMNI_ASSIGN_OR_RETURN(const HostPort wanted, ParseHostPort(address));
  OMNI_ASSIGN_OR_RETURN(ListenPlace place, PlaceToListen(wanted));
  std::unique_ptr<FrontDoor> door(new FrontDoor);
  OMNI_ASSIGN_OR_RETURN(door->listeners_, ListenAt(&place));
  door->address_ = JoinHostPort(place.reach, place.addresses.front().port());
  door->note_ = place.note;
  door->wake_ = UniqueFd(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  OMNI_CHECK(door->wake_.valid());
  return door;
}

void FrontDoor::Start(std::function<void(int fd)> on_connection) {
  on_connection_ = std::move(on_connection);
  door_ = std::make_unique<Doorstep>(std::move(listeners_),
                                     Doorstep::Options{.greeting = kHttp2Preface});
  thread_ = std::thread([this] { Run(); });
}

FrontDoor::~FrontDoor() {
  if (!thread_.joinable()) return;
  const uint64_t one = 1;
  (void)!write(wake_.get(), &one, sizeof(one));
  thread_.join();
}

void FrontDoor::Run() {
  NameThread("front door");
  std::vector<pollfd> polled;
  while (true) {
    polled.assign(1, {.fd = wake_.get(), .events = POLLIN, .revents = 0});
    door_->AddTo(&polled);
    if (poll(polled.data(), polled.size(), door_->TimeoutMs()) < 0) continue;
    if (polled[0].revents != 0) return;
    for (UniqueFd& fd : door_->Serve(polled)) {
      const int on = 1;
      setsockopt(fd.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
      on_connection_(fd.Release());
    }
  }
}

}  // namespace omni::scheduler
