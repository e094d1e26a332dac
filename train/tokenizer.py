"""Train a tokenizer on images.

    accelerate launch train/tokenizer.py [--config FILE] [--out FOLDER] [--resume] [key.sub=value ...]

Without arguments: the default bit tokenizer on the bundled emoji, sized for a CPU. One YAML is one
run. The run folder fills with config.yaml, log.jsonl, curves.png, previews/*.png and checkpoints/;
in the end `tokenizer/` holds the averaged weights for `tessella.load_tokenizer`. Ctrl-C finishes
the step and saves; --resume continues exactly where it stopped.
"""

import dataclasses
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import click
import tessella
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from tessella.checkpoints import save_tokenizer
from tessella.config import STRICT, ConfigError, load_config, to_dict
from tessella.data.loader import ImageDataset, eval_batches, make_loader
from tessella.data.sources import ImageSource, open_source
from tessella.data.transforms import AugmentConfig
from tessella.files import SaveError
from tessella.sample.metrics.features import available_features
from tessella.sample.metrics.image import ReconstructionMeter
from tessella.sample.metrics.perceptual import PerceptualDistance, build_perceptual
from tessella.tokenizers.base import Tokenizer, TokenizerOutput
from tessella.tokenizers.build import TokenizerConfig, build_tokenizer
from tessella.train.discriminator import DiscriminatorConfig, build_discriminator
from tessella.train.ema import EMA
from tessella.train.engine import (
    LossWindow,
    OptimizerConfig,
    RunConfig,
    StopSignal,
    build_accelerator,
    build_optimizer,
    native_precision,
    seed_step,
    set_lr,
)
from tessella.train.health import (
    CodeWindow,
    NonFiniteLoss,
    check_first_batch,
    code_alarms,
    loss_alarms,
)
from tessella.train.losses import (
    GANLoss,
    LeCam,
    adaptive_weight,
    discriminator_loss,
    generator_loss,
    reconstruction_loss,
)
from tessella.train.pictures import CURVES_HINT, draw_curves, draw_reconstructions
from tessella.train.run_folder import RunFolder
from tessella.train.schedules import BoostConfig, boost_at
from torch import Tensor, nn
from tqdm import tqdm

DEFAULT_CONFIG = Path(tessella.__file__).parent / "configs" / "tokenizer" / "bits_emoji_64.yaml"

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells count it: what follows the run in a script must not start."""

PANELS = {
    "reconstruction": ["reconstruction", "perceptual"],
    "PSNR (dB)": ["psnr", "psnr_non_white"],
    "codes": ["codebook_usage", "entry_entropy_mean_bits", "entry_entropy_min_bits"],
    "quantizer": ["commitment", "codebook", "entropy"],
    "adversarial": ["adversarial", "discriminator", "real_logits", "fake_logits"],
    "images/s": ["images_per_second"],
}


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What to train on.

    Args:
        source: `bundled:emoji`, a folder, tars, or `hf:owner/name`; its split `train`.
        val_source: Where the split `val` comes from; None: the same source.
        augment: Random augmentation of the training images.
        num_workers: Reader processes per training process; 0 is best for small cached sets.
    """

    __pydantic_config__ = STRICT
    source: str = "bundled:emoji"
    val_source: str | None = None
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    num_workers: int = 0


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Forms of the image losses; their weights are `loss_weights`.

    Args:
        reconstruction: Squared or absolute differences, in [0, 1] pixel units.
        perceptual: Feature networks in order of preference; the first whose weights are on this
            machine is used, and the resolved config names it alone. Empty: no perceptual loss.
        entropy_boost: Extra weight of the entropy loss at the start.
    """

    __pydantic_config__ = STRICT
    reconstruction: Literal["mse", "l1"] = "mse"
    perceptual: tuple[str, ...] = ()
    entropy_boost: BoostConfig = field(default_factory=BoostConfig)


@dataclass(frozen=True, kw_only=True)
class AdversarialConfig:
    """The discriminator and when it matters.

    Args:
        discriminator: Its network.
        optimizer: Its optimizer; the rate warms up from the step at which it starts to train.
        loss: Form of both adversarial losses.
        start_step: First step with the adversarial term in the tokenizer's loss.
        lead_steps: Steps that the discriminator trains alone before that.
        ramp_steps: Steps over which the term rises linearly to its weight; 0: at once.
        adaptive: Multiply the term by the ratio of gradient norms at the last decoder layer.
        adaptive_max: Largest such ratio.
        lecam_decay: Of LeCam's running logits; used if `loss_weights` has `lecam`.
    """

    __pydantic_config__ = STRICT
    discriminator: DiscriminatorConfig
    optimizer: OptimizerConfig
    loss: GANLoss = "hinge"
    start_step: int = 0
    lead_steps: int = 0
    ramp_steps: int = 0
    adaptive: bool = False
    adaptive_max: float = 1e4
    lecam_decay: float = 0.999

    def __post_init__(self) -> None:
        if not 0 <= self.lead_steps <= self.start_step:
            raise ValueError(
                f"lead_steps: expected 0 to start_step {self.start_step}, found {self.lead_steps}"
            )

    @property
    def first_step(self) -> int:
        """First step of the discriminator's own training."""
        return self.start_step - self.lead_steps

    def share_at(self, step: int) -> float:
        """Share of the adversarial weight at `step`, 0 before the start."""
        if step < self.start_step:
            return 0.0
        return min(1.0, (step - self.start_step + 1) / self.ramp_steps) if self.ramp_steps else 1.0


