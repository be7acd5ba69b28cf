#include "trainer/shared_load.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <numeric>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "runtime/base/check.h"
#include "runtime/base/status.h"
#include "runtime/checkpoint/convert.h"
#include "runtime/checkpoint/shard_stream.h"

namespace omni {
namespace {

constexpr int64_t kRoundBytes = 16 << 20;
constexpr absl::Duration kRoundTime = absl::Seconds(1);

template <typename T>
TensorView Bytes(std::vector<T>& data) {
  return TensorView::Dense(data.data(), DType::kUInt8, DeviceKind::kCpu,
                           {static_cast<int64_t>(data.size() * sizeof(T))});
}

// What a rank wants of a tensor: ranges at equal distances are one wish.
struct Wish {
  int32_t tensor = 0;  // in the order of the index' names
  int32_t reserved = 0;
  checkpoint_layout::Runs runs;
  int64_t first_range = 0;  // of the rank that wishes
};

// Goes before the elements it brings, which are padded to a multiple of 8 bytes.
struct Record {
  int64_t range = 0;  // of the receiver
  int64_t offset = 0, count = 0;
  DType dtype = DType::kFloat32;
  uint8_t reserved[7] = {};
};
static_assert(sizeof(Record) == 32);

int64_t Padded(int64_t bytes) { return (bytes + 7) / 8 * 8; }

class Loading {
 public:
  Loading(const Checkpoint& index, absl::Span<const TensorRange> ranges,
          const SharedLoadOptions& options)
      : index_(index),
        ranges_(ranges),
        options_(options),
        rank_(options.comm == nullptr ? 0 : options.comm->rank()),
        world_(options.comm == nullptr ? 1 : options.comm->size()),
        out_(world_) {
    for (const auto& [name, tensor] : index.tensors()) {
      numbers_.emplace(name, static_cast<int32_t>(numbers_.size()));
    }
  }

  absl::Status Run() {
    absl::Status own;
    for (const TensorRange& range : ranges_) own.Update(index_.Check(range));
    OMNI_RETURN_IF_ERROR(AgreeOnStatus(own, options_));
    OMNI_RETURN_IF_ERROR(ShareWishes());
    own = OpenShards();
    for (bool goes_on = true; goes_on;) {
      if (own.ok()) own = ReadRound();
      const bool reads_on = own.ok() && !streams_.empty();
      OMNI_ASSIGN_OR_RETURN(goes_on, Trade(reads_on, &own));
    }
    return AgreeOnStatus(own, options_);
  }

 private:
  std::vector<Wish> OwnWishes() const {
    std::vector<Wish> wishes;
    for (size_t i = 0; i < ranges_.size();) {
      const TensorRange& range = ranges_[i];
      Wish wish = {.tensor = numbers_.at(range.name),
                   .runs = {.begin = range.begin, .count = range.data.num_elements()},
                   .first_range = static_cast<int64_t>(i)};
      for (++i; i < ranges_.size() && ranges_[i].name == range.name; ++i) {
        if (!wish.runs.Extend(ranges_[i].begin, ranges_[i].data.num_elements())) break;
      }
      wishes.push_back(wish);
    }
    return wishes;
  }

  // By tensor, of all ranks.
  absl::Status ShareWishes() {
    std::vector<Wish> own = OwnWishes();
    std::vector<int64_t> sizes(world_, 0);
    sizes[rank_] = static_cast<int64_t>(own.size() * sizeof(Wish));
    std::vector<Wish> all = own;
    if (world_ > 1) {
      const TensorView counts =
          TensorView::Dense(sizes.data(), DType::kInt64, DeviceKind::kCpu, {world_});
      OMNI_RETURN_IF_ERROR(
          options_.comm->AllReduce(counts, ReduceOp::kSum)->WaitHost(options_.limit));
      all.resize(std::accumulate(sizes.begin(), sizes.end(), int64_t{0}) / sizeof(Wish));
      OMNI_RETURN_IF_ERROR(
          options_.comm->AllGather(Bytes(own), Bytes(all), sizes)->WaitHost(options_.limit));
    }
    wishes_.resize(numbers_.size());
    size_t next = 0;
    for (int32_t rank = 0; rank < world_; ++rank) {
      for (int64_t i = 0; i < sizes[rank] / static_cast<int64_t>(sizeof(Wish)); ++i, ++next) {
        wishes_[all[next].tensor].emplace_back(rank, all[next]);
      }
    }
    return absl::OkStatus();
  }

