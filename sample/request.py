"""Request to a sampler: conditions, seeds, known tokens and lengths, checked before drawing."""

import dataclasses
import difflib
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..generators.base import Generator
from ..text.characters import has_text
from ..tokens.tokens import Tokens, TokenSpec
from .masks import mask_rows


@dataclass(frozen=True, eq=False)
class Request:
    """Images that a sampler is to draw, one entry each; a slice is a request as well.

    `Request.make` checks the arguments of a user; this constructor takes checked tensors.

    Args:
        labels: Class of each image, (B,) int64 in [0, num_classes]; `num_classes` means no label.
        seeds: Seed of each image, (B,) int64; image i depends on seed i alone.
        known: Tokens of B images to keep where `mask` is False; None: all positions are drawn.
        mask: True at positions to draw anew, (B, N) bool; given together with `known`.
        lengths: Real positions of each image, (B,) int64, for ordered tokens; None: those of
            `known`, or all.
        prompts: Text of each image, an empty one for none; None: no image has one.
        negative_prompts: Text of each image that guidance leads away from; None: away from no
            condition.
        whole_texts: Whether texts are padded to the longest one that the generator reads.
    """

    labels: Tensor
    seeds: Tensor
    known: Tokens | None = None
    mask: Tensor | None = None
    lengths: Tensor | None = None
    prompts: tuple[str, ...] | None = None
    negative_prompts: tuple[str, ...] | None = None
    whole_texts: bool = False

    def __post_init__(self) -> None:
        if (self.known is None) != (self.mask is None):
            raise ValueError(
                "known tokens and the mask of positions to redraw go together; found only one"
            )
        if self.known is not None and len(self.known) != len(self):
            raise ValueError(f"known: expected {len(self)} images, found {len(self.known)}")

    @classmethod
    def make(
        cls,
        generator: Generator,
        labels: Sequence[int] | Tensor | None = None,
        *,
        seeds: Sequence[int] | Tensor | None = None,
        num: int | None = None,
        known: Tokens | None = None,
        mask: Tensor | None = None,
        lengths: Sequence[int] | Tensor | None = None,
        prompts: Sequence[str] | str | None = None,
        negative_prompts: Sequence[str] | str | None = None,
    ) -> "Request":
        """Check the arguments and put them on the generator's device.

        Args:
            generator: Generator that will draw.
            labels: Class of each image, 0 to num_classes - 1, or -1 for none; None: no labels.
            seeds: Seed of each image, a whole number; None: 0, 1, 2, ...
            num: Number of images if neither labels nor seeds nor a list of prompts are given;
                None: that of `known`, or 1.
            known: Tokens to keep where `mask` is False, one image for all or one each.
            mask: True where to draw anew, in tokens or pixels, see `mask_rows`; goes with `known`.
            lengths: Number of real positions of each image, for ordered tokens; None: that of
                `known`, or all. Positions that this adds to `known` are drawn.
            prompts: Text of each image, "" for none, or one text for all; None: no texts.
            negative_prompts: Texts that guidance leads away from, in the same form.

        Raises:
            ValueError: If an argument is out of range, does not fit the others or the generator,
                or an image has nothing to draw.
        """
        labels = None if labels is None else whole_numbers(labels, "labels")
        seeds = None if seeds is None else whole_numbers(seeds, "seeds")
        many = []
        for name, texts in (("prompts", prompts), ("negative_prompts", negative_prompts)):
            if texts is not None and not isinstance(texts, Sequence):
                raise ValueError(
                    f"{name}: expected a text or a list of texts, found {type(texts).__name__}"
                )
            many.append(None if isinstance(texts, str) else texts)
        counts = [len(given) for given in (labels, seeds, *many) if given is not None]
        count = counts[0] if counts else num
        if count is None:
            count = 1 if known is None else len(known)
        if any(other != count for other in [*counts, count if num is None else num]):
            raise ValueError(
                f"labels, seeds, prompts and num must agree, found {[*counts, num]}; expected the "
                "same number of images from each that is given"
            )
        if count < 1:
            raise ValueError(
                f"labels, seeds, prompts and num: expected at least one image, found {count}"
            )
        device = next(generator.parameters()).device
        if known is not None:
            known = _one_each(known.require(generator.spec, reader="the generator"), count)
        if mask is not None:
            mask = check_mask(mask_rows(mask, count, generator.spec), count, generator.spec)
        request = cls(
            labels=_class_rows(generator, labels, count).to(device),
            seeds=(torch.arange(count) if seeds is None else seeds).to(device),
            known=None if known is None else known.to(device),
            mask=None if mask is None else mask.to(device),
            lengths=None if lengths is None else _lengths(generator, lengths, count).to(device),
            prompts=_texts(generator, prompts, count, "prompts"),
            negative_prompts=_texts(generator, negative_prompts, count, "negative_prompts"),
        )
        request._refuse_nothing_to_draw(generator.spec.num_tokens)
        return request

    def __len__(self) -> int:
        return len(self.seeds)

    def __getitem__(self, rows: slice | Tensor) -> "Request":
        """The request of some of the images, given by a slice or by row numbers (M,) int64."""
        places = torch.arange(len(self))[rows if isinstance(rows, slice) else rows.cpu()].tolist()
        prompts, negative = (
            None if texts is None else tuple(texts[place] for place in places)
            for texts in (self.prompts, self.negative_prompts)
        )
        return Request(
            labels=self.labels[rows],
            seeds=self.seeds[rows],
            known=None if self.known is None else self.known[rows],
            mask=None if self.mask is None else self.mask[rows],
            lengths=None if self.lengths is None else self.lengths[rows],
            prompts=prompts,
            negative_prompts=negative,
            whole_texts=self.whole_texts,
        )

    def padded(self, count: int) -> "Request":
        """The request with its last image repeated up to `count` images, for fixed shapes."""
        rows = torch.arange(count, device=self.seeds.device).clamp(max=len(self) - 1)
        return dataclasses.replace(self[rows], whole_texts=True)

    def _refuse_nothing_to_draw(self, num_tokens: int) -> None:
        """Raise a ValueError if an image has no position to draw."""
        if self.known is None or self.mask is None:
            return
        hidden = self.mask | ~self.known.valid
        lengths = self.known.lengths if self.lengths is None else self.lengths
        if lengths is not None:
            hidden = hidden & (torch.arange(num_tokens, device=hidden.device) < lengths[:, None])
        if not bool(hidden.any(1).all()):
            raise ValueError(
                "mask: nothing to draw anew in at least one image; expected True at one position "
                "or more in each"
            )


