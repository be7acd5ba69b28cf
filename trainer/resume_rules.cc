#include "trainer/resume_rules.h"

#include <algorithm>
#include <set>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "runtime/base/config.h"
#include "runtime/base/status.h"
#include "trainer/recipe.h"

namespace omni::trainer {
namespace {

constexpr ResumeClass kFree = ResumeClass::kFree, kRestarts = ResumeClass::kRestarts,
                      kAllow = ResumeClass::kAllow, kNever = ResumeClass::kNever;

constexpr absl::string_view kModel = "another model: the weights would mean something else";
constexpr absl::string_view kInit = "nothing: the weights have their values";
constexpr absl::string_view kAtOnce = "from the next step";
constexpr absl::string_view kWindow = "from each lane's next window";
constexpr absl::string_view kWindowLost =
    "the rest of each lane's window is left out: it would be packed otherwise";
constexpr absl::string_view kLayout = "another layout of the same numbers";
constexpr absl::string_view kNumbers = "nothing in the numbers";
constexpr absl::string_view kMoments =
    "moments of a part trained anew start at 0; a part that is never trained now loses its own";
constexpr absl::string_view kPixels = "the towers get other pixels of the same media";
constexpr absl::string_view kWords = "the decoder reads other tokens for the same samples";

constexpr ResumeRule kRules[] = {
    {"", "name", kFree, "the new name on metrics"},

    {"model", "from", kFree, kInit},
    {"model", "family", kNever, kModel},
    {"model.init", "kind:fan_in std embedding_std projector_scale head_scale scale_residual", kFree,
     kInit},
    {"model.decoder",
     "hidden layers heads kv_heads head_dim ffn vocab norm_eps qkv_bias qk_norm tied_embeddings",
     kNever, kModel},
    {"model.decoder.rope", "theta layout:chunked sections", kNever, kModel},
    {"model.decoder.rope.scaling",
     "kind:none factor low_frequency_factor high_frequency_factor original_positions", kNever,
     kModel},
    {"model.decoder.init",
     "kind:fan_in std embedding_std projector_scale head_scale scale_residual", kFree, kInit},
    {"model.decoder.moe",
     "experts top_k ffn normalize_top_k shared_ffn shared_gate sparse_step dense_layers", kNever,
     kModel},
    {"model.decoder.moe",
     "balance_loss.mode:per_sequence balance_loss.coefficient z_loss bias_update_rate", kFree,
     kAtOnce},
    {"model.decoder.moe", "bias_update_rate=0", kNever,
     "another model: with a rate of 0 there is no selection bias"},
    {"model.encoders", "*", kNever, "another model: training.init_from takes the other weights"},
    {"model.encoders.*",
     "kind hidden layers heads ffn norm_eps rope_theta attention_bias mlp_bias window "
     "full_attention_layers position_side deepstack_layers adapter channels patch temporal_patch "
     "merge mean std mel_bands max_positions chunk_frames window_frames",
     kNever, kModel},
    {"model.encoders.*",
     "init.kind:fan_in init.std init.embedding_std init.projector_scale "
     "init.head_scale init.scale_residual",
     kFree, kInit},
    {"model.lora", "rank alpha targets", kNever, kModel},

    {"data", "seed lanes", kRestarts, "every source goes on with its next epoch, in another order"},
    {"data", "sequence_length window", kFree, kWindow},
    {"data", "micro_batch_sequences", kFree, kLayout},
    {"data", "overlong:drop", kRestarts, kWindowLost},
    {"data", "tokenizer template:chatml text_has_specials", kAllow, kWords},
    {"data.special_tokens",
     "im_start im_end header_end vision_start vision_end image_pad video_pad audio_start audio_end "
     "audio_pad bos eos",
     kAllow, kWords},
    {"data", "position_rule:qwen2_5_max positions_per_second", kNever,
     "another model: tokens would stand at other positions"},
    {"data", "vision_encoder audio_encoder", kNever, "media would go through another tower"},
    {"data.image", "min_pixels max_pixels", kRestarts, kWindowLost},
    {"data.image", "resize:fast alpha:white", kAllow, kPixels},
    {"data.video",
     "fps min_frames max_frames min_pixels_per_frame max_pixels_per_frame min_pixels_per_clip "
     "max_pixels_per_clip",
     kRestarts, kWindowLost},
    {"data.video", "resize:fast frame_rule:even frame_text:none budget:none", kAllow,
     "the towers get other frames of the same clips"},
    {"data.audio", "mel_bands", kNever, "another model: the tower's input"},
    {"data.audio", "max_seconds", kRestarts, kWindowLost},
    {"data.audio", "mask_frames mask_bands", kFree, kAtOnce},
    {"data.loader", "threads prefetch_steps memory_mib retry_s", kFree, kNumbers},
    {"data", "max_broken", kFree, kNumbers},
    {"data.sources", "*", kRestarts,
     "a new source begins with its first epoch; a window that draws from one that is gone is left "
     "out"},
    {"data.sources.*", "path", kRestarts,
     "kept where as many samples and bytes are there; else the source goes on with its next "
     "epoch"},
    {"data.sources.*", "weight", kFree, kWindow},
    {"data.sources.*", "video_fps", kRestarts, kWindowLost},
    {"data.phases.*", "until_step until_tokens weights lanes sequence_length", kFree, kWindow},
    {"data.eval", "*", kFree, "from the next evaluation"},
    {"data.eval.*", "path max_samples video_fps group_by", kFree, "from the next evaluation"},

    {"training", "steps", kFree,
     "the schedule is that of the new length: a jump of the learning rate is said"},
    {"training", "seed", kFree, kInit},
    {"training", "dtype:fp32", kAllow, "weights and moments are rounded to it"},
    {"training.optimizer", "kind:adamw", kRestarts,
     "moments of the parts that it updates otherwise start at 0"},
    {"training.optimizer",
     "lr betas eps weight_decay momentum newton_schulz_steps clip max_skipped_steps", kFree,
     kAtOnce},
    {"training.schedule", "kind:cosine warmup_steps final_fraction decay_steps", kFree,
     "a jump of the learning rate is said"},
    {"training.modules.*", "frozen:false", kRestarts, kMoments},
    {"training.modules.*", "lr_scale:1", kFree, kAtOnce},
    {"training.phases.*", "until_step until_tokens", kRestarts, kMoments},
    {"training.phases.*",
     "lr final_lr schedule.kind:cosine schedule.warmup_steps schedule.final_fraction "
     "schedule.decay_steps",
     kFree, "a jump of the learning rate is said"},
    {"training.phases.*.modules.*", "frozen", kRestarts, kMoments},
    {"training.phases.*.modules.*", "lr_scale", kFree, kAtOnce},
    {"training", "eval_every eval_at_end", kFree, kNumbers},
    {"training.checkpoint", "every keep export:none", kFree, kNumbers},
    {"training", "init_from init_optimizer", kFree,
     "nothing: read where a run has no checkpoint yet"},

    {"parallel",
     "workers pipeline chunks_per_rank schedule:1f1b layers tensor context.degree "
     "context.kind:ring "
     "context.threshold expert recompute:none weights:replicated offload.optimizer_state:device "
     "offload.activations:device "
     "joint.kind:uniform joint.q joint.groups_ahead reshard.staging reshard.whole_mib",
     kFree, kLayout},
    {"parallel.encoders.*", "sequence threshold weights:replicated recompute:none", kFree, kLayout},

    {"runtime", "device:cpu threads reserve_gib comm:auto gpu_comm:auto deadline_s", kFree, kNumbers},
    {"runtime.fault", "kind rank step at", kFree, "for tests"},
    {"observe", "prometheus metrics_host metrics_port tensorboard trace_steps", kFree, kNumbers},
};

// The last component of an item's own key.
constexpr absl::string_view kItem = "*";

// `pattern` with * for any text but the empty one: names may have dots.
bool Matches(absl::string_view pattern, absl::string_view text) {
  const size_t star = pattern.find('*');
  if (star == absl::string_view::npos) return pattern == text;
  if (!absl::ConsumePrefix(&text, pattern.substr(0, star))) return false;
  pattern.remove_prefix(star + 1);
  for (size_t length = 1; length <= text.size(); ++length) {
    if (Matches(pattern, text.substr(length))) return true;
  }
  return false;
}

std::string Join(absl::string_view section, absl::string_view key) {
  return section.empty() ? std::string(key) : absl::StrCat(section, ".", key);
}

// "kind" of "kind:adamw", where it is adamw unless somebody says something else.
absl::string_view KeyOf(absl::string_view word) { return word.substr(0, word.find(':')); }
absl::string_view DefaultOf(absl::string_view word) {
  return word == KeyOf(word) ? "" : word.substr(KeyOf(word).size() + 1);
}

// The rule whose pattern is the longest of those that match. `absent`: what the key comes to where
// nobody says.
const ResumeRule* RuleFor(const std::string& key, std::string* absent = nullptr) {
  const ResumeRule* found = nullptr;
  size_t length = 0;
  for (const ResumeRule& rule : kRules) {
    // A whole item is asked for as "data.sources.NAME.*", an item's key never matches it.
    if (rule.keys == kItem) {
      if (absl::EndsWith(key, ".*") && absl::StartsWith(key, absl::StrCat(rule.section, "."))) {
        return &rule;
      }
      continue;
    }
    for (const absl::string_view word : absl::StrSplit(rule.keys, ' ')) {
      const std::string pattern = Join(rule.section, KeyOf(word));
      if (pattern.size() > length && Matches(pattern, key)) {
        found = &rule;
        length = pattern.size();
        if (absent != nullptr) *absent = std::string(DefaultOf(word));
      }
    }
  }
  return found;
}

const ResumeRule* RuleFor(const std::string& key, const std::string& was, const std::string& is) {
  if (was == "0" || is == "0") {
    if (const ResumeRule* rule = RuleFor(key + "=0")) return rule;
  }
  return RuleFor(key);
}

// Lists whose items have names, and maps of sections: items come and go as a whole.
constexpr absl::string_view kItems[] = {"data.sources", "data.eval", "model.encoders"};

// "data.sources.image" of "data.sources.image.path"; "" of keys that are in no item.
std::string ItemOf(const std::string& key, const std::set<std::string>& items) {
  for (const std::string& item : items) {
    if (absl::StartsWith(key, item + ".")) return item;
  }
  return "";
}

// Items of `values`: those that have the key which each of them has.
std::set<std::string> ItemsOf(const RecipeValues& values) {
  std::set<std::string> items;
  for (const auto& [key, value] : values) {
    for (const absl::string_view list : kItems) {
      absl::string_view item = key;
      if (!absl::StartsWith(item, absl::StrCat(list, "."))) continue;
      const absl::string_view last = list == "model.encoders" ? ".kind" : ".path";
      if (absl::ConsumeSuffix(&item, last) && !absl::EndsWith(item, ".init")) {
        items.emplace(item);
      }
    }
  }
  return items;
}

std::string Shown(const std::string& value) { return value.empty() ? "nothing" : value; }

}  // namespace

absl::string_view Name(ResumeClass kind) {
  switch (kind) {
    case ResumeClass::kFree:
      return "free";
    case ResumeClass::kRestarts:
      return "restarts";
    case ResumeClass::kAllow:
      return "needs --allow";
    case ResumeClass::kNever:
      return "never";
  }
  return "?";
}

absl::Span<const ResumeRule> ResumeRules() { return kRules; }

std::string ResumeTable() {
  std::string table = "| section | keys | class | what happens |\n|---|---|---|---|\n";
  for (const ResumeRule& rule : kRules) {
    std::string keys;
    for (const absl::string_view word : absl::StrSplit(rule.keys, ' ')) {
      absl::StrAppend(&keys, keys.empty() ? "`" : " `", KeyOf(word), "`");
    }
    absl::StrAppend(&table, "| ", rule.section.empty() ? "" : absl::StrCat("`", rule.section, "`"),
                    " | ", rule.keys == kItem ? "a whole item" : keys, " | ", Name(rule.kind),
                    " | ", rule.effect, " |\n");
  }
  return table;
}

absl::StatusOr<RecipeValues> ValuesOf(const std::string& yaml, const std::string& file_name) {
  OMNI_ASSIGN_OR_RETURN(const RecipeValues read, ReadRecipeValues(yaml, file_name));
  // Items by their names instead of their places.
  RecipeValues values;
  for (const auto& [key, value] : read) {
    std::string named = key;
    for (const char* list : {"data.sources.", "data.eval."}) {
      absl::string_view rest = key;
      if (!absl::ConsumePrefix(&rest, list)) continue;
      const absl::string_view place = rest.substr(0, rest.find('.'));
      const auto name = read.find(absl::StrCat(list, place, ".name"));
      if (name == read.end()) continue;
      named = rest == absl::StrCat(place, ".name")
                  ? ""
                  : absl::StrCat(list, name->second, rest.substr(place.size()));
    }
    if (!named.empty()) values[named] = value;
  }
  return values;
}

std::vector<RecipeChange> DiffRecipes(const RecipeValues& was, const RecipeValues& is) {
  std::set<std::string> keys, one_sided;
  for (const RecipeValues* values : {&was, &is}) {
    for (const auto& [key, value] : *values) keys.insert(key);
  }
  const std::set<std::string> old_items = ItemsOf(was), new_items = ItemsOf(is);
  std::set_symmetric_difference(old_items.begin(), old_items.end(), new_items.begin(),
                                new_items.end(), std::inserter(one_sided, one_sided.end()));
  std::vector<RecipeChange> changes;
  const auto value_of = [](const RecipeValues& values, const std::string& key,
                           const std::string& absent) {
    const auto found = values.find(key);
    return found == values.end() || found->second.empty() ? absent : found->second;
  };
  for (const std::string& key : keys) {
    if (const std::string item = ItemOf(key, one_sided); !item.empty()) {
      if (!changes.empty() && changes.back().key == item) continue;
      const std::string path = absl::StartsWith(item, "model.") ? ".kind" : ".path";
      changes.push_back({.key = item,
                         .was = value_of(was, item + path, ""),
                         .is = value_of(is, item + path, ""),
                         .rule = RuleFor(item + ".*")});
      continue;
    }
    std::string absent;
    (void)RuleFor(key, &absent);
    RecipeChange change = {
        .key = key, .was = value_of(was, key, absent), .is = value_of(is, key, absent)};
    if (change.was == change.is) continue;
    change.rule = RuleFor(key, change.was, change.is);
    changes.push_back(std::move(change));
  }
  return changes;
}

std::string Describe(absl::Span<const RecipeChange> changes) {
  std::string text;
  for (const RecipeChange& change : changes) {
    absl::StrAppend(
        &text, text.empty() ? "" : "\n", "  ", change.key, ": ", Shown(change.was), " -> ",
        Shown(change.is), "  (", Name(change.kind()), ": ",
        change.rule == nullptr ? "not in the table of docs/resuming.md" : change.rule->effect, ")");
  }
  return text;
}

namespace {

bool Allows(absl::Span<const std::string> allowed, const std::string& key) {
  return std::any_of(allowed.begin(), allowed.end(), [&](const std::string& word) {
    return key == word || absl::StartsWith(key, word + ".");
  });
}

// Every word of --allow is a key, or a section with keys, that can be allowed.
absl::Status CheckAllowed(absl::Span<const std::string> allowed, ResumeClass most) {
  std::vector<std::string> known;
  for (const ResumeRule& rule : kRules) {
    if (rule.kind != kAllow && !(most == kNever && rule.kind == kNever)) continue;
    for (const absl::string_view word : absl::StrSplit(rule.keys, ' ')) {
      known.push_back(Join(rule.section, absl::StripSuffix(KeyOf(word), "=0")));
    }
  }
  for (const std::string& word : allowed) {
    const bool is_known = std::any_of(known.begin(), known.end(), [&](const std::string& key) {
      return Matches(key, word) || absl::StartsWith(key, word + ".");
    });
    if (is_known) continue;
    const ResumeRule* rule = RuleFor(word);
    const std::string nearest = NearestName(word, known);
    return absl::InvalidArgumentError(absl::StrCat(
        "--allow ", word, ": ",
        rule == nullptr
            ? absl::StrCat("no key that can be allowed",
                           nearest.empty() ? "" : absl::StrCat("; did you mean \"", nearest, "\"?"))
        : rule->kind == kNever ? absl::StrCat("can't be allowed: ", rule->effect)
                               : "needs no leave"));
  }
  return absl::OkStatus();
}

std::string Found(const RecipeChange& change) {
  return absl::StrCat(change.key, ": found ", Shown(change.is), ", the run has ",
                      Shown(change.was));
}

// "model.decoder.heads: found 4, the run has 2 (another model); likewise ...", of all in one line.
std::string FoundAll(const std::vector<const RecipeChange*>& changes) {
  std::string text =
      absl::StrCat(Found(*changes[0]), " (",
                   changes[0]->rule == nullptr ? "not in the table of docs/resuming.md"
                                               : changes[0]->rule->effect,
                   ")");
  for (size_t i = 1; i < changes.size(); ++i) {
    absl::StrAppend(&text, i == 1 ? "; likewise " : ", ", Found(*changes[i]));
  }
  return text;
}

}  // namespace

absl::Status CheckChanges(absl::Span<const RecipeChange> changes,
                          absl::Span<const std::string> allowed, const std::string& run_dir) {
  OMNI_RETURN_IF_ERROR(CheckAllowed(allowed, kAllow));
  std::vector<const RecipeChange*> never, unasked;
  for (const RecipeChange& change : changes) {
    if (change.kind() == kNever) never.push_back(&change);
    if (change.kind() == kAllow && !Allows(allowed, change.key)) unasked.push_back(&change);
  }
  if (!never.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("run directory ", run_dir, " can't go on with this recipe: ", FoundAll(never),
                     "; expected the run's values, or another --run-dir (training.init_from takes "
                     "weights there)"));
  }
  if (unasked.empty()) return absl::OkStatus();
  std::string flags;
  for (const RecipeChange* change : unasked) absl::StrAppend(&flags, " --allow ", change->key);
  return absl::InvalidArgumentError(absl::StrCat(
      "run directory ", run_dir, " goes on with this recipe only if told to: ", FoundAll(unasked),
      "; expected the run's values, or", flags));
}

