"""Train a generator on the tokens of a frozen tokenizer.

    accelerate launch train/generator.py [--config FILE] [--out FOLDER] [--resume] [KEY=VALUE ...]

Without arguments: the default MaskBit on the bundled emoji and tokenizer, sized for a CPU. One YAML
is one run (`generator_recipe.py` has its fields); key.sub=value overrides. The run folder fills
with config.yaml, store/ (the training set as tokens), log.jsonl, curves.png, samples/*.png and
checkpoints/; in the end `generator/` holds the averaged weights for `tessella.load_generator`.
Ctrl-C finishes the step and saves; --resume continues exactly where it stopped.
"""

from pathlib import Path
from typing import Any

import click

import tessella
from tessella.checkpoints import find_folder, load_tokenizer, save_generator
from tessella.codec.encode import encode_source
from tessella.data.image_source import ImageSource
from tessella.data.train_val import held_out, open_train_and_val, open_val
from tessella.tokenizers.base import Tokenizer
from tessella.tokenizers.probe import NoProbe, check_store, verify_probe, verify_store_probe
from tessella.tokens.store import TokenStore
from tessella.train.command import (
    flat_config,
    log_alarms,
    run_script,
    say,
    tell,
    training_options,
)
from tessella.train.engine import build_accelerator, run_facts
from tessella.train.generator_recipe import (
    TrainGeneratorConfig,
    check_captions,
    check_val_source,
    resolve_generator,
    some_captions,
)
from tessella.train.generator_run import GeneratorRun
from tessella.train.health import loss_alarms, memorization_alarms, prediction_alarms
from tessella.train.initial import describe_start
from tessella.train.launcher import slow_precision
from tessella.train.pictures import draw_samples
from tessella.train.resumed import facts_of_run, facts_of_source, resume_run
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
from tessella.train.token_batches import ImageReader, StoreReader, TokenReader, encode_split

DEFAULT_CONFIG = Path(tessella.__file__).parent / "configs" / "generator" / "maskbit_emoji_64.yaml"

EVAL_IMAGES = 1000
"""Largest number of validation images; they are encoded once."""

PANELS = {
    "loss": ["loss"],
    "gradient norm": ["grad_norm"],
    "images/s": ["images_per_second"],
}
"""Curves of every generator, after its own (`Generator.panels`)."""


def open_store(path: Path, tokenizer: Tokenizer) -> TokenStore:
    """Open a token store and verify it: complete, of this tokenizer, and decoding as it did.

    Raises:
        StoreError: If one of these does not hold, with the reason.
    """
    store = TokenStore(path)
    check_store(store, tokenizer)
    verify_store_probe(store, tokenizer)
    return store


def verify_tokenizer(path: str, tokenizer: Tokenizer) -> str:
    """Check that a tokenizer reconstructs the images stored beside it as it did; return a message.

    Raises:
        ProbeError: If the reconstructions differ from those at the time of storing.
    """
    try:
        result = verify_probe(tokenizer, find_folder(path))
    except NoProbe as error:
        return f"not verified: {error}"
    return (
        f"verified {path}: {len(result.stored)} stored images come back as they did, "
        f"to {result.largest_difference:.2g} dB"
    )


def write_store(
    config: TrainGeneratorConfig, source: ImageSource, tokenizer: Tokenizer, path: Path
) -> None:
    """Encode the training set into a token store; called by the main process alone."""
    facts = encode_source(
        tokenizer,
        source,
        path,
        augment=config.data.augment,
        views=config.data.views,
        seed=config.run.seed,
        resume=True,
        name=config.tokenizer,
    )
    speed = f"{facts['images_per_second']:.0f} a second"
    say(True, f"wrote {path}: {facts['images']} images and views, {speed}")
    for name, reason in facts["broken"].items():
        tell(True, f"skipped broken image {name}: {reason}")


def num_classes_of(data: ImageSource | TokenStore) -> int:
    """Number of classes in the labels of a source or store; a store may lack their names."""
    if isinstance(data, ImageSource):
        return len(data.classes)
    return max(len(data.classes), int(data.labels.max()) + 1)


