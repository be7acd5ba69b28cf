#include "dataloader/bpe/json_view.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "dataloader/bpe/unicode.h"
#include "runtime/base/config.h"
#include "runtime/base/status.h"

namespace omni::dataloader {
namespace {

constexpr size_t kMaxShown = 80;

// As it stands in the file, if that is short.
std::string Show(const nlohmann::json& value) {
  std::string text = value.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  if (text.size() <= kMaxShown) return text;
  if (!value.is_string()) return value.type_name();
  return absl::StrCat(ReplaceIllFormed(text.substr(0, kMaxShown)), "...");
}

}  // namespace

JsonView::JsonView(const nlohmann::json& document, std::string context)
    : json_(&document), path_(std::move(context)) {}

JsonView JsonView::operator[](const std::string& key) const {
  static const nlohmann::json kNull;
  const bool has = Has(key);
  const bool is_root = path_.find(": ") == std::string::npos;
  return JsonView(has ? json_->find(key).value() : kNull,
                  absl::StrCat(path_, is_root ? ": " : ".", key));
}

absl::Status JsonView::ExpectObject() const {
  return json_->is_object() ? absl::OkStatus() : WrongType("an object");
}

absl::Status JsonView::ExpectKeys(std::initializer_list<const char*> keys) const {
  for (const auto& [key, value] : json_->items()) {
    if (std::find(keys.begin(), keys.end(), key) != keys.end()) continue;
    const std::string nearest =
        NearestName(key, std::vector<std::string>(keys.begin(), keys.end()));
    return (*this)[key].Error(absl::StrCat(
        "unknown key", nearest.empty() ? "" : absl::StrCat("; did you mean \"", nearest, "\"?")));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> JsonView::String() const {
  if (!json_->is_string()) return WrongType("a string");
  return json_->get<std::string>();
}

absl::StatusOr<bool> JsonView::Bool() const {
  if (!json_->is_boolean()) return WrongType("true or false");
  return json_->get<bool>();
}

absl::StatusOr<int64_t> JsonView::Integer() const {
  if (!json_->is_number_integer()) return WrongType("an integer");
  if (json_->is_number_unsigned() &&
      json_->get<uint64_t>() > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
    return WrongType("an integer of 64 bits");
  }
  return json_->get<int64_t>();
}

absl::StatusOr<std::vector<JsonView>> JsonView::Items() const {
  if (!json_->is_array()) return WrongType("an array");
  std::vector<JsonView> items;
  items.reserve(json_->size());
  for (size_t i = 0; i < json_->size(); ++i) {
    items.emplace_back((*json_)[i], absl::StrCat(path_, "[", i, "]"));
  }
  return items;
}

absl::Status JsonView::Error(absl::string_view what) const {
  return absl::InvalidArgumentError(absl::StrCat(path_, ": ", what));
}

absl::Status JsonView::Unsupported(absl::string_view expected) const {
  return Error(
      absl::StrCat("found ", Show(*json_), ", expected ", expected, "; nothing else is supported"));
}

absl::Status JsonView::WrongType(const char* expected) const {
  if (is_null()) return Error(absl::StrCat("is missing or null, expected ", expected));
  return Error(absl::StrCat("found ", Show(*json_), ", expected ", expected));
}

}  // namespace omni::dataloader
