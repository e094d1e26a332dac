"""The encoder `words`: how texts are split, the vectors of words, and the bytes of their files."""

import hashlib
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from tessella.building import build_on_meta, fill
from tessella.data.sources import open_source
from tessella.tests.cases import over
from tessella.text import words
from tessella.text.words import (
    FOLDER,
    VECTORS_FILE,
    WORDS_FILE,
    WordsConfig,
    WordsEncoder,
    WordVectors,
    load_words,
    split_words,
)


@pytest.fixture(scope="module")
def table() -> WordVectors:
    return load_words()


@pytest.fixture(scope="module")
def encoder() -> WordsEncoder:
    return WordsEncoder(WordsConfig())


@over(
    ("text", "expected"),
    [
        ("Red  APPLE", "red apple"),
        ("flag of Côte d\u2019Ivoire", "flag of cote divoire"),
        ("don't, 'won't' & Q&A", "dont wont and q and a"),
        ("up-to-date (3.5 cm)", "up to date 3 5 cm"),
        ("Ærøskøbing Straße Łódź", "aeroskobing strasse lodz"),
        ("½ x² ﬁne", "1 2 x2 fine"),
        ("cat😂cat", "cat face with tears of joy cat"),
        ("👍🏽 👩‍🚒", "thumbs up sign woman fire engine"),
        ("❤️ 1️⃣ ↔️", "heavy black heart 1 left right arrow"),
        ("🇬🇷🇺🇸", "flag gr flag us"),
        ("red\x00green\x1b\n\u2028blue\ud800\u200bend", "red green blue end"),
        ("soft\u00adware \u202ereversed\u202c", "software reversed"),
        ("привет, hello日本x", "привет hello 日本 x"),
        ("हिन्दी 한국", "हिन्दी 한국"),
        ("", ""),
        (" \t\n\u3000", ""),
        ("?!... --- $", ""),
    ],
)
def test_texts_are_split(text: str, expected: str) -> None:
    found = [w.encode("utf-8", "surrogatepass").decode() for w in split_words(text)]
    assert " ".join(words.unicodedata.normalize("NFC", w) for w in found) == expected


@over(
    ("word", "expected"),
    [
        ("apple", "apple"),
        ("liechtenstein", "liechtenstein"),
        ("unhappyish", "unhappy ##ish"),
        ("zzzq", "z ##zz ##q"),
        ("7x", "7 ##x"),
        ("привет", ""),
        ("", ""),
    ],
)
def test_unknown_words_are_their_longest_pieces(
    table: WordVectors, word: str, expected: str
) -> None:
    pieces = table.pieces(word)
    assert " ".join(pieces) == expected
    assert all(piece in table.rows for piece in pieces)
    if expected:
        assert "".join(piece.removeprefix("##") for piece in pieces) == word


def test_every_word_of_letters_and_digits_has_pieces(table: WordVectors) -> None:
    assert all(mark + letter in table.rows for letter in words.KNOWN for mark in ("", "##"))


def test_every_word_of_a_caption_of_the_bundled_emoji_is_one_row(table: WordVectors) -> None:
    seen: set[str] = set()
    for split in ("train", "val"):
        source = open_source("bundled:emoji", split)
        for number in range(len(source)):
            seen.update(split_words(source.read(number).caption or ""))
    assert len(seen) > 1000
    assert not [word for word in seen if table.pieces(word) != [word]]


@over(
    ("one", "other", "expected"),
    [
        ("cat", "kitten", 0.763),
        ("cat", "car", 0.333),
        ("red", "blue", 0.751),
        ("apple", "truck", 0.141),
        ("smiling", "grinning", 0.779),
        ("happy", "sad", 0.493),
        ("greece", "athens", 0.767),
    ],
)
def test_known_cosines(table: WordVectors, one: str, other: str, expected: float) -> None:
    """The figures of bundled/words/README.md."""
    pair = table.vectors[[table.rows[one], table.rows[other]]]
    assert F.cosine_similarity(pair[0], pair[1], dim=0).item() == pytest.approx(expected, abs=6e-4)


def test_vectors_are_codes_times_scales_with_mean_square_1(table: WordVectors) -> None:
    assert table.vectors.shape == (20_459, 96)
    assert table.vectors.square().mean().item() == pytest.approx(1, abs=1e-6)
    stored = load_file(FOLDER / VECTORS_FILE)
    assert stored["codes"].dtype == torch.int8
    plain = stored["codes"].float() * stored["scales"][:, None]
    ratio = table.vectors.norm() / plain.norm()
    torch.testing.assert_close(table.vectors, plain * ratio)


def test_the_files_are_those_of_the_script_to_the_byte(table: WordVectors) -> None:
    """Hashes of what bundled/words/make_words.py writes, as its README says."""
    found = {
        name: hashlib.sha256((FOLDER / name).read_bytes()).hexdigest()
        for name in (WORDS_FILE, VECTORS_FILE)
    }
    assert found[WORDS_FILE].startswith("9eda37676130792c")
    assert found[VECTORS_FILE].startswith("775a8a448dd829c1")
    assert table.fingerprint == found[VECTORS_FILE]
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert all(digest[:16] in readme for digest in found.values())
    assert sum((FOLDER / name).stat().st_size for name in found) <= 3_000_000


