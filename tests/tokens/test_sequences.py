"""Sequences of ids for language models: by value, there and back, and what is refused."""

from typing import Any

import numpy as np
import pytest
import torch

from tessella.tokens.sequences import SequenceFormat, hilbert_positions
from tessella.tokens.tokens import SpecMismatch, Tokens, TokenSpec

GRID = TokenSpec((3, 5), (4, 3, 2))
ORDERED = TokenSpec((4,), (10, 2), ordered=True)


def some_tokens(spec: TokenSpec, count: int = 6) -> Tokens:
    rng = np.random.default_rng(0)
    codes = rng.integers(0, spec.codebook_sizes, (count, spec.num_tokens, spec.num_codebooks))
    tokens = Tokens(torch.from_numpy(codes), spec)
    if not spec.ordered:
        return tokens
    return Tokens.cat([t.truncate(1 + i % spec.num_tokens) for i, t in enumerate(tokens.split())])


def test_ids_by_value() -> None:
    spec = TokenSpec((2, 2), (2, 3))
    tokens = Tokens(torch.tensor([[[1, 2], [0, 0], [1, 0], [0, 1]]]), spec)
    for settings, ids, used in (
        ({}, [5, 0, 1, 2], range(6)),
        ({"offset": 100, "bos": 7, "eos": 8}, [7, 105, 100, 101, 102, 8], range(100, 106)),
        ({"ids": "groups", "offset": 10}, [11, 14, 10, 12, 11, 12, 10, 13], range(10, 15)),
        ({"order": "hilbert"}, [5, 1, 2, 0], range(6)),
        ({"order": "hilbert", "ids": "groups", "eos": 5}, [1, 4, 1, 2, 0, 3, 0, 2, 5], range(5)),
    ):
        found = SequenceFormat(spec=spec, **settings)
        assert found.encode(tokens).tolist() == [ids] and found.ids_used == used, settings
        assert found.length == len(ids) and found.decode(np.array([ids])).equal(tokens)
        assert found.largest_id == max(*used, *(v for v in settings.values() if type(v) is int), 0)


def test_shorter_images_of_an_ordered_spec() -> None:
    tokens = Tokens(torch.tensor([[[9, 1], [0, 0], [3, 0], [1, 1]], [[4, 0]] + [[0, 0]] * 3]),
                    ORDERED, torch.tensor([4, 1]))  # fmt: skip
    joint = SequenceFormat(spec=ORDERED, bos=50, eos=51)
    assert joint.encode(tokens).tolist() == [[50, 19, 0, 3, 11, 51], [50, 4, 51, -1, -1, -1]]
    groups = SequenceFormat(spec=ORDERED, ids="groups")
    assert groups.encode(tokens)[1].tolist() == [4, 10, -1, -1, -1, -1, -1, -1]
    for form in (joint, groups):
        assert form.decode(form.encode(tokens)).equal(tokens)
        assert form.decode(form.encode(tokens[1:])[:, : 3 if form is joint else 2]).equal(
            tokens[1:]
        )


@pytest.mark.parametrize("spec", [GRID, ORDERED, TokenSpec((8, 8), (2,) * 14)], ids=str)
@pytest.mark.parametrize("ids", ["joint", "groups"])
@pytest.mark.parametrize("ends", [{}, {"bos": 70_000}, {"bos": 70_000, "eos": 70_000}])
@pytest.mark.parametrize("order", ["rows", "hilbert"])
def test_round_trip(spec: TokenSpec, ids: str, ends: dict[str, int], order: str) -> None:
    if order == "hilbert" and spec is ORDERED:
        with pytest.raises(ValueError, match="no grid of full length"):
            SequenceFormat(spec=spec, order=order)
        return
    form = SequenceFormat(spec=spec, ids=ids, order=order, offset=1000, **ends)
    tokens = some_tokens(spec)
    found = form.encode(tokens)
    assert form.decode(found).equal(tokens)
    inside = found[(found != -1) & (found != 70_000)]
    assert set(inside.tolist()) <= set(form.ids_used)
    assert form.decode(found[:0]).equal(tokens[:0])


@pytest.mark.parametrize(("height", "width"), [(1, 1), (4, 4), (16, 16), (3, 5), (5, 3), (1, 7)])
def test_the_curve_visits_every_position_once(height: int, width: int) -> None:
    found = hilbert_positions(height, width)
    assert sorted(found.tolist()) == list(range(height * width))
    if height == width:  # a step goes to a neighbour
        rows, columns = np.divmod(found, width)
        steps = np.abs(np.diff(rows)) + np.abs(np.diff(columns))
        assert (steps == 1).all() and found[-1] == width - 1
    assert hilbert_positions(4, 4).tolist()[:8] == [0, 1, 5, 4, 8, 12, 13, 9]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"offset": -1}, "offset: found -1"),
        ({"offset": 2**62}, "expected 0 to 2\\*\\*62; use ids=groups"),
        ({"bos": 3}, "bos: found 3, expected an id >= 0 outside those of the tokens, 0 to 23"),
        ({"offset": 5, "eos": 28}, "eos: found 28, .*5 to 28"),
        ({"eos": -1}, "eos: found -1"),
        ({"ids": "words"}, "ids='words'"),
        ({"order": "spiral"}, "order='spiral'"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SequenceFormat(spec=GRID, **settings)
    wide = TokenSpec((2, 2), (2,) * 70)
    with pytest.raises(ValueError, match="use ids=groups"):
        SequenceFormat(spec=wide)
    assert SequenceFormat(spec=wide, ids="groups").ids_used == range(140)


def test_ids_that_are_no_tokens_are_named() -> None:
    form = SequenceFormat(spec=ORDERED, bos=50, eos=51, offset=100)
    good = form.encode(some_tokens(ORDERED, 4))

    def changed(row: int, column: int, value: int) -> torch.Tensor:
        ids = good.clone()
        ids[row, column] = value
        return ids

    for ids, message in (
        (changed(2, 1, 120), "row 2, token 0: found 120, expected 100 to 119"),
        (changed(3, 4, 99), "row 3, token 3: found 99, expected 100 to 119"),
        (changed(1, 0, 51), "row 1: found 51, expected bos 50"),
        (changed(3, 5, 110), "row 3: found 110, expected eos 51"),
        (good[:, :3], "row 1: found 1.*, expected eos 51"),
        (torch.full((1, 6), -1), "row 0 has 0 ids, expected up to 6"),
        (torch.full((1, 9), 100), "row 0 has 9 ids, expected up to 6"),
        (good.float(), r"expected \(B, L\) integers, found \(4, 6\) torch.float32"),
        (good[0], r"found \(6,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            form.decode(ids)
    groups = SequenceFormat(spec=GRID, ids="groups")
    ids = groups.encode(some_tokens(GRID))
    ids[1, 4] = 2  # an id of the first entry in the place of the second
    with pytest.raises(ValueError, match="row 1, token 4: found 2, expected 4 to 6"):
        groups.decode(ids)
    with pytest.raises(ValueError, match="row 0 has 44 ids, expected 45"):
        groups.decode(ids[:, :-1])
    with pytest.raises(SpecMismatch):
        groups.encode(some_tokens(ORDERED))
