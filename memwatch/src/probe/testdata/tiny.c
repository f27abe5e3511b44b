/* A library of a few bytes that exports allocation functions.
 * gcc -O2 -shared -fPIC -nostdlib -fcf-protection=none -fno-builtin -Wl,-z,noseparate-code -Wl,--build-id=sha1
 *     -Wl,-soname,libtiny.so.1 -Wl,-s -o tiny.so tiny.c */
typedef unsigned long size_t;
static char heap[4096];
static size_t used;
void *malloc(size_t size) { void *block = heap + used; used += size; return used > sizeof heap ? 0 : block; }
void free(void *block) { if (block) used = (char *)block - heap; }
void cfree(void *) __attribute__((alias("free")));
void *_Znwm(size_t size) { return malloc(size); }
void _ZdlPv(void *block) { free(block); }
void *memalign(size_t alignment, size_t size) { used = (used + alignment - 1) & -alignment; return malloc(size); }
void *aligned_alloc(size_t, size_t) __attribute__((alias("memalign")));
static void *slow(void) { return 0; }
static void *(*resolve(void))(void) { return slow; }
void *calloc(void) __attribute__((ifunc("resolve")));
