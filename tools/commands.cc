#include "tools/commands.h"

#include <glob.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "dataloader/formats/tar_index.h"
#include "dataloader/source_check.h"
#include "runtime/base/file.h"
#include "runtime/base/process.h"
#include "runtime/base/status.h"
#include "runtime/base/working_clock.h"
#include "runtime/base/writer_thread.h"
#include "tools/launch.h"
#include "tools/loaded_model.h"
#include "trainer/huggingface/export.h"
#include "trainer/job.h"
#include "trainer/trainer.h"
#include "trainer/worker.h"

namespace omni::tools {
namespace {

namespace fs = std::filesystem;

std::atomic<bool> suspend_requested{false};
static_assert(std::atomic<bool>::is_always_lock_free);
void OnSuspend(int) { suspend_requested.store(true, std::memory_order_relaxed); }

// Passes signals on while a job runs: the first asks for a stop in good order, the second ends, and
// ends this process too if it is still there 15 seconds later. Ctrl-Z suspends the workers as well,
// which the terminal does not know.
class SignalWatch {
 public:
  SignalWatch(scheduler::Coordinator& coordinator, WorkerProcesses* workers) {
    CatchStopSignals();
    // A shell without job control has it ignored.
    if (workers != nullptr && std::signal(SIGTSTP, OnSuspend) == SIG_IGN) {
      std::signal(SIGTSTP, SIG_IGN);
    }
    thread_ = std::thread([this, &coordinator, workers] { Watch(coordinator, workers); });
  }
  ~SignalWatch() {
    done_.store(true, std::memory_order_relaxed);
    thread_.join();
  }

 private:
  void Watch(scheduler::Coordinator& coordinator, WorkerProcesses* workers) {
    NameThread("signals");
    const WorkingClock& clock = WorkingClock::OfProcess();
    std::optional<absl::Duration> forced_at;
    while (!done_.load(std::memory_order_relaxed)) {
      const int32_t requests = NumStopRequests();
      if (requests >= 1) coordinator.RequestStop();
      if (requests >= 2) {
        coordinator.Fail("interrupted twice");
        if (!forced_at.has_value()) forced_at = clock.Now();
        if (clock.Now() - *forced_at > absl::Seconds(15)) {
          WriteWithin(STDERR_FILENO, "omnitrain: interrupted twice\n", absl::Seconds(2));
          EndProcess(1);  // the workers die with it
        }
      }
      if (workers != nullptr) {
        if (suspend_requested.exchange(false, std::memory_order_relaxed)) {
          workers->Signal(SIGSTOP);
          raise(SIGSTOP);  // by this thread: one that went on would wake the workers at once
          workers->Signal(SIGCONT);
        }
        workers->Poll(coordinator);
      }
      absl::SleepFor(absl::Milliseconds(50));
    }
  }

  std::atomic<bool> done_{false};
  std::thread thread_;
};

// Where no coordinator listens, warnings go to the terminal.
class TerminalLink : public trainer::WorkerLink {
 public:
  void Notice(const std::string& kind, const std::string& text) override {
    if (kind == "warning") std::fprintf(stderr, "warning: %s\n", text.c_str());
  }
};

// What a recipe needs before anything is started: workers' errors would come later and N times.
absl::Status CheckSources(const trainer::Recipe& recipe) {
  OMNI_ASSIGN_OR_RETURN(const auto sources, dataloader::OpenSources(recipe.data));
  const ConfigNode vocab = recipe.model.Get("decoder").Get("vocab");
  OMNI_ASSIGN_OR_RETURN(const int64_t size, vocab.AsInt());
  if (size < sources->tokenizer().vocab_size()) {
    return vocab.Error(absl::StrCat("found ", size, ", expected at least ",
                                    sources->tokenizer().vocab_size(), ", the pieces of ",
                                    recipe.data.tokenizer));
  }
  for (const dataloader::EvalConfig& eval : recipe.data.eval) {
    const absl::Status status = dataloader::OpenSource(eval.path).status();
    if (!status.ok())
      return Annotate(status, absl::StrCat("evaluation source \"", eval.name, "\""));
  }
  return dataloader::CheckSources(*sources);
}

// A number meant for a cluster would bring this machine down.
absl::Status CheckWorkersHere(const TrainCommand& command, const trainer::Recipe& recipe) {
  const int64_t processors = std::max(1u, std::thread::hardware_concurrency());
  const int64_t most = std::max<int64_t>(64, 16 * processors);
  if (!command.start_workers || recipe.parallel.workers <= most) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      command.recipe, ": parallel.workers: found ", recipe.parallel.workers, ", expected at most ",
      most, " on this machine of ", processors,
      " processors; omnitrain coordinator and omnitrain worker run a job over several machines"));
}

}  // namespace

