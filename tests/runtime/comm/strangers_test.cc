// What a rank's port meets on a real network, and what a peer that does not read still hears.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <future>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "runtime/base/open_files.h"
#include "runtime/comm/peer_links.h"
#include "runtime/comm/sockets.h"
#include "runtime/comm/tcp.h"
#include "tests/support/run_ranks.h"

namespace omni::comm {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr absl::Duration kPatience = absl::Minutes(2);

UniqueFd Call(const std::string& address, const std::string& says) {
  auto fd = Connect(address, absl::Now() + kPatience);
  EXPECT_TRUE(fd.ok()) << fd.status();
  if (!fd.ok()) return UniqueFd();
  const auto bytes = static_cast<int64_t>(says.size());
  EXPECT_TRUE(WriteAll(fd->get(), says.data(), bytes, absl::Now() + kPatience).ok());
  return *std::move(fd);
}

// Rank 0 of two listens; the strangers come first, and stay.
TEST(StrangersTest, AScanOfARanksPortDoesNotKeepItsPeersOut) {
  auto first = TcpListener::Create("127.0.0.1"), second = TcpListener::Create("127.0.0.1");
  ASSERT_TRUE(first.ok() && second.ok());
  const std::vector<std::string> addresses = {first->address(), second->address()};
  std::vector<UniqueFd> strangers;
  for (int i = 0; i < 100; ++i) {
    for (const std::string& says :
         {std::string(), std::string("GET / HTTP/1.1\r\nHost: metrics.example.org\r\n\r\n"),
          std::string(200, '\0'), std::string("x")}) {
      strangers.push_back(Call(addresses[0], says));
    }
  }
  const CommOptions options{.deadline = kPatience, .connect_deadline = kPatience};
  auto other = std::async(std::launch::async, [&] {
    auto comm = ConnectTcp(*std::move(second), addresses, 1, options);
    return comm.ok() ? (*comm)->Barrier()->WaitHost(kPatience) : comm.status();
  });
  auto comm = ConnectTcp(*std::move(first), addresses, 0, options);
  ASSERT_TRUE(comm.ok()) << comm.status();
  EXPECT_EQ((*comm)->Barrier()->WaitHost(kPatience), absl::OkStatus());
  EXPECT_EQ(other.get(), absl::OkStatus());
}

TEST(StrangersTest, WithoutDescriptorsTheLimitIsNamed) {
  rlimit limit = {};
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &limit), 0);
  const auto listener = Listen("127.0.0.1:0");
  ASSERT_TRUE(listener.ok());
  const std::string address = *ListenAddress(*listener, "");
  rlimit low = limit;
  low.rlim_cur = static_cast<rlim_t>(test::CountOpenFds()) + 3;
  std::vector<UniqueFd> open;
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &low), 0);
  absl::Status status;
  for (int i = 0; i < 100 && status.ok(); ++i) {
    auto fd = Connect(address, absl::Now() + kPatience);
    status = fd.status();
    if (fd.ok()) open.push_back(*std::move(fd));
  }
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &limit), 0);
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("Too many open files"), HasSubstr("ulimit -Hn"),
                    HasSubstr(absl::StrCat("may have ", low.rlim_cur, " files open"))));
}

TEST(OpenFilesTest, TheSoftLimitIsRaisedToTheHardOne) {
  rlimit before = {};
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &before), 0);
  rlimit low = before;
  low.rlim_cur = std::min<rlim_t>(before.rlim_max, 256);
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &low), 0);
  EXPECT_EQ(OpenFilesLimit(), static_cast<int64_t>(low.rlim_cur));
  const int64_t raised = RaiseOpenFilesLimit();
  EXPECT_EQ(raised, static_cast<int64_t>(std::min<rlim_t>(before.rlim_max, 1 << 20)));
  EXPECT_EQ(OpenFilesLimit(), raised);
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &before), 0);
}

// The peer has long stopped reading when this rank finds out why the job failed. It hears of it
// when it reads again.
TEST(NewsTest, WhyTheJobFailedReachesAPeerThatWasNotReading) {
  PeerLinks links(0, 2, UniqueFd(), {}, CommOptions{});
  auto pair = SocketPair();
  ASSERT_TRUE(pair.ok());
  links.AddPeer(1, std::move(pair->first));
  for (int i = 0; i < 20000; ++i) links.SendLeft(7, {1});  // more than any buffer holds
  links.Fail(absl::UnavailableError("the disk of rank 0 is full"));
  std::string heard;
  const absl::Time end = absl::Now() + kPatience;
  while (absl::Now() < end && !absl::StrContains(heard, "the disk of rank 0 is full")) {
    char buffer[1 << 16];
    const ssize_t got = recv(pair->second.get(), buffer, sizeof(buffer), 0);
    if (got > 0) {
      heard = heard.substr(std::max<size_t>(heard.size(), 100) - 100) + std::string(buffer, got);
    } else {
      absl::SleepFor(absl::Milliseconds(2));
    }
  }
  EXPECT_THAT(heard, HasSubstr("the disk of rank 0 is full"));
}

}  // namespace
}  // namespace omni::comm
