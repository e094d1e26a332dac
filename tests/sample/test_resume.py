"""Samples that are interrupted keep their finished pictures, and resumed they are the same."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

import tessella
from tessella.checkpoints import load_generator
from tessella.cli.main import main
from tessella.generators.base import Generator
from tessella.sample import folder as folder_module
from tessella.sample.folder import sample_to_folder
from tessella.sample.sample_work import SampleWork

Folders = tuple[Path, Path]


@pytest.fixture(scope="module")
def generator(folders: Folders) -> Generator:
    return load_generator(folders[0])


def draw(generator: Generator, out: Path, num: int = 7, **changed: Any) -> dict[str, Any]:
    given: dict[str, Any] = {
        "labels": [i % 3 for i in range(num)],
        "seeds": list(range(5, 5 + num)),
    }
    given |= {"batch_size": 2, "progress": False, "name": "mine"} | changed
    return sample_to_folder(generator, out, **given)


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def whole(generator: Generator, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("whole") / "out"
    assert draw(generator, out)["resumed"] == 0
    assert [p.name for p in out.parent.iterdir()] == ["out"]
    return contents(out)


def stop(monkeypatch: pytest.MonkeyPatch, after: int, error: BaseException | None = None) -> None:
    """Interrupt before picture number `after` is written, counted from now."""
    count, to_pil = iter(range(after)), folder_module.to_pil

    def counting(image: torch.Tensor) -> Any:
        if next(count, None) is None:
            raise error or KeyboardInterrupt
        return to_pil(image)

    monkeypatch.setattr(folder_module, "to_pil", counting)


@pytest.mark.parametrize("after", [2, 3, 6])
def test_interrupted_and_resumed_it_is_the_same_folder(
    generator: Generator,
    whole: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    after: int,
) -> None:
    with monkeypatch.context() as patch:
        stop(patch, after)
        with pytest.raises(KeyboardInterrupt) as caught:
            draw(generator, tmp_path / "out")
    kept = after // 2 * 2
    place = tmp_path / "out.unfinished"
    assert caught.value.__notes__ == [
        f"{kept} of 7 pictures are kept in {place}; the same again with resume (--resume) "
        "continues from there"
    ]
    with pytest.raises(FileExistsError, match=f"{kept} pictures of an interrupted command"):
        draw(generator, tmp_path / "out")
    result = draw(generator, tmp_path / "out", resume=True)
    assert result["resumed"] == kept and result["images"] == 7
    assert contents(tmp_path / "out") == whole
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_interrupted_before_the_first_batch_or_failing_it_leaves_nothing(
    generator: Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for error in (KeyboardInterrupt(), ValueError("a fault"), OSError(28, "disk full")):
        with monkeypatch.context() as patch:
            stop(patch, 1, error)
            with pytest.raises(type(error)) as caught:
                draw(generator, tmp_path / "out")
        assert not hasattr(caught.value, "__notes__") and not list(tmp_path.iterdir())


def test_a_full_disk_keeps_what_is_finished(
    generator: Generator, whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(SampleWork, "give_to", lambda *_: os.write(-1, b""))
        with pytest.raises(OSError, match="Bad file descriptor"):
            draw(generator, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["out.unfinished"]
    assert draw(generator, tmp_path / "out", resume=True)["resumed"] == 7
    assert contents(tmp_path / "out") == whole


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"batch_size": 3}, "batch size (begun with 2, now 3)"),
        ({"num": 8}, "number of images (begun with 7, now 8)"),
        ({"seeds": list(range(7))}, "seeds (begun with [5, 6, 7, 8, 9, 10, 11], now [0, 1, 2,"),
        ({"labels": [0] * 7}, "labels (begun with [0, 1, 2, 0, 1, 2, 0], now [0, 0, 0, 0, 0"),
        ({"precision": "bf16"}, 'precision (begun with "auto", now "bf16")'),
        ({"name": "yours"}, 'name (begun with "mine", now "yours")'),
    ],
)
def test_other_settings_are_refused_and_named(
    generator: Generator,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changed: dict[str, Any],
    message: str,
) -> None:
    with monkeypatch.context() as patch:
        stop(patch, 4)
        with pytest.raises(KeyboardInterrupt):
            draw(generator, tmp_path / "out")
    before = contents(tmp_path / "out.unfinished")
    with pytest.raises(ValueError, match="cannot be continued") as caught:
        draw(generator, tmp_path / "out", resume=True, **changed)
    assert message in str(caught.value)
    assert contents(tmp_path / "out.unfinished") == before
    draw(generator, tmp_path / "out", overwrite=True, **changed)  # as was asked for: anew
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_what_was_changed_is_drawn_again(
    generator: Generator, whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("000001.png", "batch-000000.safetensors"):
        with monkeypatch.context() as patch:
            stop(patch, 5)
            with pytest.raises(KeyboardInterrupt):
                draw(generator, tmp_path / "out")
        file = tmp_path / "out.unfinished" / name
        data = bytearray(file.read_bytes())
        data[-3] ^= 1
        file.write_bytes(data)
        assert draw(generator, tmp_path / "out", resume=True)["resumed"] == 2
        assert contents(tmp_path / "out") == whole
        shutil.rmtree(tmp_path / "out")


def test_what_tessella_did_not_write_stays(
    generator: Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "out.unfinished"
    place.mkdir()
    (place / "000000.png").write_bytes(b"mine")
    with pytest.raises(FileExistsError, match=r"did not write there: 000000\.png; move it away"):
        draw(generator, tmp_path / "out")
    assert contents(place) == {"000000.png": b"mine"}
    shutil.rmtree(place)
    with monkeypatch.context() as patch:
        stop(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            draw(generator, tmp_path / "out")
    (place / "000099.png").write_bytes(b"mine")
    draw(generator, tmp_path / "out", overwrite=True)
    assert (place / "000099.png").read_bytes() == b"mine"


def test_two_writers_of_one_folder_are_told(generator: Generator, tmp_path: Path) -> None:
    work = SampleWork(tmp_path / "out")
    work.begin({}, resume=False, overwrite=False)
    with pytest.raises(FileExistsError, match="another process is drawing these samples"):
        draw(generator, tmp_path / "out")
    work.end(keep=False)
    assert not list(tmp_path.iterdir())


def test_a_generator_without_a_fingerprint_is_not_resumed(
    network: Any, folders: Folders, tmp_path: Path
) -> None:
    tokenizer = load_generator(folders[0]).tokenizer
    nameless = network("maskbit", tokenizer.spec)
    nameless.tokenizer = tokenizer
    with pytest.raises(ValueError, match="no fingerprint, so it may be another one than before"):
        draw(nameless, tmp_path / "out", resume=True)


KILLED = """
import os, sys
from tessella.cli.main import main
from tessella.sample import folder
to_pil, count = folder.to_pil, iter(range(5))
def dying(image):
    if next(count, None) is None:
        os.kill(os.getpid(), int(sys.argv.pop()))
    return to_pil(image)
folder.to_pil = dying
main(sys.argv[1:-1])
"""


def run(*words: object, code: int = 0) -> Result:
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == code, result.output
    return result


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["TERM", "KILL"])
def test_the_command_survives_signals(folders: Folders, tmp_path: Path, number: int) -> None:
    words = ["sample", "--generator", str(folders[0]), "--num", "7", "--batch-size", "2", "--json"]
    path = os.pathsep.join([str(Path(tessella.__file__).parent.parent), *filter(None, sys.path)])
    ended = subprocess.run(
        [sys.executable, "-c", KILLED, *words, "--out", str(tmp_path / "out"), str(number)],
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    if number == signal.SIGTERM:
        assert ended.returncode == 1, ended.stderr
        assert "interrupted; 4 of 7 pictures are kept in" in ended.stderr
    else:
        assert ended.returncode == -number, ended.stderr
    result = run(*words, "--out", tmp_path / "out", "--resume")
    assert json.loads(result.stdout)["resumed"] == 4
    run(*words, "--out", tmp_path / "whole")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "whole"]
