"""Diffusion of bits: ZeWang95/BinaryLatentDiffusion and haoosz/BiGR."""

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

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
from tessella.train.discriminator import PatchDiscriminatorConfig, build_discriminator


def binary_latent_diffusion(name: str) -> Iterator[Row]:
    """The autoencoder of 64 bits, its discriminator and the transformer of churches of BLD."""
    models = load("models")
    settings = Attributes(
        n_channels=3, nf=128, res_blocks=2, codebook_size=64, emb_dim=256, img_size=256,
        ch_mult=[1, 1, 2, 2, 4], attn_resolutions=[16], quantizer="binary", beta=0.25,
        deterministic=True, use_tanh=False, gen_mul=1.0, norm_first=True,
    )  # fmt: skip
    with (
        mock.patch.object(nn.Module, "cuda", lambda self, *_: self),
        contextlib.redirect_stdout(None),
    ):
        theirs = randomize(models.BinaryAutoEncoder(settings))
    yield from tokenizer_rows(
        name, "bld-ae", {f"ae.{key}": value for key, value in theirs.state_dict().items()},
        lambda images: theirs.quantize.proj[0](theirs.encoder(images)),
        lambda z: theirs.quantize.quantizer(z.sigmoid(), deterministic=True).flatten(2).mT.long(),
        lambda grid, bits: theirs(None, code=bits.mT.reshape(BATCH, 64, 16, 16).float())[0],
    )  # fmt: skip
    patch = load("models.binaryae").Discriminator(3, 64)
    ours = build_discriminator(PatchDiscriminatorConfig(pixel_range="unit"))
    yield discriminator_row(name, randomize(patch), ours, True)
    steps = 64
    settings = Attributes(
        codebook_size=64, bert_n_emb=768, bert_n_head=12, bert_n_layers=24, block_size=256,
        embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0, drop_path=0.0, cross=False,
        dataset="churches", num_classes=0, sample_steps=steps, latent_shape=[1, 16, 16],
        emb_dim=256, batch_size=1, n_samples=1, total_steps=steps, loss_type="", p_flip=True,
        mask_schedule="", loss_final="mean", use_softmax=False, beta_type="linear", focal=0.0,
        aux=0.0, guidance=False,
    )  # fmt: skip
    with contextlib.redirect_stdout(None):
        network = randomize(models.TransformerBD(settings))
        sampler = models.BinaryDiffusion(settings, network, 0, torch.zeros(64, 256))
    translation = translate_generator(sampler.state_dict(), "bld")
    model: Any = build_generator(translation.config, translation.spec).eval()
    model.load_state_dict(translation.state)
    t = torch.tensor([1, 40])
    yield compare(
        name, "bld: keep factors", sampler.scheduler.k_final,
        model.diffusion.keep(torch.arange(steps + 1)).float(),
    )  # fmt: skip
    bits = (random_like(BATCH, 256, 64, seed=8) > 0).long()
    with torch.no_grad():
        expected = network(bits.float(), time_steps=t - 1)
        found = model.predict(bits, t, torch.zeros(BATCH, dtype=torch.int64))
    yield compare(name, "bld: logits", expected, found)


def bigr(name: str) -> Iterator[Row]:
    """Trunk and head of BiGR-L with 24 bits, of haoosz/BiGR."""
    settings = {"binary_size": 24, "p_flip": True, "use_adaLN": True, "n_sample_steps": 256}
    with contextlib.redirect_stdout(None):
        theirs = load("llama.gpt").BIGR_models["BiGR-L"](**settings)
    randomize(theirs)
    translation = translate_generator(theirs.state_dict(), "bigr")
    model: Any = build_generator(translation.config, translation.spec).eval()
    model.load_state_dict(translation.state)
    rng = torch.Generator().manual_seed(9)
    bits = torch.randint(2, (BATCH, 256, 24), generator=rng)
    hidden = torch.rand(BATCH, 256, generator=rng) < 0.5
    labels, seen = torch.tensor([3, 1000]), []

    def note(cond: Tensor, **_: Any) -> Tensor:
        seen.append(cond)
        return torch.zeros(BATCH, 256, 24)

    with torch.no_grad():
        theirs.diffusion_processor.sample = note
        theirs(bits.float(), labels, token_all_mask=hidden)
        conditions = model.predict(bits, hidden, model.embed_classes(labels))
        yield compare(name, "bigr: conditions", seen[0], conditions.flatten(0, 1))
        t = torch.full((BATCH * 256,), 100)
        expected = theirs.denoise_mlp(bits.flatten(0, 1).float(), t - 1, seen[0])
        found = model.predict_flips(bits.flatten(0, 1), t, seen[0])
    yield compare(name, "bigr: logits", expected, found)
