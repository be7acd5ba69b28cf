// The coordinator and a worker started by hand, on two addresses of the loopback as on two
// machines: each serves its metrics where it was told that the others reach it, and says so.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <map>

#include "tests/e2e/process.h"
#include "tests/support/http.h"
#include "tests/support/tiny_job.h"

namespace omni::test {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

// "127.0.0.1:4711" out of "coordinator at 127.0.0.1:4711; start 1 workers...".
std::string CoordinatorAddress(const OmnitrainProcess& coordinator) {
  const std::string output = coordinator.output();
  const size_t begin = output.find("coordinator at ");
  const size_t end = output.find(';');
  if (begin == std::string::npos || end == std::string::npos) return "";
  return output.substr(begin + 15, end - begin - 15);
}

// Who -> where, as Prometheus would be told.
std::map<std::string, std::string> MetricsAddresses(const std::string& run_dir) {
  std::map<std::string, std::string> addresses;
  std::ifstream file(run_dir + "/metrics_addresses.txt");
  for (std::string who, where; file >> who >> where;) addresses[who] = where;
  return addresses;
}

TEST(MetricsTest, EachProcessServesOnTheHostItWasStartedWith) {
  const std::string run_dir = TinyData() + "-metrics-run";
  const std::string recipe = TinyData() + "-metrics.yaml";
  std::filesystem::remove_all(run_dir);
  std::ofstream(recipe) << TinyRecipeYaml(
      {.steps = 100000, .lanes = 1, .dtype = "fp32", .sources = "[text]"});
  OmnitrainProcess coordinator(
      {"coordinator", recipe, "--run-dir", run_dir, "--address", "127.0.0.3:0"});
  ASSERT_TRUE(WaitFor([&] { return !CoordinatorAddress(coordinator).empty(); }))
      << coordinator.output();
  OmnitrainProcess worker(
      {"worker", "--coordinator", CoordinatorAddress(coordinator), "--host", "127.0.0.2"});
  ASSERT_TRUE(WaitFor([&] { return ReadMetrics(run_dir + "/metrics.jsonl").size() >= 2; }))
      << coordinator.output() << worker.output();

  const auto addresses = MetricsAddresses(run_dir);
  ASSERT_EQ(addresses.size(), 2u);
  EXPECT_THAT(addresses.at("coordinator"), StartsWith("127.0.0.3:"));
  EXPECT_THAT(addresses.at("rank-0"), StartsWith("127.0.0.2:"));
  const auto of_job = HttpGet(addresses.at("coordinator"), "/metrics");
  ASSERT_TRUE(of_job.ok()) << of_job.status();
  EXPECT_THAT(of_job->body,
              HasSubstr("omnitrain_job_workers{job=\"tiny\",role=\"coordinator\"} 1"));
  const auto of_rank = HttpGet(addresses.at("rank-0"), "/metrics");
  ASSERT_TRUE(of_rank.ok()) << of_rank.status();
  EXPECT_THAT(of_rank->body, HasSubstr("job=\"tiny\",rank=\"0\""));

  kill(coordinator.pid(), SIGTERM);
  EXPECT_EQ(worker.Wait(), 0) << worker.output();
  EXPECT_EQ(coordinator.Wait(), 3) << coordinator.output();
}

}  // namespace
}  // namespace omni::test
