"""What the comparisons with public code share: rows, random weights, imports of a checkout."""

import contextlib
import importlib
import importlib.abc
import importlib.machinery
import math
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tessella.importers.vqgan import translate_tokenizer
from tessella.tokenizers.build import build_tokenizer
from tessella.tokenizers.quantizers.bernoulli import Bernoulli
from tessella.tokenizers.quantizers.vector import squared_distances
from tessella.tokenizers.quantizers.vq import VQ

RESOLUTION = 256
"""Pixels of every published size that is compared."""
BATCH = 2
"""Images, or sets of tokens, of a comparison."""
ABSENT = ("torchvision", "lpips", "torch_fidelity", "timm", "azureml", "pyrsistent", "lightning")
"""Packages that the references import and the compared parts do not use."""


@dataclass(frozen=True)
class Row:
    """One comparison.

    Args:
        reference: Name of the reference.
        what: What was compared.
        values: Number of values.
        difference: Largest absolute difference; for codes, the number of different ones.
        magnitude: Largest magnitude of the reference's values; for codes 0.
        margin: Largest margin of a different code, in the units of the latents (bits) or of their
            squared distances (codebooks); None without different codes.
    """

    reference: str
    what: str
    values: int
    difference: float
    magnitude: float
    margin: float | None = None


class Attributes(dict):  # type: ignore[type-arg]
    """Settings by attribute and by key, as configs of the references are read."""

    __getattr__ = dict.__getitem__


class _Anything:
    """Stands for whatever an absent package would define."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Anything()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _Anything()


class _StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds an empty module for every absent package and everything in it."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        known = name.partition(".")[0] in ABSENT
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if known else None

    def create_module(self, spec: Any) -> types.ModuleType:
        module = types.ModuleType(spec.name)
        module.__getattr__ = _Anything().__getattr__  # type: ignore[method-assign]
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        return None


@contextlib.contextmanager
def importing_from(folder: Path) -> Iterator[None]:
    """Import modules of a checkout; afterwards they are forgotten, since names repeat in others."""
    before, finder = set(sys.modules), _StandIns()
    sys.path.insert(0, str(folder))
    sys.meta_path.append(finder)
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        sys.meta_path.remove(finder)
        for name in set(sys.modules) - before:
            place = str(getattr(sys.modules[name], "__file__", None) or "")
            if place.startswith(str(folder)) or name.partition(".")[0] in ABSENT:
                del sys.modules[name]


def load(module: str) -> Any:
    """A module of the checkout that is being imported from."""
    return importlib.import_module(module)


def random_like(*shape: int, seed: int) -> Tensor:
    """Normal numbers of a seed, the same on every machine."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def random_images(seed: int = 0) -> Tensor:
    """Images in [-1, 1]: smooth shapes with noise on them, (B, 3, 256, 256)."""
    coarse = random_like(BATCH, 3, 16, 16, seed=seed)
    smooth = nn.functional.interpolate(coarse, size=RESOLUTION, mode="bicubic")
    return (0.4 * smooth + 0.1 * random_like(*smooth.shape, seed=seed + 1)).clamp(-1, 1)


@torch.no_grad()
def randomize(module: Any, seed: int = 0) -> Any:
    """Fill all weights: matrices keep the scale of their input, norms are near 1; eval mode.

    Initial weights would leave out what starts at zero, as the heads of diffusion models do.
    """
    rng = torch.Generator().manual_seed(seed)
    for name, weight in module.named_parameters():
        noise = torch.randn(weight.shape, generator=rng)
        if weight.ndim >= 2:
            weight.copy_(noise / math.sqrt(weight[0].numel()))
        else:
            weight.copy_(0.1 * noise + name.endswith("weight"))
    return module.eval()


def compare(reference: str, what: str, theirs: Tensor, ours: Tensor) -> Row:
    """Row of two tensors of values."""
    if theirs.shape != ours.shape:
        raise ValueError(f"{what}: shapes {tuple(theirs.shape)} and {tuple(ours.shape)} differ")
    difference = (theirs.double() - ours.double()).abs().max().item()
    return Row(reference, what, theirs.numel(), difference, theirs.abs().max().item())


@torch.no_grad()
def tokenizer_rows(
    name: str,
    format_name: str,
    stored: Mapping[str, Tensor],
    encode: Callable[[Tensor], Tensor],
    codes: Callable[[Tensor], Tensor],
    decode: Callable[[Tensor, Tensor], Tensor],
) -> Iterator[Row]:
    """Rows of a tokenizer: latents, codes of each one's latents, and pictures of the same codes.

    Args:
        name: Name of the reference.
        format_name: Format of its checkpoints.
        stored: Its state dict.
        encode: Images in its pixel range to latents (B, D, H, W).
        codes: Latents (B, D, H, W) to codes, in the order of positions (and bits).
        decode: Quantized latents (B, D, H, W) and codes (B, N, G) to images in its pixel range.
    """
    translation = translate_tokenizer(stored, format_name, resolution=RESOLUTION)
    model: Any = build_tokenizer(translation.config).eval()
    model.load_state_dict(translation.state)
    unit, images = translation.config.pixel_range == "unit", random_images()
    latents = encode((images + 1) / 2 if unit else images)
    flat, ours, quantizer = latents.flatten(2).mT, model._latents(images), model.quantizer
    found, margins = quantizer.encode(ours), flat.abs()
    if isinstance(quantizer, Bernoulli):
        ours = quantizer.logits(ours)
    if isinstance(quantizer, VQ):
        z, table = quantizer._project(flat), quantizer._project(quantizer.codebook)
        near = squared_distances(z.flatten(0, 1), table).topk(2, largest=False).values
        margins = (near[:, 1] - near[:, 0]).view(*found.shape)
    yield compare(name, f"{format_name}: latents", flat, ours)
    expected = codes(latents).reshape(found.shape)
    different = expected != found
    margin = margins[different].max().item() if different.any() else None
    yield Row(name, f"{format_name}: codes", found.numel(), int(different.sum()), 0.0, margin)
    quantized = quantizer.lookup(found)
    grid = quantized.mT.reshape(*quantized.shape[::2], *latents.shape[-2:]).contiguous()
    theirs = decode(grid, found)
    theirs = theirs * 2 - 1 if unit else theirs
    yield compare(name, f"{format_name}: pictures", theirs, model._images(quantized))


def discriminator_row(name: str, theirs: nn.Module, ours: nn.Module, unit: bool) -> Row:
    """Row of two discriminators whose tensors have the same order."""
    state = [v for k, v in theirs.state_dict().items() if not k.endswith("kernel")]
    keys = list(ours.state_dict())
    ours.load_state_dict(dict(zip(keys, state, strict=True)))
    images = random_images(3)
    with torch.no_grad():
        found = ours.eval()(images)
        expected = theirs((images + 1) / 2 if unit else images)
    return compare(name, "discriminator", expected, found)
