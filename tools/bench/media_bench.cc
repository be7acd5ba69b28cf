// Media from file bytes to what a batch holds, one core.
//
//   BM_JpegToPatches: beside TurboJPEG's bare decode of the same file, which it alternates with;
//   bare_share is the ratio of medians. Sides are multiples of two patches, so nothing is resized:
//   what is missing from 1 is the cost of packing.
//   BM_JpegResizeToPatches / BM_PngToPatches / BM_WebpToPatches: against
//   tools/bench/pillow_baseline.py, which does the same with Pillow and numpy on the files
//   --dump_dir writes.
//   BM_AudioToMel/<format>/<rate>: seconds of sound a second. BM_VideoToPatches: drawn frames/s.
#include <benchmark/benchmark.h>
#include <time.h>
#include <turbojpeg.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numbers>
#include <string>
#include <vector>

#include "dataloader/media/audio.h"
#include "dataloader/media/encode.h"
#include "dataloader/media/patches.h"
#include "dataloader/media/video.h"
#include "runtime/base/check.h"
#include "runtime/base/file.h"
#include "runtime/base/rng.h"

namespace omni::dataloader {
namespace {

// Something like a photograph: soft shapes under fine noise.
Image Picture(int32_t height, int32_t width) {
  const CounterRng rng(7, StreamOf("picture"));
  Image image{{height, width}, {}};
  image.rgb.reserve(int64_t{height} * width * 3);
  uint64_t draw = 0;
  for (int32_t y = 0; y < height; ++y) {
    for (int32_t x = 0; x < width; ++x) {
      const double wave = 60 * std::sin(x * 0.021) * std::cos(y * 0.017) + 40 * std::sin(x * 0.3);
      const double noise = rng.Uniform(draw++) * 16;
      for (int c = 0; c < 3; ++c) {
        image.rgb.push_back(
            static_cast<uint8_t>(std::clamp(110 + wave * (1 - 0.2 * c) + noise, 0.0, 255.0)));
      }
    }
  }
  return image;
}

const std::string& Encoded(MediaFormat format, int32_t height, int32_t width) {
  struct Entry {
    MediaFormat format;
    int32_t height, width;
    std::string bytes;
  };
  static std::vector<std::unique_ptr<Entry>> made;
  for (const auto& entry : made) {
    if (entry->format == format && entry->height == height && entry->width == width) {
      return entry->bytes;
    }
  }
  const Image image = Picture(height, width);
  std::string bytes = format == MediaFormat::kJpeg  ? EncodeJpeg(image, 90).value()
                      : format == MediaFormat::kPng ? EncodePng(image).value()
                                                    : EncodeWebp(image, 80).value();
  made.push_back(std::make_unique<Entry>(Entry{format, height, width, std::move(bytes)}));
  return made.back()->bytes;
}

void CountPictures(benchmark::State& state, int64_t pixels) {
  state.SetItemsProcessed(state.iterations());
  state.counters["Mpixel/s"] = benchmark::Counter(
      static_cast<double>(pixels) * static_cast<double>(state.iterations()) / 1e6,
      benchmark::Counter::kIsRate);
}

void BareDecode(tjhandle handle, const std::string& bytes, uint8_t* rgb) {
  const auto* data = reinterpret_cast<const uint8_t*>(bytes.data());
  int width = 0, height = 0, subsampling = 0, colorspace = 0;
  tjDecompressHeader3(handle, data, bytes.size(), &width, &height, &subsampling, &colorspace);
  OMNI_CHECK_EQ(tjDecompress2(handle, data, bytes.size(), rgb, width, 0, height, TJPF_RGB, 0), 0);
  benchmark::DoNotOptimize(rgb);
}

double ThreadSeconds() {
  timespec time{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

double Quantile(std::vector<double> values, double share) {
  std::sort(values.begin(), values.end());
  return values[static_cast<size_t>(share * static_cast<double>(values.size() - 1))];
}

// The benchmark's own time is ToPatches alone.
void BM_JpegToPatches(benchmark::State& state) {
  const int32_t side = static_cast<int32_t>(state.range(0));
  const std::string& bytes = Encoded(MediaFormat::kJpeg, side, side);
  const ImageOptions options{.geometry = {.patch = static_cast<int32_t>(state.range(1))},
                             .max_pixels = int64_t{side} * side};
  const PatchGrid grid = ImageGrid({side, side}, options).value();
  std::vector<uint8_t> rgb(int64_t{side} * side * 3);
  std::vector<uint8_t> rows(grid.num_rows() * options.geometry.row_elements());
  std::vector<double> bare_s, patches_s;
  tjhandle handle = tjInitDecompress();
  for (auto _ : state) {
    const double begin = ThreadSeconds();
    BareDecode(handle, bytes, rgb.data());
    const double middle = ThreadSeconds();
    OMNI_CHECK_OK(ImageToPatches(bytes, options, grid, absl::MakeSpan(rows)));
    benchmark::DoNotOptimize(rows.data());
    const double end = ThreadSeconds();
    bare_s.push_back(middle - begin);
    patches_s.push_back(end - middle);
    state.SetIterationTime(end - middle);
  }
  tjDestroy(handle);
  state.counters["bare_us"] = 1e6 * Quantile(bare_s, 0.5);
  state.counters["patches_us"] = 1e6 * Quantile(patches_s, 0.5);
  state.counters["patches_us_p99"] = 1e6 * Quantile(patches_s, 0.99);
  state.counters["bare_share"] = Quantile(bare_s, 0.5) / Quantile(patches_s, 0.5);
}

void ToPatches(benchmark::State& state, MediaFormat format, ImageSize size, int64_t max_pixels) {
  const std::string& bytes = Encoded(format, size.height, size.width);
  const ImageOptions options{.max_pixels = max_pixels};
  const PatchGrid grid = ImageGrid(size, options).value();
  std::vector<uint8_t> rows(grid.num_rows() * options.geometry.row_elements());
  for (auto _ : state) {
    OMNI_CHECK_OK(ImageToPatches(bytes, options, grid, absl::MakeSpan(rows)));
    benchmark::DoNotOptimize(rows.data());
  }
  CountPictures(state, int64_t{size.height} * size.width);
}

void BM_JpegResizeToPatches(benchmark::State& state) {
  ToPatches(state, MediaFormat::kJpeg,
            {static_cast<int32_t>(state.range(0)), static_cast<int32_t>(state.range(1))},
            state.range(2) * state.range(2));
}
void BM_PngToPatches(benchmark::State& state) {
  ToPatches(state, MediaFormat::kPng, {480, 640}, 336 * 336);
}
void BM_WebpToPatches(benchmark::State& state) {
  ToPatches(state, MediaFormat::kWebp, {480, 640}, 336 * 336);
}

void BM_AudioToMel(benchmark::State& state, MediaFormat format) {
  const int32_t rate = static_cast<int32_t>(state.range(0));
  constexpr int64_t kSeconds = 10;
  const CounterRng rng(3, StreamOf("sound"));
  std::vector<float> wave(kSeconds * rate);
  for (size_t i = 0; i < wave.size(); ++i) {
    wave[i] = static_cast<float>(
        0.3 * std::sin(2 * std::numbers::pi * 220 * static_cast<double>(i) / rate) +
        0.05 * (rng.Uniform(i) - 0.5));
  }
  const std::string bytes = EncodeAudio(wave, rate, format).value();
  const MediaInfo info = ProbeMedia(MediaKind::kAudio, bytes).value();
  const LogMel log_mel(80);
  std::vector<float> mel(MelFrames(info) * 80);
  for (auto _ : state) {
    OMNI_CHECK_OK(AudioToMel(bytes, {}, log_mel, MelFrames(info), absl::MakeSpan(mel)));
    benchmark::DoNotOptimize(mel.data());
  }
  state.counters["sound_s/s"] = benchmark::Counter(
      static_cast<double>(kSeconds * state.iterations()), benchmark::Counter::kIsRate);
}

void BM_VideoToPatches(benchmark::State& state, MediaFormat format) {
  absl::StatusOr<std::shared_ptr<const VideoPlugin>> plugin = VideoPlugin::Load();
  if (!plugin.ok()) {
    state.SkipWithError("no FFmpeg plugin");
    return;
  }
  constexpr ImageSize kSize{360, 640};
  std::vector<uint8_t> frames;
  for (int i = 0; i < 48; ++i) {
    Image frame = Picture(kSize.height, kSize.width);
    std::rotate(frame.rgb.begin(), frame.rgb.begin() + i * 12, frame.rgb.end());
    frames.insert(frames.end(), frame.rgb.begin(), frame.rgb.end());
  }
  const std::string bytes = (*plugin)->Encode(frames, kSize, {.format = format, .fps = 24}).value();
  const MediaInfo info = (*plugin)->Probe(bytes).value();
  const VideoPlan plan =
      PlanVideo(info, {.fps = 4, .max_frames = 16, .max_pixels = 224 * 224}).value();
  std::vector<uint8_t> rows(plan.grid.num_rows() * PatchGeometry{}.row_elements());
  for (auto _ : state) {
    OMNI_CHECK_OK(VideoToPatches(**plugin, bytes, info, plan, {}, absl::MakeSpan(rows)));
  }
  state.counters["drawn_frames/s"] =
      benchmark::Counter(static_cast<double>(plan.frame_indices.size() * state.iterations()),
                         benchmark::Counter::kIsRate);
  state.counters["clip_frames/s"] = benchmark::Counter(
      static_cast<double>(info.num_frames * state.iterations()), benchmark::Counter::kIsRate);
}

BENCHMARK(BM_JpegToPatches)
    ->ArgNames({"side", "patch"})
    ->Args({112, 14})
    ->Args({336, 14})
    ->Args({1008, 14})
    ->Args({1024, 16})
    ->UseManualTime();
BENCHMARK(BM_JpegResizeToPatches)
    ->ArgNames({"height", "width", "budget"})
    ->Args({480, 640, 336})
    ->Args({1080, 1920, 672})
    ->Args({1024, 1024, 448});
BENCHMARK(BM_PngToPatches);
BENCHMARK(BM_WebpToPatches);
BENCHMARK_CAPTURE(BM_AudioToMel, wav, MediaFormat::kWav)->ArgName("rate")->Arg(16000)->Arg(44100);
BENCHMARK_CAPTURE(BM_AudioToMel, flac, MediaFormat::kFlac)->ArgName("rate")->Arg(16000);
BENCHMARK_CAPTURE(BM_AudioToMel, ogg, MediaFormat::kOgg)->ArgName("rate")->Arg(16000);
BENCHMARK_CAPTURE(BM_AudioToMel, mp3, MediaFormat::kMp3)->ArgName("rate")->Arg(16000);
BENCHMARK_CAPTURE(BM_VideoToPatches, mp4, MediaFormat::kMp4);
BENCHMARK_CAPTURE(BM_VideoToPatches, webm, MediaFormat::kWebm);

// The files pillow_baseline.py reads.
void Dump(const std::string& folder) {
  const struct {
    const char* name;
    MediaFormat format;
    int32_t height, width;
  } kFiles[] = {{"480x640_336.jpg", MediaFormat::kJpeg, 480, 640},
                {"1080x1920_672.jpg", MediaFormat::kJpeg, 1080, 1920},
                {"1024x1024_448.jpg", MediaFormat::kJpeg, 1024, 1024},
                {"1008x1008_1008.jpg", MediaFormat::kJpeg, 1008, 1008},
                {"480x640_336.png", MediaFormat::kPng, 480, 640},
                {"480x640_336.webp", MediaFormat::kWebp, 480, 640}};
  for (const auto& file : kFiles) {
    OMNI_CHECK_OK(WriteFileAtomically(folder + "/" + file.name,
                                      Encoded(file.format, file.height, file.width)));
  }
}

}  // namespace
}  // namespace omni::dataloader

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (argc == 2 && std::strncmp(argv[1], "--dump_dir=", 11) == 0) {
    omni::dataloader::Dump(argv[1] + 11);
    return 0;
  }
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
