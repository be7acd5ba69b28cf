#include "runtime/base/config.h"

#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <optional>
#include <sstream>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "runtime/base/check.h"
#include "runtime/base/config_record.h"
#include "runtime/base/status.h"

namespace omni {

struct ConfigNode::Document {
  std::string file;
  YAML::Node root;
  std::vector<std::string> overridden = {};  // paths that ApplyOverrides has set
};

struct ConfigNode::Impl {
  std::shared_ptr<Document> document;  // shared: every node of one document
  YAML::Node yaml;
  std::string path;
  int line = 0;  // 1-based; of the node, or of the parent for an absent one
};

namespace {

constexpr int64_t kMaxConfigBytes = int64_t{4} << 20;

std::string Kind(const YAML::Node& yaml) {
  if (!yaml.IsDefined() || yaml.IsNull()) return "nothing";
  if (yaml.IsMap()) return "a mapping";
  if (yaml.IsSequence()) return "a list";
  return absl::StrCat("\"", yaml.Scalar(), "\"");
}

std::string Join(const std::string& path, const std::string& key) {
  return path.empty() ? key : absl::StrCat(path, ".", key);
}

// yaml-cpp throws from its parser and from conversions; this is where that stops.
absl::StatusOr<YAML::Node> ParseYaml(const std::string& text, const std::string& file) {
  try {
    return YAML::Load(text);
  } catch (const YAML::Exception& e) {
    return absl::InvalidArgumentError(
        absl::StrCat(file, ":", e.mark.line + 1, ": not valid YAML: ", e.msg));
  }
}

// The same key twice in one mapping is a silent loss in YAML; here it is an error.
absl::Status CheckDuplicates(const YAML::Node& yaml, const std::string& file, int depth) {
  if (depth > 64) return absl::InvalidArgumentError(absl::StrCat(file, ": nested deeper than 64"));
  if (yaml.IsMap()) {
    std::vector<std::string> seen;
    for (const auto& entry : yaml) {
      if (!entry.first.IsScalar()) {
        return absl::InvalidArgumentError(absl::StrCat(file, ":", entry.first.Mark().line + 1,
                                                       ": a key must be a plain word, found ",
                                                       Kind(entry.first)));
      }
      const std::string key = entry.first.Scalar();
      if (std::find(seen.begin(), seen.end(), key) != seen.end()) {
        return absl::InvalidArgumentError(absl::StrCat(file, ":", entry.first.Mark().line + 1,
                                                       ": key \"", key, "\" is given twice"));
      }
      seen.push_back(key);
      OMNI_RETURN_IF_ERROR(CheckDuplicates(entry.second, file, depth + 1));
    }
  } else if (yaml.IsSequence()) {
    for (const auto& item : yaml) OMNI_RETURN_IF_ERROR(CheckDuplicates(item, file, depth + 1));
  }
  return absl::OkStatus();
}

std::optional<int64_t> ParseInt(std::string text) {
  text = absl::StrReplaceAll(text, {{"_", ""}});
  if (int64_t value; absl::SimpleAtoi(text, &value)) return value;
  double value;
  if (absl::SimpleAtod(text, &value) && std::trunc(value) == value && std::abs(value) < 0x1p53) {
    return static_cast<int64_t>(value);
  }
  return std::nullopt;
}

std::string Describe(const Range& range) {
  std::string low = range.exclusive_min     ? absl::StrCat("> ", range.min)
                    : std::isinf(range.min) ? ""
                                            : absl::StrCat(">= ", range.min);
  std::string high = std::isinf(range.max) ? "" : absl::StrCat("<= ", range.max);
  return absl::StrCat(low, low.empty() || high.empty() ? "" : " and ", high);
}

// Of the ConfigRecording that lives on this thread; null: none does. Readers are made deep inside
// of what reads a recipe, so it can't be handed down to them.
thread_local std::map<std::string, std::string>* recorded_values = nullptr;

// A value as it is recorded: equal values have equal texts.
std::string Text(bool value) { return value ? "true" : "false"; }
std::string Text(const std::string& value) { return value; }
template <typename Number>
std::string Text(Number value) {
  char digits[64];
  const auto end = std::to_chars(digits, digits + sizeof(digits), value);
  return std::string(digits, end.ptr);
}
template <typename T>
std::string Text(const std::vector<T>& values) {
  std::vector<std::string> texts;
  for (const T& value : values) texts.push_back(Text(value));
  return absl::StrCat("[", absl::StrJoin(texts, ", "), "]");
}

template <typename T>
void Record(const ConfigNode& section, const std::string& key, const T& value) {
  if (recorded_values != nullptr) (*recorded_values)[Join(section.path(), key)] = Text(value);
}

// An empty mapping that stands at `path`.
ConfigNode EmptySection(const std::string& path) {
  const std::vector<std::string> keys = absl::StrSplit(path, '.');
  std::string text = "{}";
  for (auto key = keys.rbegin(); key != keys.rend(); ++key) {
    text = absl::StrCat("{'", absl::StrReplaceAll(*key, {{"'", "''"}}), "': ", text, "}");
  }
  auto node = ConfigNode::Parse(text, "an absent section");
  if (!node.ok()) return ConfigNode();
  for (const std::string& key : keys) node = node->Get(key);
  return *node;
}

bool Contains(const Range& range, double value) {
  return (range.exclusive_min ? value > range.min : value >= range.min) && value <= range.max;
}

}  // namespace

ConfigNode::ConfigNode() = default;
ConfigNode::~ConfigNode() = default;
ConfigNode::ConfigNode(const ConfigNode&) = default;
ConfigNode& ConfigNode::operator=(const ConfigNode&) = default;

absl::StatusOr<ConfigNode> ConfigNode::LoadFile(const std::string& path) {
  std::error_code error;
  const auto status = std::filesystem::status(path, error);
  if (!std::filesystem::exists(status)) {
    return absl::NotFoundError(absl::StrCat(path, ": no such file"));
  }
  if (!std::filesystem::is_regular_file(status)) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": is not a file, expected a YAML file"));
  }
  if (std::filesystem::file_size(path, error) > kMaxConfigBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": larger than ", kMaxConfigBytes, " bytes, expected a YAML file"));
  }
  std::ifstream file(path, std::ios::binary);
  if (!file) return absl::InvalidArgumentError(absl::StrCat(path, ": can't be read"));
  std::stringstream text;
  text << file.rdbuf();
  return Parse(text.str(), path);
}

