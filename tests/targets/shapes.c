/* Stacks of many shapes under allocations, over and over: what compilers do to frames. Compiled at every level of
 * optimisation, without frame pointers. */
#define _GNU_SOURCE
#include <alloca.h>
#include <pthread.h>
#include <search.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define NOINLINE __attribute__((noinline, noclone))
static volatile unsigned sink;
static void take(void *p) {
    sink += (unsigned)(size_t)p;
    free(p);
}
NOINLINE void take_some(unsigned n) { take(malloc(n % 500 + 1)); }

/* Recursion; tail calls; functions that call each other. */
NOINLINE void deep(unsigned n) {
    if (n) deep(n - 1);
    else take_some(n);
    sink++;
}
NOINLINE void tail(unsigned n) {
    if (n > 100) sink++;
    take_some(n);
}
NOINLINE void odd(unsigned n);
NOINLINE void even(unsigned n) {
    if (n) odd(n - 1);
    else take_some(7);
    sink++;
}
NOINLINE void odd(unsigned n) {
    if (n) even(n - 1);
    else take_some(9);
    sink++;
}

/* Frames whose size is known only at run time, large ones, realigned ones, ones full of saved registers. */
NOINLINE void variable(unsigned n) {
    volatile char room[n * 40 + 1];
    char *more = alloca(n + 16);
    room[n] = more[0] = (char)n;
    take_some(n);
    sink += room[n] + more[0];
}
NOINLINE void large(unsigned n) {
    volatile char room[20000];
    room[n] = 1;
    take_some(n);
    sink += room[n];
}
NOINLINE void aligned(unsigned n) {
    volatile __attribute__((aligned(64))) char room[256];
    room[n & 255] = 1;
    take_some(n);
    sink += room[n & 255];
}
NOINLINE void aligned_variable(unsigned n) {
    volatile __attribute__((aligned(64))) char room[256];
    volatile char *more = alloca(n + 16);
    room[n & 255] = more[0] = 1;
    take_some(n);
    sink += room[n & 255] + more[0];
}
NOINLINE unsigned registers(unsigned a, unsigned b, unsigned c, unsigned d, unsigned e, unsigned f, unsigned g, unsigned h) {
    unsigned i = a * b, j = c * d, k = e * f, l = g * h;
    for (unsigned n = 0; n < 3; n++) {
        take_some(i + n);
        i += j * a, j += k * b, k += l * c, l += i * d;
    }
    return i + j + k + l + a + b + c + d + e + f + g + h;
}
NOINLINE void variadic(const char *format, ...) {
    va_list list;
    char *text = NULL;
    va_start(list, format);
    if (vasprintf(&text, format, list) >= 0) take(text);
    va_end(list);
}

/* Called back out of the C library. */
static int compare(const void *a, const void *b) {
    take_some(3);
    return *(const int *)a - *(const int *)b;
}
static void visit(const void *node, VISIT which, int depth) {
    if (which == postorder || which == leaf) take_some(*(const unsigned *)*(void *const *)node + (unsigned)depth);
}
static int order(const void *a, const void *b) { return *(const int *)a - *(const int *)b; }
NOINLINE void callbacks(void) {
    int numbers[24];
    void *root = NULL;
    for (int n = 0; n < 24; n++) numbers[n] = (n * 7) % 24;
    qsort(numbers, 24, sizeof *numbers, compare);
    for (int n = 0; n < 24; n++) tsearch(&numbers[n], &root, order);
    twalk(root, visit);
    for (int n = 0; n < 24; n++) tdelete(&numbers[n], &root, order);
}

/* Out of signal handlers, on the thread's stack and on one of their own; and jumps. */
static void on_signal(int number) { take_some((unsigned)number); }
NOINLINE void signals(unsigned n) {
    raise(SIGUSR1);
    raise(SIGUSR2);
    sink += n;
}
static __thread jmp_buf way_out;
NOINLINE void jumps(unsigned n) {
    take_some(n);
    longjmp(way_out, 1);
}
NOINLINE void rare(unsigned n) __attribute__((cold));
void rare(unsigned n) {
    take_some(n);
    if (n == 12345) abort();
}

NOINLINE void round_of_all(unsigned n) {
    deep(n % 20);
    tail(n);
    even(n % 13);
    variable(n % 300);
    large(n % 300);
    aligned(n);
    aligned_variable(n % 300);
    sink += registers(n, 2, 3, 4, 5, 6, 7, 8);
    variadic("%u and %s", n % 100, "text");
    callbacks();
    signals(n);
    if (setjmp(way_out) == 0) jumps(n);
    if (n % 3 == 0) rare(n);
    void *p = calloc(1, 10), *q = NULL;
    p = realloc(p, 5000);
    if (posix_memalign(&q, 64, 100) == 0) take(q);
    take(p);
}
static void *thread(void *argument) {
    unsigned offset = (unsigned)(size_t)argument;
    char *stack = malloc(65536);
    stack_t own = {.ss_sp = stack, .ss_size = 65536};
    sigaltstack(&own, NULL);
    for (unsigned n = offset;; n = (n + 1) % 60) {
        round_of_all(n);
        if (n % 10 == 0) usleep(500);
    }
    return NULL;
}

int main(void) {
    struct sigaction plain = {.sa_handler = on_signal}, elsewhere = {.sa_handler = on_signal, .sa_flags = SA_ONSTACK};
    sigaction(SIGUSR1, &plain, NULL);
    sigaction(SIGUSR2, &elsewhere, NULL);
    pthread_t second;
    pthread_create(&second, NULL, thread, (void *)30);
    puts("{\"event\":\"ready\"}");
    fflush(stdout);
    thread(NULL);
}
