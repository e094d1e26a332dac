"""A resume tells what is different, refuses what would not be exact, and takes it when told to."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from torch import nn

from tessella.config import load_config, to_dict
from tessella.train.engine import OptimizerConfig, build_optimizer, load_optimizer
from tessella.train.resumed import compare, restore_modules, resume_run
from tessella.train.run_folder import RunError, RunFolder
from tessella.train.schedules import LearningRateConfig
from tessella.train.tokenizer_recipe import TrainTokenizerConfig

Command = Callable[..., Result]

FACTS = {
    "images": {"count": 12, "names and sizes": "0" * 64},
    "validation": {"count": 5, "names and sizes": "1" * 64},
    "processes": 2,
    "device": "cpu (AVX512)",
    "threads": 1,
    "torch": "2.13.0",
    "tessella": "0.6.0",
}


@pytest.fixture(scope="module")
def run(script: Any, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two steps on a copy of the pictures."""
    root = tmp_path_factory.mktemp("run")
    shutil.copytree(pictures, root / "data")
    words = ["run.steps=2", "run.batch_size_per_device=2", f"data.source={root / 'data'}"]
    ended = script(root / "out", *words, "optimizer.lr.warmup_steps=0")
    assert ended.statuses == [0], ended.output
    return root


@pytest.fixture
def copied(run: Path, tmp_path: Path) -> Path:
    """The same run with data of its own at the old place, to be changed."""
    shutil.copytree(run, tmp_path / "root")
    return tmp_path / "root"


def refused(result: Result, *parts: str) -> None:
    (line,) = [line for line in result.output.splitlines() if line.startswith("Error: ")]
    assert result.exit_code == 1 and "Traceback" not in result.output
    for part in (*parts, "--resume-changed"):
        assert part in line
    assert "resume would not be exact" in line


def last_record(out: Path) -> dict[str, Any]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()][-1]


def changes(out: Path) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [r for r in records if "resumed_changed" in r]


def test_resume_and_out_alone_continue_with_the_runs_own_config(
    copied: Path, command: Command
) -> None:
    before = (copied / "out" / "config.yaml").read_bytes()
    result = command("--resume", "--out", copied / "out")
    assert result.exit_code == 0, result.output
    assert (copied / "out" / "config.yaml").read_bytes() == before
    assert "resumed with" not in result.output and "wrote " in result.output


def test_other_data_are_refused_and_taken_knowingly(copied: Path, command: Command) -> None:
    out, data = copied / "out", copied / "moved"
    shutil.copytree(copied / "data", data)
    shutil.copy(data / "train" / "00.png", data / "train" / "99.png")
    before = (out / "config.yaml").read_bytes(), (out / "log.jsonl").read_bytes()
    words = ("--out", out, f"data.source={data}")
    refused(command("--resume", *words), "images.count: was 12, now 13", "data.source: was ")
    assert ((out / "config.yaml").read_bytes(), (out / "log.jsonl").read_bytes()) == before
    result = command("--resume-changed", *words)
    assert result.exit_code == 0, result.output
    assert "resumed with a change, images.count: was 12, now 13" in result.output
    (record,) = changes(out)
    assert record["step"] == 2 and record["resumed_changed"]["images.count"] == [12, 13]


def test_moved_data_of_the_same_names_and_sizes_are_the_same(
    copied: Path, command: Command
) -> None:
    shutil.move(copied / "data", copied / "elsewhere")
    words = ("--resume", "--out", copied / "out", f"data.source={copied / 'elsewhere'}")
    result = command(*words)
    assert result.exit_code == 0, result.output
    assert "resumed with another data.source: was '" in result.output
    assert not changes(copied / "out")


def test_more_steps_move_a_cosine_and_a_finished_run_goes_on_knowingly(
    copied: Path, command: Command
) -> None:
    words = ("--out", copied / "out", "run.steps=12", "run.log_every=1")
    refused(command("--resume", *words), "run.steps: was 2, now 12", "learning rate of step 3")
    result = command("--resume-changed", *words)
    assert result.exit_code == 0, result.output
    assert last_record(copied / "out")["step"] == 12
    (record,) = changes(copied / "out")
    assert record == {"step": 2, "resumed_changed": {"run.steps": [2, 12]}}


def test_steps_after_a_constant_rate_or_within_the_warmup_change_nothing(
    debug_config: Path,
) -> None:
    for rate, step, exact in (
        ("{peak: 1.0e-3, schedule: constant}", 9, True),
        ("{peak: 1.0e-3, warmup_steps: 5}", 5, True),
        ("{peak: 1.0e-3, warmup_steps: 5}", 7, False),
    ):
        pair = [
            load_config(
                TrainTokenizerConfig,
                debug_config,
                [
                    f"optimizer.lr={rate}",
                    f"run.steps={steps}",
                    "adversarial=null",
                    "loss_weights.adversarial=null",
                    "loss_weights.lecam=null",
                ],
            )
            for steps in (20, 30)
        ]
        found = compare(
            (pair[0], FACTS), (pair[1], FACTS), (to_dict(pair[0]), to_dict(pair[1])), step
        )
        assert [d.name for d in found.harmless] == ["run.steps"] * exact
        assert [d.name for d in found.breaking] == ["run.steps"] * (not exact)


