"""Networks are counted before memory is taken, and filled from a file without initial weights."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tessella import building
from tessella.building import (
    MAX_TENSORS,
    Misfit,
    TooLarge,
    build_on_meta,
    check_size,
    derive,
    fill,
    memory_budget,
)
from tessella.checkpoints import CheckpointError, load_tokenizer, save_tokenizer
from tessella.config import build_config, read_yaml, to_dict
from tessella.generators.build import GeneratorFileConfig, TokensConfig, build_generator
from tessella.tests.cases import naming
from tessella.tests.contract.test_generator_contract import GENERATORS
from tessella.tests.contract.test_tokenizer_contract import TOKENIZERS
from tessella.tests.folders import assert_same, sign
from tessella.tokenizers.build import build_tokenizer, tokenizer_config


class Tied(nn.Module):
    """Two layers with one weight, and a table that no file holds."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(width, width), nn.Linear(width, width)
        self.two.weight = self.one.weight
        self.frozen = nn.Parameter(torch.randn(3), requires_grad=False)
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        derive(self, "table", partial(torch.arange, width), (width,))


def test_a_filled_network_equals_the_one_whose_weights_it_got() -> None:
    torch.manual_seed(0)
    whole = Tied()
    before = torch.get_rng_state()
    empty = build_on_meta(Tied)
    assert all(t.is_meta for t in [*empty.parameters(), *empty.buffers()])
    state = {name: t.clone() for name, t in whole.state_dict().items()}
    fill(empty, state)
    assert torch.equal(torch.get_rng_state(), before)
    assert_same(empty, whole)
    assert empty.two.weight is empty.one.weight
    state["one.bias"].zero_()
    assert_same(empty, whole)  # the weights are copies
    filled = build_on_meta(Tied)
    fill(filled, {n: t.half() if t.is_floating_point() else t for n, t in state.items()})
    assert filled.one.bias.dtype == torch.float32 and filled.count.dtype == torch.int64


def test_weights_that_do_not_fit_are_named() -> None:
    state = Tied().state_dict()
    with pytest.raises(Misfit, match=r"missing \['frozen'\], unexpected \['x'\], other shape none"):
        left = {n: t for n, t in state.items() if n != "frozen"}
        fill(build_on_meta(Tied), left | {"x": torch.ones(1)})
    with pytest.raises(Misfit, match=r"other shape \['count'\]"):
        fill(build_on_meta(Tied), state | {"count": torch.ones(1)})
    with pytest.raises(Misfit, match=r"two\.weight differs from one\.weight"):
        fill(build_on_meta(Tied), state | {"two.weight": torch.ones(4, 4)})


def test_the_budget_is_the_memory_of_this_machine() -> None:
    assert 2**28 < memory_budget() < 2**50
    build_on_meta(Tied, max_bytes=3 * 4 * 4 * 4 + 2 * 4 * 4 + 3 * 4 + 8 + 4 * 4)  # as registered
    with pytest.raises(TooLarge, match=r"more than 0\.0 GB; expected at most 0\.0 GB, the memory"):
        build_on_meta(Tied, max_bytes=100)
    with pytest.raises(TooLarge, match="the memory of this machine"):
        check_size(partial(Tied, 10**7))
    with pytest.raises(TooLarge, match="more elements than a number can count"):
        check_size(partial(Tied, 10**15))
    with pytest.raises(TooLarge, match=f"more than {MAX_TENSORS:,} tensors and modules"):
        check_size(lambda: nn.ModuleList(nn.Linear(1, 1) for _ in range(10**9)))


def test_counting_ends_with_the_building() -> None:
    with pytest.raises(TooLarge):
        build_on_meta(Tied, max_bytes=1)
    with pytest.raises(RuntimeError, match="other trouble"):
        build_on_meta(_trouble)
    Tied(64)
    nn.Sequential(*(nn.SiLU() for _ in range(MAX_TENSORS + 1)))


def _trouble() -> nn.Module:
    raise RuntimeError("other trouble")


def whole_numbers(data: Any, where: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Places of all whole numbers in nested plain values."""
    items = data.items() if isinstance(data, dict) else enumerate(data)
    for key, value in items:
        if isinstance(value, dict | list):
            yield from whole_numbers(value, (*where, key))
        elif isinstance(value, int) and not isinstance(value, bool):
            yield (*where, key)


def with_value(data: Any, where: tuple[Any, ...], value: int) -> Any:
    copy = dict(data) if isinstance(data, dict) else list(data)
    copy[where[0]] = with_value(copy[where[0]], where[1:], value) if len(where) > 1 else value
    return copy


def a_tokenizer(data: Any) -> nn.Module:
    return build_tokenizer(tokenizer_config(data, name="config"))


def a_generator(data: Any) -> nn.Module:
    config = build_config(GeneratorFileConfig, data, name="config")
    return build_generator(config.generator, config.tokens.spec())


def every_kind() -> Iterator[tuple[str, Callable[[Any], nn.Module], Any]]:
    """Name, builder and config as plain values of models of every kind."""
    for name in ("vq", "ema_vq", "fsq", "bernoulli", "taming"):
        yield name, a_tokenizer, to_dict(TOKENIZERS[name])
    for name, make in GENERATORS.items():
        tokens = TokensConfig(shape=(4, 4), codebook_sizes=(2,) * 8)
        config = GeneratorFileConfig(generator=make(num_classes=3), tokens=tokens)
        yield name, a_generator, to_dict(config)


def test_no_size_takes_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every number of every config, as large as nobody has memory for, is refused in a line.

    Or it costs no memory: the network has the tensors that it had, or a few more.
    """
    monkeypatch.setattr(building, "MAX_TENSORS", 300)
    for kind, build, data in every_kind():
        for where in whole_numbers(data):
            for value in (10**9, 10**18):
                with naming(f"{kind}: {where} = {value}"):
                    try:
                        build_on_meta(partial(build, with_value(data, where, value)))
                    except ValueError as error:
                        assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        (("autoencoder", "num_res_blocks"), 10**9, "more than 10,000 tensors and modules"),
        (("autoencoder", "latent_channels"), 10**9, "GB; expected at most"),
        (("quantizer", "dim"), 10**18, "more elements than a number can count"),
    ],
)
def test_a_model_folder_without_bounds_is_refused(
    tmp_path: Path, where: tuple[str, ...], value: int, message: str
) -> None:
    """The whole way: a folder whose config and card agree, and whose weights are small."""
    save_tokenizer(build_tokenizer(TOKENIZERS["taming"]), tmp_path / "model")
    config = with_value(read_yaml(tmp_path / "model" / "config.yaml"), where, value)
    (tmp_path / "model" / "config.yaml").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="changed or damaged"):
        load_tokenizer(tmp_path / "model")
    sign(tmp_path / "model")
    with pytest.raises(CheckpointError, match=rf"model/config\.yaml: .*{message}"):
        load_tokenizer(tmp_path / "model")
    with pytest.raises(TooLarge, match=message):  # as a recipe of a training
        a_tokenizer(config)


LOADED = """
import sys
import tessella
import tessella.sample.generate
before = set(sys.modules)
for name in ("maskbit-emoji-64", "ar-emoji-64", "bld-emoji-64", "bfn-emoji-64"):
    tessella.load_generator(name)
heavy = {"sympy", "torch._dynamo", "torch._refs"} & set(sys.modules) - before
assert not heavy, f"loading imports {heavy}"
"""


def test_the_first_load_imports_no_compiler() -> None:
    """Some operations on the meta device do, which takes seconds."""
    done = subprocess.run(
        [sys.executable, "-c", LOADED], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
