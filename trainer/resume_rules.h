// What may change in the recipe of a run that goes on: the one table. docs/resuming.md shows it.
//
// A change is what a key comes to, defaults included: to write a default down changes nothing, and
// neither does the order of data.sources. A key that is not in the table may not change, and the
// test of this file fails for one that a reader knows.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace omni::trainer {

enum class ResumeClass : uint8_t {
  kFree,      // takes effect and nothing is lost
  kRestarts,  // some state of the run starts anew
  kAllow,     // only with `--allow KEY`: easily a mistake, and nothing would show it
  kNever,     // alters what the weights mean: another run
};
absl::string_view Name(ResumeClass kind);  // "needs --allow"

struct ResumeRule {
  absl::string_view section;  // "training.optimizer"; * stands for a name or a number
  // "lr betas". "kind:adamw" is an enumeration with its default; "key=0" a change of the key from
  // or to 0; "*" a whole item of the section.
  absl::string_view keys;
  ResumeClass kind = ResumeClass::kNever;
  absl::string_view effect;
};
absl::Span<const ResumeRule> ResumeRules();
// Of docs/resuming.md.
std::string ResumeTable();

// Key -> what it comes to. Items of data.sources and data.eval go by their names.
using RecipeValues = std::map<std::string, std::string>;
// InvalidArgument if `yaml` is no recipe.
absl::StatusOr<RecipeValues> ValuesOf(const std::string& yaml, const std::string& file_name);

struct RecipeChange {
  std::string key;
  std::string was, is;               // "" where there is none
  const ResumeRule* rule = nullptr;  // null: not in the table
  ResumeClass kind() const { return rule == nullptr ? ResumeClass::kNever : rule->kind; }
};
// In the order of the keys. An item that came or went as a whole is one change.
std::vector<RecipeChange> DiffRecipes(const RecipeValues& was, const RecipeValues& is);

// A line for each.
std::string Describe(absl::Span<const RecipeChange> changes);

// InvalidArgument, naming key, both values and the way on, if one of `changes` may not be made.
// `allowed`: keys of --allow, each of which must be one that a rule of kAllow has.
absl::Status CheckChanges(absl::Span<const RecipeChange> changes,
                          absl::Span<const std::string> allowed, const std::string& run_dir);
// Of a new run that takes the weights of another: only what alters the model counts, and that may
// be allowed where shapes agree. Towers and adapters that only one of the two has are no error.
std::vector<RecipeChange> ChangesOfModel(const RecipeValues& was, const RecipeValues& is);
absl::Status CheckModelChanges(absl::Span<const RecipeChange> changes,
                               absl::Span<const std::string> allowed, const std::string& from);

}  // namespace omni::trainer
