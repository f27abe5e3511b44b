/* What a target program knows about its own allocations, and how it tells the test.
 *
 * Protocol, one line each. The target writes JSON to stdout, the test writes words to stdin:
 *   target: {"event":"ready","pid":N}            it waits and allocates nothing
 *   test:   go                                   do the next part of the work
 *   target: {"event":"truth","pid":N,...}        one for each process that has something to tell
 *   target: {"event":"done","pid":N}             this part is over, nothing moves any more
 *   test:   go | exit
 * With TRUTH_IN and TRUTH_OUT in the environment the named files take the place of stdin and stdout.
 *
 * Nothing in here allocates: what is counted is only what the target's own site_* functions ask for.
 * Blocks born before the first "go" are not part of the truth, as memwatch may not have been there.
 */
#ifndef TRUTH_H
#define TRUTH_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE 1
#endif
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#ifndef TRUTH_SLOTS
#define TRUTH_SLOTS (1u << 17)
#endif
#define TRUTH_SITES 64

/* Neither inlined nor cloned under another name nor merged with a twin. */
#if defined(__clang__)
#define NOINLINE __attribute__((noinline))
#else
#define NOINLINE __attribute__((noinline, noclone, noipa))
#endif
/* Hides a value from the optimiser, so that a pair of malloc and free is not removed. */
#define KEEP(value) __asm__ volatile("" : "+r"(value) : : "memory")

struct truth_site {
    const char *name;
    long long alloc_bytes, alloc_objects, inuse_bytes, inuse_objects;
    int bytes_unknown, only_inuse_bytes; /* what is not said is not compared */
};
struct truth_block {
    void *address;
    size_t size;
    int site; /* negative: inherited from the parent by fork */
};

static struct truth_site truth_sites[TRUTH_SITES];
static int truth_site_count;
static struct truth_block truth_table[TRUTH_SLOTS];
static int truth_lock;
static int truth_recording;
static int truth_in = 0, truth_out = 1;
static long long truth_failed, truth_untracked_frees, truth_untracked_moves;
static long long truth_inherited_objects, truth_inherited_bytes;
static long long truth_inherited_freed_objects, truth_inherited_freed_bytes;
static int truth_forked;

#define TRUTH_ADD(variable, amount) __atomic_add_fetch(&(variable), (long long)(amount), __ATOMIC_SEQ_CST)

static void truth_acquire(void) {
    while (__atomic_exchange_n(&truth_lock, 1, __ATOMIC_ACQUIRE)) sched_yield();
}
static void truth_release(void) { __atomic_store_n(&truth_lock, 0, __ATOMIC_RELEASE); }

__attribute__((unused)) static void truth_die(const char *why) {
    char line[256];
    int length = snprintf(line, sizeof line, "{\"event\":\"error\",\"pid\":%d,\"why\":\"%s\"}\n", (int)getpid(), why);
    if (write(truth_out, line, (size_t)length) < 0) _exit(98);
    _exit(99);
}

static int truth_find_site(const char *name) {
    for (int i = 0; i < truth_site_count; i++)
        if (truth_sites[i].name == name || strcmp(truth_sites[i].name, name) == 0) return i;
    if (truth_site_count == TRUTH_SITES) truth_die("too many sites");
    truth_sites[truth_site_count].name = name;
    return truth_site_count++;
}

/* The number of a site, for counting without the table (from signal handlers, or a great many blocks). */
__attribute__((unused)) static int truth_site(const char *name) {
    truth_acquire();
    int site = truth_find_site(name);
    truth_release();
    return site;
}
__attribute__((unused)) static void truth_count_alloc(int site, size_t size) {
    TRUTH_ADD(truth_sites[site].alloc_bytes, size);
    TRUTH_ADD(truth_sites[site].alloc_objects, 1);
    TRUTH_ADD(truth_sites[site].inuse_bytes, size);
    TRUTH_ADD(truth_sites[site].inuse_objects, 1);
}
__attribute__((unused)) static void truth_count_free(int site, size_t size) {
    TRUTH_ADD(truth_sites[site].inuse_bytes, -(long long)size);
    TRUTH_ADD(truth_sites[site].inuse_objects, -1);
}

