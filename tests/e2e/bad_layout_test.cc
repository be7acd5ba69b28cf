// What a person may write under `parallel:` that does not fit itself, the ranks or the model: one
// line that names the key, what was found and the nearest that would do, before a worker starts or
// a run directory is made. And what looks odd but fits: it trains.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "tests/e2e/bad_input.h"
#include "tests/e2e/process.h"
#include "tests/support/tiny_job.h"

namespace omni::test {
namespace {

// Two layers of 2 heads, 1 KV head, ffn 48; encoders vision and audio; 4 lanes.
std::vector<std::string> TrainWith(const std::string& sets) {
  const std::string recipe = WriteInput(
      "layout.yaml", TinyRecipeYaml({.steps = 2, .dtype = "fp32", .sources = "[image, audio]"}));
  std::vector<std::string> arguments = {"train", recipe};
  for (absl::string_view set : absl::StrSplit(sets, "; ")) {
    arguments.insert(arguments.end(), {"--set", std::string(set)});
  }
  return arguments;
}

// `input`: overrides, apart by "; ".
class BadLayoutTest : public ::testing::TestWithParam<Bad> {};
TEST_P(BadLayoutTest, IsRefusedBeforeAnythingStarts) {
  ExpectTrainRefuses(TrainWith(GetParam().input), GetParam());
}

class OddLayoutTest : public ::testing::TestWithParam<Bad> {};
TEST_P(OddLayoutTest, Trains) {
  const std::string dir = absl::StrCat(TinyData(), "-odd-", GetParam().name);
  std::vector<std::string> arguments = TrainWith(GetParam().input);
  arguments.insert(arguments.end(), {"--run-dir", dir});
  OmnitrainProcess run(arguments);
  EXPECT_EQ(run.Wait(), 0) << run.output();
  EXPECT_THAT(run.output(), ::testing::HasSubstr("finished at step 2"));
  std::filesystem::remove_all(dir);
}

const std::string kMoe = "model.decoder.moe={experts: 4, top_k: 2, ffn: 24}; ";
const std::string kDeep = "model.decoder.layers=8; ";
const std::string kEightHeads = "model.decoder.heads=8; model.decoder.kv_heads=4; ";

INSTANTIATE_TEST_SUITE_P(
    Section, BadLayoutTest,
    ::testing::Values(
        Bad{"NoMapping", "parallel=2", "--set parallel: found \"2\"", "expected a mapping"},
        Bad{"List", "parallel=[1, 2]", "--set parallel: found a list", "expected a mapping"},
        Bad{"UnknownKey", "parallel.tensr=2", "parallel.tensr: unknown key",
            "did you mean \"tensor\"?"},
        Bad{"OthersWord", "parallel.pipeline_parallel_size=2", "parallel.pipeline_parallel_size",
            "known here: workers, pipeline"},
        Bad{"WorkersAreAWord", "parallel.workers=two", "parallel.workers: found \"two\"",
            "expected an integer"},
        Bad{"WorkersAreAFraction", "parallel.workers=1.5", "parallel.workers: found \"1.5\"",
            "expected an integer"},
        Bad{"WorkersAreNegative", "parallel.workers=-1", "parallel.workers: found -1",
            ">= 1 and <= 65536"},
        Bad{"WorkersAreHuge", "parallel.workers=99999999999", "workers: found 99999999999",
            ">= 1 and <= 65536"},
        Bad{"WorkersOfACluster", "parallel.workers=65536", "parallel.workers: found 65536",
            "omnitrain coordinator and omnitrain worker"},
        Bad{"NoTensor", "parallel.tensor=0", "parallel.tensor: found 0", ">= 1"},
        Bad{"TensorIsNegative", "parallel.tensor=-2", "parallel.tensor: found -2", ">= 1"},
        Bad{"TensorIsAList", "parallel.tensor=[2]", "parallel.tensor: found a list",
            "expected an integer"},
        Bad{"TensorIsHuge", "parallel.tensor=4294967298", "tensor: found 4294967298", "<= 65536"},
        Bad{"ProductOverflows",
            "parallel.tensor=65536; parallel.pipeline=65536; parallel.context.degree=65536",
            "parallel.workers: found 1", "= 281474976710656; there are 65536 at most"},
        Bad{"NoPipeline", "parallel.pipeline=0", "parallel.pipeline: found 0", ">= 1"},
        Bad{"NoExpert", "parallel.expert=0", "parallel.expert: found 0", ">= 1"},
        Bad{"UnknownRecompute", "parallel.recompute=some", "recompute: found \"some\"",
            "none, full, selective"},
        Bad{"RecomputeIsTrue", "parallel.recompute=true", "recompute: found \"true\"",
            "none, full, selective"},
        Bad{"UnknownDecoderWeights", "parallel.weights=zero1", "parallel.weights: found \"zero1\"",
            "replicated, zero2, zero3; did you mean \"zero2\"?"},
        Bad{"OffloadIsAWord", "parallel.offload=host", "parallel.offload: found \"host\"",
            "expected a mapping"},
        Bad{"OffloadOfSomething", "parallel.offload.activation=host",
            "parallel.offload.activation: unknown key", "did you mean \"activations\"?"},
        Bad{"OffloadToADisk", "parallel.offload.activations=disk",
            "parallel.offload.activations: found \"disk\"", "expected one of device, host"},
        Bad{"StateOnTheHost", "parallel.offload.optimizer_state=host",
            "parallel.offload.optimizer_state: found \"host\", which is not implemented yet",
            "expected device"},
        Bad{"ActivationsOnTheHost", "parallel.offload={activations: host}",
            "parallel.offload.activations: found \"host\", which is not implemented yet",
            "expected device"},
        Bad{"UnknownSchedule", "parallel.schedule=zbv", "schedule: found \"zbv\"",
            "did you mean \"zb_v\"?"},
        Bad{"ScheduleIsANumber", "parallel.schedule=1", "schedule: found \"1\"",
            "gpipe, 1f1b, interleaved"}),
    Name);

INSTANTIATE_TEST_SUITE_P(
    Context, BadLayoutTest,
    ::testing::Values(
        Bad{"IsANumber", "parallel.context=2", "parallel.context: found \"2\"",
            "expected a mapping"},
        Bad{"NoDegree", "parallel.context.degree=0", "context.degree: found 0", ">= 1"},
        Bad{"UnknownKind", "parallel.context={degree: 2, kind: rng}", "context.kind: found \"rng\"",
            "did you mean \"ring\"?"},
        Bad{"UnknownContextKey", "parallel.context.size=2", "parallel.context.size: unknown key",
            "known here: degree, kind, threshold"},
        Bad{"ThresholdIsAuto", "parallel.context={degree: 2, threshold: auto}",
            "context.threshold: found \"auto\"", "expected an integer"},
        Bad{"ThresholdIsNegative", "parallel.context={degree: 2, threshold: -1}",
            "context.threshold: found -1", ">= 0"}),
    Name);

INSTANTIATE_TEST_SUITE_P(
    Ranks, BadLayoutTest,
    ::testing::Values(Bad{"OneWorkerAndTensor", "parallel.tensor=2", "parallel.workers: found 1",
                          "tensor 2 = 2; 2 fits"},
                      Bad{"OneWorkerAndPipeline", "parallel.pipeline=2",
                          "parallel.workers: found 1",
                          "a multiple of pipeline 2 x context 1 x tensor 1 = 2; 2 fits"},
                      Bad{"OneWorkerAndContext", "parallel.context.degree=2",
                          "parallel.workers: found 1", "context 2 x tensor 1 = 2; 2 fits"},
                      Bad{"NoMultiple",
                          "parallel.workers=6; parallel.pipeline=2; parallel.tensor=2",
                          "parallel.workers: found 6", "= 4; 4 and 8 fit"},
                      Bad{"FewerThanAReplica", "parallel.workers=2; parallel.tensor=4",
                          "parallel.workers: found 2", "; 4 fits"}),
    Name);

INSTANTIATE_TEST_SUITE_P(
    Tensor, BadLayoutTest,
    ::testing::Values(
        Bad{"DoesNotDivideHeads", kEightHeads + "parallel.workers=3; parallel.tensor=3",
            "parallel.tensor: found 3", "does not divide model.decoder.heads (8); 2 and 4 fit"},
        Bad{"MoreThanHeads", "parallel.workers=4; parallel.tensor=4", "parallel.tensor: found 4",
            "does not divide model.decoder.heads (2); 2 fits"},
        Bad{"KvHeadsDoNotDivide",
            "model.decoder.heads=12; model.decoder.kv_heads=3; parallel.workers=2; "
            "parallel.tensor=2",
            "parallel.tensor: found 2", "model.decoder.kv_heads (3); 1 and 3 fit"},
        Bad{"MoreThanFfn", "model.decoder.ffn=1; parallel.workers=2; parallel.tensor=2",
            "parallel.tensor: found 2, more than model.decoder.ffn (1)", "; 1 fits"},
        Bad{"MoreThanSharedFfn",
            kMoe + "model.decoder.moe.shared_ffn=1; parallel.workers=2; parallel.tensor=2",
            "parallel.tensor: found 2, more than model.decoder.moe.shared_ffn (1)", "; 1 fits"},
        Bad{"MoreThanFfnOfADenseLayer",
            kMoe + "model.decoder.moe.dense_layers=[0]; model.decoder.ffn=1; parallel.workers=2; "
                   "parallel.tensor=2",
            "more than model.decoder.ffn (1)", "; 1 fits"},
        Bad{"MoreThanVocab",
            "model.decoder.vocab=4; model.decoder.heads=8; parallel.workers=8; parallel.tensor=8",
            "parallel.tensor: found 8, more than model.decoder.vocab (4)", "; 4 fits"}),
    Name);

INSTANTIATE_TEST_SUITE_P(
    Pipeline, BadLayoutTest,
    ::testing::Values(
        Bad{"DeeperThanLayers", "parallel.workers=3; parallel.pipeline=3",
            "parallel.pipeline: pipeline 3 x chunks_per_rank 1 makes 3 chunks",
            "model.decoder.layers (2); pipeline 2 fits"},
        Bad{"DeeperWithMoeTiedAndFrozenEncoders",
            kMoe + "model.decoder.tied_embeddings=true; training.modules={vision: {frozen: true}, "
                   "audio: {frozen: true}}; parallel.workers=4; parallel.pipeline=4",
            "parallel.pipeline: pipeline 4 x chunks_per_rank 1 makes 4 chunks",
            "model.decoder.layers (2); pipeline 2 fits"},
        Bad{"DeeperWithLora",
            "model.lora={rank: 2, targets: [attention.q]}; parallel.workers=4; parallel.pipeline=4",
            "makes 4 chunks", "model.decoder.layers (2); pipeline 2 fits"},
        Bad{"DeepstackBeyondTheDecoder",
            "model.encoders.vision={kind: qwen3_vision, hidden: 32, layers: 4, heads: 2, ffn: 48, "
            "patch: 14, temporal_patch: 2, merge: 2, deepstack_layers: [0, 1, 2]}; "
            "parallel.workers=2; parallel.pipeline=2",
            "model.encoders.vision: gives deepstack features for 3", "model.decoder has 2"},
        Bad{"MoreChunksThanLayers",
            "parallel.workers=2; parallel.pipeline=2; parallel.schedule=interleaved; "
            "parallel.chunks_per_rank=3",
            "pipeline 2 x chunks_per_rank 3 makes 6 chunks", "model.decoder.layers (2)"},
        Bad{"ZbVOfTooFewLayers", "parallel.workers=2; parallel.pipeline=2; parallel.schedule=zb_v",
            "pipeline 2 x chunks_per_rank 2 makes 4 chunks",
            "model.decoder.layers (2); pipeline 1 fits"},
        Bad{"ChunksOf1f1b",
            kDeep + "parallel.workers=2; parallel.pipeline=2; "
                    "parallel.chunks_per_rank=2",
            "parallel.chunks_per_rank: schedule 1f1b: chunks_per_rank is 2",
            "expected 1; interleaved takes more"},
        Bad{"OneChunkInterleaved",
            kDeep + "parallel.workers=2; parallel.pipeline=2; parallel.schedule=interleaved",
            "parallel.chunks_per_rank: schedule interleaved: chunks_per_rank is 1", "at least 2"},
        Bad{"ThreeChunksOfZbV",
            kDeep + "parallel.workers=2; parallel.pipeline=2; parallel.schedule=zb_v; "
                    "parallel.chunks_per_rank=3",
            "parallel.chunks_per_rank: schedule zb_v: chunks_per_rank is 3", "expected 2"},
        Bad{"ChunksAreHuge", "parallel.chunks_per_rank=2147483647", "found 2147483647", "<= 65536"},
        Bad{"SplitIsANumber", "parallel.layers=2", "parallel.layers: found \"2\"",
            "expected a list"},
        Bad{"SplitHasAWord", "parallel.layers=[one]", "parallel.layers.0: found \"one\"",
            "expected an integer"},
        Bad{"SplitHasNone", "parallel.workers=2; parallel.pipeline=2; parallel.layers=[0, 2]",
            "parallel.layers.0: found 0", ">= 1"},
        Bad{"SplitIsTooLong", "parallel.workers=2; parallel.pipeline=2; parallel.layers=[1, 2]",
            "parallel.layers: found 2 numbers with sum 3",
            "expected 2 (one a chunk) with sum 2 (model.decoder.layers)"},
        Bad{"SplitOfAnotherPipeline",
            "parallel.workers=2; parallel.pipeline=2; parallel.layers=[2]",
            "parallel.layers: found 1 numbers with sum 2", "expected 2 (one a chunk) with sum 2"},
        Bad{"SplitOverflows",
            "parallel.workers=2; parallel.pipeline=2; parallel.layers=[2147483647, 2147483647]",
            "found 2 numbers with sum 4294967294", "with sum 2"},
        Bad{"ReferenceBalanceOverStages",
            "model.decoder.moe={experts: 4, top_k: 2, ffn: 24, balance_loss: {mode: reference}}; "
            "parallel.workers=2; parallel.pipeline=2",
            "parallel.pipeline: the decoder is in 2 chunks", "or mode per_sequence"}),
    Name);

INSTANTIATE_TEST_SUITE_P(
    Expert, BadLayoutTest,
    ::testing::Values(Bad{"NoExperts", "parallel.workers=2; parallel.expert=2",
                          "parallel.expert: found 2", "model.decoder has no experts (moe); 1 fits"},
                      Bad{"DoesNotDivideExperts", kMoe + "parallel.workers=6; parallel.expert=3",
                          "parallel.expert: found 3", "model.decoder.moe.experts (4); 2 fits"},
                      Bad{"MoreThanExperts", kMoe + "parallel.workers=8; parallel.expert=8",
                          "parallel.expert: found 8", "model.decoder.moe.experts (4); 4 fits"},
                      Bad{"DoesNotDivideRanks", kMoe + "parallel.workers=3; parallel.expert=2",
                          "parallel.expert: found 2", "the ranks of a stage (3); 1 fits"},
                      Bad{"MoreThanAStage",
                          kMoe + "parallel.workers=4; parallel.pipeline=2; parallel.expert=4",
                          "parallel.expert: found 4", "the ranks of a stage (2); 2 fits"}),
    Name);

INSTANTIATE_TEST_SUITE_P(
    Joint, BadLayoutTest,
    ::testing::Values(
        Bad{"IsAWord", "parallel.joint=uniform", "parallel.joint: found \"uniform\"",
            "expected a mapping"},
        Bad{"UnknownJoint", "parallel.joint.kind=unform", "joint.kind: found \"unform\"",
            "did you mean \"uniform\"?"},
        Bad{"AggressiveIsReplayedOnly", "parallel.joint.kind=aggressive",
            "parallel.joint.kind: found \"aggressive\", which omnitrain replay shows",
            "expected one of uniform, upfront, recompute, first_stage"},
        Bad{"DisaggregatedIsReplayedOnly", "parallel.joint.kind=disaggregated",
            "joint.kind: found \"disaggregated\", which omnitrain replay shows",
            "expected one of uniform"},
        Bad{"NoGroup", "parallel.joint.q=0", "parallel.joint.q: found 0", ">= 1"},
        Bad{"GroupIsHuge", "parallel.joint.q=4294967297", "joint.q: found 4294967297", "<= 65536"},
        Bad{"NothingAhead", "parallel.joint.groups_ahead=0", "groups_ahead: found 0", ">= 1"},
        Bad{"UnknownJointKey", "parallel.joint.encoder_ranks=1", "joint.encoder_ranks: unknown key",
            "known here: kind, q, groups_ahead"}),
    Name);

INSTANTIATE_TEST_SUITE_P(
    Encoders, BadLayoutTest,
    ::testing::Values(
        Bad{"AreAList", "parallel.encoders=[vision]", "parallel.encoders: found a list",
            "expected a mapping"},
        Bad{"IsANumberToo", "parallel.encoders.vision=2", "parallel.encoders.vision: found \"2\"",
            "expected a mapping"},
        Bad{"IsEmpty", "parallel.encoders={vision: }", "parallel.encoders.vision: found nothing",
            "expected a mapping"},
        Bad{"IsMisspelt", "parallel.encoders.visoin.sequence=1",
            "parallel.encoders.visoin: no encoder", "did you mean \"vision\"?"},
        Bad{"IsUnknown", "parallel.encoders.radar.sequence=1",
            "parallel.encoders.radar: no encoder", "there are vision, audio"},
        Bad{"UnknownEncoderKey", "parallel.encoders.vision.tensor=2", "vision.tensor: unknown key",
            "known here: sequence, threshold, weights, recompute"},
        Bad{"NoSequence", "parallel.encoders.vision.sequence=0", "vision.sequence: found 0",
            ">= 1"},
        Bad{"SequenceDoesNotDivide", "parallel.workers=4; parallel.encoders.vision.sequence=3",
            "parallel.encoders.vision.sequence: found 3", "the ranks of a stage (4); 2 and 4 fit"},
        Bad{"SequenceOverStages",
            "parallel.workers=2; parallel.pipeline=2; parallel.encoders.audio.sequence=2",
            "parallel.encoders.audio.sequence: found 2", "the ranks of a stage (1); 1 fits"},
        Bad{"OneWorkerAndSequence", "parallel.encoders.vision.sequence=2",
            "vision.sequence: found 2", "the ranks of a stage (1); 1 fits"},
        Bad{"EncoderThresholdIsAWord", "parallel.encoders.vision.threshold=many",
            "vision.threshold: found \"many\"", "a number of input rows, auto or none"},
        Bad{"EncoderThresholdIsNegative", "parallel.encoders.vision.threshold=-1",
            "vision.threshold: found \"-1\"", "a number of input rows, auto or none"},
        Bad{"EncoderThresholdIsAList", "parallel.encoders.vision.threshold=[1]",
            "vision.threshold: found a list", "a number of input rows, auto or none"},
        Bad{"EncoderThresholdIsHuge", "parallel.encoders.vision.threshold=99999999999999999999",
            "vision.threshold: found \"99999999999999999999\"", "a number of input rows"},
        Bad{"UnknownWeights", "parallel.encoders.vision.weights=zero1",
            "vision.weights: found \"zero1\"", "did you mean \"zero2\"?"},
        Bad{"SharedOutAmongOne", "parallel.workers=2; parallel.encoders.vision.weights=zero3",
            "parallel.encoders.vision.weights: found zero3",
            "but sequence is 1; expected replicated, or a sequence; 2 fits"},
        Bad{"SharedOutAlone", "parallel.encoders.audio.weights=zero2",
            "parallel.encoders.audio.weights: found zero2", "over several ranks of a stage"},
        Bad{"UnknownEncoderRecompute", "parallel.encoders.vision.recompute=yes",
            "vision.recompute: found \"yes\"", "none, full, selective"}),
    Name);

INSTANTIATE_TEST_SUITE_P(
    Fits, OddLayoutTest,
    ::testing::Values(
        Bad{"FewerLanesThanReplicas", "data.lanes=1; parallel.workers=3", "", ""},
        Bad{"FewerMicrobatchesThanStages",
            kDeep + "data.lanes=2; parallel.workers=4; parallel.pipeline=4", "", ""},
        Bad{"TensorDividesNeitherFfnNorVocab",
            "model.decoder.ffn=3; model.decoder.vocab=513; parallel.workers=2; parallel.tensor=2",
            "", ""},
        Bad{"UlyssesOverMoreThanHeads",
            "parallel.workers=3; parallel.context={degree: 3, kind: ulysses}", "", ""},
        Bad{"ZbVNeedsNoChunks",
            "model.decoder.layers=4; parallel.workers=2; parallel.pipeline=2; "
            "parallel.schedule=zb_v",
            "", ""},
        Bad{"GroupsBeyondTheStep",
            "parallel.workers=2; parallel.pipeline=2; parallel.joint={q: 65536, "
            "groups_ahead: 65536}",
            "", ""},
        Bad{"FrozenTowersSharedOut",
            "parallel.workers=2; parallel.encoders={vision: {sequence: 2, weights: zero3, "
            "threshold: 0}, audio: {sequence: 2, weights: zero2}}; "
            "training.modules={vision: {frozen: true}, audio: {frozen: true}}",
            "", ""},
        Bad{"OneRankSharesOutAlone",
            "parallel.weights=zero3; parallel.offload={activations: device}", "", ""},
        Bad{"FrozenDecoderSharedOut",
            "parallel.workers=2; parallel.weights=zero3; training.modules={decoder: {frozen: "
            "true}}",
            "", ""},
        Bad{"LoraOverSharedOutWeights",
            "model.lora={rank: 2, targets: [decoder.layers]}; parallel.workers=2; "
            "parallel.weights=zero3",
            "", ""},
        Bad{"LoraOverTensorRanks",
            "model.lora={rank: 64, alpha: 4, targets: [decoder.layers]}; parallel.workers=2; "
            "parallel.tensor=2",
            "", ""}),
    Name);

}  // namespace
}  // namespace omni::test
