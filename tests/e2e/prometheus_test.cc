// A job as Debian's Prometheus sees it: a server with the shipped configuration scrapes a running
// coordinator and its workers, promtool reads every endpoint, and the dashboard's queries have
// data.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>

#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"
#include "tests/e2e/process.h"
#include "tests/e2e/prometheus_server.h"
#include "tests/support/http.h"
#include "tests/support/tiny_job.h"

namespace omni::test {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Key;
using ::testing::SizeIs;
using ::testing::UnorderedElementsAreArray;
using Samples = std::vector<PrometheusSample>;

constexpr int kWorkers = 2;

// A job that trains until it is stopped, and a server that watches it.
class PrometheusTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    for (const char* program : {"prometheus", "promtool"}) {
      ASSERT_EQ(ChildProcess(program, {"--version"}).Wait(), 0)
          << program << " does not run; Debian's package prometheus has it (make setup)";
    }
    const std::string folder = TinyData() + "-prometheus";
    fs::remove_all(folder);
    fs::create_directories(folder);
    run_dir_ = folder + "/run";
    std::ofstream(folder + "/recipe.yaml")
        << TinyRecipeYaml({.steps = 1000000, .workers = kWorkers, .dtype = "fp32"});
    job_ = std::make_unique<OmnitrainProcess>(
        std::vector<std::string>{"train", folder + "/recipe.yaml", "--run-dir", run_dir_, "--set",
                                 "data.sequence_length=48"});  // which some samples exceed
    ASSERT_TRUE(WaitFor([] { return FromRun("loss").size() >= 3; })) << job_->output();

    std::ifstream file(run_dir_ + "/metrics_addresses.txt");
    std::vector<std::string> targets;
    for (std::string who, address; file >> who >> address;) {
      addresses_[who] = address;
      targets.push_back(address);
    }
    ASSERT_THAT(addresses_, SizeIs(1 + kWorkers));
    server_ = std::make_unique<PrometheusServer>(folder + "/server", targets);
    ready_ = server_->WaitReady();
    ASSERT_TRUE(ready_) << server_->output();
  }

  // The job ends well although it is being watched.
  static void TearDownTestSuite() {
    if (ready_) {
      kill(job_->pid(), SIGTERM);
      EXPECT_EQ(job_->Wait(), 3) << job_->output();
    }
    server_.reset();
    job_.reset();
  }

  void SetUp() override { ASSERT_TRUE(ready_) << "there is no job or no server"; }

  static std::map<int64_t, double> FromRun(const std::string& name) {
    std::map<int64_t, double> by_step;
    for (const auto& [step, values] : ReadMetrics(run_dir_ + "/metrics.jsonl")) {
      by_step[step] = std::stod(values.at(name));
    }
    return by_step;
  }

  // What the query gives once it gives `count` samples or more.
  static Samples WaitForSamples(const std::string& expression, size_t count) {
    absl::StatusOr<Samples> samples;
    EXPECT_TRUE(WaitFor([&] {
      samples = server_->Query(expression);
      return !samples.ok() || samples->size() >= count;
    })) << expression
        << " has fewer than " << count << " samples";
    EXPECT_TRUE(samples.ok()) << samples.status();
    return samples.value_or(Samples{});
  }

  struct Scrape {
    std::map<std::string, int64_t> steps;  // by rank
    double tokens = 0;                     // of all ranks
  };
  // The first to show every rank in `steps` farther than that.
  static Scrape WaitForScrape(const std::map<std::string, int64_t>& steps) {
    Scrape scrape;
    absl::Status status;
    EXPECT_TRUE(WaitFor([&] {
      const auto samples =
          server_->Query("{__name__=~\"omnitrain_step|omnitrain_tokens_total\",job=\"tiny\"}");
      status = samples.status();
      if (!status.ok()) return true;
      scrape = {};
      for (const PrometheusSample& sample : *samples) {
        if (sample.labels.at("__name__") == "omnitrain_step") {
          scrape.steps[sample.labels.at("rank")] = static_cast<int64_t>(sample.value);
        } else {
          scrape.tokens += sample.value;
        }
      }
      return std::all_of(steps.begin(), steps.end(),
                         [&](const auto& step) { return scrape.steps[step.first] > step.second; });
    }));
    EXPECT_TRUE(status.ok()) << status;
    return scrape;
  }

  static std::string run_dir_;
  static std::map<std::string, std::string> addresses_;  // "coordinator", "rank-0", ...
  static std::unique_ptr<OmnitrainProcess> job_;
  static std::unique_ptr<PrometheusServer> server_;
  static bool ready_;
};
std::string PrometheusTest::run_dir_;
std::map<std::string, std::string> PrometheusTest::addresses_;
std::unique_ptr<OmnitrainProcess> PrometheusTest::job_;
std::unique_ptr<PrometheusServer> PrometheusTest::server_;
bool PrometheusTest::ready_ = false;

TEST_F(PrometheusTest, PromtoolTakesTheShippedConfiguration) {
  ChildProcess check("promtool", {"check", "config", kPrometheusConfig});
  EXPECT_EQ(check.Wait(), 0) << check.output();
  EXPECT_THAT(check.output(), HasSubstr("SUCCESS"));
}

