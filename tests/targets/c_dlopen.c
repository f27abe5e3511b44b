/* Code that comes later: a plugin that leaks, and a library that brings its own allocator.
 * Arguments: the plugin, the library. */
#include "truth.h"
#include <dlfcn.h>

typedef void (*born_function)(const char *, void *, size_t);
typedef void (*plugin_function)(born_function, int);

static void run(void *library, const char *name, int count) {
    plugin_function function = (plugin_function)dlsym(library, name);
    if (!function) truth_die("dlsym failed");
    function(truth_born, count);
}

int main(int argc, char **argv) {
    if (argc < 3) return 2;
    void *plugin = NULL, *bundled = NULL;
    truth_ready();
    for (int part = 0; truth_wait(); part++) {
        if (part == 0) { /* leaks at once after it was loaded */
            if (!(plugin = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL))) truth_die("dlopen of the plugin failed");
            run(plugin, "plugin_at_once", 50);
        } else if (part == 1) {
            run(plugin, "plugin_leak", 60);
        } else if (part == 2) { /* loads an allocator; the test waits until it is watched */
            if (!(bundled = dlopen(argv[2], RTLD_NOW | RTLD_LOCAL))) truth_die("dlopen of the library failed");
        } else {
            run(bundled, "library_leak", 70);
        }
        truth_print();
        truth_done();
    }
    return 0;
}
