"""Small objects, more than 20 MB of them on some lines and more than 1 MB on others, and some large ones. With "trace"
tracemalloc tells what each line holds; else memwatch has to.

The protocol is that of truth.h. The truth: for each line of this file its bytes and blocks, and what these blocks take.
pymalloc gives multiples of 16 bytes; hardly any of these objects asks for one.
"""
import json
import sys
import time
import tracemalloc
from collections import Counter

traced = sys.argv[1] == "trace"
kept = []


class Node:
    __slots__ = ("a", "b", "c", "d")

    def __init__(self, value):
        self.a = value
        self.b = value
        self.c = value
        self.d = value


def triples(count):
    return [(i, None, None) for i in range(count)]


def nodes(count):
    return [Node(None) for i in range(count)]


def in_turn(count):
    tuples = []
    strings = []
    for i in range(count):
        tuples.append((None, None, None, None, None, None, i % 7, None, None, None))
        strings.append(bytes(68))
        if i % 100 == 0:
            tuples.append(bytes(2000))
    return tuples, strings


def let_go(count):
    gone = [(i % 5, None, None, None, None) for i in range(count)]
    del gone[count // 3 :]
    return gone


def numbers(count):
    return [1000 + i for i in range(count)]


def strings(count):
    return [f"customer {i * i}" for i in range(count)]


def say(**values):
    print(json.dumps(values), flush=True)


if traced:
    tracemalloc.start(1)
say(event="ready")
for word in sys.stdin:
    if word.strip() != "go":
        break
    kept.append(triples(330_000))
    kept.append(nodes(150_000))
    kept.append(in_turn(60_000))
    kept.append(let_go(150_000))
    kept.append(numbers(200_000))
    kept.append(strings(300_000))
    lines = {}
    if traced:
        # As it is kept, domain, size, frames: statistics take ten times as long.
        traces = tracemalloc.take_snapshot().traces._traces
        sizes = Counter((trace[2][0], trace[1]) for trace in traces)
        for ((file, line), size), blocks in sizes.items():
            if file == __file__:
                held = lines.setdefault(line, [0, 0, 0])
                held[0] += size * blocks
                held[1] += blocks
                held[2] += blocks * (size if size > 512 else (size + 15) // 16 * 16)
    blocks = sys.getallocatedblocks()
    say(event="lines", time_ns=time.time_ns(), lines=lines, blocks=blocks)
    say(event="done")
