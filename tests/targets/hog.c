/* Takes so many MiB, one after the other, then says that it is done and waits for the end of its stdin. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int main(int count, char **words) {
    puts("{\"event\":\"ready\"}");
    fflush(stdout);
    char byte;
    if (read(STDIN_FILENO, &byte, 1) <= 0) return 0;
    for (long left = count > 1 ? atol(words[1]) : 0; left > 0; left--) {
        char *block = malloc(1 << 20);
        if (!block) break;
        memset(block, 'h', 1 << 20);
    }
    puts("{\"event\":\"done\"}");
    fflush(stdout);
    while (read(STDIN_FILENO, &byte, 1) > 0) {
    }
    return 0;
}