absl::StatusOr<ConfigNode> ConfigNode::Parse(const std::string& text, const std::string& file) {
  for (size_t i = 0; i < text.size(); ++i) {
    const unsigned char c = text[i];
    if (c < 0x20 && c != '\n' && c != '\r' && c != '\t') {
      const auto line = 1 + std::count(text.begin(), text.begin() + i, '\n');
      return absl::InvalidArgumentError(absl::StrCat(file, ":", line, ": binary data (byte ",
                                                     static_cast<int>(c), "), expected YAML text"));
    }
  }
  OMNI_ASSIGN_OR_RETURN(YAML::Node root, ParseYaml(text, file));
  if (root.IsNull() || !root.IsDefined()) {
    return absl::InvalidArgumentError(absl::StrCat(file, ": is empty, expected a mapping"));
  }
  if (!root.IsMap()) {
    return absl::InvalidArgumentError(
        absl::StrCat(file, ":1: found ", Kind(root), ", expected a mapping"));
  }
  OMNI_RETURN_IF_ERROR(CheckDuplicates(root, file, 0));
  ConfigNode node;
  auto document = std::make_shared<Document>(Document{file, root});
  node.impl_ = std::make_shared<Impl>(Impl{document, root, "", root.Mark().line + 1});
  return node;
}

