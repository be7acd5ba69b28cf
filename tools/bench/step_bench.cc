// The model benchmark as a program of its own: step_bench gpt|vit [threads] [steps], prints
// JSON.
#include <cstdio>
#include <cstdlib>

#include "tools/bench_model.h"

int main(int argc, char** argv) {
  omni::tools::BenchModelOptions options;
  if (argc > 1) options.model = argv[1];
  if (argc > 2) options.threads = std::atoi(argv[2]);
  if (argc > 3) options.steps = std::atoi(argv[3]);
  const auto result = omni::tools::BenchModel(options);
  if (!result.ok()) {
    std::fprintf(stderr, "%s\n", std::string(result.status().message()).c_str());
    return 1;
  }
  std::printf("%s\n", result->ToJson().c_str());
  return 0;
}
