"""Tensors of impossible shapes are refused by every format, in one line."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from tessella.importers.generator_formats import translate_generator
from tessella.importers.tensors import LayoutError
from tessella.importers.vqgan import translate_tokenizer
from tessella.tests.cases import naming
from tessella.tests.importers import test_bigr as bigr
from tessella.tests.importers import test_binary_autoencoder as binary
from tessella.tests.importers import test_binary_latent_diffusion as bld
from tessella.tests.importers import test_import_checkpoint as files
from tessella.tests.importers import test_vqgan as vqgan

State = dict[str, Tensor]


def generators() -> Iterator[tuple[str, State]]:
    """Public generators, with the name of their format."""
    yield "maskbit", files.maskbit_state(256, 6)
    yield "bld", bld.published_diffusion(bld.diffusion(num_classes=5, shape=(16, 16)))
    yield "bigr", bigr.published(bigr.build())


def changed(state: State) -> Iterator[tuple[str, State]]:
    """The state with the first tensors and some others, each in turn empty or a single number."""
    for name, tensor in [*state.items()][:2] + [*state.items()][2::20]:
        for shape in ([0] * tensor.ndim, []):
            yield f"{name} {shape}", state | {name: torch.zeros(shape)}


def test_generators() -> None:
    for format_name, state in generators():
        for case, other in changed(state):
            with naming(f"{format_name}: {case}"):
                try:
                    translate_generator(other, format_name)
                except LayoutError as error:
                    assert "\n" not in str(error)


@pytest.mark.parametrize("case", ["maskbit_lfq", "taming", "bld-ae"])
def test_tokenizers(case: str) -> None:
    if case == "bld-ae":
        format_name, (model, state) = case, binary.example()
    else:
        format_name, (model, state) = vqgan.CASES[case][0], vqgan.example(case)
    for change, other in changed(state):
        with naming(change):
            try:
                translate_tokenizer(other, format_name, resolution=model.resolution)
            except LayoutError as error:
                assert "\n" not in str(error)
