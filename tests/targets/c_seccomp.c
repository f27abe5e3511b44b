/* A program under a filter that kills it for any system call it does not expect: what container profiles and
 * hardened services do. A return probe may need the call 335 (uretprobe), a fast probe 336 (uprobe). */
#include "truth.h"
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#ifndef SECCOMP_RET_KILL_PROCESS
#define SECCOMP_RET_KILL_PROCESS 0x80000000U
#endif

static void lock_down(void) {
    static const unsigned allowed[] = {SYS_read, SYS_write, SYS_exit, SYS_exit_group, SYS_rt_sigreturn, SYS_mmap,
                                       SYS_munmap, SYS_mremap, SYS_mprotect, SYS_brk, SYS_madvise, SYS_clock_gettime,
                                       SYS_getpid, SYS_getrandom, SYS_sched_yield, SYS_restart_syscall};
    enum { COUNT = sizeof allowed / sizeof *allowed };
    struct sock_filter code[3 + COUNT + 2];
    unsigned n = 0;
    code[n++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
    for (unsigned i = 0; i < COUNT; i++)
        code[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, allowed[i], (unsigned char)(COUNT - i), 0);
    code[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS);
    code[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    struct sock_fprog program = {(unsigned short)n, code};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program))
        truth_die("seccomp failed");
}

NOINLINE void *seccomp_malloc(size_t n) {
    void *p = malloc(n);
    truth_born(__func__, p, n);
    return p;
}

int main(int argc, char **argv) {
    lock_down();
    if (argc > 1 && !strcmp(argv[1], "forbidden")) syscall(SYS_getuid); /* shows that the filter is in force */
    truth_ready();
    while (truth_wait()) {
        for (int i = 0; i < 1000; i++) {
            void *p = seccomp_malloc((size_t)i * 10);
            if (i % 3) {
                truth_dies(p);
                free(p);
            }
        }
        truth_print();
        truth_done();
    }
    return 0;
}
