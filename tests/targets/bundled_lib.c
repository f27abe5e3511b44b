/* A library with its own allocator under prefixed names, as many bring jemalloc along. */
#define BUNDLED_NAME(name) je_##name
#include "bundled.h"

typedef void (*born_function)(const char *, void *, size_t);

__attribute__((noinline)) void library_leak(born_function born, int count) {
    for (int i = 0; i < count; i++) {
        size_t n = (size_t)i * 3 + 1;
        void *p = je_malloc(n);
        born("library_leak", p, n);
    }
}
