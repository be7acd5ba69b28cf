#include "scheduler/worker_hosts.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace omni::scheduler {
namespace {

using ::testing::HasSubstr;

WorkerHost On(const std::string& machine, const std::string& host, const std::string& reached) {
  return {.name = machine + " (" + host + ")",
          .machine = machine,
          .comm_address = host + ":7",
          .reached = reached};
}

const WorkerHost kHead = On("head", "127.0.0.1", "127.0.1.1");
const WorkerHost kNode1 = On("node1", "10.0.0.1", "10.0.0.9");
const WorkerHost kNode2 = On("node2", "[fd00::2]", "fd00::9");

TEST(CheckHostsTest, ShmOverTwoMachinesNamesBothAndTheKey) {
  const absl::Status status = CheckHosts({kNode1, std::nullopt, kNode2}, "shm", "head");
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  for (const char* part : {"runtime.comm is shm", "rank 0 is on node1 (10.0.0.1)",
                           "rank 2 on node2 ([fd00::2])", "auto or tcp"}) {
    EXPECT_THAT(std::string(status.message()), HasSubstr(part));
  }
  EXPECT_TRUE(CheckHosts({kNode1, std::nullopt, kNode1}, "shm", "head").ok());
  EXPECT_TRUE(CheckHosts({kNode1, std::nullopt, kNode2}, "tcp", "head").ok());
}

TEST(CheckHostsTest, ALoopbackThatNobodyElseReachesIsNamed) {
  const WorkerHost tunnelled = On("node3", "127.0.0.1", "127.0.0.1");
  const absl::Status status = CheckHosts({kNode1, tunnelled}, "tcp", "head");
  EXPECT_THAT(std::string(status.message()), HasSubstr("rank 1 on node3 (127.0.0.1) listens on"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("rank 0 on node1 (10.0.0.1) can't reach"));
  EXPECT_TRUE(CheckHosts({tunnelled, tunnelled}, "tcp", "head").ok());
  EXPECT_TRUE(CheckHosts({kNode1, kHead}, "auto", "head").ok());
  EXPECT_FALSE(CheckHosts({kNode1, kHead}, "auto", "elsewhere").ok());
}

TEST(ChooseEngineTest, AutoIsShmOnOneMachineOnly) {
  EXPECT_EQ(ChooseEngine({kNode1, kNode1}, "auto"), "shm");
  EXPECT_EQ(ChooseEngine({kNode1, kNode2}, "auto"), "tcp");
  EXPECT_EQ(ChooseEngine({kNode1, kNode1}, "tcp"), "tcp");
  EXPECT_EQ(ChooseEngine({kNode1}, "auto"), "shm");
}

// Debian's 127.0.1.1: the worker beside the coordinator came over the loopback.
TEST(AddressForTest, TheLoopbackOfTheCoordinatorsMachineHasItsAddress) {
  EXPECT_EQ(AddressFor(kNode1, kHead), "10.0.0.9:7");
  EXPECT_EQ(AddressFor(kNode2, kHead), "[fd00::9]:7");
  EXPECT_EQ(AddressFor(kHead, kHead), "127.0.0.1:7");
  EXPECT_EQ(AddressFor(kHead, kNode1), "10.0.0.1:7");
  EXPECT_EQ(AddressFor(kNode1, kNode2), "[fd00::2]:7");
}

TEST(DifferentHostsTest, NamesEachMachineOnce) {
  EXPECT_EQ(DifferentHosts({kNode1, kHead, kNode1}), "node1 (10.0.0.1), head (127.0.0.1)");
  EXPECT_EQ(DifferentHosts({kNode1, kNode1}), "");
}

}  // namespace
}  // namespace omni::scheduler
