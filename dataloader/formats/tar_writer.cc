#include "dataloader/formats/tar_writer.h"

#include <archive.h>
#include <archive_entry.h>
#include <unistd.h>

#include <cstdio>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/base/status.h"

namespace omni::dataloader {

struct TarWriter::Impl {
  ~Impl() {
    if (tar != nullptr) archive_write_free(tar);
    if (!finished) unlink(aside.c_str());
  }
  absl::Status Error() const {
    const char* reason = archive_error_string(tar);
    return absl::InternalError(absl::StrCat(path, ": ", reason == nullptr ? "?" : reason));
  }

  std::string path, aside;
  archive* tar = nullptr;
  bool finished = false;
};

TarWriter::TarWriter(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
TarWriter::~TarWriter() = default;

absl::StatusOr<std::unique_ptr<TarWriter>> TarWriter::Create(const std::string& path) {
  auto impl = std::make_unique<Impl>();
  impl->path = path;
  impl->aside = path + ".tmp";
  impl->tar = archive_write_new();
  archive_write_set_format_ustar(impl->tar);
  if (archive_write_open_filename(impl->tar, impl->aside.c_str()) != ARCHIVE_OK) {
    return impl->Error();
  }
  return std::unique_ptr<TarWriter>(new TarWriter(std::move(impl)));
}

absl::Status TarWriter::Add(const std::string& member_name, absl::string_view bytes) {
  archive_entry* entry = archive_entry_new();
  archive_entry_set_pathname(entry, member_name.c_str());
  archive_entry_set_size(entry, static_cast<int64_t>(bytes.size()));
  archive_entry_set_filetype(entry, AE_IFREG);
  archive_entry_set_perm(entry, 0644);
  archive_entry_set_mtime(entry, 0, 0);
  const bool ok = archive_write_header(impl_->tar, entry) == ARCHIVE_OK &&
                  archive_write_data(impl_->tar, bytes.data(), bytes.size()) ==
                      static_cast<la_ssize_t>(bytes.size());
  archive_entry_free(entry);
  return ok ? absl::OkStatus() : impl_->Error();
}

absl::Status TarWriter::Finish() {
  if (archive_write_close(impl_->tar) != ARCHIVE_OK) return impl_->Error();
  if (std::rename(impl_->aside.c_str(), impl_->path.c_str()) != 0) {
    return absl::InternalError(absl::StrCat(impl_->path, ": can't be renamed into place"));
  }
  impl_->finished = true;
  return absl::OkStatus();
}

}  // namespace omni::dataloader
