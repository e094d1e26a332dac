"""`tessella config`: every key of the training configs with its meaning and default."""

import textwrap
from collections.abc import Iterator, Mapping

import click

from .config_keys import (
    REQUIRED,
    Key,
    Section,
    choose,
    keys_of,
    sampler_sections,
    sections_of,
    unions_of,
)
from .options import one_clear_error

WHAT = ("tokenizer", "generator")
_WIDTH = 100
_SECTION = "a section"


@click.command()
@click.argument("what", type=click.Choice(WHAT), required=False)
@click.argument("types", nargs=-1, metavar="[KEY.type=NAME]...")
@click.option("--yaml", "as_yaml", is_flag=True, help="Print a commented config to start from.")
@click.option("--markdown", is_flag=True, help="Print docs/configuration.md, of both trainings.")
@one_clear_error
def config(what: str | None, types: tuple[str, ...], as_yaml: bool, markdown: bool) -> None:
    """List every key of the config of train/tokenizer.py or train/generator.py.

    Where a section has several types, all of them are listed; --yaml shows the first one, or the
    one that is chosen, e.g. `tessella config generator --yaml generator.type=ar`.
    """
    if markdown:
        if what or types or as_yaml:
            raise ValueError("--markdown: the page has all keys; expected nothing else with it")
        click.echo("\n".join(_page()))
        return
    if what is None:
        raise ValueError(f"expected {' or '.join(WHAT)}, or --markdown; found none of them")
    root = _roots()[what]
    chosen = _chosen(root, types)
    if as_yaml:
        click.echo(
            f"# Every key of a config of train/{what}.py with its default; a key without a value\n"
            f"# is required. Command: accelerate launch train/{what}.py --config FILE --out FOLDER"
        )
        click.echo("\n".join(_yaml(root, chosen)))
        return
    formatter = click.HelpFormatter(width=_WIDTH)
    for section in _sections(what, chosen):
        with formatter.section(section.title):
            formatter.write_text(section.about)
            rows = [(f"{k.name}={_default(k)}", _meaning(k)) for k in section.keys]
            formatter.write_dl(rows, col_max=38)
    click.echo(formatter.getvalue().rstrip())


def _roots() -> dict[str, type]:
    from ..train.generator_recipe import TrainGeneratorConfig
    from ..train.tokenizer_recipe import TrainTokenizerConfig

    return dict(zip(WHAT, (TrainTokenizerConfig, TrainGeneratorConfig), strict=True))


def _sections(what: str, chosen: Mapping[str, str]) -> Iterator[Section]:
    """Sections of a training's config and of its samplers that are not of another chosen type."""
    found = sections_of(_roots()[what]) + (sampler_sections() if what == "generator" else [])
    for section in found:
        ways = [
            around | ({path: [section.tag]} if section.tag else {})
            for path, around in section.places.items()
        ] or [{}]
        if any(
            all(chosen.get(at, tags[0]) in tags for at, tags in around.items()) for around in ways
        ):
            yield section


def _chosen(root: type, words: tuple[str, ...]) -> dict[str, str]:
    """Chosen types by path, from words `PATH.type=NAME`.

    Raises:
        ValueError: If a word has another form, or there is no such section or type.
    """
    unions, chosen = unions_of(root), {}
    for word in words:
        path, found, name = word.partition(".type=")
        if not found or path not in unions:
            places = ", ".join(f"{at}.type=NAME" for at in unions)
            raise ValueError(f"{word!r}: expected one of {places}")
        if name not in unions[path]:
            raise ValueError(f"{word!r}: expected one of {', '.join(unions[path])}")
        chosen[path] = name
    return chosen


def _default(key: Key) -> str:
    """Default of a key, in words where it is no plain value."""
    return _SECTION if key.configs and key.default == "{}" else key.default


def _meaning(key: Key) -> str:
    """Meaning of a key, and its type in brackets."""
    kind = key.kind
    if len(key.configs) > 1:
        kind = f"{kind} with type {', '.join(key.configs)}"
    return f"{key.about} ({kind})" if kind else key.about


def _yaml(cls: type, chosen: Mapping[str, str], path: str = "") -> Iterator[str]:
    """Lines of a YAML file with all keys of a config, each with its meaning as a comment."""
    for key in keys_of(cls):
        place = f"{path}.{key.name}".removeprefix(".")
        yield from (f"# {line}" for line in textwrap.wrap(_meaning(key), _WIDTH - 12))
        if key.configs:
            inner = _yaml(key.configs[choose(key, place, chosen)], chosen, place)
            prefix = "# " if key.default == "null" else ""
            if prefix:
                yield f"{key.name}: null"
            yield f"{prefix}{key.name}:"
            yield from (f"{prefix}  {line}".rstrip() for line in inner)
        elif key.default == REQUIRED:
            yield f"{key.name}:"
        else:
            yield f"{key.name}: {key.default}"


_HEAD = """# Configuration

Every key of the configs of `train/tokenizer.py` and `train/generator.py`, with its type, default
and meaning. This page is the output of `tessella config --markdown`; a test compares the two. In
the terminal the same is `tessella config tokenizer` or `tessella config generator`. With `--yaml`
it is a commented file to start from, where `KEY.type=NAME` chooses the type of a section:

```bash
tessella config generator --yaml generator.type=ar > my.yaml
```

A config is a YAML file, and every key can be given on the command line as well: `run.steps=1000`,
`tokenizer.quantizer="{type: lfq, bits: 12}"`. Unknown keys are errors. [training.md](training.md)
says how a training goes."""


def _page() -> list[str]:
    """Lines of docs/configuration.md."""
    lines = [_HEAD]
    shown: set[str] = set()
    for what in WHAT:
        lines += ["", f"## Training of a {what}"]
        for section in _sections(what, {}):
            lines += _table(section, shown)
    return lines


def _table(section: Section, shown: set[str]) -> list[str]:
    """A section in Markdown; in place of keys that were shown already, a line that says so."""
    rows = [f"| `{k.name}` | {_default(k)} | {_cell(_meaning(k))} |" for k in section.keys]
    body = [section.about, "", "| key | default | meaning |", "| --- | --- | --- |", *rows]
    text = "\n".join(body)
    if text in shown:
        body = ["The same keys as in the training of a tokenizer."]
    shown.add(text)
    return ["", f"### {section.title}", "", *body]


def _cell(text: str) -> str:
    """Text for a cell of a table."""
    return text.replace("|", r"\|")
