// README's "Several machines", run as it is written on machines that Debian installed: their own
// name is 127.0.1.1 to them. And what people forget there.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <sstream>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "tests/e2e/machines.h"
#include "tests/support/tiny_job.h"

namespace omni::test {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::HasSubstr;

// Machine -> line, of the first block of code after the heading that has prompts: "node1$  ...".
std::map<std::string, std::string> ReadmeCommands() {
  std::ifstream file(OMNI_SOURCE_DIR "/README.md");
  std::map<std::string, std::string> commands;
  bool is_there = false;
  std::string* continued = nullptr;
  for (std::string line; std::getline(file, line);) {
    if (absl::StartsWith(line, "## ")) is_there = line == "## Several machines";
    if (!is_there) continue;
    absl::string_view text = line;
    if (continued == nullptr) {
      const std::pair<absl::string_view, absl::string_view> parts =
          absl::StrSplit(text, absl::MaxSplits("$ ", 1));
      if (parts.second.empty() || absl::StrContains(parts.first, ' ')) continue;
      continued = &commands[std::string(parts.first)];
      text = parts.second;
    }
    const bool goes_on = absl::ConsumeSuffix(&text, "\\");
    absl::StrAppend(continued, absl::StripAsciiWhitespace(text), " ");
    if (!goes_on) continued = nullptr;
  }
  return commands;
}

class SeveralMachinesTest : public ::testing::TestWithParam<Family> {
 protected:
  void SetUp() override {
    machines_ =
        std::make_unique<Machines>(std::vector<std::string>{"head", "node1", "node2"}, GetParam());
    if (!machines_->why_not().empty()) GTEST_SKIP() << "no machines here: " << machines_->why_not();
    folder_ = absl::StrCat(
        TinyData(), "-machines-", GetParam() == Family::kV4 ? "v4" : "v6", "-",
        std::string(::testing::UnitTest::GetInstance()->current_test_info()->name()).substr(0, 8));
    fs::remove_all(folder_);
    fs::create_directories(folder_);
    std::ofstream(folder_ + "/recipe.yaml")
        << TinyRecipeYaml({.steps = 3, .comm = "auto", .dtype = "fp32", .sources = "[text]"});
  }
  std::unique_ptr<ChildProcess> Run(const std::string& machine, const std::string& line) {
    return machines_->Run(machine, folder_, line);
  }
  void ExpectWorks(const std::vector<std::unique_ptr<ChildProcess>>& processes) {
    std::string outputs;
    std::vector<int> codes;
    for (const auto& process : processes) {
      codes.push_back(process->Wait());
      absl::StrAppend(&outputs, "----\n", process->output());
    }
    EXPECT_THAT(codes, ::testing::Each(0)) << outputs;
    EXPECT_THAT(processes[0]->output(), HasSubstr("finished at step 3")) << outputs;
  }