static size_t truth_slot(const void *address) {
    return (size_t)(((uintptr_t)address >> 3) * 0x9E3779B97F4A7C15ull >> 20) & (TRUTH_SLOTS - 1);
}

static void truth_insert(struct truth_block block) {
    size_t slot = truth_slot(block.address), tried = 0;
    while (truth_table[slot].address) {
        if (truth_table[slot].address == block.address) truth_die("an address was handed out twice");
        if (++tried == TRUTH_SLOTS) truth_die("the truth's table is full");
        slot = (slot + 1) & (TRUTH_SLOTS - 1);
    }
    truth_table[slot] = block;
}

/* Takes a block out, so that its address may be handed out again; .address is NULL when it was not known. */
static struct truth_block truth_remove(void *address) {
    struct truth_block found = {NULL, 0, 0};
    size_t slot = truth_slot(address);
    while (truth_table[slot].address && truth_table[slot].address != address) slot = (slot + 1) & (TRUTH_SLOTS - 1);
    if (!truth_table[slot].address) return found;
    found = truth_table[slot];
    truth_table[slot].address = NULL;
    for (size_t next = (slot + 1) & (TRUTH_SLOTS - 1); truth_table[next].address;
         next = (next + 1) & (TRUTH_SLOTS - 1)) {
        struct truth_block moved = truth_table[next];
        truth_table[next].address = NULL;
        truth_insert(moved);
    }
    return found;
}

/* A site function calls this with what its allocation function returned; NULL is a failed allocation. */
__attribute__((unused)) static void truth_born(const char *name, void *address, size_t size) {
    if (!truth_recording) return;
    if (!address) {
        TRUTH_ADD(truth_failed, 1);
        return;
    }
    truth_acquire();
    int site = truth_find_site(name);
    struct truth_block block = {address, size, site};
    truth_insert(block);
    truth_count_alloc(site, size);
    truth_release();
}

static void truth_ended(struct truth_block block) {
    if (block.site >= 0) {
        truth_count_free(block.site, block.size);
    } else {
        TRUTH_ADD(truth_inherited_freed_objects, 1);
        TRUTH_ADD(truth_inherited_freed_bytes, block.size);
    }
}

/* Before free(address). */
__attribute__((unused)) static void truth_dies(void *address) {
    if (!truth_recording || !address) return;
    truth_acquire();
    struct truth_block block = truth_remove(address);
    if (block.address) truth_ended(block);
    else truth_untracked_frees++;
    truth_release();
}

/* Around realloc: take the old block out before, settle what became of it after. */
__attribute__((unused)) static struct truth_block truth_before_move(void *old) {
    struct truth_block block = {NULL, 0, 0};
    if (!truth_recording || !old) return block;
    truth_acquire();
    block = truth_remove(old);
    truth_release();
    return block;
}
__attribute__((unused)) static void truth_after_move(const char *name, struct truth_block old_block, int had_old,
                                                     void *address, size_t size) {
    if (!truth_recording) return;
    if (!address && (size != 0 || !had_old)) { /* it failed: the old block lives on */
        TRUTH_ADD(truth_failed, 1);
        if (old_block.address) {
            truth_acquire();
            truth_insert(old_block);
            truth_release();
        }
        return;
    }
    truth_acquire();
    if (old_block.address) truth_ended(old_block);
    else if (had_old) truth_untracked_moves++;
    truth_release();
    if (address) truth_born(name, address, size);
}

/* After the end of a thread: glibc gives the blocks that the thread kept for reuse (64 sizes, 7 blocks each) and the
 * table of them to free once more. Nobody outside can tell these from blocks that are older than the watch. */
__attribute__((unused)) static void truth_thread_ended(void) { TRUTH_ADD(truth_untracked_moves, 64 * 7 + 1); }

/* In a child right after fork: what is recorded belongs to the parent. */
__attribute__((unused)) static void truth_child(void) {
    truth_forked = 1;
    truth_failed = truth_untracked_frees = truth_untracked_moves = 0;
    truth_inherited_objects = truth_inherited_bytes = 0;
    truth_inherited_freed_objects = truth_inherited_freed_bytes = 0;
    for (size_t i = 0; i < TRUTH_SLOTS; i++) {
        if (!truth_table[i].address) continue;
        truth_table[i].site = -1;
        truth_inherited_objects++;
        truth_inherited_bytes += (long long)truth_table[i].size;
    }
    for (int i = 0; i < truth_site_count; i++) {
        truth_sites[i].alloc_bytes = truth_sites[i].alloc_objects = 0;
        truth_sites[i].inuse_bytes = truth_sites[i].inuse_objects = 0;
    }
}