  absl::Status OpenShards() {
    const auto num_shards = static_cast<int32_t>(index_.shards().size());
    for (int32_t shard = rank_; shard < num_shards; shard += world_) {
      OMNI_ASSIGN_OR_RETURN(auto stream, ShardStream::Open(index_, shard, options_.on_block));
      streams_.push_back(std::move(stream));
    }
    return absl::OkStatus();
  }

  absl::Status ReadRound() {
    if (streams_.empty()) return absl::OkStatus();
    OMNI_RETURN_IF_ERROR(
        streams_.back()->Next(kRoundBytes, kRoundTime,
                              [&](const ShardStream::Stretch& stretch) { return Hand(stretch); }));
    if (streams_.back()->is_over()) streams_.pop_back();
    return absl::OkStatus();
  }

  // To every rank that wants some of it.
  absl::Status Hand(const ShardStream::Stretch& stretch) {
    const int64_t end = stretch.begin + stretch.count;
    for (const auto& [rank, wish] : wishes_[numbers_.at(*stretch.tensor)]) {
      const checkpoint_layout::Runs& runs = wish.runs;
      if (runs.count == 0 || end <= runs.begin) continue;
      const int64_t distance = runs.runs == 1 ? 1 : runs.stride;
      const int64_t first =
          runs.runs == 1 ? 0 : std::max<int64_t>(0, (stretch.begin - runs.begin) / distance);
      const int64_t last = std::min(runs.runs - 1, (end - 1 - runs.begin) / distance);
      for (int64_t run = first; run <= last; ++run) {
        const int64_t run_begin = runs.begin + run * runs.stride;
        const int64_t from = std::max(stretch.begin, run_begin);
        const int64_t count = std::min(end, run_begin + runs.count) - from;
        if (count <= 0) continue;
        const Record record = {.range = wish.first_range + run,
                               .offset = from - run_begin,
                               .count = count,
                               .dtype = stretch.dtype};
        const std::byte* data = stretch.data + (from - stretch.begin) * SizeOf(stretch.dtype);
        if (rank == rank_) {
          OMNI_RETURN_IF_ERROR(Apply(record, data));
        } else {
          Append(record, data, &out_[rank]);
        }
      }
    }
    return absl::OkStatus();
  }

  static void Append(const Record& record, const std::byte* data, std::vector<std::byte>* out) {
    const int64_t bytes = record.count * SizeOf(record.dtype);
    const size_t at = out->size();
    out->resize(at + sizeof(Record) + Padded(bytes));
    std::memcpy(out->data() + at, &record, sizeof(Record));
    std::memcpy(out->data() + at + sizeof(Record), data, bytes);
  }

  absl::Status Apply(const Record& record, const std::byte* data) const {
    const TensorRange& range = ranges_[record.range];
    OMNI_CHECK(record.offset >= 0 && record.offset + record.count <= range.data.num_elements());
    auto* to = static_cast<std::byte*>(range.data.data) + record.offset * SizeOf(range.data.dtype);
    if (ConvertElements(record.dtype, data, range.data.dtype, to, record.count)) {
      return absl::OkStatus();
    }
    return absl::InvalidArgumentError(
        absl::StrCat(index_.path(), ": tensor \"", range.name, "\" is stored as ",
                     Name(record.dtype), ", which does not convert to ", Name(range.data.dtype)));
  }

  // What was read goes where it is wanted. True if any rank reads on.
  absl::StatusOr<bool> Trade(bool reads_on, absl::Status* own) {
    if (world_ == 1) return reads_on;
    // To each rank: how many bytes, and whether more will come.
    std::vector<int64_t> send(2 * world_), receive(2 * world_), send_bytes(world_),
        receive_bytes(world_);
    for (int32_t rank = 0; rank < world_; ++rank) {
      send_bytes[rank] = static_cast<int64_t>(out_[rank].size());
      send[2 * rank] = send_bytes[rank];
      send[2 * rank + 1] = reads_on;
    }
    const std::vector<int64_t> pairs(world_, 2 * sizeof(int64_t));
    OMNI_RETURN_IF_ERROR(options_.comm->AllToAll(Bytes(send), pairs, Bytes(receive), pairs)
                             ->WaitHost(options_.limit));
    bool goes_on = false;
    for (int32_t rank = 0; rank < world_; ++rank) {
      receive_bytes[rank] = receive[2 * rank];
      goes_on = goes_on || receive[2 * rank + 1] != 0;
    }
    std::vector<std::byte> out, in;
    for (std::vector<std::byte>& part : out_) {
      out.insert(out.end(), part.begin(), part.end());
      part.clear();
    }
    in.resize(std::accumulate(receive_bytes.begin(), receive_bytes.end(), int64_t{0}));
    OMNI_RETURN_IF_ERROR(options_.comm->AllToAll(Bytes(out), send_bytes, Bytes(in), receive_bytes)
                             ->WaitHost(options_.limit));
    for (size_t at = 0; at < in.size();) {
      Record record;
      std::memcpy(&record, in.data() + at, sizeof(Record));
      own->Update(Apply(record, in.data() + at + sizeof(Record)));
      at += sizeof(Record) + Padded(record.count * SizeOf(record.dtype));
    }
    return goes_on;
  }

