"""One thread for every test process, and the tiny generators that tests of many folders draw from.

With one thread results do not depend on the machine's cores, and processes that share them do not
spin against each other.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tessella.checkpoints import save_generator, save_tokenizer
from tessella.generators.masked import MaskBitConfig, MaskedGenerator, MaskGITConfig
from tessella.generators.networks.bert import TransformerConfig
from tessella.tokenizers.build import build_tokenizer
from tessella.tokenizers.networks.conv_autoencoder import ConvAutoencoderConfig
from tessella.tokenizers.quantizers.lfq import LFQConfig
from tessella.tokenizers.vqgan import VQGANConfig
from tessella.tokens.tokens import Tokens, TokenSpec

torch.set_num_threads(1)

LONG = (
    "kernels/test_compile_sm90.py",
    "demo/",
    "train/test_generator_",
    "train/",
    "integration/test_readme.py",
    "kernels/test_interpreter.py",
    "metrics/networks/test_inception_fid.py",
    "contract/test_generator_contract.py",
    "evaluation/",
)
"""Tests by the start of their path, those that take longest first: where two processes share the
suite, short ones at the end fill what is left."""
SPREAD = ("kernels/test_compile_sm90.py", "kernels/test_interpreter.py", "contract/test_generator_")
"""Files whose tests share nothing, so that several processes may run them side by side."""
TOGETHER = ("train/test_generator_", "train/")
"""Starts of paths of files that share trained models, so that one process runs all of them."""

TRUNK = TransformerConfig(width=32, num_layers=2, num_heads=2, dropout=0.0)
CLASSES = ("grinning face", "cat", "ship")


def first_match(nodeid: str, starts: tuple[str, ...]) -> int:
    """Number of the first of `starts` with which the test's path begins; their count if none."""
    path = nodeid.split("::")[0].removeprefix("tests/")
    return next((i for i, text in enumerate(starts) if path.startswith(text)), len(starts))


def group_of(nodeid: str) -> str:
    """What one process runs as a whole: files of a group, a file, or a test that is apart."""
    if first_match(nodeid, SPREAD) < len(SPREAD):
        return nodeid
    return (*TOGETHER, nodeid.split("::")[0])[first_match(nodeid, TOGETHER)]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Long work comes first where processes share the suite."""
    if hasattr(config, "workerinput"):  # a process of pytest-xdist
        items.sort(key=lambda item: first_match(item.nodeid, LONG))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """`--dist loadgroup` by `group_of`; the marks of pytest-xdist 3.8 do nothing in pytest 9.2."""
    if config.getvalue("dist") != "loadgroup":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid)

    config.option.loadscopereorder = False  # in the order of LONG
    return Scheduling(config, log)


@dataclass
class Call:
    """What the sampler showed the network in one forward pass."""

    indices: Tensor
    mask: Tensor
    labels: Tensor
    valid: Tensor | None


class Oracle(MaskedGenerator):
    """A generator whose logits are a known function of what it is shown; remembers every call."""

    def __init__(
        self,
        spec: TokenSpec,
        answer: Callable[[Call], Tensor],
        *,
        num_classes: int = 3,
        groups: tuple[int, ...] | None = None,
    ) -> None:
        trunk = TransformerConfig(width=4, num_layers=1, num_heads=1)
        config = MaskGITConfig(transformer=trunk, num_classes=num_classes, codebook_sizes=groups)
        super().__init__(config, spec)
        self.answer = answer
        self.calls: list[Call] = []
        self.eval()

    def predict(
        self,
        indices: Tensor,
        mask: Tensor,
        labels: Tensor,
        valid: Tensor | None = None,
        text: Any = None,
    ) -> Tensor:
        """The known logits."""
        call = Call(indices.clone(), mask.clone(), labels.clone(), valid)
        self.calls.append(call)
        return self.answer(call)


@pytest.fixture(scope="session")
def oracle() -> type[Oracle]:
    """The class `Oracle`."""
    return Oracle


def random_network(kind: str, spec: TokenSpec, **fields: Any) -> MaskedGenerator:
    """A small network with decided opinions: weights far from their small initial values."""
    config = {"maskbit": MaskBitConfig, "maskgit": MaskGITConfig}[kind]
    fields = {"transformer": TRUNK, "num_classes": 3} | fields
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        generator = MaskedGenerator(config(**fields), spec).eval()
        with torch.no_grad():
            for parameter in generator.parameters():
                parameter.mul_(4).add_(torch.randn_like(parameter) * 0.1)
    return generator


@pytest.fixture(scope="session")
def network() -> Callable[..., MaskedGenerator]:
    """`network(kind, spec, **config)`: a small random network in eval mode."""
    return random_network


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of a generator with three named classes and of its tokenizer: 32 pixels, 8x8 tokens
    of 4 bits, read as two groups of 2."""
    root = tmp_path_factory.mktemp("models")
    networks = ConvAutoencoderConfig(
        base_channels=8, channel_multipliers=(1, 1, 2), num_res_blocks=1, norm_groups=4
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tokenizer = build_tokenizer(
            VQGANConfig(resolution=32, autoencoder=networks, quantizer=LFQConfig(bits=4))
        )
    card = save_tokenizer(tokenizer, root / "tokenizer")
    generator = random_network("maskbit", tokenizer.spec)
    generator.classes = CLASSES
    save_generator(
        generator,
        root / "generator",
        tokenizer_path=root / "tokenizer",
        tokenizer_fingerprint=card["fingerprint"],
        card={"sampling": {"num_steps": 4, "guidance": 2.0}},
    )
    return root / "generator", root / "tokenizer"


class Factory:
    """Makes tiny generators and tokens; the tests may not import each other."""

    trunk = TransformerConfig(width=16, num_layers=1, num_heads=2, dropout=0.0)

    def __call__(
        self,
        kind: str,
        spec: TokenSpec,
        *,
        num_classes: int | None = 3,
        seed: int = 0,
        **fields: Any,
    ) -> MaskedGenerator:
        """A freshly initialised generator in training mode, the same for a seed."""
        config = {"maskbit": MaskBitConfig, "maskgit": MaskGITConfig}[kind]
        fields = {"transformer": self.trunk, "num_classes": num_classes} | fields
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return MaskedGenerator(config(**fields), spec)

    def randomised(self, *args: Any, **fields: Any) -> MaskedGenerator:
        """One whose every parameter is far from its initial value, in eval mode."""
        generator = self(*args, **fields)
        rng = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in generator.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=rng) * 0.4 + 0.05)
        return generator.eval()

    def tokens(self, spec: TokenSpec, batch: int = 3, *, seed: int = 2) -> Tokens:
        """Random tokens; of an ordered spec, of random lengths."""
        rng = torch.Generator().manual_seed(seed)
        columns = [
            torch.randint(size, (batch, spec.num_tokens), generator=rng)
            for size in spec.codebook_sizes
        ]
        tokens = Tokens(torch.stack(columns, -1), spec)
        if not spec.ordered:
            return tokens
        lengths = torch.randint(1, spec.num_tokens + 1, (batch,), generator=rng)
        valid = torch.arange(spec.num_tokens) < lengths[:, None]
        return Tokens(tokens.indices * valid[..., None], spec, lengths)


@pytest.fixture(scope="session")
def make() -> Factory:
    """Makes generators: `make(kind, spec)`, `make.randomised(...)`, `make.tokens(spec)`."""
    return Factory()