def test_changed_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "FOLDER", tmp_path)
    for name in (WORDS_FILE, VECTORS_FILE):
        shutil.copy(FOLDER / name, tmp_path)
    text = (tmp_path / WORDS_FILE).read_text()
    (tmp_path / WORDS_FILE).write_text(text.replace("kitten", "kittem"))
    with pytest.raises(ValueError, match=r"words\.txt: sha256 .* is not that of the words of"):
        load_words.__wrapped__()
    (tmp_path / WORDS_FILE).write_text(text)
    save_file(load_file(FOLDER / VECTORS_FILE), tmp_path / VECTORS_FILE)
    with pytest.raises(ValueError, match=r"words\.txt: sha256 .* is not that of the words of"):
        load_words.__wrapped__()


def test_states_are_the_vectors_of_the_words(encoder: WordsEncoder, table: WordVectors) -> None:
    states, valid = encoder(["red apple", "", "a big green frog", "日本 cat"])
    assert valid.tolist() == [
        [True, True, False, False],
        [False] * 4,
        [True] * 4,
        [True, False, False, False],
    ]
    for word, state in zip(["a", "big", "green", "frog"], states[2], strict=True):
        assert torch.equal(state, table.vectors[table.rows[word]])
    assert torch.equal(states[3, 0], table.vectors[table.rows["cat"]])
    assert not states[~valid].any()
    assert torch.equal(encoder(["red apple"]).states[0], states[0, :2])


def test_no_text_has_no_token(encoder: WordsEncoder) -> None:
    for texts, shape in ([], (0, 0)), ([""], (1, 0)), ([" \n", "\x00"], (2, 0)):
        states, valid = encoder(texts)
        assert (states.shape, valid.shape) == ((*shape, 96), shape)
        assert (states.dtype, valid.dtype) == (torch.float32, torch.bool)
        encoder.check(texts)


def test_nothing_is_trained_or_saved_and_the_vectors_follow(encoder: WordsEncoder) -> None:
    assert not list(encoder.parameters())
    assert not encoder.state_dict()
    assert encoder.fingerprint == load_words().fingerprint
    filled = build_on_meta(lambda: WordsEncoder(WordsConfig()))
    assert filled.vectors.is_meta
    fill(filled, {})
    assert torch.equal(filled.vectors, encoder.vectors)
    assert filled.double()(["cat"]).states.dtype == torch.float64
    assert encoder.vectors.dtype == load_words().vectors.dtype == torch.float32


def test_long_texts_are_cut_in_training_and_refused_as_prompts(encoder: WordsEncoder) -> None:
    text = " ".join(["red", "apple"] * 20)
    states, valid = encoder([text])
    assert valid.shape == (1, 32)
    assert torch.equal(states[0, :2], encoder(["red apple"]).states[0])
    encoder.check([" ".join(["red"] * 32)])
    for long, count in (
        (text, "40"),
        ("a" * 10_000, r"5,\d{3}"),
        ("\n".join(["x"] * 5_000), "5,000"),
    ):
        with pytest.raises(
            ValueError, match=f"at most 32 words and pieces, found {count}$"
        ) as found:
            encoder.check(["cat", long])
        assert len(str(found.value)) < 200
        assert "\n" not in str(found.value)


@over("text", ["привет", "日本語", "हिन्दी", "\U0010fffd", "?!", "🏽"])
def test_texts_without_a_known_word_are_refused(encoder: WordsEncoder, text: str) -> None:
    with pytest.raises(
        ValueError, match="expected at least one word that the text encoder 'words'"
    ):
        encoder.check(["cat", text])
    assert encoder([text]).states.shape == (1, 0, 96)


def test_unknown_words_are_told(encoder: WordsEncoder) -> None:
    assert encoder.unknown("привет cat 日本 zzzq привет ό 😂 ?") == ["привет", "日本", "ό"]
    encoder.check(["привет cat"])


def test_messages_are_printable(encoder: WordsEncoder) -> None:
    with pytest.raises(ValueError, match="found none") as found:
        encoder.check(["\x1b[\u202e日本\x07\n語"])
    assert "\\u001b[\\u202e日本\\u0007 語" in str(found.value)


def test_what_is_no_list_of_strings_is_refused(encoder: WordsEncoder) -> None:
    for use in encoder.check, encoder:
        with pytest.raises(ValueError, match="text 1: expected a string, found int"):
            use(["cat", 5])
        with pytest.raises(ValueError, match="text 0: expected a string, found bytes"):
            use([b"cat"])
        with pytest.raises(ValueError, match="expected a list of texts, found the text 'cat'"):
            use("cat")
