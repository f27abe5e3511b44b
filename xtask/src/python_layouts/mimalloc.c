/* Prints where the fields are that memwatch reads out of mimalloc in a free-threaded CPython, one `name value` a line;
   -1: no such field. Compiled against the headers of one version (see ../python_layouts.rs). For a mimalloc that memwatch
   does not know (that of late 3.14 and of 3.15) nothing but the version is printed. */
#define Py_BUILD_CORE 1
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include "Python.h"
#include "internal/pycore_interp.h"
#include "internal/pycore_pystate.h"
#include "internal/pycore_tstate.h"

#define SHOW(name, value) printf("%s %ld\n", name, (long)(value))
#define AT(name, type, field) SHOW(name, offsetof(type, field))

#if MI_MALLOC_VERSION == 212
_Static_assert(MI_SEGMENT_SIZE == 32 << 20, "segments");
_Static_assert(MI_SLICES_PER_SEGMENT == 512, "slices");
_Static_assert(MI_SMALL_PAGE_SIZE == 64 << 10 && MI_SMALL_OBJ_SIZE_MAX == 16 << 10, "small pages");
_Static_assert(MI_MEDIUM_PAGE_SIZE == 512 << 10 && MI_MEDIUM_OBJ_SIZE_MAX == 128 << 10, "medium pages");
_Static_assert(MI_BIN_FULL == 74 && MI_MAX_ALIGN_SIZE == 16, "bins");
_Static_assert(_Py_MIMALLOC_HEAP_COUNT == 4, "heaps");
_Static_assert(_Py_MIMALLOC_HEAP_MEM == 0 && _Py_MIMALLOC_HEAP_OBJECT == 1, "order of heaps");

/* Which bit of the byte is the lowest one of `tag`. */
static int tag_bit(size_t at)
{
    mi_page_t page;
    memset(&page, 0, sizeof page);
    page.tag = 1;
    return __builtin_ctz(((unsigned char *)&page)[at]);
}

/* The byte with `tag`, a bit field. */
static size_t tag_at(void)
{
    mi_page_t page;
    memset(&page, 0, sizeof page);
    page.tag = 1;
    size_t at = 0;
    while (((unsigned char *)&page)[at] == 0) at++;
    return at;
}

static void show(void)
{
    AT("thread_heaps", _PyThreadStateImpl, mimalloc.heaps);
    AT("thread_local", _PyThreadStateImpl, mimalloc.tld);
    AT("thread_abandoned", _PyThreadStateImpl, mimalloc.tld.segments.abandoned);

    AT("abandoned_first", mi_abandoned_pool_t, abandoned);
    AT("abandoned_visited", mi_abandoned_pool_t, abandoned_visited);

    SHOW("heap_bytes", sizeof(mi_heap_t));
    AT("heap_local", mi_heap_t, tld);
    AT("heap_queues", mi_heap_t, pages);
    AT("heap_thread", mi_heap_t, thread_id);
    AT("heap_tag", mi_heap_t, tag);

    SHOW("queue_bytes", sizeof(mi_page_queue_t));
    AT("queue_first", mi_page_queue_t, first);
    AT("queue_last", mi_page_queue_t, last);
    AT("queue_block_bytes", mi_page_queue_t, block_size);

    AT("segment_next_abandoned", mi_segment_t, abandoned_next);
    AT("segment_cookie", mi_segment_t, cookie);
    AT("segment_slice_count", mi_segment_t, segment_slices);
    AT("segment_own_slices", mi_segment_t, segment_info_slices);
    AT("segment_entries", mi_segment_t, slice_entries);
    AT("segment_pages", mi_segment_t, slices);

    SHOW("page_bytes", sizeof(mi_page_t));
    AT("page_slice_count", mi_page_t, slice_count);
    AT("page_slice_offset", mi_page_t, slice_offset);
    SHOW("page_tag", tag_at());
    SHOW("page_tag_bit", tag_bit(tag_at()));
    AT("page_capacity", mi_page_t, capacity);
    AT("page_reserved", mi_page_t, reserved);
    AT("page_used", mi_page_t, used);
    AT("page_block_bytes", mi_page_t, xblock_size);
    AT("page_thread_free", mi_page_t, xthread_free);
    AT("page_next", mi_page_t, next);
    AT("page_previous", mi_page_t, prev);
}
#else
static void show(void) {}
#endif

int main(void)
{
    SHOW("version", PY_VERSION_HEX);
    show();
    return 0;
}
