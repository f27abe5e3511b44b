"""Small objects, more than 20 MB of them on some lines and more than 1 MB on others, and some large ones. With "trace"
tracemalloc tells what each line holds; else memwatch has to.

The protocol is that of truth.h. The truth: for each line of this file its bytes and blocks. All small objects are of a
multiple of 16 bytes, which is what pymalloc gives; tracemalloc knows what was asked for.
"""
import json
import sys
import time
import tracemalloc

traced = sys.argv[1] == "trace"
kept = []


class Node:
    __slots__ = ("a", "b", "c", "d")

    def __init__(self, value):
        self.a = value
        self.b = value
        self.c = value
        self.d = value


def of_16(least):
    """So many values that a tuple of them takes a multiple of 16 bytes: that differs by version."""
    while sys.getsizeof((None,) * least) % 16:
        least += 1
    return [None] * least


def triples(count, values=of_16(3)):
    return [tuple(values) for i in range(count)]


def nodes(count):
    return [Node(None) for i in range(count)]


def in_turn(count, values=of_16(9)):
    tuples = []
    strings = []
    for i in range(count):
        tuples.append(tuple(values))
        strings.append(bytes(63))
        if i % 100 == 0:
            tuples.append(bytes(2000))
    return tuples, strings


def let_go(count, values=of_16(5)):
    gone = [tuple(values) for i in range(count)]
    del gone[count // 3 :]
    return gone


def say(**values):
    print(json.dumps(values), flush=True)


if traced:
    tracemalloc.start(1)
say(event="ready")
for word in sys.stdin:
    if word.strip() != "go":
        break
    kept.append(triples(500_000))
    kept.append(nodes(150_000))
    kept.append(in_turn(60_000))
    kept.append(let_go(150_000))
    lines = {}
    if traced:
        here = tracemalloc.Filter(True, __file__)
        for line in tracemalloc.take_snapshot().filter_traces([here]).statistics("lineno"):
            lines[line.traceback[0].lineno] = [line.size, line.count]
    blocks = sys.getallocatedblocks()
    say(event="lines", time_ns=time.time_ns(), lines=lines, blocks=blocks)
    say(event="done")
