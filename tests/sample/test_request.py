"""Requests: made and checked once, sliced like tensors."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tessella.generators.masked import MaskedGenerator
from tessella.sample import request as request_module
from tessella.sample.generate import generate, generate_batches
from tessella.sample.request import Request
from tessella.sample.samplers import choose_sampling
from tessella.tokens.tokens import Tokens, TokenSpec

GRID = TokenSpec((4, 4), (2,) * 4)
ORDERED = TokenSpec((12,), (16,), ordered=True)


@pytest.fixture(scope="module")
def generator(network: Callable[..., MaskedGenerator]) -> MaskedGenerator:
    return network("maskbit", GRID)


def test_a_request_has_defaults_by_what_is_given(generator: MaskedGenerator) -> None:
    known = Tokens(torch.zeros(3, 16, 4, dtype=torch.int64), GRID)
    everything = torch.ones(16, dtype=torch.bool)
    assert len(Request.make(generator)) == 1
    assert len(Request.make(generator, num=5)) == 5
    assert len(Request.make(generator, known=known, mask=everything)) == 3
    made = Request.make(generator, [2, -1], known=known[:1], mask=everything)
    assert made.labels.tolist() == [2, 3] and made.seeds.tolist() == [0, 1]
    assert made.known is not None and len(made.known) == 2
    assert made.mask is not None and made.mask.shape == (2, 16)


def test_slices_hold_the_same_images(network: Callable[..., MaskedGenerator]) -> None:
    known = Tokens(torch.arange(5)[:, None, None].expand(5, 12, 1).clone(), ORDERED)
    mask = torch.zeros(5, 12, dtype=torch.bool)
    mask[:, 3] = True
    whole = Request.make(
        network("maskgit", ORDERED),
        [0, 1, 2, -1, 0],
        seeds=[9, 8, 7, 6, 5],
        known=known,
        mask=mask,
        lengths=[4, 5, 6, 7, 12],
    )
    part = whole[1:4]
    assert part.labels.tolist() == [1, 2, 3] and part.seeds.tolist() == [8, 7, 6]
    assert part.lengths is not None and part.lengths.tolist() == [5, 6, 7]
    assert part.known is not None and part.known.equal(known[1:4])
    padded = part.padded(5)
    assert padded.seeds.tolist() == [8, 7, 6, 6, 6]
    assert padded[:3].seeds.equal(part.seeds)


def test_four_batches_are_checked_once(
    generator: MaskedGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: list[str] = []
    real = request_module.whole_numbers

    def counting(given: Any, name: str) -> Any:
        checked.append(name)
        return real(given, name)

    monkeypatch.setattr(request_module, "whole_numbers", counting)
    generate(generator, [0, 1, 2, 0], seeds=[4, 5, 6, 7], batch_size=1, num_steps=2)
    assert sorted(checked) == ["labels", "seeds"]


def test_batches_are_the_images_of_generate(generator: MaskedGenerator) -> None:
    sampling = choose_sampling(generator, None, {"num_steps": 3})
    request = Request.make(generator, [0, 1, 2, -1, 1], seeds=[5, 4, 3, 2, 1])
    batches = list(generate_batches(generator, request, sampling, batch_size=2))
    assert [len(tokens) for tokens in batches] == [2, 2, 1]
    whole = generate(generator, [0, 1, 2, -1, 1], seeds=[5, 4, 3, 2, 1], sampling=sampling)
    assert Tokens.cat(batches).equal(whole)


def test_a_generator_in_training_mode_is_refused_before_the_first_batch(
    network: Callable[..., MaskedGenerator],
) -> None:
    generator = network("maskbit", GRID).train()
    try:
        request = Request.make(generator, num=1)
        with pytest.raises(ValueError, match="training mode"):
            generate_batches(generator, request, choose_sampling(generator, None, {}))
    finally:
        generator.eval()
