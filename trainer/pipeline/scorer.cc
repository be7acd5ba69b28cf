#include "trainer/pipeline/scorer.h"

#include <algorithm>
#include <utility>

#include "runtime/base/status.h"

namespace omni::trainer {

using parallel::Action;
using parallel::ActionKind;
using parallel::Payload;

// Every rank of the first stage has all output rows, and sends itself those of its tokens.
parallel::ReshardPlan Scorer::PlanFor(const dataloader::Microbatch& microbatch) const {
  const parallel::SequenceContext sequence(microbatch.tokens, options_.groups.decoder(),
                                           options_.data.ring_threshold);
  const absl::Span<const int32_t> own = sequence.own_tokens();
  parallel::ReshardPlan plan;
  for (const auto& [name, encoder] : options_.model.encoders()) {
    parallel::ReshardGroup group;
    const auto found = microbatch.media.find(name);
    if (found != microbatch.media.end()) {
      const std::vector<int32_t>& token_rows = found->second.token_rows;
      group.output_rows = static_cast<int64_t>(token_rows.size());
      std::vector<std::pair<int32_t, int32_t>> kept;  // (row here, row of the encoder's output)
      for (size_t row = 0; row < token_rows.size(); ++row) {
        const auto place = std::lower_bound(own.begin(), own.end(), token_rows[row]);
        if (place == own.end() || *place != token_rows[row]) continue;
        kept.emplace_back(static_cast<int32_t>(place - own.begin()), static_cast<int32_t>(row));
      }
      std::sort(kept.begin(), kept.end());
      if (!kept.empty()) {
        parallel::RowsToSend send{.rank = options_.rank, .microbatches = {}, .rows = {}};
        parallel::RowsToReceive receive{.rank = options_.rank, .microbatches = {}, .rows = {}};
        for (const auto& [here, row] : kept) {
          send.rows.push_back(row);
          send.microbatches.push_back(0);
          receive.microbatches.push_back(0);
          receive.rows.push_back(here);
        }
        group.send.push_back(std::move(send));
        group.receive.push_back(std::move(receive));
      }
    }
    plan.groups.push_back({std::move(group)});
  }
  return plan;
}

parallel::Program Scorer::ForwardProgram() const {
  const parallel::ScheduleOptions schedule = options_.layout.Schedule(1, {});
  const int32_t own = options_.layout.PipelineRank(options_.rank);
  parallel::Program program;
  if (schedule.RankOf(0) == own) {
    for (size_t e = 0; e < options_.model.encoders().size(); ++e) {
      program.push_back(
          {.kind = ActionKind::kEncodeOnly, .microbatch = 0, .encoder = static_cast<int16_t>(e)});
    }
  }
  const auto transfer = [&](ActionKind kind, int32_t chunk, int32_t peer) {
    program.push_back({.kind = kind,
                       .payload = Payload::kHidden,
                       .chunk = static_cast<int16_t>(chunk),
                       .microbatch = 0,
                       .peer = static_cast<int16_t>(peer)});
  };
  for (const int32_t chunk : schedule.ChunksOf(own)) {
    if (chunk > 0 && schedule.RankOf(chunk - 1) != own) {
      transfer(ActionKind::kRecv, chunk, schedule.RankOf(chunk - 1));
    }
    program.push_back(
        {.kind = ActionKind::kForward, .chunk = static_cast<int16_t>(chunk), .microbatch = 0});
    if (chunk + 1 < schedule.num_chunks() && schedule.RankOf(chunk + 1) != own) {
      transfer(ActionKind::kSend, chunk + 1, schedule.RankOf(chunk + 1));
    }
  }
  return program;
}

absl::StatusOr<TokenScores> Scorer::Score(const dataloader::Microbatch& microbatch) {
  dataloader::StepBatch batch;
  batch.microbatches.push_back(microbatch);
  for (const auto& [name, encoder] : options_.model.encoders()) {
    dataloader::EncodeBatch encode;
    if (const auto found = microbatch.media.find(name); found != microbatch.media.end()) {
      encode.whole = found->second;
    }
    batch.encodes.emplace_back();
    batch.encodes.back().push_back(std::move(encode));
  }
  const auto num_tokens = static_cast<size_t>(microbatch.tokens.num_tokens());
  TokenScores scores{.losses = std::vector<double>(num_tokens, 0.0),
                     .argmax = std::vector<int32_t>(num_tokens, 0)};
  const parallel::ReshardPlan plan = PlanFor(microbatch);
  const ExecutorStep step{
      .batch = batch,
      .scales = {.loss_token = 1.0},
      .trained = {.encoders = std::vector<bool>(options_.model.encoders().size(), false)},
      .with_gradients = false,
      .plan = &plan,
      .on_losses = [&](int32_t, absl::Span<const int32_t> tokens, const std::vector<double>& losses,
                       const std::vector<int32_t>& argmax) {
        for (size_t i = 0; i < tokens.size(); ++i) {
          scores.losses[tokens[i]] = losses[i];
          scores.argmax[tokens[i]] = argmax[i] + 1;
        }
      }};
  OMNI_RETURN_IF_ERROR(executor_.Run(ForwardProgram(), step));
  const parallel::ScheduleOptions schedule = options_.layout.Schedule(1, {});
  if (schedule.RankOf(schedule.num_chunks() - 1) != options_.layout.PipelineRank(options_.rank)) {
    return TokenScores{};
  }
  OMNI_RETURN_IF_ERROR(SumOverSequence(&scores));
  if (options_.groups.decoder().sequence.rank() != 0) return TokenScores{};
  for (int32_t& token : scores.argmax) --token;
  return scores;
}

// Each token's numbers are on the one rank that has it, zeros on the others.
absl::Status Scorer::SumOverSequence(TokenScores* scores) {
  const parallel::Group& group = options_.groups.decoder().sequence;
  if (group.is_alone() || scores->losses.empty()) return absl::OkStatus();
  const size_t num_tokens = scores->losses.size();
  std::vector<double> values = scores->losses;
  values.insert(values.end(), scores->argmax.begin(), scores->argmax.end());
  TensorArena arena(options_.device);
  ExecContext ctx{.device = options_.device, .stream = options_.stream, .arena = &arena};
  const TensorView view = UploadNew<double>(ctx, values, {static_cast<int64_t>(values.size())});
  OMNI_RETURN_IF_ERROR(group.comm->AllReduce(view, ReduceOp::kSum)->WaitHost(options_.deadline));
  values = HostRead<double>(ctx, view);
  std::copy_n(values.begin(), num_tokens, scores->losses.begin());
  std::copy_n(values.begin() + num_tokens, num_tokens, scores->argmax.begin());
  return absl::OkStatus();
}

}  // namespace omni::trainer
