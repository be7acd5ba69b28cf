#include "parallel/reshard.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <map>
#include <set>
#include <string>

#include "absl/strings/str_cat.h"
#include "tests/parallel/random_step.h"

namespace omni::parallel {
namespace {

using ::testing::ElementsAre;

// Which token a row is for.
struct Label {
  int32_t replica = 0, microbatch = 0;
  int64_t token = 0;
  bool operator==(const Label&) const = default;
  auto operator<=>(const Label&) const = default;
};

std::vector<ReshardPlan> PlanAll(const StepLayout& step, const DataLayout& data) {
  std::vector<ReshardPlan> plans;
  for (int32_t rank = 0; rank < data.num_ranks(); ++rank) {
    plans.push_back(PlanReshard(step, data, rank));
  }
  return plans;
}

// What a rank makes, row by row, from the description in reshard.h.
std::vector<Label> OutputOf(const StepLayout& step, int32_t encoder, int32_t group, int32_t rank) {
  std::vector<Label> rows;
  for (const bool is_split : {false, true}) {
    for (size_t i = 0; i < step.items.size(); ++i) {
      const StepLayout::Item& item = step.items[i];
      if (item.encoder != encoder || item.group != group || (item.num_shards > 1) != is_split) {
        continue;
      }
      if (rank < item.encoder_rank || rank >= item.encoder_rank + item.num_shards) continue;
      std::vector<Label> all;
      for (const StepLayout::Route& route : step.routes) {
        if (route.item != static_cast<int32_t>(i)) continue;
        for (int64_t r = 0; r < route.num_rows; ++r) {
          all.push_back({item.replica, item.microbatch, route.position + r});
        }
      }
      int64_t begin = 0, end = static_cast<int64_t>(all.size());
      if (is_split) {  // at units, the last one shorter
        const SampleUnit& unit = step.encoders[encoder].unit;
        const int64_t units = (item.input_rows + unit.input_rows - 1) / unit.input_rows;
        const int64_t shard = rank - item.encoder_rank;
        begin = std::min(end, units * shard / item.num_shards * unit.output_rows);
        end = std::min(end, units * (shard + 1) / item.num_shards * unit.output_rows);
      }
      rows.insert(rows.end(), all.begin() + begin, all.begin() + end);
    }
  }
  return rows;
}

// Carries every row where the plans say. Empty if each arrives once at the rank and place that hold
// its token, in the order that reshard.h says; else what is wrong.
std::string Carry(const StepLayout& step, const DataLayout& data,
                  const std::vector<ReshardPlan>& plans) {
  std::map<std::pair<int32_t, int32_t>, SequenceShards> shards;  // (replica, microbatch)
  for (int32_t r = 0; r < data.replicas; ++r) {
    for (int32_t m = 0; m < step.num_microbatches; ++m) {
      shards[{r, m}] =
          ShardSequence(step.microbatch(r, m).cu_seqlens(), data.sequence, data.ring_threshold);
    }
  }
  std::set<Label> wanted, arrived;
  for (const StepLayout::Route& route : step.routes) {
    const StepLayout::Item& item = step.items[route.item];
    for (int64_t r = 0; r < route.num_rows; ++r) {
      wanted.insert({item.replica, item.microbatch, route.position + r});
    }
  }
  for (int32_t encoder = 0; encoder < static_cast<int32_t>(step.encoders.size()); ++encoder) {
    for (int32_t group = 0; group < step.num_groups(); ++group) {
      std::map<std::pair<int32_t, int32_t>, std::vector<Label>> messages;
      std::map<int32_t, int64_t> rows_max;  // by domain
      const auto domain = [&](int32_t rank) {
        return data.Replica(rank) / data.DomainReplicas(encoder);
      };
      for (int32_t rank = 0; rank < data.num_ranks(); ++rank) {
        const std::vector<Label> output = OutputOf(step, encoder, group, rank);
        const ReshardGroup& plan = plans[rank].groups[encoder][group];
        if (plan.output_rows != static_cast<int64_t>(output.size())) return "wrong output_rows";
        int64_t& most = rows_max[domain(rank)];
        most = std::max(most, plan.output_rows);
        for (const RowsToSend& send : plan.send) {
          std::vector<Label>& message = messages[{rank, send.rank}];
          if (!message.empty()) return "two messages of a pair";
          for (const int32_t row : send.rows) {
            if (row < 0 || row >= plan.output_rows) return "a row that is not there";
            message.push_back(output[row]);
          }
        }
      }
      for (int32_t rank = 0; rank < data.num_ranks(); ++rank) {
        const ReshardGroup& plan = plans[rank].groups[encoder][group];
        if (!plan.receive.empty() && data.Stage(rank) > 0) return "received beyond the first stage";
        int64_t received = 0;
        for (const RowsToReceive& receive : plan.receive) {
          const auto message = messages.find({receive.rank, rank});
          if (message == messages.end()) return "nobody sends what is received";
          if (message->second.size() != receive.rows.size() ||
              message->second.size() != receive.microbatches.size() || receive.rows.empty()) {
            return "sizes differ";
          }
          std::pair<int32_t, int32_t> last = {-1, -1};
          for (size_t i = 0; i < receive.rows.size(); ++i) {
            const Label label = message->second[i];
            const int32_t m = receive.microbatches[i];
            const auto tokens =
                shards.at({data.Replica(rank), m}).TokensOf(data.SequenceIndex(rank));
            if (receive.rows[i] < 0 || receive.rows[i] >= static_cast<int32_t>(tokens.size())) {
              return "a place that is not there";
            }
            if (label != Label{data.Replica(rank), m, tokens[receive.rows[i]]}) {
              return "a row at another's place";
            }
            if (!arrived.insert(label).second) return "a row arrived twice";
            if (std::pair(m, receive.rows[i]) <= last) return "rows out of order";
            last = {m, receive.rows[i]};
          }
          received += static_cast<int64_t>(receive.rows.size());
          messages.erase(message);
        }
        int64_t& most = rows_max[domain(rank)];
        most = std::max(most, received);
      }
      for (int32_t rank = 0; rank < data.num_ranks(); ++rank) {
        if (plans[rank].groups[encoder][group].rows_max != rows_max[domain(rank)]) {
          return "wrong rows_max";
        }
      }
      if (!messages.empty()) return "nobody receives what is sent";
    }
  }
  return arrived == wanted ? "" : "rows are missing";
}

TEST(ReshardTest, EveryRowArrivesOnceWhereItsTokenIs) {
  int64_t rows = 0, split = 0, remote = 0, messages = 0;
  for (int seed = 0; seed < 400; ++seed) {
    CounterRng rng(seed, 1);
    const DataLayout data = RandomData(rng);
    StepLayout step = RandomStep(data, rng);
    DealRandomly(data, rng, &step);
    const std::vector<ReshardPlan> plans = PlanAll(step, data);
    ASSERT_EQ(Carry(step, data, plans), "") << "seed " << seed;
    for (const StepLayout::Item& item : step.items) {
      rows += item.output_rows;
      split += item.num_shards > 1;
    }
    for (int32_t rank = 0; rank < data.num_ranks(); ++rank) {
      for (const auto& groups : plans[rank].groups) {
        for (const ReshardGroup& group : groups) {
          messages += static_cast<int64_t>(group.send.size());
          for (const RowsToSend& send : group.send) remote += send.rank != rank;
        }
      }
    }
  }
  // Else the layouts tried too little.
  EXPECT_GT(rows, 10000);
  EXPECT_GT(split, 500);
  EXPECT_GT(remote, 2000);
  EXPECT_GT(messages, remote);
}

// The checks above must see every kind of damage.
TEST(ReshardTest, DamagedPlansAreSeen) {
  const std::vector<std::pair<std::string, std::function<bool(ReshardGroup&)>>> damages = {
      {"row route off by one",
       [](ReshardGroup& g) { return !g.send.empty() && (++g.send[0].rows[0], true); }},
      {"last row off by one",
       [](ReshardGroup& g) { return !g.send.empty() && (--g.send.back().rows.back(), true); }},
      {"place off by one",
       [](ReshardGroup& g) { return !g.receive.empty() && (++g.receive[0].rows.back(), true); }},
      {"microbatch off by one",
       [](ReshardGroup& g) {
         return !g.receive.empty() && g.receive[0].microbatches[0] > 0 &&
                (--g.receive[0].microbatches[0], true);
       }},
      {"rows crossed",
       [](ReshardGroup& g) {
         if (g.send.empty() || g.send[0].rows.size() < 2) return false;
         std::swap(g.send[0].rows[0], g.send[0].rows[1]);
         return true;
       }},
      {"row dropped on one side",
       [](ReshardGroup& g) { return !g.send.empty() && (g.send[0].rows.pop_back(), true); }},
      {"message dropped",
       [](ReshardGroup& g) { return !g.receive.empty() && (g.receive.pop_back(), true); }},
      {"message to the next rank",
       [](ReshardGroup& g) { return !g.send.empty() && (++g.send.back().rank, true); }},
      {"rows_max too low",
       [](ReshardGroup& g) { return g.rows_max > 0 && (g.rows_max = 0, true); }},
  };
  for (const auto& [name, damage] : damages) {
    int done = 0;
    for (int seed = 0; seed < 60; ++seed) {
      CounterRng rng(seed, 2);
      const DataLayout data = RandomData(rng);
      StepLayout step = RandomStep(data, rng);
      DealRandomly(data, rng, &step);
      std::vector<ReshardPlan> plans = PlanAll(step, data);
      const int32_t rank = Pick(rng, 0, data.num_ranks() - 1);
      bool damaged = false;
      for (auto& groups : plans[rank].groups) {
        for (ReshardGroup& group : groups) damaged = damaged || damage(group);
      }
      if (!damaged) continue;
      ++done;
      EXPECT_NE(Carry(step, data, plans), "") << name << ", seed " << seed;
    }
    EXPECT_GT(done, 3) << name;
  }
}

TEST(ReshardTest, AnExampleByHand) {
  // Two stages, one replica of two tensor ranks; rank 3 encodes 5 rows of microbatch 1, whose 8
  // tokens lie 4 and 4 over ranks 0 and 1.
  const DataLayout data{
      .stages = 2, .sequence = {.tensor = 2}, .group_size = 2, .encoders = {{.name = "vision"}}};
  const StepLayout step{
      .num_replicas = 1,
      .num_microbatches = 3,
      .group_size = 2,
      .encoders = {{"vision", {}}},
      .microbatches = {{}, {.documents = {8}}, {}},
      .items = {{.microbatch = 1, .encoder_rank = 3, .input_rows = 5, .output_rows = 5}},
      .routes = {{.item = 0, .first_row = 0, .num_rows = 2, .position = 6},
                 {.item = 0, .first_row = 2, .num_rows = 3, .position = 2}}};
  const ReshardPlan from = PlanReshard(step, data, 3);
  ASSERT_EQ(from.groups.size(), 1u);
  ASSERT_EQ(from.groups[0].size(), 2u);
  EXPECT_TRUE(from.groups[0][1].send.empty());
  const ReshardGroup& sent = from.groups[0][0];
  ASSERT_EQ(sent.send.size(), 2u);
  EXPECT_TRUE(sent.receive.empty());
  EXPECT_EQ(sent.rows_max, 5);
  EXPECT_EQ(sent.send[0].rank, 0);
  EXPECT_THAT(sent.send[0].rows, ElementsAre(2, 3));
  EXPECT_EQ(sent.send[1].rank, 1);
  EXPECT_THAT(sent.send[1].rows, ElementsAre(4, 0, 1));  // tokens 4, 6, 7
  const ReshardPlan to = PlanReshard(step, data, 1);
  ASSERT_EQ(to.groups[0][0].receive.size(), 1u);
  const RowsToReceive& received = to.groups[0][0].receive[0];
  EXPECT_EQ(received.rank, 3);
  EXPECT_THAT(received.microbatches, ElementsAre(1, 1, 1));
  EXPECT_THAT(received.rows, ElementsAre(0, 2, 3));
  EXPECT_EQ(received.RowsOf(0), (UnitRange{0, 0}));
  EXPECT_EQ(received.RowsOf(1), (UnitRange{0, 3}));
  EXPECT_EQ(received.RowsOf(2), (UnitRange{3, 3}));
}

TEST(ReshardTest, RoundsBoundWhatIsStaged) {
  for (int seed = 0; seed < 100; ++seed) {
    CounterRng rng(seed, 3);
    const DataLayout data = RandomData(rng);
    StepLayout step = RandomStep(data, rng);
    DealRandomly(data, rng, &step);
    const int64_t max_rows = Pick(rng, 1, 12);
    for (const ReshardPlan& plan : PlanAll(step, data)) {
      for (const auto& groups : plan.groups) {
        for (const ReshardGroup& group : groups) {
          const int32_t rounds = group.NumRounds(max_rows);
          ASSERT_GE(rounds, 1);
          std::vector<int64_t> next(group.send.size(), 0);
          for (int32_t round = 0; round < rounds; ++round) {
            int64_t staged = 0;
            for (size_t i = 0; i < group.send.size(); ++i) {
              const auto num_rows = static_cast<int64_t>(group.send[i].rows.size());
              const UnitRange rows = RoundRows(num_rows, round, rounds);
              EXPECT_EQ(rows.begin, next[i]);
              EXPECT_LE(rows.size(), (num_rows + rounds - 1) / rounds);
              next[i] = rows.end;
              staged += rows.size();
            }
            EXPECT_LE(staged, max_rows + static_cast<int64_t>(group.send.size()));
          }
          for (size_t i = 0; i < group.send.size(); ++i) {
            EXPECT_EQ(next[i], static_cast<int64_t>(group.send[i].rows.size()));
          }
        }
      }
    }
  }
}

TEST(ReshardTest, TwoRoundsAreAFractionOfTheWhole) {
  const ReshardGroup group{.send = {}, .receive = {}, .output_rows = 40, .rows_max = 1000};
  EXPECT_EQ(group.NumRounds(0.25, 0), 8);  // of 125 rows
  EXPECT_EQ(group.NumRounds(0.25, 250), 8);
  EXPECT_EQ(group.NumRounds(0.25, 500), 4);  // 500 rows may be staged anyway
  EXPECT_EQ(group.NumRounds(0.25, 999), 3);  // of 499
  EXPECT_EQ(group.NumRounds(0.25, 1000), 1);
  EXPECT_EQ(group.NumRounds(1.0, 0), 1);
  EXPECT_EQ(group.NumRounds(0.0001, 0), 1000);  // row by row
  EXPECT_EQ(ReshardGroup{}.NumRounds(0.25, 0), 1);
}

}  // namespace
}  // namespace omni::parallel
