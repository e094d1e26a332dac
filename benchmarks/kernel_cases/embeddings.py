"""Benchmark cases: the fused embeddings against the operations that they replace."""

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tessella.benchmarks.kernel_cases.case import Case, both_ways
from tessella.kernels.bit_embedding.op import bit_embedding
from tessella.kernels.codebook_sum.op import codebook_embedding_sum

MAX_TABLE_BYTES = 8 * 2**30
"""Largest `nn.Embedding` of 2^K rows that is compared."""


def unpack_and_linear(given: dict[str, Any]) -> Tensor:
    """Bits by shifts, signs, mask, linear layer, class row, positions: torch operations."""
    codes, weight = given["codes"], given["weight"]
    shifts = torch.arange(given["bits_per_group"], device=codes.device)
    signs = ((codes[..., None] >> shifts) & 1).to(weight.dtype) * 2 - 1
    signs = signs.masked_fill(given["mask"][..., None], 0).flatten(2)
    x = F.linear(signs, weight.t(), given["bias"])
    row = F.embedding(given["labels"], given["class_table"])[:, None]
    summed: Tensor = torch.cat([x, row], 1) + given["position"]
    return summed


def index_table(given: dict[str, Any], table: Tensor) -> Tensor:
    """One table of 2^K rows in place of the bits; the mask is left out."""
    m = given["bits_per_group"]
    joint = sum(given["codes"][..., g] << g * m for g in range(given["codes"].shape[-1]))
    x = F.embedding(joint, table)
    row = F.embedding(given["labels"], given["class_table"])[:, None]
    summed: Tensor = torch.cat([x, row], 1) + given["position"]
    return summed


def summed_embeddings(given: dict[str, Any]) -> Tensor:
    """One gather per codebook, their sum, class row, positions: torch operations."""
    codes, tables = given["codes"], given["tables"]
    x = F.embedding(codes[..., 0], tables[0])
    for g in range(1, codes.shape[-1]):
        x = x + F.embedding(codes[..., g], tables[g])
    row = F.embedding(given["labels"], given["class_table"])[:, None]
    summed: Tensor = torch.cat([x, row], 1) + given["position"]
    return summed


def without(given: dict[str, Any], *names: str) -> dict[str, Any]:
    """Input set without some entries."""
    return {name: value for name, value in given.items() if name not in names}


def common_inputs(
    rng: torch.Generator, batch: int, tokens: int, groups: int, width: int, dtype: torch.dtype
) -> dict[str, Any]:
    """Inputs of all embeddings: the added terms, a mask, and the output gradient dL/dy."""
    device = rng.device

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=rng, device=device).to(dtype)

    return {
        "position": normal(tokens + 1, width),
        "class_table": normal(1001, width),
        "labels": torch.randint(1001, (batch,), generator=rng, device=device),
        "mask": torch.rand(batch, tokens, groups, generator=rng, device=device) < 0.5,
        "grad": normal(batch, tokens + 1, width),
    }


