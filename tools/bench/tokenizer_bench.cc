// Encoding speed of a tokenizer.json, one thread.
//
//   tokenizer_bench                            the small golden tokenizers on their test strings,
//                                              which are odd ones (Google Benchmark)
//   tokenizer_bench FILE TEXT SECONDS [IDS]    a tokenizer on a text, for compare_tokenizers.py:
//                                              passes over the whole text for SECONDS of processor
//                                              time; prints the best and the median pass as JSON
//                                              and writes the ids of one to IDS as int32
// A text is cut where its documents end, at bytes of value 0.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "dataloader/bpe/bpe_tokenizer.h"
#include "runtime/base/check.h"
#include "runtime/base/file.h"
#include "tests/dataloader/bpe/golden_file.h"

namespace omni::dataloader {
namespace {

std::unique_ptr<BpeTokenizer> Parse(const std::string& json, const std::string& name) {
  auto tokenizer = BpeTokenizer::FromJson(json, name);
  OMNI_CHECK_OK(tokenizer.status());
  return *std::move(tokenizer);
}

void BM_Encode(benchmark::State& bench, const std::string& name) {
  const auto tokenizer = Parse(ReadGolden(name + "/tokenizer.json"), name);
  const std::vector<std::string> strings = GoldenStrings();
  int64_t bytes = 0, tokens = 0;
  std::vector<int32_t> ids;
  for (auto _ : bench) {
    for (const std::string& text : strings) {
      ids.clear();
      tokenizer->Encode(text, {}, &ids);
      bytes += static_cast<int64_t>(text.size());
      tokens += static_cast<int64_t>(ids.size());
    }
  }
  bench.SetBytesProcessed(bytes);
  bench.counters["tokens/s"] =
      benchmark::Counter(static_cast<double>(tokens), benchmark::Counter::kIsRate);
}
BENCHMARK_CAPTURE(BM_Encode, qwen, std::string("qwen"))->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(BM_Encode, llama3, std::string("llama3"))->Unit(benchmark::kMillisecond);

void BM_Load(benchmark::State& bench) {
  const std::string json = ReadGolden("qwen/tokenizer.json");
  for (auto _ : bench) benchmark::DoNotOptimize(Parse(json, "qwen"));
  bench.SetBytesProcessed(bench.iterations() * static_cast<int64_t>(json.size()));
}
BENCHMARK(BM_Load)->Unit(benchmark::kMillisecond);

std::string Read(const std::string& path) {
  absl::StatusOr<std::string> bytes = ReadFile(path);
  OMNI_CHECK_OK(bytes.status());
  return *std::move(bytes);
}

// Of the processor, which other programs on the machine disturb little.
double Seconds() { return static_cast<double>(std::clock()) / CLOCKS_PER_SEC; }

void EncodeFile(const std::string& tokenizer_path, const std::string& text_path, double seconds,
                const std::string& ids_path) {
  const std::string text = Read(text_path);
  const std::vector<absl::string_view> documents = absl::StrSplit(text, '\0');
  const double load_start = Seconds();
  const auto tokenizer = Parse(Read(tokenizer_path), tokenizer_path);
  const double load_s = Seconds() - load_start;
  std::vector<double> passes;
  std::vector<int32_t> ids;
  const double start = Seconds();
  do {
    ids.clear();
    const double pass_start = Seconds();
    for (const absl::string_view document : documents) {
      tokenizer->Encode(document, {.finds_reserved = true}, &ids);
    }
    passes.push_back(Seconds() - pass_start);
  } while (Seconds() - start < seconds);
  std::sort(passes.begin(), passes.end());
  const double megabytes = static_cast<double>(text.size()) / 1e6;
  absl::PrintF(
      "{\"mb_per_s\": {\"best\": %.3f, \"median\": %.3f}, \"passes\": %d, \"tokens\": %d, "
      "\"load_s\": %.3f}\n",
      megabytes / passes.front(), megabytes / passes[passes.size() / 2], passes.size(), ids.size(),
      load_s);
  if (ids_path.empty()) return;
  OMNI_CHECK_OK(WriteFileAtomically(
      ids_path, {reinterpret_cast<const char*>(ids.data()), ids.size() * sizeof(int32_t)}));
}

}  // namespace
}  // namespace omni::dataloader

int main(int argc, char** argv) {
  if (argc >= 4 && argv[1][0] != '-') {
    omni::dataloader::EncodeFile(argv[1], argv[2], std::atof(argv[3]), argc > 4 ? argv[4] : "");
    return 0;
  }
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
