"""Images held out for validation, and validation images of another source."""

import numpy as np
import pytest
from PIL import Image

from tessella.data.image_source import NoSplit, SourceSettings
from tessella.data.loader import eval_batches
from tessella.data.sources import DataError, open_source
from tessella.data.splits import VAL_SHARE, hold_out
from tessella.data.train_val import held_out, open_to_measure, open_train_and_val, open_val
from tessella.tests.cases import over

SHARE = SourceSettings(val_share=VAL_SHARE)


def ids(source):
    return [source.id_of(index) for index in range(len(source))]


def both(source, settings=SHARE, val_source=None):
    return open_train_and_val(str(source), val_source, settings, same_classes=True)


@pytest.fixture
def many(tmp_path):
    """`many(n)`: a folder with n images, of which a larger number has those of a smaller one."""

    def make(count):
        for number in range(count):
            path = tmp_path / "photos" / f"c{number % 3}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                Image.new("RGB", (1, 1)).save(path)
        return tmp_path / "photos"

    return make


def test_what_is_measured_is_what_was_held_out(many, make_folder, tmp_path):
    val = both(many(40))[1]
    found = open_to_measure(str(many(40)), "val")
    assert ids(found) == ids(val) and held_out(found) == held_out(val) != ""
    assert len(open_to_measure(str(many(40)), "train")) == 40
    with pytest.raises(NoSplit, match="no split 'test'"):
        open_to_measure(str(many(40)), "test")
    np.savez(tmp_path / "x.npz", arr_0=np.zeros((20, 4, 4, 3), np.uint8))
    assert len(open_to_measure(str(tmp_path / "x.npz"), "val")) == 20  # as it was measured before
    root = make_folder("train/0.png", "val/1.png")
    assert ids(open_to_measure(str(root), "val")) == ["1.png"]


@over(
    ("count", "held"),
    [(2, 1), (3, 1), (7, 1), (8, 2), (12, 3), (40, 10), (64, 16), (100, 16), (300, 16)],
)
def test_number_of_images_held_out(count, held, many):
    train, val = both(many(count))
    assert (len(train), len(val)) == (count - held, held)
    assert sorted(ids(train) + ids(val)) == sorted(ids(open_source(many(count))))
    line = f"photos has no split val: {held} of its {count} images are held out by a hash"
    assert held_out(val).startswith(line)


def test_the_share_of_a_large_set_is_stable_when_files_are_added(many):
    before = both(many(600), SourceSettings(val_share=0.1))
    after = both(many(900), SourceSettings(val_share=0.1))
    assert 40 < len(before[1]) < 80 and 60 < len(after[1]) < 120
    assert set(ids(before[0])) < set(ids(after[0])) and set(ids(before[1])) < set(ids(after[1]))


def test_a_small_set_keeps_nearly_all_of_its_images_where_they_are(many):
    before, after = both(many(200)), both(many(210))
    assert len(set(ids(before[1])) - set(ids(after[1]))) <= 10 * 16 / 200 + 2


def test_parts_have_the_labels_of_the_whole(many):
    train, val = both(many(40))
    assert train.classes == val.classes == ("c0", "c1", "c2")
    for part, split in ((train, "train"), (val, "val")):
        assert part.split == split and part.name == "photos"
        for batch in eval_batches(part, 4, 8):
            found = [f"c{label}" for label in batch["labels"].tolist()]
            assert found == [name.split("/")[0] for name in batch["ids"]]
    assert len({part.fingerprint() for part in (train, val, train.whole)}) == 3


def test_an_archive_keeps_its_parts_beside_another(make_tar, make_members, tmp_path):
    make_tar("s/a.tar", make_members(20))
    alone = both(f"{tmp_path}/s/*.tar")
    assert (len(alone[0]), len(alone[1])) == (15, 5)
    make_tar("s/b.tar", make_members(200))
    held = [name for name in ids(both(f"{tmp_path}/s/*.tar", SourceSettings(val_share=0.4))[1])]
    small = both(tmp_path / "s" / "a.tar", SourceSettings(val_share=0.4))[1]
    assert {f"a/{name}" for name in ids(small)} == {n for n in held if n.startswith("a/")}


