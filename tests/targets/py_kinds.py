"""Code of every kind, which allocates once or twice each: the program tells where, by the interpreter's own frames.

The protocol is that of truth.h. The truth: for each stack, innermost first, "function:line:file;…" with bytes and blocks.
"""
import asyncio
import contextlib
import functools
import importlib
import json
import os
import sys
import tempfile
import threading
import time
import tracemalloc
import zipfile

# What a new module of any kind is made of. It notes with the `note` that it is given.
MODULE = """
import builtins

def allocate(size):
    builtins.kept.append(bytearray(size)); builtins.note(size)

class Inside:
    def method(self):
        allocate(%d)

allocate(%d)
Inside().method()
"""

# The same in an interpreter that knows nothing of this one; it tells through a pipe.
ALONE = """
import json, os, sys
kept = []

def allocate(size):
    kept.append(bytearray(size)); note(size)

def note(size):
    frame, frames = sys._getframe(1), []
    while frame is not None:
        code = frame.f_code
        frames.append('%%s:%%d:%%s' %% (getattr(code, 'co_qualname', code.co_name), frame.f_lineno, code.co_filename))
        frame = frame.f_back
    os.write(%d, (json.dumps([';'.join(frames), size]) + '\\n').encode())

def outer():
    allocate(%d)

outer()
"""

kept = []
truth = {}


def bytes_around():
    """What libc is asked for besides what a bytearray holds."""
    tracemalloc.start(1)
    one = bytearray(100_000)
    traces = tracemalloc.take_snapshot().traces
    tracemalloc.stop()
    debug = hasattr(sys, "gettotalrefcount")
    how = os.environ.get("PYTHONMALLOC", "pymalloc_debug" if debug else "pymalloc")
    # Marks of the object domain, and of the raw one, which pymalloc goes on to.
    marks = {"debug": 48, "pymalloc_debug": 48, "malloc_debug": 24}.get(how, 0)
    return max(trace.size for trace in traces) - len(one) + marks


AROUND = bytes_around()


def add(stack, size):
    entry = truth.setdefault(stack, [0, 0])
    entry[0] += size + AROUND
    entry[1] += 1


def note(size):
    """Of the caller's frame: it has just allocated on the line that calls this."""
    frame = sys._getframe(1)
    frames = []
    while frame is not None:
        code = frame.f_code
        name = getattr(code, "co_qualname", code.co_name)
        frames.append(f"{name}:{frame.f_lineno}:{code.co_filename}")
        frame = frame.f_back
    add(";".join(frames), size)


class Size:
    """Another size each time, so that no two are taken for each other."""

    last = 10_000

    def __new__(cls):
        cls.last += 16
        return cls.last


def allocate():
    size = Size()
    kept.append(bytearray(size)); note(size)


def generated():
    allocate()
    yield 1
    yield from inner_generated()


def inner_generated():
    allocate()
    yield 2
    allocate()


async def awaited(depth):
    if depth:
        await awaited(depth - 1)
    else:
        await asyncio.sleep(0)
        allocate()


async def asynchronous():
    for at in range(3):
        await asyncio.sleep(0)
        allocate()
        yield at


async def tasks():
    allocate()
    await asyncio.gather(awaited(3), awaited(5))
    asyncio.get_running_loop().call_soon(allocate)
    async for _ in asynchronous():
        pass
    [allocate() async for _ in asynchronous()]
    await asyncio.get_running_loop().run_in_executor(None, allocate)


def decorated(times):
    def wrap(function):
        @functools.wraps(function)
        def inner(*arguments):
            for _ in range(times):
                function(*arguments)

        return inner

    return wrap


@decorated(2)
@functools.lru_cache(None)
def cached(one):
    allocate()


@contextlib.contextmanager
def context():
    allocate()
    yield
    allocate()


class Meta(type):
    def __call__(cls, *arguments):
        allocate()
        return super().__call__(*arguments)


class Thing(metaclass=Meta):
    allocate_here = None

    def __init__(self):
        allocate()

    def __getattr__(self, name):
        allocate()
        return 1

    def __del__(self):
        allocate()

    def __lt__(self, other):
        allocate()
        return False


def raises():
    try:
        raise ValueError
    except ValueError:
        allocate()
    finally:
        allocate()


def by_language():
    [allocate() for _ in range(2)]
    {allocate(): allocate() for _ in range(2)}
    sum(1 for _ in range(2) if allocate() is None)
    list(generated())
    cached(1)
    with context():
        allocate()
    thing = Thing()
    thing.nothing
    sorted([Thing(), Thing()])
    del thing
    raises()
    (lambda: (allocate(), allocate()))()
    functools.reduce(lambda one, two: allocate(), [1, 2, 3])


def by_text():
    names = {"allocate": allocate}
    exec("def made():\n  allocate()\n\n  allocate()\nmade()\nallocate()", names)
    eval("[allocate() for _ in range(2)]", names)
    for at in range(5):
        # Code that comes and goes, at the same addresses.
        exec(compile("\n" * at + f"def name_{at}():\n allocate()\nname_{at}()", f"text {at}", "exec"), names)


def by_module(folder):
    import builtins

    builtins.kept, builtins.note = kept, note
    with zipfile.ZipFile(os.path.join(folder, "packed.zip"), "w") as archive:
        archive.writestr("packed.py", MODULE % (Size(), Size()))
    with open(os.path.join(folder, "plain.py"), "w") as file:
        file.write(MODULE % (Size(), Size()))
    sys.path[:0] = [folder, os.path.join(folder, "packed.zip")]
    importlib.import_module("packed")
    # Frames of the frozen importlib are in between.
    import plain


def by_thread():
    threads = [threading.Thread(target=allocate, name=f"one {n}") for n in range(4)]
    for thread in threads:
        thread.start()
        thread.join()


def by_interpreter():
    if sys.version_info < (3, 12):
        # The thread's own state is that of the main interpreter there: docs/python.md tells.
        return
    try:
        import _interpreters as interpreters
    except ImportError:
        try:
            import _xxsubinterpreters as interpreters
        except ImportError:
            return
    for _ in range(2):
        here, there = os.pipe()
        one = interpreters.create()
        kept.append(one)
        interpreters.run_string(one, ALONE % (there, Size()))
        os.close(there)
        with os.fdopen(here) as told:
            for line in told:
                add(*json.loads(line))


def say(**values):
    print(json.dumps(values), flush=True)


say(event="ready")
for word in sys.stdin:
    if word.strip() != "go":
        break
    with tempfile.TemporaryDirectory() as folder:
        by_language()
        by_text()
        by_thread()
        by_module(folder)
        asyncio.new_event_loop().run_until_complete(tasks())
        by_interpreter()
        say(event="stacks", time_ns=time.time_ns(), stacks=truth)
        say(event="done")
        sys.stdin.readline()
