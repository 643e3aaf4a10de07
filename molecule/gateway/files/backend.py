#!/usr/bin/env python3
"""A service that answers every request with what it received. Usage: backend.py ADDRESS PORT"""

import json
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Echo(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def body_length(self):
        if self.headers.get("transfer-encoding") != "chunked":
            return len(self.rfile.read(int(self.headers.get("content-length") or 0)))
        total = 0
        while size := int(self.rfile.readline(), 16):
            total += len(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return total

    def answer(self):
        received = {
            "port": self.server.server_port,
            "path": self.path,
            "bytes": self.body_length(),
            "headers": {name.lower(): value for name, value in self.headers.items()},
        }
        time.sleep(float(self.headers.get("x-seconds") or 0))
        # Lets a test ask for a failure of one server.
        failing = self.headers.get("x-fail-port") == str(self.server.server_port)
        status = 503 if failing else 404 if self.path.startswith("/missing") else 200
        body = json.dumps(received).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = answer

    def log_message(self, *arguments):
        pass


ThreadingHTTPServer((sys.argv[1], int(sys.argv[2])), Echo).serve_forever()
