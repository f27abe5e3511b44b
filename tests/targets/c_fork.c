/* Forks in every shape. Children allocate at once, free blocks that they inherited, and stay until the end. */
#include "truth.h"
#include <sys/wait.h>

#define BLOCKS 100
static void *inherited[BLOCKS];
static int ready_pipe[2], release_pipe[2];

NOINLINE void *fork_parent_alloc(size_t n) {
    void *p = malloc(n);
    truth_born(__func__, p, n);
    return p;
}
NOINLINE void *fork_child_alloc(size_t n) {
    void *p = malloc(n);
    truth_born(__func__, p, n);
    return p;
}
NOINLINE void *fork_grandchild_alloc(size_t n) {
    void *p = calloc(2, n);
    truth_born(__func__, p, 2 * n);
    return p;
}
NOINLINE void *fork_child_moves(void *old, size_t n) {
    struct truth_block before = truth_before_move(old);
    void *p = realloc(old, n);
    truth_after_move(__func__, before, old != NULL, p, n);
    return p;
}
static void release(void *p) {
    truth_dies(p);
    free(p);
}
static void tell(void) {
    if (write(ready_pipe[1], "r", 1) != 1) _exit(90);
}
static void await(int count) {
    char letter;
    while (count--)
        if (read(ready_pipe[0], &letter, 1) != 1) truth_die("a child is gone");
}
/* Says what is true here, then waits until the parent closes its end or dies. */
static void stay(void) {
    char letter;
    truth_print();
    tell();
    close(release_pipe[1]);
    while (read(release_pipe[0], &letter, 1) < 0 && errno == EINTR) {}
    while (waitpid(-1, NULL, 0) > 0) {}
    _exit(0);
}

/* What fork returned 0 to. The very first thing is an allocation: nothing gives an observer time. */
static void child(int number, int nested) {
    void *first = malloc(1);
    KEEP(first);
    free(first);
    truth_child();
    void *own[50];
    for (int i = 0; i < 50; i++) own[i] = fork_child_alloc(100 + (size_t)(i + number));
    for (int i = 0; i < 10; i++) release(inherited[i]);
    for (int i = 10; i < 15; i++) fork_child_moves(inherited[i], 900);
    for (int i = 0; i < 5; i++) release(own[i]);
    if (nested) {
        pid_t grandchild = fork();
        if (grandchild < 0) truth_die("fork failed");
        if (grandchild == 0) {
            truth_child();
            for (int i = 0; i < 20; i++) fork_grandchild_alloc(7 + (size_t)i);
            for (int i = 5; i < 10; i++) release(own[i]);       /* from the child */
            for (int i = 20; i < 25; i++) release(inherited[i]); /* from its parent */
            stay();
        }
    }
    stay();
}

static void start(int number, int nested) {
    pid_t pid = fork();
    if (pid < 0) truth_die("fork failed");
    if (pid == 0) child(number, nested);
}

/* The program that a child becomes lives only for a moment. */
static void spawn_and_forget(int count) {
    for (volatile int i = 0; i < count; i++) {
        pid_t pid = vfork();
        if (pid == 0) {
            execl("/bin/true", "true", (char *)NULL);
            _exit(127);
        }
        if (pid > 0) waitpid(pid, NULL, 0);
    }
}

int main(void) {
    if (pipe(ready_pipe) || pipe(release_pipe)) return 1;
    truth_ready();
    for (int part = 0; truth_wait(); part++) {
        if (part == 0) {
            for (int i = 0; i < BLOCKS; i++) inherited[i] = fork_parent_alloc(1000 + (size_t)i);
            for (int i = 0; i < 4; i++) start(i, 0);
            await(4);
            for (int i = 0; i < 30; i++) fork_parent_alloc(3);
            for (int i = 0; i < 50; i++) release(inherited[i]);
        } else if (part == 1) { /* a server that forks its workers ahead, each with a helper of its own */
            for (int i = 0; i < 50; i++) inherited[i] = fork_parent_alloc(500 + (size_t)i);
            for (int i = 0; i < 10; i++) start(i, 1);
            await(20);
        } else {
            spawn_and_forget(20);
            for (int i = 0; i < 30; i++) fork_parent_alloc(5);
        }
        truth_print();
        truth_done();
    }
    close(release_pipe[1]);
    close(release_pipe[0]);
    while (waitpid(-1, NULL, 0) > 0) {}
    return 0;
}
