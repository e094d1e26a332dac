"""`tessella edit` as a person uses it: what is drawn anew, what stays, what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from tessella.checkpoints import load_generator
from tessella.cli.main import main
from tessella.data.images import read_image, to_tensor
from tessella.data.transforms import resize_center_crop
from tessella.sample import edit as edit_module
from tessella.sample import pictures as pictures_module
from tessella.sample.edit import enrich, variation_mask
from tessella.sample.generate import generate
from tessella.sample.window import encode_known

Folders = tuple[Path, Path]
FAST = ("--num-steps", 2)


def run(*words: object, code: int = 0) -> Result:
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == code, result.output
    return result


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """48x48, with some structure."""
    ramp = torch.linspace(0, 255, 48).byte()
    pixels = torch.stack(
        [ramp.expand(48, 48), ramp[:, None].expand(48, 48), 255 - ramp.expand(48, 48)]
    )
    path = tmp_path / "picture.png"
    Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy()).save(path)
    return path


def edit(folders: Folders, picture: Path, out: Path, *words: object, code: int = 0) -> Result:
    words = ("--generator", folders[0], "--image", picture, "--out", out, *FAST, *words)
    return run("edit", *words, code=code)


def test_edit_by_mask_redraws_the_light_part_only(
    folders: Folders, picture: Path, tmp_path: Path
) -> None:
    light = Image.new("L", (48, 48), 0)
    light.paste(255, (24, 0, 48, 48))
    light.save(tmp_path / "mask.png")
    out = tmp_path / "edited.png"
    words = ["--mask", tmp_path / "mask.png", "--label", 1, "--seed", 6, "--json"]
    told = json.loads(edit(folders, picture, out, *words).stdout)
    generator = load_generator(folders[0])
    hidden = torch.zeros(48, 48, dtype=torch.bool)
    hidden[:, 24:] = True
    known, undecided = encode_known(generator.tokenizer, pixels_of(picture), hidden)
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[:, 4:] = True
    mask = mask.flatten() | undecided
    assert told == {
        "files": [str(out)],
        "positions": 64,
        "drawn_anew": int(mask.sum()),
        "undecided": int(mask.sum()) - 32,
        "known_unchanged": True,
        "label": 1,
        "trained_on": "not stated",
        "window": [0, 0, 48],
        "size": "48x48",
    }
    expected = generate(
        generator, [1], seeds=[6], known=known, mask=mask, num_steps=2, guidance=2.0
    )
    assert not expected.equal(known)
    edit(folders, picture, tmp_path / "square.png", *words, "--no-paste")
    decoded = generator.tokenizer.decode(expected)[0]
    assert (pixels_of(tmp_path / "square.png") - decoded).abs().max() <= 1 / 255 + 1e-6
    found, own = pixels_of(out), pixels_of(picture)
    assert torch.equal(found[:, :, :24], own[:, :, :24])
    assert not torch.equal(found[:, :, 24:], own[:, :, 24:])


def test_edit_by_box_inside_and_outside(folders: Folders, picture: Path, tmp_path: Path) -> None:
    own = pixels_of(picture)
    inside = edit(folders, picture, tmp_path / "in.png", "--box", "0,0,24,12", "--json")
    outside = edit(
        folders, picture, tmp_path / "o.png", "--box", "0,0,24,12", "--outside", "--json"
    )
    for result, fewest in ((inside, 8), (outside, 56)):
        told = json.loads(result.stdout)
        assert told["drawn_anew"] - told["undecided"] == fewest
        assert told["known_unchanged"] is True and told["label"] is None
    region = torch.zeros(48, 48, dtype=torch.bool)
    region[:12, :24] = True
    for name, changed in (("in", region), ("o", ~region)):
        found = pixels_of(tmp_path / f"{name}.png")
        assert torch.equal(found[:, ~changed], own[:, ~changed])
        assert not torch.equal(found[:, changed], own[:, changed])


def test_several_edits_have_their_own_seeds(
    folders: Folders, picture: Path, tmp_path: Path
) -> None:
    out = tmp_path / "v.png"
    words = ["--variation", 0.5, "--num", 3, "--batch-size", 2, "--seed", 9, "--json"]
    told = json.loads(edit(folders, picture, out, *words).stdout)
    assert told["files"] == [str(tmp_path / f"v-{i}.png") for i in range(3)]
    assert told["drawn_anew"] == 32 and told["known_unchanged"] is True
    contents = [Path(file).read_bytes() for file in told["files"]]
    assert len(set(contents)) == 3
    edit(folders, picture, tmp_path / "w.png", "--variation", 0.5, "--seed", 10)
    assert (tmp_path / "w.png").read_bytes() == contents[1]
    mask = variation_mask(torch.arange(9, 12), load_generator(folders[0]).spec, 0.5)
    assert mask.unique(dim=0).shape[0] == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give one of --mask, --box, --variation and --enrich"),
        (
            ["--box", "0,0,8,8", "--variation", "0.5"],
            "give one of --mask, --box, --variation and --enrich",
        ),
        (["--box", "0,0,8,8", "--label", "1", "--class", "cat"], "give --label or --class"),
        (["--box", "0,0,8"], "--box '0,0,8': expected LEFT,TOP,RIGHT,BOTTOM"),
        (["--box", "a,b,c,d"], "--box 'a,b,c,d': expected numbers like 0,0,32,16"),
        (["--box", "0,0,64,8"], "expected 0 <= left < right <= 48"),
        (["--box", "8,0,8,8"], "expected 0 <= left < right <= 48"),
        (["--box", "0,0,48,48", "--outside"], "nothing is marked"),
        (["--variation", "0"], "expected a share above 0 up to 1, found 0.0"),
        (["--variation", "0.5", "--outside"], "--outside goes with --box"),
        (["--variation", "0.5", "--paste"], "--paste goes with --mask or --box"),
        (["--box", "0,0,8,8", "--label", "3"], "expected 0 to 2, or -1 for none, found [3]"),
        (["--box", "0,0,8,8", "--class", "kat"], "did you mean cat?"),
        (["--mask", "{tmp}/other.png"], "the mask is 40x48, the image 48x48"),
        (["--mask", "{tmp}/dark.png"], "nothing is marked"),
        (["--mask", "{tmp}/gone.png"], "gone.png"),
        (["--box", "0,0,8,8", "--image", "{tmp}/gone.png"], "gone.png"),
        (["--enrich", "1", "--box", "0,0,8,8"], "give one of --mask, --box, --variation and"),
        (["--enrich", "1", "--no-paste"], "--paste goes with --mask or --box"),
        (["--enrich", "1", "--outside"], "--outside goes with --box"),
        (["--enrich", "1", "--num-steps", "129"], "129 steps for 128 slots to reveal"),
        (
            ["--enrich", "1", "--to-class", "cat", "--num", "3"],
            "needs --class or --label",
        ),
        (["--enrich", "1", "--to-class", "cat", "--label", "0"], "--num 1: from one class"),
        (["--enrich", "1", "--to-class", "cat", "--to-label", "0"], "give --to-label or --to-c"),
    ],
)
def test_mistakes_of_an_edit_get_one_clear_line(
    folders: Folders, picture: Path, tmp_path: Path, words: list[str], message: str
) -> None:
    Image.new("L", (40, 48), 255).save(tmp_path / "other.png")
    Image.new("L", (48, 48), 100).save(tmp_path / "dark.png")
    filled = [word.format(tmp=tmp_path) for word in words]
    result = edit(folders, picture, tmp_path / "out.png", *filled, code=1)
    assert message in result.stderr
    assert result.stderr.count("Error:") == 1 and "Traceback" not in result.output
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dark.png", "other.png", "picture.png"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--image: no picture given; it can be left out only with --to-class or"),
        (["--enrich", "2"], "--image: no picture given"),
        (["--box", "0,0,8,8", "--to-class", "cat"], "--image: no picture given"),
        (
            ["--label", "0", "--to-label", "3", "--num", "2"],
            "class 3 of a generator of type maskbit with",
        ),
        (
            ["--label", "-1", "--to-label", "0", "--num", "2"],
            "class -1 of a generator of type maskbit",
        ),
        (["--label", "0", "--to-class", "shipp", "--num", "2"], "did you mean ship?"),
    ],
)
def test_mistakes_without_a_picture(
    folders: Folders, tmp_path: Path, words: list[str], message: str
) -> None:
    out = tmp_path / "out.png"
    result = run("edit", "--generator", folders[0], "--out", out, *FAST, *words, code=1)
    assert message in result.stderr and "Traceback" not in result.output
    assert not list(tmp_path.iterdir())


def pixels_of(file: Path) -> torch.Tensor:
    return to_tensor(read_image(file))


def test_from_one_class_to_another(folders: Folders, tmp_path: Path) -> None:
    """The ends are the classes, drawn with the same seed; between them is something else."""
    out = tmp_path / "way.png"
    words = ["--class", "cat", "--to-label", 0, "--num", 3, "--seed", 5, "--batch-size", 2]
    told = json.loads(run("edit", "--generator", folders[0], "--out", out, *FAST, *words,
                          "--json").stdout)  # fmt: skip
    assert told == {
        "files": [str(tmp_path / f"way-{i}.png") for i in range(3)],
        "positions": 64,
        "drawn_anew": 64,
        "labels": [1, 0],
        "shares": [0.0, 0.5, 1.0],
        "size": "32x32",
    }
    generator = load_generator(folders[0])
    ends = generate(generator, [1, 0], seeds=[5, 5], num_steps=2, guidance=2.0)
    decoded = generator.tokenizer.decode(ends)
    shown = [pixels_of(Path(file)) for file in told["files"]]
    assert (shown[0] - decoded[0]).abs().max() <= 1 / 255 + 1e-6
    assert (shown[2] - decoded[1]).abs().max() <= 1 / 255 + 1e-6
    assert not torch.equal(shown[1], shown[0]) and not torch.equal(shown[1], shown[2])


def test_a_part_of_a_picture_from_one_class_to_another(
    folders: Folders, picture: Path, tmp_path: Path
) -> None:
    words = ["--box", "16,0,32,32", "--class", "cat", "--seed", 3]
    mixed = [*words, "--to-class", "ship", "--num", 3, "--json"]
    told = json.loads(edit(folders, picture, tmp_path / "way.png", *mixed).stdout)
    assert told["known_unchanged"] is True and told["drawn_anew"] >= 16
    edit(folders, picture, tmp_path / "one.png", *words)
    assert torch.equal(pixels_of(tmp_path / "one.png"), pixels_of(tmp_path / "way-0.png"))
    assert not torch.equal(pixels_of(tmp_path / "one.png"), pixels_of(tmp_path / "way-2.png"))


def test_enriching_draws_all_of_a_picture_anew(
    folders: Folders, tmp_path: Path, picture: Path
) -> None:
    """A picture of half the size is enlarged first; the result has the tokenizer's size."""
    small = tmp_path / "small.png"
    Image.open(picture).resize((16, 16)).save(small)
    words = ["--enrich", 2, "--num", 2, "--seed", 4, "--json"]
    told = json.loads(edit(folders, small, tmp_path / "e.png", *words).stdout)
    assert told == {
        "files": [str(tmp_path / f"e-{i}.png") for i in range(2)],
        "positions": 64,
        "drawn_anew": 64,
        "label": None,
        "trained_on": "not stated",
        "size": "32x32",
    }
    generator = load_generator(folders[0])
    enlarged = to_tensor(resize_center_crop(read_image(small), 32))
    tokens = enrich(
        generator, generator.tokenizer.encode(enlarged[None]), seeds=[4, 5], repeats=2,
        num_steps=2, guidance=2.0,
    )  # fmt: skip
    for file, decoded in zip(told["files"], generator.tokenizer.decode(tokens), strict=True):
        assert read_image(Path(file)).size == (32, 32)
        assert (pixels_of(Path(file)) - decoded).abs().max() <= 1 / 255 + 1e-6


