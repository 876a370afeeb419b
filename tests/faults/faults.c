/* Kill or fail a process at the k-th call that changes a folder.

   Preloaded into a process (LD_PRELOAD), it stands before the C library's calls that write, name,
   remove or flush files. Calls on paths that begin with the armed one are counted over all threads:

       faults_arm(path, k, KILL)    the k-th call is not made; the process dies
       faults_arm(path, k, TEAR)    the k-th write writes half of its bytes; the process dies
       faults_arm(path, k, FAIL)    it and all later ones fail with ENOSPC, flushes with EIO
       faults_arm(path, 0, 0)       counts only

   faults_count() returns the calls counted. Built by the tests with `cc -shared -fPIC -ldl`. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum { KILL = 1, TEAR, FAIL };

static char folder[4096];
static long at;
static int what;
static atomic_long count;

void faults_arm(const char *path, long k, int mode) {
    strncpy(folder, path, sizeof folder - 1);
    at = k, what = mode, count = 0;
}

long faults_count(void) { return count; }

static void die(void) { kill(getpid(), SIGKILL); }

static int is_below(const char *path) {
    return folder[0] && path && strncmp(path, folder, strlen(folder)) == 0;
}

static int is_file_below(int file) {
    char link[64], path[4096];
    if (!folder[0]) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return is_below(path);
}

/* What to do with a call: 0 make it, TEAR or FAIL. */
static int begin(int is_ours, int is_write) {
    if (!is_ours || (what == TEAR && !is_write)) return 0;
    long number = ++count;
    if (what == FAIL) return at && number >= at ? FAIL : 0;
    if (number != at) return 0;
    if (what == KILL) die();
    return what;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define GUARD(ours, fault, call)                                     \
    do {                                                             \
        if (begin(ours, 0) == FAIL) return errno = (fault), -1;      \
        return (call);                                               \
    } while (0)

ssize_t write(int file, const void *data, size_t size) {
    int mode = begin(is_file_below(file), 1);
    if (mode == FAIL) return errno = ENOSPC, -1;
    ssize_t written = REAL(write)(file, data, mode == TEAR ? size / 2 : size);
    if (mode == TEAR) die();
    return written;
}

ssize_t pwrite64(int file, const void *data, size_t size, off64_t offset) {
    int mode = begin(is_file_below(file), 1);
    if (mode == FAIL) return errno = ENOSPC, -1;
    ssize_t written = REAL(pwrite64)(file, data, mode == TEAR ? size / 2 : size, offset);
    if (mode == TEAR) die();
    return written;
}

ssize_t pwrite(int file, const void *data, size_t size, off_t offset) {
    return pwrite64(file, data, size, offset);
}

ssize_t writev(int file, const struct iovec *parts, int n) {
    GUARD(is_file_below(file), ENOSPC, REAL(writev)(file, parts, n));
}

ssize_t sendfile64(int to, int from, off64_t *offset, size_t size) {
    GUARD(is_file_below(to), ENOSPC, REAL(sendfile64)(to, from, offset, size));
}

ssize_t copy_file_range(int from, off64_t *at_from, int to, off64_t *at_to, size_t size,
                        unsigned flags) {
    GUARD(is_file_below(to), ENOSPC,
          REAL(copy_file_range)(from, at_from, to, at_to, size, flags));
}

int ftruncate64(int file, off64_t size) {
    GUARD(is_file_below(file), ENOSPC, REAL(ftruncate64)(file, size));
}

int ftruncate(int file, off_t size) { return ftruncate64(file, size); }

int posix_fallocate64(int file, off64_t offset, off64_t size) { /* returns the error */
    if (begin(is_file_below(file), 0) == FAIL) return ENOSPC;
    return REAL(posix_fallocate64)(file, offset, size);
}

int posix_fallocate(int file, off_t offset, off_t size) {
    return posix_fallocate64(file, offset, size);
}

int fsync(int file) { GUARD(is_file_below(file), EIO, REAL(fsync)(file)); }

int fdatasync(int file) { GUARD(is_file_below(file), EIO, REAL(fdatasync)(file)); }

int rename(const char *from, const char *to) {
    GUARD(is_below(from) || is_below(to), ENOSPC, REAL(rename)(from, to));
}

int renameat(int a, const char *from, int b, const char *to) {
    GUARD(is_below(from) || is_below(to), ENOSPC, REAL(renameat)(a, from, b, to));
}

int mkdir(const char *path, mode_t mode_) {
    GUARD(is_below(path), ENOSPC, REAL(mkdir)(path, mode_));
}

int unlink(const char *path) { GUARD(is_below(path), EIO, REAL(unlink)(path)); }

int unlinkat(int at_, const char *path, int flags) {
    GUARD(is_below(path) || is_file_below(at_), EIO, REAL(unlinkat)(at_, path, flags));
}

int rmdir(const char *path) { GUARD(is_below(path), EIO, REAL(rmdir)(path)); }

int link(const char *from, const char *to) { GUARD(is_below(to), ENOSPC, REAL(link)(from, to)); }

int symlink(const char *from, const char *to) {
    GUARD(is_below(to), ENOSPC, REAL(symlink)(from, to));
}
