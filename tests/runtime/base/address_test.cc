#include "runtime/base/address.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <map>

#include "absl/strings/str_cat.h"
#include "runtime/base/unique_fd.h"
#include "tests/support/resolver.h"

namespace omni {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::vector<std::string> Texts(const std::vector<SocketAddress>& addresses) {
  std::vector<std::string> texts;
  for (const SocketAddress& address : addresses) texts.push_back(address.ToString());
  return texts;
}

TEST(HostPortTest, ReadsAndPrintsBothFamilies) {
  for (const char* text : {"node1:29400", "10.0.0.7:0", "[fd00::7]:29400", "[::1]:1"}) {
    const auto place = ParseHostPort(text);
    ASSERT_TRUE(place.ok()) << place.status();
    EXPECT_EQ(JoinHostPort(place->host, place->port), text);
  }
  EXPECT_EQ(ParseHostPort("[::1]:5")->host, "::1");
  EXPECT_EQ(ParseHostPort(":29400")->host, "");
  for (const char* text : {"node1", "", "node1:", "node1:70000", "node1:-1", "node1:x", "[::1]"}) {
    EXPECT_EQ(ParseHostPort(text).status().code(), absl::StatusCode::kInvalidArgument) << text;
  }
}

TEST(HostPortTest, AnIpv6AddressWithoutBracketsIsToldItsBrackets) {
  const auto place = ParseHostPort("fd00::7:29400");
  EXPECT_THAT(std::string(place.status().message()), HasSubstr("[fd00::7]:29400"));
}

TEST(ResolveTest, GivesEveryAddressAndTheReason) {
  EXPECT_THAT(Texts(*Resolve({.host = "127.0.0.2", .port = 5})), ElementsAre("127.0.0.2:5"));
  EXPECT_THAT(Texts(*Resolve({.host = "::1", .port = 5})), ElementsAre("[::1]:5"));
  const auto absent = Resolve({.host = "no.such.host.invalid", .port = 5});
  EXPECT_EQ(absent.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(absent.status().message()), HasSubstr("\"no.such.host.invalid:5\": "));
}

struct ListenCase {
  const char *name, *host;
  std::vector<std::string> addresses;
  std::string reach;
};

class PlaceToListenTest : public ::testing::TestWithParam<ListenCase> {};

TEST_P(PlaceToListenTest, OthersReachIt) {
  const auto place = PlaceToListen({.host = GetParam().host, .port = 5}, test::DebianNode1());
  ASSERT_TRUE(place.ok()) << place.status();
  EXPECT_EQ(Texts(place->addresses), GetParam().addresses);
  EXPECT_EQ(place->reach, GetParam().reach);
  EXPECT_EQ(place->is_every, GetParam().addresses[0] == "[::]:5");
}

const std::vector<std::string> kEvery = {"[::]:5", "0.0.0.0:5"};

INSTANTIATE_TEST_SUITE_P(
    Names, PlaceToListenTest,
    ::testing::Values(ListenCase{"OwnNameAsDebianHasIt", "node1", kEvery, "node1"},
                      ListenCase{"OwnNameInIpv6Too", "node1-v6", kEvery, "node1-v6"},
                      ListenCase{"OtherName", "head", {"10.0.0.9:5", "[fd00::9]:5"}, "head"},
                      ListenCase{"Localhost", "localhost", {"[::1]:5", "127.0.0.1:5"}, "localhost"},
                      ListenCase{"Loopback", "127.0.0.1", {"127.0.0.1:5"}, "127.0.0.1"},
                      ListenCase{"LoopbackOfIpv6", "::1", {"[::1]:5"}, "::1"},
                      ListenCase{"Number", "10.0.0.7", {"10.0.0.7:5"}, "10.0.0.7"},
                      ListenCase{"Nothing", "", kEvery, MachineName()},
                      ListenCase{"EveryV4", "0.0.0.0", kEvery, MachineName()},
                      ListenCase{"EveryV6", "::", kEvery, MachineName()}),
    [](const auto& info) { return std::string(info.param.name); });

TEST(PlaceToListenTest, SaysWhatItDidWithAnOwnName) {
  EXPECT_THAT(PlaceToListen({.host = "node1", .port = 5}, test::DebianNode1())->note,
              HasSubstr("node1 is 127.0.1.1 on this machine"));
  EXPECT_EQ(PlaceToListen({.host = "head", .port = 5}, test::DebianNode1())->note, "");
}

TEST(ListenOnTest, EveryAddressIncludesBothFamilies) {
  const auto listener = ListenOn(SocketAddress::EveryV6(0));
  if (absl::IsNotFound(listener.status())) GTEST_SKIP() << "no IPv6: " << listener.status();
  ASSERT_TRUE(listener.ok()) << listener.status();
  const UniqueFd owner(*listener);
  const int32_t port = SocketAddress::Local(*listener).port();
  for (const char* host : {"127.0.0.1", "::1"}) {
    const SocketAddress to = Resolve({.host = host, .port = port})->front();
    const UniqueFd fd(socket(to.family(), SOCK_STREAM, 0));
    EXPECT_EQ(connect(fd.get(), to.get(), to.length()), 0) << host;
    EXPECT_TRUE(SocketAddress::Remote(fd.get()).is_loopback()) << host;
  }
}

TEST(ListenOnTest, ATakenPortAndAForeignAddressAreTwoThings) {
  SocketAddress here = Resolve({.host = "127.0.0.1", .port = 0})->front();
  const UniqueFd first(*ListenOn(here));
  here.set_port(SocketAddress::Local(first.get()).port());
  const auto second = ListenOn(here);
  EXPECT_EQ(second.status().code(), absl::StatusCode::kAlreadyExists);
  EXPECT_THAT(std::string(second.status().message()),
              HasSubstr(absl::StrCat("port ", here.port(), " is in use on ", MachineName())));
  const auto foreign = ListenOn(Resolve({.host = "203.0.113.7", .port = 0})->front());
  EXPECT_EQ(foreign.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(foreign.status().message()), HasSubstr("203.0.113.7 is no address of"));
}

TEST(MachineTest, HasAnIdentityAndAName) {
  EXPECT_EQ(MachineIdentity(), MachineIdentity());
  EXPECT_THAT(MachineIdentity(), HasSubstr("net:["));
  EXPECT_FALSE(MachineName().empty());
}

}  // namespace
}  // namespace omni
