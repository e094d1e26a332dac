"""The memory layout in which a tokenizer trains: the faster one on this machine, found by trying.

Which of the two is faster depends on the processor, the precision, the sizes and torch itself, by
up to a factor of two in either direction, so no rule is right everywhere. The choice stands in the
run's config.yaml, and a resume takes it from there: results differ in their last digits.
"""

import dataclasses
import time
from typing import Literal

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn

from ..data.image_source import ImageSource
from ..data.loader import ImageDataset
from ..tokenizers.base import Tokenizer
from ..tokenizers.build import build_tokenizer
from .losses import reconstruction_loss
from .tokenizer_recipe import TrainTokenizerConfig

Layout = Literal["contiguous", "channels_last"]

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
"""torch's memory formats by their names in a config."""
_ROUNDS = 3
"""Timed steps of each layout, of which the fastest counts; one before them is not timed."""
_CPU_IMAGES = 4
"""Largest batch that is timed on a CPU, where a step takes as long as its images together."""


def fix_layout(
    config: TrainTokenizerConfig, accelerator: Accelerator, source: ImageSource
) -> TrainTokenizerConfig:
    """Config with the layout to train in; `auto` becomes the faster one (a collective).

    Forward and backward of a tokenizer of this config are timed on the first images in both
    layouts by turns, and the main process decides for all.

    Args:
        config: Config with `run.memory_format`.
        accelerator: Device and precision of the run.
        source: Training images.
    """
    if config.run.memory_format != "auto":
        return config
    tokenizer = build_tokenizer(config.tokenizer).to(accelerator.device)
    layout: Layout = "contiguous"
    if any(isinstance(module, nn.Conv2d) for module in tokenizer.modules()):
        dataset = ImageDataset(
            source, tokenizer.resolution, config.data.augment, seed=config.run.seed
        )
        size = config.run.batch_size_per_device
        if accelerator.device.type == "cpu":
            size = min(size, _CPU_IMAGES)
        images = torch.cat([dataset.sample(i)["images"] for i in range(size)])
        seconds = time_layouts(tokenizer, images.to(accelerator.device), accelerator)
        layout = min(seconds, key=lambda name: seconds[name])
    chosen = broadcast_object_list([layout])[0]
    return dataclasses.replace(config, run=dataclasses.replace(config.run, memory_format=chosen))


def time_layouts(
    tokenizer: Tokenizer, images: Tensor, accelerator: Accelerator
) -> dict[Layout, float]:
    """Seconds of the fastest training step of a tokenizer in each layout.

    Args:
        tokenizer: Tokenizer, whose gradients and running statistics are changed.
        images: Images (B, 3, R, R) in [-1, 1] on its device.
        accelerator: Precision of the step.
    """
    seconds: dict[Layout, list[float]] = {"channels_last": [], "contiguous": []}
    for _ in range(_ROUNDS + 1):
        for layout, times in seconds.items():
            tokenizer.to(memory_format=LAYOUTS[layout])  # type: ignore[call-overload]
            _wait(images.device)
            started = time.perf_counter()
            with accelerator.autocast():
                output = tokenizer(images)
                loss = reconstruction_loss(output.images, images, "mse")
            torch.autograd.backward(loss)
            _wait(images.device)
            times.append(time.perf_counter() - started)
            tokenizer.zero_grad()
    return {layout: min(times[1:]) for layout, times in seconds.items()}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
