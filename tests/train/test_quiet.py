"""`--quiet` of both scripts: no progress and no information; results, warnings, errors stay."""

from collections.abc import Callable
from pathlib import Path

from click.testing import Result

from tessella.progress import is_quiet

Command = Callable[..., Result]
SMALL = ("run.steps=2", "run.batch_size_per_device=2", "run.evaluate_every=1")


def check_quiet(start: Callable[..., Result], model: str, tmp_path: Path) -> None:
    """What is told without --quiet is the same and more; the log is the same in either case."""
    told = start("--out", tmp_path / "told", *SMALL)
    quiet = start("--out", tmp_path / "quiet", *SMALL, "--quiet")
    assert told.exit_code == quiet.exit_code == 0, quiet.output
    assert "100% 2/2 [" in told.stderr and " parameters, " in told.stderr
    assert told.stderr.count("\nstep 1: ") == 1
    first, second = quiet.stderr.splitlines()
    assert first.startswith("step 2: ") and f"\n{first}\n" in told.stderr
    assert second.startswith(f"wrote {tmp_path / 'quiet' / model} (fingerprint ")
    assert quiet.stdout == "" and not is_quiet()
    lines = [(tmp_path / name / "log.jsonl").read_text().count("\n") for name in ("told", "quiet")]
    assert lines[0] == lines[1]
    again = start("--out", tmp_path / "quiet", *SMALL, "--quiet")
    assert again.exit_code == 1 and again.stderr.startswith("Error: ")


def test_a_quiet_tokenizer(
    command: Command, debug_config: Path, pictures: Path, tmp_path: Path
) -> None:
    words = ("--config", debug_config, f"data.source={pictures}")
    check_quiet(lambda *more: command(*words, *more), "tokenizer", tmp_path)


def test_a_quiet_generator(generator_command: Command, tmp_path: Path) -> None:
    check_quiet(generator_command, "generator", tmp_path)


def test_a_skipped_image_is_told_all_the_same(
    command: Command, debug_config: Path, pictures: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    for split in ("train", "val"):
        (broken / split).mkdir(parents=True)
        for path in (pictures / split).iterdir():
            (broken / split / path.name).write_bytes(path.read_bytes())
    (broken / "train" / "03.png").write_bytes(b"none")
    words = ("--config", debug_config, f"data.source={broken}", "--quiet", "run.steps=3")
    result = command(*words, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert "skipped broken image 03: " in result.stderr or "03.png" in result.stderr
