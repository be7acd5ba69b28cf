#include "parallel/schedule/work.h"

namespace omni::parallel {

int32_t NominalTime(ActionKind kind) {
  constexpr int32_t kHalf = 2;  // of a backward
  return kind == ActionKind::kBackward || kind == ActionKind::kEncodeBackward ? 2 * kHalf : kHalf;
}

WorkTimes TimeWorks(const ScheduleOptions& options, const WorkOrder& order) {
  WorkTimes times;
  times.events.assign(Events(options).count(), 0);
  times.ends.resize(order.size());
  for (size_t rank = 0; rank < order.size(); ++rank) times.ends[rank].reserve(order[rank].size());
  std::vector<int32_t> now(order.size(), 0);
  VisitWorks(options, order, [&](int32_t rank, const Work& work, int32_t needed, int32_t given) {
    if (needed >= 0) now[rank] = std::max(now[rank], times.events[needed]);
    now[rank] += NominalTime(work.kind);
    times.ends[rank].push_back(now[rank]);
    if (given >= 0) times.events[given] = std::max(times.events[given], now[rank]);
  });
  return times;
}

}  // namespace omni::parallel
