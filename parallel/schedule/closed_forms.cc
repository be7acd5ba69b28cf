#include "parallel/schedule/closed_forms.h"

#include <algorithm>

namespace omni::parallel {
namespace {

bool IsAllRanks(JointKind joint) {
  return joint == JointKind::kUniform || joint == JointKind::kUpfront ||
         joint == JointKind::kRecompute;
}

// The decoder's part: m t + bubble.
std::optional<double> DecoderStep(const ScheduleOptions& options, const StageCosts& costs) {
  const double m = options.microbatches, p = options.decoder_ranks();
  const double work = m * costs.stage();
  const double f = costs.forward, b = costs.input_backward, w = costs.weight_gradient;
  switch (options.schedule) {
    case ScheduleKind::kGPipe:
    case ScheduleKind::k1F1B:
      return work + (p - 1) * costs.stage();
    case ScheduleKind::kInterleaved:
      if (options.microbatches % options.decoder_ranks() != 0) return std::nullopt;
      return work + (p - 1) * costs.stage() / options.chunks_per_rank;
    case ScheduleKind::kZbH1:
      if (m < p || w > f || w > b) return std::nullopt;
      return work + (p - 1) * (f + b - w);
    case ScheduleKind::kZbV:
      if (m < 2 * p || f != b || f != w) return std::nullopt;
      return work + (p - 1) * f / 2;
  }
  return std::nullopt;
}

}  // namespace

ActionTime EqualTimes(const ScheduleOptions& options, const StageCosts& costs) {
  const double chunks = options.chunks_per_rank;
  double encoding_ranks = 1;
  if (IsAllRanks(options.joint)) encoding_ranks = options.ranks;
  if (options.joint == JointKind::kDisaggregated) encoding_ranks = options.encoder_ranks;
  const double slower = static_cast<double>(options.ranks) / options.decoder_ranks();
  const bool again = options.joint == JointKind::kRecompute;
  return [=](int32_t, const Action& action) -> double {
    const auto share = [&] {  // of a rank in its group
      const int32_t first = action.microbatch * options.group_size();
      return (std::min(options.microbatches, first + options.group_size()) - first) /
             encoding_ranks;
    };
    switch (action.kind) {
      case ActionKind::kForwardBackward:
        return costs.stage();
      case ActionKind::kForward:
        return costs.forward * slower / chunks;
      case ActionKind::kBackward:
        return (costs.input_backward + costs.weight_gradient) * slower / chunks;
      case ActionKind::kBackwardInput:
        return costs.input_backward * slower / chunks;
      case ActionKind::kWeightGrad:
        return costs.weight_gradient * slower / chunks;
      case ActionKind::kEncodeForward:
      case ActionKind::kEncodeOnly:
        return costs.encode * share();
      case ActionKind::kEncodeBackward:
        return (costs.encode_backward + (again ? costs.encode : 0)) * share();
      default:
        return 0;
    }
  };
}

std::optional<double> ClosedFormStep(const ScheduleOptions& options, const StageCosts& costs) {
  if (options.decoder_ranks() != options.ranks) return std::nullopt;
  const std::optional<double> decoder = DecoderStep(options, costs);
  if (!decoder.has_value() || options.encoders.empty()) return decoder;
  double encode = 0, encode_all = 0;
  for (const ScheduledEncoder& encoder : options.encoders) {
    encode += costs.encode;
    encode_all += costs.encode;
    if (!encoder.trains) continue;
    encode_all += costs.encode_backward;
    if (options.joint == JointKind::kRecompute) encode_all += costs.encode;
  }
  const double m = options.microbatches, p = options.ranks;
  if (IsAllRanks(options.joint)) {
    if (options.microbatches % options.ranks != 0) return std::nullopt;
    return *decoder + m * encode_all / p;
  }
  if (options.joint == JointKind::kFirstStage && options.schedule == ScheduleKind::k1F1B &&
      options.q == 1 && m >= p) {
    // Rank 0 works all the time but for its wait for the first gradients and for the last ones.
    const double backward = costs.input_backward + costs.weight_gradient;
    return m * (costs.stage() + encode_all) +
           (p - 1) * (std::max(0.0, backward - encode) +
                      std::max(0.0, costs.forward - (encode_all - encode)));
  }
  return std::nullopt;
}

std::optional<int32_t> LiveActivationsBound(const ScheduleOptions& options, int32_t rank) {
  const int32_t p = options.decoder_ranks(), m = options.microbatches;
  if (rank >= p) return 0;
  switch (options.schedule) {
    case ScheduleKind::kGPipe:
      return m;
    case ScheduleKind::k1F1B:
      return std::min(m, p - rank);
    case ScheduleKind::kInterleaved:
      return std::min(m * options.chunks_per_rank,
                      2 * (p - 1 - rank) + (options.chunks_per_rank - 1) * p + 1);
    case ScheduleKind::kZbH1:
      return std::min(m, p);
    case ScheduleKind::kZbV:
      return 2 * std::min(m, p);
  }
  return std::nullopt;
}

std::optional<int32_t> LiveGroupsBound(const ScheduleOptions& options) {
  if (options.encoders.empty()) return 0;
  const int32_t groups = options.num_groups(), size = options.group_size();
  // Microbatches between chunk 0's forward and its backward.
  int32_t in_flight = options.microbatches;
  if (options.schedule == ScheduleKind::k1F1B || options.schedule == ScheduleKind::kZbH1) {
    in_flight = options.decoder_ranks();
  } else if (options.schedule != ScheduleKind::kGPipe) {
    in_flight = 2 * options.decoder_ranks();
  }
  switch (options.joint) {
    case JointKind::kUniform:
      return std::min(groups, options.groups_ahead + 1 + (in_flight + size - 1) / size);
    case JointKind::kUpfront:
      return groups;
    case JointKind::kRecompute:
      return 1;
    case JointKind::kFirstStage:
      return std::min(groups, (in_flight + size - 1) / size + (size > 1 ? 1 : 0));
    default:
      return std::nullopt;
  }
}

}  // namespace omni::parallel
