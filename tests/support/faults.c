/* A fault-injecting layer below Python and Rust, for LD_PRELOAD: one call that changes a chosen file goes wrong.
 * Only calls on files whose path contains `part` count, from 1. Driven by faults.py. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

enum { NONE, NO_SPACE, IO_ERROR, SHORT_WRITE, KILL, FULL_DISK };

static char part[4096];
static atomic_int kind = NONE;
static atomic_long due, seen;

#define REAL(name, result, ...) ((result(*)(__VA_ARGS__))dlsym(RTLD_NEXT, name))

void faults_arm(const char *file, int what, long at) {
  snprintf(part, sizeof part, "%s", file);
  due = at, seen = 0, kind = what;
}

long faults_seen(void) { return seen; }

__attribute__((constructor)) static void from_environment(void) {
  const char *file = getenv("FAULT_PART");
  if (file) faults_arm(file, atoi(getenv("FAULT_KIND")), atol(getenv("FAULT_AT")));
}

static int matches(const char *path) { return kind != NONE && path && strstr(path, part) != NULL; }

static int matches_file(int file) {
  char link[64], path[4096];
  if (kind == NONE) return 0;
  snprintf(link, sizeof link, "/proc/self/fd/%d", file);
  ssize_t length = readlink(link, path, sizeof path - 1);
  if (length < 0) return 0;
  path[length] = 0;
  return matches(path);
}

/* Whether this call goes wrong. */
static int hit(void) {
  long number = ++seen;
  return number == due || (kind == FULL_DISK && number > due);
}

static int fail(void) {
  if (kind == KILL) kill(getpid(), SIGKILL);
  errno = kind == IO_ERROR ? EIO : ENOSPC;
  return -1;
}

ssize_t write(int file, const void *data, size_t count) {
  ssize_t (*real)(int, const void *, size_t) = REAL("write", ssize_t, int, const void *, size_t);
  if (!matches_file(file) || !hit()) return real(file, data, count);
  /* Half of the data arrives before the disk is full or the process is killed. */
  ssize_t half = 0;
  if (seen == due && kind != IO_ERROR && count > 1) half = real(file, data, count / 2);
  if (kind == SHORT_WRITE || (kind == FULL_DISK && half > 0)) return half > 0 ? half : real(file, data, count);
  return fail();
}

ssize_t writev(int file, const struct iovec *parts, int count) {
  if (!matches_file(file)) return REAL("writev", ssize_t, int, const struct iovec *, int)(file, parts, count);
  for (int i = 0; i < count; i++)
    if (parts[i].iov_len) return write(file, parts[i].iov_base, parts[i].iov_len);
  return 0;
}

int fsync(int file) {
  if (kind == SHORT_WRITE || !matches_file(file) || !hit()) return REAL("fsync", int, int)(file);
  return fail();
}

int rename(const char *from, const char *to) {
  if (kind == SHORT_WRITE || !matches(to) || !hit()) return REAL("rename", int, const char *, const char *)(from, to);
  return fail();
}

static int open_as(const char *name, const char *path, int flags, mode_t mode) {
  if ((flags & O_CREAT) && kind != SHORT_WRITE && matches(path) && hit()) return fail();
  return REAL(name, int, const char *, int, ...)(path, flags, mode);
}

#define OPEN(name)                                     \
  int name(const char *path, int flags, ...) {         \
    va_list more;                                      \
    va_start(more, flags);                             \
    mode_t mode = flags & O_CREAT ? va_arg(more, mode_t) : 0; \
    va_end(more);                                      \
    return open_as(#name, path, flags, mode);          \
  }
OPEN(open)
OPEN(open64)
