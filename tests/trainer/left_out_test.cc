// Samples that are blank, folders that go away, gradients that are not finite: the loss and its
// gradient are over the tokens there are, in any layout; what can't be trained on changes nothing;
// what is lost is named and the steps before it are kept.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <functional>
#include <map>
#include <mutex>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "dataloader/media/encode.h"
#include "runtime/base/check.h"
#include "runtime/base/file.h"
#include "runtime/base/status.h"
#include "tests/support/checkpoints.h"
#include "tests/support/equivalence.h"
#include "tests/support/run_ranks.h"
#include "tests/support/tiny_job.h"
#include "trainer/trainer.h"

namespace omni::trainer {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

const KernelRegistry& Kernels() {
  static const KernelRegistry registry = [] {
    KernelRegistry r;
    RegisterCpuKernels(r);
    return r;
  }();
  return registry;
}

// Pictures and questions; every `torn`th picture is cut off behind its header (0: none).
std::string WriteList(const std::string& name, int count, int torn) {
  const std::string folder = absl::StrCat(test::TinyData(), "-", name);
  fs::remove_all(folder);
  fs::create_directories(folder + "/pictures");
  std::string lines;
  for (int i = 0; i < count; ++i) {
    dataloader::Image image{.size = {28, 28 * (1 + i % 3)}};
    image.rgb.assign(int64_t{3} * image.size.height * image.size.width,
                     static_cast<uint8_t>(7 * i + 9));
    std::string png = dataloader::EncodePng(image).value();
    if (torn > 0 && i % torn == 0) png.resize(60);
    OMNI_CHECK_OK(WriteFileAtomically(absl::StrCat(folder, "/pictures/", i, ".png"), png));
    const std::string answer = i % 2 == 0 ? "red" : "blue green seven";
    absl::StrAppend(&lines, R"({"query":"<image>what","response":")", answer,
                    R"(","images":["pictures/)", i, ".png\"]}\n");
  }
  OMNI_CHECK_OK(WriteFileAtomically(folder + "/list.jsonl", lines));
  return folder;
}

Recipe RecipeOver(const std::string& list, test::TinyRecipe tiny,
                  const std::string& parallel = "workers: 1",
                  const std::string& data = "max_broken: 1") {
  tiny.sources = "[image]";
  std::string yaml = test::TinyRecipeYaml(tiny);
  yaml = absl::StrReplaceAll(
      yaml, {{absl::StrCat(test::TinyData(), "/train/image"), list},
             {"parallel: {workers: 1}", absl::StrCat("parallel: {", parallel, "}")},
             {"  seed: 3\n", absl::StrCat("  seed: 3\n  ", data, "\n")},
             {"memory_mib: 64}", "memory_mib: 64, retry_s: 0.2}"}});
  const auto recipe = ParseRecipe(yaml, "tiny.yaml");
  OMNI_CHECK_OK(recipe.status());
  return *recipe;
}

class Listener : public WorkerLink {
 public:
  void Notice(const std::string& kind, const std::string& text) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    text_ += absl::StrCat(kind, ": ", text, "\n");
  }
  void ReportStep(int64_t, const std::map<std::string, double>& values) override {
    reports_.push_back(values);
  }
  std::string text() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return text_;
  }
  const std::vector<std::map<std::string, double>>& reports() const { return reports_; }

 private:
  mutable std::mutex mutex_;
  std::string text_;
  std::vector<std::map<std::string, double>> reports_;
};

using Steps = std::vector<std::map<std::string, double>>;

struct Result {
  test::Outcome outcome;
  Steps steps;
};

absl::Status RunOne(const Recipe& recipe, Communicator* comm, Result* result) {
  OMNI_ASSIGN_OR_RETURN(const auto trainer,
                        Trainer::Create({.recipe = recipe, .comm = comm, .kernels = &Kernels()}));
  while (!trainer->finished()) {
    OMNI_ASSIGN_OR_RETURN(const auto values, trainer->RunStep());
    result->steps.push_back(values);
    result->outcome.losses.push_back(values.at("loss"));
    result->outcome.grad_norms.push_back(values.at("grad_norm"));
  }
  if (comm != nullptr) return absl::OkStatus();  // parts lie elsewhere, or nowhere between uses
  for (const parallel::ParameterSpec& spec : trainer->model().Parameters()) {
    result->outcome.parameters[spec.path] = trainer->ReadParameter(spec.path);
  }
  return absl::OkStatus();
}

