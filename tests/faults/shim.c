/* Preloaded into a process of the tests: counts the calls that change files below one folder, and lets call n meet a
 * fault. Armed by `arm` of a process that has forked, so that one process which has imported everything serves for all n.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static char folder[PATH_MAX];
static atomic_long calls;
static long fault_at;         /* 0: only count */
static int fault_error;       /* errno of the one call that fails; 0: a signal comes before the call */
static int fault_signal;
static int tear;              /* a write first writes half of its bytes */
static int every;             /* also count calls that read, and those of other folders */
static int report = -1;       /* a descriptor to which every call is told, one line each */
static volatile int armed;

void arm(const char *below, long at, int error, int number, int half, int all, int told) {
    strncpy(folder, below, sizeof folder - 1);
    atomic_store(&calls, 0);
    fault_at = at, fault_error = error, fault_signal = number, tear = half, every = all, report = told;
    armed = 1;
}

long disarm(void) {
    armed = 0;
    return atomic_load(&calls);
}

static int is_below(const char *path) {
    size_t length = strlen(folder);
    return strncmp(path, folder, length) == 0 && (path[length] == '/' || path[length] == 0);
}

static void named(char *out, int directory, const char *path) {
    if (path[0] == '/') {
        snprintf(out, PATH_MAX, "%s", path);
        return;
    }
    char link[64], base[PATH_MAX] = "";
    if (directory == AT_FDCWD)
        snprintf(link, sizeof link, "/proc/self/cwd");
    else
        snprintf(link, sizeof link, "/proc/self/fd/%d", directory);
    ssize_t length = readlink(link, base, sizeof base - 1);
    base[length < 0 ? 0 : length] = 0;
    snprintf(out, PATH_MAX, "%.2000s/%.2000s", base, path);
}

/* Returns whether the call is to fail; errno is then set. `descriptor` and `bytes` are those of a write that may tear. */
static int meets(const char *call, const char *path, int descriptor, const void *bytes, size_t size) {
    if (!armed || !(every || is_below(path)))
        return 0;
    long number = atomic_fetch_add(&calls, 1) + 1;
    if (report >= 0) {
        char line[PATH_MAX + 64];
        int length = snprintf(line, sizeof line, "%s %s\n", call, path + (is_below(path) ? strlen(folder) : 0));
        syscall(SYS_write, report, line, (size_t)length);
    }
    if (number != fault_at)
        return 0;
    if (tear && bytes && size > 1)
        syscall(SYS_write, descriptor, bytes, size / 2);
    if (fault_error) {
        errno = fault_error;
        return 1;
    }
    if (fault_signal < 0)
        syscall(SYS_kill, 0, -fault_signal);
    else
        syscall(SYS_kill, (pid_t)syscall(SYS_getpid), fault_signal);
    return 0;
}

static int meets_path(const char *call, int directory, const char *path) {
    if (!armed)
        return 0;
    int before = errno;
    char whole[PATH_MAX];
    named(whole, directory, path);
    errno = before;
    return meets(call, whole, -1, NULL, 0);
}

static int meets_open(const char *call, int descriptor, const void *bytes, size_t size) {
    if (!armed)
        return 0;
    int before = errno;
    char link[64], whole[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, whole, sizeof whole - 1);
    errno = before;
    if (length < 0)
        return 0;
    whole[length] = 0;
    return meets(call, whole, descriptor, bytes, size);
}

#define REAL(kind, name, ...) ((kind(*)(__VA_ARGS__))dlsym(RTLD_NEXT, name))
#define CHANGES (O_CREAT | O_TRUNC)

