/* Preloaded into a run of quoreduce: makes calls on files under given folders fail as a bad disk, a full one or a lost server would.

   FAILING_CALLS = role:call:errno:first:count   role is driver or worker; the first-th such call of a process fails, and those
                                                 after it, count in all
   FAILING_PATHS = folder:folder...              only calls on files in these folders are counted
   FAILING_LOG   = file                          instead of failing, one line "pid role call" is appended for each call        */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static char role[16] = "none", want_role[16], want_call[32], paths[4096], log_path[1024];
static int want_errno;
static long first, count;
static atomic_long seen;

__attribute__((constructor)) static void begin(void) {
    char line[4096];
    int fd = syscall(SYS_openat, AT_FDCWD, "/proc/self/cmdline", O_RDONLY);
    long n = fd < 0 ? 0 : syscall(SYS_read, fd, line, sizeof line - 1);
    if (fd >= 0) syscall(SYS_close, fd);
    for (long i = 0; i < n; i++) if (!line[i]) line[i] = ' ';
    line[n > 0 ? n : 0] = 0;
    if (strstr(line, "quoreduce.runtime.local ")) strcpy(role, "worker");
    else if (strstr(line, "quoreduce.cli ")) strcpy(role, "driver");
    const char *spec = getenv("FAILING_CALLS"), *where = getenv("FAILING_PATHS"), *log = getenv("FAILING_LOG");
    if (where) snprintf(paths, sizeof paths, "%s", where);
    if (log) snprintf(log_path, sizeof log_path, "%s", log);
    if (spec && sscanf(spec, "%15[^:]:%31[^:]:%d:%ld:%ld", want_role, want_call, &want_errno, &first, &count) != 5) _exit(99);
}

static int concerns(const char *path) {
    char copy[4096], *rest = copy, *folder;
    if (!path) return 0;
    strcpy(copy, paths);
    while ((folder = strsep(&rest, ":"))) if (*folder && !strncmp(path, folder, strlen(folder))) return 1;
    return 0;
}

static int fails_at(const char *call, const char *path) {
    if (!strcmp(role, "none") || !concerns(path)) return 0;
    if (*log_path) {
        char line[128];
        int n = snprintf(line, sizeof line, "%d %s %s\n", getpid(), role, call);
        int fd = syscall(SYS_openat, AT_FDCWD, log_path, O_WRONLY | O_CREAT | O_APPEND, 0600);
        if (fd >= 0) { syscall(SYS_write, fd, line, n); syscall(SYS_close, fd); }
        return 0;
    }
    if (strcmp(role, want_role) || strcmp(call, want_call)) return 0;
    long n = atomic_fetch_add(&seen, 1) + 1;
    return n >= first && n < first + count;
}

static int fails_on(const char *call, int fd) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    long n = fd < 0 ? -1 : syscall(SYS_readlinkat, AT_FDCWD, link, path, sizeof path - 1);
    if (n <= 0) return 0;
    path[n] = 0;
    return fails_at(call, path);
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define FAIL return errno = want_errno, -1
#define ON_PATH(type, name, call, args, pass, path) type name args { if (fails_at(call, path)) FAIL; return REAL(name) pass; }
#define ON_FD(type, name, call, args, pass) type name args { if (fails_on(call, fd)) FAIL; return REAL(name) pass; }

#define OPEN(name) int name(const char *path, int flags, ...) { \
    va_list list; va_start(list, flags); mode_t mode = va_arg(list, int); va_end(list); \
    if (fails_at("open", path)) FAIL; return REAL(name)(path, flags, mode); }
#define OPENAT(name) int name(int at, const char *path, int flags, ...) { \
    va_list list; va_start(list, flags); mode_t mode = va_arg(list, int); va_end(list); \
    if (fails_at("open", path)) FAIL; return REAL(name)(at, path, flags, mode); }
