#include "parallel/schedule/program.h"

namespace omni::parallel {

Program PlainProgram(int32_t num_microbatches) {
  Program program;
  for (int32_t i = 0; i < num_microbatches; ++i) {
    program.push_back({ActionKind::kForwardBackward, i});
  }
  program.push_back({ActionKind::kAgree});
  program.push_back({ActionKind::kReduceGradients});
  program.push_back({ActionKind::kUpdate});
  program.push_back({ActionKind::kGatherParameters});
  return program;
}

}  // namespace omni::parallel