static void truth_write(const char *text, size_t length) {
    while (length) {
        ssize_t written = write(truth_out, text, length);
        if (written < 0 && errno == EINTR) continue;
        if (written <= 0) _exit(97);
        text += written;
        length -= (size_t)written;
    }
}

/* Room for one line. A line below PIPE_BUF is written in one piece, also when several processes write. */
static char truth_line[1 << 16];
static size_t truth_used;
__attribute__((format(printf, 1, 2))) static void truth_say(const char *format, ...) {
    __builtin_va_list arguments;
    __builtin_va_start(arguments, format);
    int length = vsnprintf(truth_line + truth_used, sizeof truth_line - truth_used, format, arguments);
    __builtin_va_end(arguments);
    if (length < 0 || truth_used + (size_t)length >= sizeof truth_line) truth_die("a line is too long");
    truth_used += (size_t)length;
}
static void truth_send(void) {
    truth_write(truth_line, truth_used);
    truth_used = 0;
}

static void truth_event(const char *event) {
    truth_say("{\"event\":\"%s\",\"pid\":%d}\n", event, (int)getpid());
    truth_send();
}

static void truth_begin_line(void) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    truth_say("{\"event\":\"truth\",\"pid\":%d,\"time_ns\":%lld,\"failed\":%lld,\"untracked_frees\":%lld,"
              "\"untracked_moves\":%lld,",
              (int)getpid(), (long long)now.tv_sec * 1000000000ll + now.tv_nsec, truth_failed,
              truth_untracked_frees, truth_untracked_moves);
    if (truth_forked)
        truth_say("\"inherited\":{\"objects\":%lld,\"bytes\":%lld,\"freed_objects\":%lld,\"freed_bytes\":%lld},",
                  truth_inherited_objects, truth_inherited_bytes, truth_inherited_freed_objects,
                  truth_inherited_freed_bytes);
    truth_say("\"functions\":[");
}

__attribute__((unused)) static void truth_print(void) {
    truth_begin_line();
    for (int i = 0; i < truth_site_count; i++) {
        struct truth_site *site = &truth_sites[i];
        truth_say("%s{\"function\":\"%s\"", i ? "," : "", site->name);
        if (!site->only_inuse_bytes)
            truth_say(",\"alloc_objects\":%lld,\"inuse_objects\":%lld", site->alloc_objects, site->inuse_objects);
        if (!site->only_inuse_bytes && !site->bytes_unknown) truth_say(",\"alloc_bytes\":%lld", site->alloc_bytes);
        if (!site->bytes_unknown) truth_say(",\"inuse_bytes\":%lld", site->inuse_bytes);
        truth_say("}");
    }
    truth_say("]}\n");
    truth_send();
}

/* Says that the target is up. Call it first. */
__attribute__((unused)) static void truth_ready(void) {
    const char *in = getenv("TRUTH_IN"), *out = getenv("TRUTH_OUT");
    if (in && (truth_in = open(in, O_RDONLY | O_CLOEXEC)) < 0) _exit(96);
    if (out && (truth_out = open(out, O_WRONLY | O_APPEND | O_CLOEXEC)) < 0) _exit(95);
    truth_event("ready");
}

/* Waits for the test's word: 1 for "go", 0 for "exit" or when the test is gone. */
__attribute__((unused)) static int truth_wait(void) {
    char word[16];
    size_t length = 0;
    for (;;) {
        char letter;
        ssize_t got = read(truth_in, &letter, 1);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) return 0;
        if (letter == '\n') break;
        if (length < sizeof word - 1) word[length++] = letter;
    }
    word[length] = 0;
    if (strcmp(word, "go") != 0) return 0;
    truth_recording = 1;
    return 1;
}

__attribute__((unused)) static void truth_done(void) { truth_event("done"); }

#endif
