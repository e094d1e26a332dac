"""Bits per dimension: how few bits a generator would need for images that it never saw.

A generator with a likelihood, or a bound on it (`Generator.likelihood`), says how many bits the
tokens of an image need when its predictions are the code. Uniform predictions need one bit per bit
of the tokens, so the number compares generators of the same tokens, whatever their kind: exact for
autoregressive ones, a variational bound for Bernoulli diffusion and Bayesian flows. Fewer bits are
no promise of better pictures.
"""

from typing import Any

import torch
from torch import Tensor

from ..data.image_source import DataError, ImageSource
from ..data.loader import eval_batches, evenly_spaced
from ..generators.base import Generator
from ..generators.noise import derive_seeds
from ..progress import progress_bar

DEFAULT_DRAWS = 2
"""Draws of a bound for each image."""


def measure_bits(
    generator: Generator,
    source: ImageSource,
    *,
    draws: int | None = None,
    num_steps: int | None = None,
    unconditional: bool = False,
    seed: int = 0,
    limit: int | None = None,
    batch_size: int = 32,
    progress: bool = False,
) -> dict[str, Any]:
    """Bits that the tokens of a source need; in float32, images not augmented.

    Every draw of an image has a seed of its own, derived from `seed`, the number of the draw and
    the number of the image. A draw visits each step of a chain once, or each 64th part of
    continuous time, so that none of the error comes from which times were drawn.

    Args:
        generator: In eval mode, with its tokenizer.
        source: The images.
        draws: Independent estimates of the bound for each image, at least 1; None: 2, or 1 if the
            likelihood is exact.
        num_steps: Steps of the chain whose bound is measured; None: as many as in the training, or
            continuous time for Bayesian flows.
        unconditional: Show the generator neither labels nor captions.
        seed: Seed of the draws, at least 0.
        limit: Largest number of images, evenly spaced; None: all.
        batch_size: Images per forward pass; no influence beyond rounding.
        progress: Show a progress bar on stderr.

    Returns:
        The entries of `summarize`; `value`, the words of `Generator.describe_likelihood`; `images`,
        `labels` (how many of the images had one) and `draws`; `seed`, `data`, `generator` and
        `tokenizer` (fingerprints); `broken`, reason by id of the images that could not be read.

    Raises:
        DataError: If no image can be read.
        ValueError: If the generator has no bound or is in training mode, the settings do not fit
            it, or the labels of the source are not its own.
    """
    value, exact = generator.describe_likelihood(num_steps), generator.likelihood == "exact"
    draws = (1 if exact else DEFAULT_DRAWS) if draws is None else draws
    if draws < 1 or (exact and draws > 1):
        expected = "1, for nothing is drawn" if exact else "at least 1"
        raise ValueError(f"draws: expected {expected}; found {draws}")
    if limit is not None and limit < 1:
        raise ValueError(f"limit: expected at least 1 image, found {limit}")
    if generator.training:
        raise ValueError("bits: the generator is in training mode; call generator.eval() first")
    labelled = generator.num_classes > 0 and not unconditional
    if labelled:
        _check_classes(generator, source)
    tokenizer, device = generator.tokenizer, next(generator.parameters()).device
    chosen = evenly_spaced(len(source), len(source) if limit is None else limit)
    broken: dict[str, str] = {}
    bits, capacity, num_labeled = [], [], 0
    batches = eval_batches(source, tokenizer.resolution, batch_size, broken=broken, indices=chosen)
    silent = not progress
    with torch.no_grad(), progress_bar(len(chosen) * draws, "draw", silent=silent) as bar:
        for batch in batches:
            labels = batch["labels"].to(device) if labelled else None
            prompts = batch["captions"] if generator.reads_text and not unconditional else None
            num_labeled += 0 if labels is None else int((labels >= 0).sum())
            tokens = tokenizer.encode(batch["images"].to(device))
            room = tokens.valid.sum(1).double() * generator.spec.bits_per_token
            estimates = []
            for draw in range(draws):
                seeds = derive_seeds(seed, draw * len(source) + batch["numbers"]).to(device)
                found = generator.bits_per_dim(
                    tokens, labels, prompts, seeds=seeds, num_steps=num_steps
                )
                estimates.append(found * room)
                if not estimates[-1].isfinite().all():
                    raise ValueError("bits: the predicted logits are not finite")
                bar.update(len(tokens))
            bits.append(torch.stack(estimates).cpu())
            capacity.append(room.cpu())
    if not bits:
        raise DataError(f"{source.name}: none of {len(chosen)} images can be read")
    return {
        **summarize(torch.cat(bits, 1), torch.cat(capacity), exact=exact),
        "value": value,
        "images": sum(map(len, capacity)),
        "labels": num_labeled,
        "draws": draws,
        "seed": seed,
        "data": f"{source.name} {source.split}",
        "generator": generator.fingerprint,
        "tokenizer": tokenizer.fingerprint,
        "broken": broken,
    }


def summarize(bits: Tensor, capacity: Tensor, *, exact: bool = False) -> dict[str, float | None]:
    """Means and standard errors of the bits of images.

    Args:
        bits: Bits of each image in R draws, (R, M) float64.
        capacity: Bits of each image under uniform predictions, (M,) float64.
        exact: Whether the bits are exact, so that the draws have no error.

    Returns:
        `bits_per_dim`: sum of the bits over sum of the capacity. Its standard errors:
        `error_over_images`, of a sample of images, the error of the draws included;
        `error_over_draws`, for these very images; None if there is a single image or draw.
        `bits_per_image` and `capacity_per_image`: means over the images.
    """
    draws, images = bits.shape
    means, total = bits.mean(0), capacity.sum()
    per_dim = means.sum() / total
    over_images = over_draws = None
    if images > 1:  # of a ratio of means, where images differ in length
        spread = (means - per_dim * capacity).square().sum() / (images - 1)
        over_images = ((spread * images).sqrt() / total).item()
    if exact:
        over_draws = 0.0
    elif draws > 1:
        over_draws = ((bits.var(0).sum() / draws).sqrt() / total).item()
    return {
        "bits_per_dim": per_dim.item(),
        "error_over_images": over_images,
        "error_over_draws": over_draws,
        "bits_per_image": means.mean().item(),
        "capacity_per_image": capacity.mean().item(),
    }


def _check_classes(generator: Generator, source: ImageSource) -> None:
    """Refuse a source whose classes are not those of the generator.

    Raises:
        ValueError: With the classes of both, and how to measure without labels.
    """
    theirs, own = source.classes, generator.classes
    if theirs and (theirs != own if own else len(theirs) != generator.num_classes):
        found, expected = (
            f"{len(names)} classes ({', '.join([*names[:3], '...'][: len(names)])})"
            for names in (theirs, own)
        )
        raise ValueError(
            f"{source.name}: its labels are not those of the generator, {found} and "
            f"{expected if own else generator.num_classes}; --unconditional measures "
            "without labels"
        )
