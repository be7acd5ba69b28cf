// Conversations as tokens; chat_template.h shows what each template looks like.
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "dataloader/bpe/unicode.h"
#include "dataloader/chat_template.h"
#include "runtime/base/check.h"

namespace omni::dataloader {
namespace {

// What tells the templates with turns apart.
struct Style {
  const char* default_system = nullptr;  // a system turn where the conversation starts with none
  const char* after_role = "\n";
  const char* between_turns = "\n";
  bool begins_with_bos = false;
  bool trims = false;           // white space around what a turn says
  bool numbers_sounds = false;  // "Audio 1: " before a sound, a line break behind
  bool wraps_tools = false;     // results of tools, one after the other, are one user's turn
  bool thinks = false;          // think blocks: only behind the last question, there always
};

constexpr char kHelpful[] = "You are a helpful assistant.";

Style StyleOf(Template kind) {
  switch (kind) {
    case Template::kChatml:
    case Template::kPlain:
      return {};
    case Template::kQwen2:
    case Template::kQwen2Vl:
    case Template::kQwen25Omni:
      return {.default_system = kHelpful};
    case Template::kQwen2Audio:
      return {.default_system = kHelpful, .numbers_sounds = true};
    case Template::kQwen25:
      return {
          .default_system = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
          .wraps_tools = true};
    case Template::kQwen3:
      return {.wraps_tools = true, .thinks = true};
    case Template::kLlama3:
      return {.after_role = "\n\n", .between_turns = "", .begins_with_bos = true, .trims = true};
  }
  return {};
}

// As Python's str.strip().
bool IsStripped(uint32_t c) { return IsSpace(c) || (c >= 0x1C && c <= 0x1F); }

absl::string_view StripBegin(absl::string_view text) {
  for (size_t at = 0; at < text.size();) {
    const size_t here = at;
    if (!IsStripped(NextCodePoint(text, &at))) return text.substr(here);
  }
  return "";
}

absl::string_view StripEnd(absl::string_view text) {
  for (size_t end = text.size(); end > 0;) {
    const size_t here = end;
    if (!IsStripped(PreviousCodePoint(text, &end))) return text.substr(0, here);
  }
  return "";
}

absl::string_view StripLines(absl::string_view text, bool begin, bool end) {
  while (begin && absl::ConsumePrefix(&text, "\n")) continue;
  while (end && absl::ConsumeSuffix(&text, "\n")) continue;
  return text;
}

// Neighbouring texts joined; with `trims`, without white space at both ends.
std::vector<Part> PartsOf(const Message& message, bool trims) {
  std::vector<Part> parts;
  for (const Part& part : message.parts) {
    const bool joins =
        part.kind == PartKind::kText && !parts.empty() && parts.back().kind == PartKind::kText;
    if (joins) {
      parts.back().text += part.text;
    } else {
      parts.push_back(part);
    }
  }
  if (!trims || parts.empty()) return parts;
  if (std::string& text = parts.front().text; parts.front().kind == PartKind::kText) {
    text = std::string(StripBegin(ReplaceIllFormed(text)));
  }
  if (std::string& text = parts.back().text; parts.back().kind == PartKind::kText) {
    text = std::string(StripEnd(ReplaceIllFormed(text)));
  }
  return parts;
}

// Writes one sample token by token. Texts that follow each other and agree on having loss are one
// text to the tokenizer, as in the reference, which sees the whole conversation as text.
class Writer {
 public:
  Writer(const Tokenizer& tokenizer, absl::Span<const MediaShape> shapes, bool numbers_sounds,
         const TemplateOptions& options, TokenizedSample* out)
      : tokenizer_(tokenizer),
        shapes_(shapes),
        numbers_sounds_(numbers_sounds),
        frame_text_(options.frame_text),
        text_has_specials_(options.text_has_specials),
        out_(*out) {}

  void Token(int32_t id, bool loss) {
    Flush();
    out_.tokens.push_back(id);
    out_.loss.push_back(loss);
  }
  void Text(absl::string_view text, bool loss) {
    if (loss != text_has_loss_) Flush();
    text_has_loss_ = loss;
    absl::StrAppend(&text_, text);
  }
  void Parts(absl::Span<const Part> parts, bool loss) {
    for (const Part& part : parts) {
      if (part.kind == PartKind::kText) {
        Text(part.text, loss);
      } else {
        Media(part.media_index);
      }
    }
  }
  // Where an assistant's turn ends.
  void EndTurn() {
    Flush();
    out_.turn_ends.push_back(static_cast<int64_t>(out_.tokens.size()));
  }
  void Flush() {
    if (text_.empty()) return;
    if (text_has_specials_) {
      tokenizer_.AppendWithSpecials(text_, &out_.tokens);
    } else {
      tokenizer_.Append(text_, &out_.tokens);
    }
    out_.loss.resize(out_.tokens.size(), text_has_loss_);
    text_.clear();
  }

