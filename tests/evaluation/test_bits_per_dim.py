"""Bits per dimension: against sources whose entropy is known, with generators that know them."""

import json
import math
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from torch import Tensor

from tessella.checkpoints import load_tokenizer, save_generator
from tessella.cli.main import main
from tessella.data.image_source import DataError, ImageSource, Sample
from tessella.data.images import BrokenImage
from tessella.data.sources import open_source
from tessella.evaluation.bits_per_dim import measure_bits, summarize
from tessella.generators.autoregressive import AutoregressiveConfig
from tessella.generators.base import Generator
from tessella.generators.bayesian_flow_network import BayesianFlowNetworkConfig
from tessella.generators.bigr import BigrConfig
from tessella.generators.binary_latent_diffusion import BinaryLatentDiffusionConfig
from tessella.generators.build import build_generator
from tessella.generators.masked import MaskBitConfig
from tessella.generators.networks.bert import TransformerConfig
from tessella.generators.networks.binary_transcoder import BinaryTranscoderConfig
from tessella.generators.networks.denoising_transformer import DenoisingTransformerConfig
from tessella.generators.networks.llama import LlamaConfig
from tessella.generators.processes.bernoulli import BernoulliDiffusion
from tessella.tokenizers.base import Tokenizer
from tessella.tokens.tokens import Tokens, TokenSpec

SPEC = TokenSpec((2,), (2,) * 3)
STRINGS = torch.tensor([[s >> k & 1 for k in range(6)] for s in range(64)])
CLASSES = ("dark", "light")
DENOISER = DenoisingTransformerConfig(width=16, num_layers=1, num_heads=2)
LLAMA = LlamaConfig(width=16, num_layers=1, num_heads=2, mlp_width=24)
CONFIGS: dict[str, Any] = {
    "bld": BinaryLatentDiffusionConfig(
        transformer=DENOISER,
        diffusion=BernoulliDiffusion(num_steps=64, loss="plain"),
        num_classes=2,
    ),
    "bfn": BayesianFlowNetworkConfig(transformer=DENOISER, num_classes=2),
    "ar": AutoregressiveConfig(
        transformer=LLAMA, num_depth_layers=1, codebook_sizes=(2, 2, 2), num_classes=2
    ),
    "maskbit": MaskBitConfig(
        transformer=TransformerConfig(width=16, num_layers=1, num_heads=2), num_classes=2
    ),
    "bigr": BigrConfig(
        transformer=LLAMA, head=BinaryTranscoderConfig(width=12, num_blocks=1), num_classes=2
    ),
}


def how_often(center: int) -> Tensor:
    """Of 36 images 12 are all dark or all light, and 4 each have one bit of the six wrong."""
    wrong = (center != STRINGS).sum(1)
    return torch.where(wrong == 0, 12, torch.where(wrong == 1, 4, 0)).double()


COUNTS = torch.stack([how_often(0), how_often(1), how_often(0) + how_often(1)])
"""Of every string, for the labels 0 and 1, and for none."""


def entropy(label: int) -> float:
    """Of the source, in bits per bit."""
    p = COUNTS[label] / COUNTS[label].sum()
    return -torch.special.xlogy(p, p).sum().item() / math.log(2) / 6


class Bits(ImageSource):
    """Both classes of 6-bit strings as the first pixels of 4x4 images, each as often as it occurs.

    Args:
        broken: Numbers of images that cannot be read.
        classes: Names of the classes.
    """

    name, split = "strings", "val"

    def __init__(self, broken: Iterable[int] = (), classes: tuple[str, ...] = CLASSES) -> None:
        self.broken, self.names = set(broken), classes
        self.images = [
            (string, label)
            for label in (0, 1)
            for string, count in zip(STRINGS, COUNTS[label].long().tolist(), strict=True)
            for _ in range(count)
        ]

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int) -> Sample:
        if index in self.broken:
            raise BrokenImage(self.id_of(index), "torn")
        string, label = self.images[index]
        pixels = torch.zeros(16, dtype=torch.uint8)
        pixels[:6] = 255 * string
        image = Image.fromarray(pixels.view(4, 4).numpy()).convert("RGB")
        return Sample(image=image, id=self.id_of(index), label=label if self.names else None)

    def id_of(self, index: int) -> str:
        return f"{index:03d}"

    @property
    def classes(self) -> tuple[str, ...]:
        return self.names

    def _sizes(self) -> Iterable[int]:
        return [16] * len(self)


