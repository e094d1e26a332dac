"""Prompts on the command line: read from a file, and checked in its words."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .options import echo

if TYPE_CHECKING:
    from ..generators.base import Generator


def read_prompts(path: Path) -> list[str]:
    """Prompts of a text file, one a line; empty lines are left out.

    Raises:
        ValueError: If it cannot be read as text, or has no prompt.
    """
    from ..documents import read_text

    lines = [line.strip() for line in read_text(path).removeprefix("\ufeff").splitlines()]
    if not any(lines):
        raise ValueError(f"--prompts {path}: expected a prompt a line, found none")
    return [line for line in lines if line]


def check_prompts(
    generator: "Generator",
    prompts: Sequence[str],
    negative_prompt: str | None,
    guidance: float,
) -> None:
    """Refuse prompts that cannot be followed in the words of the command line, before drawing.

    Words that the generator does not know are told on stderr.

    Raises:
        ValueError: If the generator reads no text, a prompt is too long or unknown, or a negative
            prompt meets no guidance.
    """
    from ..errors import one_line
    from ..sample.request import check_texts
    from ..text.characters import has_text

    against, ignored = [negative_prompt or ""], set()
    check_texts(generator, prompts, "--prompt")
    check_texts(generator, against, "--negative-prompt")
    if generator.text is not None:
        unknown = generator.text.encoder.unknown
        ignored = {word for text in [*prompts, *against] for word in unknown(text)}
    if has_text(against) and guidance == 1:
        raise ValueError(
            "--negative-prompt: guidance leads away from it, and --guidance is 1 (off); expected "
            "another guidance, or no negative prompt"
        )
    if ignored:
        shown = sorted(ignored)
        words = ", ".join(map(one_line, shown[:8])) + (", ..." if len(shown) > 8 else "")
        echo(f"words that the generator does not know, and ignores: {words}", err=True)
