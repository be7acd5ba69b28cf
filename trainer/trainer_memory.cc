// What memory a rank may take and has: told at the start, exported as it goes.
#include "runtime/base/host_memory.h"
#include "runtime/base/rng.h"
#include "runtime/base/status.h"
#include "trainer/memory_bill.h"
#include "trainer/trainer.h"

namespace omni::trainer {

MemoryBill Trainer::Bill() {
  const PagePool::Stats& pool = device_->pool().stats();
  MemoryBill bill = {.pool = pool.reserved_bytes,
                     .weights = pool.used_bytes,
                     .loader = loader_->max_media_bytes(),
                     .plans = loader_->max_plan_bytes(),
                     .tables = loader_->max_table_bytes()};
  if (keeper_ != nullptr) bill.checkpoint = Snapshot::BytesOf(StateRanges());
  bill.process = std::max<int64_t>(0, ResidentBytes() - pool.used_bytes - loader_->table_bytes());
  return bill;
}

// Rank 0 tells the largest bill; the first rank of a host, what its host has to say. Collective.
absl::Status Trainer::TellMemory() {
  const MemoryBill mine = Bill();
  std::vector<double> largest = mine.ToDoubles();
  OMNI_RETURN_IF_ERROR(AllReduce(&largest, ReduceOp::kMax));
  // Of every rank: which host, and how much. Half of a hash is exact in a double.
  const auto host = static_cast<double>(StreamOf(HostIdentity()) >> 32);
  std::vector<double> by_rank(2 * world(), 0.0);
  by_rank[2 * rank()] = host;
  by_rank[2 * rank() + 1] = static_cast<double>(mine.total());
  OMNI_RETURN_IF_ERROR(AllReduce(&by_rank, ReduceOp::kSum));
  int32_t host_ranks = 0, first_rank = -1;
  double host_bytes = 0;
  for (int32_t r = 0; r < world(); ++r) {
    if (by_rank[2 * r] != host) continue;
    if (first_rank < 0) first_rank = r;
    ++host_ranks;
    host_bytes += by_rank[2 * r + 1];
  }
  if (rank() == 0) {
    options_.link->Notice("info", FormatBill(MemoryBill::FromDoubles(largest)));
  }
  if (rank() == first_rank) {
    const MemoryLimit limit = HostMemoryLimit();
    const std::string warning =
        CheckHost(host_ranks, static_cast<int64_t>(host_bytes), limit.bytes, limit.source);
    if (!warning.empty()) options_.link->Notice("warning", warning);
  }
  if (options_.log != nullptr) options_.log->Info(FormatBill(mine));
  return absl::OkStatus();
}

void Trainer::ExportMemory() {
  MetricsServer& metrics = *options_.metrics;
  const auto set = [&](const char* part, int64_t bytes) {
    metrics.Set("omnitrain_memory_outside_bytes", "Memory outside the page pool, by what has it",
                {{"part", part}}, static_cast<double>(bytes));
  };
  set("media", loader_->buffered_bytes() + loader_->kept_bytes() + loader_->decoding_bytes());
  set("plans", loader_->plan_bytes());
  set("tables", loader_->table_bytes());
  set("save", keeper_ == nullptr ? 0 : keeper_->held_bytes());
  metrics.Set("omnitrain_memory_resident_bytes", "Resident memory of the process", {},
              static_cast<double>(ResidentBytes()));
}

}  // namespace omni::trainer
