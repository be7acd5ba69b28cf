#include "trainer/memory_bill.h"

#include "absl/strings/str_cat.h"
#include "runtime/base/check.h"
#include "runtime/base/host_memory.h"

namespace omni::trainer {

std::vector<double> MemoryBill::ToDoubles() const {
  std::vector<double> values;
  for (const int64_t bytes : {pool, weights, loader, plans, tables, checkpoint, process}) {
    values.push_back(static_cast<double>(bytes));
  }
  return values;
}

MemoryBill MemoryBill::FromDoubles(absl::Span<const double> values) {
  OMNI_CHECK_EQ(values.size(), kSize);
  const auto bytes = [&](size_t i) { return static_cast<int64_t>(values[i]); };
  return {.pool = bytes(0),
          .weights = bytes(1),
          .loader = bytes(2),
          .plans = bytes(3),
          .tables = bytes(4),
          .checkpoint = bytes(5),
          .process = bytes(6)};
}

std::string FormatBill(const MemoryBill& bill) {
  std::string text =
      absl::StrCat("memory a rank, at most: ", FormatBytes(bill.total()), "; ",
                   FormatBytes(bill.pool), " reserved (", FormatBytes(bill.weights),
                   " weights, gradients, optimizer), loader ", FormatBytes(bill.loader), ", plans ",
                   FormatBytes(bill.plans), ", tables ", FormatBytes(bill.tables));
  if (bill.checkpoint > 0) absl::StrAppend(&text, ", a save ", FormatBytes(bill.checkpoint));
  absl::StrAppend(&text, ", process ", FormatBytes(bill.process));
  return text;
}

std::string CheckHost(int32_t host_ranks, int64_t host_bytes, int64_t limit_bytes,
                      const std::string& limit_source) {
  if (limit_bytes == 0 || host_bytes <= limit_bytes) return "";
  return absl::StrCat(host_ranks == 1 ? "this rank" : absl::StrCat(host_ranks, " ranks here"),
                      " may take ", FormatBytes(host_bytes), ", there are ",
                      FormatBytes(limit_bytes), " (", limit_source,
                      "); lower runtime.reserve_gib, data.loader.memory_mib or the number of "
                      "workers on this host, or the system may kill them");
}

}  // namespace omni::trainer
