"""Public tokenizer layouts, written down here a second time, come back as the model they were."""

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
from tessella.tokenizers.build import build_tokenizer
from tessella.tokenizers.vqgan import VQGANConfig

CONFIGS = Path(tessella.__file__).parent / "configs" / "tokenizer"
State = dict[str, Tensor]
LFQ, VQ = {"type": "lfq", "bits": 6}, {"type": "vq", "codebook_size": 24, "dim": 8}
SMALL = {"base_channels": 32, "channel_multipliers": [1, 1, 2], "num_res_blocks": 1}
TAMING = SMALL | {
    "num_res_blocks_decoder": 2,
    "conv_bias": True,
    "attention_levels": [2],
    "mid_attention": True,
    "head_kernel_size": 3,
    "latent_channels": 12,
}
OPEN_MAGVIT2 = SMALL | {
    "num_mid_blocks": 3,
    "downsample": "conv_symmetric",
    "upsample": "depth_to_space",
    "adaptive_norm": True,
}
LEGACY = SMALL | {"shortcut": "legacy"}
POOLED = LEGACY | {"downsample": "avg_pool"}
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any], str]] = {
    # case: format, autoencoder, quantizer, pixel range
    "maskbit_lfq": ("maskbit-tokenizer", LEGACY, LFQ, "unit"),
    "maskbit_vq": ("maskbit-tokenizer", LEGACY, VQ, "unit"),
    "maskbit_vq_fine_first": ("maskbit-tokenizer", LEGACY, VQ, "unit"),
    "maskgit": ("maskgit-vq", POOLED, VQ, "unit"),
    "maskgit_coarse_first": ("maskgit-vq", POOLED, VQ, "unit"),
    "maskgit_1d": ("maskgit-vq", POOLED, VQ, "unit"),
    "taming": ("taming-vqgan", TAMING, VQ, "symmetric"),
    "llamagen": ("llamagen-vq", TAMING, VQ | {"normalize": True}, "symmetric"),
    "open_magvit2": ("open-magvit2", OPEN_MAGVIT2, LFQ, "symmetric"),
}
FINE_FIRST = {"maskbit_vq_fine_first", "maskgit", "maskgit_1d", "taming", "open_magvit2"}


def renamings(case: str) -> list[tuple[str, str]]:
    """Our names to public ones, as patterns; decoder levels keep our number for now."""
    both = [
        (r"quantizer\.codebook", "quantize.embedding.weight"),
        (r"\.shortcut\.", ".nin_shortcut."),
    ]
    attention = [
        (r"levels\.(\d+)\.attention\.(\d+)\.out", r"levels.\1.attention.\2.proj_out"),
        (r"mid\.1\.out", "mid.1.proj_out"),
    ]
    if case.startswith("maskgit_1d"):
        return [
            *both,
            (r"encoder\.levels\.(\d+)\.blocks", r"encoder.down.\1.block"),
            (r"decoder\.levels\.(\d+)\.blocks", r"decoder.up.\1.block"),
            (r"decoder\.levels\.(\d+)\.resample\.conv", r"decoder.up.\1.upsample_conv"),
        ]
    if case.startswith(("maskbit", "maskgit")):
        return [
            *both,
            (r"encoder\.levels\.(\d+)\.blocks", r"encoder.down.\1.res_blocks"),
            (r"encoder\.levels\.(\d+)\.resample\.conv", r"encoder.down.\1.down_conv"),
            (r"decoder\.levels\.(\d+)\.blocks", r"decoder.up.\1.res_blocks"),
            (r"decoder\.levels\.(\d+)\.resample\.conv", r"decoder.up.\1.upsample_conv"),
            (r"\.mid\.(\d+)", r".mid.res_blocks.\1"),
        ]
    if case == "taming":
        return [
            *both,
            *attention,
            (r"encoder\.levels\.(\d+)\.resample", r"encoder.down.\1.downsample"),
            (r"decoder\.levels\.(\d+)\.resample", r"decoder.up.\1.upsample"),
            (r"encoder\.levels", "encoder.down"),
            (r"decoder\.levels", "decoder.up"),
            (r"\.blocks\.", ".block."),
            (r"\.attention\.", ".attn."),
            (r"\.mid\.0", ".mid.block_1"),
            (r"\.mid\.1", ".mid.attn_1"),
            (r"\.mid\.2", ".mid.block_2"),
        ]
    if case == "llamagen":
        return [
            *both,
            *attention,
            (r"encoder\.levels\.(\d+)\.resample", r"encoder.conv_blocks.\1.downsample"),
            (r"decoder\.levels\.(\d+)\.resample", r"decoder.conv_blocks.\1.upsample"),
            (r"\.levels\.", ".conv_blocks."),
            (r"\.blocks\.", ".res."),
            (r"\.attention\.", ".attn."),
        ]
    return [
        *both,
        (r"encoder\.levels\.(\d+)\.resample\.conv", r"encoder.down.\1.downsample"),
        (r"decoder\.levels\.(\d+)\.resample\.conv", r"decoder.up.\1.upsample.conv1"),
        (r"encoder\.levels", "encoder.down"),
        (r"decoder\.levels", "decoder.up"),
        (r"\.blocks\.", ".block."),
        (r"\.mid\.", ".mid_block."),
        (r"adaptive_norms\.(\d+)\.scale", r"adaptive.\1.gamma"),
        (r"adaptive_norms\.(\d+)\.bias", r"adaptive.\1.beta"),
    ]


