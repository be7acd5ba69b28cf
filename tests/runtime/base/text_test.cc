#include "runtime/base/text.h"

#include <gtest/gtest.h>

namespace omni {
namespace {

TEST(TextTest, WhatIsPrintableStays) {
  for (const char* text : {"", "a b", "grün", "日本語", "s.tar:000.0.jpg", "50%", "a\\b"}) {
    EXPECT_EQ(Printable(text), text);
  }
}

TEST(TextTest, ControlCharactersAndBytesThatAreNoTextAreSpelt) {
  EXPECT_EQ(Printable("a\nb\tc\r"), "a\\nb\\tc\\r");
  EXPECT_EQ(Printable("\x1b[2Jx\x7f"), "\\x1b[2Jx\\x7f");
  EXPECT_EQ(Printable(absl::string_view("a\0b", 3)), "a\\x00b");
  EXPECT_EQ(Printable("\xc2\x9b"
                      "1m"),
            "\\xc2\\x9b1m");  // a control sequence of eight bits
  // Latin-1, cut off, overlong, a surrogate, too large.
  EXPECT_EQ(Printable("gr\xfcn"), "gr\\xfcn");
  EXPECT_EQ(Printable("\xe6\x97"), "\\xe6\\x97");
  EXPECT_EQ(Printable("\xc0\xaf"), "\\xc0\\xaf");
  EXPECT_EQ(Printable("\xed\xa0\x80"), "\\xed\\xa0\\x80");
  EXPECT_EQ(Printable("\xf4\x90\x80\x80"), "\\xf4\\x90\\x80\\x80");
  EXPECT_EQ(PrintableLines("a\nb\x1b"), "a\nb\\x1b");
}

TEST(TextTest, AMetricPartHasNoSeparator) {
  EXPECT_EQ(MetricPart("image"), "image");
  EXPECT_EQ(MetricPart("a/b"), "a%2Fb");
  EXPECT_NE(MetricPart("a/b"), MetricPart("a%2Fb"));
  EXPECT_EQ(MetricPart("what\ncolour?"), "what\\ncolour?");
}

}  // namespace
}  // namespace omni
