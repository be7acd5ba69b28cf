#include "tools/data_make_image.h"

#include <ft2build.h>
#include FT_FREETYPE_H

#include <algorithm>
#include <array>
#include <filesystem>
#include <span>

#include "absl/strings/str_cat.h"
#include "dataloader/media/encode.h"
#include "runtime/base/status.h"

namespace omni::tools {
namespace {

struct Family {
  const char* package;
  const char* folder;
  std::vector<const char*> files;
};

// Relatives of a held-out family may be in training (FreeSans resembles Liberation Sans, both
// draw Helvetica's widths), but no style of the family itself.
const std::vector<Family>& Families(Split split) {
  static const std::vector<Family> train = {
      {"fonts-dejavu-core",
       "dejavu",
       {"DejaVuSans", "DejaVuSans-Bold", "DejaVuSansMono", "DejaVuSansMono-Bold"}},
      {"fonts-dejavu-extra",
       "dejavu",
       {"DejaVuSans-Oblique", "DejaVuSans-BoldOblique", "DejaVuSansCondensed",
        "DejaVuSansCondensed-Bold", "DejaVuSansCondensed-Oblique", "DejaVuSansMono-Oblique",
        "DejaVuSansMono-BoldOblique"}},
      {"fonts-freefont-ttf",
       "freefont",
       {"FreeSans", "FreeSansBold", "FreeSansOblique", "FreeSansBoldOblique", "FreeSerif",
        "FreeSerifBold", "FreeSerifItalic", "FreeSerifBoldItalic", "FreeMono", "FreeMonoBold",
        "FreeMonoBoldOblique"}},
      {"fonts-liberation",
       "liberation",
       {"LiberationMono-Regular", "LiberationMono-Bold", "LiberationMono-Italic",
        "LiberationMono-BoldItalic", "LiberationSerif-Regular", "LiberationSerif-Bold",
        "LiberationSerif-Italic", "LiberationSerif-BoldItalic"}},
      {"fonts-lato",
       "lato",
       {"Lato-Regular", "Lato-Italic", "Lato-Medium", "Lato-Semibold", "Lato-Bold",
        "Lato-BoldItalic", "Lato-Heavy", "Lato-Light"}},
      {"fonts-roboto-unhinted",
       "roboto/unhinted/RobotoTTF",
       {"Roboto-Light", "Roboto-Regular", "Roboto-Italic", "Roboto-Medium", "Roboto-Bold",
        "Roboto-BoldItalic", "Roboto-Black"}},
  };
  static const std::vector<Family> heldout = {
      {"fonts-liberation",
       "liberation",
       {"LiberationSans-Regular", "LiberationSans-Bold", "LiberationSans-Italic",
        "LiberationSans-BoldItalic", "LiberationSansNarrow-Regular", "LiberationSansNarrow-Bold"}},
      {"fonts-dejavu-core", "dejavu", {"DejaVuSerif", "DejaVuSerif-Bold"}},
      {"fonts-dejavu-extra",
       "dejavu",
       {"DejaVuSerif-Italic", "DejaVuSerif-BoldItalic", "DejaVuSerifCondensed",
        "DejaVuSerifCondensed-Bold"}},
      {"fonts-open-sans",
       "open-sans",
       {"OpenSans-Regular", "OpenSans-Italic", "OpenSans-Semibold", "OpenSans-Bold",
        "OpenSans-BoldItalic"}},
      {"fonts-crosextra-caladea",
       "crosextra",
       {"Caladea-Regular", "Caladea-Bold", "Caladea-Italic", "Caladea-BoldItalic"}},
  };
  return split == Split::kTrain ? train : heldout;
}

// How much of each pixel is ink, 0 .. 1.
struct Coverage {
  int width = 0, height = 0;
  std::vector<float> ink;
};

}  // namespace

std::vector<std::string> FontFiles(Split split) {
  std::vector<std::string> files;
  for (const Family& family : Families(split)) {
    for (const char* file : family.files) {
      files.push_back(absl::StrCat(family.folder, "/", file, ".ttf"));
    }
  }
  return files;
}

struct ImageMaker::Impl {
  FT_Library library = nullptr;
  std::vector<FT_Face> faces;
  std::vector<std::string> names;

  ~Impl() {
    for (FT_Face face : faces) FT_Done_Face(face);
    if (library != nullptr) FT_Done_FreeType(library);
  }

