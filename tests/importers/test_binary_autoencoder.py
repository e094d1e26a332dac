"""The binary autoencoder's public layout, written down here a second time, comes back as it was."""

import dataclasses
import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tessella
from tessella.config import build_config, read_yaml
from tessella.importers.tensors import LayoutError
from tessella.importers.vqgan import translate_tokenizer
from tessella.tests.cases import over
from tessella.tokenizers.base import Tokenizer
from tessella.tokenizers.build import TokenizerConfig, build_tokenizer

CONFIGS = Path(tessella.__file__).parent / "configs" / "tokenizer"
State = dict[str, Tensor]
NETWORKS: dict[str, Any] = {
    "base_channels": 32,
    "channel_multipliers": [1, 1, 2],
    "num_res_blocks": 2,
    "conv_bias": True,
    "attention_levels": [0],
    "mid_attention": True,
    "head_kernel_size": 3,
    "head_activation": False,
    "latent_norm": True,
}
CASES: dict[str, dict[str, Any]] = {
    "published": {},
    "deep_decoder": {"num_res_blocks_decoder": 3},
    "no_latent_norm": {"latent_norm": False},
}
BITS = {"type": "bernoulli", "bits": 6, "dim": 32}


def numbered(state: State) -> State:
    """Our state dict under public names: one list of modules for each network."""
    result = {
        "ae.quantize.proj.0.weight": state["quantizer.proj.weight"][:, :, None, None],
        "ae.quantize.proj.0.bias": state["quantizer.proj.bias"],
        "ae.quantize.embed.weight": state["quantizer.embedding"],
    }
    for side, public in (("encoder", "encoder"), ("decoder", "generator")):
        names = [n.removeprefix(f"{side}.") for n in state if n.startswith(side)]
        pattern = r"levels\.\d+\.\w+\.\d+|levels\.\d+\.resample|mid\.\d+|\w+"
        modules = {re.match(pattern, name)[0] for name in names}
        for number, module in enumerate(sorted(modules, key=functools.partial(place, side))):
            for name in [n for n in names if n.startswith(f"{module}.")]:
                leaf = name.removeprefix(f"{module}.")
                leaf = re.sub("^out", "proj_out", leaf).replace("shortcut", "conv_out")
                result[f"ae.{public}.blocks.{number}.{leaf}"] = state[f"{side}.{name}"]
    return result


def place(side: str, module: str) -> tuple[int, ...]:
    """What sorts the modules of a network: its part, then level, block, residual before attention.

    The middle follows the levels in the encoder and precedes them in the decoder.
    """
    numbers = [int(number) for number in re.findall(r"\d+", module)]
    levels, middle = (2, 3) if side == "encoder" else (3, 2)
    if "resample" in module:
        return levels, *numbers, 99
    if module.startswith("levels"):
        return levels, *numbers, "attention" in module
    parts = {"latent_norm": 0, "conv_in": 1, "norm_out": 4, "conv_out": 5}
    return parts.get(module, middle), *numbers


def config_of(case: str, **changes: Any) -> TokenizerConfig:
    data: dict[str, Any] = {
        "resolution": 16,
        "pixel_range": "unit",
        "autoencoder": NETWORKS | CASES[case],
        "quantizer": BITS,
    }
    return build_config(TokenizerConfig, data | changes)


