"""A tiny web server for the tests, `python page.py DESCRIPTOR`: answers every GET with its process id.

After a GET of /stubborn it does not end on SIGTERM.
"""

import os
import signal
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from socket import socket


class Page(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/stubborn":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        body = str(os.getpid()).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


server = HTTPServer(("127.0.0.1", 0), Page, bind_and_activate=False)
server.socket.close()
server.socket = socket(fileno=int(sys.argv[1]))
server.serve_forever()
