"""State of a generator training run, from network to counters, and one step of it."""

from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from ..checkpoints import load_without_tokenizer
from ..collectives import num_processes, sum_over_processes
from ..config import ConfigError, to_dict
from ..generators.build import build_generator
from ..generators.noise import derive_seeds
from ..kernels.backends import BackendUnavailable
from ..sample.folder import class_name
from ..sample.generate import generate
from ..tokenizers.base import Tokenizer
from .ema import EMA
from .engine import (
    LossWindow,
    MetricWindow,
    build_optimizer,
    descend,
    load_optimizer,
    seed_step,
    set_lr,
)
from .generator_recipe import TrainGeneratorConfig
from .health import check_finite
from .initial import TOKENIZER, take_weights
from .length import Length
from .resumed import Facts, flatten, restore_modules
from .run_folder import RunError, RunFolder
from .token_batches import TokenBatch

MAX_CLASSES = 16
"""Classes shown in a grid of samples."""
EVAL_MASKS = 4
"""Validation passes over every image, each with other hidden slots."""
_EVAL_SEED = 0x7E55


class GeneratorRun:
    """Everything that a run holds and a checkpoint restores.

    Args:
        config: Resolved config: `generator.num_classes` is a number.
        accelerator: Processes and precision of the run.
        tokenizer: Frozen tokenizer of the tokens.
        classes: Class names by label.

    Raises:
        ValueError: If the generator cannot read the tokens, with the reason.
    """

    def __init__(
        self,
        config: TrainGeneratorConfig,
        accelerator: Accelerator,
        tokenizer: Tokenizer,
        classes: Sequence[str],
    ) -> None:
        self.config, self.accelerator, self.tokenizer = config, accelerator, tokenizer
        seed_step(config.run.seed, -1, 0)  # the same weights on every process
        try:
            generator = build_generator(config.generator, tokenizer.spec)
        except BackendUnavailable as error:
            raise ConfigError(f"generator: {error}") from None
        self.generator = generator.to(accelerator.device)
        self.generator.classes = tuple(classes)
        self.ema = EMA(self.generator, config.ema_decay)
        self.step, self.seconds, self.length = 0, 0.0, Length(config.run)
        self.init: dict[str, Any] | None = None
        self.window, self.metrics = LossWindow(), MetricWindow()
        self.optimizer = build_optimizer(self.generator.parameters(), config.optimizer)
        # The prepared module runs every forward pass with gradients: only it synchronizes.
        self.model, self.prepared_optimizer = accelerator.prepare(self.generator, self.optimizer)
        if config.run.compile:
            self.generator.compile()

    def start_from(self, path: str) -> None:
        """Take the weights of a trained generator of the same tokens, and note its fingerprint.

        Raises:
            CheckpointError: If there is no generator there, or it is damaged.
            RunError: If weights that `init_ignore` does not name have other names or shapes; the
                message names them, and the settings that differ. If the generator is of another
                tokenizer, and `init_ignore` does not name that.
        """
        trained, tokenizer = load_without_tokenizer(path)
        ignore, ours = self.config.init_ignore, self.tokenizer.fingerprint
        if tokenizer not in (None, ours) and TOKENIZER not in ignore:
            raise RunError(
                f"init: {path}: was trained on tokens of the tokenizer {tokenizer}, this one is "
                f"{ours or 'of no folder'}; init_ignore=[{TOKENIZER}] takes its weights anyway"
            )
        settings = flatten(to_dict(trained.config)), flatten(to_dict(self.config.generator))
        for known, classes in zip(settings, (trained.classes, self.generator.classes), strict=True):
            known["classes"] = list(classes)
        found = take_weights(self.modules(), trained, path, settings=settings, ignore=ignore)
        self.init = {"path": path, "fingerprint": trained.fingerprint, **found}

    def modules(self) -> dict[str, nn.Module]:
        """Every module with state, by the name of its file in a checkpoint."""
        return {"generator": self.generator, "ema": self.ema.module}

    def save(self, folder: RunFolder, facts: Facts, ids: Sequence[str]) -> None:
        """Write a checkpoint (a collective: counters of all processes are gathered).

        Args:
            folder: Run folder.
            facts: Facts that a resume has to find again.
            ids: Names of the last batch's images, for the error message.

        Raises:
            NonFiniteLoss: If a loss since the last log line was not finite, on any process; such
                weights would push the last good checkpoint out.
            SaveError: If the disk refuses.
        """
        windows = gather_object([self.window.state_dict()])
        metrics = gather_object([self.metrics.state_dict()])
        for window in windows:
            check_finite({"step": self.step, **window["sums"]}, ids)
        state: dict[str, Any] = {
            "optimizer": self.optimizer.state_dict(),
            "ema_updates": self.ema.num_updates,
            "seconds": self.seconds,
            "length": self.length.state_dict(self.step),
            "windows": windows,
            "metrics": metrics,
            "facts": facts,
            "init": self.init,
        }
        weights = {name: module.state_dict() for name, module in self.modules().items()}
        folder.save_checkpoint(self.step, weights, state, keep=self.config.run.keep_checkpoints)
        self.accelerator.wait_for_everyone()

    def facts_of(self, saved: dict[str, Any]) -> Facts:
        """Facts in the state of a checkpoint that an earlier version wrote."""
        return {
            "processes": len(saved["windows"]),
            "tokens": {"hash": saved["data"]},
            "fingerprint of the tokenizer": saved["tokenizer"],
        }

    def load(self, weights: dict[str, dict[str, Tensor]], saved: dict[str, Any]) -> None:
        """Restore a checkpoint.

        Counters of another number of processes belong to none of these; new windows begin then.

        Raises:
            RunError: If the weights do not fit the network.
        """
        restore_modules(self.modules(), weights, "the checkpoint")
        load_optimizer(self.optimizer, saved["optimizer"], self.config.optimizer)
        self.ema.num_updates, self.step = saved["ema_updates"], saved["step"]
        rank, device = self.accelerator.process_index, self.accelerator.device
        if len(saved["windows"]) == self.accelerator.num_processes:
            self.window.load_state_dict(saved["windows"][rank], device)
            self.metrics.load_state_dict(saved["metrics"][rank], device)
        self.seconds, self.init = saved["seconds"], saved.get("init")
        self.length.load_state_dict(saved.get("length"), self.step, self.seconds)

    def train_batch(self, batch: TokenBatch) -> None:
        """Forward and backward on one batch; the optimizer steps when gradients are due.

        What is hidden of an image, and whether its label is, depend on its number alone.
        """
        config = self.config
        with self.accelerator.accumulate(self.model):
            place = self.length.position(self.step)
            set_lr(self.optimizer, config.optimizer.lr, place, config.run.steps)
            seeds = derive_seeds(config.run.seed, batch.numbers)
            output = self.model(batch.tokens, batch.labels, batch.captions, seeds=seeds)
            loss = self._shared(output.loss, output.weight)
            losses = {"loss": loss}
            norm = descend(
                self.accelerator,
                loss,
                self.generator,
                self.prepared_optimizer,
                config.optimizer.clip_norm,
            )
            if norm is not None:
                losses["grad_norm"] = norm
        self.window.add(losses)
        self.metrics.add(output.metrics)

    @staticmethod
    def _shared(loss: Tensor, weight: Tensor) -> Tensor:
        """Share of this process in the weighted mean over all processes, for DDP to average."""
        if num_processes() == 1:
            return loss
        return loss * weight * num_processes() / sum_over_processes(weight).clamp(min=1e-9)

    def report(self) -> dict[str, float]:
        """Means of both windows over steps and processes (a collective)."""
        record = self.window.means(self.accelerator) | self.metrics.means()
        uniform = self.generator.uniform_loss
        return record if uniform is None else record | {"uniform_loss": uniform}

    @torch.no_grad()
    def evaluate(self, tokens: TokenBatch) -> dict[str, float]:
        """Validation metrics of the averaged weights, as `val_NAME`; hidden slots never change."""
        size, device = self.config.run.batch_size_per_device, self.accelerator.device
        sums: dict[str, Tensor] = {}
        for mask in range(EVAL_MASKS):
            seeds = derive_seeds(_EVAL_SEED + mask, tokens.numbers)
            for start in range(0, len(seeds), size):
                rows = slice(start, start + size)
                output = self.ema.module(
                    tokens.tokens[rows].to(device),
                    tokens.labels[rows].to(device),
                    tokens.captions[rows],
                    seeds=seeds[rows].to(device),
                )
                for name, pair in output.metrics.items():
                    pair = pair.double().cpu()
                    sums[name] = sums[name] + pair if name in sums else pair
        pairs = {name: pair.tolist() for name, pair in sums.items()}
        return {f"val_{name}": value / count for name, (value, count) in pairs.items() if count}

    @torch.no_grad()
    def samples(
        self, captions: Sequence[str], *, limit: int | None = None
    ) -> tuple[Tensor, list[str]]:
        """Sampled pictures (B, 3, H, W) of the averaged weights, and their titles.

        `samples_per_class` pictures of each of the first 16 classes, or that many pictures if there
        are no classes, with the same seeds every time. A generator that reads text draws as many by
        the first captions instead, without labels.

        Args:
            captions: Captions of the validation images.
            limit: Largest number of pictures; None: all.
        """
        generator, config = self.ema.module, self.config
        classes = range(min(generator.num_classes, MAX_CLASSES)) or [-1]
        labels = [label for label in classes for _ in range(config.samples_per_class)][:limit]
        titles, prompts = [class_name(generator, label) for label in labels], None
        known = [] if generator.text is None else generator.text.readable(captions)
        if known:
            titles = prompts = [known[i % len(known)] for i in range(len(labels))]
            labels = [-1] * len(labels)
        size = config.run.batch_size_per_device
        tokens = generate(
            generator,
            labels,
            prompts=prompts,
            seeds=range(len(labels)),
            sampling=config.sampling,
            batch_size=size,
        )
        starts = range(0, len(labels), size)
        pictures = [self.tokenizer.decode(tokens[i : i + size]).cpu() for i in starts]
        return torch.cat(pictures), titles