absl::StatusOr<trainer::JobEnd> Train(const TrainCommand& command) {
  OMNI_ASSIGN_OR_RETURN(const trainer::Recipe recipe,
                        trainer::LoadRecipe(command.recipe, command.overrides));
  OMNI_RETURN_IF_ERROR(CheckWorkersHere(command, recipe));
  {
    const BlockingSection reading("the data of " + command.recipe);
    OMNI_RETURN_IF_ERROR(CheckSources(recipe));
  }
  const std::string run_dir = command.run_dir.empty() ? "runs/" + recipe.name : command.run_dir;
  auto opening = std::make_optional<BlockingSection>(
      "run directory " + run_dir, scheduler::PatienceFor(absl::Seconds(recipe.runtime.deadline_s)));
  OMNI_ASSIGN_OR_RETURN(const auto job,
                        trainer::Job::Start({.recipe = recipe,
                                             .recipe_path = command.recipe,
                                             .run_dir = run_dir,
                                             .address = command.address,
                                             .terminal = CanRewriteLines(STDOUT_FILENO),
                                             .allow = command.allow}));
  if (!command.address_file.empty()) {
    OMNI_RETURN_IF_ERROR(WriteFileAtomically(command.address_file, job->address() + "\n"));
  }
  opening.reset();
  if (!command.start_workers) {
    if (const std::string& note = job->coordinator().address_note(); !note.empty())
      job->Print(note);
    job->Print(absl::StrFormat(
        "coordinator at %s; start %d workers within %s: omnitrain worker --coordinator %s",
        job->address(), recipe.parallel.workers, absl::FormatDuration(job->join_limit()),
        job->address()));
    const SignalWatch watch(job->coordinator(), nullptr);
    absl::StatusOr<trainer::JobEnd> end = job->Wait();
    // Workers elsewhere should hear why, too.
    if (!end.ok()) job->coordinator().AwaitGoodbyes(absl::Seconds(5));
    return end;
  }
  OMNI_ASSIGN_OR_RETURN(WorkerProcesses workers,
                        WorkerProcesses::Start(job->address(), recipe.parallel.workers));
  absl::StatusOr<trainer::JobEnd> end;
  {
    const SignalWatch watch(job->coordinator(), &workers);
    end = job->Wait();
  }
  // Survivors of a failure hear of it with their next heartbeat; who does not is killed.
  workers.WaitAll(job->coordinator(), absl::Seconds(5));
  return end;
}

absl::Status Worker(const WorkerCommand& command) {
  if (command.parent != 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != command.parent) return absl::AbortedError("the launcher is gone");
  }
  if (command.rank >= 0 && command.on_rank) command.on_rank(command.rank);
  const trainer::WorkerResult result = trainer::RunWorker({.coordinator = command.coordinator,
                                                           .rank = command.rank,
                                                           .local_rank = command.local_rank,
                                                           .host = command.host,
                                                           .wait = absl::Seconds(command.wait_s),
                                                           .on_rank = command.on_rank});
  // The launcher, on the same terminal, says what the coordinator heard.
  if (command.parent != 0 && result.is_heard) return absl::Status(result.status.code(), "");
  return result.status;
}

