// Frames of a clip by their number in display order.
//
// The demuxer's list of packets tells which display time each number has and where the key
// frames are; groups of pictures in which nothing is wanted are not decoded.
#include <algorithm>
#include <cstring>

#include "dataloader/media/ffmpeg/input.h"

namespace omni::ffmpeg {
namespace {

constexpr int kRowAlignment = 64;

// Which packets must go through the decoder to get the wanted times. A group of pictures runs
// from one key frame to the next; frames shown before a key frame but stored behind it also need
// the group before.
std::vector<bool> PacketsToDecode(const std::vector<Input::PacketInfo>& packets,
                                  const std::vector<int64_t>& wanted_pts) {
  const size_t n = packets.size();
  std::vector<size_t> starts;
  for (size_t i = 0; i < n; ++i) {
    if (packets[i].is_key) starts.push_back(i);
  }
  if (starts.empty() || starts[0] != 0) return std::vector<bool>(n, true);
  starts.push_back(n);
  std::vector<bool> decode(n, false);
  for (size_t g = 0; g + 1 < starts.size(); ++g) {
    const int64_t key_pts = packets[starts[g]].pts;
    for (size_t i = starts[g]; i < starts[g + 1]; ++i) {
      if (!std::binary_search(wanted_pts.begin(), wanted_pts.end(), packets[i].pts)) continue;
      const size_t from = packets[i].pts < key_pts && g > 0 ? starts[g - 1] : starts[g];
      std::fill(decode.begin() + from, decode.begin() + starts[g + 1], true);
    }
  }
  return decode;
}

class Decoder {
 public:
  Decoder(const uint8_t* data, int64_t size, int32_t width, int32_t height,
          OmniFrameFunction on_frame, void* user)
      : data_(data),
        size_(size),
        width_(width),
        height_(height),
        on_frame_(on_frame),
        user_(user) {}

  Failure Run(const int64_t* indices, int64_t count, uint8_t* rgb, double* timestamps_s);

 private:
  Failure Plan(const int64_t* indices, int64_t count);
  Failure OpenCodec(Input* input);
  Failure Feed(const AVPacket* packet);  // null: drain
  Failure Take(const AVFrame& frame);
  Failure Scale(const AVFrame& frame, uint8_t* rgb);
  // Where the frame of wanted_[next_] goes.
  uint8_t* Place(size_t next) const {
    return on_frame_ != nullptr ? rgb_ : rgb_ + static_cast<int64_t>(next) * width_ * height_ * 3;
  }
  void Told(size_t next) const {
    if (on_frame_ != nullptr) on_frame_(user_, static_cast<int64_t>(next));
  }

  const uint8_t* data_;
  int64_t size_;
  int32_t width_, height_;
  OmniFrameFunction on_frame_;  // may be null
  void* user_;

  std::vector<Input::PacketInfo> packets_;
  bool has_times_ = true;        // else frames are counted
  std::vector<int64_t> wanted_;  // display times, sorted, one per index
  int64_t first_pts_ = 0, last_pts_ = 0;
  double time_base_ = 1;
  int64_t num_packets_shown_ = 0;  // counts decoded frames if has_times_ is false