std::vector<RecipeChange> ChangesOfModel(const RecipeValues& was, const RecipeValues& is) {
  std::vector<RecipeChange> changes = DiffRecipes(was, is);
  const auto counts = [](const RecipeChange& change) {
    const bool is_part = change.key == "model.family" ||
                         absl::StartsWith(change.key, "model.lora.") ||
                         (change.rule != nullptr && change.rule->keys == kItem);
    return change.kind() == kNever && !is_part;
  };
  changes.erase(std::remove_if(changes.begin(), changes.end(),
                               [&](const RecipeChange& change) { return !counts(change); }),
                changes.end());
  return changes;
}

absl::Status CheckModelChanges(absl::Span<const RecipeChange> changes,
                               absl::Span<const std::string> allowed, const std::string& from) {
  OMNI_RETURN_IF_ERROR(CheckAllowed(allowed, kNever));
  for (const RecipeChange& change : changes) {
    if (Allows(allowed, change.key)) continue;
    return absl::InvalidArgumentError(absl::StrCat(
        "training.init_from: ", from, " has weights of another model: ", change.key, ": found ",
        Shown(change.is), ", there it is ", Shown(change.was), "; expected the same, or --allow ",
        change.key, " if that is meant and shapes agree"));
  }
  return absl::OkStatus();
}

}  // namespace omni::trainer