absl::Status ConfigNode::ApplyOverrides(absl::Span<const std::string> overrides) {
  OMNI_CHECK(impl_ != nullptr);
  for (const std::string& override : overrides) {
    const size_t equals = override.find('=');
    if (equals == std::string::npos || equals == 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("--set ", override, ": expected key.path=value"));
    }
    const std::string where = absl::StrCat("--set ", override);
    OMNI_ASSIGN_OR_RETURN(const YAML::Node value, ParseYaml(override.substr(equals + 1), where));
    try {
      YAML::Node at = impl_->document->root;
      const std::vector<std::string> keys = absl::StrSplit(override.substr(0, equals), '.');
      for (size_t i = 0; i < keys.size(); ++i) {
        if (keys[i].empty()) return absl::InvalidArgumentError(absl::StrCat(where, ": empty key"));
        const bool last = i + 1 == keys.size();
        size_t index = 0;
        if (at.IsSequence()) {
          if (!absl::SimpleAtoi(keys[i], &index) || index >= at.size()) {
            return absl::InvalidArgumentError(absl::StrCat(
                where, ": \"", keys[i], "\" is not an index of a list of ", at.size()));
          }
          if (last)
            at[index] = value;
          else
            at.reset(at[index]);
        } else if (at.IsMap() || at.IsNull() || !at.IsDefined()) {
          if (last)
            at[keys[i]] = value;
          else
            at.reset(at[keys[i]]);
        } else {
          return absl::InvalidArgumentError(absl::StrCat(where, ": found ", Kind(at), " above \"",
                                                         keys[i], "\", expected a mapping"));
        }
      }
    } catch (const YAML::Exception& e) {
      return absl::InvalidArgumentError(absl::StrCat(where, ": ", e.msg));
    }
    impl_->document->overridden.push_back(override.substr(0, equals));
  }
  return absl::OkStatus();
}

namespace {

void FillMap(YAML::Node to, const YAML::Node& from) {
  for (const auto& entry : from) {
    const std::string key = entry.first.Scalar();
    YAML::Node found = to[key];
    if (!found.IsDefined() || found.IsNull()) {
      to[key] = YAML::Clone(entry.second);
    } else if (found.IsMap() && entry.second.IsMap()) {
      FillMap(found, entry.second);
    }
  }
}

}  // namespace

void ConfigNode::FillFrom(const ConfigNode& defaults) {
  OMNI_CHECK(is_map());
  OMNI_CHECK(defaults.is_map());
  FillMap(impl_->yaml, defaults.impl_->yaml);
}

bool ConfigNode::is_null() const {
  return impl_ == nullptr || !impl_->yaml.IsDefined() || impl_->yaml.IsNull();
}
bool ConfigNode::is_map() const { return !is_null() && impl_->yaml.IsMap(); }
bool ConfigNode::is_sequence() const { return !is_null() && impl_->yaml.IsSequence(); }
bool ConfigNode::is_scalar() const { return !is_null() && impl_->yaml.IsScalar(); }

std::vector<std::string> ConfigNode::keys() const {
  std::vector<std::string> keys;
  if (is_map()) {
    for (const auto& entry : impl_->yaml) keys.push_back(entry.first.Scalar());
  }
  return keys;
}

ConfigNode ConfigNode::Get(const std::string& key) const {
  ConfigNode child;
  if (impl_ == nullptr) return child;
  YAML::Node found(YAML::NodeType::Undefined);
  int line = impl_->line;
  if (is_map()) {
    for (const auto& entry : impl_->yaml) {
      if (entry.first.Scalar() != key) continue;
      found.reset(entry.second);
      if (entry.first.Mark().line >= 0) line = entry.first.Mark().line + 1;
    }
  }
  child.impl_ = std::make_shared<Impl>(Impl{impl_->document, found, Join(impl_->path, key), line});
  return child;
}