 private:
  void Media(int32_t media_index) {
    OMNI_CHECK(media_index >= 0 && media_index < static_cast<int32_t>(shapes_.size()));
    const MediaShape& shape = shapes_[media_index];
    const MediaSymbols symbols = SymbolsOf(shape.kind, tokenizer_);
    const bool is_numbered = numbers_sounds_ && shape.kind == MediaKind::kAudio;
    if (is_numbered) Text(absl::StrCat("Audio ", ++num_sounds_, ": "), false);
    const bool by_frame = shape.kind == MediaKind::kVideo && frame_text_ != FrameText::kNone;
    const int32_t num_runs = by_frame ? shape.item.t : 1;
    MediaSpan span{.media_index = media_index, .shape = shape};
    for (int32_t run = 0; run < num_runs; ++run) {
      if (by_frame) Text(FrameTime(shape.timestamps_s[run], frame_text_), false);
      // Of the time, and of the text without loss that it follows; else of the start token.
      if (by_frame && run == 0) span.span_begin = static_cast<int64_t>(out_.tokens.size());
      Token(symbols.start, false);
      span.run_begins.push_back(static_cast<int64_t>(out_.tokens.size()));
      out_.tokens.resize(out_.tokens.size() + shape.item.num_output_rows / num_runs, symbols.pad);
      out_.loss.resize(out_.tokens.size(), 0);
      Token(symbols.end, false);
    }
    span.token_begin = span.run_begins[0];
    if (!by_frame) span.span_begin = span.token_begin - 1;
    span.span_end = static_cast<int64_t>(out_.tokens.size());
    out_.media.push_back(std::move(span));
    if (is_numbered) Text("\n", false);
  }

  const Tokenizer& tokenizer_;
  absl::Span<const MediaShape> shapes_;
  const bool numbers_sounds_;
  const FrameText frame_text_;
  const bool text_has_specials_;
  int32_t num_sounds_ = 0;
  TokenizedSample& out_;
  std::string text_;
  bool text_has_loss_ = false;
};

// A conversation with turns.
class TurnWriter {
 public:
  TurnWriter(const Conversation& conversation, const Style& style, const SpecialTokens& special,
             Writer* writer)
      : messages_(conversation.messages), style_(style), special_(special), writer_(*writer) {}

  void Run(const TemplateOptions& options) {
    if (style_.begins_with_bos) writer_.Token(special_.bos, false);
    if (style_.default_system != nullptr && messages_[0].role != Role::kSystem) {
      Begin("system");
      writer_.Text(style_.default_system, false);
      writer_.Token(special_.im_end, false);
      writer_.Text(style_.between_turns, false);
    }
    const size_t last_question = style_.thinks ? LastQuestion() : messages_.size();
    for (size_t i = 0; i < messages_.size(); ++i) {
      const bool is_last = i + 1 == messages_.size();
      if (style_.wraps_tools && messages_[i].role == Role::kTool) {
        ToolResult(i);
        if (!is_last && messages_[i + 1].role == Role::kTool) continue;
        writer_.Token(special_.im_end, false);
      } else {
        Turn(messages_[i], i > last_question, is_last);
      }
      // The line break stands before the next turn; nothing follows the last one.
      if (!is_last || options.add_generation_prompt || options.ends_last_turn) {
        writer_.Text(style_.between_turns, false);
      }
    }
    if (options.add_generation_prompt) {
      Begin("assistant");
      if (style_.thinks && options.answers_at_once) {
        writer_.Text("<think>\n\n</think>\n\n", false);
      }
    }
    writer_.Flush();
  }

 private:
  void Begin(absl::string_view role) {
    writer_.Token(special_.im_start, false);
    writer_.Text(role, false);
    if (special_.header_end >= 0) writer_.Token(special_.header_end, false);
    writer_.Text(style_.after_role, false);
  }

