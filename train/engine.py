"""Parts of every training: processes, precision, seeds, optimizer, rates, windows, stopping."""

import hashlib
import os
import signal
import types
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.tracking import get_available_trackers
from torch import Tensor, nn

from .._version import __version__
from ..collectives import num_processes, sum_over_processes
from ..config import STRICT
from ..model_folders import NOT_STATED
from .launcher import check_environment
from .schedules import LearningRateConfig, lr_at


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW and its learning rate.

    Args:
        lr: Learning rate over the run.
        betas: Decay of the two moments.
        eps: Number added to the denominator.
        weight_decay: Decoupled decay, on all parameters as in the published recipes.
        clip_norm: Largest gradient norm, > 0.
    """

    __pydantic_config__ = STRICT
    lr: LearningRateConfig
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 1e-4
    clip_norm: float = 1.0

    def __post_init__(self) -> None:
        if not self.clip_norm > 0:
            raise ValueError(f"clip_norm: must be > 0, found {self.clip_norm}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas: expected 0 to below 1 each, found {list(self.betas)}")
        if not (self.eps > 0 and self.weight_decay >= 0):
            raise ValueError(
                f"expected eps > 0 and weight_decay >= 0, found {self.eps} and {self.weight_decay}"
            )


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Length, batches, precision and reporting of a run.

    Args:
        steps: Optimizer steps.
        minutes: Length in minutes in place of `steps`, > 0: from the first step to the last one on
            the clock, with the pictures, measurements and checkpoints between them, less the time
            between a stop and its resume. Every count of steps then stands for its part of
            `steps`: a warm-up of 200 of 2,000 steps is a tenth of the time. On the command line
            the one that is given there decides. None: `steps` decides.
        batch_size_per_device: Images per process and forward pass.
        gradient_accumulation_steps: Forward passes per optimizer step.
        mixed_precision: `auto` is bf16 where the hardware multiplies it natively, else fp32.
        compile: Run the model through torch.compile.
        cpu_threads: Threads of each process on a CPU; None: its share of the cores (accelerate's
            launcher would leave it one).
        seed: Seed of weights, data order, augmentation and everything else, at least 0.
        log_every: Steps between lines of log.jsonl.
        preview_every: Steps between preview pictures.
        evaluate_every: Steps between measurements on the validation split.
        checkpoint_every: Steps between checkpoints.
        keep_checkpoints: Newest checkpoints kept, at least 1.
        trackers: accelerate trackers to log to as well, e.g. [tensorboard, wandb].
        licence: Licence of the weights, for the model card: whoever trains decides.
        probe_images: Store eight validation images in the tokenizer's folder, by which
            `tessella verify` checks it; everyone who gets the folder sees them. False: synthetic
            images instead.
    """

    __pydantic_config__ = STRICT
    steps: int
    minutes: float | None = None
    batch_size_per_device: int
    gradient_accumulation_steps: int = 1
    mixed_precision: Literal["auto", "no", "bf16"] = "auto"
    compile: bool = False
    cpu_threads: int | None = None
    seed: int = 0
    log_every: int = 50
    preview_every: int = 500
    evaluate_every: int = 500
    checkpoint_every: int = 500
    keep_checkpoints: int = 2
    trackers: tuple[str, ...] = ()
    licence: str = NOT_STATED
    probe_images: bool = True

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if (
                isinstance(value, int)
                and not isinstance(value, bool)
                and name != "seed"
                and value < 1
            ):
                raise ValueError(f"{name}: expected at least 1, found {value}")
        if self.minutes is not None and not 0 < self.minutes < float("inf"):
            raise ValueError(f"minutes: expected more than 0, found {self.minutes:g}")
        if self.seed < 0:
            raise ValueError(f"seed: expected at least 0, found {self.seed}")