absl::Status Eval(const EvalCommand& command) {
  OMNI_ASSIGN_OR_RETURN(trainer::Recipe recipe,
                        trainer::LoadRecipe(command.run_dir + "/resolved.yaml", command.overrides));
  OMNI_ASSIGN_OR_RETURN(const auto checkpoints, ListCheckpoints(command.run_dir + "/checkpoints"));
  if (checkpoints.empty()) {
    return absl::NotFoundError(
        absl::StrCat(command.run_dir, "/checkpoints: no checkpoint to evaluate"));
  }
  KernelRegistry kernels;
  RegisterCpuKernels(kernels);
  recipe.runtime.threads = static_cast<int32_t>(std::thread::hardware_concurrency());
  TerminalLink link;
  OMNI_ASSIGN_OR_RETURN(const auto trainer, trainer::Trainer::Create({.recipe = recipe,
                                                                      .run_dir = command.run_dir,
                                                                      .link = &link,
                                                                      .kernels = &kernels,
                                                                      .trains = false,
                                                                      .gradients = false}));
  std::vector<std::pair<std::string, dataloader::Blind>> modes = {{"", dataloader::Blind::kNone}};
  if (command.blind) {
    modes = {{"media swapped", dataloader::Blind::kSwapped},
             {"media blanked", dataloader::Blind::kBlanked}};
  }
  nlohmann::json json;
  absl::Status scored;
  for (const auto& [name, blind] : modes) {
    OMNI_ASSIGN_OR_RETURN(const auto scores, trainer->RunEvaluation(blind));
    scored.Update(trainer::CheckScored(scores));
    const std::string title =
        absl::StrCat("step ", trainer->step(), name.empty() ? "" : ", ", name);
    if (command.json) {
      nlohmann::json& values = json[name.empty() ? "eval" : name];
      values = trainer::ScoreValues(scores);  // NaN becomes null
      for (const trainer::SourceScore& score : scores) {
        if (score.left_out.empty()) continue;
        values["left_out"].update(nlohmann::json::parse(score.left_out.ToJson()));
      }
    } else {
      std::printf("%s\n", trainer::FormatScores(scores, title).c_str());
    }
  }
  if (command.json)
    std::printf("%s\n",
                json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
  std::fflush(stdout);
  return scored;
}

absl::Status Convert(const ConvertCommand& command) {
  OMNI_ASSIGN_OR_RETURN(const RunCheckpoint found, FindCheckpoint(command.checkpoint));
  OMNI_ASSIGN_OR_RETURN(const trainer::Recipe recipe,
                        trainer::LoadRecipe(found.run_dir + "/resolved.yaml", {}));
  std::optional<DType> dtype;
  if (command.dtype == "fp32") dtype = DType::kFloat32;
  if (command.dtype == "bf16") dtype = DType::kBFloat16;
  OMNI_RETURN_IF_ERROR(trainer::ExportCheckpoint(recipe, found.run_dir, found.checkpoint,
                                                 command.out, dtype, command.adapter));
  std::printf("%s -> %s\n", found.checkpoint.c_str(), command.out.c_str());
  return absl::OkStatus();
}

absl::Status DataIndex(const std::vector<std::string>& paths) {
  std::vector<std::string> shards;
  for (const std::string& path : paths) {
    std::error_code error;
    if (fs::is_directory(path, error)) {
      OMNI_ASSIGN_OR_RETURN(const auto entries, EntriesOf(path, Depth::kTree));
      for (const std::string& entry : entries) {
        if (fs::path(entry).extension() == ".tar") shards.push_back(entry);
      }
      continue;
    }
    if (fs::exists(path, error)) {  // it may have a "[" in its name
      shards.push_back(path);
      continue;
    }
    glob_t found{};
    if (glob(path.c_str(), 0, nullptr, &found) != 0) {
      globfree(&found);
      return absl::NotFoundError(absl::StrCat(path, ": no such shard"));
    }
    for (size_t i = 0; i < found.gl_pathc; ++i) shards.emplace_back(found.gl_pathv[i]);
    globfree(&found);
  }
  if (shards.empty()) return absl::NotFoundError("no .tar shard in the folders given");
  std::sort(shards.begin(), shards.end());
  for (size_t i = 0; i < shards.size(); ++i) {
    std::vector<std::string> faults;
    OMNI_ASSIGN_OR_RETURN(const int64_t samples,
                          dataloader::BuildTarIndex(shards[i], /*video=*/nullptr, &faults));
    std::printf("[%zu/%zu] %s: %lld samples\n", i + 1, shards.size(), shards[i].c_str(),
                static_cast<long long>(samples));
    for (const std::string& fault : faults) {
      std::printf("warning: left out in training: %s\n", fault.c_str());
    }
  }
  return absl::OkStatus();
}

}  // namespace omni::tools
