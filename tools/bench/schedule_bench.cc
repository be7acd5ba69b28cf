// Building and verifying the programs of a pipeline, which every rank does before a step of a shape
// it has not met.
//
//   BM_BuildProgram   one rank's program
//   BM_BuildPrograms  all ranks'
//   BM_Verify         all ranks' programs, verified
//   build/bin/schedule_bench --benchmark_repetitions=20 --benchmark_report_aggregates_only
#include <benchmark/benchmark.h>

#include <vector>

#include "parallel/schedule/build.h"
#include "parallel/schedule/verify.h"
#include "runtime/base/check.h"

namespace omni::parallel {
namespace {

ScheduleOptions Options(const benchmark::State& bench) {
  const auto chunks = static_cast<int32_t>(bench.range(1));
  ScheduleOptions options;
  options.schedule = chunks == 1 ? ScheduleKind::k1F1B : ScheduleKind::kInterleaved;
  options.ranks = static_cast<int32_t>(bench.range(0));
  options.chunks_per_rank = chunks;
  options.microbatches = static_cast<int32_t>(bench.range(2));
  options.encoders = {{.trains = true}, {.trains = true}};
  return options;
}

void BM_BuildProgram(benchmark::State& bench) {
  const ScheduleOptions options = Options(bench);
  int32_t rank = 0;
  for (auto _ : bench) {
    const Program program = BuildProgram(options, rank);
    benchmark::DoNotOptimize(program.data());
    bench.counters["actions"] = static_cast<double>(program.size());
    rank = (rank + 1) % options.ranks;
  }
}

void BM_BuildPrograms(benchmark::State& bench) {
  const ScheduleOptions options = Options(bench);
  for (auto _ : bench) {
    const std::vector<Program> programs = BuildPrograms(options);
    benchmark::DoNotOptimize(programs.data());
  }
}

void BM_Verify(benchmark::State& bench) {
  const ScheduleOptions options = Options(bench);
  const std::vector<Program> programs = BuildPrograms(options);
  double actions = 0;
  for (const Program& program : programs) actions += static_cast<double>(program.size());
  bench.counters["actions"] = actions;
  for (auto _ : bench) OMNI_CHECK_OK(Verify(options, programs));
}

void Sizes(benchmark::internal::Benchmark* bench) {
  bench->ArgNames({"ranks", "chunks", "microbatches"})
      ->Args({8, 1, 64})
      ->Args({64, 1, 1024})
      ->Args({64, 8, 1024})
      ->Unit(benchmark::kMillisecond);
}
BENCHMARK(BM_BuildProgram)->Apply(Sizes);
BENCHMARK(BM_BuildPrograms)->Apply(Sizes);
BENCHMARK(BM_Verify)->Apply(Sizes);

}  // namespace
}  // namespace omni::parallel

BENCHMARK_MAIN();
