// Strangers at a port: they cost little, and who belongs here gets in.
#include "runtime/base/doorstep.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>

#include <cerrno>
#include <memory>
#include <string>

#include "absl/time/clock.h"
#include "runtime/base/address.h"

namespace omni {
namespace {

using ::testing::HasSubstr;

class DoorstepTest : public ::testing::Test {
 protected:
  void Open(Doorstep::Options options = {}) {
    const SocketAddress any = Resolve({.host = "127.0.0.1", .port = 0})->front();
    std::vector<UniqueFd> listeners;
    listeners.emplace_back(*ListenOn(any));
    address_ = SocketAddress::Local(listeners[0].get());
    options.greeting = "hello";
    options.greeting_bytes = 8;
    door_ = std::make_unique<Doorstep>(std::move(listeners), std::move(options));
  }
  UniqueFd Connect(const std::string& says) {
    UniqueFd fd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    EXPECT_EQ(connect(fd.get(), address_.get(), address_.length()), 0);
    EXPECT_EQ(send(fd.get(), says.data(), says.size(), MSG_NOSIGNAL),
              static_cast<ssize_t>(says.size()));
    return fd;
  }
  // Rounds of poll, until so many have greeted or the rounds are over; each waits at most 50 ms.
  std::vector<UniqueFd> Rounds(size_t wanted, int rounds = 40) {
    std::vector<UniqueFd> greeted;
    std::vector<pollfd> polled;
    for (int i = 0; i < rounds && greeted.size() < wanted; ++i) {
      polled.clear();
      door_->AddTo(&polled);
      const int timeout = door_->TimeoutMs();
      poll(polled.data(), polled.size(), timeout < 0 ? 50 : std::min(timeout, 50));
      for (UniqueFd& fd : door_->Serve(polled)) greeted.push_back(std::move(fd));
      ++num_rounds_;
    }
    return greeted;
  }
  static bool IsClosed(const UniqueFd& fd) {
    char byte;
    const ssize_t got = recv(fd.get(), &byte, 1, 0);
    return got == 0 || (got < 0 && errno == ECONNRESET);
  }

  SocketAddress address_;
  std::unique_ptr<Doorstep> door_;
  int num_rounds_ = 0;
};

TEST_F(DoorstepTest, AGreetingIsLeftToBeRead) {
  Open();
  const UniqueFd client = Connect("hello123+more");
  auto greeted = Rounds(1);
  ASSERT_EQ(greeted.size(), 1u);
  char bytes[14] = {};
  EXPECT_EQ(recv(greeted[0].get(), bytes, 13, MSG_WAITALL), 13);
  EXPECT_STREQ(bytes, "hello123+more");
}

TEST_F(DoorstepTest, AGreetingMayComeInPieces) {
  Open();
  const UniqueFd client = Connect("hel");
  EXPECT_EQ(Rounds(1, 3).size(), 0u);
  EXPECT_EQ(send(client.get(), "lo123", 5, 0), 5);
  EXPECT_EQ(Rounds(1).size(), 1u);
}

TEST_F(DoorstepTest, WhoSaysSomethingElseIsClosedAtOnce) {
  Open();
  const UniqueFd browser = Connect("GET / HTTP/1.1\r\n"), half = Connect("x");
  Rounds(1, 4);
  EXPECT_EQ(door_->num_waiting(), 0);
  EXPECT_EQ(door_->num_turned_away(), 2);
  EXPECT_TRUE(IsClosed(browser));
  EXPECT_TRUE(IsClosed(half));
}

TEST_F(DoorstepTest, WhoHangsUpIsForgotten) {
  Open();
  Connect("");
  Connect("hel");
  Rounds(1, 6);
  EXPECT_EQ(door_->num_waiting(), 0);
}

TEST_F(DoorstepTest, HalfOpenConnectionsAreBoundedAndDoNotKeepOthersOut) {
  Open({.most_waiting = 8});
  std::vector<UniqueFd> scan;
  for (int i = 0; i < 50; ++i) scan.push_back(Connect(""));
  const UniqueFd friendly = Connect("hello123");
  EXPECT_EQ(Rounds(1).size(), 1u);
  EXPECT_LE(door_->num_waiting(), 8);
  EXPECT_GE(door_->num_turned_away(), 42);
  EXPECT_TRUE(IsClosed(scan.front()));
}

TEST_F(DoorstepTest, WhoSaysNothingIsClosedAfterAWhile) {
  Open({.patience = absl::Milliseconds(30)});
  const UniqueFd silent = Connect(""), half = Connect("hell");
  while (door_->num_turned_away() < 2) Rounds(1, 1);
  EXPECT_EQ(door_->num_waiting(), 0);
  EXPECT_EQ(door_->TimeoutMs(), -1);
  EXPECT_TRUE(IsClosed(silent));
}

// A listener stays readable while descriptors are lacking: without a pause poll returns at once for
// ever.
TEST_F(DoorstepTest, WithoutDescriptorsItPausesAndSaysSo) {
  int attempts = 0;
  bool is_full = true;
  Open({.back_off = absl::Milliseconds(200), .accept = [&](int listener) {
          ++attempts;
          if (!is_full) return accept4(listener, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
          errno = EMFILE;
          return -1;
        }});
  const UniqueFd client = Connect("hello123");
  const absl::Time begin = absl::Now();
  while (attempts < 4) Rounds(1, 1);
  EXPECT_GE(absl::Now() - begin, 3 * absl::Milliseconds(200));
  EXPECT_LE(num_rounds_, 40);  // of up to 50 ms; spinning would make thousands
  EXPECT_THAT(door_->problem(), HasSubstr("Too many open files"));
  EXPECT_THAT(door_->problem(), HasSubstr("ulimit -Hn"));
  is_full = false;
  EXPECT_EQ(Rounds(1).size(), 1u);
  EXPECT_EQ(door_->problem(), "");
}

}  // namespace
}  // namespace omni
