#include <numeric>

#include "absl/strings/str_join.h"
#include "backbone/decoder.h"
#include "runtime/base/config_record.h"
#include "runtime/base/status.h"

namespace omni::backbone {
namespace {

absl::Status ReadRopeScaling(const ConfigNode& node, RopeScaling* out) {
  if (node.is_null()) return absl::OkStatus();
  using Kind = RopeScaling::Kind;
  ConfigReader reader(node);
  reader.ReadEnum("kind", &out->kind,
                  {{"none", Kind::kNone}, {"linear", Kind::kLinear}, {"llama3", Kind::kLlama3}});
  reader.Require("kind");
  reader.Read("factor", &out->factor, AtLeast(1));
  reader.Read("low_frequency_factor", &out->low_frequency_factor, Positive());
  reader.Read("high_frequency_factor", &out->high_frequency_factor, Positive());
  reader.Read("original_positions", &out->original_positions, AtLeast(1));
  if (out->high_frequency_factor <= out->low_frequency_factor) {
    reader.Keep(reader.Error("high_frequency_factor",
                             absl::StrCat("found ", out->high_frequency_factor,
                                          ", expected more than low_frequency_factor (",
                                          out->low_frequency_factor, ")")));
  }
  return reader.Finish();
}

absl::Status ReadRope(const ConfigNode& node, RopeOptions* out) {
  if (node.is_null()) return absl::OkStatus();
  ConfigReader reader(node);
  reader.Read("theta", &out->theta, Positive());
  reader.ReadEnum("layout", &out->layout,
                  {{"chunked", RopeLayout::kChunked},
                   {"interleaved", RopeLayout::kInterleaved},
                   {"per_axis", RopeLayout::kPerAxis}});
  reader.Read("sections", &out->sections, AtLeast(0));
  reader.Keep(ReadRopeScaling(reader.Child("scaling"), &out->scaling));
  return reader.Finish();
}

// What the layers of the decoder have to say to its `moe` section.
absl::Status CheckMoe(const ConfigNode& node, const DecoderConfig& config) {
  if (config.moe.experts == 0) return absl::OkStatus();
  for (const int32_t layer : config.moe.dense_layers) {
    if (layer >= config.layers) {
      return node.Get("dense_layers")
          .Error(absl::StrCat("found layer ", layer, ", expected 0 to ", config.layers - 1));
    }
  }
  if (config.num_moe_layers() == 0) {
    return node.Error(absl::StrCat("sparse_step ", config.moe.sparse_step, " and ",
                                   config.moe.dense_layers.size(), " dense_layers leave none of ",
                                   config.layers, " layers with experts"));
  }
  return absl::OkStatus();
}

}  // namespace

int32_t DecoderConfig::num_moe_layers() const {
  int32_t count = 0;
  for (int32_t i = 0; i < layers; ++i) count += moe.IsMoe(i);
  return count;
}

parallel::DecoderShape DecoderConfig::shape() const {
  return {.layers = layers,
          .heads = heads,
          .kv_heads = kv_heads,
          .experts = moe.experts,
          .ffn = num_moe_layers() < layers ? ffn : 0,
          .shared_ffn = moe.shared_ffn,
          .vocab = vocab};
}

absl::Status Read(const ConfigNode& node, DecoderConfig* out) {
  ConfigReader reader(node);
  for (const auto& [key, value] : {std::pair{"hidden", &out->hidden},
                                   {"layers", &out->layers},
                                   {"heads", &out->heads},
                                   {"ffn", &out->ffn},
                                   {"vocab", &out->vocab}}) {
    reader.Read(key, value, AtLeast(1));
    if (*value == 0) reader.Require(key);
  }
  if (!reader.Has("kv_heads") && out->kv_heads == 0) out->kv_heads = out->heads;
  reader.Read("kv_heads", &out->kv_heads, AtLeast(1));
  const bool derive_head_dim = !reader.Has("head_dim") && out->head_dim == 0;
  reader.Read("head_dim", &out->head_dim, AtLeast(1));
  reader.Read("norm_eps", &out->norm_eps, Positive());
  reader.Read("qkv_bias", &out->qkv_bias);
  reader.Read("qk_norm", &out->qk_norm);
  reader.Read("tied_embeddings", &out->tied_embeddings);
  reader.Keep(ReadRope(reader.Child("rope"), &out->rope));
  reader.ReadStruct("moe", &out->moe);
  reader.ReadStruct("init", &out->init);
  OMNI_RETURN_IF_ERROR(reader.Finish());  // the checks below divide
  OMNI_RETURN_IF_ERROR(CheckMoe(node.Get("moe"), *out));

  if (derive_head_dim) {
    if (out->hidden % out->heads != 0) {
      return reader.Error("heads", absl::StrCat("hidden ", out->hidden, " is not a multiple of ",
                                                out->heads, " heads, and there is no head_dim"));
    }
    out->head_dim = out->hidden / out->heads;
    NoteConfigValue(node.path() + ".head_dim", absl::StrCat(out->head_dim));
  }
  if (out->heads % out->kv_heads != 0) {
    return reader.Error("kv_heads", absl::StrCat(out->heads, " heads are not a multiple of ",
                                                 out->kv_heads, " kv_heads"));
  }
  if (out->head_dim % 2 != 0) {
    return reader.Error("head_dim", absl::StrCat(out->head_dim, " is odd, but RoPE turns pairs"));
  }
  std::vector<int32_t>& sections = out->rope.sections;
  if (sections.empty()) sections = {out->head_dim / 2};
  const int32_t sum = std::accumulate(sections.begin(), sections.end(), 0);
  const ConfigNode rope = node.Get("rope").Get("sections");
  if (sections.size() > 3) {
    return rope.Error(absl::StrCat(sections.size(),
                                   " sections, expected at most 3: temporal, "
                                   "height, width"));
  }
  if (sum != out->head_dim / 2) {
    return rope.Error(absl::StrCat("[", absl::StrJoin(sections, ", "), "] sum to ", sum,
                                   ", expected head_dim / 2 = ", out->head_dim / 2));
  }
  return absl::OkStatus();
}

}  // namespace omni::backbone