def published(case: str, state: State, num_levels: int) -> State:
    """Our state dict under public names."""

    def turned(match: re.Match[str]) -> str:
        return f"{match[1]}{num_levels - 1 - int(match[2])}"

    result = {}
    for name, tensor in state.items():
        if case in FINE_FIRST:
            name = re.sub(r"(decoder\.(?:levels|adaptive_norms)\.)(\d+)", turned, name)
        for pattern, replacement in renamings(case):
            name = re.sub(pattern, replacement, name)
        result[name] = tensor
    return result


def config_of(case: str) -> VQGANConfig:
    _, autoencoder, quantizer, pixel_range = CASES[case]
    data = {"autoencoder": autoencoder, "quantizer": quantizer, "pixel_range": pixel_range}
    return build_config(VQGANConfig, data | {"resolution": 16})


def randomised(config: VQGANConfig, seed: int = 0) -> Tokenizer:
    """A tokenizer with no two tensors alike."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_tokenizer(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@functools.cache
def example(case: str) -> tuple[Tokenizer, State]:
    model = randomised(config_of(case))
    return model, published(case, model.state_dict(), len(SMALL["channel_multipliers"]))


def images() -> Tensor:
    return torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


def same_pictures(first: Tokenizer, second: Tokenizer) -> bool:
    tokens = first.encode(images())
    assert len(tokens.indices.unique()) > 1
    return second.encode(images()).equal(tokens) and torch.equal(
        second.decode(tokens), first.decode(tokens)
    )


@pytest.mark.parametrize("case", CASES)
def test_a_public_state_dict_becomes_the_same_model(case: str) -> None:
    model, stored = example(case)
    found = translate_tokenizer(stored, CASES[case][0], resolution=16)
    assert found.config == model.config
    assert found.dropped == {}
    assert found.state.keys() == model.state_dict().keys()
    again = build_tokenizer(found.config)
    again.load_state_dict(found.state)
    assert same_pictures(model, again.eval())


@over("case", CASES)
def test_the_config_may_be_given_and_must_fit(case: str) -> None:
    model, stored = example(case)
    given = translate_tokenizer(stored, CASES[case][0], config=model.config)
    assert given.config == model.config
    for name, tensor in model.state_dict().items():
        assert torch.equal(given.state[name], tensor), name


@pytest.mark.parametrize(
    "name,case",
    [
        ("maskbit_14bit_256", "maskbit_lfq"),
        ("vqgan_plus_10bit_256", "maskbit_vq"),
        ("maskgit_vq_256", "maskgit"),
        ("taming_f16_1024_256", "taming"),
        ("llamagen_vq16_256", "llamagen"),
        ("open_magvit2_256", "open_magvit2"),
    ],
)
def test_published_sizes_are_read_off_the_shapes(name: str, case: str) -> None:
    """The inferred config is that of the YAML file; the tensors take no memory."""
    config = build_config(VQGANConfig, read_yaml(CONFIGS / f"{name}.yaml")["tokenizer"])
    with torch.device("meta"):
        state = build_tokenizer(config).state_dict()
    state = {key: torch.zeros(()).expand(tensor.shape) for key, tensor in state.items()}
    stored = published(case, state, len(config.autoencoder.channel_multipliers))
    assert translate_tokenizer(stored, CASES[case][0]).config == config


def test_names_are_those_of_the_published_files() -> None:
    """Spot checks against the tables of keys, at published depth."""
    expected = {
        "maskbit_lfq": [
            "encoder.down.2.res_blocks.0.nin_shortcut.weight",
            "decoder.up.0.upsample_conv.bias",
        ],
        "maskgit": ["decoder.up.2.upsample_conv.weight", "encoder.mid.res_blocks.1.norm2.bias"],
        "maskgit_1d": ["decoder.up.2.block.0.conv1.weight", "encoder.mid.1.conv2.weight"],
        "taming": [
            "encoder.mid.attn_1.proj_out.weight",
            "decoder.up.2.attn.1.q.bias",
            "quant_conv.bias",
        ],
        "llamagen": ["decoder.conv_blocks.0.res.1.norm1.weight", "encoder.mid.2.conv1.bias"],
        "open_magvit2": ["encoder.mid_block.2.conv1.weight", "decoder.adaptive.0.gamma.bias"],
    }
    for case, keys in expected.items():
        assert set(keys) <= example(case)[1].keys(), case


@pytest.mark.parametrize(
    "case,extra,reason",
    [
        ("maskbit_lfq", "quantize.bits_to_indices", "number of bits"),
        ("maskbit_lfq", "quantize.codebook", "number of bits"),
        ("taming", "loss.discriminator.main.0.weight", "discriminator"),
        ("llamagen", "quantize.codebook_used", "usage"),
        ("open_magvit2", "loss.perceptual_loss.lin0.weight", "losses"),
        ("open_magvit2", "quantize.mask", "number of bits"),
    ],
)
def test_what_is_left_out_is_named(case: str, extra: str, reason: str) -> None:
    _, stored = example(case)
    found = translate_tokenizer(stored | {extra: torch.ones(3)}, CASES[case][0], resolution=16)
    assert list(found.dropped) == [extra]
    assert reason in found.dropped[extra]


def averages(stored: State) -> State:
    """What the running average of these weights looks like in an Open-MAGVIT2 file."""
    copies = {f"model_ema.{name.replace('.', '')}": tensor for name, tensor in stored.items()}
    return copies | {
        "model_ema.decay": torch.tensor(0.999),
        "model_ema.num_updates": torch.tensor(7),
        "model_ema.lossdiscriminatormain0weight": torch.ones(2),
    }


@pytest.mark.parametrize("average", [True, False])
def test_the_running_average_is_preferred(average: bool) -> None:
    model, kept = example("open_magvit2")
    last = published("open_magvit2", randomised(model.config, seed=1).state_dict(), 3)
    stored = (last | averages(kept)) if average else (kept | averages(last))
    found = translate_tokenizer(stored, "open-magvit2", resolution=16, average=average)
    assert found.averaged == average
    for name, tensor in model.state_dict().items():
        assert torch.equal(found.state[name], tensor), name
    assert len(found.dropped) == len(kept) + 3
    unused = "weights of the last step" if average else "running average"
    assert sum(reason.startswith(f"{unused};") for reason in found.dropped.values()) == len(kept)


def test_a_stray_key_beside_the_average_is_refused() -> None:
    _, stored = example("open_magvit2")
    stored = stored | averages(stored) | {"encoder.extra": torch.ones(1)}
    with pytest.raises(LayoutError, match=r"unexpected: encoder\.extra"):
        translate_tokenizer(stored, "open-magvit2")


def test_weights_of_half_precision_become_float32() -> None:
    model, stored = example("maskbit_vq")
    halves = {name: tensor.half() for name, tensor in stored.items()}
    found = translate_tokenizer(halves, "maskbit-tokenizer", resolution=16)
    for name, tensor in model.state_dict().items():
        assert torch.equal(found.state[name], tensor.half().float()), name


KEY = "decoder.up.1.res_blocks.0.conv1.weight"


def without(state: State, key: str) -> State:
    return {name: tensor for name, tensor in state.items() if name != key}


@over(
    "damage,message",
    [
        (lambda s: without(s, KEY), rf"missing: {KEY}; unexpected: none"),
        (
            lambda s: s | {"encoder.extra": torch.ones(1)},
            r"missing: none; unexpected: encoder\.extra",
        ),
        (
            lambda s: s | {KEY: torch.ones(3, 3)},
            rf"of another shape: {re.escape(KEY)} \(3, 3\) instead of \(32, 64, 3, 3\)",
        ),
        (lambda s: s | {KEY: s[KEY].int()}, rf"not of a float type: {KEY}"),
        (lambda s: s | {KEY: s[KEY] * torch.nan}, rf"values that are not finite: {KEY}"),
        (lambda s: without(s, "encoder.conv_in.weight"), r"encoder\.conv_in\.weight is missing"),
        (lambda s: s | {"encoder.conv_in.weight": torch.ones(2)}, r"has shape \(2,\); expected 4"),
        (
            lambda s: s | {"encoder.conv_in.weight": torch.ones(7, 3, 3, 3)},
            "no multiple of the stem",
        ),
        (lambda s: {"weight": torch.ones(1)}, r"conv1\.weight are missing; found weight"),
        (lambda s: {}, r"are missing; found none"),
    ],
    ids=[
        "missing",
        "unexpected",
        "shape",
        "ints",
        "nan",
        "stem",
        "axes",
        "width",
        "other",
        "empty",
    ],
)
def test_what_does_not_come_out_even_is_refused(
    damage: Callable[[State], State], message: str
) -> None:
    _, stored = example("maskbit_vq")
    with pytest.raises(
        LayoutError, match=r"^does not fit the format maskbit-tokenizer: "
    ) as caught:
        translate_tokenizer(damage(stored), "maskbit-tokenizer", resolution=16)
    assert re.search(message, str(caught.value)), caught.value


@pytest.mark.parametrize(
    "case,asked",
    [
        ("maskgit", "maskbit-tokenizer"),
        ("maskbit_vq", "maskgit-vq"),
        ("maskbit_lfq", "taming-vqgan"),
        ("taming", "llamagen-vq"),
        ("llamagen", "taming-vqgan"),
        ("open_magvit2", "taming-vqgan"),
        ("taming", "open-magvit2"),
    ],
)
def test_a_file_of_another_format_is_recognised(case: str, asked: str) -> None:
    _, stored = example(case)
    with pytest.raises(LayoutError, match=f"the keys are those of the format {CASES[case][0]}$"):
        translate_tokenizer(stored, asked, resolution=16)


def test_an_average_where_the_format_has_none_is_refused() -> None:
    """IBQ files have the layout of taming but another distance; they all carry an average."""
    _, stored = example("taming")
    with pytest.raises(LayoutError, match=r"unexpected: model_ema\."):
        translate_tokenizer(stored | averages(stored), "taming-vqgan", resolution=16)


@pytest.mark.parametrize(
    "case,changes,message",
    [
        ("maskbit_vq", {"pixel_range": "symmetric"}, "pixel_range is symmetric, expected unit"),
        ("taming", {"quantizer": VQ | {"normalize": True}}, "normalize is True, expected False"),
        ("open_magvit2", {"quantizer": VQ}, "quantizer.type is vq, expected lfq"),
        ("maskgit", {"autoencoder": LEGACY}, "downsample is conv, expected avg_pool"),
        (
            "maskbit_vq",
            {"quantizer": VQ | {"dim": 9}},
            r"embedding\.weight \(24, 8\) instead of \(24, 9\)",
        ),
        (
            "taming",
            {"autoencoder": TAMING | {"num_res_blocks": 2}},
            r"missing: encoder\.down\.0\.block\.1",
        ),
    ],
)
def test_a_config_that_says_otherwise_is_refused(
    case: str, changes: dict[str, Any], message: str
) -> None:
    _, autoencoder, quantizer, pixel_range = CASES[case]
    data = {"autoencoder": autoencoder, "quantizer": quantizer, "pixel_range": pixel_range}
    config = build_config(VQGANConfig, data | {"resolution": 16} | changes)
    with pytest.raises(LayoutError, match=message):
        translate_tokenizer(example(case)[1], CASES[case][0], config=config)


def test_a_resolution_off_the_stride_is_refused() -> None:
    with pytest.raises(LayoutError, match="multiple of the stride 4, found 18"):
        translate_tokenizer(example("taming")[1], "taming-vqgan", resolution=18)
