"""The comparison with public code: imports from a folder that leave nothing, and honest rows."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from tessella.benchmarks.parity_cases.comparison import (
    compare,
    discriminator_row,
    importing_from,
    load,
    randomize,
)

PUBLIC = """
from lpips import LPIPS
from torchvision.models import vgg16
import torchvision.transforms as transforms
from torch import nn

class Public(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.perceptual = None if LPIPS is None else vgg16

    def forward(self, images):
        return self.conv(images)
"""


@pytest.mark.skipif(
    importlib.util.find_spec("torchvision") is not None, reason="torchvision is installed"
)
def test_a_checkout_is_imported_without_what_it_does_not_use_and_forgotten(tmp_path: Path) -> None:
    names, path = set(sys.modules), list(sys.path)
    for number in (1, 2):  # two checkouts with modules of one name
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "models.py").write_text(PUBLIC + f"NUMBER = {number}\n")
        with importing_from(tmp_path / str(number)):
            module = load("models")
            assert number == module.NUMBER
            assert module.Public()(torch.zeros(1, 3, 8, 8)).shape == (1, 4, 8, 8)
            with pytest.raises(ModuleNotFoundError):
                load("package_that_nobody_named")
        assert set(sys.modules) <= names
        assert sys.path == path


def test_rows_tell_differences() -> None:
    theirs = torch.tensor([[1.0, -4.0]])
    row = compare("toy", "values", theirs, theirs + torch.tensor([[0.0, 0.5]]))
    assert (row.values, row.difference, row.magnitude) == (2, 0.5, 4.0)
    with pytest.raises(ValueError, match=r"values: shapes \(1, 2\) and \(2,\) differ"):
        compare("toy", "values", theirs, theirs[0])
    theirs, ours = (nn.Sequential(nn.Conv2d(3, 1, 1)) for _ in range(2))
    assert discriminator_row("toy", randomize(theirs), ours, False).difference == 0
    assert discriminator_row("toy", theirs, ours, True).difference > 0.01
