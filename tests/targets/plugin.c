/* Loaded later by c_dlopen; allocates with the program's allocator. */
#include <stdlib.h>

typedef void (*born_function)(const char *, void *, size_t);

__attribute__((noinline)) void plugin_at_once(born_function born, int count) {
    for (int i = 0; i < count; i++) born("plugin_at_once", malloc(150), 150);
}
__attribute__((noinline)) void plugin_leak(born_function born, int count) {
    for (int i = 0; i < count; i++) born("plugin_leak", malloc((size_t)i + 1), (size_t)i + 1);
}
