"""Images shorter than the rest of their batch: what lies behind their end has no influence."""

from typing import Any

import pytest
import torch

from tessella.tokens.tokens import Tokens, TokenSpec

ATOL = 1e-5
"""Logits of size 1 after two matrix products of width 16 in float32."""
ORDERED = TokenSpec((12,), (16,), ordered=True)


@pytest.mark.parametrize(("kind", "sizes"), [("maskbit", (4, 4)), ("maskgit", None)])
def test_padding_has_no_influence(make: Any, kind: str, sizes: tuple[int, ...] | None) -> None:
    """Neither on logits of real positions nor on the loss, whatever it holds, hidden or not."""
    generator = make.randomised(kind, ORDERED, codebook_sizes=sizes)
    tokens, labels = make.tokens(ORDERED), torch.tensor([0, 1, 2])
    valid = tokens.valid
    assert not valid.all()
    codes = tokens.regroup(generator.codebook_sizes).indices
    mask = torch.rand(codes.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    dirty = torch.where(valid[..., None], codes, 3)
    first = generator.predict(codes, mask & valid[..., None], labels, valid)
    second = generator.predict(dirty, mask | ~valid[..., None], labels, valid)
    assert torch.equal(first[valid], second[valid])
    ignoring = generator.predict(dirty, mask, labels)
    assert not torch.allclose(ignoring[valid], first[valid], atol=0.01)
    dirty_tokens = Tokens(torch.where(valid[..., None], tokens.indices, 7), ORDERED, tokens.lengths)
    seeds = torch.arange(3)
    clean, dirty_out = (generator(t, labels, seeds=seeds) for t in (tokens, dirty_tokens))
    assert torch.equal(clean.loss, dirty_out.loss)
    for name, metric in clean.metrics.items():
        assert torch.equal(metric, dirty_out.metrics[name]), name


@pytest.mark.parametrize(("kind", "sizes"), [("maskbit", (4, 4)), ("maskgit", None)])
def test_a_short_image_is_what_a_shorter_generator_sees(
    make: Any, kind: str, sizes: tuple[int, ...] | None
) -> None:
    """Logits of a prefix of 5 equal those of a generator built for 5 positions."""
    long = make.randomised(kind, ORDERED, codebook_sizes=sizes)
    short = make.randomised(kind, TokenSpec((5,), (16,), True), codebook_sizes=sizes)
    state = dict(long.state_dict())
    state["position"] = torch.cat([state["position"][:, :5], state["position"][:, -1:]], 1)
    for name in [name for name in state if name.startswith("biases")]:
        state[name] = state[name][:5]
    short.load_state_dict(state)
    codes = make.tokens(TokenSpec((12,), (16,))).regroup(long.codebook_sizes).indices
    mask = torch.rand(codes.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    labels, valid = torch.tensor([0, 1, 3]), (torch.arange(12) < 5).expand(3, -1)
    found = long.predict(codes, mask, labels, valid)[:, :5]
    expected = short.predict(codes[:, :5], mask[:, :5], labels)
    torch.testing.assert_close(found, expected, rtol=0, atol=ATOL)


def test_lengths_of_full_size_change_nothing(make: Any) -> None:
    generator = make.randomised("maskgit", ORDERED)
    indices = make.tokens(TokenSpec((12,), (16,))).indices
    seeds = torch.arange(3)
    without = generator(Tokens(indices, ORDERED), seeds=seeds).loss
    full = Tokens(indices, ORDERED, torch.tensor([12, 12, 12]))
    assert generator(full, seeds=seeds).loss.item() == pytest.approx(without.item(), rel=1e-6)
