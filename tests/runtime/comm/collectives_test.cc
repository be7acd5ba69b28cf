// Every collective over both engines, world sizes 1 to 8, all dtypes and sizes 0, 1, odd, small
// and large, against plain loops; and that the engines agree bit for bit.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <numeric>
#include <tuple>
#include <vector>

#include "runtime/base/status.h"
#include "runtime/comm/communicator.h"
#include "tests/support/run_ranks.h"

namespace omni {
namespace {

using test::RunRanks;

constexpr absl::Duration kPatience = absl::Seconds(60);
// The last is larger than the rings of a group together.
constexpr int64_t kSizes[] = {0, 1, 7, 1000, 2049, 40001, 700001};

template <typename T>
TensorView ViewOf(std::vector<T>& data, int64_t begin = 0, int64_t count = -1) {
  if (count < 0) count = static_cast<int64_t>(data.size()) - begin;
  return TensorView::Dense(data.data() + begin, DTypeOf<T>::value, DeviceKind::kCpu, {count});
}

// Cheap, because a test of world size 8 asks for a hundred million of them. Floats differ in
// magnitude, so that the order of a sum shows in its bits.
template <typename T>
T Value(int32_t rank, int64_t index) {
  uint64_t bits = (static_cast<uint64_t>(index) * 131 + rank + 1) * 0x9e3779b97f4a7c15u;
  bits = (bits ^ (bits >> 31)) * 0xbf58476d1ce4e5b9u;
  if constexpr (std::is_integral_v<T>) {
    return static_cast<T>(bits);
  } else {
    const auto value = static_cast<float>(static_cast<int64_t>(bits) >> 40);
    return static_cast<T>(value / static_cast<float>(1 << (bits & 15)));
  }
}

template <typename T>
std::vector<T> Values(int32_t rank, int64_t count) {
  std::vector<T> values(count);
  for (int64_t i = 0; i < count; ++i) values[i] = Value<T>(rank, i);
  return values;
}

// The definition: in rank order, bf16 in fp32 and rounded once.
template <typename T>
T Reduced(ReduceOp op, int32_t size, int64_t index) {
  using A = std::conditional_t<std::is_same_v<T, BFloat16>, float,
                               std::conditional_t<std::is_integral_v<T>, uint64_t, T>>;
  if (op != ReduceOp::kSum) {
    using B = std::conditional_t<std::is_same_v<T, BFloat16>, float, T>;
    B best = static_cast<B>(Value<T>(0, index));
    for (int32_t r = 1; r < size; ++r) {
      const B value = static_cast<B>(Value<T>(r, index));
      best = op == ReduceOp::kMax ? std::max(best, value) : std::min(best, value);
    }
    return static_cast<T>(best);
  }
  A sum = static_cast<A>(Value<T>(0, index));
  for (int32_t r = 1; r < size; ++r) sum += static_cast<A>(Value<T>(r, index));
  return static_cast<T>(sum);
}

template <typename T>
absl::Status Same(const std::vector<T>& got, const std::vector<T>& expected,
                  absl::string_view what) {
  if (got.size() != expected.size()) return absl::InternalError("size");
  for (size_t i = 0; i < got.size(); ++i) {
    if (std::memcmp(&got[i], &expected[i], sizeof(T)) != 0) {
      return absl::InternalError(absl::StrCat(
          what, " of ", got.size(), " ", Name(DTypeOf<T>::value), ": element ", i, " differs"));
    }
  }
  return absl::OkStatus();
}

// Uneven shares of about `total`, some of them empty.
std::vector<int64_t> Shares(int64_t total, int32_t size) {
  std::vector<int64_t> counts(size);
  for (int32_t r = 0; r < size; ++r) counts[r] = r % 3 == 1 ? 0 : total / size + r;
  return counts;
}

template <typename T>
absl::Status CheckReductions(Communicator& comm, int32_t rank, int64_t count, ReduceOp op) {
  const int32_t size = comm.size();
  std::vector<T> data = Values<T>(rank, count), expected(count);
  for (int64_t i = 0; i < count; ++i) expected[i] = Reduced<T>(op, size, i);
  OMNI_RETURN_IF_ERROR(comm.AllReduce(ViewOf(data), op)->WaitHost(kPatience));
  OMNI_RETURN_IF_ERROR(Same(data, expected, "all_reduce"));

  const std::vector<int64_t> counts = Shares(count, size);
  const int64_t total = std::accumulate(counts.begin(), counts.end(), int64_t{0});
  const int64_t begin = std::accumulate(counts.begin(), counts.begin() + rank, int64_t{0});
  std::vector<T> input = Values<T>(rank, total), output(counts[rank]), mine(counts[rank]);
  for (int64_t i = 0; i < counts[rank]; ++i) mine[i] = Reduced<T>(op, size, begin + i);
  OMNI_RETURN_IF_ERROR(
      comm.ReduceScatter(ViewOf(input), ViewOf(output), counts, op)->WaitHost(kPatience));
  OMNI_RETURN_IF_ERROR(Same(output, mine, "reduce_scatter"));
  OMNI_RETURN_IF_ERROR(Same(input, Values<T>(rank, total), "input of reduce_scatter"));
  OMNI_RETURN_IF_ERROR(
      comm.ReduceScatter(ViewOf(input), ViewOf(input, begin, counts[rank]), counts, op)
          ->WaitHost(kPatience));
  std::copy_n(input.begin() + begin, counts[rank], output.begin());
  return Same(output, mine, "reduce_scatter in place");
}

template <typename T>
absl::Status CheckMoves(Communicator& comm, int32_t rank, int64_t count) {
  const int32_t size = comm.size();
  const std::vector<int64_t> counts = Shares(count, size);
  const int64_t total = std::accumulate(counts.begin(), counts.end(), int64_t{0});
  const int64_t begin = std::accumulate(counts.begin(), counts.begin() + rank, int64_t{0});

  std::vector<T> expected;
  for (int32_t r = 0; r < size; ++r) {
    for (const T value : Values<T>(r, counts[r])) expected.push_back(value);
  }
  std::vector<T> mine = Values<T>(rank, counts[rank]), all(total);
  OMNI_RETURN_IF_ERROR(comm.AllGather(ViewOf(mine), ViewOf(all), counts)->WaitHost(kPatience));
  OMNI_RETURN_IF_ERROR(Same(all, expected, "all_gather"));
  std::vector<T> in_place(total);
  std::copy(mine.begin(), mine.end(), in_place.begin() + begin);
  OMNI_RETURN_IF_ERROR(
      comm.AllGather(ViewOf(in_place, begin, counts[rank]), ViewOf(in_place), counts)
          ->WaitHost(kPatience));
  OMNI_RETURN_IF_ERROR(Same(in_place, expected, "all_gather in place"));

  // Rank a sends to rank b (a * 3 + b) % 4 quarters of `count` elements.
  const auto quarters = [&](int32_t a, int32_t b) { return (a * 3 + b) % 4 * (count / 4); };
  std::vector<int64_t> send_counts(size), recv_counts(size);
  std::vector<T> send, wanted;
  for (int32_t peer = 0; peer < size; ++peer) {
    send_counts[peer] = quarters(rank, peer);
    recv_counts[peer] = quarters(peer, rank);
    for (const T value : Values<T>(rank * 100 + peer, send_counts[peer])) send.push_back(value);
    for (const T value : Values<T>(peer * 100 + rank, recv_counts[peer])) wanted.push_back(value);
  }
  std::vector<T> received(wanted.size());
  OMNI_RETURN_IF_ERROR(
      comm.AllToAll(ViewOf(send), send_counts, ViewOf(received), recv_counts)->WaitHost(kPatience));
  OMNI_RETURN_IF_ERROR(Same(received, wanted, "all_to_all"));

  for (int32_t root = 0; root < size; root += 2) {
    std::vector<T> data = rank == root ? Values<T>(root, count) : std::vector<T>(count);
    OMNI_RETURN_IF_ERROR(comm.Broadcast(ViewOf(data), root)->WaitHost(kPatience));
    OMNI_RETURN_IF_ERROR(Same(data, Values<T>(root, count), "broadcast"));
  }

  // A ring shift in one group: blocking sends could not do it.
  std::vector<T> out = Values<T>(rank, count), in(count);
  comm.GroupBegin();
  comm.Send(ViewOf(out), (rank + 1) % size);
  comm.Recv(ViewOf(in), (rank + size - 1) % size);
  OMNI_RETURN_IF_ERROR(comm.GroupEnd()->WaitHost(kPatience));
  return Same(in, Values<T>((rank + size - 1) % size, count), "send and recv");
}

template <typename T>
absl::Status CheckDType(Communicator& comm, int32_t rank) {
  for (const int64_t count : kSizes) {
    if constexpr (!std::is_same_v<T, uint8_t>) {
      OMNI_RETURN_IF_ERROR(CheckReductions<T>(comm, rank, count, ReduceOp::kSum));
      if (count > 40001) continue;
      OMNI_RETURN_IF_ERROR(CheckReductions<T>(comm, rank, count, ReduceOp::kMax));
      OMNI_RETURN_IF_ERROR(CheckReductions<T>(comm, rank, count, ReduceOp::kMin));
    }
    if (count > 40001) continue;
    OMNI_RETURN_IF_ERROR(CheckMoves<T>(comm, rank, count));
  }
  return comm.Barrier()->WaitHost(kPatience);
}

class CollectivesTest : public testing::TestWithParam<std::tuple<const char*, int32_t>> {};

TEST_P(CollectivesTest, AgreeWithPlainLoops) {
  const auto [engine, size] = GetParam();
  EXPECT_EQ(RunRanks(size, engine,
                     [](Communicator& comm, int32_t rank) -> absl::Status {
                       OMNI_RETURN_IF_ERROR(CheckDType<float>(comm, rank));
                       OMNI_RETURN_IF_ERROR(CheckDType<double>(comm, rank));
                       OMNI_RETURN_IF_ERROR(CheckDType<BFloat16>(comm, rank));
                       OMNI_RETURN_IF_ERROR(CheckDType<int32_t>(comm, rank));
                       OMNI_RETURN_IF_ERROR(CheckDType<int64_t>(comm, rank));
                       return CheckDType<uint8_t>(comm, rank);
                     }),
            absl::OkStatus());
}

TEST_P(CollectivesTest, GroupsSplitOffKeepTheirTrafficApart) {
  const auto [engine, size] = GetParam();
  if (size < 2) return;
  const auto check = [size = size](Communicator& comm, int32_t rank) -> absl::Status {
    std::vector<int32_t> even, odd, reversed;
    for (int32_t r = 0; r < size; ++r) (r % 2 == 0 ? even : odd).push_back(r);
    for (int32_t r = size - 1; r >= 0; --r) reversed.push_back(r);
    OMNI_ASSIGN_OR_RETURN(auto evens, comm.Split(even, "half"));
    OMNI_ASSIGN_OR_RETURN(auto odds, comm.Split(odd, "half"));
    OMNI_ASSIGN_OR_RETURN(auto backwards, comm.Split(reversed, "backwards"));
    if ((evens != nullptr) != (rank % 2 == 0) || (odds != nullptr) != (rank % 2 == 1) ||
        backwards == nullptr || backwards->rank() != size - 1 - rank) {
      return absl::InternalError("membership");
    }
    Communicator& mine = rank % 2 == 0 ? *evens : *odds;
    // Calls on different groups are under way at once.
    std::vector<int64_t> half(5000, rank), all(5000, rank), world(3, 1);
    auto a = mine.AllReduce(ViewOf(half), ReduceOp::kSum);
    auto b = backwards->AllReduce(ViewOf(all), ReduceOp::kMax);
    auto c = comm.AllReduce(ViewOf(world), ReduceOp::kSum);
    OMNI_RETURN_IF_ERROR(c->WaitHost(kPatience));
    OMNI_RETURN_IF_ERROR(b->WaitHost(kPatience));
    OMNI_RETURN_IF_ERROR(a->WaitHost(kPatience));
    const auto& members = rank % 2 == 0 ? even : odd;
    const int64_t sum = std::accumulate(members.begin(), members.end(), int64_t{0});
    OMNI_RETURN_IF_ERROR(Same(half, std::vector<int64_t>(5000, sum), "half"));
    OMNI_RETURN_IF_ERROR(Same(all, std::vector<int64_t>(5000, size - 1), "backwards"));
    return Same(world, std::vector<int64_t>(3, size), "world");
  };
  EXPECT_EQ(RunRanks(size, engine, check), absl::OkStatus());
}

TEST_P(CollectivesTest, GroupedCallsProgressTogether) {
  const auto [engine, size] = GetParam();
  const auto check = [size = size](Communicator& comm, int32_t rank) -> absl::Status {
    // Everybody to everybody, itself included, longer than any buffer, with a collective inside;
    // sends first on some ranks, receives first on others.
    constexpr int64_t kCount = 300000;
    std::vector<std::vector<float>> out(size), in(size);
    std::vector<double> total = {1.0};
    for (int32_t peer = 0; peer < size; ++peer) {
      out[peer] = Values<float>(rank * 10 + peer, kCount);
      in[peer].resize(kCount);
    }
    const auto sends = [&] {
      for (int32_t peer = 0; peer < size; ++peer) comm.Send(ViewOf(out[peer]), peer);
    };
    comm.GroupBegin();
    if (rank % 2 == 0) sends();
    for (int32_t peer = 0; peer < size; ++peer) comm.Recv(ViewOf(in[peer]), peer);
    WorkPtr reduced = comm.AllReduce(ViewOf(total), ReduceOp::kSum);
    if (rank % 2 == 1) sends();
    OMNI_RETURN_IF_ERROR(comm.GroupEnd()->WaitHost(kPatience));
    OMNI_RETURN_IF_ERROR(reduced->WaitHost(kPatience));
    if (total[0] != size) return absl::InternalError("all_reduce in a group");
    for (int32_t peer = 0; peer < size; ++peer) {
      OMNI_RETURN_IF_ERROR(Same(in[peer], Values<float>(peer * 10 + rank, kCount), "group"));
    }
    return absl::OkStatus();
  };
  EXPECT_EQ(RunRanks(size, engine, check), absl::OkStatus());
}

INSTANTIATE_TEST_SUITE_P(Engines, CollectivesTest,
                         testing::Combine(testing::Values("shm", "tcp"), testing::Range(1, 9)),
                         [](const auto& info) {
                           return absl::StrCat(std::get<0>(info.param), "World",
                                               std::get<1>(info.param));
                         });

}  // namespace
}  // namespace omni
