// Relative paths of a recipe mean the same from everywhere once a job has started.
#include "trainer/recipe_paths.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

namespace omni::trainer {
namespace {

namespace fs = std::filesystem;
// house/data/a.jsonl, house/recipes/r.yaml, house/recipes/b.jsonl; elsewhere/.
class RecipePathsTest : public ::testing::Test {
 protected:
  RecipePathsTest() : before_(fs::current_path()) {
    std::string folder = ::testing::TempDir() + "/recipe-paths-XXXXXX";
    root_ = fs::canonical(mkdtemp(folder.data()));
    for (const char* made : {"house/data", "house/recipes", "elsewhere"}) {
      fs::create_directories(root_ / made);
    }
    for (const char* file : {"house/data/a.jsonl", "house/data/x.tar", "house/recipes/b.jsonl"}) {
      std::ofstream(root_ / file) << "{}\n";
    }
    recipe_ = root_ / "house/recipes/r.yaml";
  }
  ~RecipePathsTest() override {
    fs::current_path(before_);
    fs::remove_all(root_);
  }
  std::string Resolved(const std::string& path) { return ResolvePath(path, recipe_.string()); }
  std::string In(const std::string& path) { return (root_ / path).string(); }

  const fs::path before_;
  fs::path root_, recipe_;
};

TEST_F(RecipePathsTest, TheCurrentDirectoryGoesFirst) {
  fs::current_path(root_ / "house");
  EXPECT_EQ(Resolved("data/a.jsonl"), In("house/data/a.jsonl"));
  fs::create_directories(root_ / "elsewhere/data");
  std::ofstream(root_ / "elsewhere/data/a.jsonl") << "{}\n";
  fs::current_path(root_ / "elsewhere");
  EXPECT_EQ(Resolved("data/a.jsonl"), In("elsewhere/data/a.jsonl"));
}

TEST_F(RecipePathsTest, ThenTheRecipesFolderAndThoseAboveIt) {
  fs::current_path(root_ / "elsewhere");
  EXPECT_EQ(Resolved("b.jsonl"), In("house/recipes/b.jsonl"));
  EXPECT_EQ(Resolved("./data/a.jsonl"), In("house/data/a.jsonl"));
  EXPECT_EQ(Resolved("data/*.tar"), In("house/data/*.tar"));
  EXPECT_EQ(Resolved("../house/data"), In("house/data"));
}

TEST_F(RecipePathsTest, WhatIsNowhereIsBesideTheCurrentDirectory) {
  fs::current_path(root_ / "elsewhere");
  EXPECT_EQ(Resolved("data/none.jsonl"), In("elsewhere/data/none.jsonl"));
}

TEST_F(RecipePathsTest, AbsoluteOnesAndTheHome) {
  EXPECT_EQ(Resolved("/no/such/place"), "/no/such/place");
  EXPECT_EQ(Resolved(""), "");
  setenv("HOME", "/home/someone", 1);
  EXPECT_EQ(Resolved("~/data"), "/home/someone/data");
}

TEST_F(RecipePathsTest, ALinkBeforeDotDotIsKept) {
  fs::create_directory_symlink(root_ / "house/recipes", root_ / "elsewhere/link");
  fs::current_path(root_ / "elsewhere");
  // Through the link this is the house's data, without it it would be nothing.
  EXPECT_TRUE(fs::equivalent(Resolved("link/../data/a.jsonl"), root_ / "house/data/a.jsonl"));
}

TEST_F(RecipePathsTest, EveryKeyWithAPathAndNoOther) {
  fs::current_path(root_ / "house");
  auto root = ConfigNode::Parse(R"(name: data
model: {from: data}
data:
  tokenizer: data/a.jsonl
  template: plain
  sources: [{name: data, path: data/a.jsonl}, {name: b, path: /abs}]
  eval: [{name: data, path: recipes/b.jsonl}]
training: {init_from: data@120}
)",
                                "r.yaml");
  ASSERT_TRUE(root.ok()) << root.status();
  ASSERT_TRUE(root->ApplyOverrides({"data.sources.1.path=recipes/b.jsonl"}).ok());
  const auto absolute = AbsolutePaths(*root, recipe_.string());
  EXPECT_EQ(absolute.size(), 6u);
  ASSERT_TRUE(root->ApplyOverrides(absolute).ok());
  const ConfigNode data = root->Get("data");
  EXPECT_EQ(root->Get("name").text(), "data");
  EXPECT_EQ(root->Get("model").Get("from").text(), In("house/data"));
  EXPECT_EQ(root->Get("training").Get("init_from").text(), In("house/data@120"));
  EXPECT_EQ(data.Get("tokenizer").text(), In("house/data/a.jsonl"));
  EXPECT_EQ(data.Get("sources").items()[0].Get("path").text(), In("house/data/a.jsonl"));
  EXPECT_EQ(data.Get("sources").items()[0].Get("name").text(), "data");
  EXPECT_EQ(data.Get("sources").items()[1].Get("path").text(), In("house/recipes/b.jsonl"));
  EXPECT_EQ(data.Get("eval").items()[0].Get("path").text(), In("house/recipes/b.jsonl"));
  EXPECT_TRUE(AbsolutePaths(*root, recipe_.string()).empty());
  auto again = ConfigNode::Parse(root->DumpYaml(), "resolved.yaml");
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(again->Get("data").Get("tokenizer").text(), In("house/data/a.jsonl"));
}

}  // namespace
}  // namespace omni::trainer
