"""The page over HTTP: a few files, and jobs that answer with a line of JSON for each event.

Everything is served by this process; nothing that the page loads, and nothing that is uploaded,
comes from or goes to another machine. A request is refused before its body is read if it comes from
another site's page, is too large, or too many wait already. A job ends when its browser goes away.
"""

import base64
import errno
import io
import ipaddress
import json
import select
import socket
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from PIL import Image

from .._version import __version__
from ..documents import check, parse_json
from ..errors import clear_message
from .drawing import CompareWish, DrawWish, compare, draw
from .editing import EditWish, edit
from .example import example_picture
from .job import Job
from .limits import LIMITS, Limits
from .models import Models
from .token_view import DecodeWish, TokensWish, decode_tokens, show_tokens
from .turns import Busy, Turns

STATIC = Path(__file__).parent / "static"
FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/asking.js": ("asking.js", "text/javascript; charset=utf-8"),
    "/painting.js": ("painting.js", "text/javascript; charset=utf-8"),
    "/tokens.js": ("tokens.js", "text/javascript; charset=utf-8"),
}
JOBS: dict[str, tuple[type[Any], Callable[..., dict[str, Any]]]] = {
    "/api/draw": (DrawWish, draw),
    "/api/edit": (EditWish, edit),
    "/api/tokens": (TokensWish, show_tokens),
    "/api/decode": (DecodeWish, decode_tokens),
    "/api/compare": (CompareWish, compare),
}
"""What is asked for, and the function that answers, by path."""
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_CHUNK = 1 << 16
_LOOK_SECONDS = 1.0  # time between two events of a job that waits


class BrowserGone(ConnectionError):
    """The browser closed the connection, so that nobody waits for the answer."""


