"""Headless Chromium for tests: what a page loads, says, computes and looks like.

Speaks the DevTools protocol over two pipes (file descriptors 3 and 4 of the browser, JSON ended by
a zero byte), so it needs no port and no further package.
"""

import base64
import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

CHROMIUM = Path("/usr/bin/chromium")
_FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--remote-debugging-pipe",
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-domain-reliability",
    "--disable-extensions",
    "--disable-sync",
    "--disable-crash-reporter",
    "--disable-dev-shm-usage",
    "--metrics-recording-only",
    "--mute-audio",
    "--hide-scrollbars",
    "--host-resolver-rules=MAP * ~NOTFOUND",  # nothing outside can be reached, only asked for
)


class BrowserError(RuntimeError):
    """The browser did not start, did not answer in time, or refused a command."""


@dataclass
class Visit:
    """What happened on one page.

    Attributes:
        url: The page.
        messages: Console messages, exceptions and log entries (refusals of the policy among them).
        requests: Every URL that the page asked for, itself and data URIs among them.
        values: Results of the expressions, in their order.
    """

    url: str
    messages: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    values: list[Any] = field(default_factory=list)

    @property
    def outside(self) -> list[str]:
        """Requests for anything but the page itself and data URIs."""
        return [url for url in self.requests if url != self.url and not url.startswith("data:")]


