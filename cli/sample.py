"""`tessella sample`: drawing of pictures with a generator."""

import dataclasses
from pathlib import Path
from typing import Any

import click

from .options import (
    DrawingCommand,
    echo,
    generator_options,
    one_clear_error,
    open_generator,
    parse_numbers,
    places_of,
    show,
)
from .prompts import check_prompts, read_prompts


@click.command(cls=DrawingCommand)
@generator_options
@click.option(
    "--labels", help="Classes by number, e.g. 3,7, taken in turn until --num [every class]."
)
@click.option(
    "--classes",
    help="Classes by name, e.g. 'face,animal', taken in turn until --num [every class].",
)
@click.option(
    "--prompt",
    "prompts",
    multiple=True,
    help="Text of a picture; may be repeated, then taken in turn until --num [no text].",
)
@click.option(
    "--prompts",
    "prompts_file",
    type=click.Path(path_type=Path),
    help="Text file with one prompt a line, taken in turn until --num.",
)
@click.option("--negative-prompt", help="Text that guidance leads away from [none].")
@click.option(
    "--num",
    type=click.IntRange(min=1),
    help="Number of pictures [16, or one for each prompt if there are several].",
)
@click.option("--compile", is_flag=True, help="Run the network through torch.compile.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder to create.")
@click.option(
    "--resume", is_flag=True, help="Continue what an interrupted command left in OUT.unfinished."
)
@click.option("--overwrite", is_flag=True, help="Replace samples of tessella's at --out.")
@click.option("--table", is_flag=True, help="Print the table of all steps, and draw nothing.")
@one_clear_error
def sample(
    labels: str | None,
    classes: str | None,
    prompts: tuple[str, ...],
    prompts_file: Path | None,
    negative_prompt: str | None,
    num: int | None,
    compile: bool,
    out: Path | None,
    resume: bool,
    overwrite: bool,
    table: bool,
    **options: Any,
) -> None:
    """Draw --num pictures; image i has seed --seed + i.

    An interrupted command keeps its finished batches and goes on from there with --resume.

    Settings of the generator's sampler are given as KEY=VALUE, e.g. sampler=halton top_k=100; they
    are listed below.
    """
    if labels is not None and classes is not None:
        raise ValueError(
            "--labels and --classes are both given; give --labels or --classes, not both"
        )
    if prompts and prompts_file is not None:
        raise ValueError(
            "--prompt and --prompts are both given; give --prompt or --prompts, not both"
        )
    if out is None and not table:
        raise ValueError("--out: no folder given for the pictures; expected one, or --table")
    from ..collectives import join_processes
    from ..sample.folder import sample_to_folder
    from ..sample.masked_steps import format_table
    from ..sample.request import class_labels
    from ..sample.samplers import sampler_of

    texts = list(prompts) if prompts_file is None else read_prompts(prompts_file)
    processes = join_processes()
    generator, sampling = open_generator(options)
    if table:
        rows = sampler_of(generator).table
        if rows is None:
            raise ValueError(
                f"--table: generators of type {generator.config.type} have none; all their steps "
                "are alike"
            )
        steps = rows(generator, sampling)
        if options["as_json"]:
            show({"steps": [dataclasses.asdict(step) for step in steps]}, as_json=True)
        else:
            echo(format_table(steps))
        return
    if labels is not None:
        wanted = parse_numbers("--labels", labels, "3,7")
    elif classes is not None:
        wanted = class_labels(generator, classes.split(","))
    elif texts:
        wanted = [-1]
    else:
        wanted = list(range(generator.num_classes)) or [-1]
    check_prompts(generator, texts, negative_prompt, sampling.guidance)
    if num is None:
        most = max(len(texts), len(wanted) if texts else 1)
        num = most if most > 1 else 16
    assert out is not None
    result = sample_to_folder(
        generator,
        out,
        labels=[wanted[i % len(wanted)] for i in range(num)],
        seeds=[options["seed"] + i for i in range(num)],
        prompts=[texts[i % len(texts)] for i in range(num)] if texts else None,
        negative_prompts=None if negative_prompt is None else [negative_prompt] * num,
        sampling=sampling,
        batch_size=options["batch_size"],
        precision=options["precision"],
        compile=compile,
        resume=resume,
        overwrite=overwrite,
        inputs=places_of(generator, options),
        name=options["generator_path"],
        processes=processes,
    )
    if result:
        show(result, as_json=options["as_json"])
