"""The models that the page offers: those that ship with the package, and those that are added."""

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from ..checkpoints import load_generator
from ..generators.base import Generator
from ..model_folders import bundled_models, find_folder, full_name, read_card, trained_on
from ..sample.samplers import choose_sampling, with_steps
from ..tokenizers.base import Tokenizer

M = TypeVar("M")
FIRST = "bundled:maskbit-emoji-64"
"""The model that is offered first, if it ships with the package."""


@dataclass(frozen=True, eq=False)
class Models:
    """Generators by name, in the order in which they are offered, and their tokenizers.

    Args:
        generators: Generators in eval mode, with their tokenizers.
        tokenizers: Tokenizers by name, each once, though several generators may have it.
    """

    generators: dict[str, Generator]
    tokenizers: dict[str, Tokenizer]

    @classmethod
    def load(cls, paths: Iterable[str] = (), *, device: torch.device | str = "cpu") -> "Models":
        """Load every bundled generator, and others before them.

        Args:
            paths: Generators to offer first: folders, `bundled:NAME` or `hub:owner/name`.
            device: Device on which they draw.

        Raises:
            CheckpointError: If a folder holds no generator.
        """
        bundled = [f"bundled:{name}" for name in bundled_models()]
        shipped = [name for name in bundled if _kind(name) == "generator"]
        shipped.sort(key=lambda name: name != FIRST)
        names = dict.fromkeys([*map(full_name, paths), *shipped])
        return cls.of({name: load_generator(name, device=device) for name in names})

    @classmethod
    def of(cls, generators: dict[str, Generator]) -> "Models":
        """Models that are loaded already, by name."""
        tokenizers: dict[str, Tokenizer] = {}
        for name, generator in generators.items():
            own = generator.tokenizer
            if all(own.fingerprint != other.fingerprint for other in tokenizers.values()):
                tokenizers[own.origin or name] = own
        return cls(generators, tokenizers)

    def generator(self, name: str) -> Generator:
        """A generator by name.

        Raises:
            ValueError: If there is none.
        """
        return _of(self.generators, name)

    def tokenizer(self, name: str) -> Tokenizer:
        """A tokenizer by name.

        Raises:
            ValueError: If there is none.
        """
        return _of(self.tokenizers, name)

    def facts(self) -> dict[str, Any]:
        """What the page shows of the models, as plain values."""
        return {
            "generators": [generator_facts(*pair) for pair in self.generators.items()],
            "tokenizers": [
                {
                    "name": name,
                    "title": title_of(name),
                    "resolution": tokenizer.resolution,
                    "shape": list(tokenizer.spec.shape),
                    "bits": tokenizer.spec.bits_per_image,
                }
                for name, tokenizer in self.tokenizers.items()
            ],
        }


def generator_facts(name: str, generator: Generator) -> dict[str, Any]:
    """What the page shows of a generator, and what its form offers, as plain values."""
    settings = with_steps(generator, choose_sampling(generator, None, {}))
    return {
        "name": name,
        "title": title_of(name),
        "type": generator.config.type,
        "parameters": generator.num_parameters()["total"],
        "trained_on": trained_on(generator.card),
        "resolution": generator.tokenizer.resolution,
        "classes": class_names(generator),
        "reads_text": generator.reads_text,
        "steps": settings.num_steps,
        "steps_fixed": not _takes_steps(generator),
        "guidance": settings.guidance,
        "guided": generator.conditional,
    }


def title_of(name: str) -> str:
    """A name as it is shown: that of a bundled model, or the last part of a path."""
    return name.removeprefix("bundled:").rstrip("/").rpartition("/")[2] or name


def class_names(generator: Generator) -> list[str]:
    """Names of the classes by label; `class 3` where there is none."""
    unnamed = range(len(generator.classes), generator.num_classes)
    return [*generator.classes, *(f"class {label}" for label in unnamed)]


def _takes_steps(generator: Generator) -> bool:
    """Whether the number of steps can be chosen; an autoregressive model has one alone."""
    with contextlib.suppress(ValueError):
        with_steps(generator, choose_sampling(generator, None, {"num_steps": 1}))
        return True
    return False


def _kind(name: str) -> Any:
    return read_card(find_folder(name)).get("kind", "tokenizer")


def _of(models: dict[str, M], name: str) -> M:
    if name not in models:
        raise ValueError(f"model {name!r}: unknown; there are: {', '.join(models)}")
    return models[name]
