/* Every allocation function once over, with varied sizes; some blocks are freed.
 * Words on the command line leave functions out that an allocator does not bring along. */
#include "truth.h"
#include <malloc.h>

#define BLOCKS 400
static void *old_blocks[BLOCKS], *blocks[16][BLOCKS];
static int without_pvalloc, without_valloc, without_memalign;

NOINLINE void *site_malloc(size_t n) {
    void *p = malloc(n);
    truth_born(__func__, p, n);
    return p;
}
NOINLINE void *site_calloc(size_t count, size_t n) {
    void *p = calloc(count, n);
    truth_born(__func__, p, count * n);
    return p;
}
NOINLINE void *site_realloc(void *old, size_t n) {
    struct truth_block before = truth_before_move(old);
    int had_old = old != NULL;
    void *p = realloc(old, n);
    truth_after_move(__func__, before, had_old, p, n);
    return p;
}
NOINLINE void *site_reallocarray(void *old, size_t count, size_t n) {
    struct truth_block before = truth_before_move(old);
    int had_old = old != NULL;
    void *p = reallocarray(old, count, n);
    truth_after_move(__func__, before, had_old, p, count * n);
    return p;
}
NOINLINE void *site_memalign(size_t align, size_t n) {
    void *p = memalign(align, n);
    truth_born(__func__, p, n);
    return p;
}
NOINLINE void *site_aligned_alloc(size_t align, size_t n) {
    void *p = aligned_alloc(align, n);
    truth_born(__func__, p, n);
    return p;
}
NOINLINE void *site_posix_memalign(size_t align, size_t n) {
    void *p = NULL;
    if (posix_memalign(&p, align, n) != 0) p = NULL;
    truth_born(__func__, p, n);
    return p;
}
#ifndef NO_VALLOC
NOINLINE void *site_valloc(size_t n) {
    void *p = valloc(n);
    truth_born(__func__, p, n);
    return p;
}
NOINLINE void *site_pvalloc(size_t n) {
    void *p = pvalloc(n);
    truth_born(__func__, p, (n + 4095) & ~(size_t)4095); /* what it promises: whole pages */
    return p;
}
#endif
NOINLINE void site_free(void *p) {
    truth_dies(p);
    free(p);
}

static size_t varied(int i) {
    static const size_t sizes[] = {0, 1, 7, 8, 16, 24, 25, 63, 64, 100, 1000, 1032, 1033, 4096, 10000, 65536, 131072, 300001};
    return sizes[(size_t)i % (sizeof sizes / sizeof *sizes)];
}

static void allocate(void) {
    static const size_t aligns[] = {8, 16, 32, 64, 256, 4096};
    for (int i = 0; i < BLOCKS; i++) {
        size_t n = varied(i), align = aligns[i % 6];
        blocks[0][i] = site_malloc(n);
        blocks[1][i] = site_calloc((size_t)i % 7 + 1, n);
        blocks[2][i] = site_realloc(i % 2 ? NULL : site_malloc(varied(i + 3) + 1), n + 1);
        blocks[3][i] = site_reallocarray(i % 3 ? NULL : site_calloc(3, 9), 3, n + 1);
        if (!without_memalign) blocks[4][i] = site_memalign(align, n);
        blocks[5][i] = site_aligned_alloc(align, (n + align - 1) / align * align);
        blocks[6][i] = site_posix_memalign(align, n);
#ifndef NO_VALLOC
        if (!without_valloc && i < 50) blocks[7][i] = site_valloc(n);
        if (!without_pvalloc && i < 50) blocks[8][i] = site_pvalloc(n);
#endif
    }
}

/* Frees some of each kind, moves others, and lets go of blocks that are older than the watch. */
static void change(void) {
    for (int i = 0; i < BLOCKS; i++) {
        for (int kind = 0; kind < 9; kind++)
            if ((i + kind) % 3 == 0) {
                site_free(blocks[kind][i]);
                blocks[kind][i] = NULL;
            }
        if (i % 5 == 0) blocks[0][i] = site_realloc(blocks[0][i], varied(i + 5) + 100);
    }
    for (int i = 0; i < 100; i++) site_free(old_blocks[i]);
    for (int i = 100; i < 120; i++) old_blocks[i] = site_realloc(old_blocks[i], 5000);
}

static void release(void) {
    for (int kind = 0; kind < 9; kind++)
        for (int i = 0; i < BLOCKS; i++) {
            site_free(blocks[kind][i]);
            blocks[kind][i] = NULL;
        }
}

int main(int argc, char **argv) {
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "no-pvalloc")) without_pvalloc = 1;
        if (!strcmp(argv[i], "no-valloc")) without_valloc = 1;
        if (!strcmp(argv[i], "no-memalign")) without_memalign = 1;
    }
    for (int i = 0; i < BLOCKS; i++) old_blocks[i] = site_malloc(varied(i));
    truth_ready();
    for (int part = 0; truth_wait(); part++) {
        if (part % 3 == 0) allocate();
        if (part % 3 == 1) change();
        if (part % 3 == 2) release();
        truth_print();
        truth_done();
    }
    return 0;
}
