"""What every generator promises; a new generator is added to GENERATORS.

What depends on the kind of spec runs over every pair, in one test for each generator. Learning and
saving, which take long, run on the specs that are hardest for each generator: STRESS.
"""

from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tessella.checkpoints import load_generator, save_generator, save_tokenizer
from tessella.generators.autoregressive import AutoregressiveConfig
from tessella.generators.base import Generator
from tessella.generators.bayesian_flow_network import BayesianFlowNetworkConfig
from tessella.generators.bigr import BigrConfig
from tessella.generators.binary_latent_diffusion import BinaryLatentDiffusionConfig
from tessella.generators.build import GeneratorConfig, build_generator
from tessella.generators.masked import MaskBitConfig, MaskGITConfig
from tessella.generators.networks.bert import TransformerConfig
from tessella.generators.networks.binary_transcoder import BinaryTranscoderConfig
from tessella.generators.networks.denoising_transformer import DenoisingTransformerConfig
from tessella.generators.networks.llama import LlamaConfig
from tessella.sample.generate import generate
from tessella.tests.cases import naming
from tessella.tests.folders import assert_same
from tessella.tokenizers.base import Tokenizer
from tessella.tokenizers.build import build_tokenizer
from tessella.tokenizers.networks.conv_autoencoder import ConvAutoencoderConfig
from tessella.tokenizers.quantizers.bsq import BSQConfig
from tessella.tokenizers.quantizers.build import QuantizerConfig
from tessella.tokenizers.quantizers.ema_vq import EMAVQConfig
from tessella.tokenizers.quantizers.fsq import FSQConfig
from tessella.tokenizers.quantizers.lfq import LFQConfig
from tessella.tokenizers.quantizers.vq import VQConfig
from tessella.tokenizers.vqgan import VQGANConfig
from tessella.tokens.tokens import SpecMismatch, Tokens, TokenSpec

RESOLUTION, BATCH = 8, 4
LLAMA = LlamaConfig(width=64, num_layers=2, num_heads=2, dropout=0.0)
TRUNK = TransformerConfig(width=32, num_layers=1, num_heads=2, dropout=0.0)
DENOISER = DenoisingTransformerConfig(width=32, num_layers=1, num_heads=2)
GENERATORS: dict[str, Callable[..., GeneratorConfig]] = {
    "maskbit": partial(MaskBitConfig, transformer=TRUNK),
    "maskgit": partial(MaskGITConfig, transformer=TRUNK),
    "bld": partial(BinaryLatentDiffusionConfig, transformer=DENOISER),
    "bigr": partial(
        BigrConfig,
        transformer=LLAMA,
        head=BinaryTranscoderConfig(width=128, num_blocks=2),
    ),
    "bfn": partial(BayesianFlowNetworkConfig, transformer=DENOISER),
    "bfn_classes": partial(
        BayesianFlowNetworkConfig, transformer=DENOISER, over="classes", add_beliefs=True
    ),
    "ar": partial(AutoregressiveConfig, transformer=LLAMA),
}
QUANTIZERS: dict[str, QuantizerConfig] = {
    "vq": VQConfig(codebook_size=1024, dim=4),
    "vq_1000": VQConfig(codebook_size=1000, dim=4),
    "ema_vq": EMAVQConfig(codebook_size=32, dim=4),
    "lfq": LFQConfig(bits=8),
    "lfq_9_bits": LFQConfig(bits=9),
    "lfq_14_bits": LFQConfig(bits=14),
    "bsq_24_bits": BSQConfig(bits=24),
    "lfq_80_bits": LFQConfig(bits=80, entropy_group_bits=10),
    "fsq": FSQConfig(levels=(8, 5, 5, 5)),
    "fsq_binary": FSQConfig(levels=(8, 4)),
}
SPECS = {
    "multi_codebook": TokenSpec((4, 4), (4096,) * 4),
    "multi_codebook_mixed": TokenSpec((4, 4), (64, 100, 9)),
    "joint_18_bits": TokenSpec((4, 4), (2**18,)),
    "binary_latents": TokenSpec((4, 4), (2,) * 32),
    "ordered": TokenSpec((16,), (4096,), ordered=True),
    "one_position": TokenSpec((1,), (16,)),
    "volume": TokenSpec((2, 3, 2), (16,)),
}
ONE_BY_ONE = ("ar",)
"""Generators that take as many steps as there are positions."""
NOT_BITS = ("vq_1000", "fsq", "multi_codebook_mixed")
SEVERAL = (
    *("bsq_24_bits", "lfq_80_bits", "multi_codebook", "multi_codebook_mixed", "joint_18_bits"),
    "binary_latents",
)
REFUSED = {
    ("maskbit", "vq_1000"): "MaskBit reads bits",
    ("maskbit", "fsq"): "MaskBit reads bits",
    ("maskbit", "multi_codebook_mixed"): "MaskBit reads bits",
    **{(kind, "joint_18_bits"): "a head of 262144 entries is too" for kind in ("maskgit", "ar")},
    **{(kind, name): "powers of" for kind in ("bld", "bigr", "bfn") for name in NOT_BITS},
    **{(kind, "volume"): "num_heads: heads of 32 channels; the 3" for kind in ("bigr", "ar")},
    **{("bfn_classes", name): "over: classes" for name in SEVERAL},
}
"""The pairs that have no meaning, or no head, with the reason given."""
PAIRS = [(kind, name) for kind in GENERATORS for name in (*QUANTIZERS, *SPECS)]
STRESS = [
    (kind, name)
    for kind in GENERATORS
    for names in (("lfq_9_bits",), ("multi_codebook_mixed", "multi_codebook"), ("ordered",))
    for name in [name for name in names if (kind, name) not in REFUSED][:1]
]
"""Every generator with bits of a tokenizer, with several codebooks, and with an ordered spec."""


