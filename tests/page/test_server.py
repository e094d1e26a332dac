"""The page over HTTP: files, jobs with their events, and everything that is turned away."""

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from PIL import Image

from tessella.page import server as server_module
from tessella.page.example import example_picture
from tessella.page.models import Models
from tessella.page.server import FILES, PageServer, as_json, is_local_name
from tessella.tests.page.sent import file_of, noise, painted, served

JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def page(models: Models) -> Iterator[PageServer]:
    """The page with its usual limits."""
    with served(models) as server:
        yield server


def send(
    server: PageServer,
    path: str,
    body: bytes | dict[str, Any] | None = None,
    *,
    method: str = "",
    **headers: str,
) -> tuple[int, bytes, http.client.HTTPMessage]:
    """Status, body and headers of an answer."""
    link = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
    data = json.dumps(body).encode() if isinstance(body, dict) else body
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    link.request(method or ("GET" if body is None else "POST"), path, data, JSON | given)
    answer = link.getresponse()
    found = answer.status, answer.read(), answer.headers
    link.close()
    return found


def events(server: PageServer, path: str, wish: dict[str, Any]) -> list[dict[str, Any]]:
    """Events of a job."""
    status, body, headers = send(server, path, wish)
    assert status == 200 and headers["Content-Type"] == "application/x-ndjson"
    return [json.loads(line) for line in body.splitlines()]


def refused(answer: tuple[int, bytes, Any]) -> tuple[int, str]:
    """Status and message of an answer."""
    return answer[0], json.loads(answer[1])["error"]


def test_the_files_of_the_page_name_no_other_place(page: PageServer) -> None:
    for path, (name, kind) in FILES.items():
        status, body, headers = send(page, path)
        assert (status, headers["Content-Type"]) == (200, kind)
        text = body.decode().replace("xmlns='http://www.w3.org/2000/svg'", "")
        assert "http:" not in text and "https:" not in text and "//cdn" not in text, name
        policy = headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; ")
        assert headers["X-Content-Type-Options"] == "nosniff"
    assert {name for name, _ in FILES.values()} == {
        path.name for path in server_module.STATIC.iterdir()
    }


def test_models_and_examples(page: PageServer) -> None:
    facts = json.loads(send(page, "/api/models")[1])
    assert facts == page.models.facts() | {
        "version": server_module.__version__,
        "limits": {"pixels": 20_000_000, "bytes": 24 * 2**20 - 65536},
    }
    status, body, headers = send(page, "/api/example?3")
    assert (status, headers["Content-Type"]) == (200, "image/png")
    first, again = example_picture(0), example_picture(154)
    assert first.size == (64, 64) and first.tobytes() == again.tobytes()
    assert body == server_module.png(example_picture(3))
    for query in ("", "?", "?x", "?" + "9" * 99, "?%00"):
        assert send(page, f"/api/example{query}")[1] == server_module.png(first)


def test_drawing_is_told_step_by_step(page: PageServer) -> None:
    told = events(page, "/api/draw", {"model": "tiny", "num": 2, "steps": 3})
    assert [event["event"] for event in told] == ["step", "step", "step", "done"]
    assert told[0]["pictures"][0].startswith("data:image/png;base64,")
    assert len(told[-1]["pictures"]) == 2 and told[-1]["seeds"] == [0, 1]


def test_every_other_job_is_done(page: PageServer) -> None:
    tokenizer = next(iter(page.models.tokenizers))
    picture, mask = file_of(noise(40, 40)), file_of(painted(40, 40, (0, 0, 9, 9)))
    wish = {"model": "tiny", "picture": picture, "mask": mask, "steps": 1}
    assert events(page, "/api/edit", wish)[-1]["changed"] == 0
    shown = events(page, "/api/tokens", {"tokenizer": tokenizer, "picture": picture})[-1]
    codes = {"tokenizer": tokenizer, "codes": shown["codes"], "length": shown["length"]}
    assert events(page, "/api/decode", codes)[-1]["pictures"] == shown["pictures"][1:]
    assert [e["event"] for e in events(page, "/api/compare", {"num": 1})][-2:] == ["drawn", "done"]


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        ({"model": "other"}, "model 'other': unknown; there are: tiny"),
        ({"model": "tiny", "prompt": "cat"}, "prompt: this model reads no text"),
        ({"model": "tiny", "prompt": "x" * 10_000}, "prompt: 10,000 characters, expected at most"),
        ({"model": "tiny", "steps": 0}, "steps: expected 1 to 256, found 0"),
    ],
)
def test_a_job_that_is_refused_says_why(page: PageServer, wish: dict[str, Any], said: str) -> None:
    (event,) = events(page, "/api/draw", wish)
    assert event["event"] == "error" and event["error"].startswith(said)


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b"", 400, "request: not valid JSON"),
        (b"{", 400, "request: not valid JSON"),
        (b"\xff", 400, "request: not UTF-8 text"),
        (b"[" * 100 + b"]" * 100, 400, "request: lists and mappings nested more than 64 deep"),
        (b"[]", 400, "request: "),
        (b'{"model": 3}', 400, "request: model: input should be a valid string"),
        (b'{"model": "tiny", "path": "/etc"}', 400, "request: path: unexpected keyword argument"),
    ],
)
def test_a_request_of_another_form_is_refused(
    page: PageServer, body: bytes, status: int, said: str
) -> None:
    found = refused(send(page, "/api/draw", body, method="POST"))
    assert found[0] == status and found[1].startswith(said)


