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
from collections.abc import Iterator, Sequence
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
    # Nothing outside can be reached, only asked for.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
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
        place: Path | str,
        expressions: Sequence[str] = (),
        *,
        width: int = 1280,
        height: int = 900,
        dark: bool = False,
        screenshot: Path | None = None,
    ) -> Visit:
        """Open a page, wait until it is loaded, evaluate expressions, and take its picture.

        Args:
            place: HTML file, or an address.
            expressions: JavaScript; promises are awaited, values must fit JSON.
            width: Of the window, in CSS pixels.
            height: Of the window, in CSS pixels.
            dark: Whether the page is told to prefer dark colours.
            screenshot: PNG to write, of the whole page.

        Raises:
            BrowserError: If the browser does not answer, or an expression fails.
        """
        with self.page(place, width=width, height=height, dark=dark) as page:
            for expression in expressions:
                page.visit.values.append(page.evaluate(expression))
            if screenshot is not None:
                page.screenshot(screenshot)
        return page.visit

    @contextlib.contextmanager
    def page(
        self,
        place: Path | str,
        *,
        width: int = 1280,
        height: int = 900,
        dark: bool = False,
        scale: float = 1,
        touch: bool = False,
    ) -> Iterator["Page"]:
        """Open a page and wait until it is loaded; what happened on it is in `visit` afterwards.

        Args:
            place: HTML file, or an address.
            width: Of the window, in CSS pixels.
            height: Of the window, in CSS pixels.
            dark: Whether the page is told to prefer dark colours.
            scale: Pixels of the screen for each CSS pixel.
            touch: Whether drags are those of a finger.

        Raises:
            BrowserError: If the browser does not answer.
        """
        visit = Visit(place.resolve().as_uri() if isinstance(place, Path) else place)
        target = self._ask("Target.createTarget", url="about:blank")["targetId"]
        session = self._ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Network", "Log", "Runtime", "Page", "DOM"):
            self._ask(f"{domain}.enable", session)
        window = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": False}
        self._ask("Emulation.setDeviceMetricsOverride", session, **window)
        if touch:
            self._ask("Emulation.setTouchEmulationEnabled", session, enabled=True)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._ask("Emulation.setEmulatedMedia", session, features=[scheme])
        self._events.clear()
        answer = self._ask("Page.navigate", session, url=visit.url)
        if "errorText" in answer:
            raise BrowserError(f"{visit.url}: {answer['errorText']}")
        self._until("Page.loadEventFired", session)
        yield Page(self, session, visit, touch)
        self._settle(0.15)
        for event in self._events:
            if event.get("sessionId") == session:
                _note(visit, event["method"], event["params"])
        self._ask("Target.closeTarget", targetId=target)

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


class Page:
    """An open page, with the hands of somebody who uses it: real events of mouse and keyboard.

    Attributes:
        visit: What happened on it, once it is closed.
    """

    def __init__(self, browser: Browser, session: str, visit: Visit, touch: bool = False) -> None:
        self._browser, self._session, self.visit, self._touch = browser, session, visit, touch

    def evaluate(self, expression: str) -> Any:
        """Value of JavaScript, which must fit JSON; promises are awaited.

        Raises:
            BrowserError: If it fails.
        """
        answer = self._ask(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        if "exceptionDetails" in answer:
            details = answer["exceptionDetails"]
            said = details.get("exception", {}).get("description", details["text"])
            raise BrowserError(f"{expression}: {said}")
        return answer["result"].get("value")

    def wait(self, expression: str, *, seconds: float = 60.0) -> None:
        """Wait until JavaScript is true.

        Raises:
            BrowserError: If it is not in time.
        """
        deadline = time.monotonic() + seconds
        while not self.evaluate(expression):
            if time.monotonic() > deadline:
                raise BrowserError(f"{expression}: not true within {seconds:g} seconds")
            time.sleep(0.05)

    def click(self, selector: str) -> None:
        """Click into the middle of an element."""
        self.drag(selector, [(0.5, 0.5)])

    def drag(self, selector: str, points: Sequence[tuple[float, float]]) -> None:
        """Press at the first point, move to the others and let go; a single point is a click.

        Args:
            selector: CSS selector of an element, which must be the one on top at the first point.
            points: Shares of its width and height.

        Raises:
            BrowserError: If there is no such element, or something covers it.
        """
        box = self.evaluate(
            f"""(() => {{
              const element = document.querySelector({json.dumps(selector)});
              element.scrollIntoView({{block: "center", behavior: "instant"}});
              const box = element.getBoundingClientRect();
              const [x, y] = {json.dumps(points[0])};
              const top = document.elementFromPoint(
                box.left + x * box.width, box.top + y * box.height);
              return [box.left, box.top, box.width, box.height, element.contains(top)];
            }})()"""
        )
        if not box[4]:
            raise BrowserError(f"{selector}: covered by something, or outside of the window")
        left, top, width, height = box[:4]
        places = [{"x": left + x * width, "y": top + y * height} for x, y in points]
        if self._touch and len(places) > 1:
            kinds = ["touchStart", *["touchMove"] * (len(places) - 1)]
            for kind, place in zip(kinds, places, strict=True):
                self._ask("Input.dispatchTouchEvent", type=kind, touchPoints=[place])
            self._ask("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
            return
        button = {"button": "left", "buttons": 1, "clickCount": 1}
        self._ask("Input.dispatchMouseEvent", type="mouseMoved", **places[0])
        self._ask("Input.dispatchMouseEvent", type="mousePressed", **places[0], **button)
        for place in places[1:]:
            self._ask("Input.dispatchMouseEvent", type="mouseMoved", **place, **button)
        self._ask("Input.dispatchMouseEvent", type="mouseReleased", **places[-1], **button)

    def press(self, key: str, times: int = 1) -> None:
        """Press a key by its name, e.g. `Tab`, `Enter`, `ArrowLeft` or a space."""
        code, number = {" ": ("Space", 32), "Enter": ("Enter", 13), "Tab": ("Tab", 9)}.get(
            key, (key, {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}.get(key))
        )
        text = {" ": {"text": " "}, "Enter": {"text": "\r"}}.get(key, {})
        which = {"key": key, "code": code, "windowsVirtualKeyCode": number}
        for _ in range(times):
            kind = "keyDown" if text else "rawKeyDown"
            self._ask("Input.dispatchKeyEvent", type=kind, **which, **text)
            self._ask("Input.dispatchKeyEvent", type="keyUp", **which)

    def fill(self, selector: str, text: str) -> None:
        """Replace the text of a field by typing."""
        self.evaluate(f"document.querySelector({json.dumps(selector)}).select()")
        self._ask("Input.insertText", text=text)

    def choose(self, selector: str, value: str) -> None:
        """Choose an option of a list by its value."""
        self.evaluate(
            f"""(() => {{
              const list = document.querySelector({json.dumps(selector)});
              list.value = {json.dumps(value)};
              list.dispatchEvent(new Event("change", {{bubbles: true}}));
            }})()"""
        )

    def upload(self, selector: str, file: Path) -> None:
        """Choose a file in an input for files."""
        root = self._ask("DOM.getDocument")["root"]["nodeId"]
        node = self._ask("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self._ask("DOM.setFileInputFiles", nodeId=node, files=[str(file.resolve())])

    def screenshot(self, path: Path) -> None:
        """Write a PNG of the whole page."""
        metrics = self._ask("Page.getLayoutMetrics")
        width, height = metrics["cssLayoutViewport"]["clientWidth"], metrics["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": width, "height": height["height"], "scale": 1}
        shot = self._ask("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    def _ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self._browser._ask(method, self._session, **parameters)


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
