"""Which way of computing softmax attention is taken where: rules from measurements, not guesses.

A rule names a way for some calls on some devices; the first that fits is taken. Those below hold
unless the environment variable TESSELLA_ATTENTION_RULES names a file of rules measured on the
machine itself, which come first:

    python benchmarks/attention.py --out rules.yaml
    TESSELLA_ATTENTION_RULES=rules.yaml tessella sample ...
"""

import importlib.util
import logging
import os
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch

from ..config import STRICT, load_config

Way = Literal["plain", "sdpa", "cudnn", "flash", "efficient", "xformers", "low_bit"]
"""`plain`: two matrix products around a softmax. `sdpa`: torch's scaled_dot_product_attention in
its own order of backends; `cudnn`, `flash`, `efficient`: that one first. `low_bit`: quantized."""

RULES_VARIABLE = "TESSELLA_ATTENTION_RULES"
"""Environment variable with the path of a file of measured rules."""

LENGTHS = (1, 129, 385, 769, 1537, 3073)
"""Sequences are told apart by the largest of these that they reach: around 64, 256, 576, 1,024,
2,304 and 4,096 tokens."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class AttentionRule:
    """One way for the calls that it names.

    Args:
        way: What to take.
        source: Where the figures come from.
        device: `cpu`, `cuda`, or a GPU by the name that torch gives it.
        capability: Compute capability of the GPU; None: any.
        tokens: First and last class of sequence lengths, of `LENGTHS`.
        head_dims: Least and most dimensions of a head.
        half: 16-bit inputs; None: either.
        training: Gradients are wanted; None: either.
    """

    __pydantic_config__ = STRICT
    way: Way
    source: str
    device: str
    capability: tuple[int, int] | None = None
    tokens: tuple[int, int] = (LENGTHS[0], LENGTHS[-1])
    head_dims: tuple[int, int] = (1, 256)
    half: bool | None = None
    training: bool | None = None

    def __post_init__(self) -> None:
        wrong = [least for least in self.tokens if least not in LENGTHS]
        if wrong:
            raise ValueError(f"tokens: expected two of {LENGTHS}, found {self.tokens}")


@dataclass(frozen=True, kw_only=True)
class RuleFile:
    """Content of a file of measured rules.

    Args:
        about: Device, versions and command.
        rules: First fit first.
    """

    __pydantic_config__ = STRICT
    about: str
    rules: tuple[AttentionRule, ...]


RULES = (
    AttentionRule(
        way="plain",
        device="cpu",
        tokens=(1, 1),
        source="benchmarks/attention.py on 2 EPYC cores: torch's fused attention is slow on short "
        "sequences, backward and in bf16 above all",
    ),
    AttentionRule(
        way="cudnn",
        device="cuda",
        capability=(9, 0),
        half=True,
        training=True,
        source="huggingface/transformers #48163: 1.7 to 2.3 times as fast as torch's first choice "
        "at training shapes; not measured by us",
    ),
    AttentionRule(
        way="cudnn",
        device="cuda",
        capability=(9, 0),
        half=True,
        head_dims=(65, 128),
        tokens=(385, 3073),
        source="arXiv:2407.08608 figure 5, H100: 497 TFLOP/s at 512 tokens, FlashAttention-2 309; "
        "not measured by us",
    ),
    AttentionRule(
        way="cudnn",
        device="cuda",
        capability=(9, 0),
        half=True,
        head_dims=(1, 64),
        tokens=(769, 3073),
        source="arXiv:2407.08608 figure 5, H100: 373 TFLOP/s at 1,024 tokens, FlashAttention-2 "
        "306; slower at 576 (sgl-project/sglang #30090); not measured by us",
    ),
)
"""No rule names `low_bit`: nobody has measured it here. xformers' kernels are those of torch or
slower."""


@cache
def measured_rules() -> tuple[AttentionRule, ...]:
    """The rules of the file that TESSELLA_ATTENTION_RULES names; read once.

    Raises:
        ConfigError: If there is no such file, or it holds anything else.
    """
    path = os.environ.get(RULES_VARIABLE)
    return load_config(RuleFile, path).rules if path else ()


def length_class(tokens: int) -> int:
    """The largest of `LENGTHS` that a sequence reaches."""
    reached = LENGTHS[0]
    for least in LENGTHS:
        if tokens >= least:
            reached = least
    return reached


@cache
def choose_way(
    device: torch.device,
    dtype: torch.dtype,
    tokens: int,
    head_dim: int,
    *,
    training: bool,
    lossy: bool = False,
) -> Way:
    """The way of the first rule that fits, `sdpa` if none does; logged once for each kind of call.

    Args:
        device: Of the tensors.
        dtype: Of the tensors.
        tokens: Class of the length of the sequence; see `length_class`.
        head_dim: Dimensions of a head.
        training: Gradients are wanted.
        lossy: `low_bit` may be taken; it never is in training.
    """
    name, capability = device.type, None
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        capability = torch.cuda.get_device_capability(device)
    for rule in (*measured_rules(), *RULES):
        fits = (
            rule.device in (name, device.type)
            and rule.capability in (None, capability)
            and rule.tokens[0] <= tokens <= rule.tokens[1]
            and rule.head_dims[0] <= head_dim <= rule.head_dims[1]
            and rule.half in (None, dtype.itemsize == 2)
            and rule.training in (None, training)
        )
        if not fits or (rule.way == "low_bit" and (training or not lossy)):
            continue
        if rule.way == "xformers" and importlib.util.find_spec("xformers") is None:
            continue
        way, source = rule.way, rule.source
        break
    else:
        way, source = "sdpa", "no rule"
    log.info(
        "attention over %d tokens or more, head dimension %d, %s on %s: %s (%s)",
        tokens,
        head_dim,
        str(dtype).removeprefix("torch."),
        name,
        way,
        source,
    )
    return way
