"""Real programs that keep much of what they make: a Flask application under load, a pandas job, an asyncio server with
many clients. With "trace" tracemalloc tells what each line holds; else memwatch has to. A number says how much work
there is. With "load" it works over and over until the next word.

The protocol is that of truth.h. The truth: for each line of any file, if it holds much, the bytes and blocks of its
small objects (up to 512 bytes), and those of its large ones; and whether all clients got the right answers.
"""
import asyncio
import collections
import gc
import json
import os
import subprocess
import sys
import threading
import time
import tracemalloc

which, how = sys.argv[1:3]
much = int(sys.argv[3]) if len(sys.argv) > 3 else 1
LEAST = 50_000
wrong = []
kept = []


def say(**values):
    print(json.dumps(values), flush=True)


def record(number):
    """What clients send as JSON: many small objects when it is read, far more than CPython's free lists have."""
    items = [{"sku": f"{number:06}-{item:03}", "price": number + item + 0.5} for item in range(600)]
    return {"number": number, "name": f"customer {number:06}", "items": items}


def flask_app():
    import logging

    import flask
    import jinja2
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").disabled = True
    app = flask.Flask("shop")
    page = "<html>{% for line in range(3) %}<p>order {{ number }}</p>{% endfor %}{{ 'x' * width }}</html>"
    app.jinja_loader = jinja2.DictLoader({"order.html": page})
    cache = {}
    sessions = collections.deque()
    kept.extend([cache, sessions])

    @app.route("/orders/<int:number>", methods=["GET", "POST"])
    def order(number):
        if flask.request.method == "POST":
            sessions.append(flask.request.get_json())
            cache[number] = flask.render_template("order.html", number=number, width=8000 + number % 7 * 100)
        return flask.jsonify(number=number, known=number in cache)

    server = make_server("127.0.0.1", 0, app, threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    clients = subprocess.Popen(
        [sys.executable, __file__, "clients", str(server.port)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )

    idle = threading.active_count()

    def work(count):
        clients.stdin.write(b"%d\n" % count)
        clients.stdin.flush()
        wrong.extend(json.loads(clients.stdout.readline()))
        # A thread that has answered may still read for more, into a buffer of 10 MB.
        until = time.monotonic() + 10
        while threading.active_count() > idle and time.monotonic() < until:
            time.sleep(0.01)

    work(1)
    return lambda: work(8 * much)


def flask_clients(port):
    """Four at a time, in a process of their own; it ends with the application."""
    import http.client

    def client(begin, count):
        connection = http.client.HTTPConnection("127.0.0.1", port)
        for number in range(begin, begin + count):
            body = json.dumps(record(number))
            connection.request("POST", f"/orders/{number}", body, {"Content-Type": "application/json"})
            answer = json.loads(connection.getresponse().read())
            if answer != {"number": number, "known": True}:
                wrong.append(answer)
        connection.close()

    for count in map(int, sys.stdin):
        threads = [threading.Thread(target=client, args=(n * 10_000, count)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        print(json.dumps(wrong), flush=True)


def pandas_job():
    import io

    import pandas

    count = 15_000 * much

    def work():
        rows = (f"{n},store {n % 50},{n % 977}.25,item number {n % 9000}\n" for n in range(count))
        table = pandas.read_csv(io.StringIO("id,store,price,item\n" + "".join(rows)))
        table["total"] = table["price"] * 3 + table["id"]
        table["label"] = [f"{store}/{item}" for store, item in zip(table["store"], table["item"])]
        stores = table.groupby("store", as_index=False)["total"].sum()
        merged = table.merge(stores, on="store", suffixes=("", "_of_store"))
        kept[:] = [table, stores, merged, merged.sort_values("price"), table.to_dict("list")]
        if len(merged) != count:
            wrong.append(len(merged))

    return work


class Message:
    """No tuple: CPython keeps free ones, and what comes out of a free list stands with the line that had it first."""

    __slots__ = ("number", "size", "text")

    def __init__(self, number, size, text):
        self.number = number
        self.size = size
        self.text = text


def asyncio_server():
    store = {}
    history = []
    hold = []
    kept.extend([store, history])

    async def serve(reader, writer):
        while header := await reader.readline():
            number, size = map(int, header.split())
            store[number] = await reader.readexactly(size)
            history.append(Message(number, size, f"message {number:09} of a client of ours, with {size:05} bytes"))
            writer.write(f"{number} {size}\n".encode())
            await writer.drain()
        writer.close()

    async def client(port, begin):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for number in range(begin, begin + 20 * much):
            body = b"x" * (600 + number % 7 * 100)
            writer.write(f"{number} {len(body)}\n".encode() + body)
            answer = await reader.readline()
            if answer != f"{number} {len(body)}\n".encode():
                wrong.append(answer.decode())
        hold.append((reader, writer))

    async def begin():
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        return server.sockets[0].getsockname()[1]

    async def load(port):
        for _, writer in hold:
            writer.close()
        hold.clear()
        await asyncio.gather(*(client(port, n * 10_000) for n in range(50)))

    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    port = asyncio.run_coroutine_threadsafe(begin(), loop).result()
    return lambda: asyncio.run_coroutine_threadsafe(load(port), loop).result()


def lines():
    """All that tracemalloc knows, by line."""
    snapshot = tracemalloc.take_snapshot()
    sums = collections.defaultdict(lambda: [0] * 4)
    for trace in snapshot.traces:
        frame = trace.traceback[0]
        held = sums[frame.filename, frame.lineno]
        at = 0 if trace.size <= 512 else 2
        held[at] += trace.size
        held[at + 1] += 1
    return {f"{os.path.basename(file)}:{line}": held for (file, line), held in sums.items() if held[0] + held[2] > LEAST}


def over_and_over(work):
    sys.stdin.readline()
    stop = threading.Event()
    rounds = 0

    def until_told():
        nonlocal rounds
        while not stop.is_set():
            work()
            rounds += 1
            for one in kept:
                if hasattr(one, "clear"):
                    one.clear()

    worker = threading.Thread(target=until_told)
    worker.start()
    sys.stdin.readline()
    stop.set()
    worker.join()
    say(event="load", rounds=rounds, wrong=wrong)
    say(event="done")
    sys.stdin.readline()
    sys.exit()


if which == "clients":
    flask_clients(int(how))
    sys.exit()
work = {"flask": flask_app, "pandas": pandas_job, "asyncio": asyncio_server}[which]()
gc.collect()
if how == "trace":
    tracemalloc.start(1)
say(event="ready")
if how == "load":
    over_and_over(work)
for word in sys.stdin:
    if word.strip() != "go":
        break
    work()
    gc.collect()
    say(event="lines", lines=lines() if how == "trace" else {}, wrong=wrong, time_ns=time.time_ns())
    say(event="done")