class Reader(Tokenizer):
    """The first six pixels as bits."""

    spec, resolution = SPEC, 4

    def encode(self, images: Tensor, *, rng: torch.Generator | None = None) -> Tokens:
        return Tokens((images[:, 0].flatten(1)[:, :6] > 0).long().view(-1, 2, 3), SPEC)


def posterior(log_evidence: Tensor, labels: Tensor) -> Tensor:
    """Logits of the bits being 1, (B, 2, 3), if strings have this evidence, (B, 64)."""
    p = (COUNTS.log()[labels] + log_evidence).softmax(-1) @ STRINGS.double()
    return p.clamp(1e-12, 1 - 1e-12).logit().view(-1, 2, 3)


def make(kind: str) -> Generator:
    """A generator that knows the source: every prediction is the exact posterior."""
    torch.manual_seed(0)
    generator: Any = build_generator(CONFIGS[kind], SPEC).eval()
    generator.tokenizer, generator.classes = Reader(), CLASSES

    def flips(bits: Tensor, t: Tensor, labels: Tensor, *rest: Any) -> Tensor:
        rate = generator.diffusion.flip_rate(t)[:, None]
        wrong = (bits.flatten(1)[:, None] != STRINGS).sum(-1)
        ones = posterior(wrong * rate.log() + (6 - wrong) * (1 - rate).log(), labels)
        return torch.where(bits == 1, -ones, ones)

    def believe(beliefs: Tensor, t: Tensor, labels: Tensor, *rest: Any) -> Tensor:
        return posterior(beliefs.flatten(1) @ STRINGS.double().T, labels)

    def continuation(codes: Tensor, labels: Tensor, *rest: Any) -> Tensor:
        given, scores = codes.flatten(1), []
        for place in range(6):
            fits = (given[:, None, :place] == STRINGS[:, :place]).all(-1)
            ones = posterior(fits.double().log(), labels).flatten(1)[:, place]
            scores.append(torch.stack([torch.zeros_like(ones), ones], -1))
        return torch.stack(scores, 1).view(-1, 2, 3, 2)

    match kind:
        case "bld":
            generator.predict = flips
        case "bfn":
            generator.predict = believe
        case "ar":
            generator.logits = continuation
    return generator


@pytest.mark.parametrize("unconditional", [False, True], ids=["told", "untold"])
@pytest.mark.parametrize(("kind", "slack"), [("bld", 0.04), ("bfn", 0.02), ("ar", 0.0)])
def test_never_below_the_entropy_and_near_it(kind: str, slack: float, unconditional: bool) -> None:
    """Slack: by how much, relative, bounds of an exact posterior over single bits exceed it. The
    label is worth one of six bits, since no string is in both classes."""
    draws = None if kind == "ar" else 8
    found = measure_bits(
        make(kind), Bits(), unconditional=unconditional, draws=draws, batch_size=72
    )
    truth = entropy(2 if unconditional else 0)
    assert entropy(2) == pytest.approx(entropy(0) + 1 / 6)
    error = found["error_over_draws"]
    assert error < 0.01
    assert truth - 4 * error - 1e-9 <= found["bits_per_dim"]
    assert found["bits_per_dim"] <= truth * (1 + slack) + 4 * error + 1e-9
    assert found["bits_per_image"] == pytest.approx(6 * found["bits_per_dim"])
    assert found["capacity_per_image"] == 6 and found["images"] == 72
    assert found["labels"] == (0 if unconditional else 72)
    assert (found["value"] == "exact") == (kind == "ar")


