// An HTTP service with a leak of 100 bytes a request among half a gigabyte of buffers that come and go, a cache, and
// tables that are filled at the start. A request is "GET /N": it asks for the four entries from N on, which are made
// anew each time. The service says its port, and works until its stdin ends.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <string>
#include <thread>
#include <vector>
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#define NOINLINE __attribute__((noinline))

static std::vector<char *> sessions;
static std::deque<std::vector<char>> buffers;
static std::map<long, std::string> cache;
static std::vector<std::string> tables;

NOINLINE void remember_session() {
    sessions.push_back(new char[100]);
}
NOINLINE void read_request() {
    buffers.emplace_back(65536, 'b');
    if (buffers.size() > 8000) buffers.pop_front();
}
NOINLINE void fill_cache(long number) {
    cache[number] = std::string(5000, 'x');
}
NOINLINE void load_tables() {
    for (int i = 0; i < 2000; i++) tables.emplace_back(8000, 't');
}

static void handle(int connection, const std::string &head) {
    long number = atol(head.c_str() + strlen("GET /"));
    remember_session();
    for (int i = 0; i < 10; i++) read_request();
    for (int i = 0; i < 4; i++) fill_cache(number + i);
    std::string body = "{\"entry\": " + std::to_string(number) + "}";
    std::string answer = "HTTP/1.1 200 OK\r\nContent-Length: " + std::to_string(body.size()) + "\r\n\r\n" + body;
    if (write(connection, answer.data(), answer.size()) < 0) perror("write");
}

// Requests without a body, one after the other.
static void serve(int connection) {
    std::string input;
    char part[4096];
    ssize_t got;
    while ((got = read(connection, part, sizeof part)) > 0) {
        input.append(part, got);
        for (size_t end; (end = input.find("\r\n\r\n")) != std::string::npos; input.erase(0, end + 4)) {
            handle(connection, input.substr(0, end));
        }
    }
    close(connection);
}

int main() {
    sessions.reserve(1 << 20);
    load_tables();
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof address;
    if (bind(listener, (sockaddr *)&address, size) || listen(listener, 8) ||
        getsockname(listener, (sockaddr *)&address, &size)) {
        perror("no port");
        return 1;
    }
    std::thread([listener] {
        for (int connection; (connection = accept(listener, nullptr, nullptr)) >= 0;) serve(connection);
    }).detach();
    printf("{\"event\":\"ready\",\"port\":%d}\n", ntohs(address.sin_port));
    fflush(stdout);
    char byte;
    while (read(STDIN_FILENO, &byte, 1) > 0) {
    }
    _exit(0);
}
