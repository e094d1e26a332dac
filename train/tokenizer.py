"""Train a tokenizer on images.

    accelerate launch train/tokenizer.py [--config FILE] [--out FOLDER] [--resume] [KEY=VALUE ...]

Without arguments: the default bit tokenizer on the bundled emoji, sized for a CPU. One YAML is one
run (`recipe.py` has its fields); key.sub=value overrides. The run folder fills with config.yaml,
log.jsonl, curves.png, previews/*.png and checkpoints/; in the end `tokenizer/` holds the averaged
weights for `tessella.load_tokenizer`. Ctrl-C finishes the step and saves; --resume continues
exactly where it stopped.
"""

import time
from pathlib import Path
from typing import Any

import click
import torch
from tqdm import tqdm

import tessella
from tessella.checkpoints import save_tokenizer
from tessella.data.images import to_uint8
from tessella.data.loader import ImageDataset, eval_batches, make_loader
from tessella.data.sources import ImageSource, open_source
from tessella.metrics.image import ReconstructionMeter
from tessella.metrics.perceptual import PerceptualDistance
from tessella.metrics.protocol import as_floats
from tessella.tokenizers.base import Tokenizer
from tessella.tokenizers.probe import choose_probe
from tessella.train.command import (
    flat_config,
    format_numbers,
    log_alarms,
    run_script,
    say,
    stopped_message,
    training_options,
)
from tessella.train.engine import (
    StopSignal,
    build_accelerator,
    images_per_step,
    run_facts,
    seed_step,
)
from tessella.train.health import check_finite, check_first_batch, code_alarms, loss_alarms
from tessella.train.pictures import CURVES_HINT, draw_curves, draw_reconstructions
from tessella.train.run_folder import RunFolder
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


@torch.no_grad()
def evaluate(
    tokenizer: Tokenizer,
    source: ImageSource,
    perceptual: PerceptualDistance | None,
    batch_size: int,
    limit: int = 1000,
) -> dict[str, float]:
    """PSNR, SSIM and perceptual distance of 8-bit reconstructions of the first `limit` images."""
    meter, distance, count = ReconstructionMeter(), 0.0, 0
    for batch in eval_batches(source, tokenizer.resolution, batch_size, limit):
        images = batch["images"].to(tokenizer.device)
        reconstructions = as_floats(to_uint8(tokenizer.decode(tokenizer.encode(images))))
        meter.update(images, reconstructions)
        if perceptual is not None:
            distance += float(perceptual(images, reconstructions).sum())
        count += len(images)
    result = meter.compute()
    if perceptual is not None:
        result[perceptual.id] = distance / count
    return result


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
    state.dry_run(preview)
    folder = RunFolder(out, config, resume=resume, writes=main, model="tokenizer")
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
    batch_images = images_per_step(run, accelerator)
    bar = tqdm(
        total=run.steps, initial=state.step, unit="step", disable=not main, dynamic_ncols=True
    )
    first_step, measured = state.step, {}
    started = time.perf_counter() - state.seconds
    clock, clock_step = time.perf_counter(), state.step
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
                record: dict[str, float] = {"step": state.step, "images": state.step * batch_images}
                record |= state.report()
                record |= {"lr": state.optimizer.param_groups[0]["lr"], "images_per_second": speed}
                folder.log(record)
                accelerator.log(record, step=state.step)
                check_finite(record, batch["ids"])
                alarms = code_alarms(record, state.tokenizer.spec.vocab_size)
                log_alarms([*alarms, *loss_alarms(record)], state.step, folder)
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
            state.seconds = time.perf_counter() - started
            if state.step % run.checkpoint_every == 0 or last or stopping:
                state.save(folder, batch["ids"])
            clock += time.perf_counter() - pause  # pictures and checkpoints are not training speed
            if stopping and not last:
                break
    for name, reason in dataset.broken.items():
        say(main, f"skipped broken image {name}: {reason}")
        folder.log({"step": state.step, "broken": name, "reason": reason})
    # Not `end_training`: it also tears the process group down, and a rank that leaves while another
    # is still in its last collective can leave that one waiting. The group ends with the processes.
    for tracker in accelerator.trackers:
        tracker.finish()
    if state.step < run.steps:
        say(main, stopped_message(state.step, accelerator.num_processes, command))
        return None
    if main:
        draw_curves(folder.read_log(), out / "curves.png", PANELS)
        if not measured:  # resumed after its last step
            measured = evaluate(state.ema.module, val_source, perceptual, run.batch_size_per_device)
        card = {
            "data": {"source": source.name, "licence": source.licence, "images": len(source)},
            **run_facts(run, accelerator, command=command, step=state.step, seconds=state.seconds),
            "perceptual_features": features,
            "validation": {"source": val_source.name, "split": "val", **measured},
        }
        facts = save_tokenizer(
            state.ema.module,
            out / "tokenizer",
            card=card,
            overwrite=True,
            run=folder.id,
            probe=choose_probe(val_source, state.tokenizer.resolution),
        )
        say(main, f"wrote {out / 'tokenizer'} (fingerprint {facts['fingerprint']})")
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
