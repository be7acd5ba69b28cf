#include "parallel/schedule/work.h"

namespace omni::parallel {

int32_t NominalTime(ActionKind kind) {
  constexpr int32_t kHalf = 2;  // of a backward
  return kind == ActionKind::kBackward || kind == ActionKind::kEncodeBackward ? 2 * kHalf : kHalf;
}

WorkTimes TimeWorks(const ScheduleOptions& options, const WorkOrder& order) {
  WorkTimes times;
  times.ends.resize(order.size());
  for (size_t rank = 0; rank < order.size(); ++rank) times.ends[rank].reserve(order[rank].size());
  times.events = VisitWorks(options, order, [&](int32_t rank, const Work& work, int32_t needed) {
    std::vector<int32_t>& ends = times.ends[rank];
    const int32_t now = ends.empty() ? 0 : ends.back();
    ends.push_back(std::max(now, needed) + NominalTime(work.kind));
    return ends.back();
  });
  return times;
}

}  // namespace omni::parallel