def test_every_kind_of_source_without_a_split(make_tar, make_members, tmp_path, many):
    make_tar("prepared/train.tar", make_members(20))
    np.savez(tmp_path / "x.npz", arr_0=np.zeros((20, 4, 4, 3), np.uint8))
    folder = many(20)
    (folder / "c0").rename(tmp_path / "c0")
    (tmp_path / "divided" / "test").mkdir(parents=True)
    (tmp_path / "c0").rename(tmp_path / "divided" / "test" / "c0")
    folder.rename(tmp_path / "divided" / "train")
    for source, count in (("prepared", 20), ("x.npz", 20), ("divided", 13)):
        train, val = both(tmp_path / source)
        assert (len(train), len(val)) == (count - count // 4, count // 4), source
        assert not set(ids(train)) & set(ids(val)), source


def test_a_split_that_exists_is_taken(make_folder):
    root = make_folder(*(f"train/c/{i}.png" for i in range(8)), "val/c/9.png")
    train, val = both(root)
    assert (len(train), ids(val), held_out(val)) == (8, ["c/9.png"], "")


def test_nothing_is_held_out_unless_that_is_asked_for(many):
    assert len(open_source(many(20))) == 20
    with pytest.raises(NoSplit, match="no split 'val'"):
        open_source(many(20), "val")
    with pytest.raises(NoSplit, match="no split 'val'"):
        both(many(20), SourceSettings(val_share=0.0))
    with pytest.raises(NoSplit, match="no split 'test'"):
        open_source(many(20), "test", SHARE)


def test_one_image_cannot_be_divided(many):
    with pytest.raises(DataError, match="1 image and no split 'val'; expected at least 2"):
        both(many(1))
    for wrong in (-0.1, 0.6):
        with pytest.raises(ValueError, match=r"val_share: expected 0 to 0\.5"):
            SourceSettings(val_share=wrong)


def test_the_largest_share_leaves_images_to_train_on(many):
    for count in (2, 3, 5, 9):
        train, val = hold_out(open_source(many(count)), 0.5)
        assert len(train) >= 1 and len(val) >= 1 and len(train) + len(val) == count


@pytest.fixture
def other(tmp_path):
    """`other("name", "b/0.png", ...)`: a further folder of images."""

    def make(name, *paths):
        for path in paths:
            (tmp_path / name / path).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (2, 2)).save(tmp_path / name / path)
        return str(tmp_path / name)

    return make


def test_a_plain_folder_as_validation_has_the_class_numbers_of_the_training(other):
    source = other("photos", "a/0.png", "b/0.png", "c/0.png")
    train, val = both(source, val_source=other("mine", "b/1.png", "c/1.png"))
    assert len(train) == 3 and val.split == "val" and val.classes == ("a", "b", "c")
    assert [val.read(i).label for i in range(2)] == [1, 2] and not held_out(val)
    train, val = both(source, val_source=other("flat", "1.png"))
    assert val.read(0).label is None
    with pytest.raises(DataError, match=r"classes \['d'\] have no images in the training data"):
        both(source, val_source=other("more", "d/1.png"))
    train, val = open_train_and_val(source, other("more", "d/1.png"), SHARE, same_classes=False)
    assert val.classes == ("d",)


def test_a_split_of_another_source_has_the_class_numbers_of_the_training(other):
    source = other("photos", "a/0.png", "b/0.png")
    divided = other("divided", "train/b/0.png", "val/b/1.png")
    assert both(source, val_source=divided)[1].read(0).label == 1
    val = open_val(source, divided, SHARE, classes=("a", "b"))
    assert val.read(0).label == 1
    with pytest.raises(DataError, match="class 0 is 'a', in the training data 'b'"):
        open_val(source, None, SHARE, classes=("b", "a"))


def test_validation_images_are_no_training_images(other, make_tar, make_members, tmp_path):
    source = other("photos", "a/0.png", "b/0.png")
    message = "is read for the training as well; expected other images"
    for inside in (source, f"{source}/b", str(tmp_path)):
        with pytest.raises(DataError, match=message):
            open_train_and_val(source, inside, SHARE, same_classes=False)
    path = str(make_tar("plain.tar", make_members(3)))
    with pytest.raises(DataError, match=message):
        both(path, val_source=path)
    path = str(make_tar("divided.tar", make_members(3, "train/") | make_members(2, "val/")))
    train, val = both(path, val_source=path)
    assert (len(train), len(val)) == (3, 2)


def test_a_source_of_which_only_another_split_is_there(other):
    divided = other("divided", "train/b/0.png", "test/b/1.png")
    with pytest.raises(NoSplit, match="no split 'val', found the folders"):
        both(other("photos", "b/0.png"), val_source=divided)
