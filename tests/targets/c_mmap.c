/* Memory asked of the kernel itself. Where a mapping is changed, one function does it all, so that it does not
 * matter to which of its calls an observer books the change; and how many "allocations" that makes is left open. */
#include "truth.h"
#include <sys/mman.h>

#define PAGE 4096u

/* Books what is in use at the end; the number of allocations is left open. */
static void in_use(const char *name, size_t bytes) {
    int site = truth_site(name);
    truth_sites[site].only_inuse_bytes = 1;
    TRUTH_ADD(truth_sites[site].inuse_bytes, bytes);
}

static void *map(size_t pages) {
    void *p = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) truth_die("mmap failed");
    return p;
}

NOINLINE void mmap_anonymous(void) {
    int site = truth_site(__func__);
    for (unsigned i = 1; i <= 20; i++) {
        void *p = map(i + 2);
        KEEP(p);
        truth_count_alloc(site, (i + 2) * PAGE);
        if (i % 4 == 0) {
            munmap(p, (i + 2) * PAGE);
            truth_count_free(site, (i + 2) * PAGE);
        }
    }
}
NOINLINE void mmap_shared(void) {
    int site = truth_site(__func__);
    void *p = mmap(NULL, 9 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) truth_die("mmap failed");
    truth_count_alloc(site, 9 * PAGE);
}
NOINLINE void mmap_file(void) {
    int site = truth_site(__func__);
    int file = open("/proc/self/exe", O_RDONLY);
    for (unsigned i = 1; i <= 3; i++) {
        void *p = mmap(NULL, i * PAGE, PROT_READ, MAP_PRIVATE, file, 0);
        if (p == MAP_FAILED) truth_die("mmap of a file failed");
        truth_count_alloc(site, i * PAGE);
        if (i == 2) {
            munmap(p, i * PAGE);
            truth_count_free(site, i * PAGE);
        }
    }
    close(file);
}
NOINLINE void mmap_fails(void) {
    int site = truth_site(__func__);
    for (int i = 0; i < 5; i++)
        if (mmap(NULL, (size_t)1 << 60, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) != MAP_FAILED)
            truth_die("a huge mmap succeeded");
    void *p = map(3);
    KEEP(p);
    truth_count_alloc(site, 3 * PAGE);
}

NOINLINE void munmap_partly(void) {
    unsigned char *p = map(10);
    munmap(p, 2 * PAGE);            /* the front */
    munmap(p + 8 * PAGE, 2 * PAGE); /* the end */
    munmap(p + 4 * PAGE, PAGE);     /* a hole in the middle */
    in_use(__func__, 5 * PAGE);
}
NOINLINE void munmap_across(void) {
    unsigned char *p = map(12); /* three mappings side by side, one call that takes a part of each */
    for (unsigned i = 0; i < 12; i += 4)
        if (mmap(p + i * PAGE, 4 * PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED)
            truth_die("mmap failed");
    munmap(p + 2 * PAGE, 8 * PAGE);
    in_use(__func__, 4 * PAGE);
}
NOINLINE void mmap_fixed_over_own(void) {
    unsigned char *p = map(8);
    if (mmap(p + 2 * PAGE, 3 * PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED)
        truth_die("mmap failed");
    in_use(__func__, 8 * PAGE);
}
NOINLINE void mremap_grows(void) {
    void *p = mremap(map(4), 4 * PAGE, 50 * PAGE, MREMAP_MAYMOVE);
    if (p == MAP_FAILED) truth_die("mremap failed");
    in_use(__func__, 50 * PAGE);
}
NOINLINE void mremap_shrinks(void) {
    void *p = mremap(map(40), 40 * PAGE, 7 * PAGE, 0);
    if (p == MAP_FAILED) truth_die("mremap failed");
    in_use(__func__, 7 * PAGE);
}
NOINLINE void mremap_moves(void) {
    void *place = map(6);
    void *p = mremap(map(6), 6 * PAGE, 6 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, place);
    if (p != place) truth_die("mremap failed");
    in_use(__func__, 6 * PAGE);
}
NOINLINE void sbrk_grows(void) {
    if (sbrk(25 * PAGE) == (void *)-1) truth_die("sbrk failed");
    if (sbrk(-(intptr_t)(5 * PAGE)) == (void *)-1) truth_die("sbrk failed");
    in_use(__func__, 20 * PAGE);
}
/* A block so large that malloc maps it: it is malloc's block, and not one of mmap besides. */
NOINLINE void malloc_that_maps(void) {
    int site = truth_site(__func__);
    void *p = malloc(3u << 20);
    KEEP(p);
    truth_count_alloc(site, 3u << 20);
}

int main(void) {
    truth_ready();
    while (truth_wait()) {
        mmap_anonymous();
        mmap_shared();
        mmap_file();
        mmap_fails();
        munmap_partly();
        munmap_across();
        mmap_fixed_over_own();
        mremap_grows();
        mremap_shrinks();
        mremap_moves();
        sbrk_grows();
        malloc_that_maps();
        truth_print();
        truth_done();
    }
    return 0;
}
