"""Allocates small objects, so many a second or as many as it can ("max"), until it is ended."""
import json
import sys
import time

rate = sys.argv[1]
batch = 10_000 if rate == "max" else int(rate) // 10
print(json.dumps({"event": "ready"}), flush=True)
while True:
    for _ in range(batch):
        object()
    if rate != "max":
        time.sleep(0.1)
