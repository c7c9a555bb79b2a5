/* Faults at chosen calls of the C library, for benchmarks/torture.py: loaded through LD_PRELOAD.

   Calls on paths below one folder are counted, those that change something and those that read.
   A plan says which fault happens at which call; it lies in memory that processes share, so that
   the campaign can tell afterwards, also of a killed process, whether its fault has happened. */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <sys/file.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { NONE, KILL, STOP, ONCE, FULL, READ_ONLY, READ_ONCE, CLOCK, SIGNAL };
enum { NO_LINKS = 1, NO_LOCKS = 2, NO_CASE = 4 };
enum { READS, CHANGES, GROWS };

struct plan {
    int fault, error;        /* error: an errno, or the number of a signal */
    int world, lock_error;   /* what the file system lacks at all times; errno of its locks */
    long at, jump;           /* number of the call, from 1; seconds by which the clock jumps */
    long changes, reads, happened;
};

static struct plan idle, *plan = &idle;
static char root[1024];
static size_t root_length;

void torture_arm(struct plan *next, const char *folder) {
    snprintf(root, sizeof root, "%s", folder);
    root_length = strlen(root);
    plan = next;
}

#define REAL(name) static __typeof__(name) *real; if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

static const char *of_descriptor(int descriptor, char *buffer) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, buffer, 2047);
    if (length < 0) return NULL;
    buffer[length] = 0;
    return buffer;
}

static const char *absolute(int folder, const char *path, char *buffer) {
    char base[2048];
    if (!path) return NULL;
    if (path[0] == '/') snprintf(buffer, 4096, "%s", path);
    else if (folder == AT_FDCWD ? getcwd(base, sizeof base) != NULL : of_descriptor(folder, base) != NULL)
        snprintf(buffer, 4096, "%s/%s", base, path);
    else return NULL;
    return buffer;
}

static int is_below(const char *path) {
    return root_length && path && !strncmp(path, root, root_length) && path[root_length] == '/';
}

/* Return 1 with errno where the call fails. */
static int strikes(const char *path, int kind) {
    if (!root_length || !is_below(path)) return 0;
    long number = __sync_add_and_fetch(kind == READS ? &plan->reads : &plan->changes, 1);
    int fault = plan->fault, is_due = number == plan->at, is_past = number >= plan->at;
    if (fault == NONE || (kind == READS) != (fault == READ_ONCE) || !is_past) return 0;
    if ((fault == FULL && kind != GROWS) || (!is_due && fault != FULL && fault != READ_ONLY)) return 0;
    __sync_add_and_fetch(&plan->happened, 1);
    if (fault == CLOCK) return 0;
    if (fault == KILL) { kill(getpid(), SIGKILL); for (;;) pause(); }
    if (fault == STOP) { kill(getpid(), SIGSTOP); return 0; }
    if (fault == SIGNAL) { kill(getpid(), plan->error); return 0; }
    errno = plan->error;
    return 1;
}

/* A file system that folds case: each part of a path that is not there is looked up again. */
static const char *folded(int folder, const char *path, char *buffer) {
    static __typeof__(access) *real_access; static __typeof__(opendir) *real_opendir;
    if (!(plan->world & NO_CASE) || !path) return path;
    if (!real_access) { real_access = dlsym(RTLD_NEXT, "access"); real_opendir = dlsym(RTLD_NEXT, "opendir"); }
    if (!absolute(folder, path, buffer) || !is_below(buffer)) return path;
    for (char *part = buffer + root_length + 1; part && *part;) {
        char *end = strchr(part, '/');
        if (end) *end = 0;
        if (real_access(buffer, F_OK)) {
            part[-1] = 0;
            DIR *listing = real_opendir(buffer);
            part[-1] = '/';
            for (struct dirent *item; listing && (item = readdir(listing));)
                if (!strcasecmp(item->d_name, part)) { memcpy(part, item->d_name, strlen(part)); break; }
            if (listing) closedir(listing);
        }
        if (end) *end = '/';
        part = end ? end + 1 : NULL;
    }
    return buffer;
}

#define PLACES char at[4096], held[4096], held_too[4096]; (void)at; (void)held; (void)held_too
#define FAILS(folder, path, kind) (root_length && strikes(absolute(folder, path, at), kind))
#define FAILS_AT(descriptor, kind) (root_length && strikes(of_descriptor(descriptor, at), kind))

