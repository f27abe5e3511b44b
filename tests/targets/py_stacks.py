"""Allocates at many different places, and knows each of its stacks from the interpreter itself.

The protocol is that of truth.h. The truth: for each stack, innermost first, "function:line;…" with bytes and blocks.
"""
import asyncio
import functools
import json
import random
import sys
import threading
import time
import tracemalloc

BLOCKS = 13_000
DEPTH = 18

kept = [None] * (BLOCKS + 1000)
taken = [0]
truth = {}
lock = threading.Lock()


def name_of(code):
    return getattr(code, "co_qualname", code.co_name)


def note(size):
    """Of the caller's frame: it has just allocated `size` bytes on the line that calls this."""
    frame = sys._getframe(1)
    frames = []
    while frame is not None:
        frames.append(f"{name_of(frame.f_code)}:{frame.f_lineno}")
        frame = frame.f_back
    entry = truth.setdefault(";".join(frames), [0, 0])
    entry[0] += size
    entry[1] += 1


def place():
    taken[0] += 1
    return taken[0] - 1


def bytes_around():
    """What libc is asked for besides what a bytearray holds: from 3.15 on it has a bytes object inside. Builds for
    debugging put marks around each block, for the domain of objects and again for the raw one.
    """
    tracemalloc.start(1)
    one = bytearray(100_000)
    traces = tracemalloc.take_snapshot().traces
    tracemalloc.stop()
    marks = 48 if hasattr(sys, "gettotalrefcount") else 0
    return max(trace.size for trace in traces) - len(one) + marks


AROUND = bytes_around()


def leaf(rng):
    n = rng.randrange(600, 4000)
    kept[place()] = bytearray(n); note(n + AROUND)


def plain(rng, depth):
    if depth:
        go(rng, depth - 1)
    else:
        leaf(rng)


class Thing:
    def method(self, rng, depth):
        go(rng, depth)

    @classmethod
    def of_class(cls, rng, depth):
        go(rng, depth)

    @property
    def asked(self):
        go(*self.arguments)

    def __call__(self, rng, depth):
        go(rng, depth)


def decorated(function):
    @functools.wraps(function)
    def inner(*arguments):
        return function(*arguments)

    return inner


@decorated
def wrapped(rng, depth):
    go(rng, depth)


def generator(rng, depth):
    go(rng, depth)
    yield 1
    go(rng, depth)


def by_generator(rng, depth):
    for _ in generator(rng, depth):
        break


def by_comprehension(rng, depth):
    return [go(rng, depth) for _ in range(1)]


def by_map(rng, depth):
    list(map(lambda one: go(rng, depth), [1]))


def by_sort(rng, depth):
    def key(value):
        go(rng, depth)
        return value

    sorted([1], key=key)


def by_partial(rng, depth):
    functools.partial(go, rng)(depth)


def by_property(rng, depth):
    thing = Thing()
    thing.arguments = (rng, depth)
    thing.asked


def by_method(rng, depth):
    Thing().method(rng, depth)


def by_class(rng, depth):
    Thing.of_class(rng, depth)


def by_object(rng, depth):
    Thing()(rng, depth)


made = {"go": None}
exec(compile("def by_exec(rng, depth):\n\n    go(rng, depth)\n", "made up", "exec"), made)

WAYS = [
    plain,
    wrapped,
    by_generator,
    by_comprehension,
    by_map,
    by_sort,
    by_partial,
    by_property,
    by_method,
    by_class,
    by_object,
    made["by_exec"],
]


def go(rng, depth):
    if depth <= 0:
        leaf(rng)
    else:
        rng.choice(WAYS)(rng, depth - 1)


made["go"] = go


async def task(rng, depth):
    await asyncio.sleep(0)
    go(rng, depth)


async def outer_task(rng, depth):
    await task(rng, depth)


async def tasks(seed, count):
    rng = random.Random(seed)
    for _ in range(count):
        await asyncio.gather(outer_task(rng, 3), outer_task(rng, 5))


def in_thread(seed, count):
    rng = random.Random(seed)
    with lock:
        for _ in range(count):
            go(rng, rng.randrange(DEPTH))


def work():
    rng = random.Random(1)
    for _ in range(BLOCKS * 8 // 10):
        go(rng, rng.randrange(DEPTH))
    threads = [threading.Thread(target=in_thread, args=(seed, BLOCKS // 40)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    asyncio.new_event_loop().run_until_complete(tasks(9, BLOCKS // 20))


def say(**values):
    print(json.dumps(values), flush=True)


say(event="ready")
for word in sys.stdin:
    if word.strip() != "go":
        break
    work()
    say(event="stacks", time_ns=time.time_ns(), stacks=truth)
    say(event="done")
