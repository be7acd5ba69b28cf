#include "trainer/assemble.h"

#include <algorithm>
#include <set>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "runtime/base/status.h"
#include "runtime/ops/ops.h"

namespace omni::trainer {

using parallel::LossScales;
using parallel::MediaPack;
using parallel::ParameterSpec;
using parallel::SequenceContext;
using parallel::TokenPack;

namespace {

TensorView Scalar(ExecContext& ctx, DType dtype, double value) {
  if (dtype == DType::kFloat64) return UploadNew<double>(ctx, {&value, 1}, {1});
  const auto narrow = static_cast<float>(value);
  return UploadNew<float>(ctx, {&narrow, 1}, {1});
}

}  // namespace

absl::StatusOr<std::unique_ptr<MultimodalModel>> MultimodalModel::Create(
    const ConfigNode& section, const encoders::EncoderRegistry& registry,
    const std::vector<backbone::DecoderPart>& parts) {
  OMNI_CHECK(!parts.empty());
  ConfigReader reader(section);
  parallel::InitConfig init;
  reader.ReadStruct("init", &init);
  backbone::DecoderConfig decoder{.init = init};
  reader.ReadStruct("decoder", &decoder);
  reader.Require("decoder");
  const ConfigNode towers = reader.Child("encoders");
  parallel::LoraConfig lora;
  reader.ReadStruct("lora", &lora);
  reader.Child("from");  // where the sections came from: trainer/recipe
  reader.Child("family");
  if (!towers.is_null() && !towers.is_map()) {
    reader.Keep(towers.Error("expected a mapping from names to encoders"));
  }
  OMNI_RETURN_IF_ERROR(reader.Finish());

  std::unique_ptr<MultimodalModel> model(new MultimodalModel);
  for (const backbone::DecoderPart& part : parts) {
    model->chunks_.push_back(std::make_unique<backbone::Decoder>(decoder, part));
  }
  const std::vector<std::string> names =
      towers.is_null() ? std::vector<std::string>{} : towers.keys();
  for (const std::string& name : names) {
    const auto is_in_name = [](char c) { return absl::ascii_isalnum(c) || c == '_' || c == '-'; };
    if (name == "decoder" || name == "lora" || name.empty() ||
        !std::all_of(name.begin(), name.end(), is_in_name)) {
      return towers.Get(name).Error(
          "this name can't be an encoder's: it begins the names of parameters and of modules; "
          "expected letters, digits, \"_\" and \"-\", not decoder or lora");
    }
    OMNI_ASSIGN_OR_RETURN(
        std::unique_ptr<encoders::Encoder> encoder,
        registry.Create(towers.Get(name),
                        {.name = name, .output_hidden = decoder.hidden, .init = init}));
    if (encoder->num_deepstack() > decoder.layers) {
      return towers.Get(name).Error(
          absl::StrCat("gives deepstack features for ", encoder->num_deepstack(),
                       " decoder layers, model.decoder has ", decoder.layers));
    }
    model->encoders_.emplace_back(name, std::move(encoder));
  }
  // Looked for in the whole model, whatever of it lies here: names and errors are the same
  // everywhere.
  std::vector<ParameterSpec> all = model->EncoderParameters();
  for (ParameterSpec& spec : backbone::Decoder(decoder).Parameters())
    all.push_back(std::move(spec));
  std::set<std::string> here;
  for (const ParameterSpec& spec : model->BaseParameters()) here.insert(spec.path);
  model->modules_ = model->FindModules();
  if (lora.rank > 0) {
    auto targets = parallel::FindLoraTargets(lora, all);
    if (!targets.ok()) {
      return section.Get("lora").Get("targets").Error(targets.status().message());
    }
    model->lora_ = std::move(lora);
    for (parallel::LoraTarget& target : *targets) {
      const std::string module = "lora." + target.path.substr(0, target.path.find('.'));
      if (std::find(model->modules_.begin(), model->modules_.end(), module) ==
          model->modules_.end()) {
        model->modules_.push_back(module);
      }
      if (here.count(target.path) > 0) model->lora_targets_.push_back(std::move(target));
    }
    for (const parallel::LoraTarget& target : model->lora_targets_) {
      model->lora_adapters_.push_back(std::make_unique<LoraAdapter>(
          LoraAdapter{.a = {}, .b = {}, .parts = target.parts, .scale = model->lora_.scale()}));
    }
  }
  return model;
}

std::vector<ParameterSpec> MultimodalModel::Parameters() const {
  std::vector<ParameterSpec> specs = BaseParameters();
  for (const parallel::LoraTarget& target : lora_targets_) {
    specs.push_back(target.a);
    specs.push_back(target.b);
  }
  return specs;
}

std::vector<ParameterSpec> MultimodalModel::EncoderParameters() const {
  std::vector<ParameterSpec> specs;
  for (const auto& [name, encoder] : encoders_) {
    const std::vector<ParameterSpec> own = encoder->Parameters();
    specs.insert(specs.end(), own.begin(), own.end());
  }
  return specs;
}

std::vector<ParameterSpec> MultimodalModel::BaseParameters() const {
  std::vector<ParameterSpec> specs = EncoderParameters();
  std::set<std::string> paths;
  for (const auto& chunk : chunks_) {
    for (ParameterSpec& spec : chunk->Parameters()) {
      if (paths.insert(spec.path).second) specs.push_back(std::move(spec));
    }
  }
  return specs;
}

std::vector<std::string> MultimodalModel::FindModules() const {
  std::vector<std::string> modules = {"decoder", "decoder.embedding"};
  if (!decoder().config().tied_embeddings) modules.push_back("decoder.head");
  for (const auto& [name, encoder] : encoders_) {
    modules.push_back(name);
    const std::vector<ParameterSpec> specs = encoder->Parameters();
    for (const char* projector : {".merger", ".projector"}) {
      const std::string module = absl::StrCat(name, projector);
      const bool exists = std::any_of(specs.begin(), specs.end(), [&](const ParameterSpec& spec) {
        return absl::StartsWith(spec.path, module + ".");
      });
      if (exists) modules.push_back(module);
    }
  }
  return modules;
}

std::string MultimodalModel::ModuleOf(const std::string& path) const {
  std::string best;
  for (const std::string& module : modules_) {
    if (absl::StartsWith(path, module + ".") && module.size() > best.size()) best = module;
  }
  OMNI_CHECK(!best.empty());
  return best;
}

void MultimodalModel::Bind(const parallel::ParameterStore& given) {
  parallel::ParameterStore store = given;
  for (size_t i = 0; i < lora_targets_.size(); ++i) {
    const parallel::LoraTarget& target = lora_targets_[i];
    lora_adapters_[i]->a = store.Get(target.a.path);
    lora_adapters_[i]->b = store.Get(target.b.path);
    Weight weight = store.Get(target.path);
    weight.lora = lora_adapters_[i].get();
    store.Put(target.path, weight);
  }
  for (const auto& [name, encoder] : encoders_) encoder->Bind(store);
  for (const auto& chunk : chunks_) chunk->Bind(store);
}

void MultimodalModel::BindSelectionBias(const TensorView& bias_LE) {
  for (const auto& chunk : chunks_) chunk->BindSelectionBias(bias_LE);
}

void MultimodalModel::CutLora(const std::vector<parallel::Placement>& placements) {
  for (const parallel::Placement& placement : placements) {
    for (size_t i = 0; i < lora_targets_.size(); ++i) {
      if (lora_targets_[i].path != placement.spec.path) continue;
      std::vector<LoraAdapter::Part>& own = lora_adapters_[i]->parts;
      own.clear();
      for (const LoraAdapter::Part& part : lora_targets_[i].parts) {
        int64_t row = 0;  // of the weight as it lies here
        const size_t row_dim =
            placement.spec.shape.size() - 2;  // behind the experts, if it has any
        for (const parallel::IndexRange& range : placement.shard.dims[row_dim]) {
          if (range.begin >= part.row_begin && range.end <= part.row_begin + part.num_rows) {
            own.push_back({.row_begin = row, .num_rows = range.size()});
          } else if (range.begin <= part.row_begin &&
                     part.row_begin + part.num_rows <=
                         range.end) {  // not cut: several parts in one
            own.push_back(
                {.row_begin = row + part.row_begin - range.begin, .num_rows = part.num_rows});
          }
          row += range.size();
        }
      }
      OMNI_CHECK_EQ(own.size(), lora_targets_[i].parts.size());
    }
  }
}

backbone::StageBoundary MultimodalModel::Embed(ExecContext& ctx, const SequenceContext& sequence,
                                               const MediaPacks& media) const {
  for (const auto& [name, pack] : media) {
    OMNI_CHECK(pack.items.empty() || encoder(name) != nullptr);
  }
  backbone::StageBoundary input{.hidden_TH = decoder().Embed(ctx, sequence)};
  for (const auto& [name, encoder] : encoders_) {
    const auto found = media.find(name);
    if (found == media.end()) continue;
    const MediaPack& pack = found->second;
    const encoders::EncoderOutput output = encoder->Encode(ctx, pack);
    const int64_t num_rows = output.rows_RH.value.size(0);
    OMNI_CHECK_EQ(num_rows, static_cast<int64_t>(pack.token_rows.size()));
    if (num_rows == 0) continue;
    const TensorView token_rows_R = UploadNew<int32_t>(ctx, pack.token_rows, {num_rows});
    input.hidden_TH = ScatterRows(ctx, input.hidden_TH, output.rows_RH, token_rows_R);
    OMNI_CHECK_EQ(static_cast<int32_t>(output.deepstack_RH.size()), encoder->num_deepstack());
    for (const Var& rows_RH : output.deepstack_RH) {
      const auto layer = static_cast<int32_t>(&rows_RH - output.deepstack_RH.data());
      input.deepstack.push_back({.layer = layer, .rows_RH = rows_RH, .token_rows_R = token_rows_R});
    }
  }
  return input;
}

TensorView MultimodalModel::NextLogits(ExecContext& ctx, const TokenPack& tokens,
                                       const MediaPacks& media, backbone::KvCache* cache) const {
  const SequenceContext sequence(tokens);
  const backbone::StageBoundary hidden =
      decoder().Continue(ctx, Embed(ctx, sequence, media), tokens, cache);
  const TensorView last_H = hidden.hidden_TH.value.Rows(tokens.num_tokens() - 1, 1);
  return decoder()
      .Logits(ctx, {.hidden_TH = {.value = last_H}})
      .Reshape({decoder().config().vocab});
}

TensorView MultimodalModel::Logits(ExecContext& ctx, const TokenPack& tokens,
                                   const MediaPacks& media) const {
  const SequenceContext sequence(tokens);
  return decoder().Logits(ctx, decoder().Forward(ctx, Embed(ctx, sequence, media), sequence));
}

MicrobatchResult MultimodalModel::ForwardMicrobatch(ExecContext& ctx, const TokenPack& tokens,
                                                    const MediaPacks& media,
                                                    const LossScales& scales) const {
  if (tokens.num_tokens() == 0) return {};
  const SequenceContext sequence(tokens);
  backbone::RoutingRecord record;
  const backbone::StageBoundary hidden =
      decoder().Forward(ctx, Embed(ctx, sequence, media), sequence, &record);
  const CrossEntropyResult loss = decoder().Loss(ctx, hidden, sequence, scales.loss_token);
  const backbone::DecoderConfig& config = decoder().config();
  return {
      .loss = loss.loss,
      .losses_T = loss.losses_T,
      .argmax_T = loss.argmax_T,
      .auxiliary = RouterLosses(ctx, config.moe, config.num_moe_layers(), record, sequence, scales),
      .expert_offsets = record.offsets_E1};
}

MicrobatchResult MultimodalModel::ForwardBackward(ExecContext& ctx, const TokenPack& tokens,
                                                  const MediaPacks& media,
                                                  const LossScales& scales) const {
  OMNI_CHECK(ctx.tape != nullptr);
  ctx.tape->Reset();
  const MicrobatchResult result = ForwardMicrobatch(ctx, tokens, media, scales);
  if (tokens.num_tokens() == 0) return result;
  std::vector<Var> outputs = {{.value = result.losses_T}, {.value = result.argmax_T}};
  std::vector<Tape::RootGrad> roots;
  const auto add_root = [&](const Var& loss, double coefficient) {
    outputs.push_back(loss);
    if (!loss.needs_grad() || coefficient == 0.0) return;
    roots.push_back({.output = loss, .grad = Scalar(ctx, loss.value.dtype, coefficient)});
    ctx.tape->Save("loss.coefficient", NeededBy::kBackwardInput, roots.back().grad);
  };
  add_root(result.loss, 1.0);
  for (const backbone::AuxiliaryLoss& loss : result.auxiliary) {
    add_root(loss.value, loss.coefficient);
  }
  for (const TensorView& offsets_E1 : result.expert_offsets) outputs.push_back({offsets_E1});
  if (roots.empty()) return result;
  ctx.tape->EndForward(outputs);
  ctx.tape->Backward(ctx, roots);
  return result;
}

MicrobatchFlops MultimodalModel::Flops(const TokenPack& tokens, const MediaPacks& media) const {
  MicrobatchFlops flops;
  if (tokens.num_tokens() == 0) return flops;
  bool trains_encoder = false;
  for (const auto& [name, encoder] : encoders_) {
    const auto found = media.find(name);
    if (found == media.end() || found->second.items.empty()) continue;
    const FlopCount count = encoder->Flops(found->second.items);
    trains_encoder = trains_encoder || count.backward > 0;
    flops.encoders += count;
  }
  flops.decoder = decoder().Flops(SequenceContext(tokens), trains_encoder);
  return flops;
}

const encoders::Encoder* MultimodalModel::encoder(const std::string& name) const {
  for (const auto& [own, encoder] : encoders_) {
    if (own == name) return encoder.get();
  }
  return nullptr;
}

}  // namespace omni::trainer
