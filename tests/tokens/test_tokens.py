"""Tokens: values, conventions, round trips and every refusal."""

import itertools
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch.utils import _pytree
from torch.utils.data import DataLoader, Dataset

from tessella.tests.cases import over
from tessella.tokens.store import load_tokens
from tessella.tokens.tokens import SpecMismatch, Tokens, TokenSpec, join_entries, split_joint

BINARY = TokenSpec((2, 3), (2,) * 5)
ORDERED = TokenSpec((4,), (10,), ordered=True)


def random_tokens(spec: TokenSpec, count: int = 3, *, seed: int = 0) -> Tokens:
    rng = torch.Generator().manual_seed(seed)
    entries = [
        torch.randint(0, size, (count, spec.num_tokens), generator=rng)
        for size in spec.codebook_sizes
    ]
    return Tokens(torch.stack(entries, dim=-1), spec)


def every_value(codebook_sizes: tuple[int, ...]) -> Tokens:
    """One image whose positions are all joint values, entry 0 counting fastest."""
    combinations = itertools.product(*(range(size) for size in reversed(codebook_sizes)))
    indices = torch.tensor([combination[::-1] for combination in combinations])
    return Tokens(indices[None], TokenSpec((len(indices),), codebook_sizes))


def test_spec_derives_its_numbers() -> None:
    spec = TokenSpec((16, 16), (8, 5, 5, 5))
    assert (spec.num_tokens, spec.num_codebooks, spec.vocab_size) == (256, 4, 1000)
    assert spec.bits_per_token == pytest.approx(math.log2(1000))
    assert spec.bits_per_image == pytest.approx(256 * math.log2(1000))
    assert spec.packed_widths == (10,)
    assert not spec.is_binary
    assert TokenSpec((4, 4), (2,) * 18).bits_per_image == 288


def test_spec_survives_json_form() -> None:
    assert TokenSpec(**ORDERED.to_dict()) == ORDERED
    assert TokenSpec([4], [10], ordered=True) == ORDERED
    assert hash(TokenSpec((4,), (10,), ordered=True)) == hash(ORDERED)


def test_spec_reads_well() -> None:
    assert str(TokenSpec((16, 16), (2,) * 18)) == "16x16 tokens of (18x2)"
    assert str(TokenSpec((4,), (8, 5, 5), ordered=True)) == "4 tokens of (8, 2x5) ordered"


