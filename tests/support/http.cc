#include "tests/support/http.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace omni::test {

// HTTP/1.0, so that the answer comes in one piece that the connection's end ends.
absl::StatusOr<HttpReply> HttpGet(const std::string& address, const std::string& path,
                                  absl::Duration deadline) {
  const auto error = [&](const std::string& what) {
    const std::string message = absl::StrCat("GET ", address, path, ": ", what);
    return errno == EAGAIN ? absl::DeadlineExceededError(message)
                           : absl::UnavailableError(absl::StrCat(message, ": ", strerror(errno)));
  };
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return error("socket");
  const absl::Cleanup close_fd = [fd] { close(fd); };
  const timeval limit = absl::ToTimeval(deadline);
  setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
  sockaddr_in to{};
  to.sin_family = AF_INET;
  const size_t colon = address.find(':');
  int port = 0;
  if (colon == std::string::npos || !absl::SimpleAtoi(address.substr(colon + 1), &port) ||
      inet_pton(AF_INET, address.substr(0, colon).c_str(), &to.sin_addr) != 1) {
    return absl::InvalidArgumentError(absl::StrCat("not an IPv4 address and port: ", address));
  }
  to.sin_port = htons(static_cast<uint16_t>(port));
  if (connect(fd, reinterpret_cast<const sockaddr*>(&to), sizeof(to)) != 0) {
    return error("can't connect");
  }
  const std::string request =
      absl::StrCat("GET ", path, " HTTP/1.0\r\nHost: ", address, "\r\n\r\n");
  if (send(fd, request.data(), request.size(), MSG_NOSIGNAL) !=
      static_cast<ssize_t>(request.size())) {
    return error("can't send");
  }
  std::string answer;
  char buffer[1 << 14];
  ssize_t got;
  while ((got = recv(fd, buffer, sizeof(buffer), 0)) > 0) answer.append(buffer, got);
  if (got < 0) return error("no answer");

  HttpReply reply;
  const size_t head = answer.find("\r\n\r\n"), code = answer.find(' ');
  if (!absl::StartsWith(answer, "HTTP/") || head == std::string::npos ||
      !absl::SimpleAtoi(answer.substr(code + 1, 3), &reply.status)) {
    return absl::UnavailableError(
        absl::StrCat("GET ", address, path, ": not an answer: ", answer.substr(0, 80)));
  }
  reply.body = answer.substr(head + 4);
  return reply;
}

absl::StatusOr<HttpReply> HttpGet(int port, const std::string& path, absl::Duration deadline) {
  return HttpGet(absl::StrCat("127.0.0.1:", port), path, deadline);
}

}  // namespace omni::test