std::vector<ConfigNode> ConfigNode::items() const {
  std::vector<ConfigNode> items;
  if (!is_sequence()) return items;
  for (size_t i = 0; i < impl_->yaml.size(); ++i) {
    const YAML::Node yaml = impl_->yaml[i];
    const int line = yaml.Mark().line >= 0 ? yaml.Mark().line + 1 : impl_->line;
    ConfigNode item;
    item.impl_ = std::make_shared<Impl>(
        Impl{impl_->document, yaml, Join(impl_->path, absl::StrCat(i)), line});
    items.push_back(item);
  }
  return items;
}

std::string ConfigNode::path() const { return impl_ == nullptr ? "" : impl_->path; }

std::string ConfigNode::where() const {
  if (impl_ == nullptr) return "(no configuration)";
  for (const std::string& set : impl_->document->overridden) {
    if (impl_->path == set || absl::StartsWith(impl_->path, set + ".")) {
      return absl::StrCat("--set ", impl_->path);
    }
  }
  const std::string place = absl::StrCat(impl_->document->file, ":", impl_->line);
  return impl_->path.empty() ? place : absl::StrCat(place, ": ", impl_->path);
}

std::string ConfigNode::text() const { return is_scalar() ? impl_->yaml.Scalar() : ""; }

absl::Status ConfigNode::Error(absl::string_view message) const {
  return absl::InvalidArgumentError(absl::StrCat(where(), ": ", message));
}

absl::StatusOr<bool> ConfigNode::AsBool() const {
  bool value = false;
  if (is_scalar() && YAML::convert<bool>::decode(impl_->yaml, value)) return value;
  return Error(absl::StrCat("found ", Kind(impl_->yaml), ", expected true or false"));
}

absl::StatusOr<int64_t> ConfigNode::AsInt() const {
  if (is_scalar()) {
    if (const auto value = ParseInt(text())) return *value;
  }
  return Error(absl::StrCat("found ", Kind(impl_->yaml), ", expected an integer"));
}

absl::StatusOr<double> ConfigNode::AsDouble() const {
  double value;
  if (is_scalar() && absl::SimpleAtod(absl::StrReplaceAll(text(), {{"_", ""}}), &value) &&
      !std::isnan(value)) {
    return value;
  }
  return Error(absl::StrCat("found ", Kind(impl_->yaml), ", expected a number"));
}

absl::StatusOr<std::string> ConfigNode::AsString() const {
  if (is_scalar()) return text();
  return Error(absl::StrCat("found ", Kind(impl_->yaml), ", expected text"));
}

std::string ConfigNode::kind() const { return is_null() ? "nothing" : Kind(impl_->yaml); }

std::string ConfigNode::DumpYaml() const {
  if (is_null()) return "~\n";
  YAML::Emitter out;
  out << impl_->yaml;
  return absl::StrCat(out.c_str(), "\n");
}

std::string NearestName(absl::string_view word, absl::Span<const std::string> candidates) {
  std::string best;
  size_t best_distance = std::max<size_t>(2, word.size() / 3) + 1;
  for (const std::string& candidate : candidates) {
    std::vector<size_t> row(candidate.size() + 1);
    for (size_t j = 0; j < row.size(); ++j) row[j] = j;
    for (size_t i = 1; i <= word.size(); ++i) {
      size_t diagonal = row[0];
      row[0] = i;
      for (size_t j = 1; j < row.size(); ++j) {
        const size_t substitute = diagonal + (word[i - 1] == candidate[j - 1] ? 0 : 1);
        diagonal = row[j];
        row[j] = std::min({substitute, row[j] + 1, row[j - 1] + 1});
      }
    }
    if (row.back() < best_distance) {
      best_distance = row.back();
      best = candidate;
    }
  }
  return best;
}

ConfigReader::ConfigReader(const ConfigNode& node) : node_(node) {
  if (!node.is_map()) Keep(node.Error(absl::StrCat("found ", node.kind(), ", expected a mapping")));
}

