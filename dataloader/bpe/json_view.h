// A place in a JSON document and its path from the root: every error names both.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace omni::dataloader {

// Points into the document. All errors are InvalidArgument.
class JsonView {
 public:
  // `context` starts every message.
  JsonView(const nlohmann::json& document, std::string context);

  const nlohmann::json& json() const { return *json_; }
  bool is_null() const { return json_->is_null(); }
  bool Has(const std::string& key) const { return json_->is_object() && json_->contains(key); }

  // Null if there is no such key.
  JsonView operator[](const std::string& key) const;

  absl::Status ExpectObject() const;
  // That it has no other key; with the nearest valid one.
  absl::Status ExpectKeys(std::initializer_list<const char*> keys) const;
  absl::StatusOr<std::string> String() const;
  absl::StatusOr<bool> Bool() const;
  absl::StatusOr<int64_t> Integer() const;
  absl::StatusOr<std::vector<JsonView>> Items() const;  // of an array

  absl::Status Error(absl::string_view what) const;
  // "found 0.1, expected null: anything else is not supported"
  absl::Status Unsupported(absl::string_view expected) const;

 private:
  absl::Status WrongType(const char* expected) const;

  const nlohmann::json* json_;
  std::string path_;
};

}  // namespace omni::dataloader