OPEN(open) OPEN(open64) OPENAT(openat) OPENAT(openat64)
ON_FD(ssize_t, read, "read", (int fd, void *to, size_t n), (fd, to, n))
ON_FD(ssize_t, write, "write", (int fd, const void *from, size_t n), (fd, from, n))
ON_FD(ssize_t, pread, "pread", (int fd, void *to, size_t n, off_t at), (fd, to, n, at))
ON_FD(ssize_t, pread64, "pread", (int fd, void *to, size_t n, off64_t at), (fd, to, n, at))
ON_FD(ssize_t, preadv, "preadv", (int fd, const struct iovec *v, int n, off_t at), (fd, v, n, at))
ON_FD(ssize_t, preadv64, "preadv", (int fd, const struct iovec *v, int n, off64_t at), (fd, v, n, at))
ON_FD(ssize_t, preadv2, "preadv", (int fd, const struct iovec *v, int n, off_t at, int how), (fd, v, n, at, how))
ON_FD(ssize_t, preadv64v2, "preadv", (int fd, const struct iovec *v, int n, off64_t at, int how), (fd, v, n, at, how))
ON_FD(ssize_t, pwrite, "pwrite", (int fd, const void *from, size_t n, off_t at), (fd, from, n, at))
ON_FD(ssize_t, pwrite64, "pwrite", (int fd, const void *from, size_t n, off64_t at), (fd, from, n, at))
ON_FD(ssize_t, writev, "writev", (int fd, const struct iovec *v, int n), (fd, v, n))
ON_FD(int, fsync, "fsync", (int fd), (fd))
ON_FD(int, fdatasync, "fsync", (int fd), (fd))
ON_FD(int, ftruncate, "ftruncate", (int fd, off_t n), (fd, n))
ON_FD(int, ftruncate64, "ftruncate", (int fd, off64_t n), (fd, n))
ON_FD(int, flock, "flock", (int fd, int how), (fd, how))
ON_FD(int, fstat, "fstat", (int fd, struct stat *to), (fd, to))
ON_FD(int, fstat64, "fstat", (int fd, struct stat64 *to), (fd, to))
ON_FD(off_t, lseek, "lseek", (int fd, off_t at, int whence), (fd, at, whence))
ON_FD(off64_t, lseek64, "lseek", (int fd, off64_t at, int whence), (fd, at, whence))
ON_PATH(int, stat, "stat", (const char *path, struct stat *to), (path, to), path)
ON_PATH(int, stat64, "stat", (const char *path, struct stat64 *to), (path, to), path)
ON_PATH(int, lstat, "stat", (const char *path, struct stat *to), (path, to), path)
ON_PATH(int, lstat64, "stat", (const char *path, struct stat64 *to), (path, to), path)
ON_PATH(int, rename, "rename", (const char *path, const char *to), (path, to), path)
ON_PATH(int, mkdir, "mkdir", (const char *path, mode_t mode), (path, mode), path)
ON_PATH(int, rmdir, "rmdir", (const char *path), (path), path)
ON_PATH(int, unlink, "unlink", (const char *path), (path), path)

int close(int fd) { int fails = fails_on("close", fd); int got = REAL(close)(fd); if (fails) FAIL; return got; }
int posix_fallocate(int fd, off_t at, off_t n) { return fails_on("fallocate", fd) ? want_errno : REAL(posix_fallocate)(fd, at, n); }
int posix_fallocate64(int fd, off64_t at, off64_t n) {
    return fails_on("fallocate", fd) ? want_errno : REAL(posix_fallocate64)(fd, at, n);
}
void *mmap(void *to, size_t n, int how, int flags, int fd, off_t at) {
    if (fails_on("mmap", fd)) return errno = want_errno, MAP_FAILED;
    return REAL(mmap)(to, n, how, flags, fd, at);
}
void *mmap64(void *to, size_t n, int how, int flags, int fd, off64_t at) {
    if (fails_on("mmap", fd)) return errno = want_errno, MAP_FAILED;
    return REAL(mmap64)(to, n, how, flags, fd, at);
}