ConfigNode ConfigReader::Child(const std::string& key) {
  known_.push_back(key);
  ConfigNode child = node_.Get(key);
  if (recorded_values == nullptr) return child;
  if (child.is_null()) return EmptySection(child.path());
  // For who reads it without a reader; a section's own keys tell more.
  if (child.is_scalar()) {
    Record(node_, key, child.text());
  } else if (!child.keys().empty() || !child.items().empty()) {
    const std::string yaml = absl::StrReplaceAll(child.DumpYaml(), {{"\n", " "}});
    Record(node_, key, std::string(absl::StripAsciiWhitespace(yaml)));
  }
  return child;
}

bool ConfigReader::Has(const std::string& key) { return !node_.Get(key).is_null(); }

void ConfigReader::Keep(absl::Status status) {
  if (status_.ok() && recorded_values == nullptr) status_ = std::move(status);
}

absl::Status ConfigReader::Error(absl::string_view message) const { return node_.Error(message); }

absl::Status ConfigReader::Error(const std::string& key, absl::string_view message) const {
  return node_.Get(key).Error(message);
}

void ConfigReader::Require(const std::string& key) {
  if (!Has(key)) Keep(node_.Error(absl::StrCat("key \"", key, "\" is missing")));
}

absl::Status ConfigReader::Finish() {
  OMNI_RETURN_IF_ERROR(status_);
  if (recorded_values != nullptr) return absl::OkStatus();
  for (const std::string& key : node_.keys()) {
    if (std::find(known_.begin(), known_.end(), key) != known_.end()) continue;
    const std::string nearest = NearestName(key, known_);
    return node_.Get(key).Error(
        absl::StrCat("unknown key \"", key, "\"",
                     nearest.empty() ? absl::StrCat("; known here: ", absl::StrJoin(known_, ", "))
                                     : absl::StrCat("; did you mean \"", nearest, "\"?")));
  }
  return absl::OkStatus();
}

namespace {

// The node of a key that is read as it stands.
ConfigNode Take(const ConfigNode& section, const std::string& key,
                std::vector<std::string>* known) {
  known->push_back(key);
  return section.Get(key);
}

// Every scalar and list read has the same frame: absent keeps the default, else convert.
template <typename T, typename Convert>
absl::Status Assign(const ConfigNode& child, T* out, Convert convert) {
  if (child.is_null()) return absl::OkStatus();
  OMNI_ASSIGN_OR_RETURN(*out, convert(child));
  return absl::OkStatus();
}

template <typename T>
absl::StatusOr<T> ToInteger(const ConfigNode& node, const Range& range) {
  OMNI_ASSIGN_OR_RETURN(const int64_t value, node.AsInt());
  if (!Contains(range, static_cast<double>(value))) {
    return node.Error(absl::StrCat("found ", value, ", expected ", Describe(range)));
  }
  if (value < std::numeric_limits<T>::min() || value > std::numeric_limits<T>::max()) {
    return node.Error(absl::StrCat("found ", value, ", which is too large"));
  }
  return static_cast<T>(value);
}

template <typename T>
absl::StatusOr<T> ToReal(const ConfigNode& node, const Range& range) {
  OMNI_ASSIGN_OR_RETURN(const double value, node.AsDouble());
  if (!Contains(range, value)) {
    return node.Error(absl::StrCat("found ", value, ", expected ", Describe(range)));
  }
  return static_cast<T>(value);
}

template <typename T, typename Convert>
absl::StatusOr<std::vector<T>> ToList(const ConfigNode& node, Convert convert) {
  if (!node.is_sequence())
    return node.Error(absl::StrCat("found ", node.kind(), ", expected a list"));
  std::vector<T> list;
  for (const ConfigNode& item : node.items()) {
    OMNI_ASSIGN_OR_RETURN(T value, convert(item));
    list.push_back(std::move(value));
  }
  return list;
}

}  // namespace