def check_mask(mask: Tensor, count: int, spec: TokenSpec) -> Tensor:
    """Return the mask, after checking that it is (count, N) bool.

    Raises:
        ValueError: If it has another shape or type.
    """
    expected = (count, spec.num_tokens)
    if mask.shape != expected or mask.dtype != torch.bool:
        raise ValueError(f"mask: expected {expected} bool, found {tuple(mask.shape)} {mask.dtype}")
    return mask


def whole_numbers(given: Sequence[int] | Tensor, name: str) -> Tensor:
    """Whole numbers as a tensor (B,) int64 on the CPU.

    Args:
        given: One number per image.
        name: Name of the numbers in the error message.

    Raises:
        ValueError: If they are not whole numbers in one dimension.
    """
    try:
        numbers = torch.as_tensor(given, device="cpu")
    except (TypeError, ValueError, RuntimeError):
        numbers = torch.empty(())
    if numbers.numel() and (numbers.is_floating_point() or numbers.dtype == torch.bool):
        numbers = torch.empty(())
    if numbers.ndim != 1:
        found = " ".join(reprlib.repr(given).split())
        raise ValueError(f"{name}: expected whole numbers, one per image, found {found}")
    return numbers.long()


def check_texts(generator: Generator, texts: Sequence[str], name: str) -> None:
    """Refuse texts that a generator cannot follow; blank ones are no texts.

    Args:
        generator: Generator that will draw.
        texts: Texts, one for each image.
        name: Name of the texts in the error message.

    Raises:
        ValueError: If the generator reads no text, or one is too long or unknown to it.
    """
    if generator.text is not None:
        try:
            generator.text.encoder.check(texts)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    elif has_text(texts):
        raise ValueError(
            f"{name}: this generator was trained without text and reads labels at most; expected "
            "none, or a generator whose config has generator.text"
        )


