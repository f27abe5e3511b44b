/* Signal handlers that allocate while an allocation is interrupted, that jump out of it, or that end the thread in
 * the middle of it. The program brings its own allocator, for which all this is safe. */
#include "bundled.h"
#include "truth.h"
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/time.h>

/* Blocks are counted without the table: it takes a lock. */
static int interrupted, in_handler, on_timer, jumped, after_jump, thread_before, thread_cut, thread_after, steady;
static __thread volatile int armed, depth;
static __thread sigjmp_buf way_out;

NOINLINE void *signal_interrupted(size_t n) {
    void *p = malloc(n);
    if (p) truth_count_alloc(interrupted, n);
    return p;
}
NOINLINE void *signal_in_handler(size_t n) {
    void *p = malloc(n);
    if (p) truth_count_alloc(in_handler, n);
    return p;
}
NOINLINE void signal_on_timer(int number) {
    (void)number;
    void *p = malloc(48);
    if (p) truth_count_alloc(on_timer, 48);
    void *q = malloc(80);
    if (q) truth_count_alloc(on_timer, 80);
    free(q);
    if (q) truth_count_free(on_timer, 80);
}
NOINLINE void *signal_steady(size_t n) {
    void *p = malloc(n);
    if (p) truth_count_alloc(steady, n);
    return p;
}

static void raise_in_the_middle(void) {
    if (!armed) return;
    armed = 0;
    raise(SIGUSR1);
}

static void handler_that_allocates(int number) {
    (void)number;
    void *p = signal_in_handler(32);
    void *q = signal_in_handler(64);
    free(p);
    if (p) truth_count_free(in_handler, 32);
    if (++depth < 3) { /* interrupt again, inside the handler's own allocation */
        armed = 1;
        signal_in_handler(128);
    }
    depth--;
    (void)q;
}
static void handler_that_jumps(int number) {
    (void)number;
    siglongjmp(way_out, 1);
}
static void handler_that_ends_the_thread(int number) {
    (void)number;
    pthread_exit(NULL);
}

static void handle(int number, void (*handler)(int), int flags) {
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = handler;
    action.sa_flags = flags;
    sigaction(number, &action, NULL);
}

static void nested(int flags) {
    handle(SIGUSR1, handler_that_allocates, SA_NODEFER | flags);
    for (int i = 0; i < 50; i++) {
        armed = 1;
        void *p = signal_interrupted(100 + (size_t)i);
        if (p && i % 2) {
            free(p);
            truth_count_free(interrupted, 100 + (size_t)i);
        }
    }
}

NOINLINE void signal_jumped(void) { /* its calls never return */
    void *p = malloc(1000);
    if (p) truth_count_alloc(jumped, 1000);
}
NOINLINE void signal_after_jump(void) {
    void *p = malloc(2000);
    if (p) truth_count_alloc(after_jump, 2000);
}
NOINLINE void deeper(int levels) {
    volatile char room[300];
    room[0] = 1;
    if (levels) deeper(levels - 1);
    else signal_jumped();
    room[1] = room[0];
}
static void jumps(int flags) {
    handle(SIGUSR1, handler_that_jumps, SA_NODEFER | flags);
    for (int i = 0; i < 50; i++) {
        if (sigsetjmp(way_out, 1) == 0) {
            armed = 1;
            deeper(i % 10);
            truth_die("a jump was expected");
        }
        signal_after_jump();
    }
}

NOINLINE void thread_allocates_before(void) {
    if (malloc(300)) truth_count_alloc(thread_before, 300);
}
NOINLINE void thread_is_cut_off(void) {
    if (malloc(400)) truth_count_alloc(thread_cut, 400);
}
NOINLINE void thread_allocates_after(void) {
    if (malloc(500)) truth_count_alloc(thread_after, 500);
}
static void *cut_thread(void *argument) {
    thread_allocates_before();
    armed = 1;
    thread_is_cut_off();
    return argument;
}
static void *whole_thread(void *argument) {
    thread_allocates_after();
    return argument;
}
/* The first pthread_exit of a program loads libgcc_s, on the stack of whoever calls it: not part of this test. */
static void *loads_the_unwinder(void *argument) {
    pthread_exit(argument);
}
static void load_the_unwinder(void) {
    pthread_t thread;
    if (pthread_create(&thread, NULL, loads_the_unwinder, NULL)) truth_die("pthread_create failed");
    pthread_join(thread, NULL);
}
static void thread_exits(void) {
    handle(SIGUSR1, handler_that_ends_the_thread, 0);
    for (int i = 0; i < 30; i++) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, cut_thread, NULL)) truth_die("pthread_create failed");
        pthread_join(thread, NULL);
        if (pthread_create(&thread, NULL, whole_thread, NULL)) truth_die("pthread_create failed");
        pthread_join(thread, NULL);
    }
}

/* A timer that fires as often as the kernel lets it, over a loop that allocates. */
static void timer(int flags) {
    handle(SIGALRM, signal_on_timer, flags);
    struct itimerval often = {{0, 200}, {0, 200}}, never = {{0, 0}, {0, 0}};
    setitimer(ITIMER_REAL, &often, NULL);
    for (int i = 0; i < 30000; i++) {
        size_t n = 16 + (size_t)i % 100;
        void *p = signal_steady(n);
        if (p && i % 4) {
            free(p);
            truth_count_free(steady, n);
        }
    }
    setitimer(ITIMER_REAL, &never, NULL);
    handle(SIGALRM, SIG_IGN, 0);
}

int main(void) {
    static unsigned char stack[1 << 16];
    load_the_unwinder();
    truth_ready();
    interrupted = truth_site("signal_interrupted");
    in_handler = truth_site("signal_in_handler");
    on_timer = truth_site("signal_on_timer");
    jumped = truth_site("signal_jumped");
    after_jump = truth_site("signal_after_jump");
    thread_before = truth_site("thread_allocates_before");
    thread_cut = truth_site("thread_is_cut_off");
    thread_after = truth_site("thread_allocates_after");
    steady = truth_site("signal_steady");
    stack_t alternative = {.ss_sp = stack, .ss_flags = 0, .ss_size = sizeof stack};
    for (int part = 0; truth_wait(); part++) {
        int flags = part % 2 ? SA_ONSTACK : 0; /* first on the thread's own stack, then on another */
        if (flags && sigaltstack(&alternative, NULL)) truth_die("sigaltstack failed");
        bundled_in_the_middle = raise_in_the_middle;
        nested(flags);
        jumps(flags);
        thread_exits();
        bundled_in_the_middle = NULL;
        timer(flags);
        truth_print();
        truth_done();
    }
    return 0;
}
