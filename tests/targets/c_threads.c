/* Many threads; every block is allocated in one and freed in another. */
#include "truth.h"
#include <pthread.h>

#define THREADS 64
#define ROUNDS 4000
#define QUEUE 32

struct queue {
    pthread_mutex_t lock;
    void *blocks[QUEUE];
    int count;
};
static struct queue queues[THREADS];
static pthread_barrier_t begin;

NOINLINE void *threads_malloc(size_t n) {
    void *p = malloc(n);
    truth_born(__func__, p, n);
    return p;
}
NOINLINE void *threads_calloc(size_t n) {
    void *p = calloc(1, n);
    truth_born(__func__, p, n);
    return p;
}
NOINLINE void *threads_realloc(void *old, size_t n) {
    struct truth_block before = truth_before_move(old);
    int had_old = old != NULL;
    void *p = realloc(old, n);
    truth_after_move(__func__, before, had_old, p, n);
    return p;
}
static void release(void *p) {
    truth_dies(p);
    free(p);
}
static void *take(struct queue *queue) {
    void *p = NULL;
    pthread_mutex_lock(&queue->lock);
    if (queue->count) p = queue->blocks[--queue->count];
    pthread_mutex_unlock(&queue->lock);
    return p;
}
static int put(struct queue *queue, void *p) {
    int done = 0;
    pthread_mutex_lock(&queue->lock);
    if (queue->count < QUEUE) {
        queue->blocks[queue->count++] = p;
        done = 1;
    }
    pthread_mutex_unlock(&queue->lock);
    return done;
}

static void *work(void *argument) {
    unsigned self = (unsigned)(uintptr_t)argument, random = self * 2654435761u + 1;
    pthread_barrier_wait(&begin);
    for (int i = 0; i < ROUNDS; i++) {
        random = random * 1664525u + 1013904223u;
        size_t n = random >> 20;
        void *p = i % 3 ? threads_malloc(n) : threads_calloc(n + 1);
        if (i % 5 == 0) p = threads_realloc(p, n + 100);
        if (!put(&queues[(self + 1 + random % 7) % THREADS], p)) release(p);
        void *other = take(&queues[self]);
        if (other) release(other);
    }
    return NULL;
}

int main(void) {
    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; i++) pthread_mutex_init(&queues[i].lock, NULL);
    pthread_barrier_init(&begin, NULL, THREADS);
    truth_ready();
    while (truth_wait()) {
        for (int i = 0; i < THREADS; i++)
            if (pthread_create(&threads[i], NULL, work, (void *)(uintptr_t)i)) truth_die("pthread_create failed");
        for (int i = 0; i < THREADS; i++) {
            pthread_join(threads[i], NULL);
            truth_thread_ended();
        }
        truth_print();
        truth_done();
    }
    return 0;
}
