// Reading configuration: YAML with an error for everything that is not as expected.
//
// Each folder declares the structs its part of a recipe is read into and a function that reads
// them; nobody else knows the keys. Every error says file:line, key, what was found, what was
// expected, and for an unknown key the nearest one that exists.
//
//   absl::Status Read(const ConfigNode& node, OptimizerConfig* out) {
//     ConfigReader reader(node);
//     reader.Read("lr", &out->lr, Positive());
//     reader.ReadEnum("kind", &out->kind, {{"adamw", Kind::kAdamW}, {"muon", Kind::kMuon}});
//     reader.ReadStruct("schedule", &out->schedule);       // calls Read(node, &out->schedule)
//     return reader.Finish();                              // first error, or unknown keys
//   }
#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/types/span.h"

namespace omni {

// One node of a loaded configuration, with its path ("training.optimizer") and source line.
// Cheap to copy; keeps the document alive.
class ConfigNode {
 public:
  ConfigNode();
  ~ConfigNode();
  ConfigNode(const ConfigNode&);
  ConfigNode& operator=(const ConfigNode&);

  // InvalidArgument, as "recipe.yaml:12: training.lr: found "abc", expected a number".
  // NotFound if the file is absent.
  static absl::StatusOr<ConfigNode> LoadFile(const std::string& path);
  static absl::StatusOr<ConfigNode> Parse(const std::string& text, const std::string& file_name);

  // Applies "a.b.0.c=value" overrides (values are YAML: numbers, lists, {maps}). Keys that do
  // not exist yet are created; a typo is found when the section is read.
  absl::Status ApplyOverrides(absl::Span<const std::string> overrides);
  // Keys of `defaults` that are absent here are copied, mappings key by key; what is here stays.
  // Both must be mappings.
  void FillFrom(const ConfigNode& defaults);

  bool is_null() const;  // absent, or ~
  bool is_map() const;
  bool is_sequence() const;
  bool is_scalar() const;
  std::vector<std::string> keys() const;         // of a map, in file order
  ConfigNode Get(const std::string& key) const;  // null node if absent
  std::vector<ConfigNode> items() const;         // of a sequence
  std::string path() const;
  // "recipe.yaml:12: training.lr", or "--set training.lr" of what an override has set.
  std::string where() const;
  std::string text() const;  // a scalar as written
  std::string kind() const;  // as errors have it: a mapping, a list, "12", nothing

  // InvalidArgument: "where(): message".
  absl::Status Error(absl::string_view message) const;

  absl::StatusOr<bool> AsBool() const;
  absl::StatusOr<int64_t> AsInt() const;  // accepts 1_000 and 4e6 where exact
  absl::StatusOr<double> AsDouble() const;
  absl::StatusOr<std::string> AsString() const;

  std::string DumpYaml() const;

 private:
  struct Document;
  struct Impl;
  std::shared_ptr<const Impl> impl_;  // shared: copies of one node
};

// The candidate closest to `word` by edit distance, or "" if none is near.
std::string NearestName(absl::string_view word, absl::Span<const std::string> candidates);

// Bounds for numbers; inclusive.
struct Range {
  double min = -std::numeric_limits<double>::infinity();
  double max = std::numeric_limits<double>::infinity();
  bool exclusive_min = false;
};
inline Range Positive() { return {.min = 0, .exclusive_min = true}; }
inline Range NonNegative() { return {.min = 0}; }
inline Range Between(double min, double max) { return {.min = min, .max = max}; }
inline Range AtLeast(double min) { return {.min = min}; }

namespace config_internal {
// The folder's own Read(node, out), found by argument-dependent lookup; out here because the
// member functions of the same name would hide it.
template <typename T>
absl::Status ReadSection(const ConfigNode& node, T* out) {
  return Read(node, out);
}
}  // namespace config_internal

// Reads the keys of one mapping. Absent keys leave the target as it is (its default), unless
// Required. Errors are kept and returned by Finish; later reads after an error are harmless.
class ConfigReader {
 public:
  explicit ConfigReader(const ConfigNode& node);

  void Read(const std::string& key, bool* out);
  void Read(const std::string& key, std::string* out);
  void Read(const std::string& key, int32_t* out, Range range = {});
  void Read(const std::string& key, int64_t* out, Range range = {});
  void Read(const std::string& key, uint64_t* out);
  void Read(const std::string& key, float* out, Range range = {});
  void Read(const std::string& key, double* out, Range range = {});
  void Read(const std::string& key, std::vector<int32_t>* out, Range range = {});
  void Read(const std::string& key, std::vector<double>* out, Range range = {});
  void Read(const std::string& key, std::vector<std::string>* out);

  // After the reads: `key` must have been present.
  void Require(const std::string& key);

  template <typename E>
  void ReadEnum(const std::string& key, E* out, std::vector<std::pair<std::string, E>> names) {
    std::vector<std::string> valid;
    for (const auto& [name, value] : names) valid.push_back(name);
    const int index = ReadChoice(key, valid);
    if (index >= 0) *out = names[index].second;
  }

  // Calls Read(child, out), found by argument-dependent lookup, if the key is present.
  template <typename T>
  void ReadStruct(const std::string& key, T* out) {
    const ConfigNode child = Child(key);
    if (!child.is_null()) Keep(config_internal::ReadSection(child, out));
  }
  template <typename T>
  void ReadList(const std::string& key, std::vector<T>* out) {
    const ConfigNode child = Child(key);
    if (child.is_null()) return;
    if (!child.is_sequence())
      return Keep(child.Error(absl::StrCat("found ", child.kind(), ", expected a list")));
    out->clear();
    for (const ConfigNode& item : child.items()) {
      out->emplace_back();
      Keep(config_internal::ReadSection(item, &out->back()));
    }
  }
  template <typename T>
  void ReadMap(const std::string& key, std::vector<std::pair<std::string, T>>* out) {
    const ConfigNode child = Child(key);
    if (child.is_null()) return;
    if (!child.is_map())
      return Keep(child.Error(absl::StrCat("found ", child.kind(), ", expected a mapping")));
    out->clear();
    for (const std::string& name : child.keys()) {
      out->emplace_back(name, T{});
      Keep(config_internal::ReadSection(child.Get(name), &out->back().second));
    }
  }

  // Marks `key` as known and returns its node (null if absent): for sections read elsewhere.
  ConfigNode Child(const std::string& key);
  bool Has(const std::string& key);

  // Keeps `status` if it is the first error; for checks between keys.
  void Keep(absl::Status status);
  // InvalidArgument at this mapping, or at one of its keys.
  absl::Status Error(absl::string_view message) const;
  absl::Status Error(const std::string& key, absl::string_view message) const;

  // The first error; else an error naming the first unknown key and its nearest neighbour.
  absl::Status Finish();

 private:
  int ReadChoice(const std::string& key, absl::Span<const std::string> valid);

  ConfigNode node_;
  std::vector<std::string> known_;
  absl::Status status_;
};

}  // namespace omni
