// What a configuration came to when it was read: every key that its readers know, with its value,
// whether somebody wrote it down or not.
//
//   std::map<std::string, std::string> values;
//   {
//     const ConfigRecording recording(&values);
//     (void)ReadRecipe(root);                    // known to read without an error
//   }
//   values["training.optimizer.eps"]             // "1e-08"
#pragma once

#include <map>
#include <string>

namespace omni {

// While one lives, ConfigReaders of this thread note what they read, read sections that are absent
// as if they stood there empty, and report no errors. An enumeration that is absent is
// noted as "". One at a time on a thread.
class ConfigRecording {
 public:
  explicit ConfigRecording(std::map<std::string, std::string>* values);
  ~ConfigRecording();
  ConfigRecording(const ConfigRecording&) = delete;
  ConfigRecording& operator=(const ConfigRecording&) = delete;
};

// For a Read that derives what a key comes to; does nothing unless it is being recorded.
void NoteConfigValue(const std::string& path, const std::string& value);

}  // namespace omni