  const Checkpoint& index_;
  const absl::Span<const TensorRange> ranges_;
  const SharedLoadOptions& options_;
  const int32_t rank_, world_;
  std::map<std::string, int32_t> numbers_;                     // of tensors
  std::vector<std::vector<std::pair<int32_t, Wish>>> wishes_;  // by tensor: (rank, wish)
  std::vector<std::unique_ptr<ShardStream>> streams_;          // yet to be read; the last one is
  std::vector<std::vector<std::byte>> out_;                    // by rank
};

}  // namespace

absl::Status AgreeOnStatus(const absl::Status& own, const SharedLoadOptions& options) {
  Communicator* comm = options.comm;
  if (comm == nullptr || comm->size() == 1) return own;
  int32_t first = own.ok() ? comm->size() : comm->rank();
  const TensorView view = TensorView::Dense(&first, DType::kInt32, DeviceKind::kCpu, {1});
  OMNI_RETURN_IF_ERROR(comm->AllReduce(view, ReduceOp::kMin)->WaitHost(options.limit));
  if (first == comm->size()) return absl::OkStatus();
  constexpr size_t kMost = 2000;
  std::vector<char> text(kMost + sizeof(int32_t));
  if (comm->rank() == first) {
    const auto code = static_cast<int32_t>(own.code());
    std::memcpy(text.data(), &code, sizeof(code));
    const absl::string_view message = own.message().substr(0, kMost);
    std::copy(message.begin(), message.end(), text.begin() + sizeof(code));
  }
  OMNI_RETURN_IF_ERROR(comm->Broadcast(Bytes(text), first)->WaitHost(options.limit));
  int32_t code;
  std::memcpy(&code, text.data(), sizeof(code));
  text.push_back('\0');
  return absl::Status(static_cast<absl::StatusCode>(code), text.data() + sizeof(code));
}

absl::StatusOr<std::string> ShareText(const std::string& text, const SharedLoadOptions& options) {
  Communicator* comm = options.comm;
  if (comm == nullptr || comm->size() == 1) return text;
  std::vector<int64_t> size = {static_cast<int64_t>(text.size())};
  OMNI_RETURN_IF_ERROR(comm->Broadcast(Bytes(size), 0)->WaitHost(options.limit));
  std::vector<char> bytes(text.begin(), text.end());
  bytes.resize(size[0]);
  OMNI_RETURN_IF_ERROR(comm->Broadcast(Bytes(bytes), 0)->WaitHost(options.limit));
  return std::string(bytes.begin(), bytes.end());
}

absl::StatusOr<std::unique_ptr<Checkpoint>> ShareIndex(const std::string& path,
                                                       const SharedLoadOptions& options,
                                                       const std::string& state) {
  absl::StatusOr<CheckpointTexts> texts = CheckpointTexts();
  if (options.comm == nullptr || options.comm->rank() == 0) {
    texts = ReadCheckpointTexts(path, options.on_block, state);
  }
  OMNI_RETURN_IF_ERROR(AgreeOnStatus(texts.status(), options));
  CheckpointTexts all;
  OMNI_ASSIGN_OR_RETURN(all.manifest, ShareText(texts->manifest, options));
  OMNI_ASSIGN_OR_RETURN(all.state, ShareText(texts->state, options));
  return Checkpoint::Index(path, all);
}

absl::Status LoadShared(const Checkpoint& index, absl::Span<const TensorRange> ranges,
                        const SharedLoadOptions& options) {
  return Loading(index, ranges, options).Run();
}

}  // namespace omni
