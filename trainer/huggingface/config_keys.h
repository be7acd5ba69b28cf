// Reading config.json: keys by name with their family's default; the first error is kept.
// Unlike a recipe's, unknown keys are no errors: these files carry much that is not about training.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "runtime/base/config.h"

namespace omni::trainer {

class ConfigKeys {
 public:
  explicit ConfigKeys(const ConfigNode& node) : node_(node) {}

  // A size: >= 1, and required if `otherwise` is 0.
  int32_t Size(const std::string& key, int32_t otherwise = 0);
  int32_t Int(const std::string& key, int32_t otherwise);
  double Number(const std::string& key, double otherwise);
  bool Bool(const std::string& key, bool otherwise);
  std::string Text(const std::string& key, const std::string& otherwise);
  std::vector<int32_t> Ints(const std::string& key, std::vector<int32_t> otherwise);
  std::vector<double> Numbers(const std::string& key, std::vector<double> otherwise);
  // What other values than `expected` mean is not built: an error that says so.
  void Expect(const std::string& key, const std::string& expected);
  void ExpectFlag(const std::string& key, bool expected);

  const ConfigNode& node() const { return node_; }
  ConfigNode Get(const std::string& key) const { return node_.Get(key); }
  bool Has(const std::string& key) const { return !node_.Get(key).is_null(); }
  void Keep(absl::Status status) {
    if (status_.ok()) status_ = std::move(status);
  }
  const absl::Status& status() const { return status_; }

 private:
  const ConfigNode node_;
  absl::Status status_;
};

}  // namespace omni::trainer
