"""Construction of quantizers from their configs; the list of quantizers is closed."""

from typing import Annotated, assert_never

from pydantic import Field

from ..base import Quantizer
from .bernoulli import Bernoulli, BernoulliConfig
from .bsq import BSQ, BSQConfig
from .ema_vq import EMAVQ, EMAVQConfig
from .fsq import FSQ, FSQConfig
from .lfq import LFQ, LFQConfig
from .vq import VQ, VQConfig

QuantizerConfig = Annotated[
    VQConfig | EMAVQConfig | LFQConfig | BSQConfig | FSQConfig | BernoulliConfig,
    Field(discriminator="type"),
]


def build_quantizer(config: QuantizerConfig) -> Quantizer:
    """Build the quantizer that a config describes."""
    match config:
        case VQConfig():
            return VQ(config)
        case EMAVQConfig():
            return EMAVQ(config)
        case LFQConfig():
            return LFQ(config)
        case BSQConfig():
            return BSQ(config)
        case FSQConfig():
            return FSQ(config)
        case BernoulliConfig():
            return Bernoulli(config)
        case _:
            assert_never(config)
