// A service with a leak of 100 bytes a request among half a gigabyte of buffers that come and go, a cache that grows
// for half a minute, and tables that are filled at the start. It works from its start until its stdin ends.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <string>
#include <thread>
#include <vector>
#include <poll.h>
#include <unistd.h>

#define NOINLINE __attribute__((noinline))

static std::vector<char *> sessions;
static std::deque<std::vector<char>> buffers;
static std::deque<std::string> cache;
static std::vector<std::string> tables;

NOINLINE void remember_session() {
    sessions.push_back(new char[100]);
}
NOINLINE void read_request() {
    std::vector<char> buffer;
    buffer.reserve(65536);
    buffers.push_back(std::move(buffer));
    if (buffers.size() > 8000) buffers.pop_front();
}
NOINLINE void fill_cache() {
    cache.emplace_back(5000, 'x');
    if (cache.size() > 12000) cache.pop_front();
}
NOINLINE void load_tables() {
    for (int i = 0; i < 2000; i++) tables.emplace_back(8000, 't');
}

static bool told_to_end() {
    struct pollfd input = {STDIN_FILENO, POLLIN, 0};
    char byte;
    return poll(&input, 1, 0) > 0 && read(STDIN_FILENO, &byte, 1) <= 0;
}

int main() {
    sessions.reserve(1 << 20);
    puts("{\"event\":\"ready\"}");
    fflush(stdout);
    std::this_thread::sleep_for(std::chrono::seconds(2));
    load_tables();
    auto next = std::chrono::steady_clock::now();
    while (!told_to_end()) {
        remember_session();
        for (int i = 0; i < 10; i++) read_request();
        for (int i = 0; i < 4; i++) fill_cache();
        next += std::chrono::milliseconds(10);
        std::this_thread::sleep_until(next);
    }
}
