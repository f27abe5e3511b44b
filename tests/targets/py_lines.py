"""Small and large objects, kept and let go. With "trace" tracemalloc tells what each line holds; else memwatch has to.

The protocol is that of truth.h. The truth: for each line of this file its bytes and blocks.
"""
import json
import sys
import time
import tracemalloc

traced = sys.argv[1] == "trace"
kept = []


class Point:
    __slots__ = ("x", "y")

    def __init__(self, i):
        self.x = i * 1000003
        self.y = str(i)


# No number is let go on a line of its own: versions that keep such numbers to use them again (3.14) would give it to
# another line, which tracemalloc knows and no allocator.
TEXTS = [i % 900 for i in range(20_000)]
LISTS = [i % 300 for i in range(20_000)]


def keep(count):
    for i in range(count):
        kept.append(Point(i))
        kept.append((i, i + 1, i + 2))
        kept.append(bytes(700))
        kept.append({"number": i, "text": "x" * TEXTS[i]})
        kept.append([i] * LISTS[i])


def churn(count):
    for i in range(count):
        numbers = [j * 1.5 for j in range(50)]
        words = {str(j): j for j in range(20)}
        del numbers, words


def let_go():
    for at in range(0, len(kept), 3):
        kept[at] = None


def say(**values):
    print(json.dumps(values), flush=True)


if traced:
    tracemalloc.start(1)
say(event="ready")
for word in sys.stdin:
    if word.strip() != "go":
        break
    keep(20_000)
    churn(2_000)
    let_go()
    lines = {}
    if traced:
        here = tracemalloc.Filter(True, __file__)
        for line in tracemalloc.take_snapshot().filter_traces([here]).statistics("lineno"):
            lines[line.traceback[0].lineno] = [line.size, line.count]
    say(event="lines", time_ns=time.time_ns(), lines=lines)
    say(event="done")
