"""What `cargo xtask bench --python` watches: a program that does nothing but make small objects, ten frames deep. Of each
three one is let go at once, the others live for a thousand rounds.

    objects.py [FRAMES]

With FRAMES tracemalloc is started with so many. Every 50 ms or so one line goes to stdout, all since the start:
<wall ns> <CPU ns of this process> <objects made>. Runs until it is killed.
"""
import sys
import time
from itertools import repeat

if len(sys.argv) > 1:
    import tracemalloc

    tracemalloc.start(int(sys.argv[1]))

ROUNDS = 1000
ring = [None] * ROUNDS


class Node:
    __slots__ = ("next", "value")


def work(ring=ring, value=None):
    at = 0
    for _ in repeat(None, ROUNDS):
        object()
        node = Node()
        node.value = (value, value, value)
        ring[at] = node
        at += 1


def deep(levels):
    if levels:
        return deep(levels - 1)
    return work()


made = 0
said = 0
while True:
    deep(9)
    made += 3 * ROUNDS
    now = time.monotonic_ns()
    if now - said > 50_000_000:
        said = now
        print(now, time.process_time_ns(), made, flush=True)
