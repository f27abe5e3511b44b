"""An HTTP service with a leak of some 100 bytes a request among half a gigabyte of buffers that come and go, and a cache.
A request is "GET /N": it asks for the four entries from N on, which are made anew each time.

With an argument, the path of hunt_extension's build, all of that is done in C; else in Python. The service says its
port, and works until its stdin ends.
"""
import collections
import http.server
import importlib.machinery
import importlib.util
import json
import sys
import threading

BUFFERS = 8000
BUFFER_BYTES = 65536

sessions = []
buffers = collections.deque(maxlen=BUFFERS)
cache = {}


def remember_session():
    sessions.append(bytes(67))


def read_request():
    buffers.append(bytes(BUFFER_BYTES))


def fill_cache(number):
    cache[number] = bytes(5000)


class Lines:
    remember_session = staticmethod(remember_session)
    read_request = staticmethod(read_request)
    fill_cache = staticmethod(fill_cache)


def extension(path):
    loader = importlib.machinery.ExtensionFileLoader("hunt_extension", path)
    spec = importlib.util.spec_from_file_location("hunt_extension", path, loader=loader)
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


service = extension(sys.argv[1]) if len(sys.argv) > 1 else Lines


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # One packet for each answer.
    wbufsize = -1

    def do_GET(self):
        number = int(self.path[1:])
        service.remember_session()
        for _ in range(10):
            service.read_request()
        for entry in range(number, number + 4):
            service.fill_cache(entry)
        body = json.dumps({"entry": number}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
server.daemon_threads = True
threading.Thread(target=server.serve_forever, daemon=True).start()
print(json.dumps({"event": "ready", "port": server.server_port}), flush=True)
sys.stdin.read()
