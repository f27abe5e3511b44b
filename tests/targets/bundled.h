/* A small allocator that a program brings along under the usual names. It is lock-free and safe to re-enter from a
 * signal handler and to jump out of, which no real malloc promises; so it lets a test interrupt an allocation.
 * Every block has a header of 16 bytes with its size. Memory is never reused. */
#ifndef BUNDLED_H
#define BUNDLED_H
#include <stddef.h>
#include <stdint.h>

#ifndef BUNDLED_NAME
#define BUNDLED_NAME(name) name
#endif
#ifndef BUNDLED_BYTES
#define BUNDLED_BYTES (64u << 20)
#endif

static unsigned char bundled_room[BUNDLED_BYTES] __attribute__((aligned(4096)));
static size_t bundled_used;
/* Called in the middle of an allocation, when set. */
static void (*volatile bundled_in_the_middle)(void);
static long long bundled_freed;

#define BUNDLED_EXPORT __attribute__((visibility("default"), noinline))

static void *bundled_take(size_t align, size_t n) {
    if (n > BUNDLED_BYTES / 2) return NULL;
    size_t whole = 16 + align + n;
    size_t start = __atomic_fetch_add(&bundled_used, (whole + 15) & ~(size_t)15, __ATOMIC_SEQ_CST);
    if (start + whole > BUNDLED_BYTES) return NULL;
    uintptr_t address = ((uintptr_t)bundled_room + start + 16 + align - 1) & ~(uintptr_t)(align - 1);
    ((size_t *)address)[-1] = n;
    void (*middle)(void) = bundled_in_the_middle;
    if (middle) middle();
    return (void *)address;
}

BUNDLED_EXPORT void *BUNDLED_NAME(malloc)(size_t n) { 
    void *p = bundled_take(16, n);
    __asm__ volatile("" : "+r"(p));
    return p;
}
BUNDLED_EXPORT void BUNDLED_NAME(free)(void *p) {
    if (p) __atomic_add_fetch(&bundled_freed, 1, __ATOMIC_SEQ_CST);
}
BUNDLED_EXPORT void *BUNDLED_NAME(calloc)(size_t count, size_t n) {
    if (n && count > (size_t)-1 / n) return NULL;
    void *p = bundled_take(16, count * n); /* never used before: zero */
    __asm__ volatile("" : "+r"(p));
    return p;
}
BUNDLED_EXPORT void *BUNDLED_NAME(realloc)(void *old, size_t n) {
    unsigned char *p = (unsigned char *)bundled_take(16, n);
    if (p && old) {
        size_t had = ((size_t *)old)[-1];
        for (size_t i = 0; i < had && i < n; i++) p[i] = ((unsigned char *)old)[i];
        __atomic_add_fetch(&bundled_freed, 1, __ATOMIC_SEQ_CST);
    }
    return p;
}
BUNDLED_EXPORT void *BUNDLED_NAME(memalign)(size_t align, size_t n) {
    void *p = bundled_take(align < 16 ? 16 : align, n);
    __asm__ volatile("" : "+r"(p));
    return p;
}
BUNDLED_EXPORT void *BUNDLED_NAME(aligned_alloc)(size_t align, size_t n) {
    void *p = bundled_take(align < 16 ? 16 : align, n);
    __asm__ volatile("" : "+r"(p) : : "memory");
    return p;
}
BUNDLED_EXPORT int BUNDLED_NAME(posix_memalign)(void **result, size_t align, size_t n) {
    void *p = bundled_take(align < 16 ? 16 : align, n);
    if (!p) return 12;
    *result = p;
    return 0;
}
#endif
