// A data state made with other data goes on with these.
//
// What stays where it was: sources known again by name and content, wherever they are and in
// whatever order the recipe lists them. What starts anew does so with the epoch after those it has
// begun, in an order of its own, never with the first epoch again. The one place that decides it.
#pragma once

#include <string>
#include <vector>

#include "dataloader/sample_planner.h"
#include "dataloader/step_planner.h"

namespace omni::dataloader {

struct CarriedOver {
  LoaderState state;  // fits the recipe's data
  // A sentence for each thing that changed and what that means; none where all is as it was.
  std::vector<std::string> notes;
};

// The same on every rank that sees the same files. By source:
//   of the same name, number of samples, and path or bytes   goes on
//   of the same name, with other content                     its next epoch begins
//   new                                                      its first epoch begins
// With another seed or number of lanes the next epoch of every source begins. A window that is open
// goes on as it was opened unless what it holds is no longer sure: with a source in it that
// changed, or another ReadingOf; then the rest of it is left out.
CarriedOver CarryOver(LoaderState saved, const SamplePlanner& samples);

}  // namespace omni::dataloader
