"""The public BiGR layout, written down here a second time, comes back as the generator it was."""

import dataclasses
import re
from typing import Any

import pytest
import torch
from torch import Tensor

from tessella.generators.bigr import BiGR, BigrConfig
from tessella.generators.build import build_generator
from tessella.generators.masked import MaskGITConfig
from tessella.generators.networks.binary_transcoder import BinaryTranscoderConfig
from tessella.generators.networks.llama import LlamaConfig
from tessella.generators.processes.bernoulli import BernoulliDiffusion
from tessella.importers.generator_formats import translate_generator
from tessella.importers.tensors import LayoutError
from tessella.tests.cases import over
from tessella.tokens.tokens import TokenSpec

State = dict[str, Tensor]
BITS = TokenSpec((3, 3), (2,) * 5)
CONFIG = BigrConfig(
    transformer=LlamaConfig(width=64, num_layers=2, num_heads=1),
    head=BinaryTranscoderConfig(width=12, num_blocks=2),
    diffusion=BernoulliDiffusion(num_steps=8, weights="token"),
    num_classes=4,
    mask_ratio="batch",
)


def build(config: BigrConfig = CONFIG, spec: TokenSpec = BITS) -> BiGR:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        generator = BiGR(config, spec).eval()
        with torch.no_grad():
            for parameter in generator.parameters():
                parameter.copy_(torch.randn_like(parameter) * 0.2)
    return generator


def published(generator: BiGR) -> State:
    """The state dict under public names: the table of keys, once more."""
    blocks = {
        "table": "ada_gss",
        "norm1.weight": "attention_norm.weight",
        "norm2.weight": "ffn_norm.weight",
        "qkv.weight": "attention.wqkv.weight",
        "out.weight": "attention.wo.weight",
        "mlp_gate.weight": "feed_forward.w1.weight",
        "mlp_in.weight": "feed_forward.w3.weight",
        "mlp_out.weight": "feed_forward.w2.weight",
    }
    stems = {
        "mask_token": "mask_tok",
        "position": "diffusion_pos_embed_learned",
        "input": "tok_embeddings",
        "class_embedding": "cls_embedding.embedding_table",
        "trunk.modulation": "adaLN.1",
        "trunk.norm_out": "norm",
        "head.input": "denoise_mlp.x_embedder",
        "head.condition": "denoise_mlp.c_embedder",
        "head.time_in": "denoise_mlp.t_embedder.mlp.0",
        "head.time_out": "denoise_mlp.t_embedder.mlp.2",
        "head.modulation": "denoise_mlp.final_layer.adaLN_modulation.1",
        "head.output": "denoise_mlp.final_layer.linear",
    }
    parts = {"mlp_in": "mlp.0", "mlp_out": "mlp.2", "modulation": "adaLN_modulation.1"}
    result: State = {}
    for name, tensor in generator.state_dict().items():
        stem, _, leaf = name.rpartition(".")
        if found := re.fullmatch(r"trunk\.blocks\.(\d+)\.(.+)", name):
            result[f"layers.{found[1]}.{blocks[found[2]]}"] = tensor
        elif found := re.fullmatch(r"head\.blocks\.(\d+)\.(\w+)\.(\w+)", name):
            result[f"denoise_mlp.blocks.{found[1]}.{parts[found[2]]}.{found[3]}"] = tensor
        elif name in stems:
            result[stems[name]] = tensor
        else:
            result[f"{stems[stem]}.{leaf}"] = tensor
    for name in [name for name in result if name.startswith("denoise_mlp.")]:
        copy = name.replace("denoise_mlp.", "diffusion_processor._denoise_fn.")
        result[copy] = result[name].clone()
    steps = generator.diffusion.num_steps
    keep = 1 - torch.arange(steps + 1) / steps
    for name in ("k_final", "b_final", "beta", "cumbeta"):
        result[f"diffusion_processor.scheduler.{name}"] = keep.clone()
    return result


def check_same(generator: BiGR, found: Any) -> None:
    """Equal conditions and logits for tokens of which some are hidden."""
    again: Any = build_generator(found.config, found.spec)
    again.load_state_dict(found.state)
    rng = torch.Generator().manual_seed(0)
    bits = torch.randint(2, (3, 9, 5), generator=rng)
    mask = torch.rand(3, 9, generator=rng) < 0.5
    labels, t = torch.tensor([0, 4, 2]), torch.randint(1, 9, (3, 9), generator=rng)
    answers = []
    with torch.no_grad():
        for model in (generator, again.eval()):
            conditions = model.predict(bits, mask, model.embed_classes(labels))
            answers += [conditions, model.predict_flips(bits, t, conditions)]
    assert torch.equal(answers[0], answers[2]) and torch.equal(answers[1], answers[3])


def test_it_comes_back_from_its_shapes() -> None:
    generator = build()
    found = translate_generator(published(generator), "bigr")
    assert found.config == CONFIG and found.spec == BITS
    assert set(found.state) == set(generator.state_dict())
    copies = [name for name in found.dropped if "_denoise_fn" in name]
    assert len(copies) == sum(name.startswith("head.") for name in found.state)
    assert len(found.dropped) == len(copies) + 4
    check_same(generator, found)


