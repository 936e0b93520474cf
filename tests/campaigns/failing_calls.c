/* File calls that fail on demand, preloaded (LD_PRELOAD) into the processes of a job; tests/campaigns/environment.py drives it.

   FAIL_PLACES   NAME=PREFIX:NAME=PREFIX...  calls on paths below these are looked at, no others
   FAIL_LOG      a file: each such call is written there as "ROLE CALL PLACE"; ROLE is driver or workers
   FAIL_ROLE, FAIL_CALL, FAIL_PLACE          which of these calls are to fail, from number
   FAIL_AT       0 and up, counted in each process, on; the first process that comes so far creates
   FAIL_TOKEN    a file, and its call fails; with
   FAIL_FOREVER=1  so do all such calls, in all processes, from then on
   FAIL_ERRNO    with this number.

   What was closed is closed even if close() fails, as on Linux. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

#define PLACES_MAX 8

static struct { char name[32]; char prefix[PATH_MAX]; } places[PLACES_MAX];
static int place_count, armed, failure, forever;
static long at, seen;
static char role[16], wanted_role[16], wanted_call[16], wanted_place[32], token[PATH_MAX], log_path[PATH_MAX];

static void copy(char *to, size_t size, const char *name) {
    const char *value = getenv(name);
    snprintf(to, size, "%s", value ? value : "");
}

static void find_role(void) {
    char line[4096];
    int fd = syscall(SYS_openat, AT_FDCWD, "/proc/self/cmdline", O_RDONLY | O_CLOEXEC, 0);
    ssize_t n = fd < 0 ? 0 : syscall(SYS_read, fd, line, sizeof line - 1);
    if (fd >= 0) syscall(SYS_close, fd);
    strcpy(role, n > 0 && memmem(line, n, "quoreduce.runtime.local", 23) ? "workers" : "driver");
}

/* Read the environment. A process that is forked, and not executed, calls it itself. */
__attribute__((constructor, visibility("default"))) void fail_arm(void) {
    char text[PATH_MAX], *left = text, *one;
    copy(text, sizeof text, "FAIL_PLACES");
    for (place_count = 0; place_count < PLACES_MAX && (one = strsep(&left, ":")) != NULL;) {
        char *prefix = strchr(one, '=');
        if (prefix == NULL) continue;
        *prefix = 0;
        snprintf(places[place_count].name, sizeof places[0].name, "%s", one);
        snprintf(places[place_count].prefix, sizeof places[0].prefix, "%s", prefix + 1);
        place_count++;
    }
    copy(wanted_role, sizeof wanted_role, "FAIL_ROLE");
    copy(wanted_call, sizeof wanted_call, "FAIL_CALL");
    copy(wanted_place, sizeof wanted_place, "FAIL_PLACE");
    copy(token, sizeof token, "FAIL_TOKEN");
    copy(log_path, sizeof log_path, "FAIL_LOG");
    at = getenv("FAIL_AT") ? atol(getenv("FAIL_AT")) : 0;
    failure = getenv("FAIL_ERRNO") ? atoi(getenv("FAIL_ERRNO")) : 0;
    forever = getenv("FAIL_FOREVER") != NULL && getenv("FAIL_FOREVER")[0] == '1';
    seen = 0;
    find_role();
    armed = place_count > 0;
}

static const char *place_of(const char *path) {
    for (int i = 0; i < place_count; i++) {
        size_t n = strlen(places[i].prefix);
        if (strncmp(path, places[i].prefix, n) == 0 && (path[n] == 0 || path[n] == '/')) return places[i].name;
    }
    return NULL;
}

