#include "tests/sweep/sweep_plans.h"

#include <algorithm>
#include <queue>
#include <set>
#include <unordered_map>
#include <unordered_set>

#include "absl/strings/str_cat.h"
#include "runtime/base/check.h"

namespace omni::test {
namespace {

constexpr int32_t kMostWorkers = 8;
constexpr int64_t kPool = 3000;  // random cases that a cover is chosen from
constexpr int64_t kJobPool = 400;

template <typename T>
const T& Pick(const std::vector<T>& from, CounterRng& rng) {
  OMNI_CHECK(!from.empty());
  return from[rng.NextBelow(from.size())];
}

// The plain level as often as all others together.
template <typename T>
T Mostly(const T& plain, const std::vector<T>& others, CounterRng& rng) {
  return rng.NextBelow(2) == 0 ? plain : Pick(others, rng);
}

std::vector<int32_t> Divisors(int32_t n) {
  std::vector<int32_t> divisors;
  for (int32_t d = 1; d <= n; ++d) {
    if (n % d == 0) divisors.push_back(d);
  }
  return divisors;
}

bool TensorFits(int32_t tensor, const JobShape& shape) {
  return shape.heads % tensor == 0 &&
         (shape.kv_heads % tensor == 0 || tensor % shape.kv_heads == 0);
}

struct Degrees {
  int32_t pipeline, tensor, context, data;
};

std::vector<Degrees> AllDegrees(const JobShape& shape) {
  std::vector<Degrees> all;
  for (int32_t p = 1; p <= std::min(4, shape.layers); ++p) {
    for (int32_t t = 1; t <= 4; ++t) {
      if (!TensorFits(t, shape)) continue;
      for (int32_t c = 1; c <= 6; ++c) {
        for (int32_t d = 1; p * t * c * d <= kMostWorkers; ++d) all.push_back({p, t, c, d});
      }
    }
  }
  return all;
}

// Layers of each chunk, at least one.
std::vector<int32_t> UnevenLayers(int32_t layers, int32_t chunks, CounterRng& rng) {
  std::vector<int32_t> counts(chunks, 1);
  for (int32_t left = layers - chunks; left > 0; --left) ++counts[rng.NextBelow(chunks)];
  return counts;
}

SweepPlan::Encoder RandomEncoder(int32_t stage_ranks, CounterRng& rng) {
  SweepPlan::Encoder encoder;
  encoder.sequence = Pick(Divisors(stage_ranks), rng);
  encoder.threshold = Pick<std::string>({"auto", "none", "0", "40"}, rng);
  encoder.weights = Mostly<std::string>("replicated", {"zero2", "zero3"}, rng);
  if (encoder.sequence == 1) encoder.weights = "replicated";  // what else is refused
  encoder.recompute = Mostly<std::string>("none", {"full", "selective"}, rng);
  return encoder;
}

using Pair = uint64_t;

class PairSet {
 public:
  std::vector<Pair> PairsOf(const std::vector<std::string>& levels) {
    std::vector<uint64_t> ids;
    for (const std::string& level : levels) {
      ids.push_back(ids_.emplace(level, ids_.size()).first->second);
    }
    std::sort(ids.begin(), ids.end());
    std::vector<Pair> pairs;
    for (size_t i = 0; i < ids.size(); ++i) {
      for (size_t j = i + 1; j < ids.size(); ++j) pairs.push_back(ids[i] << 32 | ids[j]);
    }
    return pairs;
  }

