"""The Internet of these tests, in a network namespace of its own: a name server, http, https and a place that must stay private.

    outside.py FOLDER

FOLDER/www is served, FOLDER/cert.pem and key.pem speak for it, FOLDER/seen.log tells all that came. Prints "ready".
"""

import http.server
import os
import socket
import ssl
import struct
import sys
import threading

PUBLIC = "93.184.216.34"
PRIVATE = "10.11.12.13"
ZONE = ".outside.example"
HERE = sys.argv[1]
LOG = open(os.path.join(HERE, "seen.log"), "a", buffering=1)
ASKED = {}
# Names that are another word for one.
ALIASES = {
    "alias" + ZONE: "private" + ZONE,
    "alias-of-denied" + ZONE: "denied" + ZONE,
    "alias-of-allowed" + ZONE: "allowed" + ZONE,
}


def note(*words):
    LOG.write(" ".join(words) + "\n")


def addresses(name):
    """What a name resolves to; None for one that does not exist."""
    if name == "private" + ZONE:
        return [PRIVATE]
    if name == "mixed" + ZONE:
        return [PUBLIC, PRIVATE]
    if name == "rebind" + ZONE:
        # Public when it is looked at, the host itself when it is used.
        ASKED[name] = ASKED.get(name, 0) + 1
        return [PUBLIC] if ASKED[name] == 1 else ["127.0.0.1"]
    return [PUBLIC] if name.endswith(ZONE) else None


def answer(question):
    ident, flags, count = struct.unpack("!HHH", question[:6])
    labels, at = [], 12
    while question[at]:
        labels.append(question[at + 1 : at + 1 + question[at]].decode("latin1"))
        at += question[at] + 1
    kind = struct.unpack("!H", question[at + 1 : at + 3])[0]
    end = at + 5
    name = ".".join(labels).lower()
    note("dns", name)
    found = addresses(name)
    records = b""
    number = 0
    if found and kind == 1:
        owner = b"\xc0\x0c"
        if name in ALIASES:
            other = ALIASES[name]
            target = b"".join(bytes([len(l)]) + l.encode() for l in other.split(".")) + b"\0"
            records += owner + struct.pack("!HHIH", 5, 1, 0, len(target)) + target
            owner, found, number = target, addresses(other), 1
        for address in found:
            records += owner + struct.pack("!HHIH", 1, 1, 0, 4) + socket.inet_aton(address)
            number += 1
    code = 3 if found is None else 0
    head = struct.pack("!HHHHHH", ident, 0x8180 | code, 1, number, 0, 0)
    return head + question[12:end] + records


def dns_udp():
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.bind((PUBLIC, 53))
    while True:
        question, client = s.recvfrom(4096)
        try:
            s.sendto(answer(question), client)
        except (IndexError, struct.error):
            note("dns", "malformed")


class Handler(http.server.SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    scheme = "http"

    def __init__(self, *args):
        super().__init__(*args, directory=os.path.join(HERE, "www"))

    def note(self):
        note(self.scheme, self.headers.get("Host", "-"), self.command, self.path)

    def do_GET(self):
        self.note()
        if self.path == "/whoami":
            # Says back what it was told, as careless servers do.
            told = self.headers.get("Authorization", "nobody")
            note("told", self.headers.get("Host", "-"), told)
            return self.give(f"you are {told}\n".encode())
        if self.path.startswith("/members/"):
            # For whoever says who they are.
            if "Authorization" not in self.headers:
                self.send_response(401)
                self.send_header("WWW-Authenticate", 'Basic realm="members"')
                self.send_header("Content-Length", "0")
                return self.end_headers()
            note("told", self.headers.get("Host", "-"), self.headers["Authorization"])
            self.path = self.path.removeprefix("/members")
        if self.path == "/ws":
            # Whatever comes after the switch goes back.
            self.send_response(101)
            self.send_header("Connection", "upgrade")
            self.send_header("Upgrade", "websocket")
            self.end_headers()
            self.close_connection = True
            while data := self.connection.recv(4096):
                self.connection.sendall(data)
            return None
        if self.path == "/slow":
            # An answer that does not come to its end.
            self.send_response(200)
            self.send_header("Content-Length", "10")
            self.end_headers()
            threading.Event().wait()
        super().do_GET()

    def give(self, body):
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_HEAD(self):
        self.note()
        super().do_HEAD()

    def do_POST(self):
        self.note()
        if self.path == "/token":
            note("buyer", self.headers.get("Authorization", "nobody"))
            return self.give(b'{"access_token":"bought-access-token","token_type":"Bearer","expires_in":3600}')
        self.give(self.rfile.read(int(self.headers.get("Content-Length") or 0)))

    def log_message(self, *_):
        pass


class Secure(Handler):
    scheme = "https"


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_):
        """A client that hangs up or does not trust us is nothing to report."""


def serve(address, port, handler, tls=None):
    server = Server((address, port), handler)
    if tls:
        server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    threading.Thread(target=server.serve_forever, daemon=True).start()


class Private(Handler):
    scheme = "private"


def main():
    threading.Thread(target=dns_udp, daemon=True).start()
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(os.path.join(HERE, "cert.pem"), os.path.join(HERE, "key.pem"))
    serve(PUBLIC, 80, Handler)
    serve(PUBLIC, 443, Secure, tls)
    serve(PRIVATE, 80, Private)
    # A datagram comes back as it went.
    echo = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    echo.bind((PUBLIC, 7))
    print("ready", flush=True)
    while True:
        data, client = echo.recvfrom(65536)
        note("udp", data.decode("latin1"))
        echo.sendto(data, client)


main()
