"""Python that C calls, and C that Python calls, in turn: one block at the end of it, and the order of who called whom.

The protocol is that of truth.h. The truth: the functions, innermost first, as parts of their names.
"""
import ctypes
import json
import sys
import time

libc = ctypes.CDLL(None)
compare = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
numbers = (ctypes.c_int * 2)(2, 1)
kept = []


@compare
def searched(a, b):
    kept.append(bytearray(1_234_567))
    return 0


def search():
    libc.bsearch(numbers, numbers, ctypes.c_size_t(1), ctypes.c_size_t(4), searched)


@compare
def sorted_by(a, b):
    if not kept:
        search()
    return 0


def sort():
    libc.qsort(numbers, ctypes.c_size_t(2), ctypes.c_size_t(4), sorted_by)


def say(**values):
    print(json.dumps(values), flush=True)


say(event="ready")
for word in sys.stdin:
    if word.strip() != "go":
        break
    sort()
    order = ["searched", "bsearch", "search", "sorted_by", "qsort", "sort", "<module>"]
    say(event="order", time_ns=time.time_ns(), order=order)
    say(event="done")