def test_addresses_that_are_not_there(page: PageServer) -> None:
    nothing = (404, "there is nothing at this address")
    for path in ("/x", "/../pyproject.toml", "/static/page.js", "/api/draw", "/%2e"):
        assert refused(send(page, path)) == nothing
    assert refused(send(page, "/api/other", {})) == nothing
    assert send(page, "/", method="PUT")[0] == 501


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "evil.example:80"},
        {"Host": "127.0.0.1.evil.example"},
        {"Host": ""},
        {"Host": "[::1"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
    ],
)
def test_other_sites_get_nothing(page: PageServer, headers: dict[str, str]) -> None:
    own = {"Host": f"127.0.0.1:{page.server_port}"}
    if headers == {"Host": "[::1"}:
        headers = headers | {"Origin": "x"}
    for body, path in ((None, "/api/models"), ({"model": "tiny"}, "/api/draw")):
        assert refused(send(page, path, body, **own | headers))[0] == 403


def test_the_page_itself_and_local_names_are_let_in(page: PageServer) -> None:
    port = page.server_port
    for host in (f"127.0.0.1:{port}", f"localhost:{port}", f"[::1]:{port}"):
        assert send(page, "/", Host=host, Origin=f"http://{host}")[0] == 200
    form = send(page, "/api/draw", b"{}", Content_Type="application/x-www-form-urlencoded")
    assert refused(form) == (415, "expected application/json")


def test_bodies_are_limited_before_they_are_read(models: Models) -> None:
    with served(models, body_bytes=2**20) as page:
        large = send(page, "/api/draw", b"x" * (2**20 + 1))
        assert refused(large) == (
            413,
            "upload: 1.0 MiB, expected at most 1.0, of which a picture takes a third more than "
            "its file",
        )
        for length in ("-1", "x", "9" * 30, "٣"):
            link = socket.create_connection(("127.0.0.1", page.server_port), 10)
            head = "POST /api/draw HTTP/1.0\r\nHost: localhost\r\nContent-Type: application/json"
            link.sendall(f"{head}\r\nContent-Length: {length}\r\n\r\n".encode())
            assert b" 411 " in link.makefile("rb").readline()
            link.close()


def test_a_request_that_ends_early_or_never_comes_leaves_the_line(models: Models) -> None:
    with served(models, send_seconds=0.3, waiting=0) as page:
        for shut in (True, False):
            link = socket.create_connection(("127.0.0.1", page.server_port), 10)
            head = "POST /api/draw HTTP/1.0\r\nHost: localhost\r\nContent-Type: application/json"
            link.sendall(f"{head}\r\nContent-Length: 99\r\n\r\n".encode() + b"{")
            if shut:
                link.shutdown(socket.SHUT_WR)
                assert b"the request ended before all of it was there" in link.makefile("rb").read()
            else:
                assert link.makefile("rb").read() == b""  # hung up
            link.close()
        assert events(page, "/api/draw", {"model": "tiny", "num": 1})[-1]["event"] == "done"


class Gate:
    """A job that waits until it is let go, and tells that it waits."""

    def __init__(self) -> None:
        self.begun, self.open, self.ended = threading.Event(), threading.Event(), threading.Event()

    def __call__(self, models: Any, wish: Any, job: Any, limits: Any) -> dict[str, Any]:
        self.begun.set()
        try:
            while not self.open.wait(0.02):
                job.tell({"event": "step", "step": 1, "steps": 2})
        finally:
            self.ended.set()
        return {"event": "done"}


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    """A job in the place of drawing that ends when it is told to."""
    gate = Gate()
    schema, _ = server_module.JOBS["/api/draw"]
    monkeypatch.setitem(server_module.JOBS, "/api/draw", (schema, gate))
    monkeypatch.setattr(server_module, "_LOOK_SECONDS", 0.05)
    return gate