def test_a_config_and_a_spec_say_what_the_shapes_do_not() -> None:
    """Two heads, another grid, another hidden width, and a number of classes to be read off."""
    trunk = LlamaConfig(width=64, num_layers=2, num_heads=2, mlp_width=40)
    spec = TokenSpec((9,), (2,) * 5)
    config = dataclasses.replace(CONFIG, transformer=trunk, mask_ratio="image")
    generator = build(config, spec)
    given = dataclasses.replace(config, num_classes=None)
    found = translate_generator(published(generator), "bigr", config=given, spec=spec)
    assert found.config == config and found.spec == spec
    check_same(generator, found)
    inferred = translate_generator(published(generator), "bigr")
    assert inferred.config.transformer == dataclasses.replace(trunk, num_heads=1)


@pytest.mark.parametrize(
    "width,layers,blocks,head_width,side,bits",
    [(1024, 3, 3, 1024, 16, 24), (1280, 2, 6, 1280, 16, 32), (1024, 1, 6, 1280, 32, 32)],
)
def test_published_sizes_are_read_off_the_shapes(
    width: int, layers: int, blocks: int, head_width: int, side: int, bits: int
) -> None:
    """The tensors take no memory, and fewer layers little time."""
    config = BigrConfig(
        transformer=LlamaConfig(width=width, num_layers=layers, num_heads=width // 64),
        head=BinaryTranscoderConfig(width=head_width, num_blocks=blocks),
        diffusion=BernoulliDiffusion(weights="token"),
        num_classes=1000,
        mask_ratio="batch",
    )
    spec = TokenSpec((side, side), (2,) * bits)
    with torch.device("meta"):
        generator = BiGR(config, spec)
    shapes = {n: t.shape for n, t in published(generator).items() if "scheduler" not in n}
    stored = {n: torch.zeros(()).expand(shape) for n, shape in shapes.items()}
    stored["diffusion_processor.scheduler.k_final"] = 1 - torch.arange(257) / 256
    found = translate_generator({n: t for n, t in stored.items() if "_denoise_fn" not in n}, "bigr")
    assert found.config == config and found.spec == spec


@over(
    "changes,message",
    [
        ({"norm.weight": None}, r"missing: norm\.weight; unexpected: none"),
        ({"extra.weight": torch.ones(1)}, r"unexpected: extra\.weight"),
        ({"mask_tok": torch.ones(1, 63)}, r"mask_tok \(1, 63\) instead of \(1, 64\)"),
        ({"mask_tok": torch.full((1, 64), torch.nan)}, "not finite: mask_tok"),
        (
            {"diffusion_processor._denoise_fn.x_embedder.bias": torch.ones(12)},
            r"differ from their copies under denoise_mlp\.: .*_denoise_fn\.x_embedder\.bias$",
        ),
        (
            {"diffusion_processor._denoise_fn.other": torch.ones(1)},
            r"differ from their copies under denoise_mlp\.: .*_denoise_fn\.other$",
        ),
        (
            {"diffusion_processor.scheduler.k_final": torch.linspace(1, 0, 9).sqrt()},
            "k_final is not the table of the linear schedule",
        ),
        ({"diffusion_processor.scheduler.k_final": None}, r"k_final is missing"),
        ({"diffusion_processor.scheduler.k_final": torch.ones(1)}, "expected at least 2"),
        ({"tok_embeddings.weight": None}, r"tok_embeddings\.weight is missing"),
        (
            {"diffusion_pos_embed_learned": torch.ones(1, 8, 64)},
            "shape of a grid of 8 positions is in no tensor; give the tokenizer",
        ),
        (
            {"tok_embeddings.weight": torch.ones(60, 5)},
            "number of attention heads of a trunk of width 60 is in no tensor",
        ),
    ],
)
def test_what_does_not_come_out_even_is_refused(
    changes: dict[str, Tensor | None], message: str
) -> None:
    stored = published(build()) | changes
    stored = {name: tensor for name, tensor in stored.items() if tensor is not None}
    with pytest.raises(LayoutError, match=r"^does not fit the format bigr: ") as caught:
        translate_generator(stored, "bigr")
    assert re.search(message, str(caught.value)), caught.value


def test_a_config_that_says_otherwise_is_refused() -> None:
    stored = published(build())
    with pytest.raises(LayoutError, match="type is maskgit, expected bigr"):
        translate_generator(stored, "bigr", config=MaskGITConfig())
    other = dataclasses.replace(CONFIG, diffusion=BernoulliDiffusion(num_steps=16))
    with pytest.raises(LayoutError, match=r"16 steps, linear; .* has 8 steps, linear"):
        translate_generator(stored, "bigr", config=other)
    odd = dataclasses.replace(CONFIG, transformer=LlamaConfig(width=64, num_heads=32))
    with pytest.raises(LayoutError, match="heads of 2 channels"):
        translate_generator(stored, "bigr", config=odd)
