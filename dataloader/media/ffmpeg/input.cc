#include "dataloader/media/ffmpeg/input.h"

#include <algorithm>
#include <cstring>

namespace omni::ffmpeg {
namespace {

constexpr int kIoBytes = 1 << 16;

}  // namespace

std::string ErrorText(int av_error) {
  char text[AV_ERROR_MAX_STRING_SIZE] = "";
  av_strerror(av_error, text, sizeof text);
  return text;
}

int Report(const Failure& failure, char* error, int64_t error_size) {
  if (!failure.ok() && error != nullptr && error_size > 0) {
    std::snprintf(error, error_size, "%s", failure.message.c_str());
  }
  return failure.code;
}

Input::~Input() {
  if (format_ != nullptr) avformat_close_input(&format_);
  if (io_ != nullptr) {
    av_freep(&io_->buffer);
    avio_context_free(&io_);
  }
}

int Input::Read(void* self, uint8_t* out, int count) {
  auto* input = static_cast<Input*>(self);
  const int64_t left = input->size_ - input->position_;
  if (left <= 0) return AVERROR_EOF;
  count = static_cast<int>(std::min<int64_t>(count, left));
  std::memcpy(out, input->data_ + input->position_, count);
  input->position_ += count;
  return count;
}

int64_t Input::Seek(void* self, int64_t offset, int whence) {
  auto* input = static_cast<Input*>(self);
  if ((whence & AVSEEK_SIZE) != 0) return input->size_;
  whence &= ~AVSEEK_FORCE;
  const int64_t base = whence == SEEK_SET   ? 0
                       : whence == SEEK_CUR ? input->position_
                                            : input->size_;
  const int64_t target = base + offset;
  if (target < 0 || target > input->size_) return AVERROR(EINVAL);
  return input->position_ = target;
}

Failure Input::Open() {
  if (data_ == nullptr || size_ <= 0) return BadData("an empty file, expected a clip");
  auto* buffer = static_cast<uint8_t*>(av_malloc(kIoBytes));
  if (buffer == nullptr) return NoMemory();
  io_ = avio_alloc_context(buffer, kIoBytes, 0, this, Read, nullptr, Seek);
  if (io_ == nullptr) {
    av_free(buffer);
    return NoMemory();
  }
  format_ = avformat_alloc_context();
  if (format_ == nullptr) return NoMemory();
  format_->pb = io_;
  format_->flags |= AVFMT_FLAG_CUSTOM_IO;
  // Only what the loader promises to read; other demuxers (playlists!) might open other files.
  AVDictionary* options = nullptr;
  av_dict_set(&options, "format_whitelist", "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm", 0);
  av_dict_set(&options, "protocol_whitelist", "", 0);
  const int opened = avformat_open_input(&format_, nullptr, nullptr, &options);
  av_dict_free(&options);
  if (opened < 0) return BadData("corrupt clip: " + ErrorText(opened));
  for (unsigned i = 0; i < format_->nb_streams; ++i) {
    AVStream* stream = format_->streams[i];
    if (stream->codecpar->codec_type == AVMEDIA_TYPE_VIDEO && stream_ == nullptr &&
        (stream->disposition & AV_DISPOSITION_ATTACHED_PIC) == 0) {
      stream_ = stream;
    } else {
      stream->discard = AVDISCARD_ALL;
    }
  }
  if (stream_ == nullptr) return BadData("the file has no video in it");
  if (stream_->codecpar->width <= 0 || stream_->codecpar->height <= 0) {
    avformat_find_stream_info(format_, nullptr);
  }
  const int64_t width = stream_->codecpar->width, height = stream_->codecpar->height;
  if (width <= 0 || height <= 0) return BadData("corrupt clip: it has no picture size");
  if (width * height > kMaxPixels) {
    return BadData("clip's header says frames of " + std::to_string(width) + " x " +
                   std::to_string(height) + " pixels; the limit is " + std::to_string(kMaxPixels) +
                   " in all");
  }
  return Ok();
}

Failure Input::NextPacket(AVPacket* packet, bool* end) {
  *end = false;
  while (true) {
    const int got = av_read_frame(format_, packet);
    if (got == AVERROR_EOF) {
      *end = true;
      return Ok();
    }
    if (got < 0) return BadData("corrupt clip: " + ErrorText(got));
    if (packet->stream_index == stream_->index) {
      if ((packet->flags & AV_PKT_FLAG_CORRUPT) != 0) {
        av_packet_unref(packet);
        return BadData("clip is torn: a frame's bytes are incomplete");
      }
      return Ok();
    }
    av_packet_unref(packet);
  }
}

Failure Input::ListPackets(std::vector<PacketInfo>* packets) {
  Packet packet(av_packet_alloc());
  if (packet == nullptr) return NoMemory();
  while (true) {
    bool end = false;
    if (Failure failure = NextPacket(packet.get(), &end); !failure.ok()) return failure;
    if (end) break;
    packets->push_back({packet->pts, (packet->flags & AV_PKT_FLAG_KEY) != 0});
    av_packet_unref(packet.get());
  }
  if (packets->empty()) return BadData("the clip has no frames");
  // An MP4 lists all its frames (those its edit list leaves out are not in the list).
  const bool lists_all = std::strstr(format_->iformat->name, "mov") != nullptr;
  const int64_t promised = lists_all ? avformat_index_get_entries_count(stream_) : 0;
  if (promised > 0 && static_cast<int64_t>(packets->size()) < promised) {
    return BadData("clip is torn: " + std::to_string(packets->size()) + " of " +
                   std::to_string(promised) + " frames are there");
  }
  return Ok();
}

namespace {

Failure ProbeClip(const uint8_t* data, int64_t size, OmniVideoInfo* info) {
  Input input(data, size);
  if (Failure failure = input.Open(); !failure.ok()) return failure;
  std::vector<Input::PacketInfo> packets;
  if (Failure failure = input.ListPackets(&packets); !failure.ok()) return failure;
  info->width = input.stream()->codecpar->width;
  info->height = input.stream()->codecpar->height;
  info->num_frames = static_cast<int64_t>(packets.size());
  int64_t first = INT64_MAX, last = INT64_MIN;
  for (const auto& packet : packets) {
    if (packet.pts == AV_NOPTS_VALUE) continue;
    first = std::min(first, packet.pts);
    last = std::max(last, packet.pts);
  }
  const double span_s = last > first ? (static_cast<double>(last) - static_cast<double>(first)) *
                                           av_q2d(input.stream()->time_base)
                                     : 0;
  const double declared = av_q2d(input.stream()->avg_frame_rate);
  info->fps = span_s > 0     ? static_cast<double>(info->num_frames - 1) / span_s
              : declared > 0 ? declared
                             : 1;
  if (!(info->fps > 1e-4) || info->fps > 1e5) {
    return BadData("clip's timestamps are absurd: " + std::to_string(info->fps) + " frames/s");
  }
  info->duration_s = static_cast<double>(info->num_frames) / info->fps;
  return Ok();
}

}  // namespace

int Probe(const uint8_t* data, int64_t size, OmniVideoInfo* info, char* error, int64_t error_size) {
  return Report(ProbeClip(data, size, info), error, error_size);
}

}  // namespace omni::ffmpeg

extern "C" __attribute__((visibility("default"))) int OmniFfmpegFillTable(uint32_t abi_version,
                                                                          OmniFfmpegTable* table) {
  if (abi_version != OMNI_FFMPEG_ABI_VERSION) return OMNI_FFMPEG_UNSUPPORTED;
  av_log_set_level(AV_LOG_QUIET);  // its remarks would tear the live line; ours name the sample
  table->abi_version = OMNI_FFMPEG_ABI_VERSION;
  table->version = av_version_info();
  table->probe = omni::ffmpeg::Probe;
  table->decode = omni::ffmpeg::Decode;
  table->encode = omni::ffmpeg::Encode;
  table->free_file = [](uint8_t* file) { av_free(file); };
  return OMNI_FFMPEG_OK;
}