  // The text at `size_px` per em, cut to its ink. `x_shift` in [0, 1) places it between pixels.
  Coverage Draw(FT_Face face, absl::string_view text, double size_px, double x_shift) {
    struct Glyph {
      int left, top, width, height;
      std::vector<uint8_t> ink;
    };
    FT_Set_Char_Size(face, 0, static_cast<FT_F26Dot6>(size_px * 64), 72, 72);
    std::vector<Glyph> glyphs;
    FT_Vector pen = {static_cast<FT_Pos>(x_shift * 64), 0};
    int left = 1 << 20, right = -(1 << 20), top = -(1 << 20), bottom = 1 << 20;
    for (const char c : text) {
      FT_Vector between_pixels = {pen.x & 63, 0};
      FT_Set_Transform(face, nullptr, &between_pixels);
      if (FT_Load_Char(face, static_cast<uint8_t>(c), FT_LOAD_RENDER | FT_LOAD_NO_HINTING)) {
        continue;
      }
      const FT_Bitmap& bitmap = face->glyph->bitmap;
      Glyph glyph{static_cast<int>(pen.x >> 6) + face->glyph->bitmap_left,
                  face->glyph->bitmap_top,
                  static_cast<int>(bitmap.width),
                  static_cast<int>(bitmap.rows),
                  {}};
      for (int y = 0; y < glyph.height; ++y) {
        const uint8_t* row = bitmap.buffer + static_cast<int64_t>(y) * bitmap.pitch;
        glyph.ink.insert(glyph.ink.end(), row, row + glyph.width);
      }
      left = std::min(left, glyph.left);
      right = std::max(right, glyph.left + glyph.width);
      top = std::max(top, glyph.top);
      bottom = std::min(bottom, glyph.top - glyph.height);
      pen.x += face->glyph->linearHoriAdvance >> 10;  // 16.16 to 26.6
      glyphs.push_back(std::move(glyph));
    }
    Coverage result;
    if (right <= left || top <= bottom) return result;
    result.width = right - left;
    result.height = top - bottom;
    result.ink.resize(static_cast<size_t>(result.width) * result.height);
    for (const Glyph& glyph : glyphs) {
      for (int y = 0; y < glyph.height; ++y) {
        for (int x = 0; x < glyph.width; ++x) {
          float& ink = result.ink[static_cast<size_t>(top - glyph.top + y) * result.width +
                                  (glyph.left - left + x)];
          ink = std::min(1.0f, ink + static_cast<float>(glyph.ink[y * glyph.width + x]) / 255.0f);
        }
      }
    }
    return result;
  }
};

ImageMaker::ImageMaker(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
ImageMaker::~ImageMaker() = default;

absl::StatusOr<std::unique_ptr<ImageMaker>> ImageMaker::Create(const std::string& font_dir,
                                                               Split split) {
  auto impl = std::make_unique<Impl>();
  if (FT_Init_FreeType(&impl->library) != 0) return absl::InternalError("FreeType does not start");
  for (const Family& family : Families(split)) {
    for (const char* file : family.files) {
      const std::string path = absl::StrCat(font_dir, "/", family.folder, "/", file, ".ttf");
      FT_Face face = nullptr;
      if (FT_New_Face(impl->library, path.c_str(), 0, &face) != 0) {
        return absl::NotFoundError(
            absl::StrCat("no font ", path, ": install the Debian package ", family.package));
      }
      impl->faces.push_back(face);
      impl->names.push_back(file);
    }
  }
  return std::unique_ptr<ImageMaker>(new ImageMaker(std::move(impl)));
}

absl::StatusOr<Media> ImageMaker::Make(absl::string_view text, bool is_word, CounterRng& rng) {
  const size_t font = rng.NextBelow(impl_->faces.size());
  double size_px = is_word ? Between(rng, 19, 25) : Between(rng, 24, 30);
  const double x_shift = rng.NextUniform();
  Coverage coverage = impl_->Draw(impl_->faces[font], text, size_px, x_shift);
  while (coverage.width > kImageWidth - 2 || coverage.height > kImageHeight - 1) {
    size_px *= 0.96;
    coverage = impl_->Draw(impl_->faces[font], text, size_px, x_shift);
  }
  if (coverage.width == 0) {
    return absl::InternalError(absl::StrCat(impl_->names[font], " drew nothing for ", text));
  }

  // Centred, then moved by up to 3 x 2 pixels, but never over the edge.
  const auto place = [&](int room, int jitter) {
    const int middle = room / 2 + static_cast<int>(rng.NextBelow(2 * jitter + 1)) - jitter;
    return std::clamp(middle, 0, room);
  };
  const int left = place(kImageWidth - coverage.width, 3);
  const int top = place(kImageHeight - coverage.height, 2);

  std::array<float, 3> paper, ink, slope_x, slope_y;
  const bool graded = rng.NextBelow(3) == 0;  // a third have a ground that changes a little
  for (int c = 0; c < 3; ++c) {
    paper[c] = static_cast<float>(Between(rng, 170, 255));
    ink[c] = static_cast<float>(Between(rng, 0, 89));
    slope_x[c] = graded ? static_cast<float>(Between(rng, -15, 15)) / kImageWidth : 0;
    slope_y[c] = graded ? static_cast<float>(Between(rng, -15, 15)) / kImageHeight : 0;
  }

  dataloader::Image image;
  image.size = {.height = kImageHeight, .width = kImageWidth};
  image.rgb.resize(kImageWidth * kImageHeight * 3);
  NoiseSource noise(&rng);
  for (int y = 0; y < kImageHeight; ++y) {
    for (int x = 0; x < kImageWidth; ++x) {
      const int glyph_x = x - left, glyph_y = y - top;
      const bool inside =
          glyph_x >= 0 && glyph_x < coverage.width && glyph_y >= 0 && glyph_y < coverage.height;
      const float alpha =
          inside ? coverage.ink[static_cast<size_t>(glyph_y) * coverage.width + glyph_x] : 0.0f;
      for (int c = 0; c < 3; ++c) {
        const float ground =
            paper[c] + slope_x[c] * (x - kImageWidth / 2) + slope_y[c] * (y - kImageHeight / 2);
        image.rgb[(y * kImageWidth + x) * 3 + c] =
            ToByte(ground + alpha * (ink[c] - ground) + 6.0f * noise.Next());
      }
    }
  }

  Media media;
  media.type = "image";
  media.made_with = {{"font", impl_->names[font]}};
  const uint64_t format = rng.NextBelow(10);
  if (format == 0) {
    media.extension = "png";
    OMNI_ASSIGN_OR_RETURN(media.bytes, dataloader::EncodePng(image));
  } else if (format == 1) {
    media.extension = "webp";
    OMNI_ASSIGN_OR_RETURN(media.bytes, dataloader::EncodeWebp(image, 90));
  } else {
    media.extension = "jpg";
    const int32_t quality = 85 + static_cast<int32_t>(rng.NextBelow(11));
    OMNI_ASSIGN_OR_RETURN(media.bytes, dataloader::EncodeJpeg(image, quality));
  }
  return media;
}

}  // namespace omni::tools
