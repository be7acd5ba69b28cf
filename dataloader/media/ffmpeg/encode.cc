// RGB frames into an MP4 or WebM file in memory.
#include <cstring>

#include "dataloader/media/ffmpeg/input.h"

namespace omni::ffmpeg {
namespace {

class Output {
 public:
  ~Output() {
    if (format_ == nullptr) return;
    if (format_->pb != nullptr) {
      uint8_t* rest = nullptr;
      avio_close_dyn_buf(format_->pb, &rest);
      av_free(rest);
    }
    avformat_free_context(format_);
  }

  Failure Run(const OmniVideoEncodeRequest& request, uint8_t** file, int64_t* file_size);

 private:
  Failure Open(const OmniVideoEncodeRequest& request);
  Failure Write(AVFrame* frame);  // null: drain

  AVFormatContext* format_ = nullptr;
  AVStream* stream_ = nullptr;
  CodecContext codec_;
  Packet packet_;
};

Failure Output::Open(const OmniVideoEncodeRequest& request) {
  const bool is_mp4 = std::strcmp(request.container, "mp4") == 0;
  if (!is_mp4 && std::strcmp(request.container, "webm") != 0) {
    return BadRequest(std::string("container ") + request.container + ", expected mp4 or webm");
  }
  const char* codec_name = is_mp4 ? "libx264" : "libvpx";
  const AVCodec* codec = avcodec_find_encoder_by_name(codec_name);
  if (codec == nullptr) return Unsupported(std::string("this FFmpeg lacks ") + codec_name);
  if (avformat_alloc_output_context2(&format_, nullptr, request.container, nullptr) < 0) {
    return Unsupported(std::string("this FFmpeg can't write ") + request.container);
  }
  // No dates, no version strings: the same frames give the same bytes.
  format_->flags |= AVFMT_FLAG_BITEXACT;
  codec_.reset(avcodec_alloc_context3(codec));
  packet_.reset(av_packet_alloc());
  stream_ = avformat_new_stream(format_, nullptr);
  if (codec_ == nullptr || packet_ == nullptr || stream_ == nullptr) return NoMemory();
  codec_->width = request.width;
  codec_->height = request.height;
  codec_->pix_fmt = AV_PIX_FMT_YUV420P;
  codec_->time_base = {request.fps_denominator, request.fps_numerator};
  codec_->framerate = {request.fps_numerator, request.fps_denominator};
  codec_->thread_count = 1;
  codec_->flags |= AV_CODEC_FLAG_BITEXACT;
  if ((format_->oformat->flags & AVFMT_GLOBALHEADER) != 0) {
    codec_->flags |= AV_CODEC_FLAG_GLOBAL_HEADER;
  }
  av_opt_set_int(codec_->priv_data, "crf", request.quality, 0);
  if (is_mp4) {
    av_opt_set(codec_->priv_data, "preset", "veryfast", 0);
    // x264's macroblock tree reads memory it has not written when a side is no multiple of 16
    // (seen with 56 x 56 in build 164): the same frames gave other bytes in 1 clip of 5.
    av_opt_set(codec_->priv_data, "x264-params", "mbtree=0", 0);
  } else {
    codec_->bit_rate = int64_t{request.width} * request.height * 8;  // a ceiling; crf decides
    av_opt_set(codec_->priv_data, "deadline", "realtime", 0);
    av_opt_set_int(codec_->priv_data, "cpu-used", 4, 0);
  }
  const int opened = avcodec_open2(codec_.get(), codec, nullptr);
  if (opened < 0) return BadRequest(std::string(codec_name) + ": " + ErrorText(opened));
  avcodec_parameters_from_context(stream_->codecpar, codec_.get());
  stream_->time_base = codec_->time_base;
  stream_->avg_frame_rate = codec_->framerate;
  if (avio_open_dyn_buf(&format_->pb) < 0) return NoMemory();
  const int begun = avformat_write_header(format_, nullptr);
  if (begun < 0) return BadRequest("container: " + ErrorText(begun));
  return Ok();
}

Failure Output::Write(AVFrame* frame) {
  int code = avcodec_send_frame(codec_.get(), frame);
  if (code < 0) return BadRequest("encoder: " + ErrorText(code));
  while (true) {
    code = avcodec_receive_packet(codec_.get(), packet_.get());
    if (code == AVERROR(EAGAIN) || code == AVERROR_EOF) return Ok();
    if (code < 0) return BadRequest("encoder: " + ErrorText(code));
    if (packet_->duration == 0) packet_->duration = 1;
    av_packet_rescale_ts(packet_.get(), codec_->time_base, stream_->time_base);
    packet_->stream_index = stream_->index;
    code = av_interleaved_write_frame(format_, packet_.get());
    if (code < 0) return BadRequest("container: " + ErrorText(code));
  }
}

Failure Output::Run(const OmniVideoEncodeRequest& request, uint8_t** file, int64_t* file_size) {
  if (request.num_frames < 1 || request.width < 2 || request.height < 2 || request.width % 2 != 0 ||
      request.height % 2 != 0 || request.fps_numerator < 1 || request.fps_denominator < 1 ||
      request.quality < 0 || request.quality > 51) {
    return BadRequest(
        "a clip needs frames, even sides, a frame rate and a quality in [0, 51]; got " +
        std::to_string(request.num_frames) + " frames of " + std::to_string(request.width) + " x " +
        std::to_string(request.height) + ", quality " + std::to_string(request.quality));
  }
  if (Failure failure = Open(request); !failure.ok()) return failure;
  const Scaler scaler(sws_getContext(request.width, request.height, AV_PIX_FMT_RGB24, request.width,
                                     request.height, AV_PIX_FMT_YUV420P,
                                     SWS_BICUBIC | SWS_ACCURATE_RND, nullptr, nullptr, nullptr));
  const Frame frame(av_frame_alloc());
  if (scaler == nullptr || frame == nullptr) return NoMemory();
  frame->format = AV_PIX_FMT_YUV420P;
  frame->width = request.width;
  frame->height = request.height;
  if (av_frame_get_buffer(frame.get(), 0) < 0) return NoMemory();
  const int64_t frame_bytes = int64_t{request.width} * request.height * 3;
  const int strides[4] = {request.width * 3, 0, 0, 0};
  for (int64_t i = 0; i < request.num_frames; ++i) {
    if (av_frame_make_writable(frame.get()) < 0) return NoMemory();
    const uint8_t* planes[4] = {request.rgb + i * frame_bytes, nullptr, nullptr, nullptr};
    sws_scale(scaler.get(), planes, strides, 0, request.height, frame->data, frame->linesize);
    frame->pts = i;
    if (Failure failure = Write(frame.get()); !failure.ok()) return failure;
  }
  if (Failure failure = Write(nullptr); !failure.ok()) return failure;
  const int ended = av_write_trailer(format_);
  if (ended < 0) return BadRequest("container: " + ErrorText(ended));
  *file_size = avio_close_dyn_buf(format_->pb, file);
  format_->pb = nullptr;
  return *file == nullptr ? NoMemory() : Ok();
}

}  // namespace

int Encode(const OmniVideoEncodeRequest* request, uint8_t** file, int64_t* file_size, char* error,
           int64_t error_size) {
  *file = nullptr;
  *file_size = 0;
  Output output;
  return Report(output.Run(*request, file, file_size), error, error_size);
}

}  // namespace omni::ffmpeg
