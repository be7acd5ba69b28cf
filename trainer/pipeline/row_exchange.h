// Encoders' rows on their way to the tokens they stand for, and the gradients back.
//
// The unit is an (encoder, group). On the ranks that encode, output rows are put into the order in
// which they travel and sent to the rank of the first stage that holds their token; there each
// microbatch takes its own. Nobody else sees a row. Who, what and in which order is planned from
// the step's layout (parallel/reshard.h).
//
// Every row is 1 + D rows of the decoder's width: the embedding, and D DeepStack features.
//
// The first stage *holds* what it gets: [rows, H], microbatch by microbatch, in it feature by
// feature, in it message by message. So rows are received straight into their place, a microbatch
// reads them there, and its gradients, when they come, take the place of its rows and leave from
// there. A message is, for each of its microbatches, a piece for each feature.
//
// The rank that encodes has its rows in the order of its output. It *stages* messages: packs them
// from there, and unpacks their gradients. Where that would be much, they travel in rounds, of
// which two are staged at once, so that one is packed while the other is on its way; then the rank
// stays at the transfer until all but two rounds are over. What is staged of a group, S rows, there
// or back, is bounded by what a rank of the domain makes or receives at most, R_max rows of the
// encoder: where those take more than whole_mib,
//   S <= max(fraction R_max, whole_mib) + two rows a message.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "absl/status/status.h"
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
    double staging = 1;                  // parallel.reshard: the fraction,
    double whole_mib = 0;                // and what is staged whole
    absl::Duration deadline;
    TraceRecorder* trace = nullptr;
  };
  explicit RowExchange(Options options) : options_(std::move(options)) {}

  // Begins a step; `plan` must outlive it.
  void Begin(const parallel::ReshardPlan& plan);

  // On a rank that encodes. rows_RH of all features, whole samples' rows before shards'; any of
  // them may be empty (no memory). Read until SendRows (of its own rank: ExchangeRows) returns.
  void SetEncoded(int32_t encoder, int32_t group, std::vector<std::vector<TensorView>> features);

  // What goes to, or comes from, the ranks of a stage; all ranks of this one call alike, in order.
  // SendRows and ReceiveGrads, of ranks that encode for the first stage, stay there as the file
  // comment says and post rounds by themselves; `batch` is for what travels in one.
  absl::Status SendRows(ExecContext& ctx, int32_t encoder, int32_t group, TransferBatch* batch);
  void ReceiveRows(int32_t encoder, int32_t group, int32_t stage, TransferBatch* batch);
  void SendGrads(int32_t encoder, int32_t group, int32_t stage, TransferBatch* batch);
  absl::Status ReceiveGrads(ExecContext& ctx, int32_t encoder, int32_t group, TransferBatch* batch);
  // What ranks of the first stage encode for each other and for themselves.
  absl::Status ExchangeRows(ExecContext& ctx, int32_t encoder, int32_t group);
  absl::Status ExchangeGrads(ExecContext& ctx, int32_t encoder, int32_t group);

  // On the first stage: rows of a microbatch [n, H], feature by feature; empty without rows. Valid
  // until its gradients are given or ReleaseRows. Waits for those that have been posted.
  absl::Status TakeRows(int32_t encoder, int32_t group, int32_t microbatch,
                        std::vector<TensorView>* features);
  // Their gradients, which are copied; an empty one is zero.
  void GiveGrads(ExecContext& ctx, int32_t encoder, int32_t group, int32_t microbatch,
                 const std::vector<TensorView>& features);
  // On a rank that encoded: gradients of its rows, as SetEncoded was given them: [features][H] of
  // all its rows, valid until the next Sweep. Waits for those that have been posted.
  absl::Status TakeGrads(ExecContext& ctx, int32_t encoder, int32_t group,
                         std::vector<TensorView>* features);

  // Where a microbatch's rows stand among the tokens this rank holds (of the first stage), in the
  // order of TakeRows. `plan`: of the rank of the first stage at this rank's place.
  static std::vector<int32_t> TokenRows(const parallel::ReshardGroup& plan, int32_t microbatch);

  // On the first stage: no microbatch will take rows again, nor give gradients.
  void ReleaseRows(int32_t encoder, int32_t group);
  // Lets go of what has left.
  void Sweep();
  // Ends a step: all has left and arrived.
  absl::Status Drain();

  // Most bytes of an (encoder, group), there or back, that were staged at once since Begin.
  int64_t staged_bytes_max() const { return staged_bytes_max_; }
  // On the first stage: the (encoder, group)s of which it holds rows or their gradients now.
  int64_t groups_held() const;

 private:
  enum class Way : uint8_t { kRows, kGrads };
  // A round on its way.
  struct Staged {
    int32_t round = 0;
    std::unique_ptr<Message> message;
  };
  // Where a message's rows of a microbatch are held.
  struct Place {
    int64_t first = 0;          // row of the first feature's
    int64_t feature_rows = 0;   // from one feature to the next
    int64_t message_begin = 0;  // the first of them in the message
  };
  // One (encoder, group) on this rank.
  struct State {
    std::vector<std::vector<TensorView>> encoded;  // by feature; until packed
    std::deque<Staged> rows, grads;
    std::unique_ptr<Message> held;          // rows received, then their gradients
    std::unique_ptr<Message> output_grads;  // of what was encoded here, [features x rows, H]
    std::map<std::pair<int32_t, int32_t>, Place> places;  // by rank and microbatch
    int64_t grads_sent = 0;                               // messages to others
    bool grads_taken = false;                             // of what this rank encoded
  };
  // Rows of one message that lie together where they are held, and as they travel.
  struct Piece {
    const parallel::RowMessage& message;
    int64_t feature = 0;
    parallel::UnitRange rows;  // of the message
  };

  const parallel::ReshardGroup& Plan(int32_t encoder, int32_t group) const {
    return plan_->groups[encoder][group];
  }
  int64_t Features(int32_t encoder) const { return 1 + options_.num_deepstack[encoder]; }
  State& Of(int32_t encoder, int32_t group) { return states_[{encoder, group}]; }
  Message& Buffer(std::unique_ptr<Message>* message, int64_t num_rows);
  Message& Held(int32_t encoder, int32_t group);
  int32_t NumRounds(int32_t encoder, int32_t group) const;
  // Visits the pieces of a part of a message in the order they travel.
  template <typename Visit>
  void ForPieces(int32_t encoder, const parallel::RowMessage& message,
                 const parallel::UnitRange& rows, Visit&& visit) const;
  // Those of a round of all messages to or from other ranks, with the row each begins at.
  template <typename Visit>
  int64_t ForStaged(int32_t encoder, int32_t group, int32_t round, Visit&& visit) const;
  // Where a piece of one of plan.receive is held.
  TensorView HeldAt(int32_t encoder, int32_t group, const Piece& piece);

  absl::Status Stage(ExecContext& ctx, Way way, int32_t encoder, int32_t group, int32_t round,
                     TransferBatch* batch);
  void Hold(Way way, int32_t encoder, int32_t group, int32_t stage, int32_t round,
            TransferBatch* batch);
  absl::Status Exchange(ExecContext& ctx, Way way, int32_t encoder, int32_t group);
  absl::Status StageAll(ExecContext& ctx, Way way, int32_t encoder, int32_t group,
                        TransferBatch* batch);
  // Waits for the oldest round; gradients go to their place.
  absl::Status EndRound(ExecContext& ctx, Way way, int32_t encoder, int32_t group);
  void Pack(ExecContext& ctx, const State& state, const Piece& piece, const TensorView& to) const;
  void Unpack(ExecContext& ctx, int32_t encoder, int32_t group, const Piece& piece,
              const TensorView& from);
  // What this rank has for itself, straight from one place to the other.
  template <typename Visit>
  void ForOwn(int32_t encoder, int32_t group, Visit&& visit);

  const Options options_;
  const parallel::ReshardPlan* plan_ = nullptr;
  std::map<std::pair<int32_t, int32_t>, State> states_;
  int64_t staged_bytes_max_ = 0;
};

}  // namespace omni::trainer
