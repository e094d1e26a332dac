"""Text as a condition: one mechanism in every generator, exact in any batch."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from tessella.generators.autoregressive import AutoregressiveConfig, AutoregressiveGenerator
from tessella.generators.base import Generator
from tessella.generators.bayesian_flow_network import BayesianFlowNetworkConfig
from tessella.generators.bigr import BigrConfig
from tessella.generators.binary_latent_diffusion import BinaryLatentDiffusionConfig
from tessella.generators.build import build_generator
from tessella.generators.conditions import TextCondition, TextConfig
from tessella.generators.masked import MaskBitConfig, MaskGITConfig
from tessella.generators.networks.attention import compute_attention
from tessella.generators.networks.bert import TransformerConfig
from tessella.generators.networks.binary_transcoder import BinaryTranscoderConfig
from tessella.generators.networks.denoising_transformer import DenoisingTransformerConfig
from tessella.generators.networks.llama import LlamaConfig
from tessella.generators.processes.bernoulli import BernoulliDiffusion
from tessella.sample.generate import generate
from tessella.sample.request import Request
from tessella.text.byte_text import BytesConfig
from tessella.text.words import WordsConfig
from tessella.tokens.tokens import Tokens, TokenSpec

GRID = TokenSpec((2, 3), (2,) * 6)
WORDS = TextConfig(encoder=WordsConfig(max_length=8))
BYTES = TextConfig(encoder=BytesConfig(width=8, num_layers=1, num_heads=2, max_length=40))
KINDS = ("maskbit", "maskgit", "fused", "ar", "bigr", "bld", "bfn")
PROMPTS = ["a red apple", "cat", "", "the very sad face of a dog"]


def build(kind: str, text: TextConfig | None = WORDS, **fields: Any) -> Generator:
    """A small generator in eval mode, every parameter far from its initial value."""
    llama = LlamaConfig(width=16, num_layers=2, num_heads=2, mlp_width=24, dropout=0.0)
    bert = TransformerConfig(width=16, num_layers=2, num_heads=2, dropout=0.0)
    denoising = DenoisingTransformerConfig(width=16, num_layers=2, num_heads=2)
    process = BernoulliDiffusion(num_steps=8)
    fields = {"num_classes": 3, "text": text} | fields
    config: Any
    match kind:
        case "maskbit":
            config = MaskBitConfig(transformer=bert, **fields)
        case "fused":
            config = MaskBitConfig(transformer=bert, embedding="fused", **fields)
        case "maskgit":
            config = MaskGITConfig(transformer=bert, codebook_sizes=(8, 8), **fields)
        case "ar":
            config = AutoregressiveConfig(transformer=llama, codebook_sizes=(8, 8), **fields)
        case "bigr":
            head = BinaryTranscoderConfig(width=12, num_blocks=2)
            config = BigrConfig(transformer=llama, head=head, diffusion=process, **fields)
        case "bld":
            config = BinaryLatentDiffusionConfig(
                transformer=denoising, diffusion=process, null_label="absent", **fields
            )
        case _:
            config = BayesianFlowNetworkConfig(transformer=denoising, **fields)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        generator = build_generator(config, GRID).eval()
        with torch.no_grad():
            for parameter in generator.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return generator


def tokens(batch: int, seed: int = 0) -> Tokens:
    rng = torch.Generator().manual_seed(seed)
    return Tokens(torch.randint(2, (batch, 6, 6), generator=rng), GRID)


def settings(kind: str) -> dict[str, Any]:
    return {} if kind == "ar" else {"num_steps": 3}


@pytest.mark.parametrize("text", [WORDS, BYTES], ids=["words", "bytes"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_prompt_is_drawn_as_if_it_were_alone(kind: str, text: TextConfig) -> None:
    generator = build(kind, text)
    ways: dict[str, Any] = {"guidance": 2.0, **settings(kind)}
    labels = [0, -1, 2, -1]
    together = generate(generator, labels, prompts=PROMPTS, seeds=range(4), **ways)
    for i, prompt in enumerate(PROMPTS):
        alone = generate(generator, [labels[i]], prompts=[prompt], seeds=[i], **ways)
        assert torch.equal(alone.indices, together.indices[i : i + 1]), prompt
    empty = generate(generator, [2], seeds=[2], **ways)
    assert torch.equal(empty.indices, together.indices[2:3])
    others = generate(generator, labels, prompts=PROMPTS[::-1], seeds=range(4), **ways)
    assert not torch.equal(others.indices, together.indices)


@pytest.mark.parametrize("kind", KINDS)
def test_the_training_step_of_a_text_does_not_depend_on_its_batch(kind: str) -> None:
    generator, seeds = build(kind, label_dropout=0.0), torch.tensor([5, 6, 7, 8])
    labels = torch.tensor([0, 1, 2, -1])
    output = generator(tokens(4), labels, PROMPTS, seeds=seeds)
    parts = [
        generator(tokens(4)[i : i + 1], labels[i : i + 1], PROMPTS[i : i + 1], seeds=seeds[[i]])
        for i in range(4)
    ]
    total = sum(part.weight for part in parts)
    mean = sum(part.loss * part.weight for part in parts) / total
    torch.testing.assert_close(output.loss, mean, rtol=0, atol=1e-5)


@pytest.mark.parametrize("prompts", [PROMPTS, [""] * 4, None], ids=["texts", "empty", "none"])
@pytest.mark.parametrize("text", [WORDS, BYTES], ids=["words", "bytes"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_weight_takes_part_in_every_step(
    kind: str, text: TextConfig, prompts: list[str] | None
) -> None:
    """Or several processes would wait for gradients that never come."""
    generator = build(kind, text).train()
    generator(
        tokens(4), torch.tensor([0, 1, 2, -1]), prompts, seeds=torch.arange(4)
    ).loss.backward()
    assert [n for n, p in generator.named_parameters() if p.grad is None] == []
    assert generator.text is not None
    learned = generator.text.project.weight.grad
    assert learned is not None and bool(learned.isfinite().all())
    assert bool(learned.any()) == (prompts == PROMPTS)


@pytest.mark.parametrize("kind", ["maskbit", "bigr", "bld", "bfn"])
def test_guidance_one_is_one_pass(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    generator: Any = build(kind)
    predict, rows = generator.predict, []

    def counting(first: Tensor, *rest: Any) -> Tensor:
        rows.append(len(first))
        return predict(first, *rest)

    monkeypatch.setattr(generator, "predict", counting)
    ramp = {"guidance_schedule": "constant"} if kind == "maskbit" else {}
    for guidance in (1.0, 3.0):
        generate(generator, prompts=["cat", "dog"], guidance=guidance, num_steps=2, **ramp)
    steps = len(rows) // 2
    assert rows == [2] * steps + [4] * steps


@pytest.mark.parametrize("kind", KINDS)
def test_guidance_away_from_the_prompt_itself_does_nothing(kind: str) -> None:
    generator = build(kind)
    plain = generate(generator, prompts="sad cat", num=3, guidance=1.0, **settings(kind))
    same = {"prompts": "sad cat", "negative_prompts": "sad cat", "num": 3}
    found = generate(generator, guidance=4.0, **same, **settings(kind))
    assert torch.equal(plain.indices, found.indices)
    away = generate(
        *(generator,), prompts="sad cat", negative_prompts="dog", num=3, guidance=4.0,
        **settings(kind),
    )  # fmt: skip
    assert not torch.equal(plain.indices, away.indices)


def test_negative_prompts_alone_lead_away_from_them() -> None:
    generator, ways = build("maskbit"), {"guidance": 3.0, "num_steps": 3, "seeds": range(4)}
    found = generate(generator, negative_prompts=["dog", "", "dog", ""], **ways)
    plain = generate(generator, **ways)
    assert (found.indices == plain.indices).all((1, 2)).tolist() == [False, True, False, True]


def test_without_classes_a_text_is_still_a_condition() -> None:
    for kind in KINDS:
        generator = build(kind, num_classes=0)
        assert generator.conditional and generator.reads_text
        found = generate(generator, prompts=["cat"], guidance=2.0, **settings(kind))
        found.validate()


def test_autoregressive_steps_are_the_rows_of_one_pass() -> None:
    """Drawing greedily from the caches gives the likeliest codes of the whole sequence."""
    generator = build("ar")
    assert isinstance(generator, AutoregressiveGenerator)
    drawn = generate(generator, [0, 1, 2, -1], prompts=PROMPTS, top_k=1)
    codes = drawn.regroup(generator.codebook_sizes).indices
    labels = torch.tensor([0, 1, 2, 3])
    with torch.no_grad():
        logits = generator.logits(codes, labels, generator.read_text(PROMPTS))
    assert torch.equal(logits.argmax(-1), codes)


@pytest.mark.parametrize("way", ["plain", "sdpa", "flash", "math"])
def test_causal_attention_skips_what_is_not_there(way: Any) -> None:
    rng = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 2, 7, 2, 4, generator=rng)
    valid = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1, 1, 0, 1, 1, 0, 1]], dtype=torch.bool)
    found = compute_attention(way, q, k, v, valid, causal=True)
    for row in range(2):
        for n in range(7):
            seen = valid[row, : n + 1].clone()
            seen[n] = True  # itself in any case
            scores = torch.einsum("hd,mhd->hm", q[row, n], k[row, : n + 1][seen]) / 2
            expected = torch.einsum("hm,mhd->hd", scores.softmax(-1), v[row, : n + 1][seen])
            torch.testing.assert_close(found[row, n], expected, rtol=0, atol=1e-6)


def test_shares_of_what_is_hidden() -> None:
    config = TextConfig(encoder=WordsConfig(max_length=4), dropout=0.2, label_dropout=0.3)
    generator = build("maskbit", config, label_dropout=0.1)
    count = 4000
    seeds, prompts = torch.arange(count), ["cat"] * (count // 2) + [""] * (count // 2)
    draw = torch.rand(count, generator=torch.Generator().manual_seed(0))
    labels, text = generator.training_conditions(torch.ones(count).long(), prompts, seeds, draw)
    assert text is not None
    told, labelled = text.valid.any(1)[: count // 2], labels == 1
    shares = [
        (told & labelled[: count // 2]).float().mean(),
        (~told & labelled[: count // 2]).float().mean(),
        (told & ~labelled[: count // 2]).float().mean(),
        (~told & ~labelled[: count // 2]).float().mean(),
    ]
    expected = torch.tensor([0.9 * 0.5, 0.9 * 0.2, 0.9 * 0.3, 0.1])
    torch.testing.assert_close(torch.stack(shares), expected, rtol=0, atol=0.03)
    # Without a text a label is hidden with the whole condition only.
    assert abs(labelled[count // 2 :].float().mean() - 0.9) < 0.02
    assert not text.pooled[count // 2 :].any() and not text.pooled[: count // 2][~told].any()


def test_the_mean_of_the_states_is_added_to_the_class() -> None:
    generator = build("maskbit")
    assert isinstance(generator.text, TextCondition)
    text = generator.read_text(["red apple", ""])
    assert text is not None
    states, valid = generator.text.encoder(["red apple"])
    assert valid.tolist() == [[True, True]]
    expected = generator.text.pool(states[0].mean(0))
    torch.testing.assert_close(text.pooled[0], expected, rtol=0, atol=1e-5)
    assert not text.pooled[1].any() and not text.valid[1].any()


def test_what_cannot_be_read_is_one_clear_error() -> None:
    plain, reading = build("maskbit", None), build("maskbit")
    assert not plain.reads_text and generate(plain, prompts=[""], num_steps=2) is not None
    with pytest.raises(ValueError, match="prompts: this generator was trained without text"):
        generate(plain, prompts=["cat"], num_steps=2)
    with pytest.raises(ValueError, match="at most 8 words and pieces, found 5,000"):
        generate(reading, prompts=["cat " * 5000], num_steps=2)
    with pytest.raises(ValueError, match="at least one word that the text encoder 'words' knows"):
        generate(reading, prompts=["ящик"], num_steps=2)
    with pytest.raises(ValueError, match="negative_prompts: text 'ящик'"):
        generate(reading, negative_prompts=["ящик"], num_steps=2)
    for odd in (5, {"cat"}, iter(["cat"])):
        with pytest.raises(ValueError, match="prompts: expected a text or a list of texts, found"):
            Request.make(reading, prompts=odd)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="prompts and num: expected at least one image, found 0"):
        Request.make(reading, prompts=[])
    with pytest.raises(ValueError, match="prompts: expected 4, one per image, found 1"):
        reading(tokens(4), None, ["cat"])
    with pytest.raises(ValueError, match="text 1: expected a string, found int"):
        Request.make(reading, prompts=["cat", 3])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="must agree, found"):
        generate(reading, [0, 1, 2], prompts=["cat", "dog"], num_steps=2)
    with pytest.raises(ValueError, match="negative_prompts: guidance leads away from them"):
        generate(reading, prompts=["cat"], negative_prompts="dog", num_steps=2)
    with pytest.raises(ValueError, match="text: not with binarized_attention: bibert"):
        trunk = TransformerConfig(
            width=16, num_heads=2, num_layers=1, dropout=0.0, binarized_attention="bibert"
        )
        build_generator(MaskBitConfig(transformer=trunk, num_classes=2, text=WORDS), GRID)
    with pytest.raises(ValueError, match="dropout and label_dropout"):
        dataclasses.replace(WORDS, dropout=0.7, label_dropout=0.4)


@pytest.mark.parametrize("blank", ["", " \n", "\0", "\ufeff", "\ud800"])
def test_blank_texts_are_none(blank: str) -> None:
    plain, reading = build("maskbit", None), build("maskbit", BYTES)
    assert Request.make(plain, prompts=[blank], negative_prompts=blank).negative_prompts is None
    found = generate(reading, prompts=["cat"], negative_prompts=blank, guidance=1.0, num_steps=2)
    assert torch.equal(found.indices, generate(reading, prompts=["cat"], num_steps=2).indices)
    bom = generate(reading, prompts=["\ufeffcat"], num_steps=2)
    assert torch.equal(bom.indices, found.indices)
    reading(tokens(2), None, [blank] * 2, seeds=torch.arange(2)).loss.backward()
    assert [n for n, p in reading.named_parameters() if p.grad is None] == []


def test_fixed_shapes_for_a_compiled_network() -> None:
    generator = build("maskbit")
    request = Request.make(generator, prompts=["cat", "a red dog"]).padded(4)
    assert request.prompts == ("cat", "a red dog", "a red dog", "a red dog")
    text = generator.read_text(request.prompts, whole=request.whole_texts)
    assert text is not None and text.valid.shape == (4, 8)
    assert text.valid.sum(1).tolist() == [1, 3, 3, 3]
    empty = generator.read_text(["", ""], whole=True)
    assert empty is not None and empty.valid.shape == (2, 8) and not empty.valid.any()
