#include "dataloader/bpe/tokenizer_json.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>
#include <unordered_map>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "dataloader/bpe/json_view.h"
#include "dataloader/bpe/pattern.h"
#include "dataloader/bpe/unicode.h"
#include "runtime/base/status.h"

namespace omni::dataloader {
namespace {

using Ids = std::unordered_map<std::string, int32_t>;

// GPT-2's, which ByteLevel applies with use_regex.
constexpr char kByteLevelPattern[] =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

constexpr int64_t kMaxId = (int64_t{1} << 24) - 1;

absl::StatusOr<std::string> TypeOf(const JsonView& node) {
  OMNI_RETURN_IF_ERROR(node.ExpectObject());
  return node["type"].String();
}

absl::Status ReadNormalizer(const JsonView& node, TokenizerJson* out) {
  if (node.is_null()) return absl::OkStatus();
  OMNI_ASSIGN_OR_RETURN(const std::string type, TypeOf(node));
  if (type == "NFC") {
    out->nfc = true;
    return node.ExpectKeys({"type"});
  }
  if (type != "Sequence") return node["type"].Unsupported("null, NFC or a Sequence of NFC");
  OMNI_RETURN_IF_ERROR(node.ExpectKeys({"type", "normalizers"}));
  OMNI_ASSIGN_OR_RETURN(const auto parts, node["normalizers"].Items());
  for (const JsonView& part : parts) {
    OMNI_ASSIGN_OR_RETURN(const std::string part_type, TypeOf(part));
    if (part_type != "NFC") return part["type"].Unsupported("NFC");
    OMNI_RETURN_IF_ERROR(ReadNormalizer(part, out));
  }
  return absl::OkStatus();
}

absl::Status AddSplit(const JsonView& node, std::string pattern, bool removes_matches,
                      bool removes_others, TokenizerJson* out) {
  if (const absl::Status status = Pattern::Compile(pattern).status(); !status.ok()) {
    return node.Error(status.message());
  }
  out->splits.push_back({std::move(pattern), removes_matches, removes_others});
  return absl::OkStatus();
}

absl::Status ReadSplit(const JsonView& node, TokenizerJson* out) {
  OMNI_RETURN_IF_ERROR(node.ExpectKeys({"type", "pattern", "behavior", "invert"}));
  OMNI_ASSIGN_OR_RETURN(const std::string behavior, node["behavior"].String());
  OMNI_ASSIGN_OR_RETURN(const bool invert, node["invert"].Bool());
  if (behavior != "Isolated" && behavior != "Removed") {
    return node["behavior"].Unsupported("Isolated or Removed");
  }
  const bool removes = behavior == "Removed";
  const JsonView pattern = node["pattern"];
  OMNI_RETURN_IF_ERROR(pattern.ExpectObject());
  if (pattern.Has("String")) {
    OMNI_RETURN_IF_ERROR(pattern.ExpectKeys({"String"}));
    OMNI_ASSIGN_OR_RETURN(const std::string text, pattern["String"].String());
    return AddSplit(pattern["String"], LiteralPattern(text), removes && !invert, removes && invert,
                    out);
  }
  OMNI_RETURN_IF_ERROR(pattern.ExpectKeys({"Regex"}));
  OMNI_ASSIGN_OR_RETURN(const std::string regex, pattern["Regex"].String());
  const absl::StatusOr<std::string> translated = TranslatePattern(regex);
  if (!translated.ok()) return pattern["Regex"].Error(translated.status().message());
  return AddSplit(pattern["Regex"], *translated, removes && !invert, removes && invert, out);
}

// Of any of the four places where one may stand; true if it splits by GPT-2's pattern.
absl::StatusOr<bool> ReadByteLevel(const JsonView& node) {
  OMNI_RETURN_IF_ERROR(node.ExpectKeys({"type", "add_prefix_space", "trim_offsets", "use_regex"}));
  OMNI_RETURN_IF_ERROR(node["add_prefix_space"].Bool().status());
  OMNI_RETURN_IF_ERROR(node["trim_offsets"].Bool().status());
  return node.Has("use_regex") ? node["use_regex"].Bool() : true;
}

absl::Status ReadPreTokenizer(const JsonView& node, TokenizerJson* out) {
  OMNI_ASSIGN_OR_RETURN(const std::string type, TypeOf(node));
  std::vector<JsonView> steps = {node};
  if (type == "Sequence") {
    OMNI_RETURN_IF_ERROR(node.ExpectKeys({"type", "pretokenizers"}));
    OMNI_ASSIGN_OR_RETURN(steps, node["pretokenizers"].Items());
  }
  bool is_byte_level = false;
  for (const JsonView& step : steps) {
    OMNI_ASSIGN_OR_RETURN(const std::string step_type, TypeOf(step));
    if (is_byte_level) return step.Error("stands behind ByteLevel, expected that to be the last");
    if (step_type == "Split") {
      OMNI_RETURN_IF_ERROR(ReadSplit(step, out));
    } else if (step_type == "ByteLevel") {
      is_byte_level = true;
      OMNI_ASSIGN_OR_RETURN(const bool splits, ReadByteLevel(step));
      OMNI_ASSIGN_OR_RETURN(const bool adds_space, step["add_prefix_space"].Bool());
      if (adds_space) return step["add_prefix_space"].Unsupported("false");
      if (!splits) continue;
      OMNI_ASSIGN_OR_RETURN(std::string pattern, TranslatePattern(kByteLevelPattern));
      OMNI_RETURN_IF_ERROR(AddSplit(step, std::move(pattern), false, false, out));
    } else {
      return step["type"].Unsupported("Split or ByteLevel");
    }
  }
  return is_byte_level ? absl::OkStatus() : node.Error("has no ByteLevel");
}

absl::Status ReadDecoder(const JsonView& node) {
  OMNI_ASSIGN_OR_RETURN(const std::string type, TypeOf(node));
  if (type != "ByteLevel") return node["type"].Unsupported("ByteLevel");
  return ReadByteLevel(node).status();
}

// `key` is absent, null, or equal to one of `harmless`.
absl::Status ExpectUnset(const JsonView& model, const char* key,
                         std::initializer_list<nlohmann::json> harmless) {
  if (!model.Has(key) || model[key].is_null()) return absl::OkStatus();
  for (const nlohmann::json& value : harmless) {
    if (model[key].json() == value) return absl::OkStatus();
  }
  return model[key].Unsupported("null");
}

absl::Status ReadVocabulary(const JsonView& node, TokenizerJson* out, Ids* ids) {
  OMNI_RETURN_IF_ERROR(node.ExpectObject());
  for (const auto& [token, value] : node.json().items()) {
    if (!value.is_number_unsigned() || value.get<uint64_t>() > uint64_t{kMaxId}) {
      return node[token].Unsupported(absl::StrCat("an id between 0 and ", kMaxId));
    }
    const auto id = value.get<int64_t>();
    out->vocabulary.emplace_back(token, static_cast<int32_t>(id));
    ids->emplace(token, static_cast<int32_t>(id));
  }
  auto& vocabulary = out->vocabulary;
  std::sort(vocabulary.begin(), vocabulary.end(),
            [](const auto& a, const auto& b) { return a.second < b.second; });
  for (size_t i = 1; i < vocabulary.size(); ++i) {
    if (vocabulary[i].second == vocabulary[i - 1].second) {
      return node[vocabulary[i].first].Error(absl::StrCat(
          "has id ", vocabulary[i].second, ", as \"", vocabulary[i - 1].first, "\" has"));
    }
  }
  return absl::OkStatus();
}

absl::Status ReadMerges(const JsonView& node, const Ids& ids, TokenizerJson* out) {
  OMNI_ASSIGN_OR_RETURN(const auto merges, node.Items());
  out->merges.reserve(merges.size());
  for (const JsonView& merge : merges) {
    std::string left, right;
    if (merge.json().is_array()) {
      OMNI_ASSIGN_OR_RETURN(const auto sides, merge.Items());
      if (sides.size() != 2) return merge.Error("expected two tokens");
      OMNI_ASSIGN_OR_RETURN(left, sides[0].String());
      OMNI_ASSIGN_OR_RETURN(right, sides[1].String());
    } else {
      OMNI_ASSIGN_OR_RETURN(const std::string both, merge.String());
      const size_t space = both.find(' ');
      if (space == std::string::npos || both.find(' ', space + 1) != std::string::npos) {
        return merge.Error("expected two tokens with a space between them");
      }
      left = both.substr(0, space);
      right = both.substr(space + 1);
    }
    const auto id_of = [&](const std::string& token) {
      const auto it = ids.find(token);
      return it == ids.end() ? -1 : it->second;
    };
    const Merge found{id_of(left), id_of(right), id_of(left + right)};
    for (const auto& [token, id] :
         {std::pair(left, found.left), {right, found.right}, {left + right, found.merged}}) {
      if (id < 0) {
        return merge.Error(absl::StrCat("\"", token, "\" is not in the vocabulary"));
      }
    }
    out->merges.push_back(found);
  }
  return absl::OkStatus();
}

absl::Status ReadModel(const JsonView& node, TokenizerJson* out, Ids* ids) {
  OMNI_ASSIGN_OR_RETURN(const std::string type, TypeOf(node));
  if (type != "BPE") return node["type"].Unsupported("BPE");
  OMNI_RETURN_IF_ERROR(node.ExpectKeys({"type", "dropout", "unk_token", "continuing_subword_prefix",
                                        "end_of_word_suffix", "fuse_unk", "byte_fallback",
                                        "ignore_merges", "vocab", "merges"}));
  // With all bytes in the vocabulary nothing is unknown: unk_token and fuse_unk have no effect.
  OMNI_RETURN_IF_ERROR(ExpectUnset(node, "dropout", {0.0}));
  OMNI_RETURN_IF_ERROR(ExpectUnset(node, "continuing_subword_prefix", {""}));
  OMNI_RETURN_IF_ERROR(ExpectUnset(node, "end_of_word_suffix", {""}));
  OMNI_RETURN_IF_ERROR(ExpectUnset(node, "byte_fallback", {false}));
  if (node.Has("ignore_merges")) {
    OMNI_ASSIGN_OR_RETURN(out->ignore_merges, node["ignore_merges"].Bool());
  }
  OMNI_RETURN_IF_ERROR(ReadVocabulary(node["vocab"], out, ids));
  return ReadMerges(node["merges"], *ids, out);
}

// `tokenizers` numbers added tokens itself and lets the file's ids go; they must agree.
absl::Status ReadAddedTokens(const JsonView& node, const Ids& ids, TokenizerJson* out) {
  OMNI_ASSIGN_OR_RETURN(const auto tokens, node.Items());
  std::set<std::string> seen;
  auto next_id = static_cast<int64_t>(out->vocabulary.size());
  for (const JsonView& token : tokens) {
    OMNI_RETURN_IF_ERROR(token.ExpectObject());
    OMNI_RETURN_IF_ERROR(token.ExpectKeys(
        {"id", "content", "single_word", "lstrip", "rstrip", "normalized", "special"}));
    AddedToken added;
    OMNI_ASSIGN_OR_RETURN(added.content, token["content"].String());
    OMNI_ASSIGN_OR_RETURN(added.single_word, token["single_word"].Bool());
    OMNI_ASSIGN_OR_RETURN(added.lstrip, token["lstrip"].Bool());
    OMNI_ASSIGN_OR_RETURN(added.rstrip, token["rstrip"].Bool());
    OMNI_ASSIGN_OR_RETURN(added.normalized, token["normalized"].Bool());
    OMNI_ASSIGN_OR_RETURN(added.special, token["special"].Bool());
    OMNI_ASSIGN_OR_RETURN(const int64_t id, token["id"].Integer());
    if (added.content.empty()) return token["content"].Error("is empty");
    if (!seen.insert(added.content).second) {
      return token["content"].Error(absl::StrCat("\"", added.content, "\" stands here twice"));
    }
    const auto known = ids.find(added.content);
    const int64_t expected = known != ids.end() ? known->second : next_id;
    if (id != expected) {
      return token["id"].Error(
          absl::StrCat("found ", id, " for \"", added.content, "\", expected ", expected,
                       known != ids.end() ? ", its id in the vocabulary" : ", the next free one"));
    }
    if (id > kMaxId) return token["id"].Unsupported(absl::StrCat("at most ", kMaxId));
    const auto taken =
        std::lower_bound(out->vocabulary.begin(), out->vocabulary.end(), id,
                         [](const auto& entry, int64_t value) { return entry.second < value; });
    if (known == ids.end() && taken != out->vocabulary.end() && taken->second == id) {
      return token["id"].Error(
          absl::StrCat("found ", id, ", which is the vocabulary's \"", taken->first, "\""));
    }
    added.id = static_cast<int32_t>(id);
    next_id = std::max(next_id, id + 1);
    out->added_tokens.push_back(std::move(added));
  }
  return absl::OkStatus();
}

absl::Status ReadTemplate(const JsonView& node, TokenizerJson* out) {
  OMNI_RETURN_IF_ERROR(node.ExpectKeys({"type", "single", "pair", "special_tokens"}));
  OMNI_ASSIGN_OR_RETURN(const auto pieces, node["single"].Items());
  int num_texts = 0;
  for (const JsonView& piece : pieces) {
    OMNI_RETURN_IF_ERROR(piece.ExpectObject());
    if (piece.Has("Sequence")) {
      OMNI_RETURN_IF_ERROR(piece.ExpectKeys({"Sequence"}));
      OMNI_RETURN_IF_ERROR(piece["Sequence"].ExpectObject());
      OMNI_ASSIGN_OR_RETURN(const std::string which, piece["Sequence"]["id"].String());
      if (which != "A" || ++num_texts > 1) return piece.Unsupported("the sequence \"A\" once");
      continue;
    }
    OMNI_RETURN_IF_ERROR(piece.ExpectKeys({"SpecialToken"}));
    OMNI_RETURN_IF_ERROR(piece["SpecialToken"].ExpectObject());
    OMNI_ASSIGN_OR_RETURN(const std::string name, piece["SpecialToken"]["id"].String());
    const JsonView tokens = node["special_tokens"];
    OMNI_RETURN_IF_ERROR(tokens.ExpectObject());
    OMNI_RETURN_IF_ERROR(tokens[name].ExpectObject());
    OMNI_ASSIGN_OR_RETURN(const auto ids, tokens[name]["ids"].Items());
    for (const JsonView& item : ids) {
      OMNI_ASSIGN_OR_RETURN(const int64_t id, item.Integer());
      const bool is_known = std::any_of(out->added_tokens.begin(), out->added_tokens.end(),
                                        [&](const AddedToken& token) { return token.id == id; });
      if (!is_known) return item.Error(absl::StrCat("found ", id, ", no id of an added token"));
      (num_texts == 0 ? out->prefix : out->suffix).push_back(static_cast<int32_t>(id));
    }
  }
  return num_texts == 1 ? absl::OkStatus() : node["single"].Error("has no sequence \"A\"");
}

absl::Status ReadPostProcessor(const JsonView& node, TokenizerJson* out) {
  if (node.is_null()) return absl::OkStatus();
  OMNI_ASSIGN_OR_RETURN(const std::string type, TypeOf(node));
  std::vector<JsonView> steps = {node};
  if (type == "Sequence") {
    OMNI_RETURN_IF_ERROR(node.ExpectKeys({"type", "processors"}));
    OMNI_ASSIGN_OR_RETURN(steps, node["processors"].Items());
  }
  bool has_template = false;
  for (const JsonView& step : steps) {
    OMNI_ASSIGN_OR_RETURN(const std::string step_type, TypeOf(step));
    if (step_type == "ByteLevel") {
      OMNI_RETURN_IF_ERROR(ReadByteLevel(step).status());  // about offsets only
    } else if (step_type == "TemplateProcessing") {
      if (has_template) return step.Unsupported("one TemplateProcessing");
      has_template = true;
      OMNI_RETURN_IF_ERROR(ReadTemplate(step, out));
    } else {
      return step["type"].Unsupported("ByteLevel or TemplateProcessing");
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<TokenizerJson> ParseTokenizerJson(absl::string_view text,
                                                 const std::string& origin) {
  const std::string context = absl::StrCat("tokenizer ", origin);
  nlohmann::json document;
  try {
    document = nlohmann::json::parse(text.begin(), text.end());
  } catch (const nlohmann::json::exception& error) {
    return absl::InvalidArgumentError(
        absl::StrCat(context, " is not JSON: ", ReplaceIllFormed(error.what())));
  }
  const JsonView root(document, context);
  OMNI_RETURN_IF_ERROR(root.ExpectObject());
  OMNI_RETURN_IF_ERROR(
      root.ExpectKeys({"version", "truncation", "padding", "added_tokens", "normalizer",
                       "pre_tokenizer", "post_processor", "decoder", "model"}));
  OMNI_ASSIGN_OR_RETURN(const std::string version, root["version"].String());
  if (version != "1.0") return root["version"].Unsupported("1.0");
  for (const char* key : {"truncation", "padding"}) {
    if (!root[key].is_null()) return root[key].Unsupported("null");
  }
  TokenizerJson out;
  Ids ids;
  OMNI_RETURN_IF_ERROR(ReadModel(root["model"], &out, &ids));
  OMNI_RETURN_IF_ERROR(ReadAddedTokens(root["added_tokens"], ids, &out));
  OMNI_RETURN_IF_ERROR(ReadNormalizer(root["normalizer"], &out));
  OMNI_RETURN_IF_ERROR(ReadPreTokenizer(root["pre_tokenizer"], &out));
  OMNI_RETURN_IF_ERROR(ReadPostProcessor(root["post_processor"], &out));
  OMNI_RETURN_IF_ERROR(ReadDecoder(root["decoder"]));
  return out;
}

}  // namespace omni::dataloader
