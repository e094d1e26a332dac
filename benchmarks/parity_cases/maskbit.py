"""markweberdev/maskbit: tokenizers, losses, discriminator, generator, numbers of revealed slots."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from tessella.benchmarks.parity_cases.comparison import (
    BATCH,
    Attributes,
    Row,
    compare,
    discriminator_row,
    load,
    random_like,
    randomize,
    tokenizer_rows,
)
from tessella.generators.build import build_generator
from tessella.importers.generator_formats import translate_generator
from tessella.sample.masked_steps import MaskedSampling, sampling_table
from tessella.tokenizers.quantizers.lfq import LFQ
from tessella.train.discriminator import BlurDiscriminatorConfig, build_discriminator
from tessella.train.losses import GANLoss, discriminator_loss, generator_loss


def maskbit(name: str) -> Iterator[Row]:
    """Tokenizers, losses, discriminator, generator and counts of markweberdev/maskbit."""
    yield from vector_rows(name)
    for bits in (10, 14):
        theirs = tokenizer(quantizer_type="lookup-free", token_size=bits)

        def codes(z: Tensor, theirs: Any = theirs, bits: int = bits) -> Any:
            joint = theirs.quantize(z)[1]["min_encoding_indices"].long().flatten(1)
            return joint[..., None] >> torch.arange(bits) & 1

        def decode(grid: Tensor, _: Tensor, theirs: Any = theirs) -> Any:
            return theirs.decode(grid)

        stored = theirs.state_dict()
        yield from tokenizer_rows(name, "maskbit-tokenizer", stored, theirs.encoder, codes, decode)
        latents = 0.05 * random_like(8, bits, 16, 16, seed=5)
        ours = LFQ(bits=bits)(latents.flatten(2).mT).losses
        losses = theirs.quantize.train()(latents)[1]
        for loss, weight in (("commitment", 0.25), ("entropy", 0.02)):
            expected = losses[f"{loss}_loss"] / weight
            yield compare(name, f"{loss} loss, {bits} bits", expected, ours[loss])
    blur = load("modeling.modules.discriminator").NLayerDiscriminatorv2
    theirs = blur(num_channels=3, hidden_channels=128, num_stages=4, blur_resample=True)
    ours = build_discriminator(BlurDiscriminatorConfig(pixel_range="unit"))
    yield discriminator_row(name, randomize(theirs), ours, True)
    gan, real, fake = load("modeling.modules.gan_utils"), *random_like(2, 4, 1, 16, 16, seed=6)
    kinds: tuple[GANLoss, ...] = ("hinge", "non_saturating")
    for kind in kinds:
        d, g = getattr(gan, f"{kind}_d_loss"), getattr(gan, f"{kind}_g_loss")
        ours = discriminator_loss(real, fake, kind)
        yield compare(name, f"{kind} loss of the discriminator", d(real, fake), ours)
        yield compare(name, f"{kind} loss of the generator", g(fake), generator_loss(fake, kind))
    yield counts_row(name, load("modeling.modules.masking").get_masking_ratio)
    bert = load("modeling.bert").LFQBert(
        hidden_dim=1024, codebook_size=2**14, codebook_splits=2, depth=24, heads=16, mlp_dim=4096
    )
    yield generator_row(name, randomize(bert))


def tokenizer(*, legacy: bool = False, **settings: Any) -> Any:
    """A tokenizer of published size at random weights."""
    config = Attributes(
        codebook_size=1024, num_channels=3, commitment_cost=0.25, entropy_loss_weight=0.02,
        entropy_loss_temperature=0.01, entropy_gamma=1.0, hidden_channels=128,
        channel_mult=[1, 1, 2, 2, 4], num_resolutions=5, num_res_blocks=2, sample_with_conv=True,
    )  # fmt: skip
    config.update(settings)
    return randomize(load("modeling.conv_vqgan").ConvVQModel(config, legacy=legacy))


def vector_rows(name: str) -> Iterator[Row]:
    """Rows of VQGAN+ and of the port of MaskGIT's tokenizer, each with 1,024 codes."""
    for format_name, legacy in (("maskbit-tokenizer", False), ("maskgit-vq", True)):
        theirs = tokenizer(
            legacy=legacy, quantizer_type="lookup", token_size=256, sample_with_conv=not legacy
        )

        def codes(z: Tensor, theirs: Any = theirs) -> Any:
            return theirs.quantize(z)[1]["min_encoding_indices"]

        def decode(grid: Tensor, _: Tensor, theirs: Any = theirs) -> Any:
            return theirs.decode(grid)

        stored = theirs.state_dict()
        yield from tokenizer_rows(name, format_name, stored, theirs.encoder, codes, decode)


def counts_row(name: str, share: Callable[..., Tensor]) -> Row:
    """Tables of hidden slots after every step: how many are not those of the public code."""
    tables = different = 0
    for schedule in ("arccos", "cosine", "linear", "square"):
        for slots in (64, 128, 192, 256, 512, 576, 1024):
            for steps in (4, 8, 12, 16, 32, 64, 128, 256):
                if steps > slots:
                    continue
                left, theirs = slots, []
                for i in range(steps - 1):
                    count = torch.floor(share((i + 1) / steps, mode=schedule) * slots)
                    left = int(count.clamp(1, left - 1))
                    theirs.append(left)
                settings = MaskedSampling(num_steps=steps, schedule=schedule, counts="published")
                ours = [row.hidden for row in sampling_table(settings, slots)]
                tables, different = tables + 1, different + (ours != [*theirs, 0])
    return Row(name, "tables of revealed slots", tables, different, 0.0)


@torch.no_grad()
def generator_row(name: str, theirs: Any) -> Row:
    """Logits of the bit-reading transformer at half hidden slots, with and without label."""
    translation = translate_generator(theirs.state_dict(), "maskbit")
    model: Any = build_generator(translation.config, translation.spec).eval()
    model.load_state_dict(translation.state)
    size, rng = theirs.effective_codebook_size, torch.Generator().manual_seed(7)
    codes = torch.randint(size, (BATCH, theirs.seq_len, 2), generator=rng)
    hidden = torch.rand(codes.shape, generator=rng) < 0.5
    labels, drop = torch.tensor([3, 207]), torch.tensor([False, True])
    expected = theirs(torch.where(hidden, theirs.mask_token, codes), labels.clone(), drop)
    found = model.predict(codes, hidden, torch.where(drop, 1000, labels))
    return compare(name, "maskbit: logits", expected, found)
