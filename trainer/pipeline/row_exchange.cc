#include "trainer/pipeline/row_exchange.h"

#include <algorithm>
#include <numeric>

#include "runtime/base/status.h"
#include "runtime/ops/copy.h"

namespace omni::trainer {
namespace {

constexpr size_t kStagedRounds = 2;  // at once

void CopyIfThere(ExecContext& ctx, const TensorView& from, const TensorView& to) {
  if (!from.empty()) CopyTo(ctx, from, to);
}

// Stretches of rows[range] that follow each other: visit(place in the range, first, count).
template <typename Visit>
void ForRuns(const std::vector<int32_t>& rows, const parallel::UnitRange& range, Visit&& visit) {
  for (int64_t begin = range.begin; begin < range.end;) {
    int64_t end = begin + 1;
    while (end < range.end && rows[end] == rows[end - 1] + 1) ++end;
    visit(begin - range.begin, int64_t{rows[begin]}, end - begin);
    begin = end;
  }
}

bool HasLeft(const Message& message) {
  return std::all_of(message.works.begin(), message.works.end(),
                     [](const auto& work) { return work->IsDone(); });
}

}  // namespace

void RowExchange::Begin(const parallel::ReshardPlan& plan) {
  plan_ = &plan;
  states_.clear();
  staged_bytes_max_ = 0;
}

Message& RowExchange::Buffer(std::unique_ptr<Message>* message, int64_t num_rows) {
  if (*message == nullptr) {
    *message =
        std::make_unique<Message>(options_.device, options_.dtype, num_rows, options_.hidden);
  }
  return **message;
}

Message& RowExchange::Held(int32_t encoder, int32_t group) {
  State& state = Of(encoder, group);
  if (state.held != nullptr) return *state.held;
  const auto& messages = Plan(encoder, group).receive;
  std::map<int32_t, int64_t> rows;  // by microbatch
  for (const parallel::RowMessage& message : messages) {
    for (const int32_t microbatch : message.microbatches) ++rows[microbatch];
  }
  int64_t end = 0;
  for (const auto& [microbatch, count] : rows) {
    int64_t first = end;  // of the first feature
    for (const parallel::RowMessage& message : messages) {
      const parallel::UnitRange range = message.RowsOf(microbatch);
      if (range.size() == 0) continue;
      state.places[{message.rank, microbatch}] = {first, count, range.begin};
      first += range.size();
    }
    end += Features(encoder) * count;
  }
  return Buffer(&state.held, end);
}

int32_t RowExchange::NumRounds(int32_t encoder, int32_t group) const {
  const double row_bytes =
      static_cast<double>(Features(encoder) * options_.hidden * SizeOf(options_.dtype));
  const double whole_rows = options_.whole_mib * 1024 * 1024 / row_bytes;
  return Plan(encoder, group).NumRounds(options_.staging, static_cast<int64_t>(whole_rows));
}

template <typename Visit>
void RowExchange::ForPieces(int32_t encoder, const parallel::RowMessage& message,
                            const parallel::UnitRange& rows, Visit&& visit) const {
  for (int64_t begin = rows.begin; begin < rows.end;) {
    const int64_t end = std::min(rows.end, message.RowsOf(message.microbatches[begin]).end);
    for (int64_t feature = 0; feature < Features(encoder); ++feature) {
      visit(Piece{.message = message, .feature = feature, .rows = {begin, end}});
    }
    begin = end;
  }
}

template <typename Visit>
int64_t RowExchange::ForStaged(int32_t encoder, int32_t group, int32_t round, Visit&& visit) const {
  const int32_t rounds = NumRounds(encoder, group);
  int64_t row = 0;
  for (const parallel::RowMessage& message : Plan(encoder, group).send) {
    if (message.rank == options_.rank) continue;
    ForPieces(encoder, message, parallel::RoundRows(message.num_rows(), round, rounds),
              [&](const Piece& piece) {
                visit(piece, row);
                row += piece.rows.size();
              });
  }
  return row;
}

TensorView RowExchange::HeldAt(int32_t encoder, int32_t group, const Piece& piece) {
  const Message& held = Held(encoder, group);
  const int32_t microbatch = piece.message.microbatches[piece.rows.begin];
  const Place& place = Of(encoder, group).places.at({piece.message.rank, microbatch});
  const int64_t within = piece.rows.begin - place.message_begin;
  return held.rows.Rows(place.first + piece.feature * place.feature_rows + within,
                        piece.rows.size());
}

void RowExchange::Pack(ExecContext& ctx, const State& state, const Piece& piece,
                       const TensorView& to) const {
  ForRuns(piece.message.rows, piece.rows, [&](int64_t place, int64_t row, int64_t count) {
    for (const TensorView& part : state.encoded[piece.feature]) {
      const int64_t part_rows = part.empty() ? 0 : part.size(0);
      const int64_t here = std::min(count, part_rows - row);
      if (here > 0) {
        CopyIfThere(ctx, part.Rows(row, here), to.Rows(place, here));
        place += here;
        count -= here;
        row = 0;
      } else {
        row -= part_rows;
      }
      if (count == 0) return;
    }
    OMNI_CHECK_EQ(count, 0);
  });
}

void RowExchange::Unpack(ExecContext& ctx, int32_t encoder, int32_t group, const Piece& piece,
                         const TensorView& from) {
  const int64_t output_rows = Plan(encoder, group).output_rows;
  const Message& grads = Buffer(&Of(encoder, group).output_grads, Features(encoder) * output_rows);
  ForRuns(piece.message.rows, piece.rows, [&](int64_t place, int64_t row, int64_t count) {
    CopyIfThere(ctx, from.Rows(place, count),
                grads.rows.Rows(piece.feature * output_rows + row, count));
  });
}

void RowExchange::SetEncoded(int32_t encoder, int32_t group,
                             std::vector<std::vector<TensorView>> features) {
  for (const std::vector<TensorView>& parts : features) {
    int64_t rows = 0;
    for (const TensorView& part : parts) rows += part.empty() ? 0 : part.size(0);
    OMNI_CHECK_EQ(rows, Plan(encoder, group).output_rows);
  }
  Of(encoder, group).encoded = std::move(features);
}

absl::Status RowExchange::EndRound(ExecContext& ctx, Way way, int32_t encoder, int32_t group) {
  State& state = Of(encoder, group);
  std::deque<Staged>& staged = way == Way::kRows ? state.rows : state.grads;
  const Staged& oldest = staged.front();
  OMNI_RETURN_IF_ERROR(oldest.message->Await(options_.deadline, options_.trace));
  if (way == Way::kGrads) {
    ForStaged(encoder, group, oldest.round, [&](const Piece& piece, int64_t row) {
      Unpack(ctx, encoder, group, piece, oldest.message->rows.Rows(row, piece.rows.size()));
    });
  }
  staged.pop_front();
  return absl::OkStatus();
}

absl::Status RowExchange::Stage(ExecContext& ctx, Way way, int32_t encoder, int32_t group,
                                int32_t round, TransferBatch* batch) {
  State& state = Of(encoder, group);
  std::deque<Staged>& staged = way == Way::kRows ? state.rows : state.grads;
  const int64_t num_rows = ForStaged(encoder, group, round, [](const Piece&, int64_t) {});
  if (num_rows == 0) return absl::OkStatus();
  if (staged.size() == kStagedRounds) {
    OMNI_RETURN_IF_ERROR(EndRound(ctx, way, encoder, group));
  }
  staged.push_back({.round = round,
                    .message = std::make_unique<Message>(options_.device, options_.dtype, num_rows,
                                                         options_.hidden)});
  Message* const message = staged.back().message.get();
  const RankGroups::EncoderGroups& groups = options_.groups.encoders()[encoder];
  ForStaged(encoder, group, round, [&](const Piece& piece, int64_t row) {
    const TensorView rows = message->rows.Rows(row, piece.rows.size());
    const int32_t peer = groups.RankOf(piece.message.rank);
    if (way == Way::kRows) {
      Pack(ctx, state, piece, rows);
      batch->Send(groups.rows.comm, rows, peer, message);
    } else {
      batch->Recv(groups.row_grads.comm, rows, peer, message);
    }
  });
  int64_t bytes = 0;
  for (const Staged& one : staged) {
    bytes += one.message->rows.num_elements() * SizeOf(options_.dtype);
  }
  staged_bytes_max_ = std::max(staged_bytes_max_, bytes);
  return absl::OkStatus();
}

void RowExchange::Hold(Way way, int32_t encoder, int32_t group, int32_t stage, int32_t round,
                       TransferBatch* batch) {
  const int32_t rounds = NumRounds(encoder, group);
  const RankGroups::EncoderGroups& groups = options_.groups.encoders()[encoder];
  for (const parallel::RowMessage& message : Plan(encoder, group).receive) {
    if (message.rank == options_.rank || options_.data.Stage(message.rank) != stage) continue;
    const int32_t peer = groups.RankOf(message.rank);
    Message* const held = &Held(encoder, group);
    ForPieces(encoder, message, parallel::RoundRows(message.num_rows(), round, rounds),
              [&](const Piece& piece) {
                const TensorView rows = HeldAt(encoder, group, piece);
                way == Way::kRows ? batch->Recv(groups.rows.comm, rows, peer, held)
                                  : batch->Send(groups.row_grads.comm, rows, peer, held);
              });
    if (way == Way::kGrads && round == 0) ++Of(encoder, group).grads_sent;
  }
}

absl::Status RowExchange::StageAll(ExecContext& ctx, Way way, int32_t encoder, int32_t group,
                                   TransferBatch* batch) {
  const int32_t rounds = NumRounds(encoder, group);
  if (rounds == 1) return Stage(ctx, way, encoder, group, 0, batch);
  for (int32_t round = 0; round < rounds; ++round) {
    TransferBatch own;
    OMNI_RETURN_IF_ERROR(Stage(ctx, way, encoder, group, round, &own));
    own.Post();
  }
  return absl::OkStatus();
}

absl::Status RowExchange::SendRows(ExecContext& ctx, int32_t encoder, int32_t group,
                                   TransferBatch* batch) {
  OMNI_RETURN_IF_ERROR(StageAll(ctx, Way::kRows, encoder, group, batch));
  Of(encoder, group).encoded.clear();
  return absl::OkStatus();
}

absl::Status RowExchange::ReceiveGrads(ExecContext& ctx, int32_t encoder, int32_t group,
                                       TransferBatch* batch) {
  return StageAll(ctx, Way::kGrads, encoder, group, batch);
}

void RowExchange::ReceiveRows(int32_t encoder, int32_t group, int32_t stage, TransferBatch* batch) {
  for (int32_t round = 0; round < NumRounds(encoder, group); ++round) {
    Hold(Way::kRows, encoder, group, stage, round, batch);
  }
}

void RowExchange::SendGrads(int32_t encoder, int32_t group, int32_t stage, TransferBatch* batch) {
  for (int32_t round = 0; round < NumRounds(encoder, group); ++round) {
    Hold(Way::kGrads, encoder, group, stage, round, batch);
  }
}

absl::Status RowExchange::Exchange(ExecContext& ctx, Way way, int32_t encoder, int32_t group) {
  // Round by round on all ranks of the stage, each an exchange: nobody waits for a round that
  // another has yet to post after one that waits for this rank.
  for (int32_t round = 0; round < NumRounds(encoder, group); ++round) {
    TransferBatch batch;
    OMNI_RETURN_IF_ERROR(Stage(ctx, way, encoder, group, round, &batch));
    Hold(way, encoder, group, /*stage=*/0, round, &batch);
    batch.Post();
  }
  return absl::OkStatus();
}

template <typename Visit>
void RowExchange::ForOwn(int32_t encoder, int32_t group, Visit&& visit) {
  const parallel::ReshardGroup& plan = Plan(encoder, group);
  const auto is_own = [&](const parallel::RowMessage& message) {
    return message.rank == options_.rank;
  };
  const auto sent = std::find_if(plan.send.begin(), plan.send.end(), is_own);
  const auto received = std::find_if(plan.receive.begin(), plan.receive.end(), is_own);
  if (sent == plan.send.end()) return;
  OMNI_CHECK(received != plan.receive.end());
  ForPieces(encoder, *sent, {0, sent->num_rows()}, [&](const Piece& piece) {
    visit(piece, HeldAt(encoder, group,
                        {.message = *received, .feature = piece.feature, .rows = piece.rows}));
  });
}

absl::Status RowExchange::ExchangeRows(ExecContext& ctx, int32_t encoder, int32_t group) {
  OMNI_RETURN_IF_ERROR(Exchange(ctx, Way::kRows, encoder, group));
  State& state = Of(encoder, group);
  ForOwn(encoder, group,
         [&](const Piece& piece, const TensorView& held) { Pack(ctx, state, piece, held); });
  state.encoded.clear();
  return absl::OkStatus();
}

absl::Status RowExchange::ExchangeGrads(ExecContext& ctx, int32_t encoder, int32_t group) {
  OMNI_RETURN_IF_ERROR(Exchange(ctx, Way::kGrads, encoder, group));
  ForOwn(encoder, group, [&](const Piece& piece, const TensorView& held) {
    Unpack(ctx, encoder, group, piece, held);
  });
  return absl::OkStatus();
}

std::vector<int32_t> RowExchange::TokenRows(const parallel::ReshardGroup& plan,
                                            int32_t microbatch) {
  std::vector<int32_t> token_rows;
  for (const parallel::RowMessage& message : plan.receive) {
    const parallel::UnitRange range = message.RowsOf(microbatch);
    token_rows.insert(token_rows.end(), message.rows.begin() + range.begin,
                      message.rows.begin() + range.end);
  }
  return token_rows;
}

absl::Status RowExchange::TakeRows(int32_t encoder, int32_t group, int32_t microbatch,
                                   std::vector<TensorView>* features) {
  features->clear();
  int64_t before = 0, own = 0;
  for (const parallel::RowMessage& message : Plan(encoder, group).receive) {
    const parallel::UnitRange rows = message.RowsOf(microbatch);
    before += rows.begin;
    own += rows.size();
  }
  if (own == 0) return absl::OkStatus();
  const Message& held = Held(encoder, group);
  OMNI_RETURN_IF_ERROR(held.Await(options_.deadline, options_.trace));
  for (int64_t feature = 0; feature < Features(encoder); ++feature) {
    features->push_back(held.rows.Rows(Features(encoder) * before + feature * own, own));
  }
  return absl::OkStatus();
}

void RowExchange::GiveGrads(ExecContext& ctx, int32_t encoder, int32_t group, int32_t microbatch,
                            const std::vector<TensorView>& features) {
  std::vector<TensorView> held;
  OMNI_CHECK_OK(TakeRows(encoder, group, microbatch, &held));
  for (size_t i = 0; i < held.size(); ++i) {
    features[i].empty() ? FillWith(ctx, 0.0, held[i]) : CopyTo(ctx, features[i], held[i]);
  }
}

absl::Status RowExchange::TakeGrads(ExecContext& ctx, int32_t encoder, int32_t group,
                                    std::vector<TensorView>* features) {
  features->clear();
  State& state = Of(encoder, group);
  state.grads_taken = true;
  while (!state.grads.empty()) {
    OMNI_RETURN_IF_ERROR(EndRound(ctx, Way::kGrads, encoder, group));
  }
  const int64_t output_rows = Plan(encoder, group).output_rows;
  if (output_rows == 0) return absl::OkStatus();
  const Message& grads = Buffer(&state.output_grads, Features(encoder) * output_rows);
  for (int64_t feature = 0; feature < Features(encoder); ++feature) {
    features->push_back(grads.rows.Rows(feature * output_rows, output_rows));
  }
  return absl::OkStatus();
}

void RowExchange::ReleaseRows(int32_t encoder, int32_t group) { Of(encoder, group).held.reset(); }

int64_t RowExchange::groups_held() const {
  return std::count_if(states_.begin(), states_.end(),
                       [](const auto& state) { return state.second.held != nullptr; });
}

void RowExchange::Sweep() {
  for (auto& [key, state] : states_) {
    while (!state.rows.empty() && HasLeft(*state.rows.front().message)) state.rows.pop_front();
    if (!state.grads_taken) continue;
    state.output_grads.reset();
    if (state.held == nullptr) continue;
    const auto& messages = Plan(key.first, key.second).receive;
    const auto to_others = std::count_if(
        messages.begin(), messages.end(),
        [&](const parallel::RowMessage& message) { return message.rank != options_.rank; });
    if (state.grads_sent == to_others && HasLeft(*state.held)) state.held.reset();
  }
}

absl::Status RowExchange::Drain() {
  absl::Status status;
  for (const auto& [key, state] : states_) {
    for (const auto* rounds : {&state.rows, &state.grads}) {
      for (const Staged& one : *rounds) status.Update(one.message->Await(options_.deadline));
    }
    if (state.held != nullptr) status.Update(state.held->Await(options_.deadline));
  }
  states_.clear();
  return status;
}

}  // namespace omni::trainer