def test_one_job_at_a_time_a_few_wait_and_more_are_turned_away(models: Models, gate: Gate) -> None:
    with served(models, waiting=1) as page:
        answers: list[list[dict[str, Any]]] = []

        def ask() -> None:
            answers.append(events(page, "/api/draw", {"model": "tiny"}))

        threads = [threading.Thread(target=ask) for _ in range(2)]
        for count, thread in enumerate(threads, 1):
            thread.start()
            until(lambda count=count: len(page.turns._line) == count)
        assert gate.begun.wait(10)
        busy = send(page, "/api/draw", b"{" + b" " * 2**20, method="POST")
        assert refused(busy) == (503, "busy: one job runs and 1 wait; try again in a few seconds")
        time.sleep(0.2)
        gate.open.set()
        for thread in threads:
            thread.join(10)
        kinds = [{event["event"] for event in told} for told in answers]
        assert {"waiting", "done"} in kinds and {"step", "done"} in kinds
        until(lambda: not page.turns._line)


def test_a_job_ends_when_its_browser_goes_away(models: Models, gate: Gate) -> None:
    with served(models) as page:
        link = http.client.HTTPConnection("127.0.0.1", page.server_port, timeout=10)
        link.request("POST", "/api/draw", b'{"model": "tiny"}', JSON)
        assert json.loads(link.getresponse().readline())["step"] == 1
        link.close()
        assert gate.ended.wait(10) and not gate.open.is_set()
        until(lambda: not page.turns._line)


def test_a_job_that_takes_too_long_is_told_so(models: Models) -> None:
    with served(models, job_seconds=0.0) as page:
        (event,) = events(page, "/api/draw", {"model": "tiny"})
        assert event["event"] == "error" and event["error"].startswith("stopped after 0 seconds")


def test_a_fault_of_ours_is_told_without_details_and_shown_in_the_terminal(
    models: Models, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def broken(*arguments: Any) -> dict[str, Any]:
        raise LookupError("secret")

    monkeypatch.setitem(
        server_module.JOBS, "/api/draw", (server_module.JOBS["/api/draw"][0], broken)
    )
    with served(models) as page:
        (event,) = events(page, "/api/draw", {"model": "tiny"})
        assert event == {"event": "error", "error": "a fault of ours; see the terminal"}
        until(lambda: not page.turns._line)
        until(lambda: "LookupError: secret" in capfd.readouterr().err)


def test_connections_are_limited(models: Models) -> None:
    with served(models, connections=2) as page:
        idle = [socket.create_connection(("127.0.0.1", page.server_port), 10) for _ in range(2)]
        until(lambda: page._free._value == 0)
        with pytest.raises((ConnectionError, http.client.RemoteDisconnected)):
            send(page, "/")
        for link in idle:
            link.close()
        until(lambda: page._free._value == 2)
        assert send(page, "/")[0] == 200


def test_a_port_in_use_and_an_address_of_another_machine_are_one_sentence(page: PageServer) -> None:
    port = page.server_port
    with pytest.raises(ValueError, match=f"^port {port}: in use on 127.0.0.1; expected a free one"):
        PageServer(page.models, port=port)
    with pytest.raises(ValueError, match=r"^host 192\.0\.2\.1, port 0: .*expected an address of"):
        PageServer(page.models, host="192.0.2.1")
    with pytest.raises(ValueError, match=r"^host no\.such\.invalid, port 0: "):
        PageServer(page.models, host="no.such.invalid")


def test_addresses_and_local_names() -> None:
    for host, local in (
        ("127.0.0.1", True), ("localhost", True), ("::1", True), ("127.8.9.1", True),
        ("0.0.0.0", False), ("10.0.0.1", False), ("evil.example", False), ("", False),
    ):  # fmt: skip
        assert is_local_name(host) == local
    with PageServer(Models.of({}), host="0.0.0.0") as open_page:
        assert not open_page.local and open_page.address.startswith("http://0.0.0.0:")


def test_numbers_that_json_does_not_have_are_no_answer() -> None:
    with pytest.raises(ValueError, match="Out of range float"):
        as_json({"psnr": float("nan")})
    assert as_json({"a": "é\n"}) == b'{"a":"\\u00e9\\n"}'
    assert as_json({"p": Image.new("RGB", (1, 1))}).startswith(b'{"p":"data:image/png;base64,')


def until(true: Any) -> None:
    """Wait until something is true, at most 10 seconds."""
    end = time.monotonic() + 10
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)
