#include "trainer/pipeline/row_exchange.h"

#include <algorithm>

#include "runtime/base/status.h"
#include "runtime/device/args/elementwise.h"
#include "runtime/ops/rows.h"

namespace omni::trainer {
namespace {

int64_t NumRows(const parallel::RowsToSend& message) {
  return static_cast<int64_t>(message.rows.size());
}
int64_t NumRows(const parallel::RowsToReceive& message) {
  return static_cast<int64_t>(message.rows.size());
}

template <typename Messages>
int64_t TotalRows(const Messages& messages) {
  int64_t sum = 0;
  for (const auto& message : messages) sum += NumRows(message);
  return sum;
}

void Copy(ExecContext& ctx, const TensorView& from, const TensorView& to) {
  if (from.empty() || from.num_elements() == 0) return;
  Launch(ctx, OpId::kCopyCast, from.dtype, CopyCastArgs{.in = from, .out = to});
}

void Zero(ExecContext& ctx, const TensorView& view) {
  if (view.num_elements() == 0) return;
  Launch(ctx, OpId::kFill, view.dtype, FillArgs{.out = view, .value = 0.0});
}

// Row i of the result is row rows[i] of `from`.
TensorView Gather(ExecContext& ctx, const TensorView& from, const std::vector<int32_t>& rows) {
  const TensorView index = UploadNew<int32_t>(ctx, rows, {static_cast<int64_t>(rows.size())});
  return GatherRows(ctx, {.value = from}, index).value;
}

// For each row as it travels (message by message, feature by feature) its row in [features x rows].
std::vector<int32_t> TravellingOrder(const parallel::ReshardGroup& plan, int64_t features) {
  std::vector<int32_t> order;
  for (const parallel::RowsToSend& message : plan.send) {
    for (int64_t feature = 0; feature < features; ++feature) {
      for (const int32_t row : message.rows) {
        order.push_back(static_cast<int32_t>(feature * plan.output_rows) + row);
      }
    }
  }
  return order;
}

}  // namespace

void RowExchange::Begin(const parallel::ReshardPlan& plan) {
  plan_ = &plan;
  states_.clear();
}

Message& RowExchange::Buffer(std::unique_ptr<Message>* message, int64_t num_rows) {
  if (*message == nullptr) {
    *message =
        std::make_unique<Message>(options_.device, options_.dtype, num_rows, options_.hidden);
  }
  return **message;
}

void RowExchange::SetEncoded(ExecContext& ctx, int32_t encoder, int32_t group,
                             const std::vector<std::vector<TensorView>>& features) {
  const parallel::ReshardGroup& plan = Plan(encoder, group);
  const int64_t num_features = Features(encoder);
  State& state = Of(encoder, group);
  Message& out = Buffer(&state.out, num_features * TotalRows(plan.send));
  if (plan.output_rows == 0) return;
  TensorArena arena(options_.device);
  ExecContext inner{.device = ctx.device, .stream = ctx.stream, .arena = &arena};
  const TensorView all =
      inner.New(options_.dtype, {num_features * plan.output_rows, options_.hidden});
  int64_t row = 0;
  for (const std::vector<TensorView>& parts : features) {
    for (const TensorView& part : parts) {
      if (part.empty() || part.num_elements() == 0) continue;
      Copy(inner, part, all.Rows(row, part.size(0)));
      row += part.size(0);
    }
  }
  OMNI_CHECK_EQ(row, num_features * plan.output_rows);
  Copy(inner, Gather(inner, all, TravellingOrder(plan, num_features)), out.rows);
}

template <typename Messages>
void RowExchange::Post(const Messages& messages, int32_t encoder, int32_t stage,
                       const parallel::Group& group, Way way, Message* buffer,
                       TransferBatch* batch) const {
  int64_t row = 0;
  for (const auto& message : messages) {
    const int64_t count = Features(encoder) * NumRows(message);
    const TensorView rows = buffer->rows.Rows(row, count);
    row += count;
    if (message.rank == options_.rank || options_.data.Stage(message.rank) != stage) continue;
    const int32_t peer = options_.groups.encoders()[encoder].RankOf(message.rank);
    way == Way::kSend ? batch->Send(group.comm, rows, peer, buffer)
                      : batch->Recv(group.comm, rows, peer, buffer);
  }
}

void RowExchange::PostSendRows(int32_t encoder, int32_t group, int32_t stage,
                               TransferBatch* batch) {
  State& state = Of(encoder, group);
  state.rows_posted = true;  // all go to the first stage, so at once
  Post(Plan(encoder, group).send, encoder, stage, options_.groups.encoders()[encoder].rows,
       Way::kSend, state.out.get(), batch);
}

void RowExchange::PostRecvRows(int32_t encoder, int32_t group, int32_t stage,
                               TransferBatch* batch) {
  const auto& messages = Plan(encoder, group).receive;
  Message& in = Buffer(&Of(encoder, group).in, Features(encoder) * TotalRows(messages));
  Post(messages, encoder, stage, options_.groups.encoders()[encoder].rows, Way::kReceive, &in,
       batch);
}

std::vector<int32_t> RowExchange::TokenRows(const parallel::ReshardGroup& plan,
                                            int32_t microbatch) {
  std::vector<int32_t> token_rows;
  for (const parallel::RowsToReceive& message : plan.receive) {
    const parallel::UnitRange range = message.RowsOf(microbatch);
    token_rows.insert(token_rows.end(), message.rows.begin() + range.begin,
                      message.rows.begin() + range.end);
  }
  return token_rows;
}

std::vector<int32_t> RowExchange::InRows(int32_t encoder, int32_t group, int32_t microbatch,
                                         int64_t feature) const {
  std::vector<int32_t> rows;
  int64_t first = 0;  // of the message, in the buffer
  for (const parallel::RowsToReceive& message : Plan(encoder, group).receive) {
    const parallel::UnitRange range = message.RowsOf(microbatch);
    for (int64_t i = range.begin; i < range.end; ++i) {
      rows.push_back(static_cast<int32_t>(first + feature * NumRows(message) + i));
    }
    first += Features(encoder) * NumRows(message);
  }
  return rows;
}

absl::Status RowExchange::TakeRows(ExecContext& ctx, int32_t encoder, int32_t group,
                                   int32_t microbatch, std::vector<TensorView>* features) {
  features->clear();
  const parallel::ReshardGroup& plan = Plan(encoder, group);
  if (plan.receive.empty()) return absl::OkStatus();
  State& state = Of(encoder, group);
  Message& in = Buffer(&state.in, Features(encoder) * TotalRows(plan.receive));
  OMNI_RETURN_IF_ERROR(in.Await(options_.deadline, options_.trace));
  for (int64_t feature = 0; feature < Features(encoder); ++feature) {
    const std::vector<int32_t> rows = InRows(encoder, group, microbatch, feature);
    if (rows.empty()) break;
    if (feature == 0) CopyOwn(ctx, encoder, group);
    features->push_back(Gather(ctx, in.rows, rows));
  }
  return absl::OkStatus();
}

void RowExchange::CopyOwn(ExecContext& ctx, int32_t encoder, int32_t group) {
  State& state = Of(encoder, group);
  if (state.has_own) return;
  state.has_own = true;
  const parallel::ReshardGroup& plan = Plan(encoder, group);
  const TensorView from = Own(plan.send, encoder, state.out.get());
  if (!from.empty()) Copy(ctx, from, Own(plan.receive, encoder, state.in.get()));
}

template <typename Messages>
TensorView RowExchange::Own(const Messages& messages, int32_t encoder,
                            const Message* buffer) const {
  int64_t row = 0;
  for (const auto& message : messages) {
    const int64_t count = Features(encoder) * NumRows(message);
    if (message.rank == options_.rank) return buffer->rows.Rows(row, count);
    row += count;
  }
  return {};
}

void RowExchange::GiveGrads(ExecContext& ctx, int32_t encoder, int32_t group, int32_t microbatch,
                            const std::vector<TensorView>& features) {
  const parallel::ReshardGroup& plan = Plan(encoder, group);
  State& state = Of(encoder, group);
  Message& grads = Buffer(&state.out_grads, Features(encoder) * TotalRows(plan.receive));
  // Runs of consecutive rows: a microbatch has one of each message and feature.
  for (int64_t feature = 0; feature < Features(encoder); ++feature) {
    int64_t first = 0, taken = 0;
    for (const parallel::RowsToReceive& message : plan.receive) {
      const parallel::UnitRange range = message.RowsOf(microbatch);
      const TensorView to =
          grads.rows.Rows(first + feature * NumRows(message) + range.begin, range.size());
      if (features[feature].empty()) {
        Zero(ctx, to);
      } else {
        Copy(ctx, features[feature].Rows(taken, range.size()), to);
      }
      taken += range.size();
      first += Features(encoder) * NumRows(message);
    }
  }
}

void RowExchange::PostSendGrads(int32_t encoder, int32_t group, int32_t stage,
                                TransferBatch* batch) {
  const auto& messages = Plan(encoder, group).receive;
  Message& grads = Buffer(&Of(encoder, group).out_grads, Features(encoder) * TotalRows(messages));
  Post(messages, encoder, stage, options_.groups.encoders()[encoder].row_grads, Way::kSend, &grads,
       batch);
}

void RowExchange::PostRecvGrads(int32_t encoder, int32_t group, int32_t stage,
                                TransferBatch* batch) {
  const parallel::ReshardGroup& plan = Plan(encoder, group);
  Message& grads = Buffer(&Of(encoder, group).in_grads, Features(encoder) * plan.output_rows);
  Post(plan.send, encoder, stage, options_.groups.encoders()[encoder].row_grads, Way::kReceive,
       &grads, batch);
}

absl::Status RowExchange::TakeGrads(ExecContext& ctx, int32_t encoder, int32_t group,
                                    std::vector<TensorView>* features) {
  features->clear();
  const parallel::ReshardGroup& plan = Plan(encoder, group);
  State& state = Of(encoder, group);
  state.grads_taken = true;
  if (plan.output_rows == 0) return absl::OkStatus();
  Message& grads = Buffer(&state.in_grads, Features(encoder) * plan.output_rows);
  OMNI_RETURN_IF_ERROR(grads.Await(options_.deadline, options_.trace));
  const TensorView own = Own(plan.send, encoder, &grads);
  if (!own.empty()) Copy(ctx, Own(plan.receive, encoder, state.out_grads.get()), own);
  const std::vector<int32_t> order = TravellingOrder(plan, Features(encoder));
  std::vector<int32_t> inverse(order.size());
  for (size_t i = 0; i < order.size(); ++i) inverse[order[i]] = static_cast<int32_t>(i);
  const TensorView all = Gather(ctx, grads.rows, inverse);
  state.in_grads.reset();
  for (int64_t feature = 0; feature < Features(encoder); ++feature) {
    features->push_back(all.Rows(feature * plan.output_rows, plan.output_rows));
  }
  return absl::OkStatus();
}

void RowExchange::ReleaseRows(int32_t encoder, int32_t group) { Of(encoder, group).in.reset(); }

void RowExchange::Sweep() {
  const auto has_left = [](const Message& message) {
    return std::all_of(message.works.begin(), message.works.end(),
                       [](const auto& work) { return work->IsDone(); });
  };
  for (auto& [key, state] : states_) {
    if (state.out != nullptr && state.rows_posted && has_left(*state.out) &&
        (state.has_own ||
         Own(Plan(key.first, key.second).send, key.first, state.out.get()).empty())) {
      state.out.reset();
    }
    // The rank's own backward comes after it has sent the others theirs.
    if (state.out_grads != nullptr && state.grads_taken && has_left(*state.out_grads)) {
      state.out_grads.reset();
    }
  }
}

absl::Status RowExchange::Drain() {
  absl::Status status;
  for (const auto& [key, state] : states_) {
    for (const auto* message : {&state.out, &state.in, &state.out_grads, &state.in_grads}) {
      if (*message != nullptr) status.Update((*message)->Await(options_.deadline));
    }
  }
  states_.clear();
  return status;
}

}  // namespace omni::trainer