 private:
  std::unordered_map<std::string, uint64_t> ids_;
};

// Indices of candidates that have, one after the other, most pairs that none before has.
std::vector<size_t> Cover(const std::vector<std::vector<std::string>>& candidates,
                          int64_t* num_pairs) {
  PairSet ids;
  std::vector<std::vector<Pair>> pairs;
  std::unordered_set<Pair> missing;
  for (const auto& levels : candidates) {
    pairs.push_back(ids.PairsOf(levels));
    missing.insert(pairs.back().begin(), pairs.back().end());
  }
  *num_pairs = static_cast<int64_t>(missing.size());
  const auto count_missing = [&](size_t i) {
    return std::count_if(pairs[i].begin(), pairs[i].end(),
                         [&](Pair pair) { return missing.count(pair) > 0; });
  };
  // Most first, then the lowest index. Counts only fall, so one that is still on top is the best.
  std::priority_queue<std::pair<int64_t, int64_t>> queue;
  for (size_t i = 0; i < pairs.size(); ++i) {
    queue.push({static_cast<int64_t>(pairs[i].size()), -static_cast<int64_t>(i)});
  }
  std::vector<size_t> chosen;
  while (!missing.empty()) {
    const auto [stale, negative] = queue.top();
    queue.pop();
    const auto i = static_cast<size_t>(-negative);
    const int64_t count = count_missing(i);
    if (count == 0) continue;
    if (!queue.empty() && std::pair(count, negative) < queue.top()) {
      queue.push({count, negative});
      continue;
    }
    chosen.push_back(i);
    for (const Pair pair : pairs[i]) missing.erase(pair);
  }
  return chosen;
}

std::vector<std::string> JobLevels(const Levels& job) {
  std::vector<std::string> levels;
  for (const auto& [name, level] : job) levels.push_back(absl::StrCat("job.", name, "=", level));
  return levels;
}

}  // namespace

Levels RandomJob(CounterRng& rng) {
  while (true) {
    Levels job;
    for (const Feature& feature : JobFeatures()) {
      const std::string name = feature.name;
      // What excludes others comes less often.
      const bool is_rare = name == "lora" || name == "frozen" || name == "data";
      const size_t count = feature.levels.size();
      const size_t level = is_rare && rng.NextBelow(2) == 0 ? 0 : rng.NextBelow(count);
      job[name] = feature.levels[level];
    }
    if (IsJob(job)) return job;
  }
}

SweepPlan RandomPlan(const JobShape& shape, CounterRng& rng) {
  const std::vector<Degrees> all = AllDegrees(shape);
  // World sizes evenly, pipelines more often than not.
  const auto workers = static_cast<int32_t>(1 + rng.NextBelow(kMostWorkers));
  std::vector<Degrees> fitting;
  for (const Degrees& degrees : all) {
    if (degrees.pipeline * degrees.tensor * degrees.context * degrees.data != workers) continue;
    fitting.push_back(degrees);
  }
  const Degrees degrees = Pick(fitting, rng);  // data alone always fits
  SweepPlan plan;
  plan.workers = workers;
  plan.pipeline = degrees.pipeline;
  plan.tensor = degrees.tensor;
  plan.context = degrees.context;
  plan.context_kind = Pick<std::string>({"ring", "ulysses"}, rng);
  plan.ring_threshold = Pick<int32_t>({0, 40, 100000}, rng);

  std::vector<std::pair<std::string, int32_t>> schedules = {
      {"gpipe", 1}, {"1f1b", 1}, {"zb_h1", 1}};
  for (const int32_t chunks : {2, 3}) {
    if (plan.pipeline * chunks > shape.layers) continue;
    schedules.push_back({"interleaved", chunks});
    if (chunks == 2) schedules.push_back({"zb_v", chunks});
  }
  const auto& [schedule, chunks] = Pick(schedules, rng);
  plan.schedule = schedule;
  plan.chunks_per_rank = chunks;
  if (plan.pipeline * chunks > 1 && rng.NextBelow(2) == 0) {
    plan.layers = UnevenLayers(shape.layers, plan.pipeline * chunks, rng);
  }
  const int32_t stage_ranks = plan.workers / plan.pipeline;
  std::vector<int32_t> experts = {1};
  for (const int32_t degree : Divisors(stage_ranks)) {
    if (degree > 1 && shape.experts % degree == 0 && shape.experts > 0) experts.push_back(degree);
  }
  plan.expert = Pick(experts, rng);
  plan.recompute = Mostly<std::string>("none", {"full", "selective"}, rng);
  plan.weights = Mostly<std::string>("replicated", {"zero2", "zero3"}, rng);
  plan.joint = Mostly<std::string>("uniform", {"upfront", "recompute", "first_stage"}, rng);
  plan.q = Pick<int32_t>({1, 2}, rng);
  plan.groups_ahead = Pick<int32_t>({1, 2, 3}, rng);
  if (shape.has_vision) plan.encoders["vision"] = RandomEncoder(stage_ranks, rng);
  if (shape.has_audio) plan.encoders["audio"] = RandomEncoder(stage_ranks, rng);
  plan.micro_batch_sequences = Pick<int32_t>({1, 1, 2}, rng);
  plan.rounds = Pick<std::string>({"whole", "half", "tenth"}, rng);
  plan.comm = Pick<std::string>({"shm", "shm", "shm", "tcp"}, rng);
  return plan;
}

std::vector<std::string> LevelsOf(const SweepCase& sweep_case) {
  const SweepPlan& plan = sweep_case.plan;
  std::vector<std::string> levels = JobLevels(sweep_case.job);
  const auto add = [&](const char* name, const auto&... value) {
    levels.push_back(absl::StrCat("plan.", name, "=", value...));
  };
  add("workers", plan.workers);
  add("pipeline", plan.pipeline);
  add("schedule", plan.schedule, plan.chunks_per_rank);
  add("layers", plan.layers.empty() ? "even" : "uneven");
  add("tensor", plan.tensor);
  add("context", plan.context);
  if (plan.context > 1) {
    add("context_kind", plan.context_kind);
    add("ring_threshold", plan.ring_threshold);
  }
  add("expert", plan.expert);
  add("data", plan.data());
  add("recompute", plan.recompute);
  add("weights", plan.workers == plan.pipeline ? "alone" : plan.weights);
  add("joint", plan.joint);
  if (plan.joint == "uniform") add("groups_ahead", plan.groups_ahead);
  add("q", plan.q);
  add("rounds", plan.rounds);
  for (const auto& [name, encoder] : plan.encoders) {
    const auto add_own = [&, name = name](const char* key, const auto& value) {
      levels.push_back(absl::StrCat("plan.", name, ".", key, " ", value));
    };
    add_own("recompute", encoder.recompute);
    add_own("sequence", encoder.sequence);
    if (encoder.sequence > 1) add_own("threshold", encoder.threshold);
    if (encoder.sequence > 1) add_own("weights", encoder.weights);
  }
  add("micro_batch_sequences", plan.micro_batch_sequences);
  add("comm", plan.comm);
  const JobShape shape = ShapeOf(sweep_case.job);
  const int32_t sequences = (shape.lanes + plan.data() - 1) / plan.data();
  const int32_t microbatches =
      (sequences + plan.micro_batch_sequences - 1) / plan.micro_batch_sequences;
  add("microbatches", microbatches % plan.pipeline == 0 ? "divide"
                      : microbatches < plan.pipeline    ? "few"
                                                        : "remain");
  add("replicas", shape.lanes < plan.data()        ? "without"
                  : shape.lanes % plan.data() == 0 ? "even"
                                                   : "uneven");
  return levels;
}

SweepCases::SweepCases(uint64_t seed) : seed_(seed) {
  CounterRng rng(seed, StreamOf("sweep"));
  std::vector<Levels> pool;
  std::vector<std::vector<std::string>> levels;
  for (int64_t i = 0; i < kJobPool; ++i) {
    pool.push_back(RandomJob(rng));
    levels.push_back(JobLevels(pool.back()));
  }
  for (const size_t chosen : Cover(levels, &num_pairs_)) jobs_.push_back(pool[chosen]);
  std::vector<SweepCase> cases;
  levels.clear();
  for (int64_t i = 0; i < kPool; ++i) {
    const Levels& job = jobs_[i % jobs_.size()];
    cases.push_back({.job = job, .plan = RandomPlan(ShapeOf(job), rng)});
    levels.push_back(LevelsOf(cases.back()));
  }
  for (const size_t chosen : Cover(levels, &num_pairs_)) cover_.push_back(cases[chosen]);
}

SweepCase SweepCases::At(int64_t index) const {
  if (index < num_cover()) return cover_[index];
  CounterRng rng(seed_, StreamOf(absl::StrCat("sweep/", index)));
  // A new job now and then.
  CounterRng job_rng(seed_, StreamOf(absl::StrCat("sweep job/", index / 6)));
  const Levels job = index % 6 < 3 ? Pick(jobs_, rng) : RandomJob(job_rng);
  return {.job = job, .plan = RandomPlan(ShapeOf(job), rng)};
}

int64_t SweepCases::CountPairs(int64_t count) const {
  std::set<std::pair<std::string, std::string>> pairs;
  for (int64_t i = 0; i < std::min(count, num_cover()); ++i) {
    std::vector<std::string> levels = LevelsOf(cover_[i]);
    std::sort(levels.begin(), levels.end());
    for (size_t a = 0; a < levels.size(); ++a) {
      for (size_t b = a + 1; b < levels.size(); ++b) pairs.insert({levels[a], levels[b]});
    }
  }
  return static_cast<int64_t>(pairs.size());
}

}  // namespace omni::test
