# What Python programs allocate under; for every CPython from 2.7 on. Arguments: names of further modules to use.
import collections
import functools
import hashlib
import io
import json
import re
import sys
import time
import zlib


class Node(object):
    def __init__(self, value, below):
        self.value, self.below = value, below

    def __eq__(self, other):
        return [self.value] * 100 == [other.value] * 100

    def __hash__(self):
        return hash("%d" % self.value * 60)

    def __iter__(self):
        for node in self.below:
            yield node
            for inner in node:
                yield inner

    def __repr__(self):
        return "Node(%r, %r)" % (self.value, self.below)


def tree(depth):
    return Node(depth, [tree(depth - 1) for _ in range(2)] if depth else [])


def fails(depth):
    try:
        if depth:
            return fails(depth - 1)
        raise ValueError("x" * 1000)
    finally:
        bytearray(600)


@functools.wraps(fails)
def texts(n):
    text = "".join("word%d " % i for i in range(200)) * 3
    found = re.findall(r"(w\w+)(\d) ", text)
    counted = collections.Counter(word for word, _ in found)
    dumped = json.dumps({"a": [1, 2.5, None] * 50, "b": text, "c": {str(i): i for i in range(50)}}, indent=2)
    return sorted(json.loads(dumped).items(), key=lambda item: (str(item[1]) * 2, counted["word1"], n))


def streams(n):
    data = ("some bytes %d" % n).encode("ascii") * 500
    packed = zlib.compress(data)
    out = io.BytesIO()
    out.write(zlib.decompress(packed))
    out.write(hashlib.sha256(data).digest())
    with io.open("/proc/self/status", encoding="utf-8") as lines:
        return out.getvalue() + "".join(lines).encode("utf-8")


def numbers(numpy, n):
    a = numpy.arange(3000, dtype=float).reshape(50, 60)
    b = numpy.sort((a.dot(a.T) + n).ravel())[::3].astype("int32")
    c = numpy.linalg.inv(numpy.eye(40) * (n + 1)) + numpy.fft.fft(numpy.ones(512)).real[:40]
    d = numpy.concatenate([numpy.unique(b), numpy.where(b > 5)[0]])
    return repr(numpy.array([[str(x) for x in row] for row in c[:3]])), d.sum()


def one_round(n, modules):
    nodes = tree(5)
    len(set(nodes)), repr(nodes), [node for node in nodes]
    texts(n), streams(n)
    try:
        fails(n % 9)
    except ValueError:
        pass
    for name, module in modules.items():
        if name == "numpy":
            numbers(module, n)
        else:
            module.call(lambda m: [0] * (m + 70), n), module.sort([n, 3, 7, 1], lambda x: "%d" % x * 200)


loaded = {name: __import__(name) for name in sys.argv[1:]}
sys.stdout.write('{"event":"ready"}\n')
sys.stdout.flush()
while True:
    for number in range(10):
        one_round(number, loaded)
    time.sleep(0.001)
