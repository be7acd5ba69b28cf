// What the tables of bad inputs share: a row, and the contract that one line names the place.
#pragma once

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace omni::test {

struct Bad {
  const char* name;
  std::string input;
  const char* place;     // part of the message: where and what was found
  const char* expected;  // part of the message: what belongs there
  std::string content = {};
};

inline std::string Name(const ::testing::TestParamInfo<Bad>& info) { return info.param.name; }

// Writes a file of the test's own folder and returns its path. `name` may have folders in it.
std::string WriteInput(const std::string& name, const std::string& bytes);

// `omnitrain <arguments>` ends with `exit_code`, and all it says is one line with both parts of the
// row's message.
void ExpectOneLine(const std::vector<std::string>& arguments, const Bad& bad, int exit_code = 1);
// `omnitrain <arguments> --run-dir` of a folder that is not there, nor afterwards.
void ExpectTrainRefuses(std::vector<std::string> arguments, const Bad& bad);

}  // namespace omni::test
