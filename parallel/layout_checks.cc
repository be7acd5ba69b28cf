#include "parallel/layout_checks.h"

#include <algorithm>
#include <functional>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "runtime/base/status.h"

namespace omni::parallel {
namespace {

constexpr int64_t kMostWorkers = 65536;

// "; 2 and 4 fit": the values next to `found` in [1, most] that do; "" if none does.
std::string Nearest(int64_t found, int64_t most, const std::function<bool(int64_t)>& fits) {
  std::vector<int64_t> values;
  for (int64_t value = std::min(found - 1, most); value >= 1; --value) {
    if (!fits(value)) continue;
    values.push_back(value);
    break;
  }
  for (int64_t value = found + 1; value <= most; ++value) {
    if (!fits(value)) continue;
    values.push_back(value);
    break;
  }
  if (values.empty()) return "";
  return absl::StrCat("; ", absl::StrJoin(values, " and "), values.size() == 1 ? " fits" : " fit");
}

// "found 3, which does not divide the ranks of a stage (8)".
std::string DoesNotDivide(int32_t found, absl::string_view what, int32_t whole) {
  return absl::StrCat("found ", found, ", which does not divide ", what, " (", whole, ")");
}

struct Width {
  const char* key;
  int32_t size;
};
// What tensor ranks cut into parts that need not be equal, but each must have one.
std::vector<Width> WidthsOf(const DecoderShape& decoder) {
  std::vector<Width> widths;
  for (const Width& width : {Width{"model.decoder.ffn", decoder.ffn},
                             Width{"model.decoder.moe.shared_ffn", decoder.shared_ffn},
                             Width{"model.decoder.vocab", decoder.vocab}}) {
    if (width.size > 0) widths.push_back(width);
  }
  return widths;
}

// What tensor ranks would say to so many of them; "" if it fits.
std::string WrongTensor(int64_t tensor, const DecoderShape& decoder) {
  const auto found = static_cast<int32_t>(tensor);
  if (decoder.heads % tensor != 0) {
    return DoesNotDivide(found, "model.decoder.heads", decoder.heads);
  }
  if (decoder.kv_heads == 0 || (decoder.kv_heads % tensor != 0 && tensor % decoder.kv_heads != 0)) {
    return absl::StrCat("found ", tensor,
                        "; it must divide, or be a multiple of, model.decoder.kv_heads (",
                        decoder.kv_heads, ")");
  }
  for (const Width& width : WidthsOf(decoder)) {
    if (width.size >= tensor) continue;
    return absl::StrCat("found ", tensor, ", more than ", width.key, " (", width.size,
                        "), which is cut among them");
  }
  return "";
}

absl::Status CheckTensor(const ConfigNode& section, int32_t tensor, const DecoderShape& decoder) {
  const std::string wrong = WrongTensor(tensor, decoder);
  if (wrong.empty()) return absl::OkStatus();
  return section.Get("tensor").Error(absl::StrCat(
      wrong, Nearest(tensor, decoder.heads,
                     [&](int64_t value) { return WrongTensor(value, decoder).empty(); })));
}

absl::Status CheckExpert(const ConfigNode& section, const ParallelConfig& config,
                         const DecoderShape& decoder) {
  const int32_t found = config.expert, experts = decoder.experts, ranks = config.stage_ranks();
  if (found == 1) return absl::OkStatus();
  const ConfigNode node = section.Get("expert");
  if (experts == 0) {
    return node.Error(
        absl::StrCat("found ", found, ", but model.decoder has no experts (moe); 1 fits"));
  }
  const std::string nearest = Nearest(found, std::min(experts, ranks), [&](int64_t value) {
    return experts % value == 0 && ranks % value == 0;
  });
  if (experts % found != 0) {
    return node.Error(
        absl::StrCat(DoesNotDivide(found, "model.decoder.moe.experts", experts), nearest));
  }
  if (ranks % found != 0) {
    return node.Error(absl::StrCat(DoesNotDivide(found, "the ranks of a stage", ranks), nearest));
  }
  return absl::OkStatus();
}

absl::Status CheckEncoder(const ConfigNode& node, const EncoderParallel& encoder, int32_t ranks) {
  if (ranks % encoder.sequence != 0) {
    return node.Get("sequence")
        .Error(absl::StrCat(
            DoesNotDivide(encoder.sequence, "the ranks of a stage", ranks),
            Nearest(encoder.sequence, ranks, [&](int64_t value) { return ranks % value == 0; })));
  }
  if (encoder.weights != WeightStorage::kReplicated && encoder.sequence == 1) {
    return node.Get("weights").Error(absl::StrCat(
        "found ", Name(encoder.weights),
        ", which shares weights out within a sequence group, but sequence is 1; expected "
        "replicated, or a sequence",
        ranks == 1 ? " over several ranks of a stage, which has 1"
                   : Nearest(1, ranks, [&](int64_t value) { return ranks % value == 0; })));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckRanks(const ConfigNode& section, const ParallelConfig& config) {
  const int64_t stage = int64_t{config.context} * config.tensor;
  const int64_t replica = stage * config.pipeline;  // each is 65536 at most
  if (config.workers % replica == 0) return absl::OkStatus();
  return section.Get("workers").Error(absl::StrCat(
      "found ", config.workers, ", expected a multiple of pipeline ", config.pipeline,
      " x context ", config.context, " x tensor ", config.tensor, " = ", replica,
      replica > kMostWorkers ? absl::StrCat("; there are ", kMostWorkers, " at most")
                             : Nearest(config.workers, kMostWorkers,
                                       [&](int64_t value) { return value % replica == 0; })));
}

absl::Status CheckDecoderFits(const ConfigNode& section, const ParallelConfig& config,
                              const DecoderShape& decoder) {
  OMNI_RETURN_IF_ERROR(CheckTensor(section, config.tensor, decoder));
  return CheckExpert(section, config, decoder);
}

absl::Status CheckSchedule(const ConfigNode& section, const ParallelConfig& config) {
  // One bound after the other, so that each is said of its own key.
  ScheduleOptions options = config.ScheduleOf(1, std::vector<bool>(1, true));
  options.q = options.ranks = 1;
  const auto check = [&](const ConfigNode& node) {
    const absl::Status status = Check(options);
    return status.ok() ? status : node.Error(status.message());
  };
  OMNI_RETURN_IF_ERROR(check(section.Get("chunks_per_rank")));
  options.ranks = config.pipeline;
  OMNI_RETURN_IF_ERROR(check(section.Get("pipeline")));
  options.q = config.q;
  return check(section.Get("joint").Get("q"));
}

absl::Status CheckChunks(const ConfigNode& section, const ParallelConfig& config, int32_t layers) {
  const int64_t num_chunks = int64_t{config.pipeline} * config.chunks_per_rank;
  if (config.layers.empty()) {
    if (num_chunks <= layers) return absl::OkStatus();
    const int64_t most = layers / config.chunks_per_rank;
    return section.Get("pipeline")
        .Error(absl::StrCat("pipeline ", config.pipeline, " x chunks_per_rank ",
                            config.chunks_per_rank, " makes ", num_chunks,
                            " chunks, more than model.decoder.layers (", layers, ")",
                            most > 0 ? absl::StrCat("; pipeline ", most, " fits") : ""));
  }
  const int64_t sum = std::accumulate(config.layers.begin(), config.layers.end(), int64_t{0});
  if (static_cast<int64_t>(config.layers.size()) == num_chunks && sum == layers) {
    return absl::OkStatus();
  }
  return section.Get("layers").Error(
      absl::StrCat("found ", config.layers.size(), " numbers with sum ", sum, ", expected ",
                   num_chunks, " (one a chunk) with sum ", layers, " (model.decoder.layers)"));
}

absl::Status CheckEncoders(const ConfigNode& section, const ParallelConfig& config,
                           const std::vector<std::string>& encoders) {
  const ConfigNode node = section.Get("encoders");
  for (const auto& [name, wishes] : config.encoders) {
    if (std::find(encoders.begin(), encoders.end(), name) == encoders.end()) {
      const std::string nearest = NearestName(name, encoders);
      return node.Get(name).Error(absl::StrCat(
          "no encoder \"", name, "\"",
          !nearest.empty()   ? absl::StrCat("; did you mean \"", nearest, "\"?")
          : encoders.empty() ? "; the model has none"
                             : absl::StrCat("; there are ", absl::StrJoin(encoders, ", "))));
    }
    OMNI_RETURN_IF_ERROR(CheckEncoder(node.Get(name), wishes, config.stage_ranks()));
  }
  return absl::OkStatus();
}

}  // namespace omni::parallel