@dataclass(frozen=True, kw_only=True)
class TrainTokenizerConfig:
    """One run of this script.

    Args:
        tokenizer: What to train.
        data: What to train on.
        losses: Forms of the image losses.
        loss_weights: Weight of every loss by name. Every loss that the run produces needs one, and
            every weight must meet its loss.
        optimizer: Of the tokenizer.
        adversarial: The discriminator; None: no adversarial training.
        ema_decay: Highest decay of the weight average that is evaluated and saved.
        run: Length, batches, precision and reporting.
    """

    __pydantic_config__ = STRICT
    tokenizer: TokenizerConfig
    data: DataConfig = field(default_factory=DataConfig)
    losses: LossConfig = field(default_factory=LossConfig)
    loss_weights: dict[str, float]
    optimizer: OptimizerConfig
    adversarial: AdversarialConfig | None = None
    ema_decay: float = 0.999
    run: RunConfig


def check_weights(config: TrainTokenizerConfig, tokenizer_losses: Sequence[str]) -> None:
    """Refuse a weight without a loss and a loss without a weight.

    Raises:
        ConfigError: Naming both kinds.
    """
    emitted = {"reconstruction", *tokenizer_losses}
    emitted |= {"perceptual"} if config.losses.perceptual else set()
    optional = set()
    if config.adversarial is not None:
        emitted, optional = emitted | {"adversarial"}, {"lecam"}
    given = set(config.loss_weights)
    idle, unweighted = sorted(given - emitted - optional), sorted(emitted - given)
    if idle or unweighted:
        raise ConfigError(
            f"loss_weights: weights without a loss: {', '.join(idle) or 'none'}; "
            f"losses without a weight: {', '.join(unweighted) or 'none'}"
        )


def resolve(config: TrainTokenizerConfig) -> TrainTokenizerConfig:
    """Replace what depends on the machine (precision, feature network) by what it is here."""
    run = config.run
    if run.mixed_precision == "auto":
        run = dataclasses.replace(run, mixed_precision=native_precision())
    losses = config.losses
    if len(losses.perceptual) > 1:
        found = available_features()
        chosen = next(
            (name for name in losses.perceptual if found.get(name)), losses.perceptual[-1]
        )
        losses = dataclasses.replace(losses, perceptual=(chosen,))
    return dataclasses.replace(config, run=run, losses=losses)


