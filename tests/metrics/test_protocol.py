"""Protocols: ids that tell measurements apart, presets that refuse, labels, rounding, hashes."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import tessella
from tessella.metrics.catalogue import describe_metric, metric_values
from tessella.metrics.image_hash import ImageHash
from tessella.metrics.presets import PRESETS, balanced_labels, choose_labels, find_preset
from tessella.metrics.protocol import (
    LATER,
    Protocol,
    ProtocolError,
    ProtocolMismatch,
    as_floats,
    differing_fields,
    to_pixels,
)


def bound(name: str = "bundled", **changes: Any) -> Protocol:
    facts: dict[str, Any] = {
        "task": "samples",
        "resolution": 64,
        "features": "inception_fid#7ff4a85c",
        "feature_resize": "TF1",
        "classifier": "none",
        "perceptual": "none",
        "reference": "emoji (train)",
        "reference_hash": "0123456789abcdef",
        "reference_images": 1381,
        "num_samples": 1381,
    }
    return find_preset(name).bind(**(facts | changes))


def test_every_field_is_part_of_the_id() -> None:
    protocol = bound()
    assert protocol.id.startswith("bundled-")
    assert bound().id == protocol.id
    seen = {protocol.id}
    for field in dataclasses.fields(Protocol):
        value = getattr(protocol, field.name)
        other: Any = value + 1 if isinstance(value, int) else f"{value}x"
        seen.add(dataclasses.replace(protocol, **{field.name: other}).id)
    # All but `reference`, which says in words what `reference_hash` identifies.
    assert len(seen) == len(dataclasses.fields(Protocol))
    assert bound(reference="other words").id == protocol.id


def test_the_id_of_a_protocol_never_changes() -> None:
    """A change here makes every stored number incomparable: raise `version` and say so."""
    assert bound().id == "bundled-4d72a4da"


def test_protocols_from_before_captions_keep_their_ids() -> None:
    """What is stored in the cards of shipped models, and what has the fields that came later."""
    protocol = bound()
    stored = {name: value for name, value in protocol.to_dict().items() if name not in LATER}
    assert Protocol.from_dict(stored) == protocol
    captions = bound(conditions="12 captions of the reference, #0a1b2c3d")
    assert captions.id != protocol.id
    assert Protocol.from_dict(captions.to_dict()) == captions
    cards = sorted((Path(tessella.__file__).parent / "assets" / "models").glob("*/card.json"))
    texts = [card.read_text(encoding="utf-8") for card in cards]
    found = [stored for text in texts for stored in protocols_in(json.loads(text))]
    assert found
    for stored in found:
        assert Protocol.from_dict(stored).id == stored["id"]


def protocols_in(value: Any) -> list[dict[str, Any]]:
    """Every protocol inside a document."""
    if isinstance(value, dict):
        inner = [found for part in value.values() for found in protocols_in(part)]
        return [value, *inner] if "reference_hash" in value else inner
    return [f for part in value for f in protocols_in(part)] if isinstance(value, list) else []


def test_frozen_and_back_from_json() -> None:
    protocol = bound()
    with pytest.raises(dataclasses.FrozenInstanceError):
        protocol.num_samples = 5  # type: ignore[misc]
    assert Protocol.from_dict(protocol.to_dict()) == protocol
    with pytest.raises(ProtocolError, match="fields were changed: their id is"):
        Protocol.from_dict(protocol.to_dict() | {"num_samples": 50_000})
    with pytest.raises(ProtocolError, match=r"not a protocol: .*'colour'"):
        Protocol.from_dict(protocol.to_dict() | {"colour": 1})


def test_values_of_two_protocols_are_never_compared() -> None:
    one, other = bound(), bound(num_samples=5000)
    a, b = (metric_values([{"gFID": 10.0}, {"gFID": 12.0}], p)["gFID"] for p in (one, other))
    same = dataclasses.replace(a, values=(20.0,))
    assert (a.mean, a.spread) == (11.0, pytest.approx(2**0.5))
    assert same.spread is None
    assert same - a == 9.0
    assert a < same
    for compare in (lambda: a - b, lambda: a < b, lambda: a > b):
        with pytest.raises(ProtocolMismatch, match="not comparable: gFID under bundled-"):
            compare()
    with pytest.raises(ProtocolMismatch, match=r"not comparable: gFID under .* and KID"):
        a - dataclasses.replace(a, metric="KID")
    assert str(a) == f"gFID 11 ± 1.4 ({one.id})"
    assert differing_fields(one, other) == {"num_samples": (1381, 5000)}


def test_presets_are_what_they_say() -> None:
    assert set(PRESETS) == {"bundled", "val-paired", "adm-256", "torch-fidelity"}
    adm, fidelity = PRESETS["adm-256"], PRESETS["torch-fidelity"]
    assert (adm.resize, adm.rounding, adm.num_samples, adm.resolution) == (
        "adm",
        "truncate",
        50_000,
        256,
    )
    assert (fidelity.resize, fidelity.rounding, fidelity.class_balance) == (
        "none",
        "truncate",
        "uniform",
    )
    assert {preset.features for preset in PRESETS.values()} == {"inception_fid"}
    with pytest.raises(ProtocolError, match="did you mean adm-256"):
        find_preset("adm256")


def test_numbers_that_a_preset_refuses() -> None:
    adm, bundled = PRESETS["adm-256"], PRESETS["bundled"]
    assert adm.check_number(None, 10_000, "samples") == 50_000
    assert bundled.check_number(None, 1381, "samples") == 1381
    assert bundled.check_number(500, 1381, "samples") == 500
    with pytest.raises(ProtocolError, match="adm-256 measures 50,000 images, asked for 1,000"):
        adm.check_number(1000, 10_000, "samples")
    with pytest.raises(ProtocolError, match="too few images, found 5, expected at least 6"):
        bundled.check_number(5, 1381, "samples")
    with pytest.raises(ProtocolError, match="200 images to be reconstructed, the data have 154"):
        bundled.check_number(200, 154, "reconstructions")
    with pytest.raises(ProtocolError, match="256 pixels, found 64"):
        adm.check_resolution(64)


def test_subsets_of_kid_fit_the_smaller_side() -> None:
    assert bound().kid_subset_size == 1000
    assert bound(num_samples=300).kid_subset_size == 300
    assert bound(reference_images=154).kid_subset_size == 154


def test_labels_have_the_proportions_of_the_reference() -> None:
    counts = torch.tensor([50, 30, 20, 0])
    labels = torch.tensor(choose_labels("reference", counts, 10, 0, name="x"))
    assert labels.bincount(minlength=4).tolist() == [5, 3, 2, 0]
    whole = choose_labels("reference", counts, 100, 3, name="x")
    assert torch.tensor(whole).bincount(minlength=4).tolist() == counts.tolist()
    assert whole != sorted(whole), "shuffled: the first samples are no special ones"
    assert whole != choose_labels("reference", counts, 100, 4, name="x")
    assert balanced_labels(torch.tensor([1, 1, 1]), 4, 0).count(0) in (1, 2)


def test_equal_uniform_and_no_labels() -> None:
    counts = torch.tensor([9, 1, 1])
    assert sorted(choose_labels("equal", counts, 6, 0, name="x")) == [0, 0, 1, 1, 2, 2]
    with pytest.raises(ProtocolError, match=r"x: 7 samples over 3 classes .*balanced are 6 and 9"):
        choose_labels("equal", counts, 7, 0, name="x")
    drawn = torch.tensor(choose_labels("uniform", counts, 3000, 0, name="x")).bincount()
    assert (drawn - 1000).abs().max() < 4 * (3000 * 2 / 9) ** 0.5
    assert choose_labels("none", counts, 3, 0, name="x") == [-1, -1, -1]
    with pytest.raises(ProtocolError, match="its images have no labels"):
        choose_labels("reference", torch.zeros(3).long(), 3, 0, name="x")


def test_rounding_rules() -> None:
    pixels = torch.arange(256, dtype=torch.uint8)
    exact = as_floats(pixels)
    assert torch.equal(to_pixels(exact, "round"), pixels)
    between = (pixels[:255].float() + 0.9) / 127.5 - 1
    assert torch.equal(to_pixels(between, "round"), pixels[1:])
    assert torch.equal(to_pixels(between, "truncate"), pixels[:255])
    outside = torch.tensor([-3.0, 3.0])
    assert to_pixels(outside, "truncate").tolist() == [0, 255]
    for rule in ("round", "truncate"):
        with pytest.raises(ValueError, match="1 values are not finite"):
            to_pixels(torch.tensor([0.0, torch.nan]), rule)
        with pytest.raises(ValueError, match="expected floats"):
            to_pixels(pixels, rule)


def test_hash_of_images_knows_pixels_and_not_their_order() -> None:
    images = torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8)
    whole, parts, changed = ImageHash(), ImageHash(), ImageHash()
    whole.update(images)
    other = ImageHash()
    other.update(images[:2])
    parts.update(images[2:].flip(0))
    assert other.is_part_of(whole) and not whole.is_part_of(other)
    parts.merge(other)
    assert parts.hexdigest() == whole.hexdigest()
    images = images.clone()
    images[3, 0, 0, 0] ^= 1
    changed.update(images)
    assert changed.hexdigest() != whole.hexdigest()
    again = ImageHash()
    again.load_digests(whole.digests)
    assert again.hexdigest() == whole.hexdigest()
    again.add(b"moments")
    assert again.hexdigest() != whole.hexdigest()


@pytest.mark.parametrize(
    ("name", "better", "group"),
    [
        ("gFID", "lower", "distribution"),
        ("FD@efflite0", "lower", "distribution"),
        ("precision@random", "higher", "distribution"),
        ("lpips_vgg#2ecbe4ce", "lower", "perception"),
        ("ms_ssim_4x7", "higher", "pixels"),
        ("group_entropy_min_bits", "none", "codes"),
        ("duplicate_share", "lower", "memorisation"),
    ],
)
def test_catalogue_knows_names_with_networks(name: str, better: str, group: str) -> None:
    found = describe_metric(name)
    assert found[:2] == (better, group)
    assert found[2]
