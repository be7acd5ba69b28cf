// Media on their way into packs: places are known from metadata, rows are filled in later.
#pragma once

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "dataloader/media_decoder.h"
#include "dataloader/payload_buffers.h"
#include "dataloader/sample_planner.h"
#include "parallel/encoder_shards.h"
#include "parallel/pack.h"

namespace omni::dataloader {

// A pack whose sizes are known before anything is decoded.
class PackBuilder {
 public:
  PackBuilder(MediaKind kind, const DataConfig& config);

  // Appends a medium of a sample whose tokens start at `offset` of its microbatch, with these rows
  // of its input and output. Returns its place.
  int64_t Append(const MediaSpan& media, int64_t offset, const parallel::UnitRange& input_rows,
                 const parallel::UnitRange& output_rows);
  int64_t payload_bytes() const { return num_rows_ * row_bytes(); }
  void Allocate() { pack_.payload.resize(payload_bytes()); }  // zeros
  void Allocate(PayloadBuffers& buffers) { pack_.payload = buffers.Take(payload_bytes()); }

  int64_t row_bytes() const { return pack_.row_elements * SizeOf(pack_.dtype); }
  const parallel::UnitRange& input_rows(int64_t place) const { return input_rows_[place]; }
  absl::Span<uint8_t> payload(int64_t place);
  parallel::MediaPack Take() { return std::move(pack_); }

 private:
  parallel::MediaPack pack_;
  std::vector<parallel::UnitRange> input_rows_;  // by place, of its item
  int64_t num_rows_ = 0;
};

struct FillOptions {
  bool augment = false;
  bool blank_media = false;  // leave them zero, keep the loss
};

// The media of one sample that are decoded here, and the places of their rows.
struct MediaTask {
  struct Place {
    PackBuilder* pack;
    int64_t place;
    int32_t span;  // of the plan's media
  };
  std::shared_ptr<const SamplePlan> plan;  // shared with the planner's window
  std::vector<Place> places;
  absl::Status failure;  // its own fault: it is to be blanked
};
// Decodes them into their packs, which are allocated; shards keep their rows of what is decoded
// whole. A sample's own fault zeroes all of them and is kept in `failure`; others are returned.
absl::Status Fill(const SamplePlanner& planner, const MediaDecoder& decoder,
                  const FillOptions& options, MediaTask* task);

}  // namespace omni::dataloader
