// A clip in memory, opened by FFmpeg's demuxer. Part of the plugin: no other code of ours.
#pragma once

extern "C" {
#include <libavcodec/avcodec.h>
#include <libavformat/avformat.h>
#include <libavutil/imgutils.h>
#include <libavutil/opt.h>
#include <libswscale/swscale.h>
}

#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "dataloader/media/ffmpeg_plugin.h"

namespace omni::ffmpeg {

// A code of ffmpeg_plugin.h and its message.
struct Failure {
  int code = OMNI_FFMPEG_OK;
  std::string message;
  bool ok() const { return code == OMNI_FFMPEG_OK; }
};
inline Failure Ok() { return {}; }
inline Failure BadData(std::string message) { return {OMNI_FFMPEG_BAD_DATA, std::move(message)}; }
inline Failure BadRequest(std::string message) {
  return {OMNI_FFMPEG_BAD_REQUEST, std::move(message)};
}
inline Failure Unsupported(std::string message) {
  return {OMNI_FFMPEG_UNSUPPORTED, std::move(message)};
}
inline Failure NoMemory() { return {OMNI_FFMPEG_NO_MEMORY, "not enough memory"}; }
std::string ErrorText(int av_error);

struct FreeContext {
  void operator()(AVCodecContext* p) const { avcodec_free_context(&p); }
};
struct FreeFrame {
  void operator()(AVFrame* p) const { av_frame_free(&p); }
};
struct FreePacket {
  void operator()(AVPacket* p) const { av_packet_free(&p); }
};
struct FreeScaler {
  void operator()(SwsContext* p) const { sws_freeContext(p); }
};
using CodecContext = std::unique_ptr<AVCodecContext, FreeContext>;
using Frame = std::unique_ptr<AVFrame, FreeFrame>;
using Packet = std::unique_ptr<AVPacket, FreePacket>;
using Scaler = std::unique_ptr<SwsContext, FreeScaler>;

// The limits of image.h; one frame may not be larger.
inline constexpr int64_t kMaxPixels = int64_t{1} << 27;

class Input {
 public:
  Input(const uint8_t* data, int64_t size) : data_(data), size_(size) {}
  ~Input();
  Input(const Input&) = delete;
  Input& operator=(const Input&) = delete;

  // Opens the container and finds its first real video stream (cover pictures do not count).
  Failure Open();

  // The next packet of that stream; BadData at damage, and OK with *end at the end.
  Failure NextPacket(AVPacket* packet, bool* end);
  AVStream* stream() const { return stream_; }

  // One entry per packet of the stream, in the file's order.
  struct PacketInfo {
    int64_t pts = AV_NOPTS_VALUE;
    bool is_key = false;
  };
  // Reads to the end; fails if the file ends before the container said.
  Failure ListPackets(std::vector<PacketInfo>* packets);

 private:
  static int Read(void* self, uint8_t* out, int count);
  static int64_t Seek(void* self, int64_t offset, int whence);

  const uint8_t* data_;
  int64_t size_;
  int64_t position_ = 0;
  AVIOContext* io_ = nullptr;
  AVFormatContext* format_ = nullptr;
  AVStream* stream_ = nullptr;
};

int Probe(const uint8_t* data, int64_t size, OmniVideoInfo* info, char* error, int64_t error_size);
int Decode(const uint8_t* data, int64_t size, const int64_t* indices, int64_t num_indices,
           int32_t width, int32_t height, uint8_t* rgb, OmniFrameFunction on_frame, void* user,
           double* timestamps_s, char* error, int64_t error_size);
int Encode(const OmniVideoEncodeRequest* request, uint8_t** file, int64_t* file_size, char* error,
           int64_t error_size);

// Writes the message and returns the code.
int Report(const Failure& failure, char* error, int64_t error_size);

}  // namespace omni::ffmpeg