@functools.cache
def example(case: str = "published") -> tuple[Tokenizer, State]:
    """A model with no two tensors alike, and its public state dict."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_tokenizer(config_of(case)).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model, numbered(model.state_dict())


@pytest.mark.parametrize("case", CASES)
def test_a_public_state_dict_becomes_the_same_model(case: str) -> None:
    model, stored = example(case)
    found = translate_tokenizer(stored, "bld-ae", resolution=16)
    assert found.config == model.config
    assert found.dropped == {} and not found.averaged
    again = build_tokenizer(found.config).eval()
    again.load_state_dict(found.state)
    images = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    tokens = model.encode(images)
    assert len(tokens.indices.unique()) > 1
    assert again.encode(images).equal(tokens)
    assert torch.equal(again.decode(tokens), model.decode(tokens))


@pytest.mark.parametrize("name", ["bld_c64_256", "bld_c128_256", "bigr_d24_256", "bigr_d32_256"])
def test_published_sizes_are_read_off_the_shapes(name: str) -> None:
    """The inferred config is that of the YAML file; the tensors take no memory."""
    config = build_config(TokenizerConfig, read_yaml(CONFIGS / f"{name}.yaml")["tokenizer"])
    with torch.device("meta"):
        state = build_tokenizer(config).state_dict()
    state = {key: torch.zeros(()).expand(tensor.shape) for key, tensor in state.items()}
    assert translate_tokenizer(numbered(state), "bld-ae").config == config


def test_names_are_those_of_the_published_files() -> None:
    """Spot checks by counting: 13 modules of the levels, 17 in all, in both networks."""
    keys = example()[1].keys()
    assert {
        "ae.encoder.blocks.0.weight",  # convolution, then residual block and attention twice
        "ae.encoder.blocks.4.proj_out.bias",
        "ae.encoder.blocks.5.conv.weight",
        "ae.encoder.blocks.9.conv_out.weight",  # 32 to 64 channels
        "ae.encoder.blocks.12.q.weight",
        "ae.encoder.blocks.15.bias",
        "ae.generator.blocks.0.bias",  # GroupNorm, convolution, middle, coarsest level
        "ae.generator.blocks.3.k.weight",
        "ae.generator.blocks.7.conv.bias",
        "ae.generator.blocks.16.weight",
    } <= keys
    assert not any(key.startswith("ae.encoder.blocks.16.") for key in keys)
    assert not any(key.startswith("ae.generator.blocks.17.") for key in keys)


@pytest.mark.parametrize(
    "extra,reason",
    [
        ("disc.main.2.weight", "discriminator"),
        ("perceptual.net.slice1.0.weight", "perceptual"),
        ("ae.generator.logsigma.2.bias", "nothing reads"),
        ("ae.encoder.blocks.1.conv_out.weight", "channels match"),
        ("ae.generator.blocks.5.conv_out.bias", "channels match"),
    ],
)
def test_what_is_left_out_is_named(extra: str, reason: str) -> None:
    stored = example()[1] | {extra: torch.ones(3)}
    dropped = translate_tokenizer(stored, "bld-ae", resolution=16).dropped
    assert list(dropped) == [extra]
    assert reason in dropped[extra]


def without(state: State, part: str) -> State:
    return {name: tensor for name, tensor in state.items() if part not in name}


@over(
    "damage,message",
    [
        (
            lambda s: without(s, "ae.encoder.blocks.1.conv1.weight"),
            r"ae\.encoder\.blocks\.1\.conv1\.weight is missing",
        ),
        (
            lambda s: without(s, "ae.encoder.blocks.3.conv1.weight"),
            r"missing: ae\.encoder\.blocks\.3\.conv1\.weight; unexpected: none",
        ),
        (lambda s: without(s, "embed"), r"ae\.quantize\.embed\.weight is missing"),
        (
            lambda s: without(s, ".encoder.blocks.12."),
            r"unknown order \(ae\.encoder\.blocks: craradrrdrrr, ae\.generator\.blocks: ncrarrr",
        ),
        (
            lambda s: s | {"ae.quantize.proj.0.weight": torch.ones(6, 32, 3, 3)},
            r"proj\.0\.weight \(6, 32, 3, 3\) instead of \(6, 32\)",
        ),
        (
            lambda s: s | {"ae.encoder.blocks.0.conv_out.weight": torch.ones(1)},
            r"unexpected: ae\.encoder\.blocks\.0\.conv_out\.weight",
        ),
        (
            lambda s: s | {"ae.generator.blocks.17.weight": torch.ones(1)},
            r"unknown order .* ncrarrrdrrdraranc[cn];",
        ),
        (
            lambda s: s | {"ae.encoder.blocks.0.weight": torch.ones(7, 3, 3, 3)},
            "a level has 32 channels, no multiple of the stem's 7",
        ),
        (lambda s: {}, r"encoder\.blocks: none, ae\.generator\.blocks: none; .*found none"),
    ],
    ids=["size", "tensor", "bits", "module", "shape", "stem", "tail", "width", "empty"],
)
def test_what_does_not_come_out_even_is_refused(
    damage: Callable[[State], State], message: str
) -> None:
    with pytest.raises(LayoutError, match=f"^does not fit the format bld-ae: .*{message}"):
        translate_tokenizer(damage(example()[1]), "bld-ae", resolution=16)


def test_where_attention_stands_tells_the_resolution() -> None:
    """At 32 pixels it would follow the blocks of the second level."""
    model, stored = example()
    with pytest.raises(LayoutError, match=r"levels \[0\], where .* 32 pixels has it in \[1\]"):
        translate_tokenizer(stored, "bld-ae", resolution=32)
    config = dataclasses.replace(model.config, resolution=32)
    assert translate_tokenizer(stored, "bld-ae", config=config).config.resolution == 32


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"pixel_range": "symmetric"}, "pixel_range is symmetric, expected unit"),
        (
            {"autoencoder": NETWORKS | {"head_activation": True}},
            "head_activation is True, expected False",
        ),
        (
            {"quantizer": {"type": "lfq", "bits": 16}},
            "quantizer.type is lfq, expected bernoulli",
        ),
        (
            {"autoencoder": NETWORKS | {"num_mid_blocks": 3}},
            r"missing: ae\.encoder\.blocks\.14\.conv1\.bias, .*unexpected: .*blocks\.14\.bias",
        ),
        (
            {"autoencoder": NETWORKS | {"latent_channels": 64}},
            r"missing: .*post_quant_conv\.weight, quant_conv\.bias",
        ),
    ],
)
def test_a_config_that_says_otherwise_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(LayoutError, match=message):
        translate_tokenizer(example()[1], "bld-ae", config=config_of("published", **changes))


def test_what_no_tensor_shows_may_be_chosen() -> None:
    config = config_of("published", quantizer=BITS | {"draw": "always"})
    found = translate_tokenizer(example()[1], "bld-ae", config=config)
    assert found.config.quantizer.draw == "always"


def test_a_file_of_another_format_is_recognised() -> None:
    with pytest.raises(LayoutError, match=r"the keys are those of the format bld-ae$"):
        translate_tokenizer(example()[1], "taming-vqgan")
    maskbit = [
        "encoder.down.0.res_blocks.0.conv1.weight",
        "encoder.down.0.down_conv.weight",
        "encoder.mid.res_blocks.0.conv1.weight",
    ]
    with pytest.raises(LayoutError, match=r"the keys are those of the format maskbit-tokenizer$"):
        translate_tokenizer({name: torch.ones(1, 1, 3, 3) for name in maskbit}, "bld-ae")
