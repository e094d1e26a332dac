"""The command line as a person uses it: what it makes, what it says, what it refuses."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from tessella.checkpoints import load_tokenizer, save_tokenizer
from tessella.cli.main import main
from tessella.data.images import to_tensor
from tessella.metrics.token_statistics import readable_groups
from tessella.tokenizers.build import build_tokenizer
from tessella.tokenizers.networks.conv_autoencoder import ConvAutoencoderConfig
from tessella.tokenizers.quantizers.lfq import LFQConfig
from tessella.tokenizers.vqgan import VQGANConfig
from tessella.tokens.store import TokenStore
from tessella.tokens.tokens import TokenSpec


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny bit tokenizer: 32x32 pixels, 8x8 tokens of 5 bits."""
    return make_model(tmp_path_factory.mktemp("model") / "tokenizer", seed=0)


def make_model(folder: Path, *, seed: int) -> Path:
    torch.manual_seed(seed)
    networks = ConvAutoencoderConfig(
        base_channels=8, channel_multipliers=(1, 1, 2), num_res_blocks=1, norm_groups=4
    )
    config = VQGANConfig(resolution=32, autoencoder=networks, quantizer=LFQConfig(bits=5))
    save_tokenizer(build_tokenizer(config), folder)
    return folder


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Six pictures of different sizes and modes, and one cut short."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i, mode in enumerate(("RGB", "RGBA", "L", "P", "CMYK", "RGB")):
        picture = Image.new("RGB", (30 + 5 * i, 40), (40 * i, 200 - 30 * i, 90)).convert(mode)
        picture.save(folder / f"{i}.{'tif' if mode == 'CMYK' else 'png'}")
    whole = (folder / "5.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    return folder


def run(*words: object, code: int = 0) -> Result:
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == code, result.output
    return result


def test_encode_then_decode_gives_the_pictures_that_the_api_gives(
    model: Path, pictures: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    result = run("encode", "--tokenizer", model, pictures, "--out", store, "--json")
    made = json.loads(result.stdout)
    assert made["images"] == 6 and made["bits_per_image"] == 64 * 5
    assert list(made["broken"]) == ["cut.png"]
    assert "cut.png" in result.stderr
    run("decode", "--tokenizer", model, store, "--out", tmp_path / "decoded")
    lines = (tmp_path / "decoded" / "images.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    tokenizer = load_tokenizer(model)
    expected = tokenizer.decode(TokenStore(store).tokens())
    for record, image in zip(records, expected, strict=True):
        decoded = to_tensor(Image.open(tmp_path / "decoded" / record["file"]))
        assert (decoded - image).abs().max() <= 1 / 255 + 1e-6
    assert [record["file"] for record in records] == [f"{i}.png" for i in range(6)]
    assert (tmp_path / "decoded" / "grid.png").is_file()


def test_encode_takes_single_files_and_mirrors(model: Path, pictures: Path, tmp_path: Path) -> None:
    files = [pictures / "0.png", pictures / "3.png"]
    run("encode", "--tokenizer", model, *files, "--out", tmp_path / "store", "--flip")
    store = TokenStore(tmp_path / "store")
    assert store.ids == ["0.png", "3.png", "0.png", "3.png"]
    assert store.augmentation.tolist() == [0, 0, 1, 1]
    run("decode", "--tokenizer", model, tmp_path / "store", "--out", tmp_path / "decoded")
    names = {p.name for p in (tmp_path / "decoded").glob("*.png")}
    assert names == {"0.png", "3.png", "0_aug1.png", "3_aug1.png", "grid.png"}


def test_encode_stores_views(model: Path, tmp_path: Path) -> None:
    """The plain picture first, then random crops and mirror images; twice the same."""
    files, rng = [tmp_path / f"{i}.png" for i in range(3)], np.random.default_rng(0)
    for file in files:
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(file)
    words = ("encode", "--tokenizer", model, *files, "--views", "3", "--random-crop", "0.5")
    for name in ("a", "b"):
        run(*words, "--flip", "--out", tmp_path / name)
    run("encode", "--tokenizer", model, *files, "--out", tmp_path / "plain")
    store, again, plain = (TokenStore(tmp_path / name) for name in ("a", "b", "plain"))
    assert store.augmentation.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert store[:3].equal(plain.tokens()) and store.tokens().equal(again.tokens())
    assert not store[3:6].equal(store[:3]) and not store[6:].equal(store[3:6])
    for wrong in (words[:-2], (*words[:-4], "--random-crop", "0.5")):
        result = run(*wrong, "--out", tmp_path / "c", code=1)
        assert "several views need an augmentation" in result.output
    assert not (tmp_path / "c").exists()


def test_reconstruct_measures_what_it_writes(model: Path, tmp_path: Path) -> None:
    words = ["--data", "bundled:emoji", "--limit", 10, "--perceptual", "random"]
    words += ["--features", "random", "--out", tmp_path / "pictures", "--json"]
    measured = json.loads(run("reconstruct", "--tokenizer", model, *words).stdout)
    assert measured["num_images"] == 10 and measured["bits_per_image"] == 320
    assert 0 < measured["codebook_usage"] <= 1
    assert 0 < measured["entropy_bits"] <= 5
    assert measured["protocol"].startswith("val-paired-")
    assert measured["networks"]["perceptual"] == "features@random"
    assert measured["networks"]["features"].startswith("random#")
    named = [key for key in measured if "@" in key]
    assert {"features@random", "FD@random"} <= set(named)
    assert all(key.endswith("@random") for key in named), "no number without its network"
    assert not any(key.lower().startswith("fid") for key in measured)
    assert len(list((tmp_path / "pictures").rglob("*.png"))) == 11


def test_reconstruct_of_a_folder_without_splits_takes_what_a_training_holds_out(
    model: Path, pictures: Path
) -> None:
    (pictures / "cut.png").unlink()
    words = ("--data", pictures, "--features", "none", "--perceptual", "random")
    result = run("reconstruct", "--tokenizer", model, *words, "--json")
    assert "pictures has no split val: 1 of its 6 images are held out" in result.stderr
    assert json.loads(result.stdout)["num_images"] == 1
    result = run("reconstruct", "--tokenizer", model, *words, "--split", "train", "--json")
    assert "held out" not in result.stderr and json.loads(result.stdout)["num_images"] == 6


def test_reconstruct_without_features_takes_fewer_images(model: Path, tmp_path: Path) -> None:
    """Five images are too few for distances between sets: left out, or refused if asked for."""
    words = ["--data", "bundled:emoji", "--limit", 5, "--perceptual", "random", "--json"]
    start = ["reconstruct", "--tokenizer", model, *words]
    by_itself, none = (
        json.loads(run(*start, *more).stdout) for more in ([], ["--features", "none"])
    )
    assert by_itself["protocol"] == none["protocol"] and none["num_images"] == 5
    assert none["networks"]["features"] == none["networks"]["classifier"] == "none"
    assert [key for key in none if "@" in key] == ["features@random"]
    assert by_itself["psnr"] == none["psnr"] > 0
    result = run(*start, "--features", "random", "--out", tmp_path / "out", code=1)
    assert "5 images are too few, expected at least 6" in result.stderr
    assert not (tmp_path / "out").exists()
    folder = tmp_path / "data" / "val"
    folder.mkdir(parents=True)
    for i in range(7):
        Image.new("RGB", (32, 32), (30 * i, 90, 0)).save(folder / f"{i}.png")
        if i > 4:
            (folder / f"{i}.png").write_bytes(b"\x89PNG")
    words = ["--data", folder.parent, "--perceptual", "random", "--out", tmp_path / "out", "--json"]
    result = run("reconstruct", "--tokenizer", model, *words, code=1)
    assert "5 of 7 images could be read, expected at least 6" in result.stderr
    assert "--features none" in result.stderr and not (tmp_path / "out").exists()
    found = run("reconstruct", "--tokenizer", model, *words, "--features", "none")
    assert json.loads(found.stdout)["num_images"] == 5
    assert len(list((tmp_path / "out").glob("*.png"))) == 6
    other = json.loads(run(*start, "--limit", 6, "--features", "none").stdout)
    assert other["protocol"] != none["protocol"], "of other images"


@pytest.mark.parametrize(
    ("sizes", "groups"),
    [
        ((2,) * 24, (256,) * 3),
        ((2,) * 18, (64,) * 3),
        ((2,) * 15, (256, 128)),
        ((2,) * 14, None),
        ((2**18,), None),
    ],
)
def test_long_bit_tokens_are_measured_in_groups(
    sizes: tuple[int, ...], groups: tuple[int, ...] | None
) -> None:
    assert readable_groups(TokenSpec((2, 2), sizes)) == groups


def test_info_tells_models_stores_and_tokens_apart(
    model: Path, pictures: Path, tmp_path: Path
) -> None:
    run("encode", "--tokenizer", model, pictures, "--out", tmp_path / "store")
    TokenStore(tmp_path / "store").tokens().save(tmp_path / "t.safetensors")
    kinds = []
    for path in (model, tmp_path / "store", tmp_path / "t.safetensors"):
        facts = json.loads(run("info", path, "--json").stdout)
        kinds.append(facts["kind"])
        assert facts["bits_per_image"] == 320
    assert kinds == ["tokenizer", "token store", "tokens"]
    fingerprints = {
        json.loads(run("info", path, "--json").stdout)["fingerprint"]
        for path in (model, tmp_path / "store")
    }
    assert len(fingerprints) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["info", "{tmp}"], "neither a model, a token store nor a run"),
        (["info", "{tmp}/nothing"], "no such folder"),
        (["info", "bundled:bits-emoji"], "did you mean bundled:bits-emoji-64"),
        (["encode", "--tokenizer", "{model}", "{tmp}/x.png", "--out", "{tmp}/s"], "no such file"),
        (["encode", "--tokenizer", "{model}", "{tmp}/no", "--out", "{tmp}/s"], "no such file"),
        (["encode", "--tokenizer", "{tmp}", "{tmp}", "--out", "{tmp}/s"], "config.yaml is missing"),
        (["decode", "--tokenizer", "{model}", "{tmp}", "--out", "{tmp}/d"], "store.json"),
        (["reconstruct", "--tokenizer", "{model}", "--data", "bundled:emojis"], "bundled:emoji"),
        (
            [
                "reconstruct",
                "--tokenizer",
                "{model}",
                "--data",
                "bundled:emoji",
                "--perceptual",
                "vg",
            ],
            "unknown",
        ),
        (["encode", "--tokenizer", "{model}", "--device", "moon", "x.png", "--out", "s"], "moon"),
        (["encode", "--tokenizer", "{model}", "--device", "mps", "x.png", "--out", "s"], "mps"),
        (["encode", "--tokenizer", "", "x.png", "--out", "s"], "no path given"),
    ],
)
def test_mistakes_get_one_clear_line(
    model: Path, tmp_path: Path, words: list[str], message: str
) -> None:
    filled = [word.format(tmp=tmp_path, model=model) for word in words]
    result = run(*filled, code=1)
    assert message in result.stderr
    assert result.stderr.count("Error:") == 1 and "Traceback" not in result.output
    assert not list(tmp_path.iterdir())


