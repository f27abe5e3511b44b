"""Small objects whose number the program knows, some kept and some let go at once.

The protocol is that of truth.h. The truth: for each line of this file how many blocks of at most 512 bytes it allocated,
and how many bytes they asked for. What is kept is checked with what the
interpreter says that it has allocated.
"""
import json
import sys
import time
from itertools import repeat

OBJECTS = 40_000
truth = {}
kept = []


class Slots:
    __slots__ = ("a", "b")


# None through variables: a tuple of constants is made once. Without numbers to count by: they would be objects too.
def bare(times):
    for _ in times:
        kept.append(object())
    return 1, 16


def tuples(times, value=None):
    for _ in times:
        kept.append((value, value, value))
    return 1, sys.getsizeof((value, value, value))


def slots(times):
    for _ in times:
        kept.append(Slots())
    return 1, sys.getsizeof(Slots())


def strings(times, text="abcdefghijklmno", more="pqrstuvw" * 4):
    for _ in times:
        kept.append(text + more)
    return 1, sys.getsizeof(text + more)


def zeros(times):
    for _ in times:
        kept.append(bytes(207))
    return 1, sys.getsizeof(bytes(207))


def lists(times, value=None):
    for _ in times:
        kept.append([value, value])
    return 2, sys.getsizeof([value, value])


def let_go(times):
    for _ in times:
        object()
    return 1, 16


def say(**values):
    print(json.dumps(values), flush=True)


def work(function):
    before, count = sys.getallocatedblocks(), len(kept)
    blocks, size = function(repeat(None, OBJECTS))
    made = sys.getallocatedblocks() - before
    assert len(kept) == count or abs(made - blocks * OBJECTS) < OBJECTS // 100, (function, made)
    line = function.__code__.co_firstlineno + 2
    truth[line] = [size * OBJECTS, blocks * OBJECTS]


say(event="ready")
for word in sys.stdin:
    if word.strip() != "go":
        break
    for function in (bare, tuples, slots, strings, zeros, lists, let_go):
        work(function)
    say(event="truth", time_ns=time.time_ns(), lines=truth)
    say(event="done")