static void note(const char *call, const char *place) {
    char line[128];
    int n = snprintf(line, sizeof line, "%s %s %s\n", role, call, place);
    int fd = syscall(SYS_openat, AT_FDCWD, log_path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (fd < 0) return;
    syscall(SYS_write, fd, line, n);
    syscall(SYS_close, fd);
}

/* The error that a call on this path is to end with, or 0. */
static int strike(const char *call, const char *path) {
    int before = errno, struck = 0, fd;
    const char *place = place_of(path);
    if (place == NULL) return 0;
    if (log_path[0]) note(call, place);
    if (failure && !strcmp(call, wanted_call) && !strcmp(place, wanted_place) && !strcmp(role, wanted_role)) {
        if (forever && syscall(SYS_faccessat, AT_FDCWD, token, F_OK) == 0) {
            struck = failure;
        } else if (__atomic_fetch_add(&seen, 1, __ATOMIC_RELAXED) == at) {
            fd = syscall(SYS_openat, AT_FDCWD, token, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
            if (fd >= 0) {
                dprintf(fd, "%s\n", path);
                syscall(SYS_close, fd);
                struck = failure;
            }
        }
    }
    errno = before;
    return struck;
}

static int link_of(const char *link, char *path, size_t size) {
    ssize_t n = syscall(SYS_readlinkat, AT_FDCWD, link, path, size - 1);
    if (n < 0) return 0;
    path[n] = 0;
    return 1;
}

static int strike_at(const char *call, int folder, const char *name) {
    char path[2 * PATH_MAX], link[64];
    int before = errno, found;
    if (!armed || name == NULL) return 0;
    if (name[0] == '/') return strike(call, name);
    if (folder == AT_FDCWD) strcpy(link, "/proc/self/cwd");
    else snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
    found = link_of(link, path, PATH_MAX);
    errno = before;
    if (!found) return 0;
    if (name[0]) {
        size_t n = strlen(path);
        snprintf(path + n, sizeof path - n, "/%s", name);
    }
    return strike(call, path);
}

static int strike_fd(const char *call, int fd) { return fd < 0 ? 0 : strike_at(call, fd, ""); }

#define REAL(type, name, ...) \
    static type (*real)(__VA_ARGS__); \
    if (real == NULL) real = (type (*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name)
#define FAIL(error, value) \
    do { int error_ = (error); if (error_) { errno = error_; return value; } } while (0)
#define MODE(last) \
    mode_t mode = 0; \
    if (flags & (O_CREAT | O_TMPFILE)) { va_list more; va_start(more, last); mode = va_arg(more, mode_t); va_end(more); }
#define API __attribute__((visibility("default")))

#define OPEN(name) \
    API int name(const char *path, int flags, ...) { \
        REAL(int, name, const char *, int, ...); MODE(flags) \
        FAIL(strike_at("open", AT_FDCWD, path), -1); return real(path, flags, mode); }
#define OPENAT(name) \
    API int name(int folder, const char *path, int flags, ...) { \
        REAL(int, name, int, const char *, int, ...); MODE(flags) \
        FAIL(strike_at("open", folder, path), -1); return real(folder, path, flags, mode); }
#define ON_FD(type, name, call, arguments, ...) \
    API type name(__VA_ARGS__) { REAL(type, name, __VA_ARGS__); FAIL(strike_fd(call, fd), -1); return real arguments; }
#define ON_PATH(type, name, call, folder, arguments, ...) \
    API type name(__VA_ARGS__) { REAL(type, name, __VA_ARGS__); FAIL(strike_at(call, folder, path), -1); return real arguments; }
#define MMAP(name, offset_t) \
    API void *name(void *where, size_t n, int prot, int flags, int fd, offset_t offset) { \
        REAL(void *, name, void *, size_t, int, int, int, offset_t); \
        FAIL(strike_fd("mmap", fd), (void *)-1); return real(where, n, prot, flags, fd, offset); }
#define FALLOCATE(name, offset_t) \
    API int name(int fd, offset_t offset, offset_t n) { \
        REAL(int, name, int, offset_t, offset_t); \
        int error = strike_fd("fallocate", fd); return error ? error : real(fd, offset, n); }

OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)
ON_FD(ssize_t, read, "read", (fd, to, n), int fd, void *to, size_t n)
ON_FD(ssize_t, pread, "pread", (fd, to, n, offset), int fd, void *to, size_t n, off_t offset)
ON_FD(ssize_t, pread64, "pread", (fd, to, n, offset), int fd, void *to, size_t n, off64_t offset)
ON_FD(ssize_t, write, "write", (fd, from, n), int fd, const void *from, size_t n)
ON_FD(ssize_t, pwrite, "pwrite", (fd, from, n, offset), int fd, const void *from, size_t n, off_t offset)
ON_FD(ssize_t, pwrite64, "pwrite", (fd, from, n, offset), int fd, const void *from, size_t n, off64_t offset)
ON_FD(int, fsync, "fsync", (fd), int fd)
ON_FD(int, fdatasync, "fsync", (fd), int fd)
ON_FD(int, ftruncate, "ftruncate", (fd, n), int fd, off_t n)
ON_FD(int, ftruncate64, "ftruncate", (fd, n), int fd, off64_t n)
ON_FD(int, flock, "flock", (fd, how), int fd, int how)
ON_FD(int, fstat, "stat", (fd, to), int fd, struct stat *to)
ON_FD(int, fstat64, "stat", (fd, to), int fd, struct stat64 *to)
ON_PATH(int, stat, "stat", AT_FDCWD, (path, to), const char *path, struct stat *to)
ON_PATH(int, stat64, "stat", AT_FDCWD, (path, to), const char *path, struct stat64 *to)
ON_PATH(int, lstat, "stat", AT_FDCWD, (path, to), const char *path, struct stat *to)
ON_PATH(int, lstat64, "stat", AT_FDCWD, (path, to), const char *path, struct stat64 *to)
ON_PATH(int, fstatat, "stat", folder, (folder, path, to, flags), int folder, const char *path, struct stat *to, int flags)
ON_PATH(int, fstatat64, "stat", folder, (folder, path, to, flags), int folder, const char *path, struct stat64 *to, int flags)
ON_PATH(int, mkdir, "mkdir", AT_FDCWD, (path, mode), const char *path, mode_t mode)
ON_PATH(int, mkdirat, "mkdir", folder, (folder, path, mode), int folder, const char *path, mode_t mode)
ON_PATH(int, unlink, "unlink", AT_FDCWD, (path), const char *path)
ON_PATH(int, unlinkat, "unlink", folder, (folder, path, flags), int folder, const char *path, int flags)
ON_PATH(int, rmdir, "rmdir", AT_FDCWD, (path), const char *path)
ON_PATH(int, rename, "rename", AT_FDCWD, (path, to), const char *path, const char *to)
ON_PATH(int, renameat, "rename", folder, (folder, path, other, to), int folder, const char *path, int other, const char *to)
ON_PATH(int, chmod, "chmod", AT_FDCWD, (path, mode), const char *path, mode_t mode)
MMAP(mmap, off_t)
MMAP(mmap64, off64_t)
FALLOCATE(posix_fallocate, off_t)
FALLOCATE(posix_fallocate64, off64_t)

API int close(int fd) {
    REAL(int, close, int);
    int error = strike_fd("close", fd), result = real(fd);
    FAIL(error, -1);
    return result;
}

API void *opendir(const char *path) {
    REAL(void *, opendir, const char *);
    FAIL(strike_at("opendir", AT_FDCWD, path), NULL);
    return real(path);
}

API void *fdopendir(int fd) {
    REAL(void *, fdopendir, int);
    FAIL(strike_fd("opendir", fd), NULL);
    return real(fd);
}
