// Allocations in the middle of exceptions, and in what C++ programs are made of.
#include <algorithm>
#include <cstdio>
#include <functional>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

static volatile size_t sink;
#define NOINLINE __attribute__((noinline))

NOINLINE void take_some(size_t n) {
    std::vector<char> room(n % 500 + 1);
    sink = sink + room.size();
}

// Allocates while the stack is being unwound.
struct Guard {
    size_t n;
    explicit Guard(size_t n) : n(n) { take_some(n); }
    ~Guard() {
        std::string text(40 + n % 100, 'x');
        sink = sink + text.size();
    }
};
struct Fault : std::runtime_error {
    std::string detail;
    explicit Fault(size_t n) : std::runtime_error("a message that is long enough to be allocated " + std::to_string(n)), detail(60, 'd') {}
};

NOINLINE void throws(size_t n) {
    Guard guard(n);
    if (n % 2) throw Fault(n);
    throw std::out_of_range(std::string(50, 'o'));
}
NOINLINE void passes(size_t depth) {
    Guard guard(depth);
    if (depth) passes(depth - 1);
    else throws(depth);
}
NOINLINE void rethrows(size_t n) {
    try {
        passes(n % 8);
    } catch (const std::exception &error) {
        take_some(n);
        std::string copy(error.what());
        sink = sink + copy.size();
        throw Fault(copy.size() | 1);
    }
}
NOINLINE void catches(size_t n) {
    try {
        rethrows(n);
    } catch (const Fault &fault) {
        std::vector<std::string> all(3, fault.detail);
        sink = sink + all.size();
        try {
            throws(n | 1);
        } catch (...) {
            auto held = std::current_exception();
            take_some(n);
            try {
                std::rethrow_exception(held);
            } catch (const Fault &) {
                take_some(n + 1);
            }
        }
    }
}

struct Shape {
    virtual ~Shape() = default;
    virtual void work(size_t n) const = 0;
};
struct Sorts : Shape {
    void work(size_t n) const override {
        std::vector<std::string> words;
        for (size_t i = 0; i < 20; i++) words.push_back(std::string(20 + (i * n) % 13, 'a' + (i * 7) % 26));
        std::stable_sort(words.begin(), words.end());
        std::sort(words.begin(), words.end(), [](const auto &a, const auto &b) { return a + "x" > b + "x"; });
    }
};
struct Maps : Shape {
    void work(size_t n) const override {
        std::map<std::string, std::shared_ptr<std::vector<int>>> all;
        for (size_t i = 0; i < 10; i++) all[std::to_string(i * n) + " and more than fits inside"] = std::make_shared<std::vector<int>>(i + 1);
    }
};
struct Functions : Shape {
    void work(size_t n) const override {
        std::string text(100, 'f');
        std::function<size_t(size_t)> f = [text, &f](size_t n) { return n ? f(n - 1) + (text + "!").size() : 0; };
        sink = sink + f(n % 10);
    }
};

static void all() {
    std::vector<std::unique_ptr<Shape>> shapes;
    shapes.push_back(std::make_unique<Sorts>());
    shapes.push_back(std::make_unique<Maps>());
    shapes.push_back(std::make_unique<Functions>());
    for (size_t n = 0;; n = (n + 1) % 40) {
        catches(n);
        for (const auto &shape : shapes) shape->work(n);
        if (n % 10 == 0) std::this_thread::sleep_for(std::chrono::microseconds(500));
    }
}

int main() {
    puts("{\"event\":\"ready\"}");
    fflush(stdout);
    std::thread other(all);
    all();
}
