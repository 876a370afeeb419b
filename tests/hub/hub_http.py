"""HTTP for the local Hub: bodies streamed in and out, refusals, and faults on request.

A fault is a dict in `hub.faults`, applied to the first `times` (1) requests of which "METHOD /path"
matches the pattern `match`, after the first `skip` (0):

    {"match": "POST /api/models/.*/commit/", "status": 500, "error": "text", "headers": {...}}
    {"match": "/merge", "status": 504, "late": True}    ... after the work: what was asked is done
    {"match": "PUT /lfs/", "drop": "before"}   close the connection before the body is read
    {"match": "PUT /lfs/", "drop": "body"}     ... after half of the body
    {"match": "/merge", "drop": "after"}       ... after the work, in place of the answer
    {"match": "GET /api/", "delay": 3.0}       wait this many seconds first
    {"match": "PUT /lfs/", "corrupt": True}    flip a bit of the first byte that is stored
    {"match": "/merge", "call": function}      call it first: somebody else acts just then
    {"match": "GET /api/", "answer": {...}}    answer 200 with this, as JSON, or bytes as HTML
"""

import json
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from io import BytesIO
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import parse_qsl, unquote, urlsplit

if TYPE_CHECKING:
    from fakehub import FakeHub

CHUNK_BYTES = 1 << 20


@dataclass
class Reply:
    """An answer: `data` as JSON, or the `size` bytes of `file` from where it stands."""

    data: Any = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    file: BinaryIO | None = None
    size: int = 0


class Refusal(Exception):
    """An answer that is an error, in the headers and fields that the client reads."""

    def __init__(self, status: int, message: str, code: str = "") -> None:
        super().__init__(message)
        headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        self.reply = Reply({"error": message}, status, headers)


class Dropped(Exception):
    """The connection is to be closed without an answer."""


class Handler(BaseHTTPRequestHandler):
    """One connection. A subclass answers requests in `route`."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # header and body are two writes: 40 ms apart otherwise
    hub: "FakeHub"

    def route(self, path: str) -> Reply:
        """Return the answer to this request; `path` is still quoted."""
        raise NotImplementedError

    def log_message(self, *args: object) -> None:
        """Print nothing."""

    def handle(self) -> None:
        try:
            super().handle()
        except ConnectionError:  # the client was killed
            self.close_connection = True

    def answer(self) -> None:
        """Answer one request, or suffer the fault that is set for it."""
        url = urlsplit(self.path)
        request = f"{self.command} {unquote(url.path)}"
        self.query = dict(parse_qsl(url.query))
        self.entry: dict[str, Any] = {
            "m": self.command,
            "p": unquote(url.path),
            "q": self.query,
            "auth": self.headers.get("Authorization", ""),
            "status": None,
            "bytes": 0,
        }
        self.fault = self.hub.take_fault(request, self.entry)
        self.body = self.read_body()
        try:
            reply = self.failure() or self.route(url.path)
            for _ in self.body:
                pass  # what is left of it would be taken for the next request
            if "late" in self.fault:
                reply = self.error()
            if self.fault.get("drop") == "after":
                raise Dropped
            self.send(reply)
        except Refusal as refusal:
            for _ in self.body:
                pass
            self.send(refusal.reply)
        except Dropped:
            self.entry["status"] = "dropped"
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
        except ConnectionError:  # the client was killed
            self.entry["status"] = self.entry["status"] or "gone"
            raise

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = answer

    def failure(self) -> Reply | None:
        """Act, wait, drop the connection or return an error, as the fault says."""
        if "call" in self.fault:
            self.fault["call"]()
        time.sleep(self.fault.get("delay", 0))
        if self.fault.get("drop") == "before":
            raise Dropped
        if self.fault.get("drop") == "body":
            half = int(self.headers.get("Content-Length") or 0) // 2
            while self.entry["bytes"] < half and next(self.body, b""):
                pass
            raise Dropped
        if "answer" in self.fault:
            page = self.fault["answer"]
            if isinstance(page, bytes):
                html = {"Content-Type": "text/html"}
                return Reply(headers=html, file=BytesIO(page), size=len(page))
            return Reply(page)
        return self.error() if "status" in self.fault and "late" not in self.fault else None

    def error(self) -> Reply:
        """Return the error that the fault names."""
        text = {"error": self.fault.get("error", "injected")}
        return Reply(text, self.fault["status"], self.fault.get("headers", {}))

    def read_body(self) -> Iterator[bytes]:
        """Yield the body in chunks; ConnectionError if it ends early."""
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            while size := int(self.rfile.readline().split(b";")[0], 16):
                yield from self.read_exactly(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            yield from self.read_exactly(int(self.headers.get("Content-Length") or 0))

    def read_exactly(self, size: int) -> Iterator[bytes]:
        while size:
            chunk = self.rfile.read(min(size, CHUNK_BYTES))
            if not chunk:
                raise ConnectionError
            size -= len(chunk)
            self.entry["bytes"] += len(chunk)
            yield chunk

    def read_json(self) -> Any:
        """Return the body, parsed."""
        return json.loads(b"".join(self.body) or b"{}")

    def rot(self, data: bytes) -> bytes:
        """Return what is stored of `data`: a bit of it is flipped if the fault says so, once."""
        if data and self.fault.pop("corrupt", False):
            return bytes([data[0] ^ 1]) + data[1:]
        return data

    def send(self, reply: Reply) -> None:
        self.entry["status"] = reply.status
        body = (
            b"" if reply.file else json.dumps(reply.data if reply.data is not None else {}).encode()
        )
        self.send_response(reply.status)
        headers = {
            "Content-Length": str(reply.size if reply.file else len(body)),
            "Content-Type": "application/octet-stream" if reply.file else "application/json",
            "X-Request-Id": "local-hub",
        }
        for name, value in (headers | reply.headers).items():
            self.send_header(name, value)
        self.end_headers()
        if reply.file:
            with reply.file as file:
                left = reply.size
                while left and (chunk := file.read(min(left, CHUNK_BYTES))):
                    self.wfile.write(chunk)
                    left -= len(chunk)
        elif self.command != "HEAD":
            self.wfile.write(body)
