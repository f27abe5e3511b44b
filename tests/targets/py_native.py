"""Memory that C code asks libc for on behalf of a line of Python: numpy's arrays, lxml's trees, a Cython extension whose
type lacks a destructor. The argument is the path of py_leaky's build.

The protocol is that of truth.h. The truth: for each function the least and the most bytes that C code holds for it, all on one line of it.
"""
import ctypes
import importlib.machinery
import importlib.util
import json
import sys
import time

import lxml.etree
import numpy

loader = importlib.machinery.ExtensionFileLoader("py_leaky", sys.argv[1])
py_leaky = importlib.util.module_from_spec(importlib.util.spec_from_loader("py_leaky", loader))
loader.exec_module(py_leaky)
kept = []


class Mallinfo(ctypes.Structure):
    NAMES = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in NAMES.split()]


mallinfo2 = ctypes.CDLL(None).mallinfo2
mallinfo2.restype = Mallinfo


def in_use():
    """What libc has handed out, with what it adds to each block."""
    info = mallinfo2()
    return info.uordblks + info.hblkhd


def numpy_arrays():
    for _ in range(500):
        kept.append(numpy.arange(1000.0))
    return 500 * 8000, 500 * 8000


def lxml_tree():
    text = "".join(f"<item><name>{'x' * 1000}</name></item>" for _ in range(5000))
    text = f"<items>{text}</items>".encode()
    before = in_use()
    kept.append(lxml.etree.fromstring(text))
    return 5000 * 1000, in_use() - before


def cython_type():
    for _ in range(100):
        py_leaky.Buffer(40_000)
    return 4_000_000, 4_000_000


def cython_function():
    py_leaky.buffers(4000, 1000)
    return 4_000_000, 4_000_000


def say(**values):
    print(json.dumps(values), flush=True)


say(event="ready")
for word in sys.stdin:
    if word.strip() != "go":
        break
    held = {work.__name__: work() for work in (numpy_arrays, lxml_tree, cython_type, cython_function)}
    say(event="held", held=held, time_ns=time.time_ns())
    say(event="done")