def bit_embedding_cases(device: torch.device) -> Iterator[Case]:
    """`bit_embedding` against unpack + `F.linear` and, where it fits, a table of 2^K rows."""
    shapes = [(64, 256, 14, 1024), (256, 256, 18, 1024)]
    types = [torch.bfloat16, torch.float32]
    if device.type != "cuda":
        shapes, types = [(8, 64, 14, 256), (4, 256, 10, 512)], [torch.float32]
    for (batch, tokens, bits, width), dtype in itertools.product(shapes, types):

        def make(
            seed: int,
            batch: int = batch,
            tokens: int = tokens,
            bits: int = bits,
            width: int = width,
            dtype: torch.dtype = dtype,
        ) -> dict[str, Any]:
            rng = torch.Generator(device).manual_seed(seed)
            given = common_inputs(rng, batch, tokens, 2, width, dtype)
            codes = (batch, tokens, 2)
            given["codes"] = torch.randint(2 ** (bits // 2), codes, generator=rng, device=device)
            given["weight"] = torch.randn(bits, width, generator=rng, device=device).to(dtype)
            given["bias"] = torch.randn(width, generator=rng, device=device).to(dtype)
            given["bits_per_group"] = bits // 2
            return given

        size = torch.finfo(dtype).bits // 8
        rows = batch * (tokens + 1)
        codes_bytes = batch * tokens * 2 * (8 + 1)
        num_bytes = codes_bytes + rows * width * size + (bits + tokens + 2) * width * size
        shape = f"B{batch} N{tokens} K{bits} D{width}"
        fused = {"kernel": lambda given: bit_embedding(**without(given, "grad"))}
        plain = {"unpack + linear": unpack_and_linear}
        tables: dict[str, Callable[[Any], Any]] = {}
        if 2**bits * width * size * (2 if device.type == "cuda" else 64) <= MAX_TABLE_BYTES:
            table = torch.randn(2**bits, width, device=device, dtype=dtype)
            tables["2^K rows"] = partial(index_table, table=table)
        yield Case("bit_embedding", shape, dtype, num_bytes, fused | plain | tables, make)
        leaves = ("weight", "bias", "position", "class_table")
        functions = {
            name: both_ways(function, leaves) for name, function in (fused | plain).items()
        }
        num_bytes += codes_bytes + rows * width * size + 2 * (bits + tokens + 2) * width * 4
        yield Case("bit_embedding fwd+bwd", shape, dtype, num_bytes, functions, make)


def codebook_sum_cases(device: torch.device) -> Iterator[Case]:
    """`codebook_embedding_sum` against one gather per codebook."""
    shapes = [(64, 256, 8, 4096, 1024), (64, 256, 2, 512, 1024)]
    types = [torch.bfloat16, torch.float32]
    if device.type != "cuda":
        shapes, types = [(8, 64, 8, 256, 256)], [torch.float32]
    for (batch, tokens, groups, rows, width), dtype in itertools.product(shapes, types):

        def make(
            seed: int,
            batch: int = batch,
            tokens: int = tokens,
            groups: int = groups,
            rows: int = rows,
            width: int = width,
            dtype: torch.dtype = dtype,
        ) -> dict[str, Any]:
            rng = torch.Generator(device).manual_seed(seed)
            given = common_inputs(rng, batch, tokens, groups, width, dtype)
            shape = (batch, tokens, groups)
            given["codes"] = torch.randint(rows, shape, generator=rng, device=device)
            tables = torch.randn(groups, rows, width, generator=rng, device=device)
            return without(given, "mask") | {"tables": tables.to(dtype)}

        size = torch.finfo(dtype).bits // 8
        places = batch * tokens
        # A row that many tokens read comes out of the cache: at most every row once.
        gathered = min(places, rows) * groups * width * size
        written = batch * (tokens + 1) * width * size
        num_bytes = places * groups * 8 + gathered + written
        shape = f"B{batch} N{tokens} G{groups} V{rows} D{width}"
        functions: dict[str, Callable[[Any], Any]] = {
            "kernel": lambda given: codebook_embedding_sum(**without(given, "grad")),
            "sum of gathers": summed_embeddings,
        }
        yield Case("codebook_sum", shape, dtype, num_bytes, functions, make)
        leaves = ("tables", "position", "class_table")
        trained = {name: both_ways(function, leaves) for name, function in functions.items()}
        num_bytes += places * groups * 8 + written + groups * rows * width * 4
        yield Case("codebook_sum fwd+bwd", shape, dtype, num_bytes, trained, make)


def overhead_cases(device: torch.device) -> Iterator[Case]:
    """Fixed cost of a call on tiny inputs: checks, dispatch and one launch."""

    def make(seed: int) -> tuple[Tensor, Tensor]:
        rng = torch.Generator(device).manual_seed(seed)
        codes = torch.randint(8, (1, 1, 1), generator=rng, device=device)
        return codes, torch.randn(3, 16, generator=rng, device=device)

    functions = {
        "kernel": lambda given: bit_embedding(*given, bits_per_group=3, validate=False),
        "one addition": lambda given: given[1] + given[1],
    }
    yield Case(
        "bit_embedding overhead", "B1 N1 K3 D16", torch.float32, 0, functions, make, overhead=True
    )
