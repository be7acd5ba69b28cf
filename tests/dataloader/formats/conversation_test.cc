#include "dataloader/formats/conversation.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace omni::dataloader {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

// "user: text 'What?' image#0 'a.jpg' | assistant: ..."
std::string Describe(const absl::StatusOr<Conversation>& conversation) {
  if (!conversation.ok()) return std::string(conversation.status().message());
  static constexpr const char* kKinds[] = {"", "image", "audio", "video"};
  std::string out = conversation->is_document ? "document " : "";
  for (const Message& message : conversation->messages) {
    if (&message != &conversation->messages[0]) out += " | ";
    out += std::string(Name(message.role)) + ":";
    for (const Part& part : message.parts) {
      out += " ";
      if (part.kind != PartKind::kText) {
        out += kKinds[static_cast<int>(part.kind)] + std::string("#") +
               std::to_string(part.media_index);
      }
      out += "'" + part.text + "'";
    }
  }
  return out;
}

std::string Parse(absl::string_view json) { return Describe(ParseConversation(json, "s.tar:7")); }

TEST(ParseConversationTest, TypedParts) {
  const absl::StatusOr<Conversation> conversation = ParseConversation(
      R"({"messages":[{"role":"user","content":[{"type":"image","image":"0.jpg"},
          {"type":"text","text":"What number is shown?"}]},
          {"role":"assistant","content":[{"type":"text","text":"47"}]}],"question":"number"})",
      "s.tar:7");
  EXPECT_EQ(Describe(conversation),
            "user: image#0'0.jpg' 'What number is shown?' | assistant: '47'");
  EXPECT_EQ(conversation->question, "number");
  EXPECT_EQ(conversation->sample_id, "s.tar:7");
  EXPECT_FALSE(conversation->is_document);
  EXPECT_EQ(conversation->media().size(), 1u);
}

TEST(ParseConversationTest, OtherSpellingsOfTypedParts) {
  EXPECT_EQ(Parse(R"({"messages":[{"role":"user","content":[
      {"type":"image","path":"a.jpg"},{"type":"image_url","image_url":{"url":"file:///b.png"}},
      {"type":"video","video":{"path":"c.mp4"}},{"type":"audio","url":"d.wav"},
      "plain",{"type":"image"}]}],"images":["e.webp"]})"),
            "user: image#0'a.jpg' image#1'/b.png' video#2'c.mp4' audio#3'd.wav' 'plain' "
            "image#4'e.webp'");
}

TEST(ParseConversationTest, PlaceholdersTakeTheListsInOrder) {
  EXPECT_EQ(Parse(R"({"messages":[
      {"role":"system","content":"Be brief."},
      {"role":"user","content":"<image><video>Same?<image>"},
      {"role":"assistant","content":"No."},
      {"role":"user","content":"And <audio>?"},{"role":"assistant","content":"Yes."}],
      "images":["a.jpg","b.jpg"],"videos":["c.mp4"],"audios":["d.wav"]})"),
            "system: 'Be brief.' | user: image#0'a.jpg' video#1'c.mp4' 'Same?' image#2'b.jpg' | "
            "assistant: 'No.' | user: 'And ' audio#3'd.wav' '?' | assistant: 'Yes.'");
}

TEST(ParseConversationTest, ASingleMediumNeedsNoList) {
  EXPECT_EQ(Parse(R"({"messages":[{"role":"user","content":"<image>"}],"image":"a.jpg"})"),
            "user: image#0'a.jpg'");
  EXPECT_EQ(Parse(R"({"messages":[{"role":"user","content":"<image>"}],
                      "images":[{"path":"a.jpg","bytes":null}]})"),
            "user: image#0'a.jpg'");
}

TEST(ParseConversationTest, ShareGpt) {
  EXPECT_EQ(Parse(R"({"system":"S","conversations":[{"from":"human","value":"<image>Hi"},
      {"from":"function_call","value":"f"},{"from":"observation","value":"1"},
      {"from":"gpt","value":"Ho"}],"images":["a.jpg"],"id":"x"
})"),
            "system: 'S' | user: image#0'a.jpg' 'Hi' | assistant: 'f' | tool: '1' | "
            "assistant: 'Ho'");
}

TEST(ParseConversationTest, QueryAndResponseWithHistory) {
  EXPECT_EQ(Parse(R"({"system":"S","history":[["a <image>","b"]],"query":"<image>c","response":"d",
                      "images":["1.jpg","2.jpg"]})"),
            "system: 'S' | user: 'a ' image#0'1.jpg' | assistant: 'b' | user: image#1'2.jpg' 'c' | "
            "assistant: 'd'");
}

TEST(ParseConversationTest, Alpaca) {
  EXPECT_EQ(Parse(R"({"instruction":"Add","input":"1 + 1","output":"2"})"),
            "user: 'Add\n1 + 1' | assistant: '2'");
  EXPECT_EQ(Parse(R"({"instruction":"Add","input":"","output":"2"})"),
            "user: 'Add' | assistant: '2'");
}

TEST(ParseConversationTest, Documents) {
  EXPECT_EQ(Parse(R"({"text":"Once"})"), "document assistant: 'Once'");
  EXPECT_EQ(Parse(R"({"text":"The <video> tag"})"), "document assistant: 'The <video> tag'");
  EXPECT_EQ(Parse(R"({"text":"See <image>.","images":["a.jpg"]})"),
            "document assistant: 'See ' image#0'a.jpg' '.'");
  EXPECT_EQ(Parse(R"({"content":[{"type":"text","text":"A"},{"type":"image","image":"0.jpg"},
                      {"type":"text","text":"B"}]})"),
            "document assistant: 'A' image#0'0.jpg' 'B'");
}

