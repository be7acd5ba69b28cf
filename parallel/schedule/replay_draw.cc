// Timelines for people: a Chrome trace and an SVG drawing.
#include <algorithm>
#include <array>
#include <cmath>
#include <iterator>
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
  bool is_dark = false;  // labels on it are white
};
// Cold colours for the decoder, warm ones for encoders.
constexpr std::array<Style, 9> kStyles = {{
    {ActionKind::kForwardBackward, "forward and backward", "#4477aa", true},
    {ActionKind::kForward, "forward", "#4477aa", true},
    {ActionKind::kBackward, "backward", "#66bb88"},
    {ActionKind::kBackwardInput, "input backward", "#66bb88"},
    {ActionKind::kWeightGrad, "weight gradients", "#bbbbbb"},
    {ActionKind::kEncodeForward, "encode", "#ee7733"},
    {ActionKind::kEncodeOnly, "encode, keep nothing", "#f6bb99"},
    {ActionKind::kEncodeBackward, "encoder backward", "#cc3355", true},
    {ActionKind::kUpdate, "update", "#444444", true},
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

// What is written on an action: its microbatch or group, after a letter for the encoder where there
// are several.
std::string Label(const Action& action, bool letters) {
  if (action.microbatch < 0) return "";
  if (!letters || action.encoder < 0) return absl::StrCat(action.microbatch);
  return absl::StrCat(std::string(1, static_cast<char>('a' + action.encoder % 26)),
                      action.microbatch);
}

// What occurs in a timeline: chunks, or encoders.
std::set<int16_t> Occurring(const std::vector<TimedAction>& timeline, int16_t Action::*part) {
  std::set<int16_t> found;
  for (const TimedAction& timed : timeline) {
    if (StyleOf(timed.action.kind) != nullptr && timed.action.*part >= 0) {
      found.insert(timed.action.*part);
    }
  }
  return found;
}

// Later chunks of a rank are paler.
double Opacity(const std::set<int16_t>& chunks, int16_t chunk) {
  if (chunk < 0 || chunks.size() < 2) return 1;
  const auto nth = static_cast<double>(std::distance(chunks.begin(), chunks.find(chunk)));
  return 1 - 0.5 * nth / static_cast<double>(chunks.size() - 1);
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

// Labels lie above all rectangles, which have white borders.
void AppendRank(const ReplayResult& result, size_t rank, double scale, std::string* svg,
                std::string* labels) {
  absl::StrAppendFormat(labels,
                        "<text x=\"%.2f\" y=\"%.2f\" text-anchor=\"end\" fill=\"#222222\">rank "
                        "%d</text>\n",
                        kLeft - 8, RowTop(rank) + kRowHeight / 2 + 4, static_cast<int>(rank));
  const std::vector<TimedAction>& timeline = result.timeline[rank];
  const std::set<int16_t> chunks = Occurring(timeline, &Action::chunk);
  const bool letters = Occurring(timeline, &Action::encoder).size() > 1;
  for (const TimedAction& timed : timeline) {
    const Style* style = StyleOf(timed.action.kind);
    const double width = (timed.end - timed.begin) * scale;
    if (style == nullptr || width <= 0) continue;
    const double x = kLeft + timed.begin * scale;
    const double opacity = Opacity(chunks, timed.action.chunk);
    absl::StrAppendFormat(svg,
                          "<rect x=\"%.2f\" y=\"%.2f\" width=\"%.2f\" height=\"%.2f\" "
                          "fill=\"%s\" fill-opacity=\"%.2f\"><title>%s</title></rect>\n",
                          x, RowTop(rank), width, kRowHeight, style->color, opacity,
                          ToString(timed.action));
    const std::string label = Label(timed.action, letters);
    if (label.empty() || width < 3.0 + 6.5 * static_cast<double>(label.size())) continue;
    absl::StrAppendFormat(labels, "<text x=\"%.2f\" y=\"%.2f\" fill=\"%s\">%s</text>\n",
                          x + width / 2, RowTop(rank) + kRowHeight / 2 + 4,
                          style->is_dark && opacity > 0.7 ? "#ffffff" : "#222222", label);
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
    AppendAxis(result, scale, &svg);
    AppendRows(result, scale, &svg);
    std::string labels;
    svg += "<g stroke=\"#ffffff\" stroke-width=\"0.6\">\n";
    for (size_t rank = 0; rank < result.timeline.size(); ++rank) {
      AppendRank(result, rank, scale, &svg, &labels);
    }
    svg += "</g>\n" + labels;
    AppendLegend(result, &svg);
  }
  absl::StrAppend(&svg, "</svg>\n");
  return svg;
}

}  // namespace omni::parallel