def class_labels(generator: Generator, names: Sequence[str]) -> list[int]:
    """Labels of class names, in the order of the names; upper and lower case are the same.

    Args:
        generator: Generator with class names.
        names: Names of classes of the generator.

    Raises:
        ValueError: If the generator has no class names, or a name is unknown; the message suggests
            similar names.
    """
    classes = {name.casefold(): label for label, name in enumerate(generator.classes)}
    if not classes:
        raise ValueError("this generator has no class names; give labels instead")
    labels = []
    for name in names:
        if not isinstance(name, str):
            raise ValueError(f"classes: expected names, found {name!r}; give numbers as labels")
        wanted = name.strip().casefold()
        if wanted not in classes:
            near = difflib.get_close_matches(wanted, list(classes), n=3, cutoff=0.5)
            hint = (
                f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(classes)}"
            )
            raise ValueError(f"class {name.strip()!r}: unknown; {hint}")
        labels.append(classes[wanted])
    return labels


def _class_rows(generator: Generator, labels: Tensor | None, count: int) -> Tensor:
    """Labels as (count,) int64 in [0, num_classes], where `num_classes` means no label."""
    if labels is None:
        return torch.full((count,), generator.num_classes, dtype=torch.int64)
    wrong = sorted({*labels[(labels < -1) | (labels >= generator.num_classes)].tolist()})
    if wrong:
        if not generator.num_classes:
            raise ValueError(
                f"labels: this generator is unconditional, found {wrong}; expected -1 or no labels"
            )
        names = ", ".join(f"{i} {name}" for i, name in enumerate(generator.classes[:20]))
        raise ValueError(
            f"labels: expected 0 to {generator.num_classes - 1}, or -1 for none, found {wrong}"
            + (f"; classes: {names}" if names else "")
        )
    return torch.where(labels < 0, generator.num_classes, labels)


def _texts(
    generator: Generator, texts: Sequence[str] | str | None, count: int, name: str
) -> tuple[str, ...] | None:
    """Texts of `count` images, one for all or one each, that the generator can read."""
    if texts is None:
        return None
    given = (texts,) * count if isinstance(texts, str) else tuple(texts)
    check_texts(generator, given, name)
    return given if has_text(given) else None


def _lengths(generator: Generator, lengths: Sequence[int] | Tensor, count: int) -> Tensor:
    """Lengths as (count,) int64 in [1, N]."""
    if not generator.spec.ordered:
        raise ValueError(
            f"lengths: {generator.spec} is not ordered, so a prefix does not decode; expected none"
        )
    given, most = torch.as_tensor(lengths).cpu(), generator.spec.num_tokens
    whole = given.shape == (count,) and not given.is_floating_point()
    if not whole or ((given < 1) | (given > most)).any():
        raise ValueError(f"lengths: expected {count} numbers from 1 to {most}, found {lengths}")
    return given.long()


def _one_each(known: Tokens, count: int) -> Tokens:
    """Known tokens of `count` images; a single image is repeated."""
    if len(known) == count:
        return known
    if len(known) != 1:
        raise ValueError(f"known: expected 1 or {count} images, found {len(known)}")
    return known[torch.zeros(count, dtype=torch.int64, device=known.device)]