static int kind_of(int flags) {
    if (flags & (O_CREAT | O_TRUNC)) return GROWS;
    return (flags & O_ACCMODE) == O_RDONLY ? READS : CHANGES;
}

#define OPEN(name) \
int name(const char *path, int flags, ...) { \
    static int (*real)(const char *, int, ...); if (!real) real = dlsym(RTLD_NEXT, #name); \
    mode_t mode = 0; va_list rest; va_start(rest, flags); \
    if (flags & (O_CREAT | O_TMPFILE)) mode = va_arg(rest, mode_t); \
    va_end(rest); PLACES; \
    return FAILS(AT_FDCWD, path, kind_of(flags)) ? -1 : real(folded(AT_FDCWD, path, held), flags, mode); }
OPEN(open)
OPEN(open64)
#define OPENAT(name) \
int name(int folder, const char *path, int flags, ...) { \
    static int (*real)(int, const char *, int, ...); if (!real) real = dlsym(RTLD_NEXT, #name); \
    mode_t mode = 0; va_list rest; va_start(rest, flags); \
    if (flags & (O_CREAT | O_TMPFILE)) mode = va_arg(rest, mode_t); \
    va_end(rest); PLACES; \
    return FAILS(folder, path, kind_of(flags)) ? -1 : real(folder, folded(folder, path, held), flags, mode); }
OPENAT(openat)
OPENAT(openat64)
#define FOPEN(name) \
FILE *name(const char *path, const char *mode) { \
    static FILE *(*real)(const char *, const char *); if (!real) real = dlsym(RTLD_NEXT, #name); PLACES; \
    return FAILS(AT_FDCWD, path, strpbrk(mode, "wa+") ? GROWS : READS) ? NULL : real(folded(AT_FDCWD, path, held), mode); }
FOPEN(fopen)
FOPEN(fopen64)

int mkdir(const char *path, mode_t mode) { REAL(mkdir); PLACES; return FAILS(AT_FDCWD, path, GROWS) ? -1 : real(folded(AT_FDCWD, path, held), mode); }
int mkdirat(int folder, const char *path, mode_t mode) { REAL(mkdirat); PLACES; return FAILS(folder, path, GROWS) ? -1 : real(folder, folded(folder, path, held), mode); }
static int has_no_links(const char *path) { if ((plan->world & NO_LINKS) && is_below(path)) { errno = EPERM; return 1; } return 0; }
int link(const char *from, const char *to) { REAL(link); PLACES; return FAILS(AT_FDCWD, to, GROWS) || has_no_links(at) ? -1 : real(folded(AT_FDCWD, from, held), folded(AT_FDCWD, to, held_too)); }
int linkat(int a, const char *from, int b, const char *to, int flags) { REAL(linkat); PLACES; return FAILS(b, to, GROWS) || has_no_links(at) ? -1 : real(a, folded(a, from, held), b, folded(b, to, held_too), flags); }
int rename(const char *from, const char *to) { REAL(rename); PLACES; return FAILS(AT_FDCWD, to, CHANGES) ? -1 : real(folded(AT_FDCWD, from, held), folded(AT_FDCWD, to, held_too)); }
int renameat(int a, const char *from, int b, const char *to) { REAL(renameat); PLACES; return FAILS(b, to, CHANGES) ? -1 : real(a, folded(a, from, held), b, folded(b, to, held_too)); }
int unlink(const char *path) { REAL(unlink); PLACES; return FAILS(AT_FDCWD, path, CHANGES) ? -1 : real(folded(AT_FDCWD, path, held)); }
int unlinkat(int folder, const char *path, int flags) { REAL(unlinkat); PLACES; return FAILS(folder, path, CHANGES) ? -1 : real(folder, folded(folder, path, held), flags); }
int rmdir(const char *path) { REAL(rmdir); PLACES; return FAILS(AT_FDCWD, path, CHANGES) ? -1 : real(folded(AT_FDCWD, path, held)); }
int chmod(const char *path, mode_t mode) { REAL(chmod); PLACES; return FAILS(AT_FDCWD, path, CHANGES) ? -1 : real(folded(AT_FDCWD, path, held), mode); }
int fchmod(int file, mode_t mode) { REAL(fchmod); PLACES; return FAILS_AT(file, CHANGES) ? -1 : real(file, mode); }
int fsync(int file) { REAL(fsync); PLACES; return FAILS_AT(file, CHANGES) ? -1 : real(file); }
int fdatasync(int file) { REAL(fdatasync); PLACES; return FAILS_AT(file, CHANGES) ? -1 : real(file); }
int ftruncate(int file, off_t size) { REAL(ftruncate); PLACES; return FAILS_AT(file, CHANGES) ? -1 : real(file, size); }
int ftruncate64(int file, off64_t size) { REAL(ftruncate64); PLACES; return FAILS_AT(file, CHANGES) ? -1 : real(file, size); }
int fallocate(int file, int mode, off_t start, off_t size) { REAL(fallocate); PLACES; return FAILS_AT(file, GROWS) ? -1 : real(file, mode, start, size); }

/* Of a write that a kill ends, half is there. */
#define WRITE(half, whole) PLACES; \
    if (plan->fault == KILL && plan->changes + 1 == plan->at && size > 1 && is_below(of_descriptor(file, at))) half; \
    return FAILS_AT(file, GROWS) ? -1 : whole
ssize_t write(int file, const void *data, size_t size) { REAL(write); WRITE((void)!real(file, data, size / 2), real(file, data, size)); }
ssize_t pwrite(int file, const void *data, size_t size, off_t at_) { REAL(pwrite); WRITE((void)!real(file, data, size / 2, at_), real(file, data, size, at_)); }
ssize_t pwrite64(int file, const void *data, size_t size, off64_t at_) { REAL(pwrite64); WRITE((void)!real(file, data, size / 2, at_), real(file, data, size, at_)); }
ssize_t writev(int file, const struct iovec *parts, int n) { REAL(writev); PLACES; return FAILS_AT(file, GROWS) ? -1 : real(file, parts, n); }
ssize_t sendfile(int to, int from, off_t *start, size_t n) { REAL(sendfile); PLACES; return FAILS_AT(to, GROWS) ? -1 : real(to, from, start, n); }
ssize_t sendfile64(int to, int from, off64_t *start, size_t n) { REAL(sendfile64); PLACES; return FAILS_AT(to, GROWS) ? -1 : real(to, from, start, n); }
ssize_t read(int file, void *data, size_t size) { REAL(read); PLACES; return FAILS_AT(file, READS) ? -1 : real(file, data, size); }
ssize_t pread(int file, void *data, size_t size, off_t start) { REAL(pread); PLACES; return FAILS_AT(file, READS) ? -1 : real(file, data, size, start); }
ssize_t pread64(int file, void *data, size_t size, off64_t start) { REAL(pread64); PLACES; return FAILS_AT(file, READS) ? -1 : real(file, data, size, start); }
DIR *opendir(const char *path) { REAL(opendir); PLACES; return FAILS(AT_FDCWD, path, READS) ? NULL : real(folded(AT_FDCWD, path, held)); }

int flock(int file, int operation) {
    REAL(flock); PLACES;
    if ((plan->world & NO_LOCKS) && is_below(of_descriptor(file, at))) { errno = plan->lock_error; return -1; }
    return real(file, operation);
}

int access(const char *path, int mode) { REAL(access); PLACES; return real(folded(AT_FDCWD, path, held), mode); }
int stat(const char *path, struct stat *status) { REAL(stat); PLACES; return real(folded(AT_FDCWD, path, held), status); }
int lstat(const char *path, struct stat *status) { REAL(lstat); PLACES; return real(folded(AT_FDCWD, path, held), status); }
int fstatat(int folder, const char *path, struct stat *status, int flags) { REAL(fstatat); PLACES; return real(folder, folded(folder, path, held), status, flags); }

static long jumped(void) { return plan->fault == CLOCK && plan->changes >= plan->at ? plan->jump : 0; }
int clock_gettime(clockid_t clock, struct timespec *now) {
    REAL(clock_gettime);
    int code = real(clock, now);
    if (!code && clock == CLOCK_REALTIME) now->tv_sec += jumped();
    return code;
}
time_t time(time_t *now) {
    REAL(time);
    time_t seconds = real(NULL) + jumped();
    if (now) *now = seconds;
    return seconds;
}
int gettimeofday(struct timeval *now, void *zone) {
    REAL(gettimeofday);
    int code = real(now, zone);
    if (!code) now->tv_sec += jumped();
    return code;
}
