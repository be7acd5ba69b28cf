#include "runtime/base/text_server.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "runtime/base/address.h"
#include "runtime/base/check.h"
#include "runtime/base/process.h"
#include "runtime/base/status.h"

namespace omni {
namespace {

constexpr size_t kMostRequestBytes = 16 << 10;
constexpr absl::Duration kLimit = absl::Seconds(2);  // of one request, for whoever comes next

// Waits for `events` of the connection. False at the end, or when the server stops.
bool Await(int fd, short events, int wake, absl::Time end) {
  pollfd polled[2] = {{.fd = fd, .events = events, .revents = 0},
                      {.fd = wake, .events = POLLIN, .revents = 0}};
  const absl::Duration left = end - absl::Now();
  if (left <= absl::ZeroDuration()) return false;
  const int ready = poll(polled, 2, 1 + static_cast<int>(left / absl::Milliseconds(1)));
  return (ready > 0 || errno == EINTR) && polled[1].revents == 0;
}

}  // namespace

absl::StatusOr<std::unique_ptr<TextServer>> TextServer::Create(const std::string& address,
                                                               const std::string& path,
                                                               std::function<std::string()> text) {
  OMNI_ASSIGN_OR_RETURN(const HostPort wanted, ParseHostPort(address));
  OMNI_ASSIGN_OR_RETURN(ListenPlace place, PlaceToListen(wanted));
  std::unique_ptr<TextServer> server(new TextServer);
  OMNI_ASSIGN_OR_RETURN(std::vector<UniqueFd> listeners, ListenAt(&place));
  server->port_ = place.addresses.front().port();
  server->path_ = path;
  server->text_ = std::move(text);
  server->door_ = std::make_unique<Doorstep>(
      std::move(listeners),
      Doorstep::Options{.greeting = "GET ", .most_waiting = 32, .patience = absl::Seconds(10)});
  server->wake_ = UniqueFd(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  OMNI_CHECK(server->wake_.valid());
  server->thread_ = std::thread([self = server.get()] { self->Run(); });
  return server;
}

TextServer::~TextServer() {
  if (!thread_.joinable()) return;
  const uint64_t one = 1;
  (void)!write(wake_.get(), &one, sizeof(one));
  thread_.join();
}

void TextServer::Run() {
  NameThread("metrics");
  std::vector<pollfd> polled;
  while (true) {
    polled.assign(1, {.fd = wake_.get(), .events = POLLIN, .revents = 0});
    door_->AddTo(&polled);
    if (poll(polled.data(), polled.size(), door_->TimeoutMs()) < 0) continue;
    if (polled[0].revents != 0) return;
    for (const UniqueFd& fd : door_->Serve(polled)) Answer(fd.get());
  }
}

void TextServer::Answer(int fd) {
  const absl::Time end = absl::Now() + kLimit;
  std::string request;
  while (!absl::StrContains(request, "\r\n\r\n")) {
    if (request.size() > kMostRequestBytes || !Await(fd, POLLIN, wake_.get(), end)) return;
    char bytes[4096];
    const ssize_t got = recv(fd, bytes, sizeof(bytes), MSG_DONTWAIT);
    if (got == 0 || (got < 0 && errno != EAGAIN && errno != EINTR)) return;
    if (got > 0) request.append(bytes, got);
  }
  const std::string wanted = absl::StrCat("GET ", path_);
  const bool is_known = absl::StartsWith(request, wanted + " ") ||
                        absl::StartsWith(request, wanted + "?");  // with parameters
  const std::string body = is_known ? text_() : absl::StrCat("there is only ", path_, "\n");
  const std::string answer = absl::StrCat(
      "HTTP/1.1 ", is_known ? "200 OK" : "404 Not Found", "\r\nContent-Type: text/plain; ",
      "version=0.0.4; charset=utf-8\r\nContent-Length: ", body.size(),
      "\r\nConnection: close\r\n\r\n", body);
  for (size_t sent = 0; sent < answer.size();) {
    if (!Await(fd, POLLOUT, wake_.get(), end)) return;
    const ssize_t more =
        send(fd, answer.data() + sent, answer.size() - sent, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (more < 0 && errno != EAGAIN && errno != EINTR) return;
    sent += std::max<ssize_t>(more, 0);
  }
  shutdown(fd, SHUT_WR);
}

}  // namespace omni
