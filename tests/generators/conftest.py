"""Tiny masked generators and random tokens for them."""

from typing import Any

import pytest
import torch

from tessella.generators.masked import MaskBitConfig, MaskedGenerator, MaskGITConfig
from tessella.generators.transformer import TransformerConfig
from tessella.tokenizers.tokens import Tokens, TokenSpec


class Factory:
    """Makes tiny generators and tokens; the tests may not import each other."""

    trunk = TransformerConfig(width=16, num_layers=1, num_heads=2, dropout=0.0)

    def __call__(
        self,
        kind: str,
        spec: TokenSpec,
        *,
        num_classes: int | None = 3,
        seed: int = 0,
        **fields: Any,
    ) -> MaskedGenerator:
        """A freshly initialised generator in training mode, the same for a seed."""
        config = {"maskbit": MaskBitConfig, "maskgit": MaskGITConfig}[kind]
        fields = {"transformer": self.trunk, "num_classes": num_classes} | fields
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return MaskedGenerator(config(**fields), spec)

    def randomised(self, *args: Any, **fields: Any) -> MaskedGenerator:
        """One whose every parameter is far from its initial value, in eval mode."""
        generator = self(*args, **fields)
        rng = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in generator.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=rng) * 0.4 + 0.05)
        return generator.eval()

    def tokens(self, spec: TokenSpec, batch: int = 3, *, seed: int = 2) -> Tokens:
        """Random tokens; of an ordered spec, of random lengths."""
        rng = torch.Generator().manual_seed(seed)
        columns = [
            torch.randint(size, (batch, spec.num_tokens), generator=rng)
            for size in spec.codebook_sizes
        ]
        tokens = Tokens(torch.stack(columns, -1), spec)
        if not spec.ordered:
            return tokens
        lengths = torch.randint(1, spec.num_tokens + 1, (batch,), generator=rng)
        valid = torch.arange(spec.num_tokens) < lengths[:, None]
        return Tokens(tokens.indices * valid[..., None], spec, lengths)


@pytest.fixture(scope="session")
def make() -> Factory:
    """Makes generators: `make(kind, spec)`, `make.randomised(...)`, `make.tokens(spec)`."""
    return Factory()
