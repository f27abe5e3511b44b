/* What `cargo xtask bench` watches: threads that do nothing but malloc and free, ten frames deep.
 *
 *   pairs THREADS RATE SIZE [MORE [moving]]
 *
 * RATE is pairs a second over all threads; 0 is none at all, `max` as many as can be. MORE frames lie
 * below the ten. `moving`: no two calls of malloc one after the other have their stack at the same place.
 * Every 50 ms one line goes to stdout,
 * all since the start:  <wall ns> <CPU ns of this process> <pairs done>
 * Built with frame pointers, so that every tool can walk the stack. Runs until it is killed, or the process that started it ends. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <signal.h>
#include <time.h>

#define MAX_THREADS 256
#define BATCH 64

/* Each on cache lines of its own, so that counting costs the threads nothing. */
struct worker {
    volatile unsigned long pairs;
    char apart[120];
};

static struct worker workers[MAX_THREADS];
static size_t size = 64;
static unsigned long more;
static int moving;
/* Between two batches of one thread; 0 when it never rests. */
static unsigned long pause_ns;

static unsigned long now(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return (unsigned long)t.tv_sec * 1000000000ul + (unsigned long)t.tv_nsec;
}

static void rest_until(unsigned long when) {
    struct timespec t = {(time_t)(when / 1000000000ul), (long)(when % 1000000000ul)};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL) != 0) {
    }
}

/* The frames between the thread's start and malloc. */
__attribute__((noinline)) static void level_10(struct worker *worker) {
    for (int i = 0; i < BATCH; i++) {
        void *block = malloc(size);
        /* Neither call may be thought away. */
        __asm__ volatile("" : : "r"(block) : "memory");
        free(block);
    }
    worker->pairs += BATCH;
}

/* The same with the stack a little further down each time. */
__attribute__((noinline)) static void level_10_moving(struct worker *worker) {
    for (int i = 0; i < BATCH; i++) {
        char room[16 * (1 + i % 4)];
        __asm__ volatile("" : : "r"(room) : "memory");
        void *block = malloc(size);
        __asm__ volatile("" : : "r"(block) : "memory");
        free(block);
    }
    worker->pairs += BATCH;
}

__attribute__((noinline)) static void level_9(struct worker *worker) {
    if (moving)
        level_10_moving(worker);
    else
        level_10(worker);
    __asm__ volatile("" : : : "memory");
}

#define LEVEL(name, next)                                                  \
    __attribute__((noinline)) static void name(struct worker *worker) {    \
        next(worker);                                                      \
        __asm__ volatile("" : : : "memory");                               \
    }

LEVEL(level_8, level_9)
LEVEL(level_7, level_8)
LEVEL(level_6, level_7)
LEVEL(level_5, level_6)
LEVEL(level_4, level_5)
LEVEL(level_3, level_4)
LEVEL(level_2, level_3)

__attribute__((noinline)) static void *level_1(void *argument) {
    struct worker *worker = argument;
    for (unsigned long next = now(CLOCK_MONOTONIC);;) {
        level_2(worker);
        if (pause_ns != 0) {
            next += pause_ns;
            rest_until(next);
        }
    }
    return NULL;
}

__attribute__((noinline)) static void deeper(struct worker *worker, unsigned long frames) {
    if (frames == 0)
        level_1(worker);
    else
        deeper(worker, frames - 1);
    __asm__ volatile("" : : : "memory");
}

/* The first of MORE frames. */
static void *begin(void *worker) {
    if (more == 1)
        level_1(worker);
    else
        deeper(worker, more - 2);
    return NULL;
}

static void start_workers(unsigned threads) {
    for (unsigned i = 0; i < threads; i++) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, more == 0 ? level_1 : begin, &workers[i]) != 0) {
            fprintf(stderr, "pairs: cannot start thread %u\n", i);
            exit(1);
        }
    }
}

static unsigned long pairs_done(unsigned threads) {
    unsigned long sum = 0;
    for (unsigned i = 0; i < threads; i++)
        sum += workers[i].pairs;
    return sum;
}

int main(int argc, char **argv) {
    unsigned threads = argc >= 4 && argc <= 6 ? (unsigned)atoi(argv[1]) : 0;
    if (threads == 0 || threads > MAX_THREADS) {
        fprintf(stderr, "usage: pairs THREADS RATE|max SIZE [MORE [moving]] (1 to %d threads)\n", MAX_THREADS);
        return 2;
    }
    /* Not to outlive who started us. */
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    size = strtoul(argv[3], NULL, 10);
    more = argc >= 5 ? strtoul(argv[4], NULL, 10) : 0;
    moving = argc == 6 && strcmp(argv[5], "moving") == 0;
    unsigned long rate = strcmp(argv[2], "max") == 0 ? 0 : strtoul(argv[2], NULL, 10);
    if (rate != 0)
        pause_ns = BATCH * 1000000000ul * threads / rate;
    if (rate != 0 || strcmp(argv[2], "max") == 0)
        start_workers(threads);

    setvbuf(stdout, NULL, _IOLBF, 0);
    unsigned long start = now(CLOCK_MONOTONIC);
    for (unsigned long next = start;;) {
        printf("%lu %lu %lu\n", now(CLOCK_MONOTONIC) - start, now(CLOCK_PROCESS_CPUTIME_ID), pairs_done(threads));
        next += 50000000ul;
        rest_until(next);
    }
}