def test_more_steps_come_nearer_to_continuous_time() -> None:
    """Each by more than 4 sigma, from 1 step to 4 to continuous time; 16 are between."""
    generator, found = make("bfn"), {}
    for steps, draws in ((1, 8), (4, 96), (16, 32), (None, 16)):
        result = measure_bits(generator, Bits(), num_steps=steps, draws=draws, batch_size=72)
        found[steps] = result["bits_per_dim"], result["error_over_draws"]
        words = "continuous time" if steps is None else f"chain of {steps} steps"
        assert result["value"] == f"bound, {words}"
    for more, fewer in ((4, 1), (None, 4)):
        margin = 4 * math.hypot(found[more][1], found[fewer][1])
        assert found[more][0] < found[fewer][0] - margin
    assert found[16][0] > found[None][0] - 4 * math.hypot(found[16][1], found[None][1])
    assert found[16][0] < found[4][0]
    assert found[16][1] < 0.0065, "mirrored noise; without it .009"


def test_more_steps_of_bernoulli_diffusion_lower_the_bound() -> None:
    """By more than 4 sigma; a single step says nothing but how often each bit is 1."""
    generator = make("bld")
    results = [
        measure_bits(generator, Bits(), num_steps=steps, draws=draws, batch_size=72)
        for steps, draws in ((1, 1), (4, 128), (16, 64))
    ]
    for fewer, more in pairwise(results):
        margin = 4 * math.hypot(fewer["error_over_draws"] or 0, more["error_over_draws"])
        assert more["bits_per_dim"] < fewer["bits_per_dim"] - margin
    assert [result["value"] for result in results] == [
        f"bound, chain of {n} steps" for n in (1, 4, 16)
    ]
    rare = torch.tensor(4 / 36, dtype=torch.float64)
    alone = (torch.special.entr(rare) + torch.special.entr(1 - rare)).item() / math.log(2)
    assert results[0]["bits_per_dim"] == pytest.approx(alone, rel=1e-6)
    assert measure_bits(generator, Bits(), limit=1, draws=1)["value"].endswith("64 steps")


def test_draws_reduce_the_error_and_the_error_is_right() -> None:
    """80 repetitions of 2 draws scatter as they say, 4 sigma of their standard deviation."""
    generator, fields = make("bld"), {"num_steps": 8, "batch_size": 72}
    found = [measure_bits(generator, Bits(), seed=seed, **fields) for seed in range(80)]
    scatter = torch.tensor([one["bits_per_dim"] for one in found]).std().item()
    said = math.sqrt(sum(one["error_over_draws"] ** 2 for one in found) / 80)
    assert scatter == pytest.approx(said, rel=4 / math.sqrt(160))
    many = measure_bits(generator, Bits(), draws=32, **fields)
    assert many["error_over_draws"] == pytest.approx(said / 4, rel=0.3)
    mean = sum(one["bits_per_dim"] for one in found) / 80
    assert many["bits_per_dim"] == pytest.approx(mean, abs=4 * said * math.sqrt(1 / 16 + 1 / 80))
    alone = measure_bits(generator, Bits(), draws=1, **fields)
    assert alone["error_over_draws"] is None and alone["error_over_images"] > 0


@pytest.mark.parametrize("kind", ["bld", "bfn", "ar"])
def test_batches_have_no_influence(kind: str) -> None:
    fields = {} if kind == "ar" else {"num_steps": 4, "draws": 3}
    generator, found = make(kind), []
    for size in (1, 7, 72):
        found.append(measure_bits(generator, Bits(), batch_size=size, **fields))
    for other in found[1:]:
        assert other["bits_per_dim"] == pytest.approx(found[0]["bits_per_dim"], rel=1e-9)
        assert other["error_over_draws"] == pytest.approx(found[0]["error_over_draws"], rel=1e-6)
        assert other["error_over_images"] == pytest.approx(found[0]["error_over_images"], rel=1e-9)
    if kind != "ar":
        other = measure_bits(generator, Bits(), seed=1, **fields)
        assert abs(other["bits_per_dim"] - found[0]["bits_per_dim"]) > 1e-6


