// One rank of a training job: builds the model, runs programs step by step, saves, resumes.
//
//   OMNI_ASSIGN_OR_RETURN(auto trainer, Trainer::Create({.recipe = recipe, .run_dir = dir,
//                                                        .comm = comm, .link = &link}));
//   OMNI_RETURN_IF_ERROR(trainer->Run());
//
// Every rank makes the same calls. Whatever goes wrong on one rank inside a step is agreed upon
// at the step's end, so that all leave together; only a dead communicator ends a rank at once.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "dataloader/loader.h"
#include "dataloader/sample_tally.h"
#include "parallel/flat_storage.h"
#include "parallel/schedule/program.h"
#include "runtime/base/limits.h"
#include "runtime/base/log.h"
#include "runtime/base/metrics.h"
#include "runtime/base/progress.h"
#include "runtime/base/trace.h"
#include "runtime/checkpoint/checkpoint.h"
#include "runtime/comm/communicator.h"
#include "runtime/comm/progress_of.h"
#include "trainer/assemble.h"
#include "trainer/evaluate.h"
#include "trainer/huggingface/pretrained.h"
#include "trainer/keeper.h"
#include "trainer/memory_bill.h"
#include "trainer/optimizer/sharded_optimizer.h"
#include "trainer/pipeline/executor.h"
#include "trainer/pipeline/rank_groups.h"
#include "trainer/recipe.h"
#include "trainer/router_balance.h"
#include "trainer/shared_load.h"
#include "trainer/worker_link.h"

namespace omni::trainer {

struct TrainerOptions {
  Recipe recipe;
  std::string run_dir;               // exists; "" saves nothing
  Communicator* comm = nullptr;      // null: a single rank; outlives the trainer
  WorkerLink* link = nullptr;        // may be null
  Logger* log = nullptr;             // may be null
  MetricsServer* metrics = nullptr;  // may be null
  const KernelRegistry* kernels = nullptr;
  int32_t local_rank = 0;  // among the ranks of this machine
  bool resume = true;      // from the newest whole checkpoint of the run directory
  std::string checkpoint;  // instead of the newest: this one; alone on its rank only
  // Rank 0: state.json of the checkpoint of this step, if somebody has read it ("": nobody has).
  // Taken only where the manifest says the same.
  int64_t saved_step = -1;
  std::string saved_state = "";
  bool trains = true;     // false: only to evaluate; nothing is written, no training data are read
  bool gradients = true;  // false: there is no memory for gradients and optimizer state either
  // Told before each action of a step's program; for tests. May be empty.
  std::function<void(const parallel::Action&)> on_action = {};
  // Told of each block of a checkpoint's files that this rank reads, writes or removes; for tests,
  // which are slow there, from several threads. May be empty.
  OnBlock on_block = {};
};

class Trainer {
 public:
  static absl::StatusOr<std::unique_ptr<Trainer>> Create(TrainerOptions options);
  ~Trainer();

  int64_t step() const { return step_; }  // steps done
  bool finished() const { return step_ >= options_.recipe.training.steps || stopping_; }

  // Until the recipe's last step or a stop, evaluating and saving as the recipe says; a last
  // checkpoint and, unless stopped, a last evaluation at the end. An evaluation that an earlier
  // start left out comes first.
  absl::Status Run();

  // One step; what it measured, over all ranks. Collective.
  absl::StatusOr<std::map<std::string, double>> RunStep();
  absl::StatusOr<std::vector<SourceScore>> RunEvaluation(dataloader::Blind blind);
  // Starts a save of the current state; it completes beside later steps, at the latest in
  // FinishSave (Keeper). Collective.
  absl::Status BeginSave();
  absl::Status FinishSave();

  const parallel::FlatStorage& storage() const { return *storage_; }
  const MultimodalModel& model() const { return *model_; }
  Device& device() { return *device_; }
  const Executor& executor() const { return *executor_; }
  // Host copy of what this rank holds of a parameter, for tests.
  std::vector<double> ReadParameter(const std::string& path);
  // What memory this rank may take; one that trains.
  MemoryBill Bill();
  // What this rank would save: over all ranks, every element of weights and optimizer state once.
  std::vector<TensorRange> StateRanges();

 private:
  struct StepState;
  explicit Trainer(TrainerOptions options) : options_(std::move(options)) {}

  absl::Status Build();
  parallel::Layout LayoutFor(const MultimodalModel& whole) const;
  absl::StatusOr<std::unique_ptr<Communicator>> ConnectGpus();
  absl::Status BuildGroups();
  ExecutorOptions executor_options();
  absl::Status Resume();
  absl::Status BuildKeeper();
  // All ranks together, from the newest checkpoint that is whole: its step; -1 if there is none
  // yet.
  absl::StatusOr<int64_t> LoadNewest();
  // All ranks together. An error is the same on all; `is_damaged` if another checkpoint may do.
  // `given_state`: what is known of its state.json ("": nothing).
  absl::Status LoadCheckpoint(const std::string& path, const std::string& given_state,
                              bool* is_damaged);
  SharedLoadOptions load_options();
  absl::Status LoadPretrained();
  // trainer_resume.cc:
  std::set<std::string> KeysWithoutMoments(const Checkpoint& checkpoint) const;
  // Those of a checkpoint; 0 for what restarts, which is told.
  void SetUpdateCounts(const std::set<std::string>& restarted,
                       std::map<std::string, int64_t> update_counts);
  void TellLearningRate(const std::string& recipe_yaml);
  absl::Status CarryData(const dataloader::SamplePlanner& samples);
  absl::Status InitFromRun();
  void Bind();

