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
    from ..text.characters import has_text

    given = {"--prompt": list(prompts), "--negative-prompt": [negative_prompt or ""]}
    ignored = set()
    for option, texts in given.items():
        if generator.text is not None:
            try:
                generator.text.encoder.check(texts)
            except ValueError as error:
                raise ValueError(f"{option}: {error}") from None
            ignored |= {word for text in texts for word in generator.text.encoder.unknown(text)}
        elif has_text(texts):
            raise ValueError(
                f"{option}: this generator was trained without text; expected one whose training "
                "had generator.text, or --class"
            )
    if has_text(given["--negative-prompt"]) and guidance == 1:
        raise ValueError(
            "--negative-prompt: guidance leads away from it, and --guidance is 1 (off); expected "
            "another guidance, or no negative prompt"
        )
    if ignored:
        shown = sorted(ignored)
        words = ", ".join(map(one_line, shown[:8])) + (", ..." if len(shown) > 8 else "")
        echo(f"words that the generator does not know, and ignores: {words}", err=True)
