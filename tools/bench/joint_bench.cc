// The joint pipeline in real time: `uniform` against `first_stage` with its best uneven split of
// the decoder, two ranks of one thread each, on deploy/recipes/joint_mix.yaml, whose mixture
// alternates between nine pictures to one document and the reverse; and on fixed mixtures.
//
//   joint_bench [--alternations=10] [--fixed=3] [--search=3] [--q=Q] [--out=DIR] [--smoke]
//
// First every split is tried on the alternating mixture `search` times, in turns, for first_stage
// (uniform has the even one). Then runs of `omnitrain train` alternate; the first period of the
// mixture warms up. Of each run the actions recorded in its traces are replayed, step by step, and
// the sum compared with the time measured. Data is made in DIR (a folder of the temporary one),
// runs are left there.
#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "parallel/schedule/action_times.h"
#include "parallel/schedule/replay.h"
#include "parallel/schedule/verify.h"
#include "runtime/base/file.h"
#include "runtime/base/rng.h"
#include "runtime/base/status.h"
#include "tools/data_make.h"
#include "trainer/recipe.h"

extern char** environ;

namespace omni {
namespace {

namespace fs = std::filesystem;

constexpr char kRecipe[] = OMNI_SOURCE_DIR "/deploy/recipes/joint_mix.yaml";
constexpr int64_t kWarmUpSteps = 4;  // a period of the mixture

struct Options {
  int32_t alternations = 10, fixed = 3, search = 3;
  int32_t q = 0;  // 0: the recipe's
  std::string out = fs::temp_directory_path() / "omnitrain_joint_bench";
  bool smoke = false;
};

struct Plan {
  std::string joint;
  std::vector<int32_t> layers;
  std::string name() const { return absl::StrCat(joint, " [", absl::StrJoin(layers, ", "), "]"); }
};

struct Mixture {
  std::string name;
  int32_t images = 0, texts = 0;  // 0: as the recipe alternates
};

struct Run {
  double tokens_per_s = 0;
  double seconds = 0, forecast = 0;             // of the steps measured
  std::vector<double> step_s, step_forecast_s;  // [steps measured]
};

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const size_t half = values.size() / 2;
  return values.size() % 2 == 1 ? values[half] : (values[half - 1] + values[half]) / 2;
}

template <typename Get>
double MedianOf(const std::vector<Run>& runs, Get get) {
  std::vector<double> values;
  for (const Run& run : runs) values.push_back(get(run));
  return Median(std::move(values));
}

// Documents of about as many tokens as a picture with its question.
absl::Status WriteDocuments(const std::string& path) {
  constexpr std::array<const char*, 8> kSome = {"red",  "green", "blue", "cat",
                                                "tree", "house", "left", "zero"};
  CounterRng rng(1, StreamOf("joint_bench"));
  std::string text;
  for (int i = 0; i < 600; ++i) {
    std::vector<std::string> words;
    for (int w = 0; w < 85; ++w) words.emplace_back(kSome[rng.NextBelow(kSome.size())]);
    absl::StrAppend(&text, nlohmann::json{{"text", absl::StrJoin(words, " ")}}.dump(), "\n");
  }
  return WriteFileAtomically(path, text);
}

absl::Status Spawn(std::vector<std::string> arguments, const std::string& log) {
  std::vector<char*> argv;
  for (std::string& argument : arguments) argv.push_back(argument.data());
  argv.push_back(nullptr);
  posix_spawn_file_actions_t files;
  posix_spawn_file_actions_init(&files);
  posix_spawn_file_actions_addopen(&files, 1, log.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0644);
  posix_spawn_file_actions_adddup2(&files, 1, 2);
  pid_t pid = 0;
  const int error = posix_spawn(&pid, argv[0], &files, nullptr, argv.data(), environ);
  posix_spawn_file_actions_destroy(&files);
  if (error != 0) return FileError(error, arguments[0], "start");
  int status = 0;
  waitpid(pid, &status, 0);
  if (status == 0) return absl::OkStatus();
  return absl::AbortedError(absl::StrCat(absl::StrJoin(arguments, " "), " failed; see ", log));
}

class Bench {
 public:
  explicit Bench(Options options) : options_(std::move(options)) {}

  absl::Status Prepare(const std::string& own_path) {
    omnitrain_ = (fs::path(own_path).parent_path() / "omnitrain").string();
    const std::string data = absl::StrCat(options_.out, "/data");
    std::error_code ignored;
    fs::create_directories(options_.out, ignored);
    OMNI_RETURN_IF_ERROR(tools::MakeQuickstartData({.out = data, .scale = 0.05}));
    const std::string documents = absl::StrCat(options_.out, "/text.jsonl");
    OMNI_RETURN_IF_ERROR(WriteDocuments(documents));
    common_ = {absl::StrCat("data.tokenizer=", data, "/tokenizer.model"),
               absl::StrCat("data.sources.0.path=", data, "/train/image"),
               absl::StrCat("data.sources.1.path=", documents)};
    if (options_.q > 0) common_.push_back(absl::StrCat("parallel.joint.q=", options_.q));
    if (options_.smoke) {
      common_.insert(common_.end(), {"data.lanes=4", "training.steps=6"});
      common_.emplace_back("observe.trace_steps=[5, 6]");
    }
    return absl::OkStatus();
  }