  // The recipe wants one after step_.
  bool EvaluationIsDue() const;
  // ... and metrics.jsonl has none: an earlier start was stopped or killed before. Collective.
  absl::StatusOr<bool> OwesEvaluation();
  absl::Status EvaluateAndReport();
  absl::Status SaveIfOwed();

  // All ranks leave together if the data of one failed, and know whose samples are blank. Of a
  // failure that all know of data_failed_ is set. This and what follows: trainer_data.cc.
  absl::Status AgreeOnData(StepState* state);
  absl::Status ShareFailures(dataloader::StepBatch* batch);
  absl::Status WhyRanksDisagree(const dataloader::StepBatch& batch);
  void LogFaults(const StepState& state);
  absl::Status CountSamples(const dataloader::StepBatch& batch);
  absl::Status EndForData(const absl::Status& status);
  void TellLeftOut();  // rank 0: the table of the whole run
  // Through which data are read: tries again for a while, and says so.
  std::shared_ptr<dataloader::Storage> NewStorage();
  // This rank's actions of such a step, verified with all the others' before the first of its kind.
  absl::StatusOr<const parallel::Program*> ProgramFor(int32_t microbatches,
                                                      const std::vector<bool>& trains);
  TrainedParts TrainedNow() const;
  void AddLosses(const dataloader::Microbatch& microbatch, absl::Span<const int32_t> tokens,
                 const std::vector<double>& losses, StepState* state) const;
  absl::Status EndStep(const parallel::Action& action, StepState* state);
  absl::Status AgreeOnStep(StepState* state);
  std::map<std::string, double> Measure(const StepState& state);
  void WriteTrace();
  void ExportMetrics(const std::map<std::string, double>& values, const StepState& state);
  absl::Status TellMemory();
  void ExportMemory();
  absl::Status AllReduce(std::vector<double>* values, ReduceOp op);
  bool LoaderHasMedia(const std::string& module, const dataloader::SampleCounts& counts) const;

  int32_t rank() const { return options_.comm == nullptr ? 0 : options_.comm->rank(); }
  int32_t world() const { return options_.comm == nullptr ? 1 : options_.comm->size(); }
  Limits limits() const { return Limits::From(options_.recipe.runtime.deadline_s); }
  void SetPhase(const char* phase);  // for the control plane, and an activity
  // For the other ranks, should they wait for this one.
  void BeginActivity(absl::string_view what);

  TrainerOptions options_;
  // What this rank has done, for those who wait for it; shared with its links and its work.
  const std::shared_ptr<Progress> progress_ =
      options_.comm == nullptr ? std::make_shared<Progress>() : ProgressOf(*options_.comm);
  WorkerLink silent_link_;
  TraceRecorder trace_{rank(), absl::StrCat("rank ", rank())};
  ModuleSchedule modules_;
  std::unique_ptr<MultimodalModel> model_;
  // Another, whole, of which only the encoders are ever bound, once: what samples cost, for the
  // loader's threads.
  std::unique_ptr<MultimodalModel> costs_;
  std::unique_ptr<Device> device_;
  std::unique_ptr<Stream> stream_;
  std::unique_ptr<Communicator> gpu_comm_;  // in place of the engine's, which can't reach a GPU
  std::optional<parallel::Layout> layout_;
  parallel::DataLayout data_layout_;
  std::unique_ptr<RankGroups> groups_;
  std::unique_ptr<TensorArena> arena_;  // staging of small things
  std::unique_ptr<parallel::FlatStorage> storage_;
  std::unique_ptr<parallel::ShardedWeights> weights_;
  std::unique_ptr<ShardedOptimizer> optimizer_;
  std::unique_ptr<RouterBalance> routers_;
  std::unique_ptr<Executor> executor_;
  // By number of microbatches and which encoders train.
  std::map<std::pair<int32_t, std::vector<bool>>, parallel::Program> programs_;
  std::unique_ptr<dataloader::Loader> loader_;
  std::unique_ptr<Keeper> keeper_;               // null: nothing is saved
  std::unique_ptr<PretrainedModel> pretrained_;  // until the weights are loaded
  std::set<std::string> given_;                  // parameters it has values for

  int64_t step_ = 0;
  int64_t tokens_done_ = 0;
  int64_t skipped_steps_ = 0;  // for non-finite gradients, in all
  int64_t skipped_in_a_row_ = 0;
  bool save_owed_ = false;  // put off while gradients are not finite
  bool stopping_ = false;
  bool trace_failed_ = false;  // and the warning was given
  dataloader::LoaderState loader_state_;
  std::map<std::string, int64_t> fault_counts_;
  dataloader::SampleTally tally_;          // of the whole run; the same on all ranks
  std::deque<std::string> recent_faults_;  // of planning, of all lanes
  bool data_failed_ = false;
};

}  // namespace omni::trainer
