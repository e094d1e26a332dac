"""Train a tokenizer on images.

    accelerate launch train/tokenizer.py [--config FILE] [--out FOLDER] [--resume] [KEY=VALUE ...]

Without arguments: the default bit tokenizer on the bundled emoji, sized for a CPU. One YAML is one
run (`tokenizer_recipe.py` has its fields); key.sub=value overrides. The run folder fills with
config.yaml, log.jsonl, curves.png, previews/*.png and checkpoints/; in the end `tokenizer/` holds
the averaged weights for `tessella.load_tokenizer`. Ctrl-C finishes the step and saves; --resume
continues exactly where it stopped.
"""

from pathlib import Path
from typing import Any

import click
from torch import Tensor

import tessella
from tessella.checkpoints import save_tokenizer
from tessella.data.image_source import ImageSource
from tessella.data.loader import ImageDataset, eval_batches, make_loader
from tessella.data.train_val import held_out, open_train_and_val
from tessella.evaluation.reconstructed import Measures, Reconstructed
from tessella.evaluation.reconstructions import measure_reconstructions
from tessella.metrics.perceptual import PerceptualDistance
from tessella.tokenizers.base import Tokenizer
from tessella.tokenizers.probe import choose_probe, describe_probe, synthetic_probe
from tessella.train.command import (
    flat_config,
    log_alarms,
    run_script,
    say,
    tell,
    training_options,
)
from tessella.train.engine import build_accelerator, run_facts
from tessella.train.health import check_first_batch, code_alarms, loss_alarms
from tessella.train.initial import describe_start
from tessella.train.launcher import slow_precision
from tessella.train.layout import fix_layout
from tessella.train.pictures import draw_reconstructions
from tessella.train.resumed import facts_of_run, facts_of_source, read_started, resume_run
from tessella.train.run_folder import RunFolder
from tessella.train.steps import (
    end_run,
    log_measurements,
    measurements_of,
    noting,
    of_validation,
    training_steps,
    trial,
    update_curves,
)
from tessella.train.tokenizer_recipe import TrainTokenizerConfig, resolve
from tessella.train.tokenizer_run import TokenizerRun

DEFAULT_CONFIG = Path(tessella.__file__).parent / "configs" / "tokenizer" / "bits_emoji_64.yaml"

PANELS = {
    "reconstruction": ["reconstruction", "perceptual"],
    "PSNR (dB)": ["psnr", "psnr_non_white"],
    "codes": ["codebook_usage", "entry_entropy_mean_bits", "entry_entropy_min_bits"],
    "quantizer": ["commitment", "codebook", "entropy"],
    "adversarial": ["adversarial", "discriminator", "real_logits", "fake_logits"],
    "images/s": ["images_per_second"],
}


def evaluate(
    tokenizer: Tokenizer,
    source: ImageSource,
    perceptual: PerceptualDistance | None,
    batch_size: int,
    limit: int = 1000,
    broken: dict[str, str] | None = None,
) -> dict[str, float]:
    """PSNR, SSIM and perceptual distance of 8-bit reconstructions of the first `limit` images.

    The dict `broken` is filled with the reasons for skipped images, by name.
    """
    measures = Measures(distance=perceptual)
    batches = eval_batches(source, tokenizer.resolution, batch_size, limit, broken=broken)
    found = measure_reconstructions(tokenizer, batches, Reconstructed(measures), measures)
    result = found.meter.compute()
    if perceptual is not None:
        result[perceptual.id] = found.pair_metrics()[found.perceptual]
    return result


