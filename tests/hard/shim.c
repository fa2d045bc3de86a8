/* Put under a process with LD_PRELOAD: a disk that fills up, and a clock that jumps. Quiet until it is told:

   fault_room(folder, bytes)   files under the folder take so many bytes more in all; then every write to them fails
                               with ENOSPC, after taking what still fits, as on a full disk. -1: room without end
   fault_clock(seconds)        the wall clock is off by up to so many seconds, another number at every reading
*/
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

static long room = -1, clock_range = 0;
static char folder[4096];
static unsigned long jumps = 88172645463325252UL;

void fault_room(const char *where, long bytes) {
    snprintf(folder, sizeof folder, "%s", where);
    room = bytes;
}

long fault_room_left(void) { return room; }

void fault_clock(long seconds) { clock_range = seconds; }

static int is_inside(int file) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return strncmp(path, folder, strlen(folder)) == 0;
}

/* How many of `count` bytes the disk still takes; -1 with ENOSPC where it takes none. */
static ssize_t taken(int file, size_t count) {
    if (room < 0 || count == 0 || !is_inside(file)) return (ssize_t)count;
    long before = __sync_fetch_and_sub(&room, (long)count);
    if (before >= (long)count) return (ssize_t)count;
    room = 0;
    if (before > 0) return before;
    errno = ENOSPC;
    return -1;
}

ssize_t write(int file, const void *data, size_t count) {
    static ssize_t (*real)(int, const void *, size_t);
    if (!real) real = dlsym(RTLD_NEXT, "write");
    ssize_t fits = taken(file, count);
    return fits < 0 ? fits : real(file, data, (size_t)fits);
}

ssize_t pwrite(int file, const void *data, size_t count, off_t at) {
    static ssize_t (*real)(int, const void *, size_t, off_t);
    if (!real) real = dlsym(RTLD_NEXT, "pwrite");
    ssize_t fits = taken(file, count);
    return fits < 0 ? fits : real(file, data, (size_t)fits, at);
}

ssize_t pwrite64(int file, const void *data, size_t count, off64_t at) {
    static ssize_t (*real)(int, const void *, size_t, off64_t);
    if (!real) real = dlsym(RTLD_NEXT, "pwrite64");
    ssize_t fits = taken(file, count);
    return fits < 0 ? fits : real(file, data, (size_t)fits, at);
}

ssize_t writev(int file, const struct iovec *parts, int num) {
    static ssize_t (*real)(int, const struct iovec *, int);
    if (!real) real = dlsym(RTLD_NEXT, "writev");
    size_t count = 0;
    for (int i = 0; i < num; i++) count += parts[i].iov_len;
    if (taken(file, count) < (ssize_t)count) {
        errno = ENOSPC;
        return -1;
    }
    return real(file, parts, num);
}

/* FILE streams of C write past `write`: torch's and others' go through here. */
size_t fwrite(const void *data, size_t size, size_t num, FILE *stream) {
    static size_t (*real)(const void *, size_t, size_t, FILE *);
    if (!real) real = dlsym(RTLD_NEXT, "fwrite");
    if (room >= 0 && taken(fileno(stream), size * num) < (ssize_t)(size * num)) {
        errno = ENOSPC;
        return 0;
    }
    return real(data, size, num, stream);
}

static long jump(void) {
    if (clock_range <= 0) return 0;
    jumps ^= jumps << 13;
    jumps ^= jumps >> 7;
    jumps ^= jumps << 17;
    return (long)(jumps % (unsigned long)(2 * clock_range)) - clock_range;
}

int clock_gettime(clockid_t clock, struct timespec *when) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int status = real(clock, when);
    if (clock == CLOCK_REALTIME) when->tv_sec += jump();
    return status;
}

int gettimeofday(struct timeval *when, void *zone) {
    static int (*real)(struct timeval *, void *);
    if (!real) real = dlsym(RTLD_NEXT, "gettimeofday");
    int status = real(when, zone);
    when->tv_sec += jump();
    return status;
}

time_t time(time_t *when) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (when) *when = now.tv_sec;
    return now.tv_sec;
}