#define OPEN(name)                                                                        \
    int name(const char *path, int flags, ...) {                                          \
        va_list rest;                                                                     \
        va_start(rest, flags);                                                            \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;           \
        va_end(rest);                                                                     \
        if ((every || flags & CHANGES) && meets_path("open", AT_FDCWD, path))                        \
            return -1;                                                                    \
        return REAL(int, #name, const char *, int, ...)(path, flags, mode);               \
    }
#define OPENAT(name)                                                                      \
    int name(int directory, const char *path, int flags, ...) {                           \
        va_list rest;                                                                     \
        va_start(rest, flags);                                                            \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;           \
        va_end(rest);                                                                     \
        if ((every || flags & CHANGES) && meets_path("open", directory, path))                       \
            return -1;                                                                    \
        return REAL(int, #name, int, const char *, int, ...)(directory, path, flags, mode); \
    }
#define FOPEN(name)                                                                       \
    FILE *name(const char *path, const char *mode) {                                      \
        if (strchr(mode, 'w') && meets_path("open", AT_FDCWD, path))                      \
            return NULL;                                                                  \
        return REAL(FILE *, #name, const char *, const char *)(path, mode);               \
    }
OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)
FOPEN(fopen)
FOPEN(fopen64)

#define WRITE(name, types, arguments, bytes, size)                                        \
    ssize_t name types {                                                                  \
        if (meets_open(#name, descriptor, bytes, size))                                   \
            return -1;                                                                    \
        typedef ssize_t(*kind) types;                                                     \
        return ((kind)dlsym(RTLD_NEXT, #name))arguments;                                  \
    }
WRITE(write, (int descriptor, const void *data, size_t size), (descriptor, data, size), data, size)
WRITE(writev, (int descriptor, const struct iovec *parts, int count), (descriptor, parts, count), parts->iov_base, parts->iov_len)
WRITE(pwrite, (int descriptor, const void *data, size_t size, off_t at), (descriptor, data, size, at), NULL, 0)
WRITE(pwrite64, (int descriptor, const void *data, size_t size, off64_t at), (descriptor, data, size, at), NULL, 0)
WRITE(sendfile, (int descriptor, int from, off_t *at, size_t size), (descriptor, from, at, size), NULL, 0)
WRITE(sendfile64, (int descriptor, int from, off64_t *at, size_t size), (descriptor, from, at, size), NULL, 0)

ssize_t copy_file_range(int from, off64_t *in, int descriptor, off64_t *out, size_t size, unsigned flags) {
    if (meets_open("copy_file_range", descriptor, NULL, 0))
        return -1;
    return REAL(ssize_t, "copy_file_range", int, off64_t *, int, off64_t *, size_t, unsigned)(from, in, descriptor, out, size, flags);
}

ssize_t read(int descriptor, void *data, size_t size) {
    if (every && meets_open("read", descriptor, NULL, 0))
        return -1;
    return REAL(ssize_t, "read", int, void *, size_t)(descriptor, data, size);
}

int close(int descriptor) {
    if (every && meets_open("close", descriptor, NULL, 0))
        return -1;
    return REAL(int, "close", int)(descriptor);
}

int flock(int descriptor, int operation) {
    int answer = REAL(int, "flock", int, int)(descriptor, operation);
    if (every)
        meets_open("flock", descriptor, NULL, 0);
    return answer;
}

#define ON_OPEN(name, types, arguments)                                                   \
    int name types {                                                                      \
        if (meets_open(#name, descriptor, NULL, 0))                                       \
            return -1;                                                                    \
        typedef int(*kind) types;                                                         \
        return ((kind)dlsym(RTLD_NEXT, #name))arguments;                                  \
    }
ON_OPEN(fsync, (int descriptor), (descriptor))
ON_OPEN(fdatasync, (int descriptor), (descriptor))
ON_OPEN(ftruncate, (int descriptor, off_t size), (descriptor, size))
ON_OPEN(ftruncate64, (int descriptor, off64_t size), (descriptor, size))
ON_OPEN(fallocate, (int descriptor, int mode, off_t at, off_t size), (descriptor, mode, at, size))
ON_OPEN(fallocate64, (int descriptor, int mode, off64_t at, off64_t size), (descriptor, mode, at, size))
ON_OPEN(fchmod, (int descriptor, mode_t mode), (descriptor, mode))

#define ON_PATH(name, directory, path, types, arguments)                                  \
    int name types {                                                                      \
        if (meets_path(#name, directory, path))                                           \
            return -1;                                                                    \
        typedef int(*kind) types;                                                         \
        return ((kind)dlsym(RTLD_NEXT, #name))arguments;                                  \
    }
ON_PATH(unlink, AT_FDCWD, path, (const char *path), (path))
ON_PATH(rmdir, AT_FDCWD, path, (const char *path), (path))
ON_PATH(mkdir, AT_FDCWD, path, (const char *path, mode_t mode), (path, mode))
ON_PATH(chmod, AT_FDCWD, path, (const char *path, mode_t mode), (path, mode))
ON_PATH(truncate, AT_FDCWD, path, (const char *path, off_t size), (path, size))
ON_PATH(truncate64, AT_FDCWD, path, (const char *path, off64_t size), (path, size))
ON_PATH(rename, AT_FDCWD, path, (const char *old, const char *path), (old, path))
ON_PATH(link, AT_FDCWD, path, (const char *old, const char *path), (old, path))
ON_PATH(symlink, AT_FDCWD, path, (const char *old, const char *path), (old, path))
ON_PATH(unlinkat, directory, path, (int directory, const char *path, int flags), (directory, path, flags))
ON_PATH(mkdirat, directory, path, (int directory, const char *path, mode_t mode), (directory, path, mode))
ON_PATH(symlinkat, directory, path, (const char *old, int directory, const char *path), (old, directory, path))
ON_PATH(fchmodat, directory, path, (int directory, const char *path, mode_t mode, int flags), (directory, path, mode, flags))
ON_PATH(renameat, directory, path, (int from, const char *old, int directory, const char *path), (from, old, directory, path))
ON_PATH(renameat2, directory, path, (int from, const char *old, int directory, const char *path, unsigned flags), (from, old, directory, path, flags))
ON_PATH(linkat, directory, path, (int from, const char *old, int directory, const char *path, int flags), (from, old, directory, path, flags))
