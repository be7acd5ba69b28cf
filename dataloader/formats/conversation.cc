#include "dataloader/formats/conversation.h"

#include <nlohmann/json.hpp>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "dataloader/formats/conversation_builder.h"
#include "runtime/base/config.h"
#include "runtime/base/status.h"

namespace omni::dataloader {
namespace {

using Json = nlohmann::json;

struct RoleName {
  const char* name;
  Role role;
};
constexpr RoleName kRoleNames[] = {
    {"system", Role::kSystem},
    {"user", Role::kUser},
    {"assistant", Role::kAssistant},
    {"tool", Role::kTool},
    {"human", Role::kUser},
    {"gpt", Role::kAssistant},
    {"developer", Role::kSystem},
    {"observation", Role::kTool},
    {"tool_response", Role::kTool},
    {"tool_call", Role::kAssistant},
    {"function_call", Role::kAssistant},
    {"function", Role::kTool},
};

absl::StatusOr<Role> ParseRole(const std::string& path, const std::string& name) {
  std::vector<std::string> valid;
  for (const RoleName& known : kRoleNames) {
    if (name == known.name) return known.role;
    valid.push_back(known.name);
  }
  const std::string nearest = NearestName(name, valid);
  return absl::DataLossError(absl::StrCat(path, ": unknown role \"", name.substr(0, 40), "\"",
                                          nearest.empty()
                                              ? ", expected system, user, assistant or tool"
                                              : absl::StrCat(", did you mean \"", nearest, "\"?")));
}

absl::Status WrongType(const std::string& path, const Json& found, const char* expected) {
  return absl::DataLossError(
      absl::StrCat(path, ": found ", found.type_name(), ", expected ", expected));
}

// The string under the first of `keys` that is there.
absl::StatusOr<std::string> GetString(const Json& object, const std::string& path,
                                      std::initializer_list<const char*> keys) {
  for (const char* key : keys) {
    const auto it = object.find(key);
    if (it == object.end()) continue;
    if (!it->is_string()) return WrongType(absl::StrCat(path, ".", key), *it, "a string");
    return it->get<std::string>();
  }
  return absl::DataLossError(absl::StrCat(path, ": key \"", *keys.begin(), "\" is missing"));
}

bool Has(const Json& object, const char* key) {
  const auto it = object.find(key);
  return it != object.end() && !it->is_null();
}

// A media reference: "path", {"path": ...}, {"url": ...}. Only files can be read.
absl::StatusOr<std::string> Reference(const Json& value, const std::string& path) {
  std::string reference;
  if (value.is_string()) {
    reference = value.get<std::string>();
  } else if (value.is_object()) {
    for (const char* key : {"path", "url"}) {
      if (!Has(value, key)) continue;
      if (!value[key].is_string()) {
        return WrongType(absl::StrCat(path, ".", key), value[key], "a string");
      }
      reference = value[key].get<std::string>();
      break;
    }
    if (reference.empty()) {
      return absl::DataLossError(absl::StrCat(path, ": key \"path\" is missing"));
    }
  } else {
    return WrongType(path, value, "a path");
  }
  if (reference.rfind("file://", 0) == 0) reference.erase(0, 7);
  if (reference.empty()) return absl::DataLossError(absl::StrCat(path, ": empty media reference"));
  if (reference.find('\0') != std::string::npos) {
    return absl::DataLossError(absl::StrCat(path, ": media reference holds a zero byte"));
  }
  for (const char* scheme : {"http://", "https://", "data:"}) {
    if (reference.rfind(scheme, 0) == 0) {
      return absl::DataLossError(
          absl::StrCat(path, ": media must be files, found \"", reference.substr(0, 24), "...\""));
    }
  }
  return reference;
}

// "images": [...] or a single one; "image" is the singular some exports use.
absl::Status ReadMediaLists(const Json& object, ConversationBuilder* builder) {
  static constexpr struct {
    const char* key;
    PartKind kind;
  } kLists[] = {{"images", PartKind::kImage}, {"image", PartKind::kImage},
                {"videos", PartKind::kVideo}, {"video", PartKind::kVideo},
                {"audios", PartKind::kAudio}, {"audio", PartKind::kAudio}};
  for (const auto& list : kLists) {
    if (!Has(object, list.key)) continue;
    const Json& value = object[list.key];
    if (!value.is_array()) {
      OMNI_ASSIGN_OR_RETURN(std::string reference, Reference(value, list.key));
      builder->AddListed(list.kind, std::move(reference));
      continue;
    }
    for (size_t i = 0; i < value.size(); ++i) {
      OMNI_ASSIGN_OR_RETURN(std::string reference,
                            Reference(value[i], absl::StrCat(list.key, "[", i, "]")));
      builder->AddListed(list.kind, std::move(reference));
    }
  }
  return absl::OkStatus();
}

absl::Status ReadTypedPart(const Json& part, const std::string& path,
                           ConversationBuilder* builder) {
  if (part.is_string()) {
    builder->AddText(part.get<std::string>());
    return absl::OkStatus();
  }
  if (!part.is_object()) return WrongType(path, part, "a part ({\"type\": ...})");
  OMNI_ASSIGN_OR_RETURN(const std::string type, GetString(part, path, {"type"}));
  if (type == "text") {
    OMNI_ASSIGN_OR_RETURN(std::string text, GetString(part, path, {"text"}));
    builder->AddText(std::move(text));
    return absl::OkStatus();
  }
  static constexpr struct {
    const char* type;
    PartKind kind;
  } kTypes[] = {{"image", PartKind::kImage},     {"audio", PartKind::kAudio},
                {"video", PartKind::kVideo},     {"image_url", PartKind::kImage},
                {"audio_url", PartKind::kAudio}, {"video_url", PartKind::kVideo}};
  for (const auto& known : kTypes) {
    if (type != known.type) continue;
    for (const char* key : {known.type, "path", "url"}) {
      if (!Has(part, key)) continue;
      OMNI_ASSIGN_OR_RETURN(std::string reference,
                            Reference(part[key], absl::StrCat(path, ".", key)));
      builder->AddMedia(known.kind, std::move(reference));
      return absl::OkStatus();
    }
    builder->AddPlaceholder(known.kind);  // {"type": "image"}: the next of "images"
    return absl::OkStatus();
  }
  const std::string nearest = NearestName(type, {"text", "image", "audio", "video"});
  return absl::DataLossError(absl::StrCat(path, ".type: unknown type \"", type.substr(0, 40), "\"",
                                          nearest.empty()
                                              ? ", expected text, image, audio or video"
                                              : absl::StrCat(", did you mean \"", nearest, "\"?")));
}

absl::Status ReadContent(const Json& content, const std::string& path,
                         ConversationBuilder* builder) {
  if (content.is_string()) {
    builder->AddTextWithPlaceholders(content.get<std::string>());
    return absl::OkStatus();
  }
  if (!content.is_array()) return WrongType(path, content, "a string or a list of parts");
  for (size_t i = 0; i < content.size(); ++i) {
    OMNI_RETURN_IF_ERROR(ReadTypedPart(content[i], absl::StrCat(path, "[", i, "]"), builder));
  }
  return absl::OkStatus();
}

// messages (role, content) and conversations (from, value); each accepts the other's keys too.
absl::Status ReadMessages(const Json& messages, const char* name, ConversationBuilder* builder) {
  if (!messages.is_array()) return WrongType(name, messages, "a list of messages");
  if (messages.empty()) return absl::DataLossError(absl::StrCat(name, ": no messages"));
  for (size_t i = 0; i < messages.size(); ++i) {
    const Json& message = messages[i];
    const std::string path = absl::StrCat(name, "[", i, "]");
    if (!message.is_object()) return WrongType(path, message, "a message");
    const bool is_share_gpt = message.contains("from");
    const char* role_key = is_share_gpt ? "from" : "role";
    OMNI_ASSIGN_OR_RETURN(const std::string role_name, GetString(message, path, {role_key}));
    OMNI_ASSIGN_OR_RETURN(const Role role, ParseRole(absl::StrCat(path, ".", role_key), role_name));
    const char* content_key = message.contains("value") ? "value" : "content";
    if (!message.contains(content_key)) {
      return absl::DataLossError(
          absl::StrCat(path, ": key \"", is_share_gpt ? "value" : "content", "\" is missing"));
    }
    builder->BeginMessage(role);
    OMNI_RETURN_IF_ERROR(
        ReadContent(message[content_key], absl::StrCat(path, ".", content_key), builder));
  }
  return absl::OkStatus();
}

absl::Status ReadSystem(const Json& object, ConversationBuilder* builder) {
  if (!Has(object, "system")) return absl::OkStatus();
  OMNI_ASSIGN_OR_RETURN(const std::string system, GetString(object, "sample", {"system"}));
  if (system.empty()) return absl::OkStatus();
  builder->BeginMessage(Role::kSystem);
  builder->AddTextWithPlaceholders(system);
  return absl::OkStatus();
}

// "history": [["question", "answer"], ...]
absl::Status ReadHistory(const Json& object, ConversationBuilder* builder) {
  if (!Has(object, "history")) return absl::OkStatus();
  const Json& history = object["history"];
  if (!history.is_array()) return WrongType("history", history, "a list of pairs");
  for (size_t i = 0; i < history.size(); ++i) {
    const std::string path = absl::StrCat("history[", i, "]");
    const Json& pair = history[i];
    if (!pair.is_array() || pair.size() != 2 || !pair[0].is_string() || !pair[1].is_string()) {
      return WrongType(path, pair, "a pair of strings");
    }
    builder->BeginMessage(Role::kUser);
    builder->AddTextWithPlaceholders(pair[0].get<std::string>());
    builder->BeginMessage(Role::kAssistant);
    builder->AddTextWithPlaceholders(pair[1].get<std::string>());
  }
  return absl::OkStatus();
}

absl::Status ReadQueryResponse(const Json& object, std::string query,
                               std::initializer_list<const char*> response_keys,
                               ConversationBuilder* builder) {
  OMNI_RETURN_IF_ERROR(ReadSystem(object, builder));
  OMNI_RETURN_IF_ERROR(ReadHistory(object, builder));
  OMNI_ASSIGN_OR_RETURN(const std::string response, GetString(object, "sample", response_keys));
  builder->BeginMessage(Role::kUser);
  builder->AddTextWithPlaceholders(query);
  builder->BeginMessage(Role::kAssistant);
  builder->AddTextWithPlaceholders(response);
  return absl::OkStatus();
}

absl::Status ReadSample(const Json& object, ConversationBuilder* builder) {
  if (!object.is_object()) return WrongType("sample", object, "an object");
  OMNI_RETURN_IF_ERROR(ReadMediaLists(object, builder));
  if (Has(object, "question") && object["question"].is_string()) {
    builder->SetQuestion(object["question"].get<std::string>());
  }
  if (Has(object, "messages")) {
    return ReadMessages(object["messages"], "messages", builder);
  }
  if (Has(object, "conversations")) {
    OMNI_RETURN_IF_ERROR(ReadSystem(object, builder));
    return ReadMessages(object["conversations"], "conversations", builder);
  }
  if (Has(object, "query")) {
    OMNI_ASSIGN_OR_RETURN(std::string query, GetString(object, "sample", {"query"}));
    return ReadQueryResponse(object, std::move(query), {"response"}, builder);
  }
  if (Has(object, "instruction")) {
    OMNI_ASSIGN_OR_RETURN(std::string query, GetString(object, "sample", {"instruction"}));
    if (Has(object, "input")) {
      OMNI_ASSIGN_OR_RETURN(const std::string input, GetString(object, "sample", {"input"}));
      if (!input.empty()) absl::StrAppend(&query, "\n", input);
    }
    return ReadQueryResponse(object, std::move(query), {"output"}, builder);
  }
  for (const char* key : {"text", "content"}) {
    if (!Has(object, key)) continue;
    builder->BeginDocument();
    return ReadContent(object[key], key, builder);
  }
  std::vector<std::string> keys;
  for (const auto& item : object.items()) keys.push_back(item.key());
  static const std::vector<std::string> kForms = {"messages",    "conversations", "query",
                                                  "instruction", "text",          "content"};
  for (const std::string& key : keys) {
    const std::string nearest = NearestName(key, kForms);
    if (nearest.empty() || nearest == key) continue;
    return absl::DataLossError(
        absl::StrCat("unknown key \"", key.substr(0, 40), "\", did you mean \"", nearest, "\"?"));
  }
  return absl::DataLossError(
      "expected one of the keys messages, conversations, query, instruction, text, content");
}

}  // namespace

const char* Name(Role role) {
  switch (role) {
    case Role::kSystem:
      return "system";
    case Role::kUser:
      return "user";
    case Role::kAssistant:
      return "assistant";
    case Role::kTool:
      return "tool";
  }
  return "?";
}

MediaKind MediaKindOf(PartKind kind) {
  return kind == PartKind::kVideo   ? MediaKind::kVideo
         : kind == PartKind::kAudio ? MediaKind::kAudio
                                    : MediaKind::kImage;
}

std::vector<const Part*> Conversation::media() const {
  std::vector<const Part*> found;
  for (const Message& message : messages) {
    for (const Part& part : message.parts) {
      if (part.kind != PartKind::kText) found.push_back(&part);
    }
  }
  return found;
}

absl::StatusOr<Conversation> ParseConversation(absl::string_view json, std::string sample_id,
                                               const std::string& group_key) {
  Json object;
  try {
    // Recursion in the parser is bounded: it keeps its own stack. Ours goes a fixed depth.
    object = Json::parse(json.begin(), json.end());
  } catch (const Json::exception& e) {
    return absl::DataLossError(
        absl::StrCat(sample_id, ": not JSON: ", absl::string_view(e.what()).substr(0, 200)));
  }
  ConversationBuilder builder(sample_id);
  if (absl::Status status = ReadSample(object, &builder); !status.ok()) {
    return Annotate(status, sample_id);
  }
  absl::StatusOr<Conversation> conversation = builder.Finish();
  if (!conversation.ok()) return Annotate(conversation.status(), sample_id);
  if (!group_key.empty() && Has(object, group_key.c_str())) {
    const Json& value = object[group_key];
    if (value.is_string()) {
      conversation->group = value.get<std::string>();
    } else if (value.is_number() || value.is_boolean()) {
      conversation->group = value.dump();
    }
  }
  return conversation;
}

}  // namespace omni::dataloader
