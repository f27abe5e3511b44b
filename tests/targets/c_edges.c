/* The cases in which a careless observer counts wrongly. All with the system's own allocator. */
#include "truth.h"
#include <malloc.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>

static volatile size_t huge = (size_t)1 << 62;
static void *kept[64];
static int kept_count;

static void keep(void *p) { kept[kept_count++ % 64] = p; }
NOINLINE void edge_free(void *p) {
    truth_dies(p);
    free(p);
}
NOINLINE void *edge_realloc_inner(const char *name, void *old, size_t n) {
    struct truth_block before = truth_before_move(old);
    int had_old = old != NULL;
    void *p = realloc(old, n);
    truth_after_move(name, before, had_old, p, n);
    return p;
}

NOINLINE void edge_malloc_fails(void) {
    for (int i = 0; i < 10; i++) truth_born(__func__, malloc(huge), huge);
    void *p = malloc(33);
    truth_born(__func__, p, 33);
    keep(p);
}
NOINLINE void edge_calloc_overflows(void) {
    volatile size_t count = (size_t)1 << 33, each = ((size_t)1 << 33) + 5;
    for (int i = 0; i < 10; i++) truth_born(__func__, calloc(count, each), 0);
    void *p = calloc(3, 11);
    truth_born(__func__, p, 33);
    keep(p);
}
NOINLINE void edge_reallocarray_overflows(void) {
    volatile size_t count = (size_t)1 << 33, each = ((size_t)1 << 33) + 5;
    void *p = malloc(77), *kept_block = p;
    truth_born(__func__, p, 77);
    for (int i = 0; i < 10; i++) {
        KEEP(p);
        truth_born(__func__, reallocarray(p, count, each), 0);
        p = kept_block;
    }
    keep(kept_block);
}
NOINLINE void edge_realloc_fails(void) {
    void *p = malloc(55);
    truth_born(__func__, p, 55);
    for (int i = 0; i < 10; i++)
        if (edge_realloc_inner(__func__, p, huge)) truth_die("a huge realloc succeeded");
    keep(p);
}
NOINLINE void edge_realloc_fails_then_free(void) {
    void *p = malloc(56);
    truth_born(__func__, p, 56);
    if (edge_realloc_inner(__func__, p, huge)) truth_die("a huge realloc succeeded");
    edge_free(p);
}
NOINLINE void edge_realloc_to_zero(void) {
    for (int i = 0; i < 10; i++) {
        void *p = malloc(44);
        truth_born(__func__, p, 44);
        keep(edge_realloc_inner(__func__, p, 0));
    }
}
NOINLINE void edge_realloc_of_null(void) {
    for (int i = 0; i < 10; i++) keep(edge_realloc_inner(__func__, NULL, 66));
    keep(edge_realloc_inner(__func__, NULL, 0));
}
NOINLINE void edge_realloc_moves(void) {
    void *p = edge_realloc_inner(__func__, NULL, 100);
    for (int i = 0; i < 10; i++) {
        void *wall = malloc(24); /* stands in the way of growing in place */
        truth_born(__func__, wall, 24);
        p = edge_realloc_inner(__func__, p, 2000u * (unsigned)(i + 1));
    }
    keep(p);
}
NOINLINE void edge_realloc_in_place(void) {
    void *p = edge_realloc_inner(__func__, NULL, 1000);
    for (int i = 0; i < 10; i++) {
        void *q = edge_realloc_inner(__func__, p, 1000 - (unsigned)i * 60);
#ifdef __GLIBC__
        if (q != p) truth_die("a shrinking realloc moved");
#endif
        p = q;
    }
    keep(p);
}
NOINLINE void edge_realloc_of_mapping(void) {
    void *p = edge_realloc_inner(__func__, NULL, 4u << 20); /* served by mmap, moved by mremap */
    p = edge_realloc_inner(__func__, p, 16u << 20);
    p = edge_realloc_inner(__func__, p, 5u << 20);
    keep(p);
    p = edge_realloc_inner(__func__, NULL, 4u << 20);
    p = edge_realloc_inner(__func__, p, 500); /* from a mapping into the heap */
    keep(p);
}
NOINLINE void edge_posix_memalign(void) {
    static const size_t aligns[] = {8, 16, 64, 4096};
    for (int i = 0; i < 12; i++) {
        void *p = NULL;
        if (posix_memalign(&p, aligns[i % 4], 200 + (size_t)i)) truth_die("posix_memalign failed");
        truth_born(__func__, p, 200 + (size_t)i);
        keep(p);
    }
}
NOINLINE void edge_posix_memalign_fails(void) {
    void *stale = malloc(123);
    truth_born(__func__, stale, 123);
    for (int i = 0; i < 5; i++) {
        void *p = stale; /* a failure leaves the variable alone: its old value is no new block */
        if (posix_memalign(&p, 24, 64) == 0) truth_die("a bad alignment was accepted");
        if (posix_memalign(&p, 64, huge) == 0) truth_die("a huge posix_memalign succeeded");
        TRUTH_ADD(truth_failed, 2);
    }
    keep(stale);
}
NOINLINE void edge_free_null(void) {
    for (int i = 0; i < 1000; i++) free(NULL);
    void *p = malloc(99);
    truth_born(__func__, p, 99);
    keep(p);
}
NOINLINE void edge_errno_kept(void) {
    for (int i = 0; i < 10; i++) {
        errno = 1234;
        void *p = malloc(17);
        if (errno != 1234) truth_die("malloc changed errno");
        truth_born(__func__, p, 17);
        edge_free(p);
        if (errno != 1234) truth_die("free changed errno");
    }
}
NOINLINE void edge_threshold(void) {
    for (size_t n = 131072 - 64; n <= 131072 + 64; n += 8) {
        void *p = malloc(n);
        truth_born(__func__, p, n);
        edge_free(p);
    }
}

