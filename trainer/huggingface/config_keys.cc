#include "trainer/huggingface/config_keys.h"

namespace omni::trainer {
namespace {

template <typename T>
T Take(absl::StatusOr<T> value, T otherwise, ConfigKeys& keys) {
  if (value.ok()) return *std::move(value);
  keys.Keep(value.status());
  return otherwise;
}

}  // namespace

int32_t ConfigKeys::Size(const std::string& key, int32_t otherwise) {
  if (!Has(key)) {
    if (otherwise > 0) return otherwise;
    Keep(node_.Error(absl::StrCat("key \"", key, "\" is missing")));
    return 1;
  }
  const int32_t size = Int(key, 1);
  if (size < 1) Keep(node_.Get(key).Error(absl::StrCat("found ", size, ", expected >= 1")));
  return std::max(size, 1);
}

int32_t ConfigKeys::Int(const std::string& key, int32_t otherwise) {
  if (!Has(key)) return otherwise;
  const int64_t value = Take<int64_t>(Get(key).AsInt(), otherwise, *this);
  if (value != static_cast<int32_t>(value)) {
    Keep(Get(key).Error(absl::StrCat("found ", value, ", which is too large")));
    return otherwise;
  }
  return static_cast<int32_t>(value);
}

double ConfigKeys::Number(const std::string& key, double otherwise) {
  return Has(key) ? Take(Get(key).AsDouble(), otherwise, *this) : otherwise;
}

bool ConfigKeys::Bool(const std::string& key, bool otherwise) {
  return Has(key) ? Take(Get(key).AsBool(), otherwise, *this) : otherwise;
}

std::string ConfigKeys::Text(const std::string& key, const std::string& otherwise) {
  return Has(key) ? Take(Get(key).AsString(), otherwise, *this) : otherwise;
}

std::vector<int32_t> ConfigKeys::Ints(const std::string& key, std::vector<int32_t> otherwise) {
  if (!Has(key)) return otherwise;
  std::vector<int32_t> values;
  for (const ConfigNode& item : Get(key).items()) {
    values.push_back(static_cast<int32_t>(Take<int64_t>(item.AsInt(), 0, *this)));
  }
  return values;
}

std::vector<double> ConfigKeys::Numbers(const std::string& key, std::vector<double> otherwise) {
  if (!Has(key)) return otherwise;
  std::vector<double> values;
  for (const ConfigNode& item : Get(key).items()) {
    values.push_back(Take(item.AsDouble(), 0.0, *this));
  }
  return values;
}

void ConfigKeys::Expect(const std::string& key, const std::string& expected) {
  const std::string found = Text(key, expected);
  if (found != expected) {
    Keep(Get(key).Error(absl::StrCat("found \"", found, "\"; only \"", expected, "\" is built")));
  }
}

void ConfigKeys::ExpectFlag(const std::string& key, bool expected) {
  if (Bool(key, expected) != expected) {
    Keep(Get(key).Error(absl::StrCat("only ", expected ? "true" : "false", " is built")));
  }
}

}  // namespace omni::trainer