class Browser:
    """A browser of its own, with an empty profile; use as a context manager, which ends it."""

    def __init__(self, *, timeout: float = 30.0) -> None:
        """Start it; `timeout` is for each answer, in seconds."""
        self.timeout = timeout
        self._profile = Path(tempfile.mkdtemp(prefix="chromium-"))
        self._number = 0
        self._pending = b""
        self._events: list[dict[str, Any]] = []
        theirs_in, self._out = _pipe()
        self._in, theirs_out = _pipe()
        null = os.devnull
        actions = [
            (os.POSIX_SPAWN_OPEN, 0, null, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, null, os.O_WRONLY, 0),
            (os.POSIX_SPAWN_OPEN, 2, null, os.O_WRONLY, 0),
            (os.POSIX_SPAWN_DUP2, theirs_in, 3),
            (os.POSIX_SPAWN_DUP2, theirs_out, 4),
        ]
        command = [str(CHROMIUM), *_FLAGS, f"--user-data-dir={self._profile}", "about:blank"]
        environment = os.environ | {"HOME": str(self._profile)}
        try:
            self._process = os.posix_spawn(
                CHROMIUM, command, environment, file_actions=actions, setsid=True
            )
        finally:
            os.close(theirs_in)
            os.close(theirs_out)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the browser and its children, and remove its profile."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self._process, 0)
        os.close(self._in)
        os.close(self._out)
        for _ in range(20):  # children may write for a moment longer
            shutil.rmtree(self._profile, ignore_errors=True)
            if not self._profile.exists():
                break
            time.sleep(0.05)

    def visit(
        self,
        file: Path,
        expressions: Sequence[str] = (),
        *,
        width: int = 1280,
        height: int = 900,
        dark: bool = False,
        screenshot: Path | None = None,
    ) -> Visit:
        """Open a file, wait until it is loaded, evaluate expressions, and take its picture.

        Args:
            file: HTML file.
            expressions: JavaScript; promises are awaited, values must fit JSON.
            width: Of the window, in CSS pixels.
            height: Of the window, in CSS pixels.
            dark: Whether the page is told to prefer dark colours.
            screenshot: PNG to write, of the whole page.

        Raises:
            BrowserError: If the browser does not answer, or an expression fails.
        """
        visit = Visit(file.resolve().as_uri())
        target = self._ask("Target.createTarget", url="about:blank")["targetId"]
        session = self._ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Network", "Log", "Runtime", "Page"):
            self._ask(f"{domain}.enable", session)
        window = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self._ask("Emulation.setDeviceMetricsOverride", session, **window)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._ask("Emulation.setEmulatedMedia", session, features=[scheme])
        self._events.clear()
        answer = self._ask("Page.navigate", session, url=visit.url)
        if "errorText" in answer:
            raise BrowserError(f"{visit.url}: {answer['errorText']}")
        self._until("Page.loadEventFired", session)
        for expression in expressions:
            answer = self._ask(
                "Runtime.evaluate",
                session,
                expression=expression,
                awaitPromise=True,
                returnByValue=True,
            )
            if "exceptionDetails" in answer:
                details = answer["exceptionDetails"]
                said = details.get("exception", {}).get("description", details["text"])
                raise BrowserError(f"{expression}: {said}")
            visit.values.append(answer["result"].get("value"))
        if screenshot is not None:
            size = self._ask("Page.getLayoutMetrics", session)["cssContentSize"]
            clip = {"x": 0, "y": 0, "width": width, "height": size["height"], "scale": 1}
            shot = self._ask(
                "Page.captureScreenshot", session, clip=clip, captureBeyondViewport=True
            )
            screenshot.write_bytes(base64.b64decode(shot["data"]))
        self._settle(0.15)
        for event in self._events:
            if event.get("sessionId") == session:
                _note(visit, event["method"], event["params"])
        self._ask("Target.closeTarget", targetId=target)
        return visit

    def _ask(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """Send a command and wait for its answer; events on the way are kept."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = session
        blob = json.dumps(message).encode() + b"\0"
        with contextlib.suppress(BrokenPipeError):  # said below, by the missing answer
            while blob:
                blob = blob[os.write(self._out, blob) :]
        deadline = time.monotonic() + self.timeout
        while True:
            answer = self._next(deadline, method)
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise BrowserError(f"{method}: {answer['error']['message']}")
                return answer["result"]
            self._events.append(answer)

    def _until(self, method: str, session: str) -> None:
        """Wait for an event."""
        deadline = time.monotonic() + self.timeout
        while not any(
            e.get("method") == method and e.get("sessionId") == session for e in self._events
        ):
            self._events.append(self._next(deadline, method))

    def _settle(self, seconds: float) -> None:
        """Keep what comes within some seconds."""
        end = time.monotonic() + seconds
        with contextlib.suppress(TimeoutError):
            while True:
                self._events.append(self._read(end))

    def _next(self, deadline: float, waiting_for: str) -> dict[str, Any]:
        try:
            return self._read(deadline)
        except TimeoutError:
            raise BrowserError(f"no {waiting_for} within {self.timeout:g} seconds") from None

    def _read(self, deadline: float) -> dict[str, Any]:
        """The next message, or TimeoutError."""
        while b"\0" not in self._pending:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._in], [], [], left)[0]:
                raise TimeoutError
            blob = os.read(self._in, 1 << 20)
            if not blob:
                raise BrowserError("the browser ended by itself")
            self._pending += blob
        message, _, self._pending = self._pending.partition(b"\0")
        return json.loads(message)


def _note(visit: Visit, method: str, parameters: dict[str, Any]) -> None:
    """Enter an event into the record of a visit."""
    match method:
        case "Network.requestWillBeSent":
            visit.requests.append(parameters["request"]["url"])
        case "Runtime.consoleAPICalled":
            words = [str(a.get("value", a.get("description"))) for a in parameters["args"]]
            visit.messages.append(f"console.{parameters['type']}: {' '.join(words)}")
        case "Runtime.exceptionThrown":
            details = parameters["exceptionDetails"]
            said = details.get("exception", {}).get("description", details["text"])
            visit.messages.append(f"exception: {said}")
        case "Log.entryAdded":
            entry = parameters["entry"]
            visit.messages.append(f"{entry['source']} {entry['level']}: {entry['text']}")


def _pipe() -> tuple[int, int]:
    """Ends to read from and to write to, both above the descriptors that the browser uses."""
    ends = []
    for end in os.pipe():
        ends.append(fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10))
        os.close(end)
    return ends[0], ends[1]