@cache
def tiny_tokenizer(name: str) -> Tokenizer | None:
    """A tokenizer of 4x4 tokens with that quantizer, if there is one."""
    if name not in QUANTIZERS:
        return None
    networks = ConvAutoencoderConfig(base_channels=8, channel_multipliers=(1, 2), norm_groups=4)
    config = VQGANConfig(resolution=RESOLUTION, autoencoder=networks, quantizer=QUANTIZERS[name])
    torch.manual_seed(0)
    tokenizer = build_tokenizer(config).eval()
    if getattr(tokenizer.quantizer, "codebook", None) is not None:
        torch.nn.init.normal_(tokenizer.quantizer.codebook)
    return tokenizer


def spec_of(name: str) -> TokenSpec:
    tokenizer = tiny_tokenizer(name)
    return SPECS[name] if tokenizer is None else tokenizer.spec


def config_of(kind: str, **fields: Any) -> GeneratorConfig:
    return GENERATORS[kind](num_classes=2, **fields)


def make(kind: str, name: str) -> Generator:
    spec = spec_of(name)
    torch.manual_seed(0)
    return build_generator(config_of(kind), spec)


def batch_of(spec: TokenSpec, tokenizer: Tokenizer | None) -> Tokens:
    """Tokens of random images, or random ones; of an ordered spec, of several lengths."""
    rng = torch.Generator().manual_seed(1)
    if tokenizer is not None:
        images = torch.rand(BATCH, 3, RESOLUTION, RESOLUTION, generator=rng) * 2 - 1
        return tokenizer.encode(images)
    columns = [
        torch.randint(size, (BATCH, spec.num_tokens), generator=rng) for size in spec.codebook_sizes
    ]
    tokens = Tokens(torch.stack(columns, -1), spec)
    if not spec.ordered:
        return tokens
    lengths = torch.tensor([3, 16, 9, 1])
    valid = torch.arange(spec.num_tokens) < lengths[:, None]
    return Tokens(tokens.indices * valid[..., None], spec, lengths)


