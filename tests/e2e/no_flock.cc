// LD_PRELOAD: a file system without flock, as Lustre mounted without "-o flock".
#include <cerrno>

extern "C" int flock(int, int) {
  errno = ENOSYS;
  return -1;
}
