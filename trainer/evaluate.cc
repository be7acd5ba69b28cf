#include "trainer/evaluate.h"

#include <algorithm>
#include <limits>

#include "absl/strings/str_format.h"
#include "dataloader/eval_prefetch.h"
#include "runtime/base/check.h"
#include "runtime/base/status.h"
#include "runtime/base/text.h"
#include "trainer/gather_strings.h"
#include "trainer/pipeline/scorer.h"

namespace omni::trainer {
namespace {

using dataloader::EvalLoader;
using dataloader::Microbatch;

void AddScores(const Microbatch& microbatch, const TokenScores& tokens, bool is_grouped,
               SourceScore* score) {
  for (const dataloader::SampleRef& sample : microbatch.samples) {
    if (sample.is_blanked) continue;
    Score one{.samples = 1, .exact = 1};
    for (int64_t t = sample.token_begin; t < sample.token_end; ++t) {
      const int32_t target = microbatch.tokens.targets[t];
      if (target < 0) continue;
      ++one.tokens;
      one.loss_sum += tokens.losses[t];
      if (tokens.argmax[t] != target) one.exact = 0;
    }
    if (one.tokens == 0) continue;
    score->all += one;
    if (!is_grouped) continue;
    score->by_group[sample.group.empty() ? SourceScore::kNone : sample.group] += one;
  }
}

// Sums over ranks. The groups a rank met may differ, so their names are agreed first.
absl::Status SumOverRanks(ExecContext& ctx, Communicator* comm, absl::Duration deadline,
                          SourceScore* score) {
  if (comm == nullptr || comm->size() == 1) return absl::OkStatus();
  std::vector<std::string> mine;
  for (const auto& [group, sum] : score->by_group) mine.push_back(group);
  OMNI_ASSIGN_OR_RETURN(const auto groups, GatherStrings(ctx, comm, deadline, mine));
  for (const std::vector<std::string>& of_rank : groups) {
    for (const std::string& group : of_rank) score->by_group[group];
  }
  TensorArena arena(ctx.device);
  ExecContext inner{.device = ctx.device, .stream = ctx.stream, .tape = nullptr, .arena = &arena};
  std::vector<double> sums;
  const auto pack = [&](const Score& s) {
    sums.insert(sums.end(), {static_cast<double>(s.samples), static_cast<double>(s.exact),
                             static_cast<double>(s.tokens), s.loss_sum});
  };
  pack(score->all);
  for (const auto& [group, sum] : score->by_group) pack(sum);
  const TensorView reduced = UploadNew<double>(inner, sums, {static_cast<int64_t>(sums.size())});
  OMNI_RETURN_IF_ERROR(comm->AllReduce(reduced, ReduceOp::kSum)->WaitHost(deadline));
  sums = HostRead<double>(inner, reduced);
  size_t next = 0;
  const auto unpack = [&](Score* s) {
    s->samples = static_cast<int64_t>(sums[next++]);
    s->exact = static_cast<int64_t>(sums[next++]);
    s->tokens = static_cast<int64_t>(sums[next++]);
    s->loss_sum = sums[next++];
  };
  unpack(&score->all);
  for (auto& [group, sum] : score->by_group) unpack(&sum);
  return absl::OkStatus();
}

// What ranks left out, `faults` of this one, and whether the data of any failed: all leave alike.
absl::Status ShareFaults(ExecContext& ctx, Communicator* comm, absl::Duration deadline,
                         const std::vector<dataloader::FaultEvent>& faults,
                         const absl::Status& local, SourceScore* score) {
  std::vector<std::string> mine = {local.ok() ? "" : "failed"};
  for (const dataloader::FaultEvent& fault : faults) {
    mine.insert(mine.end(), {dataloader::Name(fault.fault), fault.sample_id, fault.message});
  }
  const auto all = GatherStrings(ctx, comm, deadline, mine);
  OMNI_RETURN_IF_ERROR(local);  // the cause of whatever the others say
  OMNI_RETURN_IF_ERROR(all.status());
  int32_t failed = 0;
  for (const std::vector<std::string>& of_rank : *all) {
    failed += of_rank.empty() || !of_rank[0].empty();
    for (size_t i = 1; i + 2 < of_rank.size(); i += 3) {
      const dataloader::SampleFault* fault = dataloader::FaultOfName(of_rank[i]);
      OMNI_CHECK(fault != nullptr);
      score->left_out.Add({.fault = *fault,
                           .source = score->source,
                           .sample_id = of_rank[i + 1],
                           .message = of_rank[i + 2]});
    }
  }
  if (failed == 0) return absl::OkStatus();
  return absl::AbortedError(
      absl::StrCat("evaluation source \"", score->source, "\" failed on ", failed, " other ranks"));
}

// True as long as any replica has a microbatch, for experts may be shared between them, and the
// data of none has failed: the ranks of a replica must have the same one. Cancelled on all ranks
// once any is to stop.
absl::StatusOr<bool> GoesOn(ExecContext& ctx, Communicator* comm, const EvaluateOptions& options,
                            bool has, bool failed) {
  std::vector<int32_t> flags = {has, failed, options.stops && options.stops()};
  if (comm != nullptr && comm->size() > 1) {
    const TensorView view = UploadNew<int32_t>(ctx, flags, {3});
    OMNI_RETURN_IF_ERROR(comm->AllReduce(view, ReduceOp::kMax)->WaitHost(options.limits.step));
    flags = HostRead<int32_t>(ctx, view);
  }
  if (flags[1] != 0) return false;
  if (flags[2] != 0) return absl::CancelledError("the evaluation was stopped");
  return flags[0] != 0;
}

absl::Status ScoreSource(ExecContext& ctx, const ExecutorOptions& executor,
                         const dataloader::DataConfig& data, Communicator* comm,
                         const EvaluateOptions& options, bool is_grouped, SourceScore* score) {
  const int32_t replica = executor.data.Replica(executor.rank);
  auto loader = EvalLoader::Create(data, score->source,
                                   {.rank = replica,
                                    .world = executor.data.replicas,
                                    .blind = options.blind,
                                    .tokenizer = nullptr,
                                    .video = nullptr,
                                    .storage = options.storage});
  absl::Status status = loader.status();
  std::optional<dataloader::EvalPrefetch> samples;
  int64_t num_samples = 0;
  if (status.ok()) {
    num_samples = (*loader)->num_samples();
    samples.emplace(*std::move(loader));
  }
  Scorer scorer(executor);
  for (;;) {
    std::optional<Microbatch> microbatch;
    if (status.ok()) {
      auto next = samples->Next(options.limits.data, options.progress, options.stops);
      if (next.ok()) microbatch = *std::move(next);
      // Stopped: GoesOn tells the others.
      if (!absl::IsCancelled(next.status())) status = next.status();
    }
    OMNI_ASSIGN_OR_RETURN(const bool goes_on, GoesOn(ctx, comm, options, microbatch.has_value(),
                                                     /*failed=*/!status.ok()));
    if (!goes_on) break;
    if (!microbatch.has_value()) {
      microbatch.emplace();
      microbatch->tokens.cu_seqlens = {0};
    }
    OMNI_ASSIGN_OR_RETURN(const TokenScores tokens, scorer.Score(*microbatch));
    if (!tokens.losses.empty()) AddScores(*microbatch, tokens, is_grouped, score);
    ctx.arena->Release();
  }
  // All ranks of a replica meet the same samples; the first of them tells.
  std::vector<dataloader::FaultEvent> faults;
  if (samples.has_value() && executor.data.RankAt(0, replica, 0) == executor.rank) {
    faults = samples->Faults();
  }
  if (options.log != nullptr) {
    if (!status.ok()) options.log->Error("evaluation: ", status.ToString());
    for (const dataloader::FaultEvent& fault : faults) {
      options.log->Info("evaluation sample ", fault.sample_id, " of ", fault.source, " is ",
                        dataloader::Name(fault.fault), ": ", fault.message);
    }
  }
  OMNI_RETURN_IF_ERROR(ShareFaults(ctx, comm, options.limits.step, faults, status, score));
  score->left_out.AddDrawn(score->source, num_samples);
  return absl::OkStatus();
}

std::string Percent(const std::optional<double>& share) {
  return share.has_value() ? absl::StrFormat("%.1f%%", 100 * *share) : "-";
}

}  // namespace

Score& Score::operator+=(const Score& other) {
  samples += other.samples;
  exact += other.exact;
  tokens += other.tokens;
  loss_sum += other.loss_sum;
  return *this;
}

std::optional<double> Score::accuracy() const {
  if (samples == 0) return std::nullopt;
  return static_cast<double>(exact) / static_cast<double>(samples);
}

std::optional<double> Score::loss() const {
  if (tokens == 0) return std::nullopt;
  return loss_sum / static_cast<double>(tokens);
}

std::map<std::string, Score> BoundGroups(const std::map<std::string, Score>& groups) {
  std::vector<std::pair<std::string, Score>> named(groups.begin(), groups.end());
  const auto is_name = [](const std::string& group) {
    return group.size() <= SourceScore::kMaxGroupBytes && Printable(group) == group;
  };
  // The largest first; ties by name, so that ranks agree.
  std::stable_sort(named.begin(), named.end(), [&](const auto& a, const auto& b) {
    if (is_name(a.first) != is_name(b.first)) return is_name(a.first);
    return a.second.samples > b.second.samples;
  });
  std::map<std::string, Score> bounded;
  const bool fits = named.size() <= SourceScore::kMaxGroups;
  for (size_t i = 0; i < named.size(); ++i) {
    const bool stays = is_name(named[i].first) && (fits || i + 1 < SourceScore::kMaxGroups);
    bounded[stays ? named[i].first : SourceScore::kOther] += named[i].second;
  }
  return bounded;
}

absl::StatusOr<std::vector<SourceScore>> Evaluate(const ExecutorOptions& executor,
                                                  const dataloader::DataConfig& data,
                                                  Communicator* comm,
                                                  const EvaluateOptions& options) {
  TensorArena arena(executor.device);
  ExecContext ctx{.device = executor.device, .stream = executor.stream, .arena = &arena};
  std::vector<SourceScore> scores;
  for (const dataloader::EvalConfig& source : data.eval) {
    SourceScore score{.source = source.name, .left_out = dataloader::SampleTally({source.name})};
    OMNI_RETURN_IF_ERROR(
        ScoreSource(ctx, executor, data, comm, options, !source.group_by.empty(), &score));
    OMNI_RETURN_IF_ERROR(SumOverRanks(ctx, comm, options.limits.step, &score));
    score.by_group = BoundGroups(score.by_group);
    scores.push_back(std::move(score));
  }
  return scores;
}

std::string FormatScores(const std::vector<SourceScore>& scores, const std::string& title) {
  std::string table = absl::StrFormat("%-34s %9s %8s %8s", title, "samples", "exact", "loss");
  const auto line = [&](const std::string& name, const Score& score) {
    absl::StrAppendFormat(&table, "\n%-34s %9d %8s %8s", name, score.samples,
                          Percent(score.accuracy()),
                          score.loss().has_value() ? absl::StrFormat("%.4f", *score.loss()) : "-");
  };
  std::string left_out;
  for (const SourceScore& score : scores) {
    line(score.source, score.all);
    if (!score.left_out.empty()) absl::StrAppend(&left_out, "\n", score.left_out.Table());
    if (score.by_group.size() < 2) continue;
    for (const auto& [group, sum] : score.by_group) line("  " + group, sum);
  }
  return left_out.empty() ? table : absl::StrCat(table, "\nnot scored:", left_out);
}

std::map<std::string, double> ScoreValues(const std::vector<SourceScore>& scores) {
  constexpr double kAbsent = std::numeric_limits<double>::quiet_NaN();
  std::map<std::string, double> values;
  for (const SourceScore& score : scores) {
    const std::string prefix = absl::StrCat("eval/", MetricPart(score.source), "/");
    values[prefix + "accuracy"] = score.all.accuracy().value_or(kAbsent);
    values[prefix + "loss"] = score.all.loss().value_or(kAbsent);
    values[prefix + "samples"] = static_cast<double>(score.all.samples);
    for (const dataloader::SampleTally::Source& source : score.left_out.sources()) {
      for (const auto& [fault, reason] : source.reasons) {
        values[absl::StrCat(prefix, "left_out/", dataloader::Name(fault))] =
            static_cast<double>(reason.count);
      }
    }
    for (const auto& [group, sum] : score.by_group) {
      values[absl::StrCat(prefix, MetricPart(group), "/accuracy")] =
          sum.accuracy().value_or(kAbsent);
    }
  }
  return values;
}

absl::Status CheckScored(const std::vector<SourceScore>& scores) {
  std::string why;
  for (const SourceScore& score : scores) {
    if (score.all.samples > 0) return absl::OkStatus();
    for (const dataloader::SampleTally::Source& source : score.left_out.sources()) {
      absl::StrAppend(&why, "; ", source.name, ": ", source.Summary());
    }
  }
  if (scores.empty()) return absl::FailedPreconditionError("data.eval: there is nothing to score");
  return absl::FailedPreconditionError(absl::StrCat("nothing was scored", why));
}

}  // namespace omni::trainer
