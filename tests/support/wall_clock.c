/* Loaded into a process, adds to its wall clock what a file holds: a signed number of nanoseconds, mapped.
 *
 * The monotonic clock stays as it is, as it does where a machine's clock is set. Waits until a moment of the
 * wall clock are given to the kernel in its own time; those by the monotonic clock are told by how small
 * their moments are.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define SECOND 1000000000LL

static volatile int64_t *mapped;

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("WALL_CLOCK_FILE");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0) return;
    void *place = mmap(NULL, sizeof *mapped, PROT_READ, MAP_SHARED, file, 0);
    if (place != MAP_FAILED) mapped = place;
    close(file);
}

static int64_t offset(void) { return mapped ? *mapped : 0; }

static struct timespec moved(struct timespec at, int64_t by) {
    int64_t nanoseconds = at.tv_nsec + by % SECOND + SECOND;
    at.tv_sec += by / SECOND - 1 + nanoseconds / SECOND;
    at.tv_nsec = nanoseconds % SECOND;
    return at;
}

#define REAL(name) ((__typeof__(&name))real(#name))

static void *real(const char *name) {
    void *found = dlvsym(RTLD_NEXT, name, "GLIBC_2.3.2"); /* pthread_cond_timedwait has an older one too */
    return found ? found : dlsym(RTLD_NEXT, name);
}

int clock_gettime(clockid_t id, struct timespec *now) {
    static __typeof__(&clock_gettime) next;
    if (!next) next = REAL(clock_gettime);
    int code = next(id, now);
    if (code == 0 && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) *now = moved(*now, offset());
    return code;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec at;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &at);
    now->tv_sec = at.tv_sec;
    now->tv_usec = at.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *now) {
    struct timespec at;
    clock_gettime(CLOCK_REALTIME, &at);
    if (now) *now = at.tv_sec;
    return at.tv_sec;
}

static struct timespec kernels(const struct timespec *until) {
    return until->tv_sec > 1000 * 1000 * 1000 ? moved(*until, -offset()) : *until;
}

int pthread_cond_timedwait(pthread_cond_t *restrict c, pthread_mutex_t *restrict m,
                           const struct timespec *restrict until) {
    static __typeof__(&pthread_cond_timedwait) next;
    if (!next) next = REAL(pthread_cond_timedwait);
    struct timespec at = kernels(until);
    return next(c, m, &at);
}

int pthread_cond_clockwait(pthread_cond_t *restrict c, pthread_mutex_t *restrict m, clockid_t id,
                           const struct timespec *restrict until) {
    static __typeof__(&pthread_cond_clockwait) next;
    if (!next) next = REAL(pthread_cond_clockwait);
    struct timespec at = kernels(until);
    return next(c, m, id, &at);
}

int sem_timedwait(sem_t *restrict s, const struct timespec *restrict until) {
    static __typeof__(&sem_timedwait) next;
    if (!next) next = REAL(sem_timedwait);
    struct timespec at = kernels(until);
    return next(s, &at);
}
