#!/usr/bin/env python3
"""Send requests to the gateway of this host over one connection, print the answers as JSON.

Usage: ask.py '[{"path": "/", "method": "GET", "headers": {}, "bytes": 0, "hex": "", "chunked": false}, ...]'
An answer is {"status": int, "headers": {...}, "body": str}; "status" 0 with "body" the error when there was none.
"""

import http.client
import json
import ssl
import sys

PIECE = 8192


def pieces(total):
    while total > 0:
        yield b"0" * min(PIECE, total)
        total -= PIECE


def main():
    # The certificate signs itself, so it is its own authority.
    context = ssl.create_default_context(cafile="/etc/haproxy/certificate.pem")
    context.check_hostname = False
    connection = http.client.HTTPSConnection("127.0.0.1", 443, context=context, timeout=20)
    answers = []
    for request in json.loads(sys.argv[1]):
        size = request.get("bytes", 0)
        body = pieces(size) if request.get("chunked") else b"0" * size or None
        body = bytes.fromhex(request["hex"]) if "hex" in request else body
        try:
            connection.request(
                request.get("method", "POST" if body else "GET"),
                request["path"],
                body,
                request.get("headers", {}),
                encode_chunked=bool(request.get("chunked")),
            )
            response = connection.getresponse()
            answers.append(
                {
                    "status": response.status,
                    "headers": {name.lower(): value for name, value in response.getheaders()},
                    "body": response.read().decode(),
                }
            )
        except OSError as error:
            connection.close()
            answers.append({"status": 0, "headers": {}, "body": repr(error)})
    print(json.dumps(answers))


main()
