#include "dataloader/media/video.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "dataloader/media/bytes.h"
#include "dataloader/media/ffmpeg_plugin.h"
#include "runtime/base/check.h"
#include "runtime/base/plugin.h"
#include "runtime/base/status.h"

namespace omni::dataloader {
namespace {

constexpr Plugin kPlugin = {.file = "omnitrain_ffmpeg.so",
                            .environment = "OMNITRAIN_FFMPEG_PLUGIN",
                            .entry = OMNI_FFMPEG_ENTRY};

absl::Status ToStatus(int code, const char* error) {
  switch (code) {
    case OMNI_FFMPEG_OK:
      return absl::OkStatus();
    case OMNI_FFMPEG_BAD_DATA:
      return absl::DataLossError(error);
    case OMNI_FFMPEG_BAD_REQUEST:
      return absl::InvalidArgumentError(error);
    case OMNI_FFMPEG_UNSUPPORTED:
      return absl::UnimplementedError(error);
    default:
      return absl::ResourceExhaustedError(error);
  }
}

}  // namespace

// The shared library stays loaded until the process ends: FFmpeg's do not like being unloaded.
struct VideoPlugin::Library {
  OmniFfmpegTable table{};
};

VideoPlugin::VideoPlugin(std::unique_ptr<Library> library) : library_(std::move(library)) {}
VideoPlugin::~VideoPlugin() = default;

absl::StatusOr<std::shared_ptr<const VideoPlugin>> VideoPlugin::Load(const std::string& path) {
  auto library = std::make_unique<Library>();
  const absl::Status status = OpenPlugin(kPlugin, path, [&](void* entry) {
    return reinterpret_cast<OmniFfmpegFillTableFunction>(entry)(OMNI_FFMPEG_ABI_VERSION,
                                                                &library->table) == OMNI_FFMPEG_OK;
  });
  if (status.ok()) return std::shared_ptr<const VideoPlugin>(new VideoPlugin(std::move(library)));
  return absl::FailedPreconditionError(absl::StrCat(
      "video needs the FFmpeg plugin, which does not load; ", status.message(),
      ". Build the target omnitrain_ffmpeg (FFmpeg's development packages: make setup), or set ",
      kPlugin.environment,
      " to its path; at run time it needs FFmpeg's libraries (Debian: apt install "
      "libavformat59 libswscale6)"));
}

std::string VideoPlugin::version() const { return library_->table.version; }

absl::StatusOr<MediaInfo> VideoPlugin::Probe(absl::string_view bytes) const {
  char error[256] = "";
  OmniVideoInfo info{};
  OMNI_RETURN_IF_ERROR(ToStatus(
      library_->table.probe(Data(bytes), bytes.size(), &info, error, sizeof error), error));
  return MediaInfo{.kind = MediaKind::kVideo,
                   .format = SniffFormat(bytes),
                   .height = info.height,
                   .width = info.width,
                   .num_frames = info.num_frames,
                   .fps = info.fps,
                   .duration_s = info.duration_s};
}

absl::Status VideoPlugin::Decode(absl::string_view bytes, absl::Span<const int64_t> indices,
                                 ImageSize size, absl::Span<uint8_t> rgb,
                                 std::vector<double>* timestamps_s) const {
  OMNI_CHECK_EQ(rgb.size(), indices.size() * size.height * size.width * 3);
  if (timestamps_s != nullptr) timestamps_s->assign(indices.size(), 0.0);
  char error[256] = "";
  return ToStatus(library_->table.decode(Data(bytes), bytes.size(), indices.data(), indices.size(),
                                         size.width, size.height, rgb.data(),
                                         /*on_frame=*/nullptr, /*user=*/nullptr,
                                         timestamps_s == nullptr ? nullptr : timestamps_s->data(),
                                         error, sizeof error),
                  error);
}

absl::Status VideoPlugin::DecodeEach(absl::string_view bytes, absl::Span<const int64_t> indices,
                                     ImageSize size, absl::Span<uint8_t> rgb,
                                     absl::FunctionRef<void(int64_t i)> on_frame) const {
  OMNI_CHECK_EQ(static_cast<int64_t>(rgb.size()), int64_t{size.height} * size.width * 3);
  const auto call = [](void* user, int64_t i) {
    (*static_cast<absl::FunctionRef<void(int64_t)>*>(user))(i);
  };
  char error[256] = "";
  return ToStatus(library_->table.decode(Data(bytes), bytes.size(), indices.data(), indices.size(),
                                         size.width, size.height, rgb.data(), call, &on_frame,
                                         /*timestamps_s=*/nullptr, error, sizeof error),
                  error);
}

absl::StatusOr<std::string> VideoPlugin::Encode(absl::Span<const uint8_t> frames, ImageSize size,
                                                const EncodeOptions& options) const {
  const int64_t frame_bytes = int64_t{size.height} * size.width * 3;
  if (frame_bytes <= 0 || frames.empty() || frames.size() % frame_bytes != 0) {
    return absl::InvalidArgumentError(absl::StrCat(frames.size(), " bytes are not whole frames of ",
                                                   size.width, " x ", size.height));
  }
  if (options.format != MediaFormat::kMp4 && options.format != MediaFormat::kWebm) {
    return absl::InvalidArgumentError(
        absl::StrCat("clips are written as MP4 or WebM, not ", Name(options.format)));
  }
  const OmniVideoEncodeRequest request{
      .rgb = frames.data(),
      .num_frames = static_cast<int64_t>(frames.size()) / frame_bytes,
      .width = size.width,
      .height = size.height,
      .fps_numerator = options.fps,
      .fps_denominator = 1,
      .quality = options.quality,
      .container = options.format == MediaFormat::kMp4 ? "mp4" : "webm"};
  char error[256] = "";
  uint8_t* file = nullptr;
  int64_t file_size = 0;
  OMNI_RETURN_IF_ERROR(
      ToStatus(library_->table.encode(&request, &file, &file_size, error, sizeof error), error));
  std::string bytes(reinterpret_cast<const char*>(file), file_size);
  library_->table.free_file(file);
  return bytes;
}

}  // namespace omni::dataloader
