#!/usr/bin/python3
"""Answers the prediction contract with probabilities of 0.1; STUB_MODE: how it misbehaves."""

import http.server
import json
import os
import signal
import sys
import time

MODE = os.environ.get("STUB_MODE", "good")


class Stub(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.answer({"mode": MODE, "uid": os.getuid()})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        row = [0.9 if MODE == "wrong" else 0.1] * 10
        self.answer({"predictions": [row for _ in body["instances"]]})

    def answer(self, body):
        data = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_arguments):
        pass


signal.signal(signal.SIGTERM, lambda *_arguments: sys.exit(0))
print("stub starts, mode", MODE, flush=True)
if MODE == "exits":
    print("cannot load the model", file=sys.stderr)
    sys.exit(3)
while MODE == "hangs":
    time.sleep(1)
address = (os.environ.get("HOST", "0.0.0.0"), int(os.environ.get("PORT", "8080")))
http.server.ThreadingHTTPServer(address, Stub).serve_forever()