  void Turn(const Message& message, bool is_behind_last_question, bool is_last) {
    const bool loss = message.role == Role::kAssistant;
    Begin(Name(message.role));
    const std::vector<Part> parts = PartsOf(message, style_.trims);
    const bool is_text = parts.empty() || (parts.size() == 1 && parts[0].kind == PartKind::kText);
    if (style_.thinks && loss && is_text) {
      Thought(parts.empty() ? "" : parts[0].text, is_behind_last_question, is_last);
    } else {
      writer_.Parts(parts, loss);
    }
    writer_.Token(special_.im_end, loss);
    if (loss) writer_.EndTurn();
  }

  // Qwen3: what an assistant thought before the last question is forgotten; behind it, its last
  // turn has a think block even if it did not think. An empty one is the template's, not the
  // assistant's: no loss.
  void Thought(absl::string_view text, bool is_behind_last_question, bool is_last) {
    constexpr absl::string_view kBegin = "<think>", kEnd = "</think>";
    absl::string_view thought, answer = text;
    if (const size_t end = text.find(kEnd); end != absl::string_view::npos) {
      thought = StripLines(text.substr(0, end), false, true);
      if (const size_t begin = thought.rfind(kBegin); begin != absl::string_view::npos) {
        thought.remove_prefix(begin + kBegin.size());
      }
      thought = StripLines(thought, true, false);
      answer = StripLines(text.substr(text.rfind(kEnd) + kEnd.size()), true, false);
    }
    if (is_behind_last_question && (is_last || !thought.empty())) {
      const absl::string_view inner = StripLines(thought, true, true);
      writer_.Text(absl::StrCat(kBegin, "\n", inner, "\n", kEnd, "\n\n"), !inner.empty());
      answer = StripLines(answer, true, false);
    }
    writer_.Text(answer, true);
  }

  // Index of the last turn of a user that is no tool's result; of the last turn if there is none.
  size_t LastQuestion() const {
    for (size_t i = messages_.size(); i-- > 0;) {
      if (messages_[i].role != Role::kUser) continue;
      const std::vector<Part> parts = PartsOf(messages_[i], false);
      const bool is_result = parts.size() == 1 && parts[0].kind == PartKind::kText &&
                             absl::StartsWith(parts[0].text, "<tool_response>") &&
                             absl::EndsWith(parts[0].text, "</tool_response>");
      if (!is_result) return i;
    }
    return messages_.size() - 1;
  }

  void ToolResult(size_t i) {
    if (i == 0 || messages_[i - 1].role != Role::kTool) {
      writer_.Token(special_.im_start, false);
      writer_.Text("user", false);
    }
    writer_.Text("\n<tool_response>\n", false);
    writer_.Parts(PartsOf(messages_[i], false), false);
    writer_.Text("\n</tool_response>", false);
  }

  const std::vector<Message>& messages_;
  const Style style_;
  const SpecialTokens& special_;
  Writer& writer_;
};

}  // namespace

MediaSymbols SymbolsOf(MediaKind kind, const Tokenizer& tokenizer) {
  const SpecialTokens& special = tokenizer.special();
  switch (kind) {
    case MediaKind::kAudio:
      return {special.audio_start, special.audio_pad, special.audio_end};
    case MediaKind::kVideo:
      return {special.vision_start, special.video_pad, special.vision_end};
    case MediaKind::kImage:
      break;
  }
  return {special.vision_start, special.image_pad, special.vision_end};
}

TokenizedSample ApplyTemplate(const Conversation& conversation, absl::Span<const MediaShape> shapes,
                              const Tokenizer& tokenizer, const TemplateOptions& options) {
  TokenizedSample sample;
  sample.is_document = conversation.is_document;
  const Style style = StyleOf(options.kind);
  Writer writer(tokenizer, shapes, style.numbers_sounds && !conversation.is_document, options,
                &sample);
  const SpecialTokens& special = tokenizer.special();
  if (!conversation.is_document && options.kind != Template::kPlain) {
    TurnWriter(conversation, style, special, &writer).Run(options);
    return sample;
  }
  const int32_t end = special.eos >= 0 ? special.eos : special.im_end;
  if (special.bos >= 0) writer.Token(special.bos, false);
  for (const Message& message : conversation.messages) {
    const bool loss = message.role == Role::kAssistant;
    writer.Parts(message.parts, loss);
    if (loss) {
      writer.Token(end, true);
      writer.EndTurn();
    }
  }
  writer.Flush();
  return sample;
}

}  // namespace omni::dataloader