static sigjmp_buf way_out;
static void on_fault(int number) {
    (void)number;
    siglongjmp(way_out, 1);
}
/* posix_memalign has its block and faults while it stores the address: the call never returns and nobody ever
 * gets the block. No lock is held at that point, so it is safe to jump out. */
NOINLINE void edge_jump_out_of_posix_memalign(void *forbidden) {
    for (int i = 0; i < 10; i++)
        if (sigsetjmp(way_out, 1) == 0) {
            if (posix_memalign((void **)forbidden, 64, 640) == 0) truth_die("a fault was expected");
        }
}
NOINLINE void edge_after_jump(void) {
    for (int i = 0; i < 10; i++) {
        void *p = malloc(222);
        truth_born(__func__, p, 222);
        keep(p);
    }
}
NOINLINE void edge_jumps_from_deeper(int depth, void *forbidden) {
    volatile char room[512];
    room[0] = (char)depth;
    if (depth) edge_jumps_from_deeper(depth - 1, forbidden);
    else if (posix_memalign((void **)forbidden, 64, 640) == 0) truth_die("a fault was expected");
    room[1] = room[0];
}

static void all(void) {
    edge_malloc_fails();
    edge_calloc_overflows();
    edge_reallocarray_overflows();
    edge_realloc_fails();
    edge_realloc_fails_then_free();
    edge_realloc_to_zero();
    edge_realloc_of_null();
    edge_realloc_moves();
    edge_realloc_in_place();
    edge_realloc_of_mapping();
    edge_posix_memalign();
    edge_posix_memalign_fails();
    edge_free_null();
    edge_errno_kept();
    edge_threshold();
    void *forbidden = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (forbidden == MAP_FAILED) truth_die("mmap failed");
    signal(SIGSEGV, on_fault);
#ifdef __GLIBC__ /* elsewhere posix_memalign may call another allocation function, which did return */
    truth_site("edge_jump_out_of_posix_memalign"); /* its truth is zero */
#endif
    edge_jump_out_of_posix_memalign(forbidden);
    edge_after_jump();
    if (sigsetjmp(way_out, 1) == 0) edge_jumps_from_deeper(20, forbidden);
    edge_after_jump();
    signal(SIGSEGV, SIG_DFL);
    munmap(forbidden, 4096);
}

int main(void) {
    truth_ready();
    while (truth_wait()) {
        all();
        truth_print();
        truth_done();
    }
    return 0;
}