void ConfigReader::Read(const std::string& key, bool* out) {
  Keep(Assign(Take(node_, key, &known_), out, [](const ConfigNode& n) { return n.AsBool(); }));
  Record(node_, key, *out);
}
void ConfigReader::Read(const std::string& key, std::string* out) {
  Keep(Assign(Take(node_, key, &known_), out, [](const ConfigNode& n) { return n.AsString(); }));
  Record(node_, key, *out);
}
void ConfigReader::Read(const std::string& key, int32_t* out, Range range) {
  Keep(Assign(Take(node_, key, &known_), out,
              [&](const ConfigNode& n) { return ToInteger<int32_t>(n, range); }));
  Record(node_, key, *out);
}
void ConfigReader::Read(const std::string& key, int64_t* out, Range range) {
  Keep(Assign(Take(node_, key, &known_), out,
              [&](const ConfigNode& n) { return ToInteger<int64_t>(n, range); }));
  Record(node_, key, *out);
}
void ConfigReader::Read(const std::string& key, uint64_t* out) {
  int64_t value = static_cast<int64_t>(*out);
  Keep(Assign(Take(node_, key, &known_), &value,
              [](const ConfigNode& n) { return ToInteger<int64_t>(n, NonNegative()); }));
  *out = static_cast<uint64_t>(value);
  Record(node_, key, *out);
}
void ConfigReader::Read(const std::string& key, float* out, Range range) {
  Keep(Assign(Take(node_, key, &known_), out,
              [&](const ConfigNode& n) { return ToReal<float>(n, range); }));
  Record(node_, key, *out);
}
void ConfigReader::Read(const std::string& key, double* out, Range range) {
  Keep(Assign(Take(node_, key, &known_), out,
              [&](const ConfigNode& n) { return ToReal<double>(n, range); }));
  Record(node_, key, *out);
}
void ConfigReader::Read(const std::string& key, std::vector<int32_t>* out, Range range) {
  Keep(Assign(Take(node_, key, &known_), out, [&](const ConfigNode& n) {
    return ToList<int32_t>(n, [&](const ConfigNode& i) { return ToInteger<int32_t>(i, range); });
  }));
  Record(node_, key, *out);
}
void ConfigReader::Read(const std::string& key, std::vector<double>* out, Range range) {
  Keep(Assign(Take(node_, key, &known_), out, [&](const ConfigNode& n) {
    return ToList<double>(n, [&](const ConfigNode& i) { return ToReal<double>(i, range); });
  }));
  Record(node_, key, *out);
}
void ConfigReader::Read(const std::string& key, std::vector<std::string>* out) {
  Keep(Assign(Take(node_, key, &known_), out, [](const ConfigNode& n) {
    return ToList<std::string>(n, [](const ConfigNode& i) { return i.AsString(); });
  }));
  Record(node_, key, *out);
}

int ConfigReader::ReadChoice(const std::string& key, absl::Span<const std::string> valid) {
  const ConfigNode child = Take(node_, key, &known_);
  if (child.is_null()) {
    Record(node_, key, std::string());
    return -1;
  }
  const auto text = child.AsString();
  if (!text.ok()) {
    Keep(text.status());
    return -1;
  }
  Record(node_, key, *text);
  const auto it = std::find(valid.begin(), valid.end(), *text);
  if (it != valid.end()) return static_cast<int>(it - valid.begin());
  const std::string nearest = NearestName(*text, valid);
  Keep(child.Error(
      absl::StrCat("found \"", *text, "\", expected one of ", absl::StrJoin(valid, ", "),
                   nearest.empty() ? "" : absl::StrCat("; did you mean \"", nearest, "\"?"))));
  return -1;
}

ConfigRecording::ConfigRecording(std::map<std::string, std::string>* values) {
  OMNI_CHECK(recorded_values == nullptr);
  recorded_values = values;
}
ConfigRecording::~ConfigRecording() { recorded_values = nullptr; }

void NoteConfigValue(const std::string& path, const std::string& value) {
  if (recorded_values != nullptr) (*recorded_values)[path] = value;
}

}  // namespace omni