@pytest.fixture(params=GENERATORS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def each_name(kind: str) -> Iterator[str]:
    """Every spec that a kind of generator reads."""
    yield from (name for name in (*QUANTIZERS, *SPECS) if (kind, name) not in REFUSED)


def train(kind: str, name: str, num_steps: int) -> tuple[Generator, Tokens, Tensor, list[float]]:
    """Steps on a fixed batch with fixed draws: the generator, the batch, and its losses."""
    generator = make(kind, name)
    tokens = batch_of(generator.spec, tiny_tokenizer(name))
    labels, seeds = torch.arange(BATCH) % 2, torch.arange(BATCH)
    optimizer = torch.optim.AdamW(generator.parameters(), lr=5e-3)
    losses = []
    for _ in range(num_steps):
        out = generator(tokens, labels, seeds=seeds)
        assert out.loss.shape == () and out.loss.isfinite()
        for metric, value in out.metrics.items():
            assert value.shape == (2,) and value.isfinite().all(), metric
        losses.append(out.loss.item())
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
    return generator, tokens, labels, losses


@pytest.mark.parametrize(("kind", "name"), STRESS)
def test_it_learns(kind: str, name: str) -> None:
    """A fixed batch with fixed draws: after 20 steps its loss has fallen by a tenth or more."""
    *_, losses = train(kind, name, 20)
    assert 0 < losses[-1] < 0.9 * losses[0]


def test_it_trains_samples_and_the_samples_decode(kind: str) -> None:
    """Every pair, two steps each."""
    for name in each_name(kind):
        with naming(name):
            check_that_it_samples_after_two_steps(kind, name)


def check_that_it_samples_after_two_steps(kind: str, name: str) -> None:
    generator, tokens, labels, losses = train(kind, name, 2)
    assert 0 < losses[-1] < losses[0]
    generator.eval()
    lengths = tokens.lengths
    most = 4 if (kind, name) in STRESS else 2
    steps = min(most, 1 if lengths is not None else generator.spec.num_tokens)
    knobs = {"guidance": 2.0} | ({} if kind in ONE_BY_ONE else {"num_steps": steps})
    seeds = torch.arange(BATCH)
    sampled = generate(generator, labels, seeds=seeds, lengths=lengths, **knobs)
    assert sampled.spec == generator.spec and len(sampled) == BATCH
    sampled.validate()
    if (tokenizer := tiny_tokenizer(name)) is not None:
        generator.tokenizer = tokenizer
        images = generator.tokenizer.decode(sampled)
        assert images.shape == (BATCH, 3, RESOLUTION, RESOLUTION)
        assert images.isfinite().all() and images.abs().max() <= 1


@pytest.mark.parametrize(("kind", "name"), STRESS)
def test_saving_and_loading_is_exact(kind: str, name: str, tmp_path: Path) -> None:
    tokenizer, generator = tiny_tokenizer(name), make(kind, name)
    fields = {}
    if tokenizer is not None:
        card = save_tokenizer(tokenizer, tmp_path / "tokenizer")
        fields = {"tokenizer_path": tmp_path / "tokenizer"}
        fields |= {"tokenizer_fingerprint": card["fingerprint"]}
        generator.tokenizer = tokenizer
    save_generator(generator, tmp_path / "generator", **fields)
    if tokenizer is None:
        tokenizer = Tokenizer()
        tokenizer.spec = generator.spec
        loaded = load_generator(tmp_path / "generator", tokenizer=tokenizer)
    else:
        loaded = load_generator(tmp_path / "generator")
        names = {f"tokenizer.{name}" for name in tokenizer.state_dict()}
        assert not names & loaded.state_dict().keys()
    assert loaded.config == generator.config and loaded.spec == generator.spec
    assert_same(loaded, generator)
    tokens = batch_of(generator.spec, None)
    seeds = torch.arange(BATCH)
    expected = generator.eval()(tokens, seeds=seeds).loss
    assert torch.equal(loaded(tokens, seeds=seeds).loss, expected)


def test_the_state_is_its_own_parameters_only(kind: str) -> None:
    """No weights of the tokenizer, and nothing else that a checkpoint would have to carry."""
    for name in each_name(kind):
        with naming(name):
            generator = make(kind, name)
            before = list(generator.state_dict())
            if (tokenizer := tiny_tokenizer(name)) is not None:
                generator.tokenizer = tokenizer
            assert list(generator.state_dict()) == before
            assert before == [name for name, _ in generator.named_parameters()]


def test_training_and_evaluation_forward_agree_without_dropout(kind: str) -> None:
    for name in each_name(kind):
        with naming(name):
            generator = make(kind, name)
            tokens, seeds = batch_of(generator.spec, None), torch.arange(BATCH)
            trained = generator.train()(tokens, seeds=seeds)
            assert torch.equal(trained.loss, generator.eval()(tokens, seeds=seeds).loss)


def test_foreign_tokens_and_tokenizers_are_refused(kind: str) -> None:
    foreign = TokenSpec((3, 3), (7,))
    tokenizer = Tokenizer()
    tokenizer.spec = foreign
    for name in each_name(kind):
        with naming(name):
            generator = make(kind, name)
            with pytest.raises(SpecMismatch) as error:
                generator(Tokens(torch.zeros(1, 9, 1, dtype=torch.int64), foreign))
            assert str(foreign) in str(error.value) and str(generator.spec) in str(error.value)
            with pytest.raises(ValueError, match="the tokenizer reads 3x3"):
                generator.tokenizer = tokenizer


def test_pairs_without_meaning_are_refused_in_the_constructor() -> None:
    for (kind, name), reason in REFUSED.items():
        with naming(f"{kind} with {name}"), pytest.raises(ValueError, match=reason):
            make(kind, name)


def test_only_these_pairs_are_refused() -> None:
    built = [pair for pair in PAIRS if pair not in REFUSED and make(*pair)]
    assert len(built) == len(PAIRS) - len(REFUSED) == 97


@pytest.mark.parametrize("kind", [k for k in GENERATORS if k != "bfn_classes"])  # of one codebook
def test_a_class_is_learned(kind: str) -> None:
    """Two images, two labels: after training, the label alone brings back its image."""
    spec = TokenSpec((2, 2), (2,) * 4)
    codes = torch.tensor([[0, 5, 10, 15], [9, 3, 12, 6]])[..., None]
    tokens = Tokens(codes, TokenSpec((2, 2), (16,))).regroup(spec.codebook_sizes)
    torch.manual_seed(0)
    generator = build_generator(config_of(kind, label_dropout=0.1), spec)
    masked = kind.startswith("mask")  # diffusion wants smaller steps, and more of them
    optimizer = torch.optim.AdamW(generator.parameters(), lr=5e-3 if masked else 1e-3)
    both = tokens[torch.arange(16) % 2]
    for step in range(60 if masked else 600):
        seeds = torch.arange(16) + 16 * step
        loss = generator(both, torch.arange(16) % 2, seeds=seeds).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    generator.eval()
    found = generate(generator, [0, 1] * 8, num_steps=spec.num_tokens, temperature=0.5)
    share = (found.indices == both.indices).float().mean().item()
    assert share > 0.9