def build_accelerator(run: RunConfig, folder: Path) -> Accelerator:
    """Build the accelerator of a run; `mixed_precision: auto` must have been resolved.

    Raises:
        ValueError: If a tracker is not installed, a launcher started several processes that would
            not know of each other, or the environment asks for another training.
    """
    check_environment(run.gradient_accumulation_steps)
    installed = [str(tracker) for tracker in get_available_trackers()]
    missing = [name for name in run.trackers if name not in installed]
    if missing:
        raise ValueError(
            f"run.trackers: {', '.join(missing)} not installed or unknown to accelerate; "
            f"there are: {', '.join(installed) or 'none'}"
        )
    accelerator = Accelerator(
        # Without this, processes started side by side on a CPU machine form no group.
        cpu=not torch.cuda.is_available(),
        mixed_precision=run.mixed_precision,
        gradient_accumulation_steps=run.gradient_accumulation_steps,
        log_with=list(run.trackers) or None,
        project_dir=folder,
    )
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched != accelerator.num_processes:
        raise ValueError(
            f"{launched} processes were launched, but this one runs alone; see docs/training.md, "
            "Processes, for the commands that start several"
        )
    if accelerator.device.type == "cpu":
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        torch.set_num_threads(run.cpu_threads or max(1, (cores or 1) // launched))
    return accelerator


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed torch's global generators from (seed, step, rank).

    Everything random in a step then depends on nothing before it, and a resumed run needs no
    generator state.
    """
    digest = hashlib.sha256(f"{seed}/{step}/{rank}".encode()).digest()
    torch.manual_seed(int.from_bytes(digest[:7], "little"))


def build_optimizer(
    parameters: Iterable[nn.Parameter], config: OptimizerConfig
) -> torch.optim.AdamW:
    """Build an AdamW optimizer; `set_lr` sets its learning rate before every step."""
    return torch.optim.AdamW(
        list(parameters),
        lr=config.lr.peak,
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=True,
    )


def load_optimizer(
    optimizer: torch.optim.Optimizer, state: dict[str, Any], config: OptimizerConfig
) -> None:
    """Restore the moments of an optimizer; its settings are those of the config, not the saved."""
    optimizer.load_state_dict(state)
    for group in optimizer.param_groups:
        group |= {
            "betas": config.betas,
            "eps": config.eps,
            "weight_decay": config.weight_decay,
        }


def set_lr(
    optimizer: torch.optim.Optimizer, config: LearningRateConfig, step: float, steps: int
) -> float:
    """Set and return the learning rate of `step`; the rate depends on nothing else."""
    rate = lr_at(step, steps, config)
    for group in optimizer.param_groups:
        group["lr"] = rate
    return rate


def descend(
    accelerator: Accelerator,
    loss: Tensor,
    module: nn.Module,
    optimizer: AcceleratedOptimizer,
    clip_norm: float,
) -> Tensor | None:
    """Backward, clip and step; return the gradient norm before clipping, if a step is due."""
    accelerator.backward(loss)
    norm = None
    if accelerator.sync_gradients:
        norm = torch.as_tensor(accelerator.clip_grad_norm_(module.parameters(), clip_norm))
    optimizer.step()
    optimizer.zero_grad()
    return norm


def images_per_step(run: RunConfig, accelerator: Accelerator) -> int:
    """Images of one optimizer step on all processes."""
    accumulated = run.batch_size_per_device * run.gradient_accumulation_steps
    processes: int = accelerator.num_processes
    return accumulated * processes


def run_facts(
    run: RunConfig, accelerator: Accelerator, *, command: str, step: int, seconds: float
) -> dict[str, Any]:
    """Facts about the run for the model card."""
    return {
        "licence": run.licence,
        "command": command,
        "seed": run.seed,
        "steps": step,
        **({} if run.minutes is None else {"minutes": run.minutes}),
        "images_seen": step * images_per_step(run, accelerator),
        "processes": accelerator.num_processes,
        "precision": run.mixed_precision,
        "seconds": round(seconds),
        "versions": {"tessella": __version__, "torch": torch.__version__},
    }


class StopSignal:
    """Ctrl-C (or SIGTERM) asks the run to stop after the step; a second one stops at once."""

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "StopSignal":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _receive(self, number: int, frame: types.FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True

    def agreed(self, device: torch.device, proposed: Sequence[int] = ()) -> tuple[bool, list[int]]:
        """Let all processes agree (a collective).

        Args:
            device: Device of the process.
            proposed: Numbers of the main process, at least 0; as many zeros on all others.

        Returns:
            Whether any process was asked to stop, and the numbers of the main process.
        """
        if num_processes() == 1:
            return self.requested, list(proposed)
        numbers = torch.tensor([int(self.requested), *proposed], device=device)
        dist.all_reduce(numbers, op=dist.ReduceOp.MAX)
        requested, *agreed = numbers.tolist()
        self.requested = bool(requested)
        return self.requested, agreed


class LossWindow:
    """Sums of named scalars since the last report; read back as means over steps and processes."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def add(self, values: dict[str, Tensor]) -> None:
        """Add one step's scalars; nothing leaves the device.

        A scalar that some steps lack (a loss that has just begun, the gradient norm under
        accumulation) is averaged over the steps that have it.
        """
        for name, value in values.items():
            value = value.detach().double()
            self.sums[name] = self.sums[name] + value if name in self.sums else value
            self.counts[name] = self.counts.get(name, 0) + 1

    def means(self, accelerator: Accelerator) -> dict[str, float]:
        """Means over the window and the processes (a collective); starts a new window."""
        if not self.sums:
            return {}
        names = sorted(self.sums)
        total = torch.stack([self.sums[name].cpu() / self.counts[name] for name in names]).float()
        total = accelerator.reduce(total.to(accelerator.device), "mean").cpu().double()
        means = dict(zip(names, total.tolist(), strict=True))
        self.sums, self.counts = {}, {}
        return means

    def state_dict(self) -> dict[str, object]:
        """For the checkpoint."""
        return {"sums": {n: v.item() for n, v in self.sums.items()}, "counts": dict(self.counts)}

    def load_state_dict(self, state: dict[str, object], device: torch.device) -> None:
        """From the checkpoint."""
        sums: dict[str, float] = state["sums"]  # type: ignore[assignment]
        self.sums = {
            n: torch.tensor(v, dtype=torch.float64, device=device) for n, v in sums.items()
        }
        self.counts = dict(state["counts"])  # type: ignore[call-overload]


class MetricWindow:
    """Sums and counts of named metrics since the last report; read back as sum over count.

    Counts differ from step to step and from process to process (hidden slots, for instance), so
    both are added up everywhere and divided once.
    """

    def __init__(self) -> None:
        self.pairs: dict[str, Tensor] = {}

    def add(self, metrics: dict[str, Tensor]) -> None:
        """Add one step's (sum, count) pairs; nothing leaves the device.

        The names must be the same in every step and on every process.
        """
        for name, pair in metrics.items():
            pair = pair.detach().double()
            self.pairs[name] = self.pairs[name] + pair if name in self.pairs else pair

    def means(self) -> dict[str, float]:
        """Means over the window and the processes (a collective); starts a new window.

        A metric whose count is 0 is left out.
        """
        if not self.pairs:
            return {}
        total = sum_over_processes(torch.stack(list(self.pairs.values()))).tolist()
        names, self.pairs = list(self.pairs), {}
        pairs = zip(names, total, strict=True)
        return {name: value / count for name, (value, count) in pairs if count}

    def state_dict(self) -> dict[str, list[float]]:
        """For the checkpoint."""
        return {name: pair.tolist() for name, pair in self.pairs.items()}

    def load_state_dict(self, state: dict[str, list[float]], device: torch.device) -> None:
        """From the checkpoint."""
        self.pairs = {
            name: torch.tensor(pair, dtype=torch.float64, device=device)
            for name, pair in state.items()
        }
