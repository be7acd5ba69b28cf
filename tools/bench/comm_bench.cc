// Collectives between processes of one host: microseconds per call, median and 99th percentile.
//
//   build/bin/comm_bench [--ranks=4] [--engine=shm,tcp] [--runs=20] [--max_bytes=67108864]
//
// Bytes are those of the whole buffer (of all ranks together for all_gather, reduce_scatter and
// all_to_all). Rank 0's times are printed; each run ends when the last rank is through.
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <functional>
#include <numeric>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "runtime/base/check.h"
#include "runtime/base/status.h"
#include "runtime/comm/shm.h"
#include "runtime/comm/tcp.h"
#include "tests/support/run_ranks.h"

namespace omni {
namespace {

constexpr absl::Duration kPatience = absl::Seconds(120);

TensorView ViewOf(std::vector<float>& data, int64_t begin, int64_t count) {
  return TensorView::Dense(data.data() + begin, DType::kFloat32, DeviceKind::kCpu, {count});
}

struct Bench {
  const char* name;
  std::function<WorkPtr(Communicator&, std::vector<float>& in, std::vector<float>& out)> call;
};

std::vector<int64_t> Even(int64_t count, int32_t size) {
  std::vector<int64_t> counts(size, count / size);
  counts.back() += count % size;
  return counts;
}

const std::vector<Bench>& Benches() {
  static const auto* benches = new std::vector<Bench>{
      {"all_reduce",
       [](Communicator& comm, auto& in, auto&) {
         return comm.AllReduce(ViewOf(in, 0, in.size()), ReduceOp::kSum);
       }},
      {"reduce_scatter",
       [](Communicator& comm, auto& in, auto& out) {
         const auto counts = Even(in.size(), comm.size());
         return comm.ReduceScatter(ViewOf(in, 0, in.size()), ViewOf(out, 0, counts[comm.rank()]),
                                   counts, ReduceOp::kSum);
       }},
      {"all_gather",
       [](Communicator& comm, auto& in, auto& out) {
         const auto counts = Even(in.size(), comm.size());
         return comm.AllGather(ViewOf(in, 0, counts[comm.rank()]), ViewOf(out, 0, out.size()),
                               counts);
       }},
      {"all_to_all",
       [](Communicator& comm, auto& in, auto& out) {
         const std::vector<int64_t> counts(comm.size(), in.size() / comm.size());
         const int64_t total = counts[0] * comm.size();
         return comm.AllToAll(ViewOf(in, 0, total), counts, ViewOf(out, 0, total), counts);
       }},
      {"broadcast", [](Communicator& comm, auto& in,
                       auto&) { return comm.Broadcast(ViewOf(in, 0, in.size()), 0); }},
      {"send_recv_shift",
       [](Communicator& comm, auto& in, auto& out) {
         comm.GroupBegin();
         comm.Send(ViewOf(in, 0, in.size()), (comm.rank() + 1) % comm.size());
         comm.Recv(ViewOf(out, 0, out.size()), (comm.rank() + comm.size() - 1) % comm.size());
         return comm.GroupEnd();
       }},
      {"barrier", [](Communicator& comm, auto&, auto&) { return comm.Barrier(); }},
  };
  return *benches;
}

absl::StatusOr<std::unique_ptr<Communicator>> Join(const std::string& engine,
                                                   const std::string& name, int32_t rank,
                                                   int32_t size) {
  OMNI_ASSIGN_OR_RETURN(auto shm, ConnectShm(name, rank, size));
  if (engine == "shm") return shm;
  constexpr int64_t kLength = 64;
  OMNI_ASSIGN_OR_RETURN(TcpListener listener, TcpListener::Create("127.0.0.1"));
  std::vector<char> mine(kLength), all(kLength * size);
  std::memcpy(mine.data(), listener.address().data(), listener.address().size());
  const auto view = [](std::vector<char>& text) {
    return TensorView::Dense(text.data(), DType::kUInt8, DeviceKind::kCpu,
                             {static_cast<int64_t>(text.size())});
  };
  OMNI_RETURN_IF_ERROR(shm->AllGather(view(mine), view(all), std::vector<int64_t>(size, kLength))
                           ->WaitHost(kPatience));
  std::vector<std::string> addresses;
  for (int32_t r = 0; r < size; ++r) addresses.emplace_back(all.data() + r * kLength);
  return ConnectTcp(std::move(listener), addresses, rank);
}

void CheckSum(Communicator& comm) {
  std::vector<float> data(100003);
  for (size_t i = 0; i < data.size(); ++i) data[i] = static_cast<float>(comm.rank() + i % 17);
  OMNI_CHECK_OK(comm.AllReduce(ViewOf(data, 0, data.size()), ReduceOp::kSum)->WaitHost(kPatience));
  const int32_t size = comm.size();
  for (size_t i = 0; i < data.size(); ++i) {
    OMNI_CHECK_EQ(data[i], static_cast<float>(size * (size - 1) / 2 + size * (i % 17)));
  }
}

// argument: engine,name,runs,max_bytes
int RankMain(int32_t rank, int32_t size, const std::string& argument) {
  const std::vector<std::string> parts = absl::StrSplit(argument, ',');
  int64_t runs, max_bytes;
  OMNI_CHECK(absl::SimpleAtoi(parts[2], &runs) && absl::SimpleAtoi(parts[3], &max_bytes));
  auto joined = Join(parts[0], parts[1], rank, size);
  OMNI_CHECK_OK(joined.status());
  Communicator& comm = **joined;
  CheckSum(comm);
  for (const Bench& bench : Benches()) {
    for (const int64_t bytes : {int64_t{1} << 10, int64_t{1} << 20, int64_t{64} << 20}) {
      if (bytes > max_bytes || (bytes > 1024 && std::string(bench.name) == "barrier")) continue;
      std::vector<float> in(bytes / 4, 1.0f), out(bytes / 4);
      const int64_t calls = bytes > (1 << 20) ? 1 : bytes > 1024 ? 8 : 64;  // per run
      std::vector<double> times_us;
      for (int64_t run = -2; run < runs; ++run) {
        OMNI_CHECK_OK(comm.Barrier()->WaitHost(kPatience));
        const absl::Time start = absl::Now();
        for (int64_t i = 0; i < calls; ++i) {
          OMNI_CHECK_OK(bench.call(comm, in, out)->WaitHost(kPatience));
        }
        OMNI_CHECK_OK(comm.Barrier()->WaitHost(kPatience));
        const double us = absl::ToDoubleMicroseconds(absl::Now() - start) / calls;
        if (run >= 0) times_us.push_back(us);
      }
      std::sort(times_us.begin(), times_us.end());
      if (rank != 0) continue;
      const double median = times_us[times_us.size() / 2];
      std::printf(
          "BM_Comm/%s/%s/ranks:%d/bytes:%lld p50 %.0f us p99 %.0f us best %.0f us %.2f GB/s\n",
          bench.name, parts[0].c_str(), size, static_cast<long long>(bytes), median,
          times_us[times_us.size() * 99 / 100], times_us[0], bytes / median / 1e3);
      std::fflush(stdout);
    }
  }
  std::printf("end\n");
  return 0;
}

int Main(int argc, char** argv) {
  int32_t ranks = 4, runs = 20;
  int64_t max_bytes = int64_t{64} << 20;
  std::string engines = "shm,tcp";
  for (int i = 1; i < argc; ++i) {
    absl::string_view argument = argv[i];
    const bool known =
        (absl::ConsumePrefix(&argument, "--ranks=") && absl::SimpleAtoi(argument, &ranks)) ||
        (absl::ConsumePrefix(&argument, "--runs=") && absl::SimpleAtoi(argument, &runs)) ||
        (absl::ConsumePrefix(&argument, "--max_bytes=") &&
         absl::SimpleAtoi(argument, &max_bytes)) ||
        (absl::ConsumePrefix(&argument, "--engine=") && !(engines = std::string(argument)).empty());
    if (!known || ranks < 1 || runs < 1) {
      std::fprintf(stderr, "%s: not understood\n", argv[i]);
      return 1;
    }
  }
  for (const auto& engine : absl::StrSplit(engines, ',')) {
    test::RankProcesses processes(
        "rank", ranks,
        absl::StrCat(engine, ",bench-", getpid(), engine, ",", runs, ",", max_bytes));
    std::string line;
    while ((line = processes.ReadLine(0, absl::Seconds(300))) != "end") {
      if (line.empty()) return 1;
      std::printf("%s\n", line.c_str());
      std::fflush(stdout);
    }
    for (int32_t rank = 0; rank < ranks; ++rank) {
      if (processes.Wait(rank) != 0) return 1;
    }
  }
  return 0;
}

}  // namespace
}  // namespace omni

int main(int argc, char** argv) {
  omni::test::RunAsRankIfSpawned({{"rank", omni::RankMain}});
  return omni::Main(argc, argv);
}
