// equivalence_sweep --seed S --plans N [--case K]: plans against one rank, a line each, and the
// worst error of all at the end. Exit code 1 if any is more than the contract allows (sweep.h).
//
// With --mutate NAME (mutations.h) all runs have a fault, so those it concerns must miss.
//
// By hand: equivalence_sweep --parallel 'workers: 4, pipeline: 2, tensor: 2' --job 'moe=shared
// vision=qwen3' [--dtype fp32] [--device cpu_async] [--comm tcp] [--processes]
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <filesystem>

#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "runtime/base/status.h"
#include "tests/sweep/mutations.h"
#include "tests/sweep/sweep.h"
#include "tests/sweep/sweep_plans.h"
#include "tools/data_make.h"

namespace omni::test {
namespace {

struct Options {
  uint64_t seed = 1;
  int64_t plans = 60;
  int64_t only = -1;
  std::string job, parallel, mutation;
  int32_t micro_batch_sequences = 1;
  SweepRun how;
  bool only_threads = false;
};

// What of a job isn't as in the plainest.
std::string ToString(const Levels& job) {
  std::vector<std::string> words;
  for (const Feature& feature : JobFeatures()) {
    const std::string& level = job.at(feature.name);
    if (level != feature.levels[0]) words.push_back(absl::StrCat(feature.name, "=", level));
  }
  return absl::StrJoin(words, " ");
}

class Report {
 public:
  // `mutation` may be null.
  explicit Report(const Mutation* mutation) : mutation_(mutation) {}

  // Runs and prints a line; counts a miss.
  void Run(Sweep& sweep, const std::string& name, const Levels& job, const std::string& parallel,
           int32_t micro_batch_sequences, const SweepRun& how) {
    const absl::Time begin = absl::Now();
    std::atomic<int64_t> hits{0};
    const auto worst =
        sweep.Run(job, parallel, micro_batch_sequences, how,
                  mutation_ == nullptr ? WrapCommunicator() : Mutate(*mutation_, &hits));
    const bool holds = worst.ok() && worst->value <= ToleranceOf(how.dtype).error;
    ++runs_;
    misses_ += !holds;
    std::string result = worst.ok() ? absl::StrFormat("%.2g at %s", worst->value, worst->where)
                                    : std::string(worst.status().ToString());
    std::printf("%s {%s}%s | %s | %s %s %s%s | %.1f s | %s%s\n", name.c_str(), parallel.c_str(),
                micro_batch_sequences == 1
                    ? ""
                    : absl::StrCat(" x ", micro_batch_sequences, " sequences").c_str(),
                ToString(job).c_str(), how.dtype.c_str(), how.device.c_str(), how.comm.c_str(),
                how.processes ? " processes" : "", absl::ToDoubleSeconds(absl::Now() - begin),
                holds ? "" : "MISS ", result.c_str());
    std::fflush(stdout);
    if (worst.ok()) {
      double& most = how.dtype == "fp64" ? worst_fp64_ : worst_fp32_;
      most = std::max(most, worst->value);
    }
  }

  int Finish() const {
    std::printf("%d runs, %d misses; worst error %.3g in fp64, %.3g in fp32\n", runs_, misses_,
                worst_fp64_, worst_fp32_);
    return misses_ == 0 ? 0 : 1;
  }

 private:
  const Mutation* const mutation_;
  int runs_ = 0, misses_ = 0;
  double worst_fp64_ = 0, worst_fp32_ = 0;
};

int RunAll(const Options& options, const std::string& folder) {
  const absl::Status made =
      tools::MakeQuickstartData({.out = folder + "/data", .seed = 1, .scale = 0.02});
  if (!made.ok()) return std::fprintf(stderr, "%s\n", made.ToString().c_str()), 2;
  Sweep sweep(folder + "/data", folder);
  const Mutation* const mutation = FindMutation(options.mutation);
  if (mutation == nullptr && !options.mutation.empty()) {
    std::fprintf(stderr, "no mutation \"%s\", there are:\n", options.mutation.c_str());
    for (const Mutation& known : Mutations()) {
      std::fprintf(stderr, "  %s: %s\n", known.name, known.what);
    }
    return 2;
  }
  Report report(mutation);
  if (!options.parallel.empty()) {
    const auto job = ParseJob(options.job);
    if (!job.ok()) return std::fprintf(stderr, "%s\n", job.status().ToString().c_str()), 2;
    report.Run(sweep, "by hand", *job, options.parallel, options.micro_batch_sequences,
               options.how);
    return report.Finish();
  }
  const SweepCases cases(options.seed);
  std::printf("seed %d: the first %d cases have all %d pairs of features, the first %d have %d\n",
              static_cast<int>(options.seed), static_cast<int>(cases.num_cover()),
              static_cast<int>(cases.num_pairs()), static_cast<int>(options.plans),
              static_cast<int>(cases.CountPairs(options.plans)));
  for (int64_t i = 0; i < options.plans; ++i) {
    if (options.only >= 0 && i != options.only) continue;
    const SweepCase one = cases.At(i);
    std::vector<SweepRun> runs = RunsOf(i, one.plan);
    if (options.how.device != "cpu") {
      runs = {{.dtype = options.how.dtype,
               .device = options.how.device,
               .comm = one.plan.comm,
               .gpu_comm = options.how.gpu_comm}};
    }
    for (const SweepRun& how : runs) {
      if (options.only_threads && how.processes) continue;
      if (mutation != nullptr && (how.processes || how.dtype != "fp64" || how.device != "cpu")) {
        continue;
      }
      report.Run(sweep, absl::StrCat(i), one.job, one.plan.ToYaml(), one.plan.micro_batch_sequences,
                 how);
    }
  }
  return report.Finish();
}

int Main(int argc, char** argv) {
  Options options;
  CLI::App app("plans against one rank");
  app.add_option("--seed", options.seed, "of the plans");
  app.add_option("--plans", options.plans, "how many");
  app.add_option("--case", options.only, "only this one of them");
  app.add_flag("--threads", options.only_threads,
               "no run as processes: omnitrain, which has two "
               "protobufs, does not start under sanitizers");
  app.add_option("--mutate", options.mutation, "a fault in all runs");
  app.add_option("--job", options.job, "a job by hand: feature=level ...");
  app.add_option("--parallel", options.parallel, "a plan by hand: the inside of the section");
  app.add_option("--micro-batch-sequences", options.micro_batch_sequences, "by hand");
  app.add_option("--dtype", options.how.dtype, "with --device, or by hand: fp64, fp32");
  app.add_option("--device", options.how.device,
                 "cpu, cpu_async, cuda_emulated; of all plans, or by hand");
  app.add_option("--comm", options.how.comm, "by hand: shm, tcp");
  app.add_option("--gpu-comm", options.how.gpu_comm, "with cuda_emulated: host, nccl");
  app.add_flag("--processes", options.how.processes, "by hand: as processes");
  CLI11_PARSE(app, argc, argv);
  const std::string folder = absl::StrFormat(
      "%s/omnitrain-sweep-%d", std::filesystem::temp_directory_path().string(), getpid());
  const int code = RunAll(options, folder);
  std::error_code ignored;
  std::filesystem::remove_all(folder, ignored);
  return code;
}

}  // namespace
}  // namespace omni::test

int main(int argc, char** argv) { return omni::test::Main(argc, argv); }
