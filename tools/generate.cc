#include "tools/generate.h"

#include <unistd.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "absl/strings/match.h"
#include "dataloader/loader.h"
#include "runtime/base/file.h"
#include "runtime/base/status.h"
#include "tools/loaded_model.h"
#include "tools/one_sample.h"

namespace omni::tools {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

// A file of its own for the conversation that the flags spell out.
class TemporaryFile {
 public:
  TemporaryFile() = default;
  ~TemporaryFile() {
    if (!path_.empty()) unlink(path_.c_str());
  }
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;

  absl::Status Write(const std::string& text) {
    path_ =
        (fs::temp_directory_path() / absl::StrCat("omnitrain-ask-", getpid(), ".json")).string();
    return WriteFileAtomically(path_, text);
  }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

std::string ConversationOf(const GenerateCommand& command) {
  Json messages = Json::array();
  if (!command.system.empty()) {
    messages.push_back({{"role", "system"}, {"content", command.system}});
  }
  Json content = Json::array();
  for (const auto& [kind, files] : {std::pair{"image", &command.images},
                                    {"audio", &command.audios},
                                    {"video", &command.videos}}) {
    for (const std::string& file : *files) {
      content.push_back({{"type", kind}, {kind, fs::absolute(file).string()}});
    }
  }
  content.push_back({{"type", "text"}, {"text", command.prompt}});
  messages.push_back({{"role", "user"}, {"content", std::move(content)}});
  return Json{{"messages", std::move(messages)}}.dump(-1, ' ', false,
                                                      Json::error_handler_t::replace);
}

// Ends of an answer: whatever the tokenizer has for it.
std::vector<int32_t> StopTokens(const dataloader::Tokenizer& tokenizer) {
  std::vector<int32_t> stop;
  for (const int32_t token : {tokenizer.special().im_end, tokenizer.special().eos}) {
    if (token >= 0) stop.push_back(token);
  }
  return stop;
}

}  // namespace

absl::StatusOr<std::string> GenerateAnswer(const GenerateCommand& command,
                                           const std::function<void(const std::string&)>& on_text) {
  if (command.prompt.empty() == command.conversation.empty()) {
    return absl::InvalidArgumentError("expected either a prompt or --conversation FILE");
  }
  TemporaryFile asked;
  std::string conversation = command.conversation;
  if (conversation.empty()) {
    OMNI_RETURN_IF_ERROR(asked.Write(ConversationOf(command)));
    conversation = asked.path();
  }
  OMNI_ASSIGN_OR_RETURN(trainer::Recipe recipe,
                        RecipeFor(command.model, conversation, command.overrides));
  recipe.data.as_prompts = true;
  OMNI_ASSIGN_OR_RETURN(const auto planner, dataloader::OpenSources(recipe.data));
  OMNI_ASSIGN_OR_RETURN(const OneSample sample, LoadOneSample(*planner, 0));
  OMNI_ASSIGN_OR_RETURN(const auto loaded,
                        LoadedModel::Load(recipe, command.model, /*gradients=*/false));
  const dataloader::Tokenizer& tokenizer = planner->tokenizer();
  std::vector<int32_t> tokens;
  std::string text;
  Device& device = loaded->trainer().device();
  const std::unique_ptr<Stream> stream = device.NewStream();
  trainer::Generate(device, *stream, loaded->model(), sample.microbatch.tokens,
                    sample.microbatch.media,
                    {.max_tokens = command.max_tokens,
                     .stop_tokens = StopTokens(tokenizer),
                     .sampling = command.sampling,
                     .on_token = [&](int32_t token) {
                       tokens.push_back(token);
                       // Decoded anew: a character may take several tokens.
                       const std::string all = tokenizer.Decode(tokens);
                       if (absl::EndsWith(all, "\xEF\xBF\xBD")) return;
                       if (on_text && all.size() > text.size()) on_text(all.substr(text.size()));
                       text = all;
                     }});
  const std::string all = tokenizer.Decode(tokens);
  if (on_text && all.size() > text.size()) on_text(all.substr(text.size()));  // half a character
  return all;
}

}  // namespace omni::tools