@pytest.mark.parametrize(
    ("shape", "sizes", "message"),
    [
        ((), (2,), "at least one position"),
        ((4, 0), (2,), "at least one position"),
        ((4,), (), "at least one entry"),
        ((4,), (1,), "found 1"),
        ((4,), (2, 2**62 + 1), r"expected 2 to 2\*\*62"),
    ],
)
def test_spec_refuses(shape: tuple[int, ...], sizes: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TokenSpec(shape, sizes)


@pytest.mark.parametrize("num_bits", [1, 2, 3, 6])
def test_regroup_bits_is_a_bijection(num_bits: int) -> None:
    bits = every_value((2,) * num_bits)
    joint = bits.regroup((2**num_bits,))
    assert joint.indices.flatten().tolist() == list(range(2**num_bits))
    assert joint.regroup((2,) * num_bits).equal(bits)
    assert torch.equal(joint.bits(), bits.indices)


def test_regroup_mixed_sizes_is_a_bijection() -> None:
    entries = every_value((8, 5, 5, 5))
    joint = entries.regroup((1000,))
    assert joint.indices.flatten().tolist() == list(range(1000))
    pairs = joint.regroup((40, 25))
    assert torch.equal(pairs.indices[0, :, 0] + 40 * pairs.indices[0, :, 1], torch.arange(1000))
    assert pairs.regroup((8, 5, 5, 5)).equal(entries)


@over("bit", range(62))
def test_bit_k_alone_has_joint_index_two_to_the_k(bit: int) -> None:
    indices = torch.zeros(1, 1, 62, dtype=torch.int64)
    indices[..., bit] = 1
    tokens = Tokens(indices, TokenSpec((1,), (2,) * 62))
    assert tokens.regroup((2**62,)).indices.item() == 2**bit
    assert tokens.regroup((2**31, 2**31)).indices.flatten().tolist() == (
        [2**bit, 0] if bit < 31 else [0, 2 ** (bit - 31)]
    )


def test_joint_index_is_little_endian() -> None:
    sizes = (8, 5, 5, 5)
    assert join_entries(torch.tensor([1, 0, 0, 0]), sizes).item() == 1
    assert join_entries(torch.tensor([0, 1, 0, 0]), sizes).item() == 8
    assert join_entries(torch.tensor([0, 0, 0, 1]), sizes).item() == 200
    assert split_joint(torch.tensor(999), sizes).tolist() == [7, 4, 4, 4]


def test_regroup_beyond_62_bits_goes_through_bits() -> None:
    tokens = random_tokens(TokenSpec((3,), (2,) * 96))
    words = tokens.regroup((2**32,) * 3)
    assert words.regroup((2,) * 96).equal(tokens)
    assert words.regroup((2**62, 2**34)).regroup((2,) * 96).equal(tokens)


def test_regroup_keeps_lengths_and_same_sizes() -> None:
    tokens = random_tokens(TokenSpec((4,), (4,), ordered=True)).truncate(2)
    assert tokens.regroup((2, 2)).lengths.tolist() == [2, 2, 2]
    assert tokens.regroup((4,)) is tokens


def test_regroup_refuses_other_vocabularies() -> None:
    tokens = random_tokens(TokenSpec((4,), (1000,)))
    with pytest.raises(ValueError, match=r"1000 joint values.*1024"):
        tokens.regroup((2,) * 10)
    with pytest.raises(ValueError, match="not powers of two"):
        tokens.bits()
    large = random_tokens(TokenSpec((1,), (3, 2**40, 2**40)))
    with pytest.raises(ValueError, match="more than 2\\*\\*62 joint values"):
        large.regroup((2**40, 3, 2**40))
    with pytest.raises(ValueError, match="exceed 2\\*\\*62"):
        join_entries(large.indices, large.spec.codebook_sizes)


def test_bits_put_entry_zero_first() -> None:
    tokens = Tokens(torch.tensor([[[1, 6]]]), TokenSpec((1,), (4, 8)))
    assert tokens.bits().tolist() == [[[1, 0, 0, 1, 1]]]


@over("num_bits", [1, 7, 8, 9, 18, 31, 32, 36, 62, 63, 64, 128])
def test_packed_bits_take_the_declared_bytes(num_bits: int) -> None:
    tokens = random_tokens(TokenSpec((3, 5), (2,) * num_bits), seed=num_bits)
    packed = tokens.pack()
    assert packed.shape == (3, -(-15 * num_bits // 8))
    assert packed.dtype == torch.uint8
    assert Tokens.unpack(packed, tokens.spec).equal(tokens)
    if num_bits <= 62:
        assert torch.equal(tokens.regroup((2**num_bits,)).pack(), packed)
    if num_bits % 4 == 0:
        assert torch.equal(tokens.regroup((2 ** (num_bits // 4),) * 4).pack(), packed)


@st.composite
def tokens_of_any_spec(draw: Callable) -> Tokens:
    size = st.one_of(st.integers(2, 20), st.integers(2, 2**62), st.just(2**62))
    sizes = tuple(draw(st.lists(size, min_size=1, max_size=4)))
    shape = tuple(draw(st.lists(st.integers(1, 3), min_size=1, max_size=2)))
    spec = TokenSpec(shape, sizes)
    values = [
        [draw(st.sampled_from([0, k // 2, k - 1])) for k in sizes] for _ in range(spec.num_tokens)
    ]
    return Tokens(torch.tensor([values]), spec)


@given(tokens_of_any_spec())
@settings(max_examples=80, deadline=None, database=None)
def test_any_spec_packs_and_unpacks(tokens: Tokens) -> None:
    packed = tokens.validate().pack()
    spec = tokens.spec
    if spec.vocab_size <= 2**62:
        width = (spec.vocab_size - 1).bit_length()
    else:
        width = sum((size - 1).bit_length() for size in spec.codebook_sizes)
    assert packed.shape == (1, math.ceil(spec.num_tokens * width / 8))
    assert Tokens.unpack(packed, spec).equal(tokens)


def test_unpack_refuses() -> None:
    spec = TokenSpec((4,), (1000,))
    with pytest.raises(ValueError, match=r"expected \(B, 5\) uint8.*found \(1, 4\)"):
        Tokens.unpack(torch.zeros(1, 4, dtype=torch.uint8), spec)
    with pytest.raises(ValueError, match=r"found \(1, 5\) torch.int64"):
        Tokens.unpack(torch.zeros(1, 5, dtype=torch.int64), spec)
    with pytest.raises(ValueError, match="outside the 1000"):
        Tokens.unpack(torch.full((1, 5), 255, dtype=torch.uint8), spec)
    wide = TokenSpec((1,), (3, 2**62))
    with pytest.raises(ValueError, match="found 3, expected 0 to 2"):
        Tokens.unpack(torch.full((1, 8), 255, dtype=torch.uint8), wide)


def test_truncate_sets_lengths_and_zeroes_the_rest() -> None:
    tokens = Tokens(torch.full((2, 4, 1), 7), ORDERED, torch.tensor([4, 2]))
    tokens = Tokens(tokens.indices * tokens.valid[..., None], ORDERED, tokens.lengths).validate()
    shorter = tokens.truncate(3).validate()
    assert shorter.lengths.tolist() == [3, 2]
    assert shorter.indices[..., 0].tolist() == [[7, 7, 7, 0], [7, 7, 0, 0]]
    assert shorter.valid.tolist() == [[True, True, True, False], [True, True, False, False]]
    assert shorter.bits_per_image == pytest.approx(2.5 * math.log2(10))
    assert tokens.valid.sum().item() == 6
    assert random_tokens(BINARY).valid.all()
    assert random_tokens(BINARY).bits_per_image == 30


def test_truncate_refuses() -> None:
    with pytest.raises(ValueError, match="not ordered"):
        random_tokens(BINARY).truncate(2)
    for count in (0, 5):
        with pytest.raises(ValueError, match=f"expected 1 to 4, found {count}"):
            random_tokens(ORDERED).truncate(count)


def test_cat_joins_batches_and_lengths() -> None:
    full, short = random_tokens(ORDERED), random_tokens(ORDERED, seed=1).truncate(2)
    both = Tokens.cat([full, short])
    assert both.lengths.tolist() == [4, 4, 4, 2, 2, 2]
    assert both[3:].equal(short)
    assert Tokens.cat([full, full]).lengths is None
    assert Tokens.cat(list(both.split())).equal(both)


def test_cat_refuses() -> None:
    with pytest.raises(ValueError, match="at least one batch"):
        Tokens.cat([])
    with pytest.raises(SpecMismatch, match=r"the first batch reads 2x3 .*these tokens are 4 "):
        Tokens.cat([random_tokens(BINARY), random_tokens(ORDERED)])


@pytest.mark.parametrize(
    ("indices", "lengths", "message"),
    [
        (torch.zeros(2, 4, 1), None, "expected int64, found torch.float32"),
        (torch.zeros(2, 4, 1, dtype=torch.int32), None, "expected int64, found torch.int32"),
        (torch.zeros(2, 4, dtype=torch.int64), None, r"expected \(B, 4, 1\).*found \(2, 4\)"),
        (torch.zeros(2, 5, 1, dtype=torch.int64), None, r"found \(2, 5, 1\)"),
        (torch.zeros(2, 4, 1, dtype=torch.int64), torch.ones(3, dtype=torch.int64), r"\(2,\)"),
        (torch.zeros(2, 4, 1, dtype=torch.int64), torch.ones(2), "torch.float32"),
    ],
)
def test_tokens_refuse(indices: torch.Tensor, lengths: torch.Tensor | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Tokens(indices, ORDERED, lengths)


def test_lengths_need_an_ordered_spec() -> None:
    with pytest.raises(ValueError, match="only tokens of an ordered spec"):
        Tokens(torch.zeros(1, 6, 5, dtype=torch.int64), BINARY, torch.tensor([3]))


@pytest.mark.parametrize(
    ("values", "length", "message"),
    [
        ([0, 10, 0, 0], 4, r"indices\[0, 1, 0\]: found 10, expected 0 to 9"),
        ([0, 0, -1, 0], 4, "found -1"),
        ([0, 0, 0, 0], 5, "expected 1 to 4"),
        ([0, 0, 0, 0], 0, "expected 1 to 4"),
        ([1, 1, 1, 0], 2, "past the length must hold 0"),
    ],
)
def test_validate_finds_wrong_values(values: list[int], length: int, message: str) -> None:
    tokens = Tokens(torch.tensor(values)[None, :, None], ORDERED, torch.tensor([length]))
    with pytest.raises(ValueError, match=message):
        tokens.validate()


def test_require_names_both_specs() -> None:
    tokens = random_tokens(BINARY)
    assert tokens.require(TokenSpec((2, 3), (2,) * 5)) is tokens
    with pytest.raises(SpecMismatch, match=r"a reader reads 4 tokens of \(10\) ordered; .* 2x3"):
        tokens.require(ORDERED, reader="a reader")


def test_int_index_is_refused_with_the_slice_to_use() -> None:
    tokens = random_tokens(BINARY)
    with pytest.raises(TypeError, match=r"use a slice, tokens\[1:2\]"):
        tokens[1]
    assert len(tokens[1:2]) == 1
    assert torch.equal(tokens[torch.tensor([2, 0])].indices, tokens.indices[[2, 0]])
    assert len(tokens[[0, 0, 1]]) == 3


class Singles(Dataset):
    def __init__(self, tokens: Tokens) -> None:
        self.tokens = tokens

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> Tokens:
        return self.tokens[index : index + 1]


def test_cat_is_a_collate_function() -> None:
    tokens = random_tokens(ORDERED, 5).truncate(3)
    batches = list(DataLoader(Singles(tokens), batch_size=2, collate_fn=Tokens.cat))
    assert [len(batch) for batch in batches] == [2, 2, 1]
    assert Tokens.cat(batches).equal(tokens)


def test_pytree_maps_over_the_tensors() -> None:
    tokens = random_tokens(ORDERED).truncate(2)
    doubled = _pytree.tree_map(lambda t: torch.cat([t, t]), {"tokens": tokens})["tokens"]
    assert doubled.equal(Tokens.cat([tokens, tokens]))
    leaves, tree = _pytree.tree_flatten(random_tokens(BINARY))
    assert len([leaf for leaf in leaves if leaf is not None]) == 1
    assert _pytree.tree_unflatten(leaves, tree).spec == BINARY


def test_compiles_without_a_graph_break() -> None:
    @torch.compile(fullgraph=True, backend="eager")
    def flip(tokens: Tokens) -> Tokens:
        return Tokens(1 - tokens.indices, tokens.spec, tokens.lengths)

    tokens = random_tokens(BINARY)
    assert torch.equal(flip(tokens).indices, 1 - tokens.indices)
    assert flip(tokens).spec == BINARY


def test_moves_between_devices() -> None:
    moved = random_tokens(ORDERED).truncate(2).to("meta")
    assert moved.device.type == moved.lengths.device.type == moved.valid.device.type == "meta"
    assert random_tokens(BINARY).to("meta").lengths is None
    assert moved.regroup((5, 2)).pack().shape == (3, 2)


def test_equal_looks_at_everything() -> None:
    tokens = random_tokens(ORDERED)
    assert tokens.equal(random_tokens(ORDERED))
    assert not tokens.equal(random_tokens(ORDERED, seed=1))
    assert not tokens.equal(tokens.truncate(4))
    assert not tokens.truncate(2).equal(tokens)
    assert not tokens.equal(Tokens(tokens.indices, TokenSpec((4,), (10,))))


@pytest.mark.parametrize(
    "tokens",
    [
        random_tokens(BINARY),
        random_tokens(ORDERED).truncate(3),
        random_tokens(TokenSpec((4, 4), (8, 5, 5, 5))),
        random_tokens(TokenSpec((2,), (2**62, 2**62))),
    ],
    ids=lambda tokens: str(tokens.spec),
)
def test_save_and_load(tokens: Tokens, tmp_path: Path) -> None:
    path = tmp_path / "sub" / "tokens.safetensors"
    tokens.save(path)
    assert load_tokens(path).equal(tokens)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_load_refuses(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no token file or store here"):
        load_tokens(tmp_path / "nothing")
    path = tmp_path / "tokens.safetensors"
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="not one of tokens"):
        load_tokens(path)
    foreign = path.read_bytes()
    with pytest.raises(FileExistsError, match="is no token file written by tessella"):
        random_tokens(BINARY).save(path)
    assert path.read_bytes() == foreign
    path.unlink()
    for count in (1, 2):  # one of its own kind is replaced
        random_tokens(BINARY, count).save(path)
    assert len(load_tokens(path)) == 2
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="truncated or damaged"):
        load_tokens(path)
