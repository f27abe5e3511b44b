/* Code that comes later and is then used again and again. Argument: the plugin. */
#include "truth.h"
#include <dlfcn.h>

typedef void (*born_function)(const char *, void *, size_t);
typedef void (*plugin_function)(born_function, int);

int main(int argc, char **argv) {
    if (argc < 2) return 2;
    void *plugin = NULL;
    truth_ready();
    while (truth_wait()) {
        if (!plugin && !(plugin = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL))) truth_die("dlopen of the plugin failed");
        plugin_function function = (plugin_function)dlsym(plugin, "plugin_at_once");
        if (!function) truth_die("dlsym failed");
        function(truth_born, 3);
        truth_print();
        truth_done();
    }
    return 0;
}
