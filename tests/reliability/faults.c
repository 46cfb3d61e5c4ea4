/* Lets the n-th change of a file below a folder fail, as a full, broken or vanished disk would.

   Loaded before the C library. `faults_arm(folder, n, mode)` counts from then on: opening for writing, writing, syncing,
   renaming, cutting and unlinking below the folder. In mode 0 the n-th fails, in mode 1 it and all after it fail, and
   in mode 2 the process ends there, as by a kill. `faults_seen()` gives the count so far. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static char root[PATH_MAX];
static long when = -1, seen = 0;
static int mode = 0;

void faults_arm(const char *folder, long n, int how) {
  strncpy(root, folder, sizeof root - 1);
  when = n;
  seen = 0;
  mode = how;
}
long faults_seen(void) { return seen; }

static int below(const char *path) {
  char whole[PATH_MAX * 2];
  if (!root[0] || !path) return 0;
  if (path[0] != '/') {
    char here[PATH_MAX];
    if (!getcwd(here, sizeof here)) return 0;
    snprintf(whole, sizeof whole, "%s/%s", here, path);
    path = whole;
  }
  return strncmp(path, root, strlen(root)) == 0;
}

static int below_descriptor(int descriptor) {
  char link[64], path[PATH_MAX];
  if (!root[0]) return 0;
  snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
  ssize_t length = readlink(link, path, sizeof path - 1);
  if (length < 0) return 0;
  path[length] = 0;
  return below(path);
}

static int fails(void) {
  if (when < 0) return 0;
  long now = seen++;
  if (mode == 1 ? now < when : now != when) return 0;
  if (mode == 2) _exit(137);
  errno = mode == 1 ? EIO : ENOSPC;
  return 1;
}

#define REAL(type, name, ...) \
  static type (*real)(__VA_ARGS__); \
  if (!real) real = (type(*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)

static int creating(int flags) { return (flags & O_ACCMODE) != O_RDONLY; }

#define OPEN(function, name) \
  int function(const char *path, int flags, ...) { \
    REAL(int, name, const char *, int, ...); \
    mode_t permissions = 0; \
    if (flags & (O_CREAT | __O_TMPFILE)) { \
      va_list more; \
      va_start(more, flags); \
      permissions = va_arg(more, mode_t); \
      va_end(more); \
    } \
    if (creating(flags) && below(path) && fails()) return -1; \
    return real(path, flags, permissions); \
  }
OPEN(open, "open")
OPEN(open64, "open64")

#define FOPEN(function, name) \
  FILE *function(const char *path, const char *how) { \
    REAL(FILE *, name, const char *, const char *); \
    if (strpbrk(how, "wa+") && below(path) && fails()) return NULL; \
    return real(path, how); \
  }
FOPEN(fopen, "fopen")
FOPEN(fopen64, "fopen64")

ssize_t write(int descriptor, const void *data, size_t count) {
  REAL(ssize_t, "write", int, const void *, size_t);
  if (below_descriptor(descriptor) && fails()) {
    int reason = errno;
    if (count > 1) real(descriptor, data, count / 2); /* some of it is written */
    errno = reason;
    return -1;
  }
  return real(descriptor, data, count);
}

int fsync(int descriptor) {
  REAL(int, "fsync", int);
  if (below_descriptor(descriptor) && fails()) return -1;
  return real(descriptor);
}

int rename(const char *from, const char *to) {
  REAL(int, "rename", const char *, const char *);
  if (below(to) && fails()) return -1;
  return real(from, to);
}

int unlink(const char *path) {
  REAL(int, "unlink", const char *);
  if (below(path) && fails()) return -1;
  return real(path);
}

int mkdir(const char *path, mode_t permissions) {
  REAL(int, "mkdir", const char *, mode_t);
  if (below(path) && fails()) return -1;
  return real(path, permissions);
}

#define CUT(function, name, type) \
  int function(int descriptor, type length) { \
    REAL(int, name, int, type); \
    if (below_descriptor(descriptor) && fails()) return -1; \
    return real(descriptor, length); \
  }
CUT(ftruncate, "ftruncate", off_t)
CUT(ftruncate64, "ftruncate64", off64_t)
