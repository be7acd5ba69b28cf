#include "runtime/comm/route.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/time/clock.h"
#include "runtime/comm/sockets.h"
#include "tests/support/resolver.h"

namespace omni::comm {
namespace {

using ::testing::HasSubstr;

Route RouteOf(const char* coordinator, const char* local) {
  return {.coordinator = Resolve({.host = coordinator, .port = 29400})->front(),
          .local = Resolve({.host = local, .port = 41000})->front()};
}

struct Case {
  const char *name, *coordinator, *reached, *local, *host;
  const char *listen, *advertise, *metrics;
};

class ChooseOwnAddressTest : public ::testing::TestWithParam<Case> {};

TEST_P(ChooseOwnAddressTest, OthersReachWhatIsAdvertised) {
  const Case& c = GetParam();
  const auto own =
      ChooseOwnAddress(RouteOf(c.reached, c.local), c.coordinator, c.host, test::DebianNode1());
  ASSERT_TRUE(own.ok()) << own.status();
  EXPECT_EQ(own->listen, c.listen);
  EXPECT_EQ(own->advertise, c.advertise);
  EXPECT_EQ(own->metrics, c.metrics);
}

INSTANTIATE_TEST_SUITE_P(
    Routes, ChooseOwnAddressTest,
    ::testing::Values(
        Case{"Elsewhere", "head:29400", "10.0.0.9", "10.0.0.1", "", "10.0.0.1", "10.0.0.1",
             "10.0.0.1"},
        Case{"ElsewhereOverIpv6", "head:29400", "fd00::9", "fd00::1", "", "fd00::1", "fd00::1",
             "fd00::1"},
        Case{"OneMachine", "127.0.0.1:29400", "127.0.0.1", "127.0.0.1", "", "127.0.0.1",
             "127.0.0.1", "127.0.0.1"},
        Case{"OneMachineOverIpv6", "[::1]:29400", "::1", "::1", "", "::1", "::1", "::1"},
        Case{"BesideTheCoordinatorByName", "node1:29400", "127.0.1.1", "127.0.0.1", "", "",
             "127.0.0.1", ""},
        Case{"BesideItWithItsName", "node1:29400", "127.0.1.1", "127.0.0.1", "node1", "",
             "127.0.0.1", "node1"},
        Case{"BesideItByAddress", "10.0.0.1:29400", "10.0.0.1", "10.0.0.1", "", "10.0.0.1",
             "10.0.0.1", "10.0.0.1"},
        Case{"OwnNameOnTheLoopback", "head:29400", "10.0.0.9", "10.0.0.1", "node1", "10.0.0.1",
             "10.0.0.1", "node1"},
        Case{"ProperName", "head:29400", "10.0.0.9", "10.0.0.2", "node2", "10.0.0.2", "10.0.0.2",
             "node2"},
        Case{"NameWithIpv6Only", "head:29400", "fd00::9", "fd00::2", "node2-v6", "fd00::2",
             "fd00::2", "node2-v6"},
        Case{"FamilyOfTheRoute", "node2:29400", "fd00::2", "fd00::9", "head", "fd00::9", "fd00::9",
             "head"},
        Case{"AnotherNetwork", "head:29400", "10.0.0.9", "10.0.0.1", "192.168.7.1", "192.168.7.1",
             "192.168.7.1", "192.168.7.1"},
        Case{"InBrackets", "head:29400", "fd00::9", "fd00::2", "[fd00::2]", "fd00::2", "fd00::2",
             "fd00::2"},
        Case{"EveryAddress", "head:29400", "10.0.0.9", "10.0.0.1", "0.0.0.0", "", "10.0.0.1", ""},
        Case{"SecondLoopback", "127.0.0.3:29400", "127.0.0.3", "127.0.0.1", "127.0.0.2",
             "127.0.0.2", "127.0.0.2", "127.0.0.2"}),
    [](const auto& info) { return std::string(info.param.name); });

TEST(ChooseOwnAddressTest, ALoopbackHostWithADistantCoordinatorIsAnErrorNamingBoth) {
  const auto own = ChooseOwnAddress(RouteOf("10.0.0.9", "10.0.0.1"), "head:29400", "127.0.0.1",
                                    test::DebianNode1());
  EXPECT_EQ(own.status().code(), absl::StatusCode::kInvalidArgument);
  const std::string message(own.status().message());
  for (const char* part : {"--host 127.0.0.1", "head:29400 (10.0.0.9)", "10.0.0.1"}) {
    EXPECT_THAT(message, HasSubstr(part));
  }
}

TEST(ChooseOwnAddressTest, AnOwnNameOnTheLoopbackIsReplacedAndSaid) {
  const auto own =
      ChooseOwnAddress(RouteOf("10.0.0.9", "10.0.0.1"), "head:29400", "node1", test::DebianNode1());
  for (const char* part :
       {"--host node1 is 127.0.1.1", "head:29400 (10.0.0.9)", "using 10.0.0.1"}) {
    EXPECT_THAT(own->note, HasSubstr(part));
  }
  EXPECT_EQ(ChooseOwnAddress(RouteOf("10.0.0.9", "10.0.0.1"), "head:29400", "unknown",
                             test::DebianNode1())
                .status()
                .code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(RouteToTest, IsWhatTheConnectionSays) {
  for (const char* host : {"127.0.0.1:0", "[::1]:0"}) {
    const auto listener = Listen(host);
    if (absl::IsNotFound(listener.status())) continue;  // no IPv6 here
    ASSERT_TRUE(listener.ok()) << listener.status();
    const std::string address = *ListenAddress(*listener, "");
    const auto route = RouteTo(address, absl::Now() + absl::Minutes(1));
    ASSERT_TRUE(route.ok()) << route.status();
    EXPECT_EQ(route->coordinator.ToString(), address);
    EXPECT_TRUE(route->local.is_loopback());
  }
}

}  // namespace
}  // namespace omni::comm