TEST_F(PrometheusTest, EveryTargetIsUp) {
  std::vector<std::string> expected, scraped;
  for (const auto& [who, address] : addresses_) {
    expected.push_back("http://" + address + "/metrics");
  }
  std::string last;
  EXPECT_TRUE(WaitFor([&] {
    const auto targets = server_->Get("targets");
    if (!targets.ok()) return false;
    last = targets->dump(1);
    scraped.clear();
    bool all_up = true;
    for (const Json& target : targets->at("activeTargets")) {
      scraped.push_back(target.at("scrapeUrl"));
      all_up = all_up && target.at("health") == "up";
    }
    return all_up && scraped.size() == expected.size();
  })) << last;
  EXPECT_THAT(scraped, UnorderedElementsAreArray(expected));
}

// What Prometheus has of the workers is what the run directory says of the job: the tokens of a
// scrape lie between those of the steps seen in the scrapes before and after it.
TEST_F(PrometheusTest, EveryWorkersStepsAndTokensAreThere) {
  const Scrape before = WaitForScrape({{"0", 1}, {"1", 1}});
  const Scrape scrape = WaitForScrape(before.steps);
  const Scrape after = WaitForScrape(scrape.steps);
  ASSERT_THAT(after.steps, ElementsAre(Key("0"), Key("1")));
  const int64_t least = std::min(before.steps.at("0"), before.steps.at("1")) - 1;
  const int64_t most = std::max(after.steps.at("0"), after.steps.at("1"));
  ASSERT_TRUE(WaitFor([&] { return FromRun("tokens_total").count(most) > 0; }));
  const auto tokens = FromRun("tokens_total");
  EXPECT_GE(scrape.tokens, tokens.at(least)) << "of step " << least;
  EXPECT_LE(scrape.tokens, tokens.at(most)) << "of step " << most;
}

TEST_F(PrometheusTest, EveryWorkersLossIsThere) {
  const Samples samples = WaitForSamples("omnitrain_loss{job=\"tiny\"}", kWorkers);
  ASSERT_THAT(samples, SizeIs(kWorkers));
  for (const PrometheusSample& sample : samples) {
    EXPECT_TRUE(WaitFor([&] {
      for (const auto& [step, loss] : FromRun("loss")) {  // the text format has 16 digits
        if (std::abs(loss - sample.value) <= 1e-14 * loss) return true;
      }
      return false;
    })) << "no step has the loss "
        << absl::StrFormat("%.17g", sample.value) << " of rank " << sample.labels.at("rank");
  }
}

TEST_F(PrometheusTest, TheCoordinatorsFiguresAreThere) {
  const std::string of_tiny = "{job=\"tiny\",role=\"coordinator\"}";
  const Samples step = WaitForSamples("omnitrain_job_step" + of_tiny, 1);
  const Samples workers = WaitForSamples("omnitrain_job_workers" + of_tiny, 1);
  ASSERT_THAT(step, SizeIs(1));
  ASSERT_THAT(workers, SizeIs(1));
  EXPECT_GE(step[0].value, 3);
  EXPECT_LE(step[0].value, static_cast<double>(FromRun("loss").size()));
  EXPECT_EQ(workers[0].value, kWorkers);
}

TEST_F(PrometheusTest, PromtoolIsContentWithEveryEndpoint) {
  for (const auto& [who, address] : addresses_) {
    const auto reply = HttpGet(PortOf(address), "/metrics");
    ASSERT_TRUE(reply.ok()) << who << ": " << reply.status();
    EXPECT_EQ(reply->status, 200);
    const std::string own = who == "coordinator" ? "omnitrain_job_step{" : "omnitrain_step{";
    EXPECT_THAT(reply->body, HasSubstr("\n" + own));
    const std::string path = run_dir_ + "-" + who + ".prom";
    std::ofstream(path) << reply->body;
    ChildProcess check("promtool", {"check", "metrics"}, path);
    EXPECT_EQ(check.Wait(), 0) << who;
    EXPECT_EQ(check.output(), "") << who;
  }
}

TEST_F(PrometheusTest, PromtoolSeesABadName) {
  const std::string path = run_dir_ + "-bad.prom";
  std::ofstream(path) << "# HELP steps Steps\n# TYPE steps counter\nsteps 1\n";
  ChildProcess check("promtool", {"check", "metrics"}, path);
  EXPECT_NE(check.Wait(), 0);
  EXPECT_THAT(check.output(), HasSubstr("_total"));
}

TEST_F(PrometheusTest, TheDashboardsQueriesHaveData) {
  std::ifstream file(OMNI_SOURCE_DIR "/deploy/grafana/omnitrain.json");
  const Json dashboard = Json::parse(file);
  int queries = 0;
  for (const Json& panel : dashboard.at("panels")) {
    for (const Json& target : panel.at("targets")) {
      const std::string expression = target.at("expr");
      WaitForSamples(absl::StrReplaceAll(expression, {{"$job", "tiny"}}), 1);
      ++queries;
    }
  }
  EXPECT_GE(queries, 10);
}

}  // namespace
}  // namespace omni::test
