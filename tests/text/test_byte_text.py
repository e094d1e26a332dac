"""The encoder `bytes`: states of a text depend on nothing but what was read so far."""

import pytest
import torch

from tessella.building import build_on_meta, fill
from tessella.tests.cases import over
from tessella.text.byte_text import BytesConfig, BytesEncoder

EXACT = 1e-5
"""Largest difference of states of size 1 that were computed in matrices of other sizes."""
TEXTS = ["red apple", "", "日本語 привет", "x" * 50, "red apples"]


@pytest.fixture(scope="module")
def encoder() -> BytesEncoder:
    torch.manual_seed(0)
    return BytesEncoder(BytesConfig(width=32, max_length=40)).eval()


@over("gradients", [False, True])
def test_mixed_lengths_equal_single_texts(encoder: BytesEncoder, gradients: bool) -> None:
    with torch.set_grad_enabled(gradients):
        states, valid = encoder(TEXTS)
        assert valid.sum(1).tolist() == [9, 0, 22, 40, 10]
        assert not states[~valid].any()
        for row, text in enumerate(TEXTS):
            alone = encoder([text]).states[0]
            assert len(alone) == valid[row].sum()
            torch.testing.assert_close(states[row, : len(alone)], alone, rtol=0, atol=EXACT)


def test_later_bytes_change_nothing_before_them(encoder: BytesEncoder) -> None:
    states = encoder(TEXTS).states
    torch.testing.assert_close(states[0, :9], states[4, :9], rtol=0, atol=EXACT)
    other = encoder(["sed apple"]).states[0]
    assert ((other - states[0, :9]).abs().amax(1) > 0.01).all(), "the first byte reaches all states"


def test_gradients_reach_every_weight_and_padding_has_none() -> None:
    torch.manual_seed(0)
    encoder = BytesEncoder(BytesConfig(width=32, max_length=40)).train()
    states = encoder(TEXTS).states
    (states * torch.randn_like(states)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in encoder.parameters())
    assert encoder.bytes.weight.grad is not None
    assert not encoder.bytes.weight.grad[0].any(), "byte 0 stands at padding only"
    assert encoder.state_dict().keys() == dict(encoder.named_parameters()).keys()


def test_no_text_has_no_token_and_a_loss_still_has_a_gradient(encoder: BytesEncoder) -> None:
    for texts, shape in ([], (0, 0)), (["", " \x00\n"], (2, 0)):
        states, valid = encoder(texts)
        assert (states.shape, valid.shape) == ((*shape, 32), shape)
        encoder.check(texts)
        states.sum().backward()


def test_blocks_start_different(encoder: BytesEncoder) -> None:
    first, second = (dict(block.named_parameters())["linear1.weight"] for block in encoder.blocks)
    assert not torch.equal(first, second)


def test_control_characters_and_blanks_are_one_space(encoder: BytesEncoder) -> None:
    expected = encoder(["red apple"]).states
    for text in "  red\x1b\x00apple\n", "red\ud800 apple", "red\u3000apple":
        assert torch.equal(encoder([text]).states, expected)


def test_long_texts_are_cut_between_characters_and_refused_as_prompts(
    encoder: BytesEncoder,
) -> None:
    assert encoder(["語" * 20]).valid.sum() == 39
    with pytest.raises(ValueError, match="expected at most 40 bytes, found 10,000"):
        encoder.check(["x" * 10_000])
    encoder.check(["x" * 40, "привет", "𓀀", "?!"])
    assert encoder.unknown("привет 𓀀") == []


def test_it_is_filled_from_its_state_dict(encoder: BytesEncoder) -> None:
    filled = build_on_meta(lambda: BytesEncoder(encoder.config))
    fill(filled, encoder.state_dict())
    assert torch.equal(filled.eval()(TEXTS).states, encoder(TEXTS).states)
    assert encoder.fingerprint is None


@over(
    ("settings", "message"),
    [
        ({"width": 30}, r"width: expected a multiple of num_heads \(4\), found 30"),
        ({"width": 0}, "width: expected at least 1, found 0"),
        ({"num_layers": 0}, "num_layers: expected at least 1, found 0"),
        ({"num_heads": -1}, "num_heads: expected at least 1, found -1"),
        ({"max_length": 0}, "max_length: expected 1 to 4,096 tokens, found 0"),
        ({"max_length": 5000}, "max_length: expected 1 to 4,096 tokens, found 5,000"),
    ],
)
def test_settings_are_checked(settings: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BytesConfig(**settings)
