// What the papers and the arithmetic promise of schedules, against their programs on the clock. The
// formulas of the first tests are written out here, those of closed_forms.h are held to the replay
// at random.
#include "parallel/schedule/closed_forms.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <map>
#include <numeric>
#include <random>
#include <utility>
#include <vector>

namespace omni::parallel {
namespace {

// By group and rank: the encoding a rank does, in the same unit as the rest.
using Loads = std::vector<std::vector<double>>;

ReplayResult Replayed(const ScheduleOptions& options, const ActionTime& time) {
  const absl::Status status = Check(options);
  EXPECT_TRUE(status.ok()) << status;
  auto result = Replay(options, BuildPrograms(options), time);
  EXPECT_TRUE(result.ok()) << result.status();
  return *std::move(result);
}

const char* NameOf(ScheduleKind schedule) {
  switch (schedule) {
    case ScheduleKind::kGPipe:
      return "gpipe";
    case ScheduleKind::k1F1B:
      return "1f1b";
    case ScheduleKind::kInterleaved:
      return "interleaved";
    case ScheduleKind::kZbH1:
      return "zb_h1";
    case ScheduleKind::kZbV:
      return "zb_v";
  }
  return "?";
}
constexpr ScheduleKind kSchedules[] = {ScheduleKind::kGPipe, ScheduleKind::k1F1B,
                                       ScheduleKind::kInterleaved, ScheduleKind::kZbH1,
                                       ScheduleKind::kZbV};
int32_t ChunksPerRank(ScheduleKind schedule) {
  if (schedule == ScheduleKind::kInterleaved) return 3;
  return schedule == ScheduleKind::kZbV ? 2 : 1;
}

TEST(ScheduleArithmeticTest, UniformOn1F1BTakesThePlainPipelineAndItsShareOfTheEncoders) {
  int num_cases = 0;
  for (const int32_t p : {1, 2, 3, 4, 5, 8, 16}) {
    for (const int32_t times : {1, 2, 3, 7}) {
      for (const int32_t q : {1, 2, 3}) {
        for (const int32_t ahead : {1, 2, 4}) {
          for (const auto& [tf, tb] : {std::pair(1.0, 2.0), {2.0, 1.0}, {1.25, 1.25}}) {
            for (const auto& [ef, eb] : {std::pair(0.0, 0.0), {0.5, 1.0}, {4.0, 0.25}}) {
              const int32_t m = p * times;
              const ScheduleOptions options{.ranks = p,
                                            .microbatches = m,
                                            .encoders = {{}, {}},
                                            .q = q,
                                            .groups_ahead = ahead};
              // The second encoder costs twice the first; a group's costs are dealt evenly.
              const auto Share = [&](const Action& action, double of_one) {
                const int32_t members =
                    std::min((action.microbatch + 1) * q * p, m) - action.microbatch * q * p;
                return of_one * (1 + action.encoder) * members / p;
              };
              const ReplayResult result = Replayed(
                  options, [&, tf = tf, tb = tb, ef = ef, eb = eb](int32_t, const Action& action) {
                    switch (action.kind) {
                      case ActionKind::kForward:
                        return tf;
                      case ActionKind::kBackward:
                        return tb;
                      case ActionKind::kEncodeForward:
                        return Share(action, ef);
                      case ActionKind::kEncodeBackward:
                        return Share(action, eb);
                      default:
                        return 0.0;
                    }
                  });
              const double sum_e = 3 * m * (ef + eb);
              EXPECT_NEAR(result.step_time, (m + p - 1) * (tf + tb) + sum_e / p, 1e-9)
                  << p << " " << m << " " << q << " " << ahead;
              for (int32_t rank = 0; rank < p; ++rank) {
                EXPECT_LE(result.live_groups_max[rank], ahead + 2);
                EXPECT_LE(result.live_activations_max[rank], p - rank);
                EXPECT_NEAR(result.busy[rank], m * (tf + tb) + sum_e / p, 1e-9);
              }
              ++num_cases;
            }
          }
        }
      }
    }
  }
  std::printf("%d pipelines\n", num_cases);
}

// A number in [0, 1), the same with every library.
double Uniform(std::mt19937_64& random) { return static_cast<double>(random() >> 11) * 0x1p-53; }

// Bits that look random, of bits that don't (splitmix64).
uint64_t Mix(uint64_t bits) {
  bits += 0x9e3779b97f4a7c15;
  bits = (bits ^ (bits >> 30)) * 0xbf58476d1ce4e5b9;
  bits = (bits ^ (bits >> 27)) * 0x94d049bb133111eb;
  return bits ^ (bits >> 31);
}

// Groups of p microbatches of several items each, longest first to whom has least.
Loads DealByCost(const std::vector<std::vector<double>>& items, int32_t p) {
  Loads loads;
  for (size_t first = 0; first < items.size(); first += p) {
    std::vector<double> group;
    for (size_t k = first; k < first + p; ++k) {
      group.insert(group.end(), items[k].begin(), items[k].end());
    }
    std::sort(group.begin(), group.end(), std::greater<>());
    std::vector<double> load(p, 0);
    for (const double cost : group) *std::min_element(load.begin(), load.end()) += cost;
    loads.push_back(std::move(load));
  }
  return loads;
}

TEST(ScheduleArithmeticTest, DealtByCostUnevenEncodersCostNothingOfAStep) {
  const int32_t p = 8, m = 32;
  const double tf = 1, tb = 2, mean_e = 0.5 * (tf + tb);
  const ScheduleOptions options{.ranks = p, .microbatches = m, .encoders = {{}}};
  double sum_dealt = 0, worst_dealt = 0, sum_in_turn = 0, sum_cv = 0;
  const int num_seeds = 50;
  for (int seed = 0; seed < num_seeds; ++seed) {
    std::mt19937_64 random(seed);
    const auto Exponential = [&] { return -std::log(1 - Uniform(random)); };
    // Exponential microbatches (coefficient of variation 1) of 16 items each.
    std::vector<std::vector<double>> items(m, std::vector<double>(16));
    std::vector<double> totals(m);
    for (int32_t k = 0; k < m; ++k) {
      totals[k] = mean_e * Exponential();
      for (double& item : items[k]) item = Exponential();
      const double sum = std::accumulate(items[k].begin(), items[k].end(), 0.0);
      for (double& item : items[k]) item *= totals[k] / sum;
    }
    const double sum_e = std::accumulate(totals.begin(), totals.end(), 0.0);
    double squares = 0;
    for (const double total : totals) squares += (total - sum_e / m) * (total - sum_e / m);
    sum_cv += std::sqrt(squares / m) / (sum_e / m);
    Loads in_turn(m / p, std::vector<double>(p));  // microbatch k on stage k mod p
    for (int32_t k = 0; k < m; ++k) in_turn[k / p][k % p] = totals[k];
    const auto Growth = [&](const Loads& loads) {
      const ReplayResult result = Replayed(options, [&](int32_t rank, const Action& action) {
        switch (action.kind) {
          case ActionKind::kForward:
            return tf;
          case ActionKind::kBackward:
            return tb;
          case ActionKind::kEncodeForward:
            return loads[action.microbatch][rank] / 3;
          case ActionKind::kEncodeBackward:
            return loads[action.microbatch][rank] * 2 / 3;
          default:
            return 0.0;
        }
      });
      return result.step_time / ((m + p - 1) * (tf + tb) + sum_e / p) - 1;
    };
    const double dealt = Growth(DealByCost(items, p));
    worst_dealt = std::max(worst_dealt, dealt);
    sum_dealt += dealt;
    sum_in_turn += Growth(in_turn);
  }
  std::printf(
      "cv %.2f, over the balanced step: dealt by cost %.2f %% (at most %.2f %%), microbatch "
      "k on stage k mod p %.2f %%\n",
      sum_cv / num_seeds, 100 * sum_dealt / num_seeds, 100 * worst_dealt,
      100 * sum_in_turn / num_seeds);
  EXPECT_LE(worst_dealt, 0.01);
  EXPECT_GT(sum_in_turn / num_seeds, 0.03);
}

TEST(ScheduleArithmeticTest, BubblesAndTheJointPipelineOnEverySchedule) {
  std::printf("schedule      p   m  bubble  formula | uniform   bound | kept by rank 0, groups\n");
  for (const ScheduleKind schedule : kSchedules) {
    for (const int32_t p : {1, 2, 3, 4, 8}) {
      const int32_t m = 4 * p, v = ChunksPerRank(schedule);
      const StageCosts costs{.encode = 0.5, .encode_backward = 1};
      const double t = 3;  // of a stage: forward, input and weight gradient take 1 each
      ScheduleOptions options{
          .schedule = schedule, .ranks = p, .chunks_per_rank = v, .microbatches = m};
      const ReplayResult plain = Replayed(options, EqualTimes(options, costs));
      double bubble = (p - 1) * t;
      if (schedule == ScheduleKind::kInterleaved) bubble = (p - 1) * t / v;
      if (schedule == ScheduleKind::kZbH1) bubble = (p - 1) * (1 + 1 - 1);
      // No rank idles between its first and its last action; the last rank begins later.
      if (schedule == ScheduleKind::kZbV) bubble = (p - 1) * 0.5;
      EXPECT_NEAR(plain.step_time, m * t + bubble, 1e-9) << NameOf(schedule) << " " << p;
      for (int32_t rank = 0; rank < p; ++rank) EXPECT_NEAR(plain.busy[rank], m * t, 1e-9);
      if (schedule == ScheduleKind::kZbV) {
        for (const std::vector<TimedAction>& timeline : plain.timeline) {
          double last = 0, first = -1;
          for (const TimedAction& timed : timeline) {
            if (timed.action.kind == ActionKind::kForward && first < 0) first = timed.begin;
            if (timed.action.kind == ActionKind::kWeightGrad) last = timed.end;
          }
          EXPECT_NEAR(last - first, m * t, 1e-9) << p;
        }
      }
      options.encoders = {{}};
      const ReplayResult joint = Replayed(options, EqualTimes(options, costs));
      const double bound = m * t + bubble + m * 1.5 / p;
      std::printf("%-12s %2d %3d  %6.2f   %6.2f | %7.2f %7.2f | %d, %d\n", NameOf(schedule), p, m,
                  plain.step_time - m * t, bubble, joint.step_time, bound,
                  joint.live_activations_max[0], joint.live_groups_max[0]);
      EXPECT_NEAR(joint.step_time, bound, 1e-9) << NameOf(schedule) << " " << p;
    }
  }
}

// Whatever times and numbers: encoding adds to a step no more than the longest share of every
// group, there and back. (A rank with another's encoding in its way would add more.)
TEST(ScheduleArithmeticTest, UniformAddsAtMostTheLongestShareOfEveryGroup) {
  std::mt19937_64 random(7);
  double worst = 0;
  for (int i = 0; i < 2000; ++i) {
    const ScheduleKind schedule = kSchedules[random() % 5];
    ScheduleOptions options{.schedule = schedule,
                            .ranks = static_cast<int32_t>(1 + random() % 7),
                            .chunks_per_rank = ChunksPerRank(schedule),
                            .microbatches = static_cast<int32_t>(1 + random() % 24)};
    options.q = static_cast<int32_t>(1 + random() % 3);
    options.groups_ahead = static_cast<int32_t>(1 + random() % 3);
    const uint64_t salt = random();
    // Any time for any action, the same with and without encoders.
    const auto Time = [&](int32_t rank, const Action& action) {
      if (action.kind > ActionKind::kEncodeBackward) return 0.0;
      const uint64_t bits = Mix(salt ^ ((static_cast<uint64_t>(action.kind) << 48) +
                                        (static_cast<uint64_t>(rank) << 32) +
                                        (static_cast<uint64_t>(action.chunk + 1) << 20) +
                                        static_cast<uint64_t>(action.microbatch)));
      const double x = static_cast<double>(bits >> 11) * 0x1p-53;
      return x * x;
    };
    const double plain = Replayed(options, Time).step_time;
    options.encoders = {{}};
    const ReplayResult joint = Replayed(options, Time);
    double most = 0;
    for (int32_t group = 0; group < options.num_groups(); ++group) {
      for (const ActionKind kind : {ActionKind::kEncodeForward, ActionKind::kEncodeBackward}) {
        double longest = 0;
        for (int32_t rank = 0; rank < options.ranks; ++rank) {
          longest = std::max(longest, Time(rank, {.kind = kind, .microbatch = group}));
        }
        most += longest;
      }
    }
    EXPECT_LE(joint.step_time, plain + most + 1e-9) << NameOf(schedule) << " " << options.ranks;
    EXPECT_GE(joint.step_time, plain - 1e-9);
    worst = std::max(worst, (joint.step_time - plain) / most);
  }
  std::printf("at most %.3f of it was added\n", worst);
  EXPECT_GT(worst, 0.9);  // the promise is no looser than it has to be
}

TEST(ScheduleArithmeticTest, RivalsTakeWhatTheirFormulasSay) {
  const double tf = 1, tb = 2, ef = 0.25, eb = 0.5;
  for (const int32_t p : {1, 2, 4, 7}) {
    for (const int32_t q : {1, 2}) {
      const int32_t m = 6 * p;
      ScheduleOptions options{.ranks = p, .microbatches = m, .encoders = {{}}, .q = q};
      const StageCosts costs{.encode = ef, .encode_backward = eb};
      const double plain = (m + p - 1) * (tf + tb);
      const auto OfKind = [&](JointKind joint) {
        options.joint = joint;
        return Replayed(options, EqualTimes(options, costs));
      };
      const ReplayResult upfront = OfKind(JointKind::kUpfront);
      EXPECT_NEAR(upfront.step_time, plain + m * (ef + eb) / p, 1e-9);
      const ReplayResult recompute = OfKind(JointKind::kRecompute);
      EXPECT_NEAR(recompute.step_time, plain + m * (2 * ef + eb) / p, 1e-9);
      for (int32_t rank = 0; rank < p; ++rank) {
        EXPECT_EQ(upfront.live_groups_max[rank], m / (q * p));
        EXPECT_EQ(recompute.live_groups_max[rank], 1);
      }
      const ReplayResult first = OfKind(JointKind::kFirstStage);
      if (q == 1) {
        // Rank 0 does it all, and waits for the first gradients and for the last ones.
        EXPECT_NEAR(first.step_time, m * (tf + tb + ef + eb) + (p - 1) * ((tb - ef) + (tf - eb)),
                    1e-9);
      }
      if (p > 1) {
        EXPECT_GT(first.step_time, upfront.step_time);
      }
      for (int32_t rank = 1; rank < p; ++rank) EXPECT_EQ(first.live_groups_max[rank], 0);
    }
  }
}

TEST(ClosedFormsTest, HoldOfWhateverIsReplayed) {
  std::mt19937_64 random(11);
  const auto Below = [&](int32_t n) { return static_cast<int32_t>(random() % n); };
  const auto Quarters = [&] { return (1 + Below(8)) / 4.0; };
  std::map<std::pair<ScheduleKind, JointKind>, int> num_formulas;
  std::map<std::pair<ScheduleKind, JointKind>, int> num_tight;
  for (int i = 0; i < 6000; ++i) {
    const ScheduleKind schedule = kSchedules[Below(5)];
    ScheduleOptions options{.schedule = schedule,
                            .ranks = 1 + Below(8),
                            .chunks_per_rank = ChunksPerRank(schedule),
                            .joint = static_cast<JointKind>(Below(4))};
    options.microbatches = Below(2) == 0 ? options.ranks * (1 + Below(5)) : 1 + Below(32);
    for (int encoder = Below(3); encoder > 0; --encoder) {
      options.encoders.push_back({.trains = Below(4) > 0});
    }
    options.q = 1 + Below(2);
    options.groups_ahead = 1 + Below(3);
    StageCosts costs{Quarters(), Quarters(), Quarters(), Quarters(), Quarters()};
    if (Below(2) == 0) costs.input_backward = costs.weight_gradient = costs.forward;
    const ReplayResult result = Replayed(options, EqualTimes(options, costs));
    const auto which = std::pair(schedule, options.joint);
    const std::optional<double> step = ClosedFormStep(options, costs);
    if (step.has_value()) {
      EXPECT_NEAR(result.step_time, *step, 1e-9)
          << NameOf(schedule) << " joint " << static_cast<int>(options.joint) << " ranks "
          << options.ranks << " microbatches " << options.microbatches;
      ++num_formulas[which];
    }
    for (int32_t rank = 0; rank < options.ranks; ++rank) {
      const std::optional<int32_t> kept = LiveActivationsBound(options, rank);
      ASSERT_TRUE(kept.has_value());
      EXPECT_LE(result.live_activations_max[rank], *kept) << NameOf(schedule);
      const std::optional<int32_t> groups = LiveGroupsBound(options);
      ASSERT_TRUE(groups.has_value());
      EXPECT_LE(result.live_groups_max[rank], *groups)
          << NameOf(schedule) << " joint " << static_cast<int>(options.joint);
      if (result.live_groups_max[rank] == *groups && *groups > 0) ++num_tight[which];
    }
  }
  for (const ScheduleKind schedule : kSchedules) {
    for (int joint = 0; joint < 4; ++joint) {
      const auto which = std::pair(schedule, static_cast<JointKind>(joint));
      EXPECT_GT(num_formulas[which], 20) << NameOf(schedule) << " " << joint;
      EXPECT_GT(num_tight[which], 20) << NameOf(schedule) << " " << joint;
    }
  }
}

TEST(ClosedFormsTest, HoldAtScale) {
  ScheduleOptions options{.schedule = ScheduleKind::kInterleaved,
                          .ranks = 64,
                          .chunks_per_rank = 8,
                          .microbatches = 256,
                          .encoders = {{}, {}}};
  const StageCosts costs{.encode = 4, .encode_backward = 8};
  const ReplayResult result = Replayed(options, EqualTimes(options, costs));
  EXPECT_NEAR(result.step_time, 256 * 3 + 63 * 3 / 8.0 + 256 * 24 / 64.0, 1e-6);
  EXPECT_EQ(result.live_activations_max[0], 2 * 63 + 7 * 64 + 1);
}

TEST(ClosedFormsTest, WhereThereIsNoneNoneIsGiven) {
  ScheduleOptions options{
      .schedule = ScheduleKind::kInterleaved, .ranks = 4, .chunks_per_rank = 2, .microbatches = 9};
  EXPECT_FALSE(ClosedFormStep(options, {}).has_value());
  options.microbatches = 8;
  EXPECT_TRUE(ClosedFormStep(options, {}).has_value());
  options = {.schedule = ScheduleKind::kZbH1, .ranks = 4, .microbatches = 8};
  EXPECT_FALSE(ClosedFormStep(options, {.weight_gradient = 1.25}).has_value());
  options.joint = JointKind::kDisaggregated;
  options.encoder_ranks = 1;
  options.encoders = {{}};
  EXPECT_FALSE(ClosedFormStep(options, {}).has_value());
  EXPECT_FALSE(LiveGroupsBound(options).has_value());
  EXPECT_EQ(LiveActivationsBound(options, 3), 0);
  // The decoder's ranks have a third more each.
  EXPECT_DOUBLE_EQ(EqualTimes(options, {})(0, {.kind = ActionKind::kForward}), 4 / 3.0);
}

}  // namespace
}  // namespace omni::parallel
