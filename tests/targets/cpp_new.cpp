// C++: new in all its forms, containers, and exceptions thrown across frames that hold memory.
#include "truth.h"

#include <map>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <vector>

static __thread const char *current_site;

// Asks operator new as std::allocator does, and writes down what the container asked for.
template <class T> struct Counting {
    using value_type = T;
    Counting() = default;
    template <class U> Counting(const Counting<U> &) {}
    T *allocate(size_t count) {
        T *p = static_cast<T *>(::operator new(count * sizeof(T)));
        truth_born(current_site, p, count * sizeof(T));
        return p;
    }
    void deallocate(T *p, size_t) {
        truth_dies(p);
        ::operator delete(p);
    }
    template <class U> bool operator==(const Counting<U> &) const { return true; }
    template <class U> bool operator!=(const Counting<U> &) const { return false; }
};
using String = std::basic_string<char, std::char_traits<char>, Counting<char>>;
template <class T> using Vector = std::vector<T, Counting<T>>;
using Map = std::map<int, String, std::less<int>, Counting<std::pair<const int, String>>>;
using HashMap =
    std::unordered_map<int, int, std::hash<int>, std::equal_to<int>, Counting<std::pair<const int, int>>>;

struct Small { char data[40]; };
struct alignas(128) Aligned { char data[256]; };
struct Throws {
    char data[72];
    Throws() { throw std::runtime_error("constructor"); }
};

extern "C" {
NOINLINE Small *cpp_new_object() {
    Small *p = new Small;
    truth_born(__func__, p, sizeof(Small));
    return p;
}
NOINLINE char *cpp_new_array(size_t n) {
    char *p = new char[n];
    truth_born(__func__, p, n);
    return p;
}
NOINLINE Aligned *cpp_new_aligned() {
    Aligned *p = new Aligned;
    truth_born(__func__, p, sizeof(Aligned));
    return p;
}
NOINLINE void *cpp_new_nothrow() {
    void *p = ::operator new(12, std::nothrow);
    truth_born(__func__, p, 12);
    return p;
}
NOINLINE void cpp_delete_some() {
    Small *a = cpp_new_object();
    truth_dies(a);
    delete a;
    char *b = cpp_new_array(500);
    truth_dies(b);
    delete[] b;
    Aligned *c = cpp_new_aligned();
    truth_dies(c);
    delete c;
}
// The exception passes through operator new itself. What it costs is the runtime's affair: no part of the truth.
NOINLINE void cpp_new_fails() {
    volatile size_t huge = static_cast<size_t>(1) << 61;
    if (::operator new(huge, std::nothrow)) truth_die("a huge new succeeded");
    try {
        void *p = ::operator new(huge);
        KEEP(p);
        truth_die("a huge new succeeded");
    } catch (const std::bad_alloc &) {
    }
}
static Vector<int> *vector;
static Map *map;
static HashMap *hash_map;
static Vector<String> *strings;
alignas(64) static unsigned char rooms[4][256]; // the containers themselves are not on the heap

NOINLINE void cpp_vector() {
    current_site = "cpp_vector";
    if (!vector) vector = new (rooms[0]) Vector<int>;
    for (int i = 0; i < 10000; i++) vector->push_back(i);
}
NOINLINE void cpp_map() {
    current_site = "cpp_map";
    if (!map) map = new (rooms[1]) Map;
    for (int i = 0; i < 1000; i++) (*map)[i * 7 % 1500] = "a string that does not fit into the short form";
    for (int i = 0; i < 300; i++) map->erase(i);
}
NOINLINE void cpp_hash_map() {
    current_site = "cpp_hash_map";
    if (!hash_map) hash_map = new (rooms[2]) HashMap;
    for (int i = 0; i < 3000; i++) (*hash_map)[i] = i;
}
NOINLINE void cpp_strings() {
    current_site = "cpp_strings";
    if (!strings) strings = new (rooms[3]) Vector<String>;
    for (size_t i = 0; i < 500; i++) strings->push_back(String(i, 'x'));
}

// The exception object itself: its header's size is the runtime's own affair, so only objects are compared.
NOINLINE void cpp_throws() { throw std::string::size_type(1); }
NOINLINE void cpp_unwinds(int levels) {
    current_site = "cpp_unwinds";
    Vector<char> held(static_cast<size_t>(levels) * 10 + 1);
    if (levels) cpp_unwinds(levels - 1);
    else cpp_throws();
}
NOINLINE void cpp_constructor_throws() {
    try {
        Throws *p = new Throws; // new gets its block, the constructor throws, the block is given back
        KEEP(p);
    } catch (const std::runtime_error &) {
    }
}
}

static void exceptions() {
    int site = truth_site("cpp_throws");
    truth_sites[site].bytes_unknown = 1;
    for (int i = 0; i < 20; i++) {
        try {
            cpp_unwinds(10);
        } catch (std::string::size_type) {
        }
        truth_count_alloc(site, 0);
        truth_count_free(site, 0);
    }
    for (int i = 0; i < 20; i++) cpp_constructor_throws();
}

int main() {
    truth_ready();
    while (truth_wait()) {
        for (int i = 0; i < 100; i++) {
            cpp_new_object();
            cpp_new_array(static_cast<size_t>(i) * 10 + 1); // new char[0] asks malloc for 1
            cpp_new_aligned();
            cpp_new_nothrow();
            cpp_delete_some();
            cpp_new_fails();
        }
        cpp_vector();
        cpp_map();
        cpp_hash_map();
        cpp_strings();
        exceptions();
        truth_print();
        truth_done();
    }
    return 0;
}
