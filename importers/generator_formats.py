"""The generator formats that can be imported, and the one function that translates each of them.

`maskbit` is documented in `maskbit.py`, `bld` in `binary_latent_diffusion.py` and `bigr` in
`bigr.py`. No file stores the number of attention heads or the shape of the token grid: the
published values are assumed for published sizes, and any other size is an error that asks for a
config or a tokenizer.
"""

from collections.abc import Callable, Mapping

from torch import Tensor

from ..generators.build import GeneratorConfig
from ..tokens.tokens import TokenSpec
from .bigr import translate_bigr
from .binary_latent_diffusion import translate_bld
from .maskbit import translate_maskbit
from .tensors import LayoutError
from .translation import GeneratorTranslation

_Translate = Callable[
    [Mapping[str, Tensor], GeneratorConfig | None, TokenSpec | None], GeneratorTranslation
]

FORMATS: dict[str, _Translate] = {
    "maskbit": translate_maskbit,
    "bld": translate_bld,
    "bigr": translate_bigr,
}
"""Translation functions of the generator formats by format name."""


def translate_generator(
    stored: Mapping[str, Tensor],
    format_name: str,
    *,
    config: GeneratorConfig | None = None,
    spec: TokenSpec | None = None,
) -> GeneratorTranslation:
    """Translate a public state dict to Tessella's names and config; nothing is ignored silently.

    Args:
        stored: Tensors of the file by their public names.
        format_name: A key of `FORMATS`.
        config: Config of the generator to build. None: inferred from the tensor shapes, with the
            published number of heads and the published loss. A `num_classes` that the config
            leaves open is read off the shapes.
        spec: Token spec of the tokenizer. None: a square grid (for `maskbit` and `bld` one of
            published size) of bits, or of `maskbit` indices where a position has one codebook that
            is not read as bits.

    Raises:
        LayoutError: If keys are missing, unexpected or of another shape (all are listed), if the
            file contradicts `config`, or if a size cannot be inferred.
    """
    try:
        return FORMATS[format_name](stored, config, spec)
    except LayoutError as error:
        raise LayoutError(f"does not fit the format {format_name}: {error}") from None
