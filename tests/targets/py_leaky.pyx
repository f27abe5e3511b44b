"""An extension type of Cython that lacks `__dealloc__`: what it asks of libc is never given back."""
from libc.stdlib cimport malloc
from libc.string cimport memset


cdef class Buffer:
    cdef char *start

    def __cinit__(self, size_t size):
        self.start = <char *> malloc(size)
        if self.start is NULL:
            raise MemoryError
        memset(self.start, 1, size)


def buffers(size_t size, int count):
    """All are gone when it returns, but for what they asked for."""
    for _ in range(count):
        Buffer(size)