  absl::Status Main() {
    OMNI_ASSIGN_OR_RETURN(const trainer::Recipe recipe, trainer::LoadRecipe(kRecipe, common_));
    const int32_t layers = NumLayers(recipe);
    const Plan uniform{"uniform", {layers / 2, layers - layers / 2}};
    OMNI_ASSIGN_OR_RETURN(const Plan first_stage, BestFirstStage(layers));
    std::printf(
        "\n| mixture, pictures : documents | plan | tokens/s | forecast error | worst run |"
        " ratio (range) |\n|---|---|---|---|---|---|\n");
    std::vector<Mixture> mixtures = {{"alternating 9:1, 1:9"}};
    if (!options_.smoke) {
      mixtures.insert(mixtures.end(), {{"9:1", 9, 1}, {"5:5", 5, 5}, {"1:9", 1, 9}});
    }
    for (const Mixture& mixture : mixtures) {
      OMNI_RETURN_IF_ERROR(Compare(mixture, uniform, first_stage,
                                   mixture.images == 0 ? options_.alternations : options_.fixed));
    }
    return absl::OkStatus();
  }

 private:
  static int32_t NumLayers(const trainer::Recipe& recipe) {
    const auto layers = recipe.model.Get("decoder").Get("layers").AsInt();
    OMNI_CHECK_OK(layers.status());
    return static_cast<int32_t>(*layers);
  }

  absl::StatusOr<Plan> BestFirstStage(int32_t layers) {
    std::vector<Plan> plans;
    for (int32_t first = 1; first <= layers / 2; ++first) {
      plans.push_back({"first_stage", {first, layers - first}});
    }
    if (options_.smoke) plans.resize(1);
    std::vector<std::vector<double>> found(plans.size());
    for (int32_t round = 0; round < options_.search; ++round) {
      for (size_t i = 0; i < plans.size(); ++i) {
        OMNI_ASSIGN_OR_RETURN(const Run run, Train(plans[i], {"alternating"}));
        found[i].push_back(run.tokens_per_s);
      }
    }
    size_t best = 0;
    for (size_t i = 0; i < plans.size(); ++i) {
      std::printf("%s: %.0f tokens/s\n", plans[i].name().c_str(), Median(found[i]));
      if (Median(found[i]) > Median(found[best])) best = i;
    }
    return plans[best];
  }

  absl::Status Compare(const Mixture& mixture, const Plan& uniform, const Plan& first_stage,
                       int32_t alternations) {
    std::vector<Run> ours, theirs;
    std::vector<double> ratios;
    for (int32_t i = 0; i < alternations; ++i) {
      OMNI_ASSIGN_OR_RETURN(ours.emplace_back(), Train(uniform, mixture));
      OMNI_ASSIGN_OR_RETURN(theirs.emplace_back(), Train(first_stage, mixture));
      ratios.push_back(ours.back().tokens_per_s / theirs.back().tokens_per_s);
    }
    if (ratios.empty()) return absl::OkStatus();
    Print(mixture, uniform, ours, "");
    const auto speed = [](const Run& run) { return run.tokens_per_s; };
    Print(mixture, first_stage, theirs,
          absl::StrFormat("%.3f (%.3f .. %.3f)", MedianOf(ours, speed) / MedianOf(theirs, speed),
                          *std::min_element(ratios.begin(), ratios.end()),
                          *std::max_element(ratios.begin(), ratios.end())));
    PrintSteps(uniform, ours);
    PrintSteps(first_stage, theirs);
    return absl::OkStatus();
  }

  static void Print(const Mixture& mixture, const Plan& plan, const std::vector<Run>& runs,
                    const std::string& ratio) {
    const auto error = [](const Run& run) { return run.forecast / run.seconds - 1; };
    double worst = 0;
    for (const Run& run : runs) {
      if (std::abs(error(run)) > std::abs(worst)) worst = error(run);
    }
    std::printf("| %s | %s | %.0f | %+.1f %% | %+.1f %% | %s |\n", mixture.name.c_str(),
                plan.name().c_str(),
                MedianOf(runs, [](const Run& run) { return run.tokens_per_s; }),
                100 * MedianOf(runs, error), 100 * worst, ratio.c_str());
    std::fflush(stdout);
  }

  // To stderr: of each step the medians over runs.
  static void PrintSteps(const Plan& plan, const std::vector<Run>& runs) {
    std::fprintf(stderr, "%s, ms a step, measured (forecast):", plan.name().c_str());
    for (size_t step = 0; step < runs[0].step_s.size(); ++step) {
      std::fprintf(stderr, " %.0f (%.0f)",
                   1e3 * MedianOf(runs, [&](const Run& run) { return run.step_s[step]; }),
                   1e3 * MedianOf(runs, [&](const Run& run) { return run.step_forecast_s[step]; }));
    }
    std::fprintf(stderr, "\n");
  }

