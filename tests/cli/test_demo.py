"""`tessella demo` as a person starts it: one line with the address, and one for each mistake."""

import http.client
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from tessella.cli.main import main


def failed(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["demo", *words])
    return result.exit_code, result.stderr.strip().splitlines()[-1]


def test_it_tells_its_address_answers_and_ends_by_a_signal(folders: tuple[Path, Path]) -> None:
    command = [sys.executable, "-W", "error", "-m", "tessella.cli.main", "demo", "--port", "0"]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "PYTHONUNBUFFERED": "1",
    }
    with subprocess.Popen(
        [*command, "--generator", str(folders[0])],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        line = process.stdout.readline()
        assert line.startswith("Open http://127.0.0.1:"), process.stderr.read()
        port = int(line.partition("127.0.0.1:")[2].partition("/")[0])
        link = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        link.request("GET", "/api/models")
        assert b'"title":"generator"' in link.getresponse().read()
        link.close()
        process.send_signal(signal.SIGTERM)
        assert process.stderr.read() == "Stopped.\n"
        assert process.wait(30) == 0


def test_mistakes_are_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        said = f"Error: port {port}: in use on 127.0.0.1; expected a free one, or 0 for any"
        assert failed("--port", port) == (1, said)
    assert "'--share': 'always' is not 'never'" in failed("--share", "always")[1]
    assert "'--port': 65536 is not in the range 0<=x<=65535" in failed("--port", "65536")[1]
    assert failed("--port", "0", "--generator", "nowhere")[1].startswith("Error: nowhere: no such")
    code, line = failed("--port", "0", "--host", "192.0.2.1")
    assert code == 1 and line.startswith("Error: host 192.0.2.1, port 0: ")
    assert failed("--port", "0", "--device", "toaster")[1].startswith("Error: --device toaster: ")


@pytest.mark.parametrize("word", ["--help"])
def test_help_says_that_nothing_is_shared(word: str) -> None:
    told = " ".join(CliRunner().invoke(main, ["demo", word]).output.split())
    assert "nothing is sent anywhere" in told and "[default: 127.0.0.1]" in told