TEST(LeftOutTest, BlankSamplesLeaveTheLossOfTheRestInAnyLayout) {
  const std::string folder = WriteList("blank", 20, 3);
  const test::TinyRecipe tiny{.steps = 5, .lanes = 5};
  Result one;
  ASSERT_EQ(RunOne(RecipeOver(folder + "/list.jsonl", tiny), nullptr, &one), absl::OkStatus());
  double blanked = 0;
  for (const auto& values : one.steps) {
    blanked += values.count("skipped/blanked") > 0 ? values.at("skipped/blanked") : 0;
    // Of one source: its own mean is over the tokens there are.
    EXPECT_NEAR(values.at("loss"), values.at("loss/image"), 1e-12);
  }
  EXPECT_GT(blanked, 5);
  const std::pair<const char*, int32_t> layouts[] = {
      {"workers: 3", 3},
      {"workers: 2, pipeline: 2", 2},
      {"workers: 4, pipeline: 2, tensor: 2", 4},
      {"workers: 4, context: {degree: 2, kind: ring}, weights: zero3", 4}};
  for (const auto& [parallel, workers] : layouts) {
    SCOPED_TRACE(parallel);
    const Recipe recipe = RecipeOver(folder + "/list.jsonl", tiny, parallel);
    std::vector<Result> results(workers);
    const absl::Status status = test::RunRanks(
        workers, "shm",
        [&](Communicator& comm, int32_t rank) { return RunOne(recipe, &comm, &results[rank]); });
    ASSERT_EQ(status, absl::OkStatus());
    for (size_t i = 0; i < one.steps.size(); ++i) {
      for (const char* name : {"loss_tokens", "samples/image", "skipped/blanked"}) {
        EXPECT_EQ(results[0].steps[i].count(name), one.steps[i].count(name));
        if (one.steps[i].count(name) == 0) continue;
        EXPECT_EQ(results[0].steps[i].at(name), one.steps[i].at(name)) << name << " " << i;
      }
    }
    results[0].outcome.parameters = one.outcome.parameters;  // parts of it lie on other ranks
    EXPECT_THAT(test::Differences(results[0].outcome, one.outcome, 1e-9, 1e-6), IsEmpty());
  }
}

TEST(LeftOutTest, AStepWithoutLossTokensChangesNothing) {
  for (const char* optimizer : {"muon", "adamw"}) {
    const std::string folder = WriteList("nothing", 12, 1);
    const Recipe recipe =
        RecipeOver(folder + "/list.jsonl", {.steps = 4, .lanes = 2, .optimizer = optimizer});
    auto trainer = Trainer::Create({.recipe = recipe, .kernels = &Kernels()});
    ASSERT_TRUE(trainer.ok()) << trainer.status();
    std::map<std::string, std::vector<double>> before;
    for (const parallel::ParameterSpec& spec : (*trainer)->model().Parameters()) {
      before[spec.path] = (*trainer)->ReadParameter(spec.path);
    }
    while (!(*trainer)->finished()) {
      const auto values = (*trainer)->RunStep();
      ASSERT_TRUE(values.ok()) << values.status();
      EXPECT_TRUE(std::isnan(values->at("loss")));
      EXPECT_TRUE(std::isnan(values->at("grad_norm")));
      EXPECT_EQ(values->at("no_loss_tokens"), 1);
      EXPECT_EQ(values->at("loss_tokens"), 0);
      EXPECT_EQ(values->at("samples/image"), 0);
    }
    for (const auto& [path, value] : before) {
      EXPECT_EQ((*trainer)->ReadParameter(path), value) << path;
    }
  }
}