class Objective:
    """The losses of one step, from a tokenizer's output to two weighted sums."""

    def __init__(self, config: TrainTokenizerConfig, device: torch.device) -> None:
        self.config, self.weights = config, config.loss_weights
        self.perceptual: PerceptualDistance | None = None
        if config.losses.perceptual:
            self.perceptual = build_perceptual(config.losses.perceptual[0]).to(device)
        self.lecam: LeCam | None = None
        if config.adversarial is not None and "lecam" in self.weights:
            self.lecam = LeCam(config.adversarial.lecam_decay).to(device)

    def for_tokenizer(
        self,
        output: TokenizerOutput,
        images: Tensor,
        step: int,
        discriminator: nn.Module | None,
        last_layer: Tensor,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum to minimise, and every unweighted loss by name."""
        kind = self.config.losses.reconstruction
        losses = {"reconstruction": reconstruction_loss(output.images, images, kind)}
        if self.perceptual is not None:
            losses["perceptual"] = self.perceptual(output.images, images).mean()
        image_loss = sum_weighted(losses, self.weights)
        losses |= output.losses
        weights = dict(self.weights)
        if "entropy" in weights:
            weights["entropy"] *= boost_at(step, self.config.losses.entropy_boost)
        total = image_loss + sum_weighted(output.losses, weights)
        adversarial = self.config.adversarial
        if adversarial is not None and discriminator is not None and step >= adversarial.start_step:
            losses["adversarial"] = generator_loss(
                discriminator(output.images).float(), adversarial.loss
            )
            factor: Tensor | float = weights["adversarial"] * adversarial.share_at(step)
            if adversarial.adaptive:
                losses["adaptive_weight"] = adaptive_weight(
                    image_loss, losses["adversarial"], last_layer, adversarial.adaptive_max
                )
                factor = factor * losses["adaptive_weight"]
            total = total + factor * losses["adversarial"]
        return total, losses

    def for_discriminator(
        self, real_logits: Tensor, fake_logits: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The discriminator's weighted sum, and its losses by name."""
        assert self.config.adversarial is not None
        real_logits, fake_logits = real_logits.float(), fake_logits.float()
        loss = discriminator_loss(real_logits, fake_logits, self.config.adversarial.loss)
        losses = {
            "discriminator": loss,
            "real_logits": real_logits.mean(),
            "fake_logits": fake_logits.mean(),
        }
        if self.lecam is not None:
            losses["lecam"] = self.lecam(real_logits, fake_logits)
            loss = loss + self.weights["lecam"] * losses["lecam"]
        return loss, losses


def sum_weighted(losses: dict[str, Tensor], weights: dict[str, float]) -> Tensor:
    """Sum of losses times their weights."""
    total = torch.zeros(())
    for name, loss in losses.items():
        total = total + weights[name] * loss
    return total


@torch.no_grad()
def evaluate(
    tokenizer: Tokenizer,
    source: ImageSource,
    perceptual: PerceptualDistance | None,
    batch_size: int,
    limit: int = 1000,
) -> dict[str, float]:
    """PSNR, SSIM and perceptual distance of reconstructions of the first `limit` images."""
    meter, distance, count = ReconstructionMeter(), 0.0, 0
    for batch in eval_batches(source, tokenizer.resolution, batch_size, limit):
        images = batch["images"].to(tokenizer.device)
        reconstructions = tokenizer.decode(tokenizer.encode(images))
        meter.update(images, reconstructions)
        if perceptual is not None:
            distance += float(perceptual(images, reconstructions).sum())
        count += len(images)
    result = meter.compute()
    if perceptual is not None:
        result[perceptual.id] = distance / count
    return result


class TokenizerRun:
    """Everything that a run holds and a checkpoint must bring back."""

    def __init__(self, config: TrainTokenizerConfig, accelerator: Accelerator) -> None:
        self.config, self.accelerator = config, accelerator
        seed_step(config.run.seed, -1, 0)  # the same weights on every process
        self.tokenizer = build_tokenizer(config.tokenizer).to(accelerator.device)
        check_weights(config, self.tokenizer.loss_names)
        self.discriminator: nn.Module | None = None
        if config.adversarial is not None:
            discriminator = build_discriminator(config.adversarial.discriminator)
            self.discriminator = discriminator.to(accelerator.device)
        self.ema = EMA(self.tokenizer, config.ema_decay)
        self.objective = Objective(config, accelerator.device)
        self.step = 0
        self.codes = CodeWindow(self.tokenizer.spec)
        self.window = LossWindow()
        self.optimizer = build_optimizer(self.tokenizer.parameters(), config.optimizer)
        # The prepared modules run every forward pass with gradients: only they synchronise.
        self.model, self.prepared_optimizer = accelerator.prepare(self.tokenizer, self.optimizer)
        if config.adversarial is not None and self.discriminator is not None:
            self.d_optimizer = build_optimizer(
                self.discriminator.parameters(), config.adversarial.optimizer
            )
            self.d_model, self.prepared_d_optimizer = accelerator.prepare(
                self.discriminator, self.d_optimizer
            )
        if config.run.compile:
            self.tokenizer.compile()

    def modules(self) -> dict[str, nn.Module]:
        """Every module with state, by the name of its file in a checkpoint."""
        modules: dict[str, nn.Module] = {"tokenizer": self.tokenizer, "ema": self.ema.module}
        if self.discriminator is not None:
            modules["discriminator"] = self.discriminator
        if self.objective.lecam is not None:
            modules["lecam"] = self.objective.lecam
        return modules

    def save(self, folder: RunFolder, ids: Sequence[str]) -> None:
        """Write a checkpoint (a collective: counters of all processes are gathered).

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
            "codes": codes,
            "windows": windows,
        }
        if self.discriminator is not None:
            state["d_optimizer"] = self.d_optimizer.state_dict()
        weights = {name: module.state_dict() for name, module in self.modules().items()}
        folder.save_checkpoint(self.step, weights, state, keep=self.config.run.keep_checkpoints)
        self.accelerator.wait_for_everyone()

    def load(self, weights: dict[str, dict[str, Tensor]], state: dict[str, Any]) -> None:
        """Take over a checkpoint."""
        for name, module in self.modules().items():
            module.load_state_dict(weights[name])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.discriminator is not None:
            self.d_optimizer.load_state_dict(state["d_optimizer"])
        self.ema.num_updates, self.step = state["ema_updates"], state["step"]
        rank = self.accelerator.process_index
        if len(state["codes"]) == self.accelerator.num_processes:
            self.codes.statistics.load_state_dict(state["codes"][rank])
            self.window.load_state_dict(state["windows"][rank], self.accelerator.device)

    def train_batch(self, images: Tensor) -> None:
        """Forward and backward of both networks on one batch; they step when gradients are due."""
        accelerator, config, adversarial = self.accelerator, self.config, self.config.adversarial
        models = [self.model] if self.discriminator is None else [self.model, self.d_model]
        with accelerator.accumulate(*models):
            set_lr(self.optimizer, config.optimizer.lr, self.step, config.run.steps)
            if self.discriminator is not None:
                self.discriminator.requires_grad_(False)
            output = self.model(images)
            with accelerator.autocast():
                # The frozen discriminator runs bare: there is no gradient of its to synchronise.
                total, losses = self.objective.for_tokenizer(
                    output, images, self.step, self.discriminator, self.tokenizer.last_layer
                )
            accelerator.backward(total)
            if accelerator.sync_gradients:
                losses["grad_norm"] = torch.as_tensor(
                    accelerator.clip_grad_norm_(
                        self.tokenizer.parameters(), config.optimizer.clip_norm
                    )
                )
            self.prepared_optimizer.step()
            self.prepared_optimizer.zero_grad()
            if adversarial is not None and self.discriminator is not None:
                self.discriminator.requires_grad_(True)
                if self.step >= adversarial.first_step:
                    losses |= self._train_discriminator(images, output.images.detach())
        self.window.add({"loss": total, **losses})
        self.codes.add(output.tokens.indices)

    def _train_discriminator(self, images: Tensor, fakes: Tensor) -> dict[str, Tensor]:
        adversarial, accelerator = self.config.adversarial, self.accelerator
        assert adversarial is not None and self.discriminator is not None
        since = self.step - adversarial.first_step
        steps = self.config.run.steps - adversarial.first_step
        set_lr(self.d_optimizer, adversarial.optimizer.lr, since, steps)
        logits = self.d_model(torch.cat([images, fakes.to(images.dtype)]))
        loss, losses = self.objective.for_discriminator(*logits.chunk(2))
        accelerator.backward(loss)
        if accelerator.sync_gradients:
            losses["discriminator_grad_norm"] = torch.as_tensor(
                accelerator.clip_grad_norm_(
                    self.discriminator.parameters(), adversarial.optimizer.clip_norm
                )
            )
        self.prepared_d_optimizer.step()
        self.prepared_d_optimizer.zero_grad()
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


def train(
    config: TrainTokenizerConfig, out: Path, *, resume: bool, command: str
) -> dict[str, Any] | None:
    """Run or resume a training; returns the final measurements, or None if it was interrupted."""
    config = resolve(config)
    run = config.run
    accelerator = build_accelerator(run, out)
    main = accelerator.is_main_process
    source = open_source(config.data.source, "train")
    val_source = open_source(config.data.val_source or config.data.source, "val")
    state = TokenizerRun(config, accelerator)
    dataset = ImageDataset(source, state.tokenizer.resolution, config.data.augment, seed=run.seed)
    preview = next(eval_batches(val_source, state.tokenizer.resolution, 16, 16))["images"]
    # What can be refused is refused here: before anything is written, and on every process.
    for images in (dataset.sample(0)["images"], preview):
        check_first_batch(images)
    folder = RunFolder(out, config, resume=resume, writes=main)
    accelerator.wait_for_everyone()
    folder.begin()
    if resume:
        found = folder.load_checkpoint()
        if found is not None:
            state.load(*found)
        folder.forget_after(state.step)
    if run.trackers:
        accelerator.init_trackers("tessella-tokenizer", config=flat_config(config))
    perceptual = state.objective.perceptual
    features = perceptual.id if perceptual is not None else "none"
    say(
        main,
        f"{state.tokenizer.num_parameters()['total']:,} parameters, {state.tokenizer.spec}, "
        f"{state.tokenizer.spec.bits_per_image:g} bits per image; {len(source)} images of "
        f"{source.name}; {accelerator.device}, {run.mixed_precision} precision; "
        f"perceptual features: {features}",
    )
    accumulation = run.gradient_accumulation_steps
    loader = make_loader(
        dataset,
        run.batch_size_per_device,
        num_steps=run.steps * accumulation,
        start_step=state.step * accumulation,
        process_index=accelerator.process_index,
        num_processes=accelerator.num_processes,
        num_workers=config.data.num_workers,
        pin_memory=accelerator.device.type == "cuda",
    )
    batch_images = run.batch_size_per_device * accumulation * accelerator.num_processes
    bar = tqdm(
        total=run.steps, initial=state.step, unit="step", disable=not main, dynamic_ncols=True
    )
    started, first_step = time.perf_counter(), state.step
    clock, clock_step, measured = started, state.step, {}
    with StopSignal() as stop, bar:
        for number, batch in enumerate(loader, state.step * accumulation):
            if number % accumulation == 0:
                seed_step(run.seed, state.step, accelerator.process_index)
            images = batch["images"].to(accelerator.device, non_blocking=True)
            if number == first_step * accumulation:
                check_first_batch(images)
            state.train_batch(images)
            if (number + 1) % accumulation:
                continue
            state.step += 1
            state.ema.update(state.tokenizer)
            bar.update()
            last = state.step == run.steps
            stopping = stop.agreed(accelerator.device)
            if state.step % run.log_every == 0 or last:
                now = time.perf_counter()
                speed = (state.step - clock_step) * batch_images / (now - clock)
                clock, clock_step = now, state.step
                record = {"step": state.step, "images": state.step * batch_images}
                record |= state.report()
                record |= {"lr": state.optimizer.param_groups[0]["lr"], "images_per_second": speed}
                folder.log(record)
                accelerator.log(record, step=state.step)
                check_finite(record, batch["ids"])
                for alarm in [
                    *code_alarms(record, state.tokenizer.spec.vocab_size),
                    *loss_alarms(record),
                ]:
                    folder.log({"step": state.step, "alarm": str(alarm)})
                    say(main, f"step {state.step}: {alarm}")
                bar.set_postfix_str(f"{speed:.0f} images/s, loss {record['loss']:.4f}")
            pause = time.perf_counter()
            if main and (state.step % run.preview_every == 0 or last):
                averaged = state.ema.module
                pictures = averaged.decode(averaged.encode(preview))
                draw_reconstructions(
                    preview, pictures, out / "previews" / f"step_{state.step:07d}.png"
                )
                if not draw_curves(folder.read_log(), out / "curves.png", PANELS) and last:
                    say(main, CURVES_HINT)
            if main and (state.step % run.evaluate_every == 0 or last):
                measured = evaluate(
                    state.ema.module, val_source, perceptual, run.batch_size_per_device
                )
                folder.log({"step": state.step, **measured})
                accelerator.log(measured, step=state.step)
                say(main, f"step {state.step}: " + format_numbers(measured))
            if state.step % run.checkpoint_every == 0 or last or stopping:
                state.save(folder, batch["ids"])
            clock += time.perf_counter() - pause  # pictures and checkpoints are not training speed
            if stopping and not last:
                break
    for name, reason in dataset.broken.items():
        say(main, f"skipped broken image {name}: {reason}")
        folder.log({"step": state.step, "broken": name, "reason": reason})
    accelerator.end_training()
    if state.step < run.steps:
        say(main, f"stopped and saved at step {state.step}; continue with: {command} --resume")
        return None
    if main:
        draw_curves(folder.read_log(), out / "curves.png", PANELS)
        card = {
            "licence": "Apache-2.0",
            "data": {"source": source.name, "licence": source.licence, "images": len(source)},
            "command": command,
            "seed": run.seed,
            "steps": state.step,
            "images_seen": state.step * batch_images,
            "processes": accelerator.num_processes,
            "precision": run.mixed_precision,
            "perceptual_features": features,
            "seconds": round(time.perf_counter() - started),
            "versions": {"tessella": tessella.__version__, "torch": torch.__version__},
            "validation": {"source": val_source.name, "split": "val", **measured},
        }
        facts = save_tokenizer(state.ema.module, out / "tokenizer", card=card, overwrite=True)
        say(main, f"wrote {out / 'tokenizer'} (fingerprint {facts['fingerprint']})")
    return measured


def check_finite(record: dict[str, float], ids: Sequence[str]) -> None:
    """Stop the run on NaN or infinity.

    Raises:
        NonFiniteLoss: With the step, the values concerned and the images of the last batch.
    """
    bad = [name for name, value in record.items() if value != value or abs(value) == float("inf")]
    if bad:
        raise NonFiniteLoss(
            f"{', '.join(bad)} not finite at step {record['step']}; last batch: {', '.join(ids)}. "
            "Resume from the last checkpoint with a lower learning rate, or train in fp32."
        )


def flat_config(config: TrainTokenizerConfig) -> dict[str, Any]:
    """The config as one level of plain values, which is what trackers take."""
    return {key: str(value) for key, value in to_dict(config).items()}


def format_numbers(values: dict[str, float]) -> str:
    """Numbers for a line of text."""
    return ", ".join(f"{name} {value:.4g}" for name, value in values.items())


def say(main: bool, text: str) -> None:
    """One line for the person watching, above the progress bar."""
    if main:
        tqdm.write(text, file=sys.stderr)


@click.command(context_settings={"ignore_unknown_options": False})
@click.option("--config", "config_path", type=click.Path(path_type=Path), default=DEFAULT_CONFIG)
@click.option("--out", type=click.Path(path_type=Path), help="Run folder [runs/NAME-OF-CONFIG].")
@click.option("--resume", is_flag=True, help="Continue the run in --out.")
@click.argument("overrides", nargs=-1)
def main(config_path: Path, out: Path | None, resume: bool, overrides: tuple[str, ...]) -> None:
    """Train a tokenizer; OVERRIDES are key.sub=value."""
    out = out or Path("runs") / config_path.stem
    words = [*sys.argv[1:]]
    command = " ".join(
        ["accelerate launch train/tokenizer.py", *(w for w in words if w != "--resume")]
    )
    try:
        config = load_config(TrainTokenizerConfig, config_path, overrides)
        finished = train(config, out, resume=resume, command=command) is not None
    except (ValueError, SaveError, NonFiniteLoss) as error:
        raise click.ClickException(str(error)) from None
    if not finished:
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
