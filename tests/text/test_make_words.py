"""The script that made the vectors of words; it needs the extra `text` and MiniLM's weights."""

import importlib.util
import json
import tarfile
from pathlib import Path
from types import ModuleType

import pytest
import torch

from tessella.text.minilm import REQUIREMENT, installed
from tessella.text.words import FOLDER, load_words

pytestmark = pytest.mark.skipif(not installed(), reason=f"needs transformers and {REQUIREMENT}")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_words", FOLDER / "make_words.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_vectors_are_the_projected_states_of_the_network(script: ModuleType) -> None:
    """Fitted to 1,200 words, the map from MiniLM's states to the vectors gives those of 100 more.

    Mean and directions of the script are those of all 20,459 words, which take 40 seconds. A map
    of 384 states and a constant that holds for words outside of its fit is such a projection.
    """
    table = load_words()
    rows = torch.arange(0, 20_459, 16)[:1300]
    names = list(table.rows)
    raw = script.embed([names[row] for row in rows.tolist()], script.model_folder())
    raw = torch.cat([raw, torch.ones(len(raw), 1).double()], 1)
    vectors = table.vectors[rows].double()
    fit = torch.linalg.lstsq(raw[:1200], vectors[:1200], driver="gelsd").solution
    off = (raw[1200:] @ fit - vectors[1200:]).abs().amax(1)
    step = vectors[1200:].abs().amax(1) / 127
    # Half a step is rounding; 385 numbers fitted to 1,200 rounded words add up to 1.7 (found).
    assert (off / step).max() < 4


def test_rows_are_letters_then_entries_then_words_of_captions(
    script: ModuleType, tmp_path: Path
) -> None:
    vocabulary = ["[CLS]", "the", "##ing", "é", "cat", "the1", "a", "!", "##é"]
    with tarfile.open(tmp_path / "some.tar", "w") as tar:
        for name, value in {"0.json": {"caption": "Zoë's cat"}, "classes.json": {}}.items():
            (tmp_path / name).write_text(json.dumps(value))
            tar.add(tmp_path / name, name)
    captions = script.captions_of([tmp_path / "some.tar"])
    rows = script.choose_words(vocabulary, captions)
    assert rows[:72] == [m + c for m in ("", "##") for c in script.KNOWN]
    assert rows[72:] == ["the", "##ing", "cat", "the1", "zoes"]


def test_rounding_keeps_the_largest_component_at_127_steps(script: ModuleType) -> None:
    codes, scales = script.quantize(torch.tensor([[254.0, -127.0, 2.9], [0.127, 0.001, -0.0625]]))
    assert codes.tolist() == [[127, -64, 1], [127, 1, -62]]
    torch.testing.assert_close(scales, torch.tensor([2.0, 0.001]))