TEST(LeftOutTest, ASourceThatIsMostlyBrokenStopsTheJobOnAllRanksAlike) {
  const std::string folder = WriteList("broken", 30, 2);
  const Recipe recipe = RecipeOver(folder + "/list.jsonl", {.steps = 100, .workers = 2, .lanes = 4},
                                   "workers: 2", "max_broken: 0.1");
  std::vector<Listener> links(2);
  std::vector<absl::Status> ended(2);
  const absl::Status status =
      test::RunRanks(2, "shm", [&](Communicator& comm, int32_t rank) -> absl::Status {
        OMNI_ASSIGN_OR_RETURN(
            const auto trainer,
            Trainer::Create(
                {.recipe = recipe, .comm = &comm, .link = &links[rank], .kernels = &Kernels()}));
        ended[rank] = trainer->Run();
        return absl::OkStatus();
      });
  ASSERT_EQ(status, absl::OkStatus());
  EXPECT_EQ(ended[0].code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(ended[0], ended[1]);
  EXPECT_THAT(std::string(ended[0].message()),
              AllOf(HasSubstr("data source \"image\""), HasSubstr("data.max_broken is 0.1"),
                    HasSubstr("list.jsonl:")));
  EXPECT_THAT(links[0].text(),
              AllOf(HasSubstr(" samples left out (blanked "), HasSubstr("first blanked: "),
                    HasSubstr("corrupt PNG"), HasSubstr("samples left out or cut:")));
  EXPECT_EQ(links[1].text(), "");
}

// What goes wrong at step 4 of `workers` ranks, each with its recipe; returns how they ended.
std::vector<absl::Status> RunUntil(const std::vector<Recipe>& recipes, const std::string& run_dir,
                                   const std::function<void()>& strike,
                                   std::vector<Listener>* links) {
  const auto workers = static_cast<int32_t>(recipes.size());
  std::vector<absl::Status> ended(workers);
  std::once_flag struck;
  const absl::Status status =
      test::RunRanks(workers, "shm", [&](Communicator& comm, int32_t rank) -> absl::Status {
        Trainer* running = nullptr;
        OMNI_ASSIGN_OR_RETURN(const auto trainer,
                              Trainer::Create({.recipe = recipes[rank],
                                               .run_dir = run_dir,
                                               .comm = &comm,
                                               .link = &(*links)[rank],
                                               .kernels = &Kernels(),
                                               .on_action = [&](const parallel::Action&) {
                                                 if (running != nullptr && running->step() == 3) {
                                                   std::call_once(struck, strike);
                                                 }
                                               }}));
        running = trainer.get();
        ended[rank] = trainer->Run();
        return absl::OkStatus();
      });
  EXPECT_EQ(status, absl::OkStatus());
  return ended;
}

TEST(LeftOutTest, AFolderThatGoesAwayStopsTheJobAndLosesNoStep) {
  const std::string folder = WriteList("gone", 40, 0);
  const std::string run_dir = folder + "/run";
  fs::create_directories(run_dir);
  const Recipe recipe =
      RecipeOver(folder + "/list.jsonl", {.steps = 1000, .workers = 2}, "workers: 2");
  std::vector<Listener> links(2);
  const std::vector<absl::Status> ended = RunUntil(
      {recipe, recipe}, run_dir, [&] { fs::rename(folder + "/pictures", folder + "/moved"); },
      &links);
  int causes = 0;
  for (const absl::Status& status : ended) {
    EXPECT_THAT(std::string(status.message()), HasSubstr("the run is saved at step "));
    if (!absl::IsUnavailable(status)) continue;
    ++causes;
    EXPECT_THAT(std::string(status.message()),
                AllOf(HasSubstr("list.jsonl:"), HasSubstr(folder + "/pictures/"),
                      HasSubstr("No such file or directory")));
  }
  EXPECT_GE(causes, 1) << ended[0] << ended[1];
  EXPECT_THAT(links[0].text() + links[1].text(), HasSubstr("trying again for up to 200ms"));
  const auto checkpoints = CheckpointsIn(run_dir + "/checkpoints");
  ASSERT_EQ(checkpoints.size(), 1u);
  EXPECT_EQ(checkpoints[0].first, static_cast<int64_t>(links[0].reports().size()));
  for (const auto& values : links[0].reports()) {
    EXPECT_GT(values.at("loss"), 0);
    EXPECT_EQ(values.count("no_loss_tokens"), 0u);
  }
}

TEST(LeftOutTest, RanksThatReadOtherFilesAreToldWhichDiffer) {
  const std::string folder = WriteList("here", 8, 0);
  const std::string other = WriteList("there", 8, 0);
  fs::remove(other + "/pictures/5.png");
  const test::TinyRecipe tiny{.steps = 20, .workers = 2};
  std::vector<Listener> links(2);
  const std::vector<absl::Status> ended = RunUntil(
      {RecipeOver(folder + "/list.jsonl", tiny, "workers: 2"),
       RecipeOver(other + "/list.jsonl", tiny, "workers: 2")},
      "", [] {}, &links);
  for (const absl::Status& status : ended) {
    EXPECT_THAT(std::string(status.message()),
                AllOf(HasSubstr("ranks disagree on what the step's data are"),
                      HasSubstr("on rank 1 only, "), HasSubstr(other + "/list.jsonl:6 is broken"),
                      HasSubstr("5.png: can't be opened: No such file or directory")));
  }
}

TEST(LeftOutTest, GradientsThatAreNotFiniteAreToldAndNothingOfThemIsSaved) {
  const std::string folder = WriteList("wild", 20, 0);
  const std::string run_dir = folder + "/run";
  fs::create_directories(run_dir);
  Recipe recipe =
      RecipeOver(folder + "/list.jsonl",
                 {.steps = 60, .dtype = "fp32", .optimizer = "adamw", .checkpoint_every = 1});
  recipe.training.optimizer.lr = 1e12;
  recipe.training.optimizer.clip = 0;
  Listener link;
  auto trainer =
      Trainer::Create({.recipe = recipe, .run_dir = run_dir, .link = &link, .kernels = &Kernels()});
  ASSERT_TRUE(trainer.ok()) << trainer.status();
  const absl::Status status = (*trainer)->Run();
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << status;
  std::vector<int64_t> skipped;
  for (size_t i = 0; i < link.reports().size(); ++i) {
    const auto& values = link.reports()[i];
    EXPECT_EQ(values.count("grad_not_finite") > 0, !std::isfinite(values.at("grad_norm")));
    if (values.count("grad_not_finite") > 0) skipped.push_back(static_cast<int64_t>(i) + 1);
  }
  ASSERT_GE(skipped.size(), 10u);
  for (const auto& [step, path] : CheckpointsIn(run_dir + "/checkpoints")) {
    EXPECT_LT(step, skipped[0]);
  }
}

}  // namespace
}  // namespace omni::trainer