def test_another_tokenizers_store_is_refused(model: Path, pictures: Path, tmp_path: Path) -> None:
    other = make_model(tmp_path / "other", seed=1)
    run("encode", "--tokenizer", model, pictures, "--out", tmp_path / "store")
    words = ["decode", "--tokenizer", other, tmp_path / "store", "--out", tmp_path / "decoded"]
    result = run(*words, code=1)
    for folder in (model, other):
        assert json.loads((folder / "card.json").read_text())["fingerprint"] in result.stderr
    assert not (tmp_path / "decoded").exists()


def test_what_exists_is_not_overwritten_unasked(
    model: Path, pictures: Path, tmp_path: Path
) -> None:
    words = ["encode", "--tokenizer", model, pictures, "--out", tmp_path / "store"]
    run(*words)
    before = (tmp_path / "store" / "store.json").read_bytes()
    assert "exists already" in run(*words, code=1).stderr
    assert (tmp_path / "store" / "store.json").read_bytes() == before
    run(*words, "--overwrite")


def test_wrong_usage_exits_with_2(model: Path) -> None:
    run("encode", "--tokenizer", model, code=2)
    run("sing", code=2)
    run("data", "imagenet", "--out", "x", code=2)


def test_a_run_is_not_a_model_but_names_it(model: Path, tmp_path: Path) -> None:
    run_folder = tmp_path / "run"
    shutil.copytree(model, run_folder / "tokenizer")
    (run_folder / "checkpoints" / "step_foo").mkdir(parents=True)
    words = ["encode", "--tokenizer", run_folder, "x.png", "--out", tmp_path / "store"]
    assert f"the model is in {run_folder / 'tokenizer'}" in run(*words, code=1).stderr
    facts = json.loads(run("info", run_folder, "--json").stdout)
    assert facts["kind"] == "run"
    assert facts["models"]["tokenizer"]["system"] == "vqgan"


def test_an_existing_out_is_refused_before_any_work(model: Path, tmp_path: Path) -> None:
    words = ["--data", "bundled:emoji", "--perceptual", "random", "--out", tmp_path]
    result = run("reconstruct", "--tokenizer", model, *words, code=1)
    assert "exists already" in result.stderr and "/154" not in result.stderr
