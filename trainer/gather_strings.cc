#include "trainer/gather_strings.h"

#include <cstdint>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "runtime/base/status.h"

namespace omni::trainer {

std::string PackStrings(const std::vector<std::string>& strings) {
  std::string bytes;
  for (const std::string& text : strings) {
    const uint64_t size = text.size();
    bytes.append(reinterpret_cast<const char*>(&size), sizeof size);
    bytes.append(text);
  }
  return bytes;
}

absl::StatusOr<std::vector<std::string>> UnpackStrings(absl::string_view bytes) {
  std::vector<std::string> strings;
  while (!bytes.empty()) {
    uint64_t size = 0;
    if (bytes.size() < sizeof size) return absl::DataLossError("strings of another rank are torn");
    std::memcpy(&size, bytes.data(), sizeof size);
    bytes.remove_prefix(sizeof size);
    if (size > bytes.size()) return absl::DataLossError("strings of another rank are torn");
    strings.emplace_back(bytes.substr(0, size));
    bytes.remove_prefix(size);
  }
  return strings;
}

absl::StatusOr<std::vector<std::vector<std::string>>> GatherStrings(
    ExecContext& ctx, Communicator* comm, absl::Duration deadline,
    const std::vector<std::string>& mine) {
  if (comm == nullptr || comm->size() == 1) return std::vector<std::vector<std::string>>{mine};
  const std::string bytes = PackStrings(mine);
  const int32_t world = comm->size();
  std::vector<int64_t> sizes(world, 0);
  sizes[comm->rank()] = static_cast<int64_t>(bytes.size());
  TensorArena arena(ctx.device);
  ExecContext inner{.device = ctx.device, .stream = ctx.stream, .tape = nullptr, .arena = &arena};
  const TensorView all_sizes = UploadNew<int64_t>(inner, sizes, {world});
  OMNI_RETURN_IF_ERROR(comm->AllReduce(all_sizes, ReduceOp::kSum)->WaitHost(deadline));
  sizes = HostRead<int64_t>(inner, all_sizes);
  int64_t total = 0;
  for (const int64_t size : sizes) total += size;
  const TensorView all = inner.New(DType::kUInt8, {total});
  const TensorView own = UploadNew<uint8_t>(
      inner, absl::MakeConstSpan(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()),
      {static_cast<int64_t>(bytes.size())});
  OMNI_RETURN_IF_ERROR(comm->AllGather(own, all, sizes)->WaitHost(deadline));
  const std::vector<uint8_t> gathered = HostRead<uint8_t>(inner, all);
  absl::string_view rest(reinterpret_cast<const char*>(gathered.data()), gathered.size());
  std::vector<std::vector<std::string>> strings;
  for (const int64_t size : sizes) {
    OMNI_ASSIGN_OR_RETURN(std::vector<std::string> of_rank, UnpackStrings(rest.substr(0, size)));
    rest.remove_prefix(size);
    strings.push_back(std::move(of_rank));
  }
  return strings;
}

}  // namespace omni::trainer