def train(
    config: TrainTokenizerConfig, out: Path, *, resume: bool, changed: bool, command: str
) -> dict[str, Any] | None:
    """Run or resume a training; returns the final measurements, or None if it was interrupted."""
    config = resolve(config, read_started(TrainTokenizerConfig, out) if resume else None)
    run = config.run
    accelerator = build_accelerator(run, out)
    main = accelerator.is_main_process
    data = config.data
    source, val_source = open_train_and_val(data.source, data.val_source, data, same_classes=False)
    config = fix_layout(config, accelerator, source)
    run = config.run
    state = TokenizerRun(config, accelerator)
    dataset = ImageDataset(source, state.tokenizer.resolution, config.data.augment, seed=run.seed)
    broken: dict[str, str] = {}  # validation images
    first = eval_batches(val_source, state.tokenizer.resolution, 16, 16, broken=broken)
    preview = next(first)["images"]
    # What can be refused is refused here: before anything is written, and on every process.
    for images in (dataset.sample(0)["images"], preview):
        check_first_batch(images)
    state.dry_run(preview)
    if config.init is not None and not resume:
        state.start_from(config.init)
    perceptual = state.objective.perceptual
    features = perceptual.id if perceptual is not None else "none"
    batch_size, side = run.batch_size_per_device, state.tokenizer.resolution
    probe = choose_probe(val_source, side) if run.probe_images else synthetic_probe(side)

    def write_model(path: Path, measured: dict[str, float]) -> str:
        card = {
            "data": {"source": source.name, "licence": source.licence, "images": len(source)},
            **run_facts(run, accelerator, command=command, step=state.step, seconds=state.seconds),
            "perceptual_features": features,
            "init": state.init,
            "validation": {"source": val_source.name, "split": "val", **measured},
        }
        facts = save_tokenizer(
            state.ema.module,
            path,
            card=card,
            overwrite=True,
            run=folder.id,
            probe=probe,
        )
        return f"wrote {path} (fingerprint {facts['fingerprint']})"

    def draw(images: Tensor, path: Path) -> None:
        averaged = state.ema.module
        draw_reconstructions(images, averaged.decode(averaged.encode(images)), path)

    facts = facts_of_run(accelerator)
    facts |= facts_of_source("images", source) | facts_of_source("validation", val_source)
    folder = RunFolder(out, config, resume=resume, writes=main, model="tokenizer")
    accelerator.wait_for_everyone()
    folder.begin()
    if resume:
        resume_run(folder, state, config, facts, changed=changed)
        if config.init is not None and state.step == 0:
            state.start_from(config.init)
    if main:  # what the end needs is tried before the first step
        with trial(out / "tokenizer") as place:
            write_model(place, evaluate(state.ema.module, val_source, perceptual, 2, limit=2))
            draw(preview[:1], place / "preview.png")
    if run.trackers:
        accelerator.init_trackers("tessella-tokenizer", config=flat_config(config))
    for line in (
        describe_start(state.init) if state.step == 0 else "",
        held_out(val_source),
        slow_precision(run.mixed_precision),
    ):
        if line:
            say(main, line)
    say(
        main,
        f"{state.tokenizer.num_parameters()['total']:,} parameters, {state.tokenizer.spec}, "
        f"{state.tokenizer.spec.bits_per_image:g} bits per image; {len(source)} images of "
        f"{source.name}; {accelerator.device}, {run.mixed_precision} precision, "
        f"{run.memory_format.replace('_', '-')} memory; perceptual features: {features}",
    )
    accumulation = run.gradient_accumulation_steps
    loader = make_loader(
        dataset,
        batch_size,
        num_steps=state.length.most_steps * accumulation,
        start_step=state.step * accumulation,
        process_index=accelerator.process_index,
        num_processes=accelerator.num_processes,
        num_workers=config.data.num_workers,
        pin_memory=accelerator.device.type == "cuda",
    )
    measured: dict[str, float] = {}
    for step in training_steps(loader, state, run, accelerator, folder):
        for batch in step.batches:
            images = batch["images"].to(accelerator.device, non_blocking=True)
            if step.first_batch:
                check_first_batch(images)
            state.train_batch(images)
        state.ema.update(state.tokenizer)
        ids = step.batch["ids"]
        if step.logs:
            record = step.log(state.report, state.optimizer, ids, folder, accelerator)
            alarms = code_alarms(record, state.tokenizer.spec.vocab_size)
            log_alarms([*alarms, *loss_alarms(record)], step.number, folder)
        step.pause_clock()  # pictures and checkpoints are not training speed
        if main and step.previews:
            draw(preview, out / "previews" / f"step_{step.number:07d}.png")
            update_curves(folder, PANELS)
        if main and step.evaluates:
            measured = evaluate(state.ema.module, val_source, perceptual, batch_size, broken=broken)
            log_measurements(measured, step.number, folder, accelerator)
        if step.saves:
            state.seconds = step.seconds
            state.save(folder, facts, ids)
    if main and state.length.ended(state.step):
        written = write_model(out / "tokenizer", {})
        measured = measurements_of(folder, state.step, "psnr")
        if not measured:
            with noting(f"{written}, which is whole but not measured"):
                draw(preview, out / "previews" / f"step_{state.step:07d}.png")
                measured = evaluate(
                    state.ema.module, val_source, perceptual, batch_size, broken=broken
                )
                log_measurements(measured, state.step, folder, accelerator, final=True)
        update_curves(folder, PANELS, hint=True)
        tell(main, write_model(out / "tokenizer", measured))
        say(main, describe_probe(probe, "run.probe_images=false"))
    skipped = dataset.broken | of_validation(broken)
    finished = end_run(state, skipped, folder, accelerator, command)
    return measured if finished else None


@click.command()
@training_options()
def main(**options: Any) -> None:
    """Train a tokenizer; OVERRIDES are key.sub=value."""
    run_script(
        "train/tokenizer.py", train, TrainTokenizerConfig, default_config=DEFAULT_CONFIG, **options
    )


if __name__ == "__main__":
    main()