def test_an_edit_overwrites_only_when_asked(
    folders: Folders, picture: Path, tmp_path: Path
) -> None:
    before = picture.read_bytes()
    result = edit(folders, picture, picture, "--box", "0,0,8,8", code=1)
    assert "exists already" in result.stderr
    assert picture.read_bytes() == before
    (tmp_path / "v-1.png").write_bytes(b"mine")
    words = ["--box", "0,0,8,8", "--num", 2]
    assert (
        "v-1.png exists already"
        in edit(folders, picture, tmp_path / "v.png", *words, code=1).stderr
    )
    assert not (tmp_path / "v-0.png").exists()
    theirs = edit(folders, picture, tmp_path / "v.png", *words, "--overwrite", code=1)
    assert "v-1.png is no picture written by tessella" in theirs.stderr
    assert (tmp_path / "v-1.png").read_bytes() == b"mine"
    (tmp_path / "v-1.png").unlink()
    for _ in range(2):
        edit(folders, picture, tmp_path / "v.png", *words, "--overwrite")
    assert read_image(tmp_path / "v-1.png").size == (48, 48)
    jpeg = edit(folders, picture, tmp_path / "v.jpg", "--box", "0,0,8,8", code=1)
    assert "expected the name of a .png file" in jpeg.stderr
    folder = edit(folders, picture, tmp_path, "--box", "0,0,8,8", "--overwrite", code=1)
    assert "exists already" in folder.stderr


@pytest.mark.parametrize("words", [["--variation", "0.5"], ["--enrich", "1"]])
def test_precision_and_batches_are_those_asked_for(
    folders: Folders, picture: Path, tmp_path: Path, monkeypatch: Any, words: list[str]
) -> None:
    asked: list[dict[str, Any]] = []

    def spy(*given: Any, **options: Any) -> Any:
        asked.append(options)
        return generate(*given, **options)

    for module in (pictures_module, edit_module):
        monkeypatch.setattr(module, "generate", spy)
    words = [*words, "--precision", "bf16", "--batch-size", "3"]
    edit(folders, picture, tmp_path / "out.png", *words)
    assert asked and all((o["precision"], o["batch_size"]) == ("bf16", 3) for o in asked)
