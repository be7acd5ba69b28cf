#include "parallel/parallel_config.h"

namespace omni::parallel {
namespace {

// Of degrees and counts: so that products of three stay far from the end of 64 bits.
constexpr int32_t kMost = 65536;

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
  return node.Error(
      absl::StrCat("found ", node.kind(), ", expected a number of input rows, auto or none"));
}

absl::Status ReadContext(const ConfigNode& node, ParallelConfig* out) {
  if (node.is_null()) return absl::OkStatus();
  ConfigReader reader(node);
  reader.Read("degree", &out->context, Between(1, kMost));
  reader.ReadEnum("kind", &out->context_kind,
                  {{"ring", ContextKind::kRing}, {"ulysses", ContextKind::kUlysses}});
  reader.Read("threshold", &out->ring_threshold, AtLeast(0));
  return reader.Finish();
}

absl::Status ReadJoint(const ConfigNode& node, ParallelConfig* out) {
  if (node.is_null()) return absl::OkStatus();
  ConfigReader reader(node);
  for (const char* kind : {"aggressive", "disaggregated"}) {
    if (node.Get("kind").text() != kind) continue;
    reader.Keep(reader.Error("kind", absl::StrCat("found \"", kind,
                                                  "\", which omnitrain replay "
                                                  "shows and training does not execute; expected "
                                                  "one of uniform, upfront, recompute, "
                                                  "first_stage")));
  }
  reader.ReadEnum("kind", &out->joint,
                  {{"uniform", JointKind::kUniform},
                   {"upfront", JointKind::kUpfront},
                   {"recompute", JointKind::kRecompute},
                   {"first_stage", JointKind::kFirstStage}});
  reader.Read("q", &out->q, Between(1, kMost));
  reader.Read("groups_ahead", &out->groups_ahead, Between(1, kMost));
  return reader.Finish();
}

absl::Status ReadReshard(const ConfigNode& node, ParallelConfig* out) {
  if (node.is_null()) return absl::OkStatus();
  ConfigReader reader(node);
  reader.Read("staging", &out->staging, {.min = 0, .max = 1, .exclusive_min = true});
  reader.Read("whole_mib", &out->staged_whole_mib, Between(0, 1 << 20));
  return reader.Finish();
}

void ReadRecompute(ConfigReader& reader, Recompute* out) {
  reader.ReadEnum("recompute", out,
                  {{"none", Recompute::kNone},
                   {"full", Recompute::kFull},
                   {"selective", Recompute::kSelective}});
}

void ReadWeights(ConfigReader& reader, WeightStorage* out) {
  reader.ReadEnum("weights", out,
                  {{"replicated", WeightStorage::kReplicated},
                   {"zero2", WeightStorage::kZero2},
                   {"zero3", WeightStorage::kZero3}});
}

}  // namespace

absl::string_view Name(WeightStorage weights) {
  switch (weights) {
    case WeightStorage::kReplicated:
      return "replicated";
    case WeightStorage::kZero2:
      return "zero2";
    case WeightStorage::kZero3:
      return "zero3";
  }
  return "?";
}

absl::Status Read(const ConfigNode& node, OffloadConfig* out) {
  ConfigReader reader(node);
  for (const auto& [key, home] :
       {std::pair{"optimizer_state", &out->optimizer_state}, {"activations", &out->activations}}) {
    reader.ReadEnum(key, home, {{"device", MemoryHome::kDevice}, {"host", MemoryHome::kHost}});
    if (*home == MemoryHome::kDevice) continue;
    reader.Keep(reader.Error(key,
                             "found \"host\", which is not implemented yet: it takes a device "
                             "with memory of its own, and there is none yet; expected device"));
  }
  return reader.Finish();
}

absl::Status Read(const ConfigNode& node, EncoderParallel* out) {
  ConfigReader reader(node);
  reader.Read("sequence", &out->sequence, Between(1, kMost));
  reader.Keep(ReadThreshold(reader.Child("threshold"), &out->threshold));
  ReadWeights(reader, &out->weights);
  ReadRecompute(reader, &out->recompute);
  return reader.Finish();
}

absl::Status Read(const ConfigNode& node, ParallelConfig* out) {
  ConfigReader reader(node);
  reader.Read("workers", &out->workers, Between(1, kMost));
  reader.Read("pipeline", &out->pipeline, Between(1, kMost));
  reader.Read("chunks_per_rank", &out->chunks_per_rank, Between(1, kMost));
  reader.ReadEnum("schedule", &out->schedule,
                  {{"gpipe", ScheduleKind::kGPipe},
                   {"1f1b", ScheduleKind::k1F1B},
                   {"interleaved", ScheduleKind::kInterleaved},
                   {"zb_h1", ScheduleKind::kZbH1},
                   {"zb_v", ScheduleKind::kZbV}});
  if (out->schedule == ScheduleKind::kZbV && !reader.Has("chunks_per_rank")) {
    out->chunks_per_rank = 2;  // the only number it takes
  }
  reader.Read("layers", &out->layers, AtLeast(1));
  reader.Read("tensor", &out->tensor, Between(1, kMost));
  reader.Keep(ReadContext(reader.Child("context"), out));
  reader.Read("expert", &out->expert, Between(1, kMost));
  ReadRecompute(reader, &out->recompute);
  ReadWeights(reader, &out->weights);
  reader.ReadStruct("offload", &out->offload);
  reader.Keep(ReadJoint(reader.Child("joint"), out));
  reader.Keep(ReadReshard(reader.Child("reshard"), out));
  reader.ReadMap("encoders", &out->encoders);
  return reader.Finish();
}

ScheduleOptions ParallelConfig::ScheduleOf(int32_t microbatches,
                                           const std::vector<bool>& trains) const {
  ScheduleOptions options{.schedule = schedule,
                          .ranks = pipeline,
                          .chunks_per_rank = chunks_per_rank,
                          .microbatches = microbatches,
                          .joint = joint,
                          .q = q,
                          .groups_ahead = groups_ahead,
                          .row_rounds = staging < 1};
  for (const bool encoder_trains : trains) options.encoders.push_back({.trains = encoder_trains});
  return options;
}

}  // namespace omni::parallel
