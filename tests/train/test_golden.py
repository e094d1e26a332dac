"""The 20 losses of each debug.yaml, as they were when last meant to change.

`tests/golden/tokenizer_debug.txt` holds one weighted tokenizer loss a line, `generator_debug.txt`
one loss of the generator. After a change that is meant to move them, write the files anew and say
why in the change log:

    python tests/train/test_golden.py
"""

import dataclasses
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

GOLDEN = Path(__file__).parents[1] / "golden"
EARLY_STEPS, EARLY_RTOL, RTOL = 4, 1e-3, 0.05
"""Other CPUs and versions add up convolutions in another order: 1e-7 at step 1. Training at these
rates multiplies that by up to ten a step until single bits flip, from step 5 on; two orders of
summation then differed by up to 3 %. A change of the method shows in the first four losses, before
any of that; the later ones, with the discriminator, show gross changes only."""


def losses_of(records: list[dict[str, Any]]) -> list[float]:
    """The weighted tokenizer loss of every step in a log."""
    return [record["loss"] for record in records if "loss" in record]


def golden_losses(name: str) -> list[float]:
    """The losses in a golden file."""
    lines = (GOLDEN / f"{name}_debug.txt").read_text(encoding="utf-8").splitlines()
    return [float(line) for line in lines if not line.startswith("#")]


def test_losses_are_the_golden_ones(debug_run: Any) -> None:
    golden, losses = golden_losses("tokenizer"), losses_of(debug_run.records())
    assert len(golden) == len(losses) == 20
    assert losses[:EARLY_STEPS] == pytest.approx(golden[:EARLY_STEPS], rel=EARLY_RTOL)
    assert losses == pytest.approx(golden, rel=RTOL)


@pytest.mark.slow
def test_losses_of_the_generator_are_the_golden_ones(generator_script: Any, tmp_path: Path) -> None:
    """On the bundled emoji and tokenizer, as debug.yaml stands: nothing chaotic, all 20 agree."""
    script = dataclasses.replace(generator_script, words=())
    ended = script(tmp_path / "run", "run.log_every=1", "run.preview_every=20")
    assert ended.statuses == [0], ended.output
    golden, losses = golden_losses("generator"), losses_of(ended.records())
    assert len(golden) == len(losses) == 20
    assert losses == pytest.approx(golden, rel=EARLY_RTOL)


def regenerate() -> None:
    """Run each debug.yaml with one thread and write its losses to the golden file."""
    import torch
    from accelerate.state import AcceleratorState, GradientState

    import tessella.train.generator
    import tessella.train.tokenizer
    from tessella.config import load_config
    from tessella.train.generator_recipe import TrainGeneratorConfig
    from tessella.train.run_folder import read_log
    from tessella.train.tokenizer_recipe import TrainTokenizerConfig

    scripts: list[tuple[str, Any, Any]] = [
        ("tokenizer", tessella.train.tokenizer.train, TrainTokenizerConfig),
        ("generator", tessella.train.generator.train, TrainGeneratorConfig),
    ]
    for name, train, config_type in scripts:
        path = Path(__file__).parents[2] / "configs" / name / "debug.yaml"
        config = load_config(config_type, path, ["run.log_every=1"])
        with tempfile.TemporaryDirectory() as folder:
            train(config, Path(folder) / "run", resume=False, command="test_golden.py")
            losses = losses_of(read_log(Path(folder) / "run" / "log.jsonl"))
        AcceleratorState._reset_state(True)
        GradientState._reset_state()
        header = (
            f"# configs/{name}/debug.yaml, run.log_every=1, 1 thread; torch {torch.__version__}"
        )
        text = "\n".join([header, *(f"{loss:.7g}" for loss in losses)]) + "\n"
        GOLDEN.mkdir(exist_ok=True)
        (GOLDEN / f"{name}_debug.txt").write_text(text)


if __name__ == "__main__":
    sys.exit(regenerate())