  absl::StatusOr<Run> Train(const Plan& plan, const Mixture& mixture) {
    const std::string run_dir = absl::StrCat(options_.out, "/run-", num_runs_++);
    std::error_code ignored;
    fs::remove_all(run_dir, ignored);
    std::vector<std::string> overrides = common_;
    overrides.push_back(absl::StrCat("parallel.joint.kind=", plan.joint));
    overrides.push_back(absl::StrCat("parallel.layers=[", absl::StrJoin(plan.layers, ", "), "]"));
    if (mixture.images > 0) {
      overrides.push_back(
          absl::StrFormat("data.phases=[{until_step: 1000, weights: {image: %d, text: %d}}]",
                          mixture.images, mixture.texts));
    }
    std::vector<std::string> arguments = {omnitrain_, "train", kRecipe, "--run-dir", run_dir};
    for (const std::string& override_text : overrides) {
      arguments.insert(arguments.end(), {"--set", override_text});
    }
    OMNI_RETURN_IF_ERROR(Spawn(std::move(arguments), run_dir + ".log"));
    OMNI_ASSIGN_OR_RETURN(const trainer::Recipe recipe, trainer::LoadRecipe(kRecipe, overrides));
    return Evaluate(recipe, run_dir);
  }

  // What a run measured, and what a replay of its recorded actions says of the same steps.
  static absl::StatusOr<Run> Evaluate(const trainer::Recipe& recipe, const std::string& run_dir) {
    const parallel::ParallelConfig& config = recipe.parallel;
    const parallel::ScheduleOptions schedule{
        .schedule = config.schedule,
        .ranks = config.pipeline,
        .microbatches = recipe.data.lanes / recipe.data.micro_batch_sequences,
        .joint = config.joint,
        .encoders = {{.trains = true}},
        .q = config.q,
        .groups_ahead = config.groups_ahead};
    OMNI_RETURN_IF_ERROR(parallel::Check(schedule));
    const std::vector<parallel::Program> programs = parallel::BuildPrograms(schedule);
    Run run;
    double tokens = 0;
    OMNI_ASSIGN_OR_RETURN(const std::string text, ReadFile(run_dir + "/metrics.jsonl"));
    for (const absl::string_view line : absl::StrSplit(text, '\n', absl::SkipEmpty())) {
      const nlohmann::json metrics = nlohmann::json::parse(line, nullptr, false);
      if (!metrics.contains("step_ms")) continue;
      const int64_t step = metrics["step"].get<int64_t>();
      if (step <= kWarmUpSteps) continue;
      tokens += metrics["tokens"].get<double>();
      run.step_s.push_back(metrics["step_ms"].get<double>() / 1e3);
      run.seconds += run.step_s.back();
      std::vector<std::string> traces;
      for (int32_t rank = 0; rank < config.workers; ++rank) {
        traces.push_back(absl::StrCat(run_dir, "/traces/step-", step, "-rank-", rank, ".json"));
      }
      OMNI_ASSIGN_OR_RETURN(const auto times, parallel::ActionTimes::FromTraces(traces));
      OMNI_RETURN_IF_ERROR(times.Covers(programs));
      OMNI_ASSIGN_OR_RETURN(const auto replayed, parallel::Replay(schedule, programs, times));
      run.step_forecast_s.push_back(replayed.step_time);
      run.forecast += replayed.step_time;
    }
    if (run.step_s.empty()) return absl::NotFoundError(run_dir + ": no steps in metrics.jsonl");
    run.tokens_per_s = tokens / run.seconds;
    return run;
  }

  const Options options_;
  std::string omnitrain_;
  std::vector<std::string> common_;  // overrides of all runs
  int32_t num_runs_ = 0;
};

bool ReadInt(absl::string_view argument, absl::string_view flag, int32_t* out) {
  return absl::ConsumePrefix(&argument, flag) && absl::SimpleAtoi(argument, out) && *out >= 1;
}

int Main(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    absl::string_view argument(argv[i]);
    if (argument == "--smoke") {
      options.smoke = true;
      options.alternations = options.search = options.q = 1;
    } else if (absl::ConsumePrefix(&argument, "--out=")) {
      options.out = std::string(argument);
    } else if (!ReadInt(argument, "--alternations=", &options.alternations) &&
               !ReadInt(argument, "--fixed=", &options.fixed) &&
               !ReadInt(argument, "--search=", &options.search) &&
               !ReadInt(argument, "--q=", &options.q)) {
      std::fprintf(stderr, "joint_bench: unknown or out of range: %s\n", argv[i]);
      return 2;
    }
  }
  Bench bench(options);
  absl::Status status = bench.Prepare(argv[0]);
  if (status.ok()) status = bench.Main();
  if (!status.ok()) {
    std::fprintf(stderr, "joint_bench: %s\n", std::string(status.message()).c_str());
    return 1;
  }
  return 0;
}

}  // namespace
}  // namespace omni

int main(int argc, char** argv) { return omni::Main(argc, argv); }
