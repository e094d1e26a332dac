"""Trainings on a person's own pictures: no splits, other places, odd sizes."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from click.testing import Result
from PIL import Image

from tessella.checkpoints import load_tokenizer, read_card
from tessella.codec.encode import encode_source
from tessella.data.image_source import SourceSettings
from tessella.data.sources import open_source
from tessella.tokens.store import TokenStore

Command = Callable[..., Result]
SHORT = ("run.steps=2", "run.batch_size_per_device=4", "run.log_every=1")
LINE = "photos has no split val: 6 of its 24 images are held out by a hash of their names"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """JPEGs of 40 x 36 pixels in three class folders, and nothing else."""
    rng = np.random.default_rng(0)
    root = tmp_path / "photos"
    for i in range(24):
        path = root / "abc"[i % 3] / f"{i:02d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((40, 36), Image.Resampling.BICUBIC).save(path)
    return root


def held(photos: Path) -> set[str]:
    val = open_source(photos, "val", SourceSettings(val_share=0.05))
    return {val.id_of(index) for index in range(len(val))}


def test_a_folder_of_photos_is_all_that_a_tokenizer_needs(
    command: Command, debug_config: Path, photos: Path, tmp_path: Path
) -> None:
    words = ["--config", debug_config, "--out", tmp_path / "run", f"data.source={photos}", *SHORT]
    result = command(*words)
    assert result.exit_code == 0, result.output
    assert result.output.count(LINE) == 1 and "18 images of photos" in result.output
    card = read_card(tmp_path / "run" / "tokenizer")
    assert card["data"]["images"] == 18 and card["validation"]["source"] == "photos"


def test_a_plain_folder_to_validate_on(
    command: Command, debug_config: Path, photos: Path, tmp_path: Path
) -> None:
    words = ["--config", debug_config, f"data.source={photos / 'a'}", *SHORT]
    result = command(*words, "--out", tmp_path / "run", f"data.val_source={photos / 'b'}")
    assert result.exit_code == 0, result.output
    assert "held out" not in result.output and "8 images of a" in result.output
    result = command(*words, "--out", tmp_path / "other", f"data.val_source={photos}")
    assert result.exit_code == 1 and "is read for the training as well" in result.output
    assert not (tmp_path / "other").exists()


def test_broken_validation_images_are_named(
    command: Command, debug_config: Path, photos: Path, tmp_path: Path
) -> None:
    (photos / "b" / "25.jpg").write_bytes(b"no picture")
    words = ["--config", debug_config, f"data.source={photos / 'a'}", *SHORT]
    result = command(*words, "--out", tmp_path / "run", f"data.val_source={photos / 'b'}")
    assert result.exit_code == 0, result.output
    assert result.output.count("skipped broken image 25.jpg (val): not an image") == 1


def test_settings_of_reading(
    command: Command, debug_config: Path, photos: Path, tmp_path: Path
) -> None:
    words = ["--config", debug_config, "--out", tmp_path / "run", f"data.source={photos}"]
    result = command(*words, "data.max_pixels=100", *SHORT)
    assert result.exit_code == 1 and "40x36 pixels, limit 100" in result.output
    for wrong, message in (
        ("data.val_share=0.9", "val_share: expected 0 to 0.5, found 0.9"),
        ("data.max_pixels=0", "max_pixels: expected 1 to 178,956,970"),
        ("data.val_share=0.0", "no split 'val'"),
    ):
        result = command(*words, wrong, *SHORT)
        assert result.exit_code == 1 and message in result.output, result.output


def test_a_generator_neither_learns_nor_stores_held_out_images(
    generator_command: Command, photos: Path, small_tokenizer: Path, tmp_path: Path
) -> None:
    out, broken = tmp_path / "run", photos / sorted(held(photos))[0]
    broken.write_bytes(b"no picture")
    words = (f"data.source={photos}", "samples=null", *SHORT)
    result = generator_command("--out", out, *words)
    assert result.exit_code == 0, result.output
    assert result.output.count(LINE) == 1
    assert f"{broken.name} (val): not an image" in result.output
    Image.new("RGB", (40, 36)).save(broken)
    store = TokenStore(out / "store")
    assert len(store) == 18 and not set(store.ids) & held(photos)
    assert read_card(out / "generator")["validation"]["split"] == "val"

    # A store of all photos holds those that would be held out.
    everything = tmp_path / "store"
    encode_source(load_tokenizer(small_tokenizer), open_source(photos), everything, progress=False)
    result = generator_command("--out", tmp_path / "2", *words, f"data.store={everything}")
    assert result.exit_code == 1
    assert "data.store holds 6 of the 6 images of photos that would be held out" in result.output
    result = generator_command("--out", tmp_path / "2", *words, f"data.store={out / 'store'}")
    assert result.exit_code == 0, result.output


def test_a_run_from_before_these_keys_resumes(
    command: Command, debug_config: Path, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    words = ("--out", out, f"data.source={photos}", *SHORT)
    assert command("--config", debug_config, *words).exit_code == 0
    path = out / "config.yaml"
    config = yaml.safe_load(path.read_text())
    for key in ("val_share", "image_member", "max_pixels"):
        del config["data"][key]
    path.write_text(yaml.safe_dump(config))
    result = command("--resume", "--out", out, "data.val_share=0.4")
    assert result.exit_code == 1
    assert "data.val_share: was 0.05, now 0.4" in result.output
    result = command("--resume", "--out", out)
    assert result.exit_code == 0, result.output
