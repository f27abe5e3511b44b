/* Allocates and frees as fast as it can in all threads and checks that nobody touches its memory. "go" starts it,
 * each later "go" reports progress; the exit code is 1 if anything was ever wrong. Argument: threads. */
#include "truth.h"
#include <pthread.h>

#define SLOTS 64
#define MAX_THREADS 64

struct slot {
    unsigned char *p;
    size_t n;
    unsigned seed;
};
static long long rounds_ok, rounds_bad;
static int stop, threads = 4;

static void fill(struct slot *slot) {
    for (size_t i = 0; i < slot->n; i++) slot->p[i] = (unsigned char)(slot->seed + i * 7u);
}
static int right(const struct slot *slot, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (slot->p[i] != (unsigned char)(slot->seed + i * 7u)) return 0;
    return 1;
}

NOINLINE void *load_allocate(size_t n, int zeroed) {
    void *p = zeroed ? calloc(1, n) : malloc(n);
    KEEP(p);
    return p;
}

static int one_round(struct slot *slot, unsigned random) {
    int good = 1;
    if (slot->p && random % 4 == 0) { /* what was there stays there over a realloc */
        size_t n = random >> 22 | 1, shorter = n < slot->n ? n : slot->n;
        unsigned char *moved = realloc(slot->p, n);
        if (!moved) return 0;
        slot->p = moved;
        good = right(slot, shorter);
        slot->n = n;
        fill(slot);
        return good;
    }
    if (slot->p) good = right(slot, slot->n);
    free(slot->p);
    slot->n = (random >> 22) + 1;
    slot->seed = random;
    int zeroed = random % 3 == 0;
    slot->p = load_allocate(slot->n, zeroed);
    if (!slot->p || ((uintptr_t)slot->p & 15) != 0) return 0;
    for (size_t i = 0; zeroed && i < slot->n; i++) good &= slot->p[i] == 0;
    fill(slot);
    return good;
}

static void *work(void *argument) {
    struct slot slots[SLOTS];
    memset(slots, 0, sizeof slots);
    unsigned random = (unsigned)(uintptr_t)argument * 2654435761u + 12345u;
    while (!__atomic_load_n(&stop, __ATOMIC_RELAXED)) {
        long long good = 0, bad = 0;
        for (int i = 0; i < 200; i++) {
            random = random * 1664525u + 1013904223u;
            if (one_round(&slots[random >> 8 & (SLOTS - 1)], random)) good++;
            else bad++;
        }
        TRUTH_ADD(rounds_ok, good);
        TRUTH_ADD(rounds_bad, bad);
    }
    for (int i = 0; i < SLOTS; i++) free(slots[i].p);
    return NULL;
}

int main(int argc, char **argv) {
    pthread_t ids[MAX_THREADS];
    if (argc > 1) threads = atoi(argv[1]);
    if (threads < 1 || threads > MAX_THREADS) return 2;
    truth_ready();
    int started = 0;
    while (truth_wait()) {
        for (; started < threads; started++)
            if (pthread_create(&ids[started], NULL, work, (void *)(uintptr_t)started)) truth_die("pthread_create failed");
        truth_say("{\"event\":\"load\",\"pid\":%d,\"ok\":%lld,\"bad\":%lld}\n", (int)getpid(), rounds_ok, rounds_bad);
        truth_send();
        truth_done();
    }
    __atomic_store_n(&stop, 1, __ATOMIC_RELAXED);
    for (int i = 0; i < started; i++) pthread_join(ids[i], NULL);
    return rounds_bad != 0;
}
