#include "parallel/parallel_config.h"

namespace omni::parallel {
namespace {

absl::Status ReadThreshold(const ConfigNode& node, int64_t* out) {
  if (node.is_null()) return absl::OkStatus();
  if (const auto word = node.AsString(); word.ok()) {
    if (*word == "auto") *out = kThresholdAuto;
    if (*word == "none") *out = kThresholdNone;
    if (*word == "auto" || *word == "none") return absl::OkStatus();
  }
  const auto rows = node.AsInt();
  if (rows.ok() && *rows >= 0) {
    *out = *rows;
    return absl::OkStatus();
  }
  return node.Error("expected a number of input rows, auto or none");
}

absl::Status ReadContext(const ConfigNode& node, ParallelConfig* out) {
  if (node.is_null()) return absl::OkStatus();
  ConfigReader reader(node);
  reader.Read("degree", &out->context, AtLeast(1));
  reader.ReadEnum("kind", &out->context_kind,
                  {{"ring", ContextKind::kRing}, {"ulysses", ContextKind::kUlysses}});
  reader.Read("threshold", &out->ring_threshold, AtLeast(0));
  return reader.Finish();
}

absl::Status ReadJoint(const ConfigNode& node, ParallelConfig* out) {
  if (node.is_null()) return absl::OkStatus();
  ConfigReader reader(node);
  reader.ReadEnum("kind", &out->joint,
                  {{"uniform", JointKind::kUniform},
                   {"upfront", JointKind::kUpfront},
                   {"recompute", JointKind::kRecompute},
                   {"first_stage", JointKind::kFirstStage}});
  reader.Read("q", &out->q, AtLeast(1));
  reader.Read("groups_ahead", &out->groups_ahead, AtLeast(1));
  return reader.Finish();
}

void ReadRecompute(ConfigReader& reader, Recompute* out) {
  reader.ReadEnum("recompute", out,
                  {{"none", Recompute::kNone},
                   {"full", Recompute::kFull},
                   {"selective", Recompute::kSelective}});
}

}  // namespace

absl::Status Read(const ConfigNode& node, EncoderParallel* out) {
  ConfigReader reader(node);
  reader.Read("sequence", &out->sequence, AtLeast(1));
  reader.Keep(ReadThreshold(reader.Child("threshold"), &out->threshold));
  reader.ReadEnum("weights", &out->weights,
                  {{"replicated", EncoderWeights::kReplicated},
                   {"zero2", EncoderWeights::kZero2},
                   {"zero3", EncoderWeights::kZero3}});
  ReadRecompute(reader, &out->recompute);
  return reader.Finish();
}

absl::Status Read(const ConfigNode& node, ParallelConfig* out) {
  ConfigReader reader(node);
  reader.Read("workers", &out->workers, Between(1, 65536));
  reader.Read("pipeline", &out->pipeline, AtLeast(1));
  reader.Read("chunks_per_rank", &out->chunks_per_rank, AtLeast(1));
  reader.ReadEnum("schedule", &out->schedule,
                  {{"gpipe", ScheduleKind::kGPipe},
                   {"1f1b", ScheduleKind::k1F1B},
                   {"interleaved", ScheduleKind::kInterleaved},
                   {"zb_h1", ScheduleKind::kZbH1},
                   {"zb_v", ScheduleKind::kZbV}});
  reader.Read("layers", &out->layers, AtLeast(1));
  reader.Read("tensor", &out->tensor, AtLeast(1));
  reader.Keep(ReadContext(reader.Child("context"), out));
  reader.Read("expert", &out->expert, AtLeast(1));
  ReadRecompute(reader, &out->recompute);
  reader.Keep(ReadJoint(reader.Child("joint"), out));
  reader.ReadMap("encoders", &out->encoders);
  return reader.Finish();
}

}  // namespace omni::parallel
