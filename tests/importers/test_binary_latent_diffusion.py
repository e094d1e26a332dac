"""The public layout of Binary Latent Diffusion, written down here a second time, comes back."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from tessella.generators.binary_latent_diffusion import (
    BinaryLatentDiffusion,
    BinaryLatentDiffusionConfig,
)
from tessella.generators.build import build_generator
from tessella.generators.masked import MaskBitConfig
from tessella.generators.networks.denoising_transformer import DenoisingTransformerConfig
from tessella.generators.processes.bernoulli import BernoulliDiffusion
from tessella.importers.generator_formats import translate_generator
from tessella.importers.tensors import LayoutError
from tessella.tests.cases import over
from tessella.tests.importers.test_maskbit import BITS, State, example, published
from tessella.tokens.tokens import TokenSpec

NARROW = DenoisingTransformerConfig(width=16, num_layers=2, num_heads=4)


def diffusion(
    schedule: Any = "linear", num_classes: int = 5, shape: tuple[int, int] = (2, 3)
) -> BinaryLatentDiffusion:
    """A small model of binary latent diffusion, every parameter far from its initial value."""
    config = BinaryLatentDiffusionConfig(
        transformer=NARROW,
        diffusion=BernoulliDiffusion(num_steps=8, schedule=schedule, weights="image"),
        num_classes=num_classes,
        null_label="absent",
    )
    rng = torch.Generator().manual_seed(1)
    model = BinaryLatentDiffusion(config, TokenSpec(shape, (2,) * 6)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=rng) * 0.4 + 0.05)
    return model


def published_diffusion(model: BinaryLatentDiffusion) -> State:
    """The state dict under public names, with the tables of the schedule that it stores."""
    stems = {
        "network.bit_embedding": "tok_emb.weight",
        "network.position": "pos_emb",
        "network.class_embedding.weight": "cls_embedding.weight",
    }
    parts = {
        "norm1": "ln1",
        "norm2": "ln2",
        "qkv": "attn.qkv",
        "out": "attn.proj",
        "mlp_in": "mlp.0",
        "mlp_out": "mlp.2",
    }
    modules = {
        "network.time_in": "time_step_embedding.l0",
        "network.time_out": "time_step_embedding.linear",
        "network.trunk.norm_out": "ln_f",
        "network.head": "head",
    }
    result: State = {}
    for name, tensor in model.state_dict().items():
        block = re.fullmatch(r"network\.trunk\.blocks\.(\d+)\.(\w+)\.(\w+)", name)
        stem, _, leaf = name.rpartition(".")
        if name in stems:
            public = stems[name]
        elif block and block[3] == "scale":
            public = f"blocks.{block[1]}.gamma_{1 if block[2] == 'out' else 2}"
        elif block:
            public = f"blocks.{block[1]}.{parts[block[2]]}.{block[3]}"
        else:
            public = f"{modules[stem]}.{leaf}"
        result[f"_denoise_fn.{public}"] = tensor
    t = torch.arange(model.diffusion.num_steps + 1)
    keep = model.diffusion.keep(t).float()
    tables = {"k_final": keep, "b_final": (1 - keep) / 2, "beta": keep, "cumbeta": keep}
    return result | {f"scheduler.{name}": table for name, table in tables.items()}


@over("schedule", ["linear", "cos", "sigmoid"])
@over("num_classes", [0, 5])
def test_a_diffusion_comes_back(num_classes: int, schedule: str) -> None:
    """With a config, which the stored table of keep factors must agree with."""
    model = diffusion(schedule, num_classes)
    stored = published_diffusion(model) | {"embedding_weight": torch.ones(6, 3)}
    found = translate_generator(stored, "bld", config=model.config, spec=model.spec)
    assert found.config == model.config and found.spec == model.spec
    assert set(found.dropped) == {
        "embedding_weight",
        *(f"scheduler.{name}" for name in ("k_final", "b_final", "beta", "cumbeta")),
    }
    again: Any = build_generator(found.config, found.spec)
    again.load_state_dict(found.state)
    rng = torch.Generator().manual_seed(0)
    bits, t = torch.randint(2, (3, 6, 6), generator=rng), torch.tensor([1, 4, 8])
    labels = torch.tensor([0, num_classes, 2])
    with torch.no_grad():
        expected = model.predict(bits, t, labels)
        assert torch.equal(again.eval().predict(bits, t, labels), expected)


@pytest.mark.parametrize(
    "num_classes,num_positions,schedule",
    [(0, 256, "linear"), (1000, 256, "cos"), (0, 1024, "linear")],
)
def test_published_diffusions_are_read_off_the_file(
    num_classes: int, num_positions: int, schedule: Any
) -> None:
    """Sizes off the shapes, schedule and steps off the table; fewer layers take little time."""
    side = int(num_positions**0.5)
    config = BinaryLatentDiffusionConfig(
        transformer=DenoisingTransformerConfig(num_layers=1),
        diffusion=BernoulliDiffusion(num_steps=64, schedule=schedule, weights="image"),
        num_classes=num_classes,
        null_label="absent",
    )
    spec = TokenSpec((side, side), (2,) * 64)
    with torch.device("meta"):
        model = BinaryLatentDiffusion(config, spec)
    stored = {
        name: tensor if name.startswith("scheduler") else torch.zeros(()).expand(tensor.shape)
        for name, tensor in published_diffusion(model).items()
    }
    found = translate_generator(stored, "bld")
    assert found.config == config and found.spec == spec


@over(
    "changes,message",
    [
        ({"scheduler.k_final": None}, r"scheduler\.k_final is missing"),
        ({"scheduler.k_final": torch.ones(9)}, "the config says otherwise: 8 steps, linear"),
        ({"scheduler.k_final": 1 - torch.arange(10) / 9}, r"scheduler\.k_final has 9 steps"),
        ({"_denoise_fn.tok_emb.weight": None}, r"tok_emb\.weight is missing"),
        ({"_denoise_fn.blocks.1.gamma_2": None}, r"missing: _denoise_fn\.blocks\.1\.gamma_2;"),
        ({"_denoise_fn.blocks.0.cross.kv.bias": torch.ones(2)}, r"unexpected: .*cross\.kv\.bias"),
        ({"_denoise_fn.cls_embedding.bias": torch.ones(16)}, "conditioned on CLIP vectors"),
        ({"_denoise_fn.pos_emb": torch.ones(1, 5, 16)}, r"pos_emb \(1, 5, 16\) instead of"),
        ({"_denoise_fn.head.bias": torch.full((6,), torch.nan)}, r"not finite: .*head\.bias"),
        ({"module.epoch": torch.ones(1)}, r"unexpected: module\.epoch"),
    ],
)
def test_other_diffusions_are_refused(changes: dict[str, Tensor | None], message: str) -> None:
    model = diffusion()
    stored = published_diffusion(model) | changes
    stored = {name: tensor for name, tensor in stored.items() if tensor is not None}
    with pytest.raises(LayoutError, match=r"^does not fit the format bld: ") as caught:
        translate_generator(stored, "bld", config=model.config, spec=model.spec)
    assert re.search(message, str(caught.value)), caught.value


def test_what_no_tensor_of_a_diffusion_shows_is_asked_for(make: Any) -> None:
    model = diffusion()
    stored = published_diffusion(model)
    with pytest.raises(LayoutError, match="number of attention heads of a trunk of width 16"):
        translate_generator(stored, "bld", spec=model.spec)
    with pytest.raises(LayoutError, match=r"shape of a grid of 6 positions .* give the tokenizer"):
        translate_generator(stored, "bld", config=model.config)
    with pytest.raises(LayoutError, match="type is maskbit, expected bld"):
        translate_generator(stored, "bld", config=MaskBitConfig(), spec=model.spec)
    with pytest.raises(LayoutError, match="type is bld, expected maskbit"):
        translate_generator(published(example(make)), "maskbit", config=model.config, spec=BITS)
    stored["scheduler.k_final"] = torch.linspace(1, 0, 9).sqrt()
    with pytest.raises(LayoutError, match="none of the schedules linear, cos, sigmoid"):
        translate_generator(stored, "bld", spec=model.spec)
