"""Choice of the attention implementation by device, length and head size, by measured rules.

A rule names a kernel for some calls on some devices; the first that fits is taken. Those below hold
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

from ...config import STRICT, ConfigError, load_config

AttentionKernel = Literal["plain", "sdpa", "cudnn", "flash", "efficient", "xformers", "low_bit"]
"""`plain`: two matrix products around a softmax. `sdpa`: torch's scaled_dot_product_attention in
its own order of backends; `cudnn`, `flash`, `efficient`: that one first. `low_bit`: quantized."""

RULES_VARIABLE = "TESSELLA_ATTENTION_RULES"
"""Environment variable with the path of a file of measured rules."""

LENGTHS = (1, 129, 385, 769, 1537, 3073)
"""Sequences are told apart by the largest of these that they reach: around 64, 256, 576, 1,024,
2,304 and 4,096 tokens."""

HEADS = (1, 17, 33, 65, 129)
"""Heads are told apart by the largest of these that their dimensions reach."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class AttentionRule:
    """One kernel for the calls that the rule describes.

    Args:
        way: Kernel to take; the key in rule files.
        source: Origin of the measurement.
        device: Device: `cpu`, `cuda`, or a GPU by the name that torch gives it.
        capability: Compute capability of the GPU; None: any.
        tokens: First and last class of sequence lengths, two of `LENGTHS`.
        head_dims: First and last class of head dimensions, two of `HEADS`.
        half: Whether inputs have 16 bits; None: either.
        training: Whether gradients are wanted; None: either.
    """

    __pydantic_config__ = STRICT
    way: AttentionKernel
    source: str
    device: str
    capability: tuple[int, int] | None = None
    tokens: tuple[int, int] = (LENGTHS[0], LENGTHS[-1])
    head_dims: tuple[int, int] = (HEADS[0], HEADS[-1])
    half: bool | None = None
    training: bool | None = None

    def __post_init__(self) -> None:
        classes = {"tokens": (self.tokens, LENGTHS), "head_dims": (self.head_dims, HEADS)}
        for name, ((first, last), known) in classes.items():
            if first not in known or last not in known or first > last:
                raise ValueError(f"{name}: expected two of {known} in order, found {(first, last)}")


@dataclass(frozen=True, kw_only=True)
class RuleFile:
    """Content of a file of measured rules.

    Args:
        about: Device, versions and command of the measurement.
        rules: Rules in order of precedence.
    """

    __pydantic_config__ = STRICT
    about: str
    rules: tuple[AttentionRule, ...]


RULES = (
    AttentionRule(
        way="plain",
        device="cpu",
        tokens=(1, 1),
        half=True,
        training=True,
        source="benchmarks/attention.py, torch 2.13, 2 EPYC cores with AVX512-BF16: 8.4 ms forward "
        "and backward of (64, 65, 6, 32) in bf16, torch's own 45.7; in float32 22.9 and 17.0",
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
        head_dims=(65, 65),
        tokens=(385, 3073),
        source="arXiv:2407.08608 figure 5, H100: 497 TFLOP/s at 512 tokens, FlashAttention-2 309; "
        "not measured by us",
    ),
    AttentionRule(
        way="cudnn",
        device="cuda",
        capability=(9, 0),
        half=True,
        head_dims=(1, 33),
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
    if not path:
        return ()
    try:
        return load_config(RuleFile, path).rules
    except ConfigError as error:
        raise ConfigError(f"{RULES_VARIABLE}: {error}") from None


def class_of(number: int, classes: tuple[int, ...]) -> int:
    """The largest of `LENGTHS` or `HEADS` that a number reaches."""
    reached = classes[0]
    for least in classes:
        if number >= least:
            reached = least
    return reached


@cache
def choose_kernel(
    device: torch.device,
    dtype: torch.dtype,
    tokens: int,
    head_dim: int,
    *,
    training: bool,
    lossy: bool = False,
) -> AttentionKernel:
    """The kernel of the first rule that fits, `sdpa` if none does; logged once per kind of call.

    Args:
        device: Device of the tensors.
        dtype: Type of the tensors.
        tokens: Class of the sequence length, one of `LENGTHS`.
        head_dim: Class of the head dimension, one of `HEADS`.
        training: Whether gradients are wanted.
        lossy: Whether `low_bit` may be taken and can run; it is never taken in training.
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
        kernel, source = rule.way, rule.source
        break
    else:
        kernel, source = "sdpa", "no rule"
    log.info(
        "attention over %d tokens or more, head dimension %d or more, %s on %s: %s (%s)",
        tokens,
        head_dim,
        str(dtype).removeprefix("torch."),
        name,
        kernel,
        source,
    )
    return kernel
