"""The 20 losses of debug.yaml, as they were when last meant to change.

`tests/golden/tokenizer_debug.txt` holds one weighted tokenizer loss a line. After a change that is
meant to move them, write the file anew and say why in the change log:

    python tests/train/test_golden.py
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

GOLDEN = Path(__file__).parents[1] / "golden" / "tokenizer_debug.txt"
EARLY_STEPS, EARLY_RTOL, RTOL = 4, 1e-3, 0.05
"""Other CPUs and versions add up convolutions in another order: 1e-7 at step 1. Training at these
rates multiplies that by up to ten a step until single bits flip, from step 5 on; two orders of
summation then differed by up to 3 %. A change of the method shows in the first four losses, before
any of that; the later ones, with the discriminator, show gross changes only."""


def losses_of(records: list[dict[str, Any]]) -> list[float]:
    """The weighted tokenizer loss of every step in a log."""
    return [record["loss"] for record in records if "loss" in record]


def test_losses_are_the_golden_ones(debug_run: Any) -> None:
    lines = GOLDEN.read_text(encoding="utf-8").splitlines()
    golden = [float(line) for line in lines if not line.startswith("#")]
    losses = losses_of(debug_run.records())
    assert len(golden) == len(losses) == 20
    assert losses[:EARLY_STEPS] == pytest.approx(golden[:EARLY_STEPS], rel=EARLY_RTOL)
    assert losses == pytest.approx(golden, rel=RTOL)


def regenerate() -> None:
    """Run debug.yaml with one thread and write its losses to the golden file."""
    import torch

    from tessella.config import load_config
    from tessella.train.recipe import TrainTokenizerConfig
    from tessella.train.run_folder import read_log
    from tessella.train.tokenizer import train

    path = Path(__file__).parents[2] / "configs" / "tokenizer" / "debug.yaml"
    config = load_config(TrainTokenizerConfig, path, ["run.log_every=1"])
    with tempfile.TemporaryDirectory() as folder:
        train(config, Path(folder) / "run", resume=False, command="test_golden.py")
        losses = losses_of(read_log(Path(folder) / "run" / "log.jsonl"))
    header = f"# configs/tokenizer/debug.yaml, run.log_every=1, 1 thread; torch {torch.__version__}"
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text("\n".join([header, *(f"{loss:.7g}" for loss in losses)]) + "\n")


if __name__ == "__main__":
    sys.exit(regenerate())