  CodecContext codec_;
  Scaler scaler_;
  std::vector<uint8_t> padded_;  // one frame with aligned rows
  Frame frame_, last_;
  uint8_t* rgb_ = nullptr;
  double* timestamps_s_ = nullptr;
  size_t next_ = 0;  // the first of wanted_ not written yet
};

Failure Decoder::Plan(const int64_t* indices, int64_t count) {
  Input input(data_, size_);
  if (Failure failure = input.Open(); !failure.ok()) return failure;
  if (Failure failure = input.ListPackets(&packets_); !failure.ok()) return failure;
  std::vector<int64_t> times;
  for (const auto& packet : packets_) {
    has_times_ = has_times_ && packet.pts != AV_NOPTS_VALUE;
    times.push_back(packet.pts);
  }
  std::sort(times.begin(), times.end());
  if (!has_times_) {
    for (size_t i = 0; i < times.size(); ++i) times[i] = static_cast<int64_t>(i);
  }
  time_base_ = has_times_ ? av_q2d(input.stream()->time_base) : 1;
  first_pts_ = times.front();
  last_pts_ = times.back();
  for (int64_t i = 0; i < count; ++i) {
    if (indices[i] < 0 || (i > 0 && indices[i] < indices[i - 1])) {
      return BadRequest("frame numbers must not decrease");
    }
    if (indices[i] >= static_cast<int64_t>(times.size())) {
      return BadData("clip has " + std::to_string(times.size()) + " frames, number " +
                     std::to_string(indices[i]) + " was asked for");
    }
    wanted_.push_back(times[indices[i]]);
  }
  return Ok();
}

Failure Decoder::OpenCodec(Input* input) {
  const AVCodecParameters* parameters = input->stream()->codecpar;
  const AVCodec* codec = avcodec_find_decoder(parameters->codec_id);
  if (codec == nullptr) {
    return Unsupported(std::string("this FFmpeg has no decoder for ") +
                       avcodec_get_name(parameters->codec_id));
  }
  codec_.reset(avcodec_alloc_context3(codec));
  if (codec_ == nullptr) return NoMemory();
  avcodec_parameters_to_context(codec_.get(), parameters);
  codec_->thread_count = 1;
  codec_->max_pixels = kMaxPixels;
  codec_->err_recognition = AV_EF_EXPLODE;
  const int opened = avcodec_open2(codec_.get(), codec, nullptr);
  // Threads that can't be started are no fault of the clip.
  if (opened == AVERROR(EAGAIN) || opened == AVERROR(EMFILE) || opened == AVERROR(ENFILE)) {
    return {OMNI_FFMPEG_NO_MEMORY, "a decoder can't be started: " + ErrorText(opened)};
  }
  if (opened < 0) return BadData("corrupt clip: " + ErrorText(opened));
  return Ok();
}

Failure Decoder::Scale(const AVFrame& frame, uint8_t* rgb) {
  // Frames that keep their size get the bytes that PyAV, torchvision and torchcodec give, which
  // repeat a chroma sample for its pixels instead of interpolating.
  const bool is_whole = frame.width == width_ && frame.height == height_;
  const int flags = is_whole ? SWS_BILINEAR : SWS_BICUBIC | SWS_ACCURATE_RND | SWS_FULL_CHR_H_INT;
  scaler_.reset(sws_getCachedContext(scaler_.release(), frame.width, frame.height,
                                     static_cast<AVPixelFormat>(frame.format), width_, height_,
                                     AV_PIX_FMT_RGB24, flags, nullptr, nullptr, nullptr));
  if (scaler_ == nullptr) return Unsupported("frames of this pixel format can't be scaled");
  const int matrix = frame.colorspace == AVCOL_SPC_BT709 ? SWS_CS_ITU709 : SWS_CS_ITU601;
  const bool is_full_range =
      frame.color_range == AVCOL_RANGE_JPEG || frame.format == AV_PIX_FMT_YUVJ420P;
  sws_setColorspaceDetails(scaler_.get(), sws_getCoefficients(matrix), is_full_range ? 1 : 0,
                           sws_getCoefficients(SWS_CS_DEFAULT), 1, 0, 1 << 16, 1 << 16);
  // Frames kept whole are converted 8 pixels at a time: a row ends with those that fit its stride.
  const int row_bytes = width_ * 3;
  const int stride =
      is_whole ? (row_bytes + 2 * kRowAlignment - 1) / kRowAlignment * kRowAlignment : row_bytes;
  if (stride > row_bytes) padded_.resize(static_cast<size_t>(stride) * height_);
  uint8_t* planes[4] = {stride > row_bytes ? padded_.data() : rgb, nullptr, nullptr, nullptr};
  const int strides[4] = {stride, 0, 0, 0};
  sws_scale(scaler_.get(), frame.data, frame.linesize, 0, frame.height, planes, strides);
  for (int y = 0; y < height_ && stride > row_bytes; ++y) {
    std::memcpy(rgb + static_cast<size_t>(y) * row_bytes,
                padded_.data() + static_cast<size_t>(y) * stride, row_bytes);
  }
  return Ok();
}

// A decoded frame, in display order: writes every wanted time it has reached.
Failure Decoder::Take(const AVFrame& frame) {
  const int64_t pts = has_times_ && frame.best_effort_timestamp != AV_NOPTS_VALUE
                          ? frame.best_effort_timestamp
                          : num_packets_shown_;
  ++num_packets_shown_;
  const int64_t frame_bytes = int64_t{width_} * height_ * 3;
  const size_t first = next_;
  while (next_ < wanted_.size() && wanted_[next_] <= pts) {
    if (next_ == first) {
      if (Failure failure = Scale(frame, Place(next_)); !failure.ok()) return failure;
    } else if (on_frame_ == nullptr) {
      std::memcpy(Place(next_), Place(first), frame_bytes);
    }
    Told(next_);
    if (timestamps_s_ != nullptr) {
      timestamps_s_[next_] = static_cast<double>(pts - first_pts_) * time_base_;
    }
    ++next_;
  }
  return Ok();
}

Failure Decoder::Feed(const AVPacket* packet) {
  int sent = avcodec_send_packet(codec_.get(), packet);
  if (sent < 0 && sent != AVERROR_EOF) return BadData("corrupt clip: " + ErrorText(sent));
  while (true) {
    const int got = avcodec_receive_frame(codec_.get(), frame_.get());
    if (got == AVERROR(EAGAIN) || got == AVERROR_EOF) return Ok();
    if (got < 0) return BadData("corrupt clip: " + ErrorText(got));
    if (Failure failure = Take(*frame_); !failure.ok()) return failure;
    std::swap(frame_, last_);
    av_frame_unref(frame_.get());
  }
}

Failure Decoder::Run(const int64_t* indices, int64_t count, uint8_t* rgb, double* timestamps_s) {
  if (width_ < 1 || height_ < 1 || count < 0) return BadRequest("no frames of no size");
  if (count == 0) return Ok();
  rgb_ = rgb;
  timestamps_s_ = timestamps_s;
  if (Failure failure = Plan(indices, count); !failure.ok()) return failure;
  const std::vector<bool> decode =
      has_times_ ? PacketsToDecode(packets_, wanted_) : std::vector<bool>(packets_.size(), true);
  Input input(data_, size_);
  if (Failure failure = input.Open(); !failure.ok()) return failure;
  if (Failure failure = OpenCodec(&input); !failure.ok()) return failure;
  frame_.reset(av_frame_alloc());
  last_.reset(av_frame_alloc());
  Packet packet(av_packet_alloc());
  if (frame_ == nullptr || last_ == nullptr || packet == nullptr) return NoMemory();

  bool skipped = false;
  for (size_t i = 0; i < packets_.size() && next_ < wanted_.size(); ++i) {
    bool end = false;
    if (Failure failure = input.NextPacket(packet.get(), &end); !failure.ok()) return failure;
    if (end) break;
    Failure failure = Ok();
    if (!decode[i]) {
      skipped = true;
    } else {
      if (skipped) {  // what the decoder still holds belongs to a group before the gap
        failure = Feed(nullptr);
        avcodec_flush_buffers(codec_.get());
        skipped = false;
      }
      if (failure.ok() && next_ < wanted_.size()) failure = Feed(packet.get());
    }
    av_packet_unref(packet.get());
    if (!failure.ok()) return failure;
  }
  if (next_ < wanted_.size()) {
    if (Failure failure = Feed(nullptr); !failure.ok()) return failure;
  }
  if (next_ == wanted_.size()) return Ok();

  // Hidden frames count as packets but are never shown: the last one shown stands for them.
  const double missing = static_cast<double>(wanted_.back()) -
                         static_cast<double>(last_->width > 0 ? last_->best_effort_timestamp : 0);
  const double clip = static_cast<double>(last_pts_) - static_cast<double>(first_pts_);
  if (last_->width == 0 || (has_times_ && missing > clip / 20)) {
    return BadData("clip is torn: its decoder gave " + std::to_string(num_packets_shown_) +
                   " frames, " + std::to_string(packets_.size()) + " were expected");
  }
  for (; next_ < wanted_.size(); ++next_) {
    if (Failure failure = Scale(*last_, Place(next_)); !failure.ok()) return failure;
    Told(next_);
    if (timestamps_s_ != nullptr) {
      timestamps_s_[next_] =
          static_cast<double>(last_->best_effort_timestamp - first_pts_) * time_base_;
    }
  }
  return Ok();
}

}  // namespace

int Decode(const uint8_t* data, int64_t size, const int64_t* indices, int64_t num_indices,
           int32_t width, int32_t height, uint8_t* rgb, OmniFrameFunction on_frame, void* user,
           double* timestamps_s, char* error, int64_t error_size) {
  Decoder decoder(data, size, width, height, on_frame, user);
  return Report(decoder.Run(indices, num_indices, rgb, timestamps_s), error, error_size);
}

}  // namespace omni::ffmpeg
