// Timelines for people: a Chrome trace and an SVG drawing.
#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "parallel/schedule/replay.h"
#include "runtime/base/trace.h"

namespace omni::parallel {
namespace {

// How a kind of action is drawn; kinds without a style aren't.
struct Style {
  ActionKind kind;
  const char* name;
  const char* color;
};
// Told apart by colour-blind eyes too: blue and its relatives for the decoder, orange and red for
// encoders.
constexpr std::array<Style, 9> kStyles = {{
    {ActionKind::kForwardBackward, "forward and backward", "#4477aa"},
    {ActionKind::kForward, "forward", "#4477aa"},
    {ActionKind::kBackward, "backward", "#88bbdd"},
    {ActionKind::kBackwardInput, "input backward", "#88bbdd"},
    {ActionKind::kWeightGrad, "weight gradients", "#bbbbbb"},
    {ActionKind::kEncodeForward, "encode", "#ee7733"},
    {ActionKind::kEncodeOnly, "encode, keep nothing", "#f6bb99"},
    {ActionKind::kEncodeBackward, "encoder backward", "#cc3355"},
    {ActionKind::kUpdate, "update", "#444444"},
}};

const Style* StyleOf(ActionKind kind) {
  for (const Style& style : kStyles) {
    if (style.kind == kind) return &style;
  }
  return nullptr;
}

bool IsRows(const Action& action) {
  return action.payload == Payload::kRows || action.payload == Payload::kRowGrads;
}

constexpr double kLeft = 58, kTop = 34, kWidth = 1120, kRowHeight = 30, kRowStep = 44;

double RowTop(size_t rank) { return kTop + kRowStep * static_cast<double>(rank); }

// 1, 2 or 5 times a power of ten, at least a twentieth of `span`.
double TickStep(double span) {
  const double power = std::pow(10.0, std::floor(std::log10(span / 20)));
  for (const double factor : {1.0, 2.0, 5.0}) {
    if (factor * power * 20 >= span * (1 - 1e-9)) return factor * power;
  }
  return 10 * power;
}

// What is written on an action: its microbatch or group; chunks and encoders beyond the first of
// the drawing by a letter before it.
std::string Label(const Action& action, bool letters) {
  if (action.microbatch < 0) return "";
  const int32_t part = std::max<int32_t>(action.chunk, action.encoder);
  if (!letters || part < 0) return absl::StrCat(action.microbatch);
  return absl::StrCat(std::string(1, static_cast<char>('a' + part % 26)), action.microbatch);
}

// Whether actions of several chunks (encoders) of one rank have to be told apart.
bool HasSeveral(const ReplayResult& result, int16_t Action::*part) {
  for (const std::vector<TimedAction>& timeline : result.timeline) {
    std::set<int16_t> found;
    for (const TimedAction& timed : timeline) {
      if (StyleOf(timed.action.kind) != nullptr && timed.action.*part >= 0) {
        found.insert(timed.action.*part);
      }
    }
    if (found.size() > 1) return true;
  }
  return false;
}

void AppendAxis(const ReplayResult& result, double scale, std::string* svg) {
  const double bottom = RowTop(result.timeline.size()) - (kRowStep - kRowHeight) + 8;
  const double step = TickStep(result.step_time);
  for (int i = 0; i * step <= result.step_time * (1 + 1e-9); ++i) {
    const double x = kLeft + i * step * scale;
    absl::StrAppendFormat(svg, "<path d=\"M%.2f %.2fV%.2f\" stroke=\"#dddddd\"/>\n", x, kTop - 6,
                          bottom);
    absl::StrAppendFormat(svg, "<text x=\"%.2f\" y=\"%.2f\" fill=\"#666666\">%g</text>\n", x,
                          bottom + 14, i * step);
  }
}

void AppendRank(const ReplayResult& result, size_t rank, double scale, bool chunk_letters,
                bool encoder_letters, std::string* svg) {
  absl::StrAppendFormat(svg,
                        "<text x=\"%.2f\" y=\"%.2f\" text-anchor=\"end\" fill=\"#222222\">rank "
                        "%d</text>\n",
                        kLeft - 8, RowTop(rank) + kRowHeight / 2 + 4, static_cast<int>(rank));
  for (const TimedAction& timed : result.timeline[rank]) {
    const Style* style = StyleOf(timed.action.kind);
    const double width = (timed.end - timed.begin) * scale;
    if (style == nullptr || width <= 0) continue;
    const double x = kLeft + timed.begin * scale;
    absl::StrAppendFormat(svg,
                          "<rect x=\"%.2f\" y=\"%.2f\" width=\"%.2f\" height=\"%.2f\" "
                          "fill=\"%s\"><title>%s</title></rect>\n",
                          x, RowTop(rank), width, kRowHeight, style->color, ToString(timed.action));
    const std::string label =
        Label(timed.action, timed.action.encoder >= 0 ? encoder_letters : chunk_letters);
    if (width < 5.0 + 6.5 * static_cast<double>(label.size())) continue;
    const bool dark =
        style->kind == ActionKind::kForward || style->kind == ActionKind::kForwardBackward ||
        style->kind == ActionKind::kEncodeBackward || style->kind == ActionKind::kUpdate;
    absl::StrAppendFormat(svg, "<text x=\"%.2f\" y=\"%.2f\" fill=\"%s\">%s</text>\n", x + width / 2,
                          RowTop(rank) + kRowHeight / 2 + 4, dark ? "#ffffff" : "#222222", label);
  }
}

// Rows and their gradients between ranks.
void AppendRows(const ReplayResult& result, double scale, std::string* svg) {
  for (size_t rank = 0; rank < result.timeline.size(); ++rank) {
    for (const TimedAction& timed : result.timeline[rank]) {
      if (timed.action.kind != ActionKind::kSend || !IsRows(timed.action)) continue;
      const auto peer = static_cast<size_t>(timed.action.peer);
      const bool down = peer > rank;
      const double y1 = RowTop(rank) + (down ? kRowHeight : 0);
      const double y2 = RowTop(peer) + (down ? 0 : kRowHeight);
      absl::StrAppendFormat(svg,
                            "<path d=\"M%.2f %.2fL%.2f %.2f\" stroke=\"%s\" stroke-opacity=\"0.7\" "
                            "stroke-width=\"1.2\"><title>%s</title></path>\n",
                            kLeft + timed.begin * scale, y1, kLeft + timed.end * scale, y2,
                            timed.action.payload == Payload::kRows ? "#ee7733" : "#cc3355",
                            ToString(timed.action));
    }
  }
}

void AppendLegend(const ReplayResult& result, std::string* svg) {
  std::set<ActionKind> kinds;
  bool rows = false;
  for (const std::vector<TimedAction>& timeline : result.timeline) {
    for (const TimedAction& timed : timeline) {
      if (timed.end > timed.begin) kinds.insert(timed.action.kind);
      rows = rows || (timed.action.kind == ActionKind::kSend && IsRows(timed.action));
    }
  }
  double x = kLeft;
  const double y = RowTop(result.timeline.size()) + 24;
  const auto Entry = [&](const std::string& shape, absl::string_view name) {
    absl::StrAppend(svg, shape);
    absl::StrAppendFormat(
        svg, "<text x=\"%.2f\" y=\"%.2f\" text-anchor=\"start\" fill=\"#222222\">%s</text>\n",
        x + 18, y, name);
    x += 34 + 6.6 * static_cast<double>(name.size());
  };
  for (const Style& style : kStyles) {
    if (kinds.count(style.kind) == 0) continue;
    Entry(absl::StrFormat("<rect x=\"%.2f\" y=\"%.2f\" width=\"13\" height=\"13\" fill=\"%s\"/>\n",
                          x, y - 11, style.color),
          style.name);
  }
  if (rows) {
    Entry(absl::StrFormat("<path d=\"M%.2f %.2fh13\" stroke=\"#ee7733\" stroke-width=\"1.2\"/>\n",
                          x, y - 4),
          "rows to rank 0, gradients back");
  }
}

}  // namespace

std::string ToTrace(const ReplayResult& result) {
  std::vector<TraceEvent> events;
  std::map<int32_t, std::string> processes;
  std::map<std::pair<int32_t, int64_t>, std::string> tracks;
  for (size_t i = 0; i < result.timeline.size(); ++i) {
    const auto rank = static_cast<int32_t>(i);
    processes[rank] = absl::StrCat("rank ", rank);
    tracks[{rank, 0}] = "actions";
    for (const TimedAction& timed : result.timeline[i]) {
      const bool transfer =
          timed.action.kind == ActionKind::kSend || timed.action.kind == ActionKind::kRecv;
      // Each transfer once, and only if it takes time. Spans of a track must not overlap, and
      // those of one payload may; viewers then draw one over the other.
      if (transfer && (timed.action.kind == ActionKind::kRecv || timed.end <= timed.begin)) {
        continue;
      }
      const int64_t track = transfer ? static_cast<int64_t>(timed.action.payload) : 0;
      if (transfer) tracks[{rank, track}] = "transfers";
      events.push_back({ToString(timed.action), transfer ? "transfer" : "action", timed.begin * 1e6,
                        timed.end * 1e6, rank, track});
    }
  }
  return ToChromeTrace(events, processes, tracks);
}

std::string ToSvg(const ReplayResult& result) {
  const double scale = result.step_time > 0 ? kWidth / result.step_time : 0;
  std::string svg = absl::StrFormat(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %.0f %.0f\" "
      "font-family=\"Helvetica, Arial, sans-serif\" font-size=\"12\" text-anchor=\"middle\">\n"
      "<rect width=\"100%%\" height=\"100%%\" fill=\"#ffffff\"/>\n",
      kLeft + kWidth + 20, RowTop(result.timeline.size()) + 36);
  absl::StrAppendFormat(&svg,
                        "<text x=\"%.2f\" y=\"18\" text-anchor=\"start\" fill=\"#222222\">step "
                        "%g, %.1f %% bubbles</text>\n",
                        kLeft, result.step_time, 100 * result.bubble_fraction());
  if (scale > 0) {
    const bool chunk_letters = HasSeveral(result, &Action::chunk);
    const bool encoder_letters = HasSeveral(result, &Action::encoder);
    AppendAxis(result, scale, &svg);
    for (size_t rank = 0; rank < result.timeline.size(); ++rank) {
      AppendRank(result, rank, scale, chunk_letters, encoder_letters, &svg);
    }
    AppendRows(result, scale, &svg);
    AppendLegend(result, &svg);
  }
  absl::StrAppend(&svg, "</svg>\n");
  return svg;
}

}  // namespace omni::parallel
