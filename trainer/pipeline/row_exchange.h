// Encoders' rows on their way to the tokens they stand for, and the gradients back.
//
// The unit is an (encoder, group). On the ranks that encode, output rows are put into the order in
// which they travel and sent to the rank of the first stage that holds their token; there each
// microbatch takes its own. Nobody else sees a row. Who, what and in which order is planned from
// the step's layout (parallel/reshard.h).
//
// Every row is 1 + D rows of the decoder's width: the embedding, and D DeepStack features. A
// message is
// [(1 + D) n, H], feature by feature.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "encoders/encoder.h"
#include "parallel/data_layout.h"
#include "parallel/reshard.h"
#include "trainer/pipeline/rank_groups.h"
#include "trainer/pipeline/transfers.h"

namespace omni::trainer {

class RowExchange {
 public:
  struct Options {
    Device& device;
    const RankGroups& groups;
    const parallel::DataLayout& data;
    int32_t rank = 0;  // of the job
    int64_t hidden = 0;
    DType dtype = DType::kFloat32;
    std::vector<int32_t> num_deepstack;  // by encoder
    absl::Duration deadline;
    TraceRecorder* trace = nullptr;
  };
  explicit RowExchange(Options options) : options_(std::move(options)) {}

  // Begins a step; `plan` must outlive it.
  void Begin(const parallel::ReshardPlan& plan);

  // On a rank that encodes. rows_RH of all features, whole samples' rows before shards'; any of
  // them may be empty (no memory). They are copied.
  void SetEncoded(ExecContext& ctx, int32_t encoder, int32_t group,
                  const std::vector<std::vector<TensorView>>& features);
  // Posts what goes to the ranks of this pipeline rank; all ranks of its stage call alike, in
  // order.
  void PostSendRows(int32_t encoder, int32_t group, int32_t stage, TransferBatch* batch);
  void PostRecvRows(int32_t encoder, int32_t group, int32_t stage, TransferBatch* batch);
  // On the first stage: rows of a microbatch [n, H], feature by feature, on the tape or arena of
  // ctx; empty without rows. Waits for those that have been posted.
  absl::Status TakeRows(ExecContext& ctx, int32_t encoder, int32_t group, int32_t microbatch,
                        std::vector<TensorView>* features);
  // Their gradients, which are copied; an empty one is zero.
  void GiveGrads(ExecContext& ctx, int32_t encoder, int32_t group, int32_t microbatch,
                 const std::vector<TensorView>& features);
  void PostSendGrads(int32_t encoder, int32_t group, int32_t stage, TransferBatch* batch);
  void PostRecvGrads(int32_t encoder, int32_t group, int32_t stage, TransferBatch* batch);
  // On a rank that encoded: gradients of its rows, as SetEncoded was given them: [features][H] of
  // all its rows. Waits for those that have been posted.
  absl::Status TakeGrads(ExecContext& ctx, int32_t encoder, int32_t group,
                         std::vector<TensorView>* features);

  // Where a microbatch's rows stand among the tokens this rank holds (of the first stage), in the
  // order of TakeRows. `plan`: of the rank of the first stage at this rank's place.
  static std::vector<int32_t> TokenRows(const parallel::ReshardGroup& plan, int32_t microbatch);

  // On the first stage: no microbatch of the group will take rows again.
  void ReleaseRows(int32_t encoder, int32_t group);
  // Lets go of what has left.
  void Sweep();
  // Ends a step: all has left and arrived.
  absl::Status Drain();

 private:
  // One (encoder, group) on this rank.
  struct State {
    std::unique_ptr<Message> out;        // rows encoded here, in travelling order
    std::unique_ptr<Message> in;         // rows received, message after message
    std::unique_ptr<Message> out_grads;  // gradients of `in`
    std::unique_ptr<Message> in_grads;   // gradients of `out`
    bool rows_posted = false;            // `out` is on its way
    bool has_own = false;                // what this rank encoded for itself lies in `in`
    bool grads_taken = false;            // of what this rank encoded
  };
  const parallel::ReshardGroup& Plan(int32_t encoder, int32_t group) const {
    return plan_->groups[encoder][group];
  }
  int64_t Features(int32_t encoder) const { return 1 + options_.num_deepstack[encoder]; }
  State& Of(int32_t encoder, int32_t group) { return states_[{encoder, group}]; }
  Message& Buffer(std::unique_ptr<Message>* message, int64_t num_rows);
  // For every row of a microbatch and feature its row in the receive buffer.
  std::vector<int32_t> InRows(int32_t encoder, int32_t group, int32_t microbatch,
                              int64_t feature) const;
  // Those of a buffer's messages that go to, or come from, other ranks of this pipeline rank.
  enum class Way : uint8_t { kSend, kReceive };
  template <typename Messages>
  void Post(const Messages& messages, int32_t encoder, int32_t stage, const parallel::Group& group,
            Way way, Message* buffer, TransferBatch* batch) const;
  // What this rank has for itself, of a buffer of messages; empty without.
  template <typename Messages>
  TensorView Own(const Messages& messages, int32_t encoder, const Message* buffer) const;
  void CopyOwn(ExecContext& ctx, int32_t encoder, int32_t group);

  const Options options_;
  const parallel::ReshardPlan* plan_ = nullptr;
  std::map<std::pair<int32_t, int32_t>, State> states_;
};

}  // namespace omni::trainer
