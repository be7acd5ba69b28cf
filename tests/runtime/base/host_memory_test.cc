#include "runtime/base/host_memory.h"

#include <gtest/gtest.h>

#include <filesystem>

#include "runtime/base/file.h"

namespace omni {
namespace {

namespace fs = std::filesystem;

// A /proc and a /sys of 8 GiB.
class HostMemoryTest : public ::testing::Test {
 protected:
  void SetUp() override {
    root_ = ::testing::TempDir() + "/host_memory_XXXXXX";
    ASSERT_NE(mkdtemp(root_.data()), nullptr);
    Write("/proc/meminfo", "MemTotal:        8388608 kB\nMemFree:          100 kB\n");
  }
  void TearDown() override { fs::remove_all(root_); }

  void Write(const std::string& path, const std::string& text) const {
    fs::create_directories(fs::path(root_ + path).parent_path());
    ASSERT_TRUE(WriteFileAtomically(root_ + path, text).ok());
  }
  void ExpectLimit(int64_t bytes, const std::string& source) const {
    const MemoryLimit limit = HostMemoryLimit(root_);
    EXPECT_EQ(limit.bytes, bytes);
    EXPECT_EQ(limit.source, source);
  }

  std::string root_;
};

TEST_F(HostMemoryTest, WithoutGroupsItIsTheMachines) {
  ExpectLimit(int64_t{8} << 30, "/proc/meminfo");
  Write("/proc/self/cgroup", "0::/\n");
  ExpectLimit(int64_t{8} << 30, "/proc/meminfo");
  Write("/sys/fs/cgroup/memory.max", "max\n");
  ExpectLimit(int64_t{8} << 30, "/proc/meminfo");
}

TEST_F(HostMemoryTest, AGroupsLimitHoldsForAllBelowIt) {
  Write("/proc/self/cgroup", "0::/slurm/job_7/step_0\n");
  Write("/sys/fs/cgroup/slurm/job_7/step_0/memory.max", "max\n");
  Write("/sys/fs/cgroup/slurm/job_7/memory.max", "2147483648\n");
  Write("/sys/fs/cgroup/slurm/memory.max", "4294967296\n");
  ExpectLimit(int64_t{2} << 30, root_ + "/sys/fs/cgroup/slurm/job_7/memory.max");
  Write("/sys/fs/cgroup/memory.max", "1073741824\n");  // a container sees its own group as the root
  ExpectLimit(int64_t{1} << 30, root_ + "/sys/fs/cgroup/memory.max");
}

TEST_F(HostMemoryTest, GroupsOfVersionOne) {
  Write("/proc/self/cgroup", "9:name=systemd:/\n4:cpu,memory:/docker/abc\n3:cpuset:/x\n");
  Write("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
  ExpectLimit(int64_t{8} << 30, "/proc/meminfo");
  Write("/sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes", "3221225472\n");
  ExpectLimit(int64_t{3} << 30, root_ + "/sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes");
}

TEST_F(HostMemoryTest, NothingToReadIsNotKnown) {
  EXPECT_EQ(HostMemoryLimit(root_ + "/nowhere").bytes, 0);
  EXPECT_GT(HostMemoryLimit().bytes, 0);
  EXPECT_GT(ResidentBytes(), 1 << 20);
  EXPECT_EQ(HostIdentity(), HostIdentity());
}

TEST(FormatBytesTest, SaysItsUnit) {
  EXPECT_EQ(FormatBytes(int64_t{3} << 30), "3.00 GiB");
  EXPECT_EQ(FormatBytes(int64_t{300} << 20), "300 MiB");
  EXPECT_EQ(FormatBytes(0), "0 KiB");
}

}  // namespace
}  // namespace omni