  std::unique_ptr<Machines> machines_;
  std::string folder_;
};

TEST_P(SeveralMachinesTest, ReadmeWorksAsWritten) {
  const auto commands = ReadmeCommands();
  ASSERT_EQ(commands.size(), 3u) << "README.md has other prompts than head$, node1$, node2$";
  std::vector<std::unique_ptr<ChildProcess>> processes;
  for (const char* machine : {"head", "node1", "node2"}) {
    processes.push_back(Run(machine, commands.at(machine)));
  }
  ExpectWorks(processes);
  EXPECT_THAT(processes[0]->output(),
              AllOf(HasSubstr("head is 127.0.1.1 on this machine"),
                    HasSubstr(machines_->AddressOf("node1")),
                    HasSubstr(machines_->AddressOf("node2")), HasSubstr("over tcp")));
  // Prometheus elsewhere is told nothing that only means oneself.
  std::ifstream addresses(folder_ + "/runs/tiny/metrics_addresses.txt");
  std::stringstream text;
  text << addresses.rdbuf();
  EXPECT_THAT(text.str(),
              AllOf(HasSubstr("coordinator head:"), HasSubstr(machines_->AddressOf("node1")),
                    HasSubstr(machines_->AddressOf("node2"))));
}

// The machine of the coordinator has a worker too, and names are given where none is needed.
TEST_P(SeveralMachinesTest, AWorkerBesideTheCoordinatorAndOwnNamesInHost) {
  std::vector<std::unique_ptr<ChildProcess>> processes;
  processes.push_back(Run("head",
                          "omnitrain coordinator recipe.yaml --address head:29400 --set "
                          "parallel.workers=2 --set runtime.comm=tcp"));
  processes.push_back(Run("head", "omnitrain worker --coordinator head:29400 --host head"));
  processes.push_back(Run("node1", "omnitrain worker --coordinator head:29400 --host node1"));
  ExpectWorks(processes);
  EXPECT_THAT(processes[0]->output(), HasSubstr("--host node1 is 127.0.1.1 on this machine"));
}

TEST_P(SeveralMachinesTest, SharedMemoryOverTwoMachinesIsRefusedByBothNames) {
  const auto coordinator = Run("head",
                               "omnitrain coordinator recipe.yaml --address head:29400 --set "
                               "parallel.workers=2 --set runtime.comm=shm");
  const auto one = Run("node1", "omnitrain worker --coordinator head:29400");
  const auto two = Run("node2", "omnitrain worker --coordinator head:29400");
  EXPECT_EQ(coordinator->Wait(), 1) << coordinator->output();
  EXPECT_THAT(coordinator->output(),
              AllOf(HasSubstr("runtime.comm is shm"), HasSubstr("node1 ("), HasSubstr("node2 (")));
  EXPECT_EQ(one->Wait(), 1) << one->output();
  EXPECT_EQ(two->Wait(), 1) << two->output();
}

TEST_P(SeveralMachinesTest, ALoopbackAsHostIsAnErrorAtOnce) {
  const auto coordinator = Run("head",
                               "omnitrain coordinator recipe.yaml --address head:29400 --set "
                               "parallel.workers=2");
  const auto worker = Run("node1", "omnitrain worker --coordinator head:29400 --host localhost");
  EXPECT_EQ(worker->Wait(), 1);
  EXPECT_THAT(worker->output(), AllOf(HasSubstr("--host localhost"), HasSubstr("head:29400 ("),
                                      HasSubstr(machines_->AddressOf("node1"))));
}

INSTANTIATE_TEST_SUITE_P(Families, SeveralMachinesTest, ::testing::Values(Family::kV4, Family::kV6),
                         [](const auto& info) {
                           return std::string(info.param == Family::kV4 ? "V4" : "V6");
                         });

// One machine, its IPv6 loopback.
TEST(Ipv6Test, AJobRunsOverTheLoopback) {
  const std::string recipe = TinyData() + "-v6.yaml";
  std::ofstream(recipe) << TinyRecipeYaml(
      {.steps = 2, .workers = 2, .dtype = "fp32", .sources = "[text]"});
  const std::string dir = TinyData() + "-v6-run";
  OmnitrainProcess coordinator({"coordinator", recipe, "--run-dir", dir, "--address", "[::1]:0",
                                "--set", "runtime.comm=tcp"});
  std::string address;
  ASSERT_TRUE(WaitFor([&] {
    const std::string output = coordinator.output(), before = "coordinator at ";
    const size_t at = output.find(before), end = output.find("; start");
    if (at == std::string::npos || end == std::string::npos) return false;
    address = output.substr(at + before.size(), end - at - before.size());
    return true;
  })) << coordinator.output();
  EXPECT_TRUE(absl::StartsWith(address, "[::1]:")) << address;
  OmnitrainProcess one({"worker", "--coordinator", address});
  OmnitrainProcess two({"worker", "--coordinator", address});
  EXPECT_EQ(coordinator.Wait(), 0) << coordinator.output() << one.output() << two.output();
  std::ifstream addresses(dir + "/metrics_addresses.txt");
  for (std::string who, where; addresses >> who >> where;) {
    EXPECT_TRUE(absl::StartsWith(where, "[::1]:")) << who << " " << where;
  }
}

}  // namespace
}  // namespace omni::test