TEST(ParseConversationTest, TextMayHoldAnything) {
  EXPECT_EQ(Parse(R"({"messages":[{"role":"user","content":"\u00e4\n\"<img> < image>"}]})"),
            "user: '\xc3\xa4\n\"<img> < image>'");
}

struct BadCase {
  const char* name;
  const char* json;
  const char* message;
};
class BadConversationTest : public testing::TestWithParam<BadCase> {};

TEST_P(BadConversationTest, NamesTheSampleAndTheFault) {
  const absl::Status status = ParseConversation(GetParam().json, "s.tar:7").status();
  EXPECT_TRUE(absl::IsDataLoss(status)) << status;
  EXPECT_THAT(std::string(status.message()), StartsWith("s.tar:7: "));
  EXPECT_THAT(std::string(status.message()), HasSubstr(GetParam().message));
}

INSTANTIATE_TEST_SUITE_P(
    All, BadConversationTest,
    testing::Values(
        BadCase{"Empty", "", "not JSON"}, BadCase{"Torn", R"({"messages":[{"ro)", "not JSON"},
        BadCase{"Binary", "\x80\x81\xff", "not JSON"}, BadCase{"TrailingText", "{} {}", "not JSON"},
        BadCase{"AList", "[1, 2]", "sample: found array, expected an object"},
        BadCase{"NoForm", R"({"a":1})", "expected one of the keys messages, conversations"},
        BadCase{"MisspelledForm", R"({"mesages":[]})", R"(did you mean "messages"?)"},
        BadCase{"MessagesNoList", R"({"messages":{}})", "messages: found object, expected a list"},
        BadCase{"NoMessages", R"({"messages":[]})", "messages: no messages"},
        BadCase{"MessageNoObject", R"({"messages":["x"]})", "messages[0]: found string"},
        BadCase{"NoRole", R"({"messages":[{"content":"x"}]})",
                R"(messages[0]: key "role" is missing)"},
        BadCase{"RoleNoString", R"({"messages":[{"role":1,"content":"x"}]})",
                "messages[0].role: found number, expected a string"},
        BadCase{"UnknownRole", R"({"messages":[{"role":"asistant","content":"x"}]})",
                R"(messages[0].role: unknown role "asistant", did you mean "assistant"?)"},
        BadCase{"StrangeRole", R"({"messages":[{"role":"zzzzzzzzzz","content":"x"}]})",
                "expected system, user, assistant or tool"},
        BadCase{"NoContent", R"({"messages":[{"role":"user"}]})",
                R"(messages[0]: key "content" is missing)"},
        BadCase{"NoValue", R"({"conversations":[{"from":"human"}]})",
                R"(conversations[0]: key "value" is missing)"},
        BadCase{"ContentNull", R"({"messages":[{"role":"user","content":null}]})",
                "messages[0].content: found null, expected a string or a list of parts"},
        BadCase{"PartNoType", R"({"messages":[{"role":"user","content":[{"text":"x"}]}]})",
                R"(messages[0].content[0]: key "type" is missing)"},
        BadCase{"PartUnknownType",
                R"({"messages":[{"role":"user","content":[{"type":"imgae","image":"x"}]}]})",
                R"(messages[0].content[0].type: unknown type "imgae", did you mean "image"?)"},
        BadCase{"PartNumber", R"({"messages":[{"role":"user","content":[3]}]})",
                "messages[0].content[0]: found number"},
        BadCase{"TextNoString",
                R"({"messages":[{"role":"user","content":[{"type":"text","text":[]}]}]})",
                "messages[0].content[0].text: found array, expected a string"},
        BadCase{"ImageNoPath",
                R"({"messages":[{"role":"user","content":[{"type":"image","image":5}]}]})",
                "messages[0].content[0].image: found number, expected a path"},
        BadCase{"ImageEmptyPath",
                R"({"messages":[{"role":"user","content":[{"type":"image","image":""}]}]})",
                "empty media reference"},
        BadCase{
            "ImageFromTheWeb",
            R"({"messages":[{"role":"user","content":"<image>"}],"images":["https://a/b.jpg"]})",
            "images[0]: media must be files"},
        BadCase{"TooFewImages",
                R"({"messages":[{"role":"user","content":"<image><image>"}],"images":["a.jpg"]})",
                R"(2 <image> placeholders, but 1 entries in "images")"},
        BadCase{"TooManyVideos",
                R"({"messages":[{"role":"user","content":"x"}],"videos":["a.mp4","b.mp4"]})",
                R"(0 <video> placeholders, but 2 entries in "videos")"},
        BadCase{"NoAudios", R"({"query":"<audio>","response":"x"})",
                R"(1 <audio> placeholders, but 0 entries in "audios")"},
        BadCase{"ImagesNoList", R"({"messages":[{"role":"user","content":"x"}],"images":7})",
                "images: found number, expected a path"},
        BadCase{"NoResponse", R"({"query":"x"})", R"(key "response" is missing)"},
        BadCase{"HistoryNoPairs", R"({"query":"x","response":"y","history":[["a"]]})",
                "history[0]: found array, expected a pair of strings"},
        BadCase{"Nothing", R"({"text":""})", "no text and no media"}),
    [](const auto& info) { return std::string(info.param.name); });

TEST(ParseConversationTest, DeepNestingIsNoCrash) {
  const std::string deep(200000, '[');
  EXPECT_TRUE(absl::IsDataLoss(ParseConversation(deep, "s").status()));
  const std::string closed = "{\"a\":" + deep + std::string(200000, ']') + "}";
  EXPECT_TRUE(absl::IsDataLoss(ParseConversation(closed, "s").status()));
}

}  // namespace
}  // namespace omni::dataloader
