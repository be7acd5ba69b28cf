// What the verifier refuses: random programs, corrupted in one place.
#include "parallel/schedule/verify.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "parallel/schedule/build.h"
#include "parallel/schedule/replay.h"
#include "tests/parallel/schedule/random_schedule.h"

namespace omni::parallel {
namespace {

using ::testing::HasSubstr;

// Programs to be corrupted.
struct Patient {
  ScheduleOptions options;
  std::vector<Program> programs;
  VerifyLimits limits;
  std::mt19937& random;

  struct Place {
    int32_t rank = 0;
    int64_t index = 0;
  };
  using Wanted = std::function<bool(int32_t rank, const Action& action)>;

  const Action& At(const Place& place) const { return programs[place.rank][place.index]; }
  Action& At(const Place& place) { return programs[place.rank][place.index]; }
  // One of the actions that are wanted.
  std::optional<Place> Pick(const Wanted& wanted) {
    std::vector<Place> places;
    for (int32_t rank = 0; rank < options.ranks; ++rank) {
      for (size_t i = 0; i < programs[rank].size(); ++i) {
        if (wanted(rank, programs[rank][i])) places.push_back({rank, static_cast<int64_t>(i)});
      }
    }
    if (places.empty()) return std::nullopt;
    return places[random() % places.size()];
  }
  std::optional<Place> Pick(ActionKind kind) {
    return Pick([&](int32_t, const Action& action) { return action.kind == kind; });
  }
  // The first action of a rank that is wanted, from `begin` on.
  int64_t Find(int32_t rank, const std::function<bool(const Action&)>& wanted, int64_t begin = 0) {
    const Program& program = programs[rank];
    return std::find_if(program.begin() + begin, program.end(), wanted) - program.begin();
  }
  void Erase(const Place& place) {
    programs[place.rank].erase(programs[place.rank].begin() + place.index);
  }
  // Takes the action out and puts it before what stood at `index`.
  void Move(const Place& place, int64_t index) {
    Program& program = programs[place.rank];
    const Action action = program[place.index];
    Erase(place);
    if (index > place.index) --index;
    program.insert(program.begin() + index, action);
  }
  void Renumber(int32_t rank) {  // every transfer its own slot
    int32_t slot = 0;
    for (Action& action : programs[rank]) {
      if (action.is_transfer()) action.slot = slot++;
    }
  }
};

// Corrupts and says what the error has to contain; nothing where there is nothing to corrupt.
using Corruption = std::function<std::optional<std::string>(Patient&)>;

bool SameWork(const Action& a, const Action& b) {
  return a.chunk == b.chunk && a.encoder == b.encoder && a.microbatch == b.microbatch;
}

// Whether `action` needs what `recv` brings.
bool Needs(const ScheduleOptions& options, const Action& action, const Action& recv) {
  switch (recv.payload) {
    case Payload::kHidden:
      return action.kind == ActionKind::kForward && SameWork(action, recv);
    case Payload::kHiddenGrad:
      return (action.kind == ActionKind::kBackward || action.kind == ActionKind::kBackwardInput) &&
             SameWork(action, recv);
    case Payload::kRows:
      return action.kind == ActionKind::kForward && action.chunk == 0 &&
             options.GroupOf(action.microbatch) == recv.microbatch;
    default:
      return action.kind == ActionKind::kEncodeBackward && SameWork(action, recv);
  }
}

std::string Message(const absl::Status& status) { return std::string(status.message()); }

std::string Named(int32_t rank, int64_t index, const Action& action) {
  return absl::StrCat("rank ", rank, ", action ", index, " (", ToString(action), "): ");
}

// Applies a corruption to random programs until it has found its place in `times` of them.
void Expect(const Corruption& corrupt, int32_t times = 60) {
  std::mt19937 random(77);
  for (int32_t done = 0, tries = 0; done < times; ++tries) {
    ASSERT_LT(tries, 100 * times) << "finds no place";
    const ScheduleOptions options = RandomSchedule(random);
    Patient patient{options, BuildPrograms(options), {}, random};
    const std::optional<std::string> expected = corrupt(patient);
    if (!expected.has_value()) continue;
    ++done;
    const absl::Status status = Verify(patient.options, patient.programs, patient.limits);
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_THAT(Message(status), HasSubstr(*expected)) << ToString(options);
    if (::testing::Test::HasFailure()) return;
  }
}

TEST(VerifyTest, MissingReceive) {
  Expect([](Patient& patient) -> std::optional<std::string> {
    const auto place = patient.Pick(ActionKind::kRecv);
    if (!place) return std::nullopt;
    const Action recv = patient.At(*place);
    patient.Erase(*place);
    const int64_t user = patient.Find(
        place->rank, [&](const Action& action) { return Needs(patient.options, action, recv); });
    return absl::StrCat("rank ", place->rank, ", action ", user, " (");
  });
}

TEST(VerifyTest, MissingSend) {
  Expect([](Patient& patient) -> std::optional<std::string> {
    const auto place = patient.Pick(ActionKind::kSend);
    if (!place) return std::nullopt;
    const Action send = patient.At(*place);
    patient.Erase(*place);
    return absl::StrCat("its counterpart, ", ToString(send), ", never comes on rank ", place->rank);
  });
}

TEST(VerifyTest, CrossedOrderOnAChannel) {
  Expect([](Patient& patient) -> std::optional<std::string> {
    const auto place = patient.Pick(ActionKind::kSend);
    if (!place) return std::nullopt;
    const Action send = patient.At(*place);
    const int64_t next = patient.Find(
        place->rank,
        [&](const Action& action) {
          return action.kind == ActionKind::kSend && action.payload == send.payload &&
                 action.peer == send.peer;
        },
        place->index + 1);
    if (next == static_cast<int64_t>(patient.programs[place->rank].size())) return std::nullopt;
    patient.Move(*place, next + 1);
    patient.Renumber(place->rank);
    return " on its channel, but its counterpart, rank ";
  });
}

// A rank waits for the gradient of what it has yet to send: harmless on channels of their own.
TEST(VerifyTest, CrossedOrderOfMergedChannels) {
  Expect([](Patient& patient) -> std::optional<std::string> {
    if (patient.options.chunks_per_rank > 1) return std::nullopt;
    const auto first = patient.Pick([](int32_t, const Action& action) {
      return action.kind == ActionKind::kRecv && action.payload == Payload::kHiddenGrad &&
             action.microbatch == 0;
    });
    if (!first) return std::nullopt;
    const int64_t send = patient.Find(first->rank, [](const Action& action) {
      return action.kind == ActionKind::kSend && action.payload == Payload::kHidden;
    });
    patient.Move(*first, send);
    patient.Renumber(first->rank);
    return "deadlock with all transfers of a rank in one queue: ";
  });
}

TEST(VerifyTest, UseBeforeArrival) {
  Expect([](Patient& patient) -> std::optional<std::string> {
    const auto place = patient.Pick(ActionKind::kRecv);
    if (!place) return std::nullopt;
    const Action recv = patient.At(*place);
    const int64_t user = patient.Find(
        place->rank, [&](const Action& action) { return Needs(patient.options, action, recv); });
    const Action action = patient.programs[place->rank][user];
    for (int64_t i = place->index; i < user; ++i) {  // these mind as well
      if (patient.At({place->rank, i}).kind == ActionKind::kReduceGradients) return std::nullopt;
    }
    patient.Move(*place, user + 1);
    const char* what = "have not been received before";
    if (recv.payload == Payload::kHidden) what = "its hidden rows have not been received before";
    if (recv.payload == Payload::kHiddenGrad) what = "its hidden gradient has not been received";
    if (recv.payload == Payload::kRowGrads) what = "its row gradients have not been received";
    if (recv.payload == Payload::kRows) {
      return absl::StrCat(Named(place->rank, user - 1, action), "rows of encoder ", recv.encoder,
                          " group ", recv.microbatch, " from ", recv.peer, " ", what);
    }
    return absl::StrCat(Named(place->rank, user - 1, action), what);
  });
}

TEST(VerifyTest, SendBeforeItIsComputed) {
  Expect([](Patient& patient) -> std::optional<std::string> {
    const auto place = patient.Pick(ActionKind::kSend);
    if (!place) return std::nullopt;
    const Action send = patient.At(*place);
    patient.At(*place).slot = -1;
    patient.Move(*place, 0);
    Action moved = send;
    moved.slot = -1;
    return absl::StrCat(Named(place->rank, 0, moved),
                        send.payload == Payload::kHidden       ? "forward of chunk "
                        : send.payload == Payload::kHiddenGrad ? "backward of chunk "
                        : send.payload == Payload::kRows
                            ? "it has to be encoded first"
                            : "all backwards of chunk 0 of its microbatches have to come first");
  });
}

TEST(VerifyTest, BackwardBeforeForward) {
  Expect([](Patient& patient) -> std::optional<std::string> {
    const auto place = patient.Pick([](int32_t, const Action& action) {
      return action.kind == ActionKind::kBackward || action.kind == ActionKind::kBackwardInput;
    });
    const Action backward = patient.At(*place);
    const int64_t forward = patient.Find(place->rank, [&](const Action& action) {
      return action.kind == ActionKind::kForward && SameWork(action, backward);
    });
    patient.Move(*place, forward);
    return Named(place->rank, forward, backward) + "its forward has to come first";
  });
}

TEST(VerifyTest, WeightGradientBeforeInputGradient) {
  Expect([](Patient& patient) -> std::optional<std::string> {
    const auto place = patient.Pick(ActionKind::kWeightGrad);
    if (!place) return std::nullopt;
    const Action weight = patient.At(*place);
    const int64_t input = patient.Find(place->rank, [&](const Action& action) {
      return action.kind == ActionKind::kBackwardInput && SameWork(action, weight);
    });
    patient.Move(*place, input);
    return Named(place->rank, input, weight) + "its input backward has to come first";
  });
}

TEST(VerifyTest, EncoderBackwardBeforeItsGradients) {
  Expect([](Patient& patient) -> std::optional<std::string> {
    const auto place = patient.Pick(ActionKind::kEncodeBackward);
    if (!place) return std::nullopt;
    const Action backward = patient.At(*place);
    const int64_t encode = patient.Find(place->rank, [&](const Action& action) {
      return (action.kind == ActionKind::kEncodeForward ||
              action.kind == ActionKind::kEncodeOnly) &&
             SameWork(action, backward);
    });
    const bool is_late = patient.random() % 2 == 0;
    patient.Move(*place, encode + (is_late ? 1 : 0));
    return Named(place->rank, encode + (is_late ? 1 : 0), backward) +
           (!is_late           ? "it has to be encoded first"
            : place->rank == 0 ? "all backwards of chunk 0 of its microbatches have to come first"
                               : "its row gradients have not been received before");
  });
}

// Counts what is kept, as a reservation would.
int32_t Peak(const Program& program, bool of_encoders) {
  int32_t now = 0, most = 0;
  std::vector<Action> only;
  for (const Action& action : program) {
    switch (action.kind) {
      case ActionKind::kForward:
        if (!of_encoders) most = std::max(most, ++now);
        break;
      case ActionKind::kBackward:
      case ActionKind::kWeightGrad:
        if (!of_encoders) --now;
        break;
      case ActionKind::kEncodeForward:
        if (of_encoders) most = std::max(most, ++now);
        break;
      case ActionKind::kEncodeOnly:
        only.push_back(action);
        break;
      case ActionKind::kEncodeBackward:
        if (!of_encoders) break;
        if (std::any_of(only.begin(), only.end(),
                        [&](const Action& other) { return SameWork(action, other); })) {
          most = std::max(most, now + 1);
        } else {
          --now;
        }
        break;
      default:
        break;
    }
  }
  return most;
}

TEST(VerifyTest, TooManyLive) {
  for (const bool of_encoders : {false, true}) {
    Expect([&](Patient& patient) -> std::optional<std::string> {
      std::vector<int32_t>& limits =
          of_encoders ? patient.limits.live_encodings : patient.limits.live_activations;
      for (const Program& program : patient.programs) {
        limits.push_back(Peak(program, of_encoders));
      }
      const absl::Status status = Verify(patient.options, patient.programs, patient.limits);
      EXPECT_TRUE(status.ok()) << status;
      const auto rank = static_cast<int32_t>(patient.random() % patient.programs.size());
      if (limits[rank] == 0) return std::nullopt;
      --limits[rank];
      return absl::StrCat("): would be ", of_encoders ? "encoding " : "activation ",
                          limits[rank] + 1, " kept at once, ", limits[rank], " are reserved");
    });
  }
}

TEST(VerifyTest, Duplicates) {
  Expect([](Patient& patient) -> std::optional<std::string> {
    const auto place = patient.Pick(
        [](int32_t, const Action& action) { return action.kind != ActionKind::kReduceGradients; });
    const Action action = patient.At(*place);
    Program& program = patient.programs[place->rank];
    program.insert(program.begin() + place->index, action);
    return Named(place->rank, place->index + 1, action) + "comes a second time";
  });
}

TEST(VerifyTest, MissingWork) {
  Expect([](Patient& patient) -> std::optional<std::string> {
    const auto place = patient.Pick([&](int32_t, const Action& action) {
      return action.kind == ActionKind::kWeightGrad || action.kind == ActionKind::kEncodeBackward ||
             action.kind == ActionKind::kReduceGradients ||
             action.kind == ActionKind::kGatherParameters;
    });
    const Action action = patient.At(*place);
    patient.Erase(*place);
    if (action.kind == ActionKind::kWeightGrad) {
      return absl::StrCat("rank ", place->rank, ", action ");  // its chunk is reduced too early
    }
    return absl::StrCat("rank ", place->rank, ": ", ToString(action), " never comes");
  });
}

TEST(VerifyTest, ReducedTooEarly) {
  Expect([](Patient& patient) -> std::optional<std::string> {
    const auto place = patient.Pick(ActionKind::kReduceGradients);
    const Action reduce = patient.At(*place);
    const int64_t to = patient.random() % (place->index + 1);
    // Somewhere before the last work of the chunk, the last transfer, or agree.
    int64_t barrier = -1;
    for (int64_t i = 0; i < place->index; ++i) {
      const Action& action = patient.programs[place->rank][i];
      const bool is_end = reduce.chunk == 0 || reduce.chunk + 1 == patient.options.num_chunks();
      if (reduce.encoder >= 0 ? action.kind == ActionKind::kAgree
                              : action.chunk == reduce.chunk || (is_end && action.is_transfer())) {
        if (!action.is_transfer() || is_end) barrier = i;
      }
    }
    if (to > barrier) return std::nullopt;
    patient.Move(*place, to);
    return Named(place->rank, to, reduce);
  });
}

TEST(VerifyTest, WrongChunkMicrobatchEncoderOrGroup) {
  Expect([](Patient& patient) -> std::optional<std::string> {
    const auto place =
        patient.Pick([](int32_t, const Action& action) { return action.microbatch >= 0; });
    Action& action = patient.At(*place);
    const ScheduleOptions& options = patient.options;
    const bool below = patient.random() % 2 == 0;
    if (patient.random() % 2 == 0) {
      const bool is_group = action.encoder >= 0;
      const int32_t count = is_group ? options.num_groups() : options.microbatches;
      action.microbatch = below ? -1 : count;
      return absl::StrCat(Named(place->rank, place->index, action), "there are ", count,
                          is_group ? " groups" : " microbatches");
    }
    if (action.encoder >= 0) {
      action.encoder = static_cast<int16_t>(below ? -1 : options.encoders.size());
      return absl::StrCat(Named(place->rank, place->index, action), "there are ",
                          options.encoders.size(), " encoders");
    }
    action.chunk = static_cast<int16_t>(below ? -1 : options.num_chunks());
    return absl::StrCat(Named(place->rank, place->index, action), "there are ",
                        options.num_chunks(), " chunks");
  });
}

TEST(VerifyTest, WorkOfAnotherRank) {
  Expect([](Patient& patient) -> std::optional<std::string> {
    const ScheduleOptions& options = patient.options;
    const auto place = patient.Pick(ActionKind::kForward);
    Action& action = patient.At(*place);
    action.chunk = static_cast<int16_t>(patient.random() % options.num_chunks());
    const int32_t holder = options.RankOf(action.chunk);
    if (holder == place->rank) return std::nullopt;
    return absl::StrCat(Named(place->rank, place->index, action), "chunk ", action.chunk,
                        " is on rank ", holder);
  });
  Expect([](Patient& patient) -> std::optional<std::string> {
    const auto place = patient.Pick(
        [](int32_t, const Action& action) { return action.kind == ActionKind::kEncodeForward; });
    if (!place || patient.options.joint != JointKind::kFirstStage || patient.options.ranks == 1) {
      return std::nullopt;
    }
    Program& other = patient.programs[patient.options.ranks - 1];
    other.insert(other.begin(), patient.At(*place));
    return Named(patient.options.ranks - 1, 0, other[0]) + "this rank does not encode it";
  });
}

TEST(VerifyTest, TransferToTheWrongRank) {
  Expect([](Patient& patient) -> std::optional<std::string> {
    const auto place =
        patient.Pick([](int32_t, const Action& action) { return action.is_transfer(); });
    if (!place) return std::nullopt;
    Action& action = patient.At(*place);
    const int16_t right = action.peer;
    action.peer = static_cast<int16_t>(patient.random() % (patient.options.ranks + 1));
    if (action.peer == right) return std::nullopt;
    const std::string named = Named(place->rank, place->index, action);
    if (action.encoder < 0 || place->rank != 0) {
      return absl::StrCat(named, "the other end is on rank ", right);
    }
    // Whoever it is confused with has, or will have, one too many.
    if (action.peer == 0 || action.peer == patient.options.ranks) {
      return absl::StrCat(named, "rank ", action.peer, " does not encode it for this one");
    }
    return "comes a second time";
  });
}

TEST(VerifyTest, MismatchedPayloadOrEncoder) {
  Expect([](Patient& patient) -> std::optional<std::string> {
    const auto place = patient.Pick(
        [](int32_t, const Action& action) { return action.is_transfer() && action.encoder >= 0; });
    const auto encoders = static_cast<int16_t>(patient.options.encoders.size());
    if (!place || encoders < 2) return std::nullopt;
    Action& action = patient.At(*place);
    action.encoder = static_cast<int16_t>((action.encoder + 1) % encoders);
    if (action.payload == Payload::kRowGrads && !patient.options.encoders[action.encoder].trains) {
      return Named(place->rank, place->index, action) + "no gradients go to a frozen encoder";
    }
    return "rank ";  // it comes a second time, or before it is encoded
  });
  Expect([](Patient& patient) -> std::optional<std::string> {
    const auto place =
        patient.Pick([](int32_t, const Action& action) { return action.is_transfer(); });
    if (!place) return std::nullopt;
    patient.At(*place).payload = Payload::kNone;
    return Named(place->rank, place->index, patient.At(*place)) + "carries nothing";
  });
}

TEST(VerifyTest, EndsMissingOrInTheWrongOrder) {
  Expect([](Patient& patient) -> std::optional<std::string> {
    const auto place = patient.Pick(ActionKind::kUpdate);
    patient.Erase(*place);
    return Named(place->rank, place->index, {.kind = ActionKind::kGatherParameters}) +
           "update has to come first";
  });
  Expect([](Patient& patient) -> std::optional<std::string> {
    const auto place = patient.Pick(ActionKind::kUpdate);
    std::swap(patient.At(*place), patient.programs[place->rank][place->index + 1]);
    return Named(place->rank, place->index, {.kind = ActionKind::kGatherParameters}) +
           "update has to come first";
  });
  Expect([](Patient& patient) -> std::optional<std::string> {
    const auto place = patient.Pick(ActionKind::kAgree);
    patient.Erase(*place);
    return absl::StrCat("rank ", place->rank, ", action ", place->index, " (");
  });
  Expect([](Patient& patient) -> std::optional<std::string> {
    const auto agree = patient.Pick(ActionKind::kAgree);
    if (agree->index == 0) return std::nullopt;  // a rank without any work
    const Action last = patient.programs[agree->rank][agree->index - 1];
    patient.Move(*agree, agree->index - 1);
    return Named(agree->rank, agree->index, last) + "comes after agree";
  });
  Expect([](Patient& patient) -> std::optional<std::string> {
    const auto place = patient.Pick(ActionKind::kReduceGradients);
    const Action reduce = patient.At(*place);
    const Program& program = patient.programs[place->rank];
    if (reduce.encoder < 0 || program[place->index + 1].kind != ActionKind::kReduceGradients) {
      return std::nullopt;
    }
    patient.Move(*place, place->index + 2);
    return Named(place->rank, place->index + 1, reduce) + "encoder ";
  });
}

TEST(VerifyTest, SlotsThatGoBackOrAreInterrupted) {
  Expect([](Patient& patient) -> std::optional<std::string> {
    const auto place = patient.Pick([](int32_t, const Action& action) { return action.slot > 0; });
    if (!place) return std::nullopt;
    Action& action = patient.At(*place);
    if (patient.programs[place->rank][place->index - 1].is_transfer()) return std::nullopt;
    --action.slot;
    return absl::StrCat(Named(place->rank, place->index, action), "is in slot ", action.slot);
  });
}

TEST(VerifyTest, RowsInRoundsShareASlot) {
  const auto stands = [](const Action& action) {
    return (action.kind == ActionKind::kSend && action.payload == Payload::kRows) ||
           (action.kind == ActionKind::kRecv && action.payload == Payload::kRowGrads);
  };
  Expect([&](Patient& patient) -> std::optional<std::string> {
    if (!patient.options.row_rounds) return std::nullopt;
    const auto place = patient.Pick([&](int32_t, const Action& action) { return stands(action); });
    if (!place) return std::nullopt;
    const Program& program = patient.programs[place->rank];
    const auto at = static_cast<size_t>(place->index);
    // With what is before it, or what is after it.
    if (at > 0 && program[at - 1].is_transfer()) {
      patient.At(*place).slot = program[at - 1].slot;
      return Named(place->rank, place->index, program[at]) + "shares slot ";
    }
    if (at + 1 == program.size() || !program[at + 1].is_transfer()) return std::nullopt;
    patient.programs[place->rank][at + 1].slot = program[at].slot;
    return Named(place->rank, place->index + 1, program[at + 1]) + "shares slot ";
  });
}

TEST(VerifyTest, FrozenEncodersKeepNothing) {
  Expect([](Patient& patient) -> std::optional<std::string> {
    const auto place = patient.Pick([](int32_t, const Action& action) {
      return action.kind == ActionKind::kEncodeForward ||
             action.kind == ActionKind::kEncodeBackward;
    });
    if (!place) return std::nullopt;
    patient.options.encoders[patient.At(*place).encoder].trains = false;
    return "a frozen encoder";  // keeps nothing, has no backward; or no gradients go to it
  });
}

// Any field may hold anything: a program may come from a file. What is accepted can run.
TEST(VerifyTest, FieldsOutOfRangeDoNoHarm) {
  std::mt19937 random(5);
  const auto between = [&](int32_t least, int32_t most) {
    return least + static_cast<int32_t>(random() % (most - least + 1));
  };
  int32_t refused = 0;
  for (int32_t i = 0; i < 1500; ++i) {
    const ScheduleOptions options = RandomSchedule(random);
    std::vector<Program> programs = BuildPrograms(options);
    Program& program = programs[random() % programs.size()];
    Action& action = program[random() % program.size()];
    switch (between(0, 6)) {
      case 0:
        action.kind = static_cast<ActionKind>(between(0, 13));
        break;
      case 1:
        action.payload = static_cast<Payload>(between(0, 5));
        break;
      case 2:
        action.chunk = static_cast<int16_t>(between(-2, 40));
        break;
      case 3:
        action.microbatch = between(-2, 60);
        break;
      case 4:
        action.encoder = static_cast<int16_t>(between(-2, 5));
        break;
      case 5:
        action.peer = static_cast<int16_t>(between(-2, 14));
        break;
      default:
        action.slot = between(-2, 99);
    }
    if (Verify(options, programs).ok()) {
      const auto replayed = Replay(options, programs, [](int32_t, const Action&) { return 1.0; });
      EXPECT_TRUE(replayed.ok()) << ToString(options) << ": " << replayed.status();
    } else {
      ++refused;
    }
  }
  EXPECT_GT(refused, 500);
}

TEST(VerifyTest, ProgramsOfOtherOptions) {
  const ScheduleOptions options{.ranks = 2, .microbatches = 4};
  std::vector<Program> programs = BuildPrograms(options);
  programs[0][0].kind = ActionKind::kForwardBackward;
  EXPECT_EQ(Message(Verify(options, programs)),
            "rank 0, action 0 (forward and backward microbatch 0): belongs to the plain program "
            "alone");
  programs.pop_back();
  EXPECT_EQ(Message(Verify(options, programs)), "a pipeline of 2 ranks has 1 programs");
  EXPECT_EQ(Message(Verify(options, BuildPrograms(options), {.live_activations = {1}})),
            "a pipeline of 2 ranks has 1 limits of activations");
  const ScheduleOptions longer{.ranks = 2, .microbatches = 5};
  EXPECT_EQ(Message(Verify(longer, BuildPrograms(options))),
            "rank 0, action 16 (reduce gradients chunk 0): 1 backwards of the chunk are still to "
            "come");
  EXPECT_EQ(Verify({.q = 0}, {{}}).code(), absl::StatusCode::kInvalidArgument);
}

// 1F1B as it is often written: receive right before use, send right after. As exchanges with the
// neighbour it runs; one by one both ranks stand at their sends.
TEST(VerifyTest, ABlockingExchangeSplitInTwoDeadlocks) {
  const ScheduleOptions options{.ranks = 2, .microbatches = 4};
  const auto work = [](ActionKind kind, int16_t chunk, int32_t i) {
    return Action{.kind = kind, .chunk = chunk, .microbatch = i};
  };
  const auto move = [](ActionKind kind, Payload payload, int32_t i, int16_t peer, int32_t slot) {
    return Action{.kind = kind,
                  .payload = payload,
                  .chunk = static_cast<int16_t>(payload == Payload::kHidden ? 1 : 0),
                  .microbatch = i,
                  .peer = peer,
                  .slot = slot};
  };
  const auto kF = ActionKind::kForward, kB = ActionKind::kBackward;
  const auto kS = ActionKind::kSend, kR = ActionKind::kRecv;
  const auto build = [&](bool exchanges) {
    std::vector<Program> programs(2);
    int32_t slots[2] = {0, 0};
    const auto together = [&](int32_t rank, std::vector<Action> actions) {
      for (Action& action : actions) {
        action.slot = exchanges ? slots[rank] : slots[rank]++;
        programs[rank].push_back(action);
      }
      ++slots[rank];
    };
    programs[0].push_back(work(kF, 0, 0));
    together(0, {move(kS, Payload::kHidden, 0, 1, 0)});
    together(1, {move(kR, Payload::kHidden, 0, 0, 0)});
    for (int32_t i = 0; i < 4; ++i) {
      const Action grad_in = move(kR, Payload::kHiddenGrad, i, 1, 0);
      const Action grad_out = move(kS, Payload::kHiddenGrad, i, 0, 0);
      programs[1].push_back(work(kF, 1, i));
      programs[1].push_back(work(kB, 1, i));
      if (i < 3) {
        programs[0].push_back(work(kF, 0, i + 1));
        together(0, {move(kS, Payload::kHidden, i + 1, 1, 0), grad_in});
        together(1, {grad_out, move(kR, Payload::kHidden, i + 1, 0, 0)});
      } else {
        together(0, {grad_in});
        together(1, {grad_out});
      }
      programs[0].push_back(work(kB, 0, i));
    }
    for (int16_t rank : {0, 1}) {
      programs[rank].push_back({.kind = ActionKind::kReduceGradients, .chunk = rank});
      for (const ActionKind kind :
           {ActionKind::kAgree, ActionKind::kUpdate, ActionKind::kGatherParameters}) {
        programs[rank].push_back({.kind = kind});
      }
    }
    return programs;
  };
  EXPECT_TRUE(Verify(options, build(true)).ok()) << Verify(options, build(true));
  EXPECT_EQ(
      Message(Verify(options, build(false))),
      "deadlock with all transfers of a rank in one queue: "
      "rank 0, action 4 (receive hidden gradient chunk 0 microbatch 0 from 1) waits for action 3 "
      "(send hidden chunk 1 microbatch 1 to 1) before it; "
      "rank 0, action 3 (send hidden chunk 1 microbatch 1 to 1) waits for its counterpart; "
      "rank 1, action 4 (receive hidden chunk 1 microbatch 1 from 0) waits for action 3 (send "
      "hidden gradient chunk 0 microbatch 0 to 0) before it; "
      "rank 1, action 3 (send hidden gradient chunk 0 microbatch 0 to 0) waits for its "
      "counterpart; and so round again");
}

// Chunks 1 and 2 are each other's neighbours over the same two ranks: one channel, both ways.
TEST(VerifyTest, CrossedWaysOverOneChannelDeadlock) {
  const ScheduleOptions options{
      .schedule = ScheduleKind::kInterleaved, .ranks = 2, .chunks_per_rank = 2, .microbatches = 2};
  std::mt19937 random(1);
  Patient patient{options, BuildPrograms(options), {}, random};
  const auto there = [](const Action& action) {
    return action.payload == Payload::kHidden && action.chunk == 1;
  };
  const auto back = [](const Action& action) {
    return action.payload == Payload::kHidden && action.chunk == 2;
  };
  patient.Move({0, patient.Find(0, back)}, patient.Find(0, there));
  patient.Renumber(0);
  EXPECT_EQ(Message(Verify(options, patient.programs)),
            "deadlock with a queue for each channel and peer: "
            "rank 0, action 1 (receive hidden chunk 2 microbatch 0 from 1) waits for rank 1 to "
            "come to its counterpart; "
            "rank 1, action 1 (forward chunk 1 microbatch 0) waits for receive hidden chunk 1 "
            "microbatch 0 from 0; "
            "rank 1, action 0 (receive hidden chunk 1 microbatch 0 from 0) waits for its "
            "counterpart; "
            "rank 0, action 2 (send hidden chunk 1 microbatch 0 to 1) waits for action 1 (receive "
            "hidden chunk 2 microbatch 0 from 1) before it; and so round again");
}

}  // namespace
}  // namespace omni::parallel
