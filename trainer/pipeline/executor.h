// Runs a rank's Program on one step's data: forwards and backwards of the decoder's chunks and of
// encoders, and what travels between them. What the program says is done in its order; nothing here
// knows which policy made it.
//
// Every (chunk, microbatch) and (encoder, group) is a segment with a tape of its own, from its
// forward to the end of its backward.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "dataloader/batch.h"
#include "parallel/schedule/program.h"
#include "parallel/sharded_weights.h"
#include "runtime/base/trace.h"
#include "trainer/assemble.h"
#include "trainer/pipeline/row_exchange.h"

namespace omni::trainer {

// What is trained in a step: the same on all ranks, whatever the data.
struct TrainedParts {
  std::vector<bool> encoders;  // by encoder: any part of it, or of its adapters
  bool embedding = false;
  bool decoder = false;  // layers, or adapters in them

  bool before_chunk(int32_t chunk) const;  // anything that the chunk's input depends on
};

struct ExecutorOptions {
  Device& device;
  Stream& stream;
  const MultimodalModel& model;
  const parallel::Layout& layout;
  const parallel::DataLayout& data;
  RankGroups& groups;
  int32_t rank = 0;
  DType dtype = DType::kFloat32;
  absl::Duration deadline;
  TraceRecorder* trace = nullptr;
  parallel::ShardedWeights* weights = nullptr;  // null: all are replicated
};

// What a step brings and what is wanted of it.
struct ExecutorStep {
  const dataloader::StepBatch& batch;  // failures applied; alive until Run returns
  parallel::LossScales scales;
  TrainedParts trained;
  bool with_gradients = true;  // false: forwards alone, for evaluation
  // Where rows go, if not as batch.layout has it; alive until Run returns.
  const parallel::ReshardPlan* plan = nullptr;
  // Of the last chunk: losses and most likely tokens of rows (tokens of the microbatch's pack).
  std::function<void(int32_t microbatch, absl::Span<const int32_t> tokens,
                     const std::vector<double>& losses, const std::vector<int32_t>& argmax)>
      on_losses;
  // Of a chunk with routers: what they did.
  std::function<void(ExecContext& ctx, const std::vector<backbone::AuxiliaryLoss>& losses,
                     const std::vector<TensorView>& expert_offsets, int32_t first_layer)>
      on_routing;
  // kReduceGradients, kAgree, kUpdate, kGatherParameters.
  std::function<absl::Status(const parallel::Action&)> on_end;
  // Told before each action; for tests and reports.
  std::function<void(const parallel::Action&)> on_action;
};

class Executor {
 public:
  explicit Executor(ExecutorOptions options);
  ~Executor();

  // Aborted or DeadlineExceeded from a communicator, else what the step's functions return.
  absl::Status Run(const parallel::Program& program, const ExecutorStep& step);
  // Of this rank in the last step.
  const MicrobatchFlops& flops() const { return flops_; }
  // In the last step: most bytes of an (encoder, group), there or back, that were staged at once.
  int64_t staged_bytes_max() const { return rows_.staged_bytes_max(); }
  // The (encoder, group)s of whose rows, or their gradients, this rank holds memory now.
  int64_t groups_held() const { return rows_.groups_held(); }

 private:
  struct Segment;   // (chunk, microbatch)
  struct Encoding;  // (encoder, group)
  using Key = std::pair<int32_t, int32_t>;

  absl::Status RunAction(const parallel::Action& action, TransferBatch* batch);
  absl::Status RunChunk(const parallel::Action& action);
  absl::Status Forward(int32_t chunk, int32_t microbatch);
  absl::Status Backward(int32_t chunk, int32_t microbatch, bool inputs_only);
  void CountBackward(int32_t microbatch);
  void WeightGrad(int32_t chunk, int32_t microbatch);
  absl::Status Encode(int32_t encoder, int32_t group, bool keeps);
  absl::Status EncodeBackward(int32_t encoder, int32_t group);
  absl::Status PostTransfer(const parallel::Action& action, TransferBatch* batch);
  absl::Status PostRows(const parallel::Action& action, TransferBatch* batch);
  void PostHidden(const parallel::Action& action, TransferBatch* batch);
  void DropIfUnkept(int32_t encoder, int32_t group);

  // The chunk's forward, on the segment's tape or (without recording) in its arena.
  absl::Status Record(Segment& segment, bool records);
  absl::Status TakeInput(ExecContext& ctx, Segment& segment, backbone::StageBoundary* in);
  void Report(ExecContext& ctx, Segment& segment);
  void RunEncoder(ExecContext& ctx, Encoding& encoding);

  const backbone::Decoder& decoder(int32_t chunk) const;
  const backbone::DecoderConfig& decoder_config() const {
    return options_.model.decoder().config();
  }
  int32_t num_chunks() const { return options_.layout.num_chunks(); }
  std::unique_ptr<Message> NewMessage(int64_t num_rows) const {
    return std::make_unique<Message>(options_.device, options_.dtype, num_rows,
                                     decoder_config().hidden);
  }
  bool IsEmpty(int32_t microbatch) const;
  // Rows of what crosses into a chunk for a microbatch: hidden, then DeepStack features of its and
  // later layers, by encoder.
  struct Crossing {
    int64_t hidden = 0;
    struct Feature {
      int32_t encoder, layer;
      int64_t rows;
    };
    std::vector<Feature> features;
    int64_t total() const;
  };
  Crossing CrossingInto(int32_t chunk, int32_t microbatch) const;

  ExecutorOptions options_;
  parallel::ScheduleOptions schedule_;
  RowExchange rows_;

  // Of the step.
  const ExecutorStep* step_ = nullptr;
  MicrobatchFlops flops_;
  std::vector<parallel::SequenceContext> sequences_;  // by microbatch
  parallel::ReshardPlan plan_;                        // of this rank
  parallel::ReshardPlan first_stage_plan_;            // of the first stage's rank at this place
  std::map<Key, std::unique_ptr<Segment>> segments_;
  std::map<Key, std::unique_ptr<Encoding>> encodings_;
  // By the chunk that consumes them: from the chunk beside it, here or on their way.
  std::map<Key, std::unique_ptr<Message>> inputs_, grads_;
  std::map<int32_t, int32_t> backwards_;  // of chunk 0, by group: microbatches done
  Outbox outbox_;
};

}  // namespace omni::trainer
