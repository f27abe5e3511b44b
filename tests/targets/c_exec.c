/* Becomes another program under the same pid: what the first one held is gone. */
#include "truth.h"

NOINLINE void *exec_before(size_t n) {
    void *p = malloc(n);
    truth_born(__func__, p, n);
    return p;
}
NOINLINE void *exec_after(size_t n) {
    void *p = malloc(n);
    truth_born(__func__, p, n);
    return p;
}
NOINLINE void exec_frees(void *p) {
    truth_dies(p);
    free(p);
}

int main(int argc, char **argv) {
    if (argc > 1) { /* the second life begins with work, not with waiting */
        truth_recording = 1;
        void *blocks[100];
        for (int i = 0; i < 100; i++) blocks[i] = exec_after(200 + (size_t)i);
        for (int i = 0; i < 30; i++) exec_frees(blocks[i]);
        truth_print();
        truth_done();
        while (truth_wait()) {
            exec_after(1000);
            truth_print();
            truth_done();
        }
        return 0;
    }
    truth_ready();
    for (int part = 0; truth_wait(); part++) {
        if (part == 1) {
            execl("/proc/self/exe", argv[0], "again", (char *)NULL);
            truth_die("exec failed");
        }
        for (int i = 0; i < 77; i++) exec_before(300);
        truth_print();
        truth_done();
    }
    return 0;
}