class PageServer(ThreadingHTTPServer):
    """A server of the page, bound to one address.

    Args:
        models: Models that the page offers.
        host: Address to listen on.
        port: Port to listen on; 0: any free one.
        limits: Limits of requests and jobs.

    Raises:
        ValueError: If the port is in use, or the address is none of this machine.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(
        self, models: Models, host: str = "127.0.0.1", port: int = 0, limits: Limits = LIMITS
    ) -> None:
        self.models, self.limits, self.turns = models, limits, Turns(limits.waiting)
        self.host = host
        self._free = threading.BoundedSemaphore(limits.connections)
        if ":" in host:
            self.address_family = socket.AF_INET6
        try:
            super().__init__((host, port), PageHandler)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise ValueError(
                    f"port {port}: in use on {host}; expected a free one, or 0 for any"
                ) from None
            raise ValueError(
                f"host {host}, port {port}: {error.strerror or error}; expected an address of this "
                "machine and a port that may be opened"
            ) from None

    @property
    def address(self) -> str:
        """Address to open in a browser."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.server_port}/"

    @property
    def local(self) -> bool:
        """Whether only this machine reaches the page."""
        return is_local_name(self.host)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a connection in a thread of its own, or close it if there are too many."""
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve a connection, in its thread."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()


class PageHandler(BaseHTTPRequestHandler):
    """One request; see `PageServer`."""

    server: PageServer
    server_version = f"tessella/{__version__}"
    sys_version = ""

    def setup(self) -> None:
        """Give a slow browser as long as the limits say."""
        super().setup()
        self.connection.settimeout(self.server.limits.send_seconds)

    def handle(self) -> None:
        """Answer; a browser that went away needs no answer."""
        try:
            super().handle()
        except (ConnectionError, TimeoutError):
            self.close_connection = True

    def do_GET(self) -> None:
        """Answer with a file of the page, facts about the models, or an example picture."""
        if not self._from_this_page():
            return
        path, _, query = self.path.partition("?")
        if path in FILES:
            name, kind = FILES[path]
            self._answer(HTTPStatus.OK, (STATIC / name).read_bytes(), kind)
        elif path == "/api/models":
            limits = self.server.limits
            facts = self.server.models.facts() | {
                "version": __version__,
                "limits": {"pixels": limits.pixels, "bytes": limits.body_bytes * 3 // 4 - 65536},
            }
            self._answer_json(HTTPStatus.OK, facts)
        elif path == "/api/example":
            number = int(query) if query.isascii() and query.isdigit() and len(query) < 10 else 0
            self._answer(HTTPStatus.OK, png(example_picture(number)), "image/png")
        else:
            self._answer_json(HTTPStatus.NOT_FOUND, {"error": "there is nothing at this address"})

    def do_POST(self) -> None:
        """Run a job; its events are lines of JSON, of which the last is `done` or `error`."""
        if not self._from_this_page():
            return
        if self.path not in JOBS:
            self._refuse(HTTPStatus.NOT_FOUND, "there is nothing at this address")
            return
        length, most = self._length(), self.server.limits.body_bytes
        if length is None:
            self._refuse(HTTPStatus.LENGTH_REQUIRED, "the length of the request is not given")
        elif length > most:
            self._refuse(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"upload: {length / 2**20:,.1f} MiB, expected at most {most / 2**20:,.1f}, of "
                "which a picture takes a third more than its file",
            )
        else:
            try:
                with self.server.turns.place() as place:
                    self._work(length, place.wait)
            except Busy as error:
                self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, str(error))

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not logged; faults of ours are told by `socketserver`."""

    def _work(self, length: int, wait: Callable[[float], int]) -> None:
        """Read a request, wait for its turn, and do what it asks for."""
        schema, function = JOBS[self.path]
        try:
            body = self._body(length)
            wish = check(parse_json(body, name="request"), schema, name="request")
        except ValueError as error:
            self._answer_json(HTTPStatus.BAD_REQUEST, {"error": clear_message(error)})
            return
        del body
        self._begin(HTTPStatus.OK, "application/x-ndjson")
        while before := wait(_LOOK_SECONDS):
            self._tell({"event": "waiting", "before": before})
        job = Job(self._tell, seconds=self.server.limits.job_seconds)
        try:
            event = function(self.server.models, wish, job, self.server.limits)
        except (ConnectionError, TimeoutError):
            raise
        except Exception as error:
            message = clear_message(error)
            self._tell({"event": "error", "error": message or "a fault of ours; see the terminal"})
            if message is None:
                raise
            return
        self._tell(event)

    def _tell(self, event: dict[str, Any]) -> None:
        """Send an event, and end the job if the browser is gone."""
        readable = select.select([self.connection], [], [], 0)[0]
        if readable and not self.connection.recv(1, socket.MSG_PEEK):
            raise BrowserGone("the browser closed the connection")
        self.wfile.write(as_json(event) + b"\n")

    def _length(self) -> int | None:
        """Length of the body as the request gives it; None: it does not, or no number."""
        given = self.headers.get("Content-Length", "")
        whole = given.isascii() and given.isdigit() and len(given) < 20
        return int(given) if whole else None

    def _body(self, length: int) -> bytes:
        """The body of a request, if it comes in time.

        Raises:
            ValueError: If it ends early, or takes too long.
        """
        parts, left = [], length
        deadline = time.monotonic() + 2 * self.server.limits.send_seconds
        while left:
            part = self.rfile.read1(min(left, _CHUNK))
            if not part:
                raise ValueError("the request ended before all of it was there")
            if time.monotonic() > deadline:
                raise ValueError("the request took too long")
            parts.append(part)
            left -= len(part)
        return b"".join(parts)

    def _from_this_page(self) -> bool:
        """Refuse requests that pages of other sites make.

        A site could let its own name point to this machine (DNS rebinding), or send forms here.
        So a page that only this machine reaches answers to local names alone, a request that names
        its origin must name this page, and jobs are JSON, which other sites may not send.
        """
        name, origin = self.headers.get("Host", ""), self.headers.get("Origin")
        foreign = origin is not None and origin.partition("//")[2] != name
        if foreign or (self.server.local and not is_local_name(_without_port(name))):
            self._refuse(HTTPStatus.FORBIDDEN, "this page answers to itself alone")
            return False
        kind = self.headers.get("Content-Type", "").partition(";")[0].strip()
        if self.command == "POST" and kind != "application/json":
            self._refuse(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "expected application/json")
            return False
        return True

    def _refuse(self, status: HTTPStatus, message: str) -> None:
        """Answer with an error, after reading on for a moment.

        A connection that is closed with unread data is reset, and the browser never sees why.
        """
        left = min(self._length() or 0, 2 * self.server.limits.body_bytes)
        end = time.monotonic() + 5
        while left > 0 and time.monotonic() < end and (part := self.rfile.read1(_CHUNK)):
            left -= len(part)
        self._answer_json(status, {"error": message})

    def _answer_json(self, status: HTTPStatus, value: dict[str, Any]) -> None:
        self._answer(status, as_json(value), "application/json")

    def _answer(self, status: HTTPStatus, body: bytes, kind: str) -> None:
        self._begin(status, kind, {"Content-Length": str(len(body))})
        self.wfile.write(body)

    def _begin(self, status: HTTPStatus, kind: str, more: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in ({"Content-Type": kind} | _HEADERS | (more or {})).items():
            self.send_header(name, value)
        self.end_headers()


def _without_port(name: str) -> str:
    """Host of `host:port`, without the brackets of an IPv6 address."""
    if name.startswith("["):
        return name[1:].partition("]")[0]
    return name.partition(":")[0]


def is_local_name(name: str) -> bool:
    """Whether a name or address stands for this machine alone."""
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def as_json(value: dict[str, Any]) -> bytes:
    """A value as JSON on one line; pictures become addresses of PNG data."""
    text = json.dumps(value, allow_nan=False, default=_data_address, separators=(",", ":"))
    return text.encode("ascii")


def _data_address(picture: Image.Image) -> str:
    return f"data:image/png;base64,{base64.b64encode(png(picture)).decode('ascii')}"


def png(picture: Image.Image) -> bytes:
    """File of a picture, written fast rather than small."""
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=1)
    return file.getvalue()
