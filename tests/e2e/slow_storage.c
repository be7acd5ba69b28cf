// Preloaded into a job: storage that is slow. Reads and writes of files whose path contains
// $SLOW_PATH take as long as $SLOW_BYTES bytes a second allow; with $SLOW_WHEN only while a file of
// that name exists. What was read is counted: for each read one line "path bytes" goes to the file
// $READ_LOG.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static int path_of(int fd, char* path, size_t size) {
  char link[64];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  const ssize_t length = readlink(link, path, size - 1);
  if (length < 0) return 0;
  path[length] = 0;
  if (getenv("SLOW_WHEN") != NULL && access(getenv("SLOW_WHEN"), F_OK) != 0) return 0;
  return getenv("SLOW_PATH") != NULL && strstr(path, getenv("SLOW_PATH")) != NULL;
}

static void be_slow(ssize_t bytes) {
  const char* rate = getenv("SLOW_BYTES");
  if (rate == NULL || bytes <= 0) return;
  const double seconds = (double)bytes / atof(rate);
  const struct timespec time = {(time_t)seconds, (long)((seconds - (time_t)seconds) * 1e9)};
  nanosleep(&time, NULL);
}

ssize_t write(int fd, const void* data, size_t size) {
  ssize_t (*real)(int, const void*, size_t) = dlsym(RTLD_NEXT, "write");
  char path[4096];
  const ssize_t written = real(fd, data, size);
  if (path_of(fd, path, sizeof path)) be_slow(written);
  return written;
}

static void log_read(const char* path, ssize_t bytes) {
  const char* name = getenv("READ_LOG");
  if (name == NULL || bytes <= 0) return;
  ssize_t (*real)(int, const void*, size_t) = dlsym(RTLD_NEXT, "write");
  char line[4200];
  const int length = snprintf(line, sizeof line, "%s %zd\n", path, bytes);
  const int fd = open(name, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  (void)!real(fd, line, length);
  close(fd);
}

ssize_t read(int fd, void* data, size_t size) {
  ssize_t (*real)(int, void*, size_t) = dlsym(RTLD_NEXT, "read");
  char path[4096];
  const ssize_t got = real(fd, data, size);
  if (path_of(fd, path, sizeof path)) {
    log_read(path, got);
    be_slow(got);
  }
  return got;
}

ssize_t pread64(int fd, void* data, size_t size, off64_t offset) {
  ssize_t (*real)(int, void*, size_t, off64_t) = dlsym(RTLD_NEXT, "pread64");
  char path[4096];
  const ssize_t got = real(fd, data, size, offset);
  if (path_of(fd, path, sizeof path)) {
    log_read(path, got);
    be_slow(got);
  }
  return got;
}

ssize_t pread(int fd, void* data, size_t size, off_t offset) {
  return pread64(fd, data, size, offset);
}
