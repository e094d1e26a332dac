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
    training_options,
)
from tessella.train.engine import build_accelerator, run_facts
from tessella.train.health import check_first_batch, code_alarms, loss_alarms
from tessella.train.pictures import draw_reconstructions
from tessella.train.run_folder import RunFolder
from tessella.train.steps import (
    end_run,
    log_measurements,
    of_validation,
    training_steps,
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
    config: TrainTokenizerConfig, out: Path, *, resume: bool, command: str
) -> dict[str, Any] | None:
    """Run or resume a training; returns the final measurements, or None if it was interrupted."""
    config = resolve(config)
    run = config.run
    accelerator = build_accelerator(run, out)
    main = accelerator.is_main_process
    data = config.data
    source, val_source = open_train_and_val(data.source, data.val_source, data, same_classes=False)
    state = TokenizerRun(config, accelerator)
    dataset = ImageDataset(source, state.tokenizer.resolution, config.data.augment, seed=run.seed)
    broken: dict[str, str] = {}  # validation images
    first = eval_batches(val_source, state.tokenizer.resolution, 16, 16, broken=broken)
    preview = next(first)["images"]
    # What can be refused is refused here: before anything is written, and on every process.
    for images in (dataset.sample(0)["images"], preview):
        check_first_batch(images)
    state.dry_run(preview)
    folder = RunFolder(out, config, resume=resume, writes=main, model="tokenizer")
    accelerator.wait_for_everyone()
    folder.begin()
    if resume:
        found = folder.load_checkpoint()
        if found is not None:
            state.load(*found)
        for fault in folder.forget_after(state.step):
            say(main, fault)
    if run.trackers:
        accelerator.init_trackers("tessella-tokenizer", config=flat_config(config))
    perceptual = state.objective.perceptual
    features = perceptual.id if perceptual is not None else "none"
    if line := held_out(val_source):
        say(main, line)
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
    measured: dict[str, float] = {}
    for step in training_steps(loader, state, run, accelerator):
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
            averaged = state.ema.module
            pictures = averaged.decode(averaged.encode(preview))
            path = out / "previews" / f"step_{step.number:07d}.png"
            draw_reconstructions(preview, pictures, path)
            update_curves(folder, PANELS, hint=step.last)
        if main and step.evaluates:
            measured = evaluate(
                state.ema.module, val_source, perceptual, run.batch_size_per_device, broken=broken
            )
            log_measurements(measured, step.number, folder, accelerator)
        if step.saves:
            state.seconds = step.seconds
            state.save(folder, ids)
    if not end_run(
        state, run, dataset.broken | of_validation(broken), folder, accelerator, command
    ):
        return None
    if main:
        update_curves(folder, PANELS)
        if not measured:  # resumed after its last step
            measured = evaluate(state.ema.module, val_source, perceptual, run.batch_size_per_device)
        card = {
            "data": {"source": source.name, "licence": source.licence, "images": len(source)},
            **run_facts(run, accelerator, command=command, step=state.step, seconds=state.seconds),
            "perceptual_features": features,
            "validation": {"source": val_source.name, "split": "val", **measured},
        }
        side = state.tokenizer.resolution
        probe = choose_probe(val_source, side) if run.probe_images else synthetic_probe(side)
        facts = save_tokenizer(
            state.ema.module,
            out / "tokenizer",
            card=card,
            overwrite=True,
            run=folder.id,
            probe=probe,
        )
        say(main, f"wrote {out / 'tokenizer'} (fingerprint {facts['fingerprint']})")
        say(main, describe_probe(probe, "run.probe_images=false"))
    return measured


@click.command()
@training_options(DEFAULT_CONFIG)
def main(config_path: Path, out: Path | None, resume: bool, overrides: tuple[str, ...]) -> None:
    """Train a tokenizer; OVERRIDES are key.sub=value."""
    run_script(
        "train/tokenizer.py",
        train,
        TrainTokenizerConfig,
        config_path=config_path,
        out=out,
        resume=resume,
        overrides=overrides,
    )


if __name__ == "__main__":
    main()
