// The commands of `omnitrain`, apart from the reading of their flags (main.cc).
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "trainer/job.h"

namespace omni::tools {

struct TrainCommand {
  std::string recipe;
  std::vector<std::string> overrides;  // key.path=value
  std::string run_dir;                 // "": runs/<name>
  std::string address = "127.0.0.1:0";
  std::vector<std::string> allow;  // keys that may differ from those of the run that goes on
  std::string address_file;        // "": none; appears, with the real port, once workers can come
  bool start_workers = true;       // false: `omnitrain coordinator`, workers start by hand
};
absl::StatusOr<trainer::JobEnd> Train(const TrainCommand& command);

struct WorkerCommand {
  std::string coordinator;
  int32_t rank = -1, local_rank = 0;
  std::string host;
  double wait_s = 30;                              // for the coordinator to answer at all
  int64_t parent = 0;                              // pid to die with; 0: none
  std::function<void(int32_t rank)> on_rank = {};  // once it is known; may be empty
};
absl::Status Worker(const WorkerCommand& command);

struct EvalCommand {
  std::string run_dir;
  std::vector<std::string> overrides;
  bool blind = false;
  bool json = false;
};
absl::Status Eval(const EvalCommand& command);

struct ConvertCommand {
  std::string checkpoint;  // a run directory (its newest) or one of its checkpoints
  std::string out;         // new folder, as transformers loads it
  std::string dtype;       // "fp32", "bf16"; "": as config.json says
  bool adapter = false;    // of a model with adapters: them alone, as PEFT loads them
};
absl::Status Convert(const ConvertCommand& command);

// Indexes tar shards: folders, globs or files. Samples that training will leave out are named.
absl::Status DataIndex(const std::vector<std::string>& paths);

}  // namespace omni::tools