def describe_data(
    config: TrainGeneratorConfig, source: ImageSource, store: TokenStore | None
) -> dict[str, Any]:
    """Facts about the training data for the model card."""
    if store is None:
        facts = {"source": source.name, "images": len(source)}
    else:
        images = int((store.augmentation == 0).sum())
        facts = {"source": store.header.source, "images": images, "rows": len(store)}
    known = facts["source"] == source.name
    return facts | {"tokens": config.data.tokens, "licence": source.licence if known else None}


def train(
    config: TrainGeneratorConfig, out: Path, *, resume: bool, changed: bool, command: str
) -> dict[str, Any] | None:
    """Run or resume a training; returns the final measurements, or None if it was interrupted."""
    data, store, own_store = config.data, None, out / "store"
    labelled = config.generator.num_classes != 0
    unused = data.store is not None and (data.views > 1 or data.augment.enabled)
    if data.store is not None:
        store = TokenStore(data.store)
        known = store.classes if labelled else ()
        source = val_source = open_val(data.source, data.val_source, data, classes=known)
        check_val_source(config, store, val_source)
    else:
        source, val_source = open_train_and_val(
            data.source, data.val_source, data, same_classes=labelled
        )
    config = resolve_generator(config, num_classes_of(source if store is None else store))
    run, num_classes = config.run, config.generator.num_classes or 0
    reads_text = config.generator.text is not None
    accelerator = build_accelerator(run, out)
    main, device = accelerator.is_main_process, accelerator.device
    tokenizer = load_tokenizer(config.tokenizer, device=device)
    verified = verify_tokenizer(config.tokenizer, tokenizer)
    # What can be refused is refused here: before anything is written, and on every process.
    reader: TokenReader
    if store is not None:
        store = open_store(store.path, tokenizer)
        reader = StoreReader(store, num_classes, run.seed, captions=reads_text)
    else:  # it reads the images, or shows that the store to be written can be
        reader = ImageReader(
            source, tokenizer, data.augment, num_classes, run.seed, data.num_workers
        )
    batch_size = run.batch_size_per_device
    broken: dict[str, str] = {}  # validation images
    validation = encode_split(
        tokenizer, val_source, num_classes, batch_size, EVAL_IMAGES, broken=broken
    )
    classes = source.classes if store is None else store.classes
    state = GeneratorRun(config, accelerator, tokenizer, classes)
    if reads_text:
        name = f"{source.name} ({source.split})" if store is None else str(store.path)
        captions = some_captions(source) if store is None else store.captions
        check_captions(state.generator, captions, name)
        check_captions(
            state.generator, validation.captions, f"{val_source.name} ({val_source.split})"
        )
    # The first update of the averaged weights replaces what is fitted here to try the sampler.
    tried = validation.to(device)
    state.ema.module.calibrate(tried.tokens, tried.labels, seed=run.seed)
    if config.init is not None and not resume:
        state.start_from(config.init)
    state.samples(validation.captions, limit=1)

    def write_model(path: Path, measured: dict[str, float]) -> str:
        card = {
            "data": describe_data(config, source, store),
            **run_facts(run, accelerator, command=command, step=state.step, seconds=state.seconds),
            "sampling": config.samples,
            "init": state.init,
            "validation": {"source": val_source.name, "split": "val", **measured},
        }
        facts = save_generator(
            state.ema.module,
            path,
            tokenizer_path=config.tokenizer,
            tokenizer_fingerprint=tokenizer.fingerprint,
            card=card,
            overwrite=True,
            run=folder.id,
        )
        return f"wrote {path} (fingerprint {facts['fingerprint']})"

    def draw(path: Path) -> None:
        draw_samples(*state.samples(validation.captions), config.samples_per_class, path)

    folder = RunFolder(out, config, resume=resume, writes=main, model="generator")
    accelerator.wait_for_everyone()
    folder.begin()
    if data.tokens == "store" and store is None:
        if main and not own_store.exists():
            write_store(config, source, tokenizer, own_store)
        accelerator.wait_for_everyone()
        store = open_store(own_store, tokenizer)
        reader = StoreReader(store, num_classes, run.seed, captions=reads_text)
    facts = facts_of_run(accelerator) | facts_of_source("validation", val_source)
    facts |= facts_of_source("images", source) if data.store is None else {}
    facts |= {"tokens": {"count": len(reader), "hash": reader.fingerprint}}
    facts |= {"fingerprint of the tokenizer": tokenizer.fingerprint}
    if state.generator.text is not None:
        facts |= {"fingerprint of the text encoder": state.generator.text.encoder.fingerprint}
    if resume:
        resume_run(folder, state, config, facts, changed=changed)
        if config.init is not None and state.step == 0:
            state.start_from(config.init)
    if main:  # what the end needs is tried before the first step
        with trial(out / "generator") as place:
            write_model(place, state.evaluate(validation.first(2)))
    if run.trackers:
        accelerator.init_trackers("tessella-generator", config=flat_config(config))
    say(
        main,
        f"{state.generator.num_parameters()['total']:,} parameters, {state.generator.spec}, "
        f"{num_classes} classes; {len(reader)} samples of {store.path if store else source.name}; "
        f"{device}, {run.mixed_precision} precision",
    )
    say(main, verified)
    for line in (
        describe_start(state.init) if state.step == 0 else "",
        held_out(val_source),
        slow_precision(run.mixed_precision),
    ):
        if line:
            say(main, line)
    if unused:
        say(main, f"data.views and data.augment are not used: {data.store} has views of its own")
    accumulation = run.gradient_accumulation_steps
    batches = reader.batches(
        batch_size,
        num_steps=state.length.most_steps * accumulation,
        start_step=state.step * accumulation,
        process_index=accelerator.process_index,
        num_processes=accelerator.num_processes,
    )
    panels = {**state.generator.panels, **PANELS}
    measured: dict[str, float] = {}
    for step in training_steps(batches, state, run, accelerator, folder):
        for batch in step.batches:
            batch = batch.to(device)
            if step.first_batch and state.step == 0 and config.init is None:
                state.generator.calibrate(batch.tokens, batch.labels, seed=run.seed)
            state.train_batch(batch)
        state.ema.update(state.generator)
        ids = step.batch.ids
        if step.logs:
            record = step.log(state.report, state.optimizer, ids, folder, accelerator)
            warmup = state.length.steps_for(config.optimizer.lr.warmup_steps, state.step)
            alarms = prediction_alarms(record, warmup)
            log_alarms([*alarms, *loss_alarms(record)], step.number, folder)
        step.pause_clock()  # pictures and checkpoints are not training speed
        if main and step.evaluates:
            measured = state.evaluate(validation)
            log_measurements(measured, step.number, folder, accelerator)
            alarms = memorization_alarms(folder.read_log(), state.generator.monitor)
            log_alarms(alarms, step.number, folder)
        if main and step.previews:
            draw(out / "samples" / f"step_{step.number:07d}.png")
            update_curves(folder, panels)
        if step.saves:
            state.seconds = step.seconds
            state.save(folder, facts, ids)
    if main and state.length.ended(state.step):
        written = write_model(out / "generator", {})
        measured = measurements_of(folder, state.step, f"val_{state.generator.monitor}")
        if not measured:
            with noting(f"{written}, which is whole but not measured"):
                measured = state.evaluate(validation)
                log_measurements(measured, state.step, folder, accelerator, final=True)
                alarms = memorization_alarms(folder.read_log(), state.generator.monitor)
                log_alarms(alarms, state.step, folder)
                draw(out / "samples" / f"step_{state.step:07d}.png")
        update_curves(folder, panels, hint=True)
        tell(main, write_model(out / "generator", measured))
    skipped = reader.broken | of_validation(broken)
    finished = end_run(state, skipped, folder, accelerator, command)
    return measured if finished else None


@click.command()
@training_options()
def main(**options: Any) -> None:
    """Train a generator; OVERRIDES are key.sub=value."""
    run_script(
        "train/generator.py", train, TrainGeneratorConfig, default_config=DEFAULT_CONFIG, **options
    )


if __name__ == "__main__":
    main()
