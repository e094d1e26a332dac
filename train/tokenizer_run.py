"""State of a tokenizer training run, from networks to counters, and one step of it."""

from collections.abc import Sequence
from typing import Any

import torch
import torch._functorch.config
import torch._inductor.config
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from ..checkpoints import load_tokenizer
from ..config import ConfigError, to_dict
from ..tokenizers.build import build_tokenizer
from .discriminator import build_discriminator
from .ema import EMA
from .engine import LossWindow, build_optimizer, descend, load_optimizer, seed_step, set_lr
from .health import CodeWindow, check_finite
from .initial import take_weights
from .layout import LAYOUTS
from .length import Length
from .resumed import Facts, flatten, restore_modules
from .run_folder import RunFolder
from .tokenizer_objective import Objective
from .tokenizer_recipe import TrainTokenizerConfig, check_weights


class TokenizerRun:
    """Everything that a run holds and a checkpoint restores.

    Args:
        config: Resolved config.
        accelerator: Processes and precision of the run.

    Raises:
        ConfigError: If a loss has no weight or a weight has no loss.
    """

    def __init__(self, config: TrainTokenizerConfig, accelerator: Accelerator) -> None:
        self.config, self.accelerator = config, accelerator
        seed_step(config.run.seed, -1, 0)  # the same weights on every process
        self.tokenizer = build_tokenizer(config.tokenizer).to(accelerator.device)
        check_weights(config, self.tokenizer.loss_names)
        self.discriminator: nn.Module | None = None
        if config.adversarial is not None:
            discriminator = build_discriminator(config.adversarial.discriminator)
            self.discriminator = discriminator.to(accelerator.device)
        layout = LAYOUTS[config.run.memory_format]
        for module in filter(None, (self.tokenizer, self.discriminator)):
            module.to(memory_format=layout)  # type: ignore[call-overload]
        self.ema = EMA(self.tokenizer, config.ema_decay)
        self.objective = Objective(config, accelerator.device)
        self.step, self.seconds, self.length = 0, 0.0, Length(config.run)
        self.init: dict[str, Any] | None = None
        self.codes = CodeWindow(self.tokenizer.spec)
        self.window = LossWindow()
        self.optimizer = build_optimizer(self.tokenizer.parameters(), config.optimizer)
        # The prepared modules run every forward pass with gradients: only they synchronize.
        self.model, self.prepared_optimizer = accelerator.prepare(self.tokenizer, self.optimizer)
        if config.adversarial is not None and self.discriminator is not None:
            self.d_optimizer = build_optimizer(
                self.discriminator.parameters(), config.adversarial.optimizer
            )
            self.d_model, self.prepared_d_optimizer = accelerator.prepare(
                self.discriminator, self.d_optimizer
            )
        if config.run.compile:
            if config.adversarial is not None and config.adversarial.adaptive:
                # The adaptive weight goes backward three times through one graph, so the first
                # must leave its buffers alone. torch checks this by the setting of now, not of when
                # a graph was compiled: graphs compiled before, in this process or kept on disk by
                # another, would give wrong gradients without an error (seen with torch 2.13).
                torch.compiler.reset()
                torch._functorch.config.donated_buffer = False
                torch._functorch.config.enable_autograd_cache = False
                torch._inductor.config.fx_graph_cache = False
            self.tokenizer.compile()

    def start_from(self, path: str) -> None:
        """Take the weights of a trained tokenizer, and note its fingerprint.

        Raises:
            CheckpointError: If there is no tokenizer there, or it is damaged.
            RunError: If weights that `init_ignore` does not name have other names or shapes; the
                message names them, and the settings that differ.
        """
        trained = load_tokenizer(path)
        modules = {"tokenizer": self.tokenizer, "ema": self.ema.module}
        settings = flatten(to_dict(trained.config)), flatten(to_dict(self.config.tokenizer))
        ignore = self.config.init_ignore
        found = take_weights(modules, trained, path, settings=settings, ignore=ignore)
        self.init = {"path": path, "fingerprint": trained.fingerprint, **found}

    @torch.no_grad()
    def dry_run(self, images: Tensor) -> None:
        """Run two images through the perceptual network and the discriminator, as a check.

        Raises:
            ConfigError: If one of them cannot read images of this resolution.
        """
        images = images[:2].to(self.accelerator.device)
        try:
            if self.objective.perceptual is not None:
                self.objective.perceptual(images, images)
            if self.discriminator is not None:
                self.discriminator.eval()(images)
                self.discriminator.train()
        except (RuntimeError, ValueError) as error:
            raise ConfigError(
                "the perceptual network or the discriminator cannot read images of "
                f"{self.tokenizer.resolution} pixels: {error}"
            ) from None

    def modules(self) -> dict[str, nn.Module]:
        """Every module with state, by the name of its file in a checkpoint."""
        modules: dict[str, nn.Module] = {"tokenizer": self.tokenizer, "ema": self.ema.module}
        if self.discriminator is not None:
            modules["discriminator"] = self.discriminator
        if self.objective.lecam is not None:
            modules["lecam"] = self.objective.lecam
        return modules

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
        codes = gather_object([self.codes.flush().state_dict()])
        windows = gather_object([self.window.state_dict()])
        for window in windows:
            check_finite({"step": self.step, **window["sums"]}, ids)
        state: dict[str, Any] = {
            "optimizer": self.optimizer.state_dict(),
            "ema_updates": self.ema.num_updates,
            "seconds": self.seconds,
            "length": self.length.state_dict(self.step),
            "codes": codes,
            "windows": windows,
            "facts": facts,
            "init": self.init,
        }
        if self.discriminator is not None:
            state["d_optimizer"] = self.d_optimizer.state_dict()
        weights = {name: module.state_dict() for name, module in self.modules().items()}
        folder.save_checkpoint(self.step, weights, state, keep=self.config.run.keep_checkpoints)
        self.accelerator.wait_for_everyone()

    def facts_of(self, saved: dict[str, Any]) -> Facts:
        """Facts in the state of a checkpoint that an earlier version wrote."""
        return {"processes": len(saved["codes"])}

    def load(self, weights: dict[str, dict[str, Tensor]], saved: dict[str, Any]) -> None:
        """Restore a checkpoint.

        Counters of another number of processes belong to none of these; new windows begin then.

        Raises:
            RunError: If the weights do not fit the networks.
        """
        restore_modules(self.modules(), weights, "the checkpoint")
        config, rank = self.config, self.accelerator.process_index
        load_optimizer(self.optimizer, saved["optimizer"], config.optimizer)
        if config.adversarial is not None:
            load_optimizer(self.d_optimizer, saved["d_optimizer"], config.adversarial.optimizer)
        self.ema.num_updates, self.step = saved["ema_updates"], saved["step"]
        if len(saved["codes"]) == self.accelerator.num_processes:
            self.codes.statistics.load_state_dict(saved["codes"][rank])
            self.window.load_state_dict(saved["windows"][rank], self.accelerator.device)
        self.seconds, self.init = saved["seconds"], saved.get("init")
        self.length.load_state_dict(saved.get("length"), self.step, self.seconds)

    def train_batch(self, images: Tensor) -> None:
        """Forward and backward of both networks on one batch; they step when gradients are due."""
        accelerator, config, adversarial = self.accelerator, self.config, self.config.adversarial
        models = [self.model] if self.discriminator is None else [self.model, self.d_model]
        with accelerator.accumulate(*models):
            place = self.length.position(self.step)
            set_lr(self.optimizer, config.optimizer.lr, place, config.run.steps)
            if self.discriminator is not None:
                self.discriminator.requires_grad_(False)
            output = self.model(images)
            with accelerator.autocast():
                # The frozen discriminator runs bare: there is no gradient of its to synchronize.
                total, losses = self.objective.for_tokenizer(
                    output, images, place, self.discriminator, self.tokenizer.last_layer
                )
            norm = descend(
                accelerator,
                total,
                self.tokenizer,
                self.prepared_optimizer,
                config.optimizer.clip_norm,
            )
            if norm is not None:
                losses["grad_norm"] = norm
            if adversarial is not None and self.discriminator is not None:
                self.discriminator.requires_grad_(True)
                if place >= adversarial.first_step:
                    losses |= self._train_discriminator(images, output.images.detach())
        self.window.add({"loss": total, **losses})
        self.codes.add(output.tokens.indices)

    def _train_discriminator(self, images: Tensor, fakes: Tensor) -> dict[str, Tensor]:
        adversarial = self.config.adversarial
        assert adversarial is not None and self.discriminator is not None
        since = self.length.position(self.step) - adversarial.first_step
        steps = self.config.run.steps - adversarial.first_step
        set_lr(self.d_optimizer, adversarial.optimizer.lr, since, steps)
        # One call: under DDP every forward pass of a step must be the same one.
        logits = self.d_model(images, fakes.to(images.dtype))
        loss, losses = self.objective.for_discriminator(*logits.chunk(2))
        norm = descend(
            self.accelerator,
            loss,
            self.discriminator,
            self.prepared_d_optimizer,
            adversarial.optimizer.clip_norm,
        )
        if norm is not None:
            losses["discriminator_grad_norm"] = norm
        return losses

    def report(self) -> dict[str, float]:
        """Means of the window over steps and processes, and the token statistics (a collective)."""
        means = self.window.means(self.accelerator)
        merged = CodeWindow(self.tokenizer.spec).statistics
        for state in gather_object([self.codes.flush().state_dict()]):
            other = CodeWindow(self.tokenizer.spec).statistics
            other.load_state_dict(state)
            merged.merge(other)
        self.codes.reset()
        return means | merged.compute()
