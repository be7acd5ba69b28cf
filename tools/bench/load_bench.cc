// Loading published weights against a plain parallel read of the same files.
//
//   build/bin/load_bench [--mib=1024] [--runs=10] [--folder=/tmp]
//
// Writes a Qwen2 model of that size in bf16, in shards of 256 MiB, then alternates: all bytes of
// the files by as many threads as the loader has, and the loader, into memory that is there
// already, in bf16 (the stored type) and fp32 (converted). The files are in the page cache, which
// is the hardest case: a disk or a network only makes the plain read slower. Prints medians, their
// ratio, and how far the process grew beyond the memory the weights were read into.
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_format.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "runtime/base/check.h"
#include "runtime/base/file.h"
#include "runtime/checkpoint/read_ranges.h"
#include "trainer/assemble.h"
#include "trainer/huggingface/export.h"

namespace omni::trainer {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kMib = int64_t{1} << 20;

// Some values, so that no page is a page of zeros.
class Pattern : public TensorSource {
 public:
  absl::Status Read(const TensorRange& range) const override {
    auto* bytes = static_cast<uint8_t*>(range.data.data);
    for (int64_t i = 0; i < range.data.num_bytes(); ++i) bytes[i] = static_cast<uint8_t>(i * 7);
    return absl::OkStatus();
  }
};

std::vector<parallel::ParameterSpec> SpecsOf(const FamilyModel& family) {
  encoders::EncoderRegistry registry;
  encoders::RegisterEncoders(registry);
  const auto section = ConfigNode::Parse(family.model_yaml, "model.yaml");
  OMNI_CHECK_OK(section.status());
  const auto model = MultimodalModel::Create(*section, registry);
  OMNI_CHECK_OK(model.status());
  return (*model)->Parameters();
}

// About `mib` of bf16: layers of 25 MiB, and two embeddings of 31 MiB.
void MakeModel(const std::string& folder, int64_t mib) {
  fs::create_directories(folder);
  const int64_t layers = std::max<int64_t>(1, (mib - 62) / 25);
  std::ofstream(folder + "/config.json") << absl::StrFormat(
      R"({"architectures": ["Qwen2ForCausalLM"], "hidden_size": 1024, "intermediate_size": 2816,
          "num_hidden_layers": %d, "num_attention_heads": 16, "vocab_size": 16000,
          "dtype": "bfloat16"})",
      layers);
  const auto family = ReadFamilyFolder(folder, [](const std::string&) { return false; });
  OMNI_CHECK_OK(family.status());
  OMNI_CHECK_OK(ExportWeights(Pattern(), SpecsOf(*family), *family, nullptr,
                              {.dtype = DType::kBFloat16, .shard_bytes = 256 * kMib}, folder));
}

// Blocks of all files, by `num_threads`, into `to`.
void PlainRead(const std::vector<std::string>& files, unsigned num_threads, std::byte* to) {
  constexpr int64_t kBlock = 8 * kMib;
  struct Block {
    int fd;
    int64_t offset, bytes;
    std::byte* to;
  };
  std::vector<Block> blocks;
  std::vector<int> descriptors;
  for (const std::string& file : files) {
    descriptors.push_back(open(file.c_str(), O_RDONLY));
    const auto size = static_cast<int64_t>(fs::file_size(file));
    for (int64_t at = 0; at < size; at += kBlock) {
      blocks.push_back({descriptors.back(), at, std::min(kBlock, size - at), to});
      to += blocks.back().bytes;
    }
  }
  std::atomic<size_t> next{0};
  std::vector<std::thread> threads;
  for (unsigned i = 0; i < num_threads; ++i) {
    threads.emplace_back([&] {
      for (size_t b = next.fetch_add(1); b < blocks.size(); b = next.fetch_add(1)) {
        OMNI_CHECK_EQ(pread(blocks[b].fd, blocks[b].to, blocks[b].bytes, blocks[b].offset),
                      blocks[b].bytes);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const int fd : descriptors) close(fd);
}

double Seconds(const std::function<void()>& work) {
  const absl::Time begin = absl::Now();
  work();
  return absl::ToDoubleSeconds(absl::Now() - begin);
}

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// A line of /proc/self/status, in MiB.
double StatusMib(const char* key) {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.rfind(key, 0) == 0) return std::stod(line.substr(std::strlen(key) + 1)) / 1024;
  }
  return 0;
}

void Run(const std::string& folder, int runs) {
  std::vector<std::string> files;
  int64_t file_bytes = 0;
  for (const auto& entry : fs::directory_iterator(folder)) {
    if (entry.path().extension() != ".safetensors") continue;
    files.push_back(entry.path().string());
    file_bytes += static_cast<int64_t>(entry.file_size());
  }
  std::vector<std::byte> plain(file_bytes, std::byte{1});
  const unsigned threads = std::clamp(std::thread::hardware_concurrency(), 4u, 16u);
  for (const DType dtype : {DType::kBFloat16, DType::kFloat32}) {
    const auto model = PretrainedModel::Open(folder);
    OMNI_CHECK_OK(model.status());
    std::vector<std::byte> values(file_bytes / 2 * SizeOf(dtype), std::byte{1});
    std::vector<TensorRange> ranges;
    std::byte* next = values.data();
    for (const parallel::ParameterSpec& spec : SpecsOf((*model)->family())) {
      ranges.push_back({.name = spec.path,
                        .shape = spec.shape,
                        .data = TensorView::Dense(next, dtype, DeviceKind::kCpu, spec.shape)});
      next += ranges.back().data.num_bytes();
    }
    std::vector<double> plain_s, load_s;
    std::ofstream("/proc/self/clear_refs") << "5";  // the high-water mark starts anew
    const double before_mib = StatusMib("VmRSS:");
    for (int run = 0; run < runs; ++run) {
      plain_s.push_back(Seconds([&] { PlainRead(files, threads, plain.data()); }));
      load_s.push_back(Seconds([&] { OMNI_CHECK_OK(ReadRanges(**model, ranges)); }));
    }
    const double gb = static_cast<double>(file_bytes) / 1e9;
    std::printf("%s: plain read %.2f GB/s, loading %.2f GB/s, %.0f %%; grew by %.0f MiB\n",
                std::string(Name(dtype)).c_str(), gb / Median(plain_s), gb / Median(load_s),
                100 * Median(plain_s) / Median(load_s), StatusMib("VmHWM:") - before_mib);
  }
}

int Main(int argc, char** argv) {
  int64_t mib = 1024;
  int runs = 10;
  std::string folder = "/tmp";
  for (int i = 1; i < argc; ++i) {
    absl::string_view flag = argv[i];
    if (absl::ConsumePrefix(&flag, "--mib=")) {
      OMNI_CHECK(absl::SimpleAtoi(flag, &mib));
    } else if (absl::ConsumePrefix(&flag, "--runs=")) {
      OMNI_CHECK(absl::SimpleAtoi(flag, &runs));
    } else if (absl::ConsumePrefix(&flag, "--folder=")) {
      folder = std::string(flag);
    } else {
      std::fprintf(stderr, "load_bench [--mib=N] [--runs=N] [--folder=DIR]\n");
      return 2;
    }
  }
  folder += absl::StrFormat("/omnitrain-load-bench-%d", getpid());
  MakeModel(folder, mib);
  Run(folder, runs);
  fs::remove_all(folder);
  return 0;
}

}  // namespace
}  // namespace omni::trainer

int main(int argc, char** argv) { return omni::trainer::Main(argc, argv); }
