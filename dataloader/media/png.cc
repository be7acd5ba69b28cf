// PNG through libpng. Its errors longjmp: the functions that call it hold nothing with a
// destructor.
#include <png.h>

#include <algorithm>
#include <csetjmp>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "dataloader/media/image_codecs.h"
#include "runtime/base/status.h"

namespace omni::dataloader {
namespace {

struct PngReader {
  explicit PngReader(absl::string_view b) : bytes(b) {
    png = png_create_read_struct(PNG_LIBPNG_VER_STRING, this, OnError, OnWarning);
    if (png != nullptr) info = png_create_info_struct(png);
  }
  ~PngReader() { png_destroy_read_struct(&png, &info, nullptr); }
  PngReader(const PngReader&) = delete;
  PngReader& operator=(const PngReader&) = delete;

  [[noreturn]] static void OnError(png_structp png, png_const_charp message) {
    auto* reader = static_cast<PngReader*>(png_get_error_ptr(png));
    std::snprintf(reader->error, sizeof reader->error, "%s", message);
    longjmp(reader->jump, 1);
  }
  static void OnWarning(png_structp, png_const_charp) {}
  static void OnRead(png_structp png, png_bytep out, size_t count) {
    auto* reader = static_cast<PngReader*>(png_get_io_ptr(png));
    if (count > reader->bytes.size() - reader->position) png_error(png, "the file ends too early");
    std::memcpy(out, reader->bytes.data() + reader->position, count);
    reader->position += count;
  }

  absl::string_view bytes;
  size_t position = 0;
  png_structp png = nullptr;
  png_infop info = nullptr;
  std::jmp_buf jump;
  char error[128] = "";
};

bool ReadHeader(PngReader* reader) {
  if (setjmp(reader->jump) != 0) return false;
  // Our own limits give a better message than libpng's; the ancillary chunks stay small.
  png_set_user_limits(reader->png, PNG_UINT_31_MAX, PNG_UINT_31_MAX);
  png_set_chunk_malloc_max(reader->png, 8 << 20);
  png_set_chunk_cache_max(reader->png, 128);
  png_set_read_fn(reader->png, reader, PngReader::OnRead);
  png_read_info(reader->png, reader->info);
  return true;
}

// Asks for 8-bit RGB or RGBA, whatever the file holds.
bool SetTransforms(PngReader* reader) {
  if (setjmp(reader->jump) != 0) return false;
  png_set_expand(reader->png);
  png_set_strip_16(reader->png);
  png_set_gray_to_rgb(reader->png);
  png_set_interlace_handling(reader->png);
  png_read_update_info(reader->png, reader->info);
  return true;
}

bool ReadRows(PngReader* reader, png_bytepp rows) {
  if (setjmp(reader->jump) != 0) return false;
  png_read_image(reader->png, rows);
  return true;
}

absl::Status Corrupt(const PngReader& reader) {
  return absl::DataLossError(absl::StrCat("corrupt PNG: ", reader.error));
}

absl::StatusOr<ImageSize> HeaderSize(PngReader* reader) {
  if (reader->png == nullptr || reader->info == nullptr) {
    return absl::InternalError("libpng does not start");
  }
  if (!ReadHeader(reader)) return Corrupt(*reader);
  const int64_t height = png_get_image_height(reader->png, reader->info);
  const int64_t width = png_get_image_width(reader->png, reader->info);
  OMNI_RETURN_IF_ERROR(CheckImageSize("PNG", height, width));
  return ImageSize{static_cast<int32_t>(height), static_cast<int32_t>(width)};
}

}  // namespace

absl::StatusOr<ImageSize> ProbePng(absl::string_view bytes) {
  PngReader reader(bytes);
  return HeaderSize(&reader);
}

absl::StatusOr<RgbBuffer> DecodePng(absl::string_view bytes, AlphaMode alpha) {
  PngReader reader(bytes);
  OMNI_ASSIGN_OR_RETURN(const ImageSize size, HeaderSize(&reader));
  if (!SetTransforms(&reader)) return Corrupt(reader);
  const int channels = png_get_channels(reader.png, reader.info);
  const size_t row_bytes = png_get_rowbytes(reader.png, reader.info);
  if (row_bytes != static_cast<size_t>(size.width) * channels || (channels != 3 && channels != 4)) {
    return absl::DataLossError(absl::StrCat("PNG with ", channels, " channels after expansion"));
  }
  // Deflate shrinks at most 1032-fold: a file that can't hold its picture is not given memory.
  if (row_bytes * size.height / 1032 > bytes.size()) {
    return absl::DataLossError(absl::StrCat("corrupt PNG: ", bytes.size(), " bytes can't hold the ",
                                            size.width, " x ", size.height,
                                            " pixels of its header"));
  }
  RgbBuffer image(size);
  Scratch rgba(channels == 4 ? static_cast<int64_t>(row_bytes) * size.height : 0);
  uint8_t* pixels = image.data.get();
  if (channels == 4) pixels = rgba.get();
  std::vector<png_bytep> rows(size.height);
  for (int32_t y = 0; y < size.height; ++y) rows[y] = pixels + y * row_bytes;
  if (!ReadRows(&reader, rows.data())) return Corrupt(reader);
  if (channels == 4) {
    RemoveAlpha(pixels, int64_t{size.height} * size.width, alpha, image.data.get());
  }
  return image;
}

}  // namespace omni::dataloader
