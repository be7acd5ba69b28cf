#include "trainer/evaluate.h"

#include <algorithm>

#include "absl/strings/str_format.h"
#include "runtime/base/status.h"
#include "trainer/pipeline/scorer.h"

namespace omni::trainer {
namespace {

using dataloader::EvalLoader;
using dataloader::Microbatch;

void AddScores(const Microbatch& microbatch, const TokenScores& tokens, SourceScore* score) {
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
    for (Score* sum : {&score->all, &score->by_question[sample.question]}) {
      sum->samples += one.samples;
      sum->exact += one.exact;
      sum->tokens += one.tokens;
      sum->loss_sum += one.loss_sum;
    }
  }
}

// Sums over ranks. The questions a rank met may differ, so the names are agreed first: everybody
// contributes those it has to one list, by turns of fixed-size records.
absl::Status SumOverRanks(ExecContext& ctx, Communicator* comm, absl::Duration deadline,
                          SourceScore* score) {
  if (comm == nullptr || comm->size() == 1) return absl::OkStatus();
  std::string mine;
  for (const auto& [question, sum] : score->by_question) absl::StrAppend(&mine, question, "\n");
  const int32_t world = comm->size();
  std::vector<int64_t> sizes(world, 0);
  sizes[comm->rank()] = static_cast<int64_t>(mine.size());
  TensorArena arena(ctx.device);
  ExecContext inner{.device = ctx.device, .stream = ctx.stream, .tape = nullptr, .arena = &arena};
  const TensorView all_sizes = UploadNew<int64_t>(inner, sizes, {world});
  OMNI_RETURN_IF_ERROR(comm->AllReduce(all_sizes, ReduceOp::kSum)->WaitHost(deadline));
  sizes = HostRead<int64_t>(inner, all_sizes);
  int64_t total = 0;
  for (const int64_t size : sizes) total += size;
  const TensorView names = inner.New(DType::kUInt8, {total});
  const TensorView own = UploadNew<uint8_t>(
      inner, absl::MakeConstSpan(reinterpret_cast<const uint8_t*>(mine.data()), mine.size()),
      {static_cast<int64_t>(mine.size())});
  OMNI_RETURN_IF_ERROR(comm->AllGather(own, names, sizes)->WaitHost(deadline));
  std::string line;
  for (const uint8_t c : HostRead<uint8_t>(inner, names)) {
    if (c != '\n') {
      line.push_back(static_cast<char>(c));
      continue;
    }
    score->by_question[line];
    line.clear();
  }
  std::vector<double> sums;
  const auto pack = [&](const Score& s) {
    sums.insert(sums.end(), {static_cast<double>(s.samples), static_cast<double>(s.exact),
                             static_cast<double>(s.tokens), s.loss_sum});
  };
  pack(score->all);
  for (const auto& [question, sum] : score->by_question) pack(sum);
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
  for (auto& [question, sum] : score->by_question) unpack(&sum);
  return absl::OkStatus();
}

// True as long as any replica has a microbatch: experts may be shared between them.
absl::StatusOr<bool> AnyHas(ExecContext& ctx, Communicator* comm, absl::Duration deadline,
                            bool has) {
  if (comm == nullptr || comm->size() == 1) return has;
  const int32_t mine = has ? 1 : 0;
  const TensorView flag = UploadNew<int32_t>(ctx, {&mine, 1}, {1});
  OMNI_RETURN_IF_ERROR(comm->AllReduce(flag, ReduceOp::kMax)->WaitHost(deadline));
  return HostRead<int32_t>(ctx, flag)[0] != 0;
}

absl::Status ScoreSource(ExecContext& ctx, const ExecutorOptions& executor,
                         const dataloader::DataConfig& data, Communicator* comm,
                         const EvaluateOptions& options, SourceScore* score) {
  auto loader = EvalLoader::Create(data, score->source,
                                   {.rank = executor.data.Replica(executor.rank),
                                    .world = executor.data.replicas,
                                    .blind = options.blind});
  absl::Status status = loader.status();
  Scorer scorer(executor);
  for (;;) {
    std::optional<Microbatch> microbatch;
    if (status.ok()) {
      auto next = (*loader)->Next();
      status = next.status();
      if (next.ok()) microbatch = *std::move(next);
    }
    // A rank whose data fail still takes part: its replica, if it has other ranks, fails with it.
    OMNI_ASSIGN_OR_RETURN(const bool goes_on,
                          AnyHas(ctx, comm, options.deadline, microbatch.has_value()));
    if (!goes_on) return status;
    if (!microbatch.has_value()) {
      microbatch.emplace();
      microbatch->tokens.cu_seqlens = {0};
    }
    OMNI_ASSIGN_OR_RETURN(const TokenScores tokens, scorer.Score(*microbatch));
    if (!tokens.losses.empty()) AddScores(*microbatch, tokens, score);
    ctx.arena->Release();
  }
}

}  // namespace

absl::StatusOr<std::vector<SourceScore>> Evaluate(const ExecutorOptions& executor,
                                                  const dataloader::DataConfig& data,
                                                  Communicator* comm,
                                                  const EvaluateOptions& options) {
  TensorArena arena(executor.device);
  ExecContext ctx{.device = executor.device, .stream = executor.stream, .arena = &arena};
  std::vector<SourceScore> scores;
  for (const dataloader::EvalConfig& source : data.eval) {
    SourceScore score{.source = source.name};
    // A rank whose data fail still takes part in the sums; the failure is reported after.
    const absl::Status local = ScoreSource(ctx, executor, data, comm, options, &score);
    OMNI_RETURN_IF_ERROR(SumOverRanks(ctx, comm, options.deadline, &score));
    OMNI_RETURN_IF_ERROR(local);
    scores.push_back(std::move(score));
  }
  return scores;
}

std::string FormatScores(const std::vector<SourceScore>& scores, const std::string& title) {
  std::string table = absl::StrFormat("%-34s %9s %8s %8s", title, "samples", "exact", "loss");
  const auto line = [&](const std::string& name, const Score& score) {
    absl::StrAppendFormat(&table, "\n%-34s %9d %7.1f%% %8.4f", name, score.samples,
                          100 * score.accuracy(), score.loss());
  };
  for (const SourceScore& score : scores) {
    line(score.source, score.all);
    if (score.by_question.size() < 2) continue;
    for (const auto& [question, sum] : score.by_question) line("  " + question, sum);
  }
  return table;
}

std::map<std::string, double> ScoreValues(const std::vector<SourceScore>& scores) {
  std::map<std::string, double> values;
  for (const SourceScore& score : scores) {
    values[absl::StrCat("eval/", score.source, "/accuracy")] = score.all.accuracy();
    values[absl::StrCat("eval/", score.source, "/loss")] = score.all.loss();
    for (const auto& [question, sum] : score.by_question) {
      if (question.empty()) continue;
      values[absl::StrCat("eval/", score.source, "/", question, "/accuracy")] = sum.accuracy();
    }
  }
  return values;
}

}  // namespace omni::trainer