def test_the_discriminators_rate_counts_as_well(debug_config: Path) -> None:
    """A constant rate of the tokenizer does not hide that the discriminator's moves."""
    lr = "optimizer.lr={peak: 1.0e-3, schedule: constant, warmup_steps: 0}"
    pair = [
        load_config(TrainTokenizerConfig, debug_config, [lr, f"run.steps={n}"]) for n in (20, 30)
    ]
    assert pair[0].rates_at(3) == pair[1].rates_at(3) == (1e-3, 0.0)
    assert pair[0].rates_at(15)[0] == pair[1].rates_at(15)[0]
    assert pair[0].rates_at(15)[1] != pair[1].rates_at(15)[1]


@pytest.mark.parametrize(
    ("name", "value", "breaks"),
    [
        ("processes", 1, True),
        ("device", "cuda (H100)", True),
        ("torch", "2.14.0", True),
        ("tessella", "0.7.0", True),
        ("images", {"count": 12, "names and sizes": "2" * 64}, True),
        ("threads", 2, False),
        ("validation", {"count": 6, "names and sizes": "3" * 64}, False),
    ],
)
def test_every_fact_is_compared(
    name: str, value: Any, breaks: bool, debug_config: Path, tmp_path: Path
) -> None:
    config = load_config(TrainTokenizerConfig, debug_config)
    settings = to_dict(config), to_dict(config)
    found = compare((config, FACTS), (config, FACTS | {name: value}), settings, 4)
    assert bool(found.breaking) == breaks and bool(found.harmless) != breaks
    assert all(name in line for line in found.lines()) and found.lines()
    if breaks:
        with pytest.raises(RunError, match=f"{name}.*: was .*, now .*--resume-changed"):
            found.refuse(tmp_path)
    else:
        found.refuse(tmp_path)


@pytest.mark.parametrize("key", ["run.mixed_precision=bf16", "run.batch_size_per_device=4"])
def test_settings_that_change_weights_break_exactness(key: str, debug_config: Path) -> None:
    pair = [load_config(TrainTokenizerConfig, debug_config, words) for words in ([], [key])]
    settings = to_dict(pair[0]), to_dict(pair[1])
    found = compare((pair[0], FACTS), (pair[1], FACTS), settings, 4)
    assert [d.name for d in found.breaking] == [key.split("=")[0]]


class State:
    """A state of one number."""

    step = 0

    def facts_of(self, saved: dict[str, Any]) -> dict[str, Any]:
        return {"processes": saved["old_processes"]}

    def load(self, weights: dict[str, Any], saved: dict[str, Any]) -> None:
        self.step = saved["step"]


def test_a_checkpoint_of_an_earlier_version_resumes_and_says_what_it_does_not_know(
    debug_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = load_config(TrainTokenizerConfig, debug_config)
    for resume in (False, True):
        folder = RunFolder(tmp_path / "run", config, resume=resume, writes=True)
        folder.begin()
        if not resume:
            folder.save_checkpoint(3, {}, {"old_processes": 2}, keep=1)
    state = State()
    resume_run(folder, state, config, FACTS, changed=False)
    told = capsys.readouterr().err
    assert state.step == 3 and "of an earlier version" in told and "images.count" in told
    with pytest.raises(RunError, match="processes: was 2, now 1"):
        resume_run(folder, state, config, FACTS | {"processes": 1}, changed=False)


def test_weights_that_do_not_fit_are_named_and_nothing_is_loaded() -> None:
    module, other = nn.Linear(2, 3), nn.Linear(2, 4)
    before = module.weight.clone()
    weights = {"net": other.state_dict() | {"extra": torch.zeros(1)}}
    with pytest.raises(RunError, match=r"it: .*\.bias: \[4\], not \[3\].*\.extra: \[1\], not k"):
        restore_modules({"net": module}, weights, "it")
    with pytest.raises(RunError, match=r"gone\.bias: missing, not"):
        restore_modules({"gone": module}, weights, "it")
    assert torch.equal(module.weight, before)


def test_another_network_is_refused_in_spite_of_the_flag(copied: Path, command: Command) -> None:
    before = (copied / "out" / "config.yaml").read_bytes()
    words = ("--resume-changed", "--out", copied / "out", "tokenizer.quantizer.bits=9")
    result = command(*words)
    assert result.exit_code == 1 and "the checkpoint: does not fit the config" in result.output
    assert "Traceback" not in result.output
    assert (copied / "out" / "config.yaml").read_bytes() == before


def test_settings_of_the_optimizer_come_from_the_config() -> None:
    """torch would restore weight decay and betas of the checkpoint, and a change be in vain."""
    rate = LearningRateConfig(peak=1.0)
    old, new = (
        OptimizerConfig(lr=rate, weight_decay=decay, betas=(0.5, beta), eps=eps)
        for decay, beta, eps in ((0.1, 0.6, 1e-3), (0.2, 0.7, 1e-4))
    )
    parameter = nn.Parameter(torch.ones(2))
    parameter.grad = torch.ones(2)
    before = build_optimizer([parameter], old)
    before.step()
    after = build_optimizer([parameter], new)
    load_optimizer(after, before.state_dict(), new)
    (group,) = after.param_groups
    assert (group["weight_decay"], group["betas"], group["eps"]) == (0.2, (0.5, 0.7), 1e-4)
    moments = after.state[parameter]["exp_avg"], before.state[parameter]["exp_avg"]
    assert torch.equal(*moments)
