"""Runs modules of CPython's own test suite over and over: the next word after "go" ends it, and all is told.

The protocol is that of truth.h. The truth: rounds, tests, and what failed.
"""
import io
import json
import sys
import threading
import unittest

MODULES = ["test_dict", "test_list", "test_json", "test_heapq", "test_struct"]

stop = threading.Event()
told = {"rounds": 0, "tests": 0, "failed": []}


def say(**values):
    print(json.dumps(values), flush=True)


def work():
    while not stop.is_set():
        for name in MODULES:
            suite = unittest.defaultTestLoader.loadTestsFromName("test." + name)
            result = unittest.TextTestRunner(stream=io.StringIO()).run(suite)
            told["tests"] += result.testsRun
            told["failed"] += [str(case) + why for case, why in result.failures + result.errors]
        told["rounds"] += 1


say(event="ready")
sys.stdin.readline()
worker = threading.Thread(target=work, daemon=True)
worker.start()
sys.stdin.readline()
stop.set()
worker.join()
say(event="suite", **told)
say(event="done")
sys.stdin.readline()
