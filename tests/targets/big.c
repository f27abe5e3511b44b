/* A million live blocks under ten thousand stacks, from 64 threads. A stack is a number, written bit by bit as calls
 * of two functions. */
#include "truth.h"
#include <pthread.h>

#define THREADS 64
#define STACKS 10000
#define BITS 14
#define EACH 100

struct stack_truth {
    long long alloc_bytes, alloc_objects, inuse_bytes, inuse_objects;
};
static struct stack_truth stacks[STACKS];
static void *blocks[STACKS][EACH];
static int part;

static size_t size_of(unsigned id, int number) { return 8 + (id * 31u + (unsigned)number * 17u) % 120u; }

NOINLINE void big_leaf(unsigned id) {
    for (int i = 0; i < EACH; i++) {
        size_t n = size_of(id, i);
        void *p = malloc(n);
        if (!p) truth_die("malloc failed");
        blocks[id][i] = p;
        stacks[id].alloc_bytes += (long long)n; /* one thread only has this stack */
        stacks[id].alloc_objects++;
        stacks[id].inuse_bytes += (long long)n;
        stacks[id].inuse_objects++;
    }
}

NOINLINE void bit_zero(unsigned id, int left);
NOINLINE void bit_one(unsigned id, int left);

static inline __attribute__((always_inline)) void next_bit(unsigned id, int left) {
    if (left == 0) big_leaf(id);
    else if (id >> (left - 1) & 1) bit_one(id, left - 1);
    else bit_zero(id, left - 1);
    __asm__ volatile("" ::: "memory"); /* no tail call */
}
NOINLINE void bit_zero(unsigned id, int left) {
    next_bit(id, left);
    __asm__ volatile("nop # zero" ::: "memory");
}
NOINLINE void bit_one(unsigned id, int left) {
    next_bit(id, left);
    __asm__ volatile("nop # one" ::: "memory");
}

static void let_go(unsigned id, int from, int step) {
    for (int i = from; i < EACH; i += step) {
        if (!blocks[id][i]) continue;
        free(blocks[id][i]);
        blocks[id][i] = NULL;
        stacks[id].inuse_bytes -= (long long)size_of(id, i);
        stacks[id].inuse_objects--;
    }
}

static void *work(void *argument) {
    unsigned self = (unsigned)(uintptr_t)argument;
    for (unsigned id = self; id < STACKS; id += THREADS) {
        if (part == 0) next_bit(id, BITS);
        else let_go(id, part == 1 ? (int)(id % 2) : 0, part == 1 ? 2 : 1);
    }
    return argument;
}

static void print(void) {
    truth_begin_line();
    truth_say("],\"stacks\":[");
    for (unsigned id = 0; id < STACKS; id++) {
        char path[BITS + 1];
        for (int bit = 0; bit < BITS; bit++) path[bit] = (char)('0' + (id >> (BITS - 1 - bit) & 1));
        path[BITS] = 0;
        truth_say("%s[\"%s\",%lld,%lld,%lld,%lld]", id ? "," : "", path, stacks[id].alloc_bytes,
                  stacks[id].alloc_objects, stacks[id].inuse_bytes, stacks[id].inuse_objects);
        if (truth_used > sizeof truth_line / 2) truth_send();
    }
    truth_say("]}\n");
    truth_send();
}

int main(void) {
    truth_ready();
    for (; truth_wait(); part++) {
        pthread_t threads[THREADS];
        for (int i = 0; i < THREADS; i++) {
            if (pthread_create(&threads[i], NULL, work, (void *)(uintptr_t)i)) truth_die("pthread_create failed");
        }
        for (int i = 0; i < THREADS; i++) {
            pthread_join(threads[i], NULL);
            truth_thread_ended();
        }
        print();
        truth_done();
    }
    return 0;
}
