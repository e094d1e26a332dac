"""Initial weights of the generators that are set by hand: those of GPT-2 and BERT."""

import torch
from torch import nn

INITIAL_STD = 0.02
"""Standard deviation of initial weights."""


@torch.no_grad()
def initialize(module: nn.Module) -> None:
    """Draw the weights of a linear layer or an embedding from a normal distribution; biases are 0.

    The mean is 0, the standard deviation 0.02. MaskBit's published code cuts at 100 standard
    deviations, which is no cut. Other modules stay as they are; for `nn.Module.apply`.
    """
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=INITIAL_STD)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
