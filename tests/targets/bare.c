/* No libc, no allocator, no symbols of one: says that it is up and waits to be told to go. */
#include <asm/unistd.h>

static long call(long number, long a, long b, long c) {
    long result;
    __asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
    return result;
}

__attribute__((force_align_arg_pointer, noreturn)) void _start(void) {
    static const char ready[] = "{\"event\":\"ready\",\"pid\":0}\n";
    char letter;
    call(__NR_write, 1, (long)ready, sizeof ready - 1);
    while (call(__NR_read, 0, (long)&letter, 1) > 0) {}
    call(__NR_exit_group, 0, 0, 0);
    __builtin_unreachable();
}
