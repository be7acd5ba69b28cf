#include "trainer/metrics_host.h"

#include <gtest/gtest.h>
#include <unistd.h>

namespace omni::trainer {
namespace {

std::string MachineName() {
  char name[256] = {};
  gethostname(name, sizeof(name) - 1);
  return name;
}

struct Case {
  const char* name;
  const char *wanted, *own, *listen;
  std::string reach;
};

class MetricsHostTest : public ::testing::TestWithParam<Case> {};

TEST_P(MetricsHostTest, ListensAndIsReached) {
  const MetricsHost host = MetricsHostFor(GetParam().wanted, GetParam().own);
  EXPECT_EQ(host.listen, GetParam().listen);
  EXPECT_EQ(host.reach, GetParam().reach);
}

INSTANTIATE_TEST_SUITE_P(
    Hosts, MetricsHostTest,
    ::testing::Values(Case{"OneMachine", "", "127.0.0.1", "127.0.0.1", "127.0.0.1"},
                      Case{"WorkersHost", "", "node1", "node1", "node1"},
                      Case{"GetsBrackets", "", "fd00::7", "[fd00::7]", "[fd00::7]"},
                      Case{"KeepsBrackets", "", "[::1]", "[::1]", "[::1]"},
                      Case{"EveryAddress", "", "0.0.0.0", "0.0.0.0", MachineName()},
                      Case{"EveryAddressOfV6", "", "[::]", "[::]", MachineName()},
                      Case{"NoHost", "", "", "0.0.0.0", MachineName()},
                      Case{"WantedGoesFirst", "10.0.0.7", "node1", "10.0.0.7", "10.0.0.7"},
                      Case{"WantedEverywhere", "0.0.0.0", "node1", "0.0.0.0", "node1"},
                      Case{"WantedEverywhereOfV6", "::", "fd00::7", "[::]", "[fd00::7]"},
                      Case{"LoopbackIsNoName", "0.0.0.0", "127.0.0.1", "0.0.0.0", MachineName()},
                      Case{"LoopbackOfV6IsNoName", "0.0.0.0", "::1", "0.0.0.0", MachineName()},
                      Case{"LocalhostIsNoName", "0.0.0.0", "localhost", "0.0.0.0", MachineName()}),
    [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace omni::trainer
