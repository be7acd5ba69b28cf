// What a run's metrics.jsonl says was done, for who goes on with the run.
#pragma once

#include <cstdint>
#include <string>

namespace omni::trainer {

// True if the file at `path` has the results of an evaluation after `step`. A line torn by a crash
// is none, and neither is a file that can't be read.
bool HasEvaluation(const std::string& path, int64_t step);

// Tokens that its last step had seen in all; 0 if there is none.
double TokensReported(const std::string& path);

}  // namespace omni::trainer