def test_broken_images_are_named_and_leave_the_others_alone() -> None:
    generator = make("bfn")
    fields = {"num_steps": 4, "draws": 1, "limit": 3}
    whole = measure_bits(generator, Bits(), **fields)
    assert whole["images"] == 3 and whole["broken"] == {}
    torn = measure_bits(generator, Bits(broken=[24]), **fields)  # of 0, 24 and 48
    assert torn["images"] == 2 and torn["broken"] == {"024": "torn"}
    first = measure_bits(generator, Bits(), num_steps=4, draws=1, limit=1)
    assert first["error_over_images"] is None and first["images"] == 1
    last = measure_bits(generator, Bits(broken=[0, 24]), **fields)
    both = (first["bits_per_image"] + last["bits_per_image"]) / 2
    assert torn["bits_per_image"] == pytest.approx(both, rel=1e-9)
    with pytest.raises(DataError, match="strings: none of 3 images can be read"):
        measure_bits(generator, Bits(broken=range(72)), **fields)


def test_errors_of_a_summary() -> None:
    """Against the formulas of the mean, and of a ratio by leaving out one image at a time."""
    rng = torch.Generator().manual_seed(0)
    bits = torch.rand(5, 40, generator=rng, dtype=torch.float64) + torch.arange(40) / 10
    even = summarize(bits, torch.full((40,), 8.0, dtype=torch.float64))
    assert even["bits_per_dim"] == pytest.approx(bits.mean().item() / 8)
    assert even["error_over_images"] == pytest.approx(bits.mean(0).std().item() / 40**0.5 / 8)
    assert even["error_over_draws"] == pytest.approx(
        math.sqrt((bits.var(0) / 5).sum().item()) / 40 / 8
    )
    lengths = torch.randint(4, 9, (40,), generator=rng).double()
    ratio = summarize(bits * lengths, lengths)
    means = (bits * lengths).mean(0)
    assert ratio["bits_per_dim"] == pytest.approx((means.sum() / lengths.sum()).item())
    left = (means.sum() - means) / (lengths.sum() - lengths)
    jackknife = math.sqrt(39 / 40 * (left - left.mean()).square().sum().item())
    assert ratio["error_over_images"] == pytest.approx(jackknife, rel=0.02)
    assert summarize(bits[:1], lengths, exact=True)["error_over_draws"] == 0


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        (
            "maskbit",
            {},
            "generators of type maskbit have no likelihood, nor a bound on it: .* such as ar or",
        ),
        ("bigr", {}, "generators of type bigr have no likelihood, nor a bound on it"),
        ("bld", {"num_steps": 65}, "num_steps: expected 1 to the 64 of training, found 65"),
        ("bfn", {"num_steps": 0}, "num_steps: expected 1 to 100,000, found 0"),
        ("bfn", {"limit": 0}, "limit: expected at least 1 image, found 0"),
        ("bfn", {"num_steps": 10**9}, "num_steps: expected 1 to 100,000, found 1000000000"),
        ("bfn", {"draws": 0}, "draws: expected at least 1; found 0"),
        ("ar", {"draws": 2}, "draws: expected 1, for nothing is drawn; found 2"),
        (
            "ar",
            {"num_steps": 3},
            "num_steps: the bits of generators of type ar are exact, of no steps",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused(
    kind: str, fields: dict[str, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        measure_bits(make(kind), Bits(), **fields)


def test_labels_that_mean_something_else_are_refused() -> None:
    generator, other = make("ar"), Bits(classes=("cat", "dog"))
    with pytest.raises(
        ValueError, match=r"2 classes \(cat, dog\) and 2 classes \(dark, light\); --uncond"
    ):
        measure_bits(generator, other)
    with pytest.raises(ValueError, match="strings: its labels are not those of the generator"):
        measure_bits(generator, Bits(classes=("dark", "light", "grey")))
    found = measure_bits(generator, other, unconditional=True)
    assert found["labels"] == 0
    unlabelled = measure_bits(generator, Bits(classes=()))
    assert unlabelled["labels"] == 0
    assert unlabelled["bits_per_dim"] == pytest.approx(found["bits_per_dim"])
    generator.classes = ()  # then their number has to be the same, at least
    with pytest.raises(ValueError, match=r"3 classes \(cat, dog, cow\) and 2; --unconditional"):
        measure_bits(generator, Bits(classes=("cat", "dog", "cow")))
    with pytest.raises(ValueError, match=r"1 classes \(cat\) and 2; --unconditional"):
        measure_bits(generator, Bits(classes=("cat",)))
    with pytest.raises(ValueError, match="is in training mode"):
        measure_bits(generator.train(), other, unconditional=True)


def test_predictions_that_are_not_finite_are_an_error() -> None:
    generator: Any = make("ar")
    generator.logits = lambda codes, *rest: torch.full((*codes.shape, 2), torch.nan)
    with pytest.raises(ValueError, match="bits: the predicted logits are not finite"):
        measure_bits(generator, Bits())


def run(*words: object, code: int = 0) -> Result:
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == code, result.output
    return result


@pytest.fixture(scope="module")
def generators(
    folders: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """The folder of a small random generator of a kind, over the tokens of a tokenizer's folder."""
    tokenizer, root = load_tokenizer(folders[1]), tmp_path_factory.mktemp("bits")
    names = open_source("bundled:emoji", "val").classes

    def folder(kind: str) -> Path:
        if not (root / kind).exists():
            config = type(CONFIGS[kind])(
                **{field: getattr(CONFIGS[kind], field) for field in ("transformer",)},
                **({"num_depth_layers": 1} if kind == "ar" else {}),
                num_classes=len(names),
            )
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                generator = build_generator(config, tokenizer.spec)
            generator.classes = names
            save_generator(generator, root / kind, tokenizer_path=folders[1],
                           tokenizer_fingerprint=tokenizer.fingerprint)  # fmt: skip
        return root / kind

    return folder


@pytest.mark.parametrize("kind", ["bld", "bfn", "ar"])
def test_the_command(generators: Callable[[str], Path], kind: str) -> None:
    words = ["--limit", 6, "--seed", 3, "--json"]
    words += [] if kind == "ar" else ["--num-steps", 4, "--draws", 3]
    result = run("bits", "--generator", generators(kind), *words)
    told = json.loads(result.stdout)
    assert set(told) == {
        *("bits_per_dim", "error_over_images", "error_over_draws", "bits_per_image"),
        *("capacity_per_image", "value", "images", "labels", "draws", "seed", "data"),
        *("generator", "tokenizer", "broken"),
    }
    assert told["images"] == told["labels"] == 6 and told["seed"] == 3
    assert told["draws"] == (1 if kind == "ar" else 3) and told["data"] == "emoji val"
    assert told["value"] == ("exact" if kind == "ar" else "bound, chain of 4 steps")
    assert told["capacity_per_image"] == 64 * 4
    assert told["bits_per_image"] == pytest.approx(256 * told["bits_per_dim"])
    # untrained: about as good as knowing nothing, and a Bayesian flow does not read its input yet
    assert 0.9 < told["bits_per_dim"] < (20 if kind == "bfn" else 1.5)
    assert f"{6 * told['draws']}/{6 * told['draws']}" in result.stderr
    again = json.loads(run("bits", "--generator", generators(kind), *words).stdout)
    assert again == told
    few = json.loads(run("bits", "--generator", generators(kind), *words, "--batch-size", 4).stdout)
    assert few["bits_per_dim"] == pytest.approx(told["bits_per_dim"], rel=1e-4)
    words.append("--unconditional")
    untold = json.loads(run("bits", "--generator", generators(kind), *words).stdout)
    assert untold["labels"] == 0


def test_mistakes_get_one_clear_line(
    generators: Callable[[str], Path], folders: tuple[Path, Path]
) -> None:
    for generator, words, message in (
        (
            generators("maskbit"),
            [],
            "generators of type maskbit have no likelihood, nor a bound on it",
        ),
        (generators("bld"), ["--num-steps", 257], "expected 1 to the 256 of training, found 257"),
        (generators("ar"), ["--draws", 2], "draws: expected 1, for nothing is drawn; found 2"),
        (generators("bfn"), ["--split", "vall"], "split 'vall', expected one of"),
        (generators("bfn"), ["--data", "bundled:emojis"], "did you mean bundled:emoji?"),
        (folders[1], [], "holds a tokenizer, not a generator"),
    ):
        result = run("bits", "--generator", generator, *words, code=1)
        assert message in result.stderr and result.stderr.count("Error:") == 1
        assert "Traceback" not in result.output
