"""`generate`: labels, seeds, batches, settings, and what it refuses."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from tessella.generators.base import ConditionalConfig, Generator
from tessella.generators.masked import MaskedGenerator
from tessella.sample import generate as module
from tessella.sample.folder import class_name
from tessella.sample.generate import choose_sampling, generate
from tessella.sample.masked_steps import MaskedSampling
from tessella.sample.request import class_labels
from tessella.tokens.tokens import SpecMismatch, Tokens, TokenSpec

SPEC = TokenSpec((4, 4), (2,) * 4)


@pytest.fixture(scope="module")
def generator(network: Any) -> MaskedGenerator:
    """Three named classes, 16 positions in two groups of 4 entries."""
    made = network("maskbit", SPEC)
    made.classes = ("grinning face", "cat", "ship")
    return made


@pytest.fixture
def known(generator: MaskedGenerator) -> Tokens:
    return generate(generator, [0, 1, 2], seeds=[7, 8, 9], num_steps=2)


def test_labels_and_seeds_have_defaults(generator: MaskedGenerator) -> None:
    fields: dict[str, Any] = {"num_steps": 2}
    one = generate(generator, **fields)
    assert len(one) == 1
    assert one.equal(generate(generator, [-1], seeds=[0], **fields))
    three = generate(generator, num=3, **fields)
    assert three.equal(generate(generator, [-1] * 3, seeds=torch.tensor([0, 1, 2]), **fields))
    assert three.equal(generate(generator, seeds=range(3), **fields))
    assert not three.equal(generate(generator, torch.tensor([0, 1, 2]), **fields))
    assert one.spec == SPEC
    assert not one.indices.requires_grad


def test_every_int64_is_a_seed(generator: MaskedGenerator) -> None:
    seeds = [-1, 2**63 - 1, -(2**63), 0]
    found = generate(generator, seeds=seeds, num_steps=2)
    assert found.indices.flatten(1).unique(dim=0).shape[0] == 4
    assert found.equal(generate(generator, seeds=torch.tensor(seeds), num_steps=2))


def test_the_global_generators_stay_as_they_are(generator: MaskedGenerator) -> None:
    before = torch.get_rng_state()
    generate(generator, [0], num_steps=2)
    assert torch.equal(torch.get_rng_state(), before)


def test_settings_come_from_the_card_and_are_replaced_by_name(generator: MaskedGenerator) -> None:
    assert choose_sampling(generator, None, {}) == MaskedSampling()
    card = {"sampling": {"num_steps": 5, "guidance": 2.0, "note": "not a field"}}
    generator.card = card
    try:
        assert choose_sampling(generator, None, {}) == MaskedSampling(num_steps=5, guidance=2.0)
        found = choose_sampling(generator, None, {"guidance": 3.0})
        assert found == MaskedSampling(num_steps=5, guidance=3.0)
        own = MaskedSampling(num_steps=2)
        assert choose_sampling(generator, own, {}) == own
        assert choose_sampling(generator, own, {"randomness": 1.0}) == dataclasses.replace(
            own, randomness=1.0
        )
        assert generate(generator, [1]).equal(generate(generator, [1], num_steps=5, guidance=2.0))
    finally:
        generator.card = None


def test_one_known_image_serves_all(generator: MaskedGenerator, known: Tokens) -> None:
    mask = torch.arange(16) < 6
    fields: dict[str, Any] = {"num_steps": 3, "seeds": [0, 1, 2, 3]}
    found = generate(generator, [0] * 4, known=known[:1], mask=mask, batch_size=3, **fields)
    assert torch.equal(found.indices[:, 6:], known.indices[:1, 6:].expand(4, -1, -1))
    repeated = Tokens(known.indices[:1].expand(4, -1, -1), SPEC)
    each = generate(generator, [0] * 4, known=repeated, mask=mask.expand(4, -1), **fields)
    assert each.equal(found)
    assert found.indices[:, :6].flatten(1).unique(dim=0).shape[0] == 4
    without_labels = generate(generator, known=known, mask=mask[None], num_steps=3)
    assert len(without_labels) == 3


@pytest.mark.parametrize("num_steps", [2, 6])
def test_masks_may_differ_between_images(
    generator: MaskedGenerator, known: Tokens, num_steps: int
) -> None:
    mask = torch.arange(16) < torch.tensor([[3], [16], [9]])
    fields: dict[str, Any] = {"known": known, "mask": mask, "num_steps": num_steps}
    found = generate(generator, [0, 1, 2], **fields)
    assert found.equal(generate(generator, [0, 1, 2], batch_size=1, **fields))
    assert torch.equal(found.indices[~mask], known.indices[~mask])


def test_without_num_steps_images_do_not_depend_on_their_batch(
    generator: MaskedGenerator, known: Tokens
) -> None:
    mask = torch.arange(16) < torch.tensor([[3], [16], [9]])
    fields: dict[str, Any] = {"known": known, "mask": mask}
    found = generate(generator, [0, 1, 2], **fields)
    assert found.equal(generate(generator, [0, 1, 2], batch_size=1, **fields))


def test_nothing_is_drawn_at_known_positions_of_any_group(
    generator: MaskedGenerator, known: Tokens
) -> None:
    for position in range(16):
        mask = torch.arange(16) == position
        found = generate(generator, [2], known=known[:1], mask=mask, num_steps=1)
        assert torch.equal(found.indices[:, ~mask], known.indices[:1, ~mask])


def test_compiled_batches_all_have_one_shape(
    generator: MaskedGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes, options = set(), []

    def compiled(network: Any, **given: Any) -> Any:
        options.append(given)

        def run(*state: Any) -> Tensor:
            shapes.add(tuple(state[0].shape))
            return network(*state)

        return run

    monkeypatch.setattr(module.torch, "compile", compiled)
    fields: dict[str, Any] = {"seeds": range(5), "num_steps": 3}
    expected = generate(generator, [0, 1, 2, 0, 1], batch_size=2, **fields)
    assert not options
    found = generate(generator, [0, 1, 2, 0, 1], batch_size=2, compile=True, **fields)
    assert found.equal(expected)
    assert shapes == {(2, 16, 2)}
    assert options == [{"fullgraph": True, "dynamic": False}]


def test_precision_is_chosen(generator: MaskedGenerator) -> None:
    seen = []
    handle = generator.dense.register_forward_hook(lambda m, a, out: seen.append(out.dtype))
    try:
        for precision in ("auto", "fp32", "bf16"):
            generate(generator, [0], num_steps=1, precision=precision).validate()
    finally:
        handle.remove()
    assert seen == [torch.float32, torch.float32, torch.bfloat16]


def test_progress_counts_images(
    generator: MaskedGenerator, capsys: pytest.CaptureFixture[str]
) -> None:
    generate(generator, num=5, num_steps=1, batch_size=2)
    assert capsys.readouterr().err == ""
    generate(generator, num=5, num_steps=1, batch_size=2, progress=True)
    assert "5/5" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labels": [3]}, r"labels: expected 0 to 2, or -1 for none, found \[3\]; classes: 0 gri"),
        ({"labels": [0, -2, 9]}, r"found \[-2, 9\]; classes: 0 grinning face, 1 cat, 2 ship"),
        ({"labels": [0.5]}, r"labels: expected whole numbers, one per image, found \[0\.5\]"),
        ({"labels": ["cat"]}, "labels: expected whole numbers"),
        ({"labels": 3}, "labels: expected whole numbers, one per image, found 3"),
        ({"labels": [2**70]}, "labels: expected whole numbers"),
        ({"labels": [True]}, "labels: expected whole numbers"),
        ({"labels": [[0]]}, "labels: expected whole numbers"),
        ({"labels": [0, 1], "seeds": [0]}, r"must agree, found \[2, 1, None\]"),
        (
            {"labels": [0, 1], "num": 3},
            r"labels, seeds, prompts and num must agree, found \[2, 3\]",
        ),
        ({"labels": []}, "expected at least one image"),
        ({"num": 0}, "expected at least one image"),
        ({"num": 1, "batch_size": 0}, "batch_size: expected at least 1, found 0"),
        ({"seeds": [0.5]}, "seeds: expected whole numbers"),
        ({"seeds": [[1]]}, "seeds: expected whole numbers, one per image"),
        ({"num": 1, "precision": "fp16"}, "precision: expected auto, fp32, bf16, found fp16"),
        ({"num": 1, "num_steps": 33}, "num_steps: 33 steps for 32 slots"),
        ({"num": 1, "sampler": "hilbert"}, "sampler: Input should be 'confidence', 'halton' or"),
        ({"num": 1, "num_steps": 2.5}, r"num_steps: Input should be a valid integer \(found 2\.5"),
        ({"num": 1, "guidance": None}, "guidance: Input should be a valid number"),
        ({"num": 1, "guidance": float("nan")}, "guidance: expected at least 0, found nan"),
        ({"num": 1, "guidance": -1.0}, r"guidance: expected at least 0, found -1\.0"),
        ({"num": 1, "lengths": [4]}, "lengths: .* is not ordered"),
        ({"num": 1, "mask": torch.ones(16).bool()}, "known tokens and the mask .* go together"),
    ],
)
def test_mistakes_are_refused(
    generator: MaskedGenerator, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        generate(generator, arguments.pop("labels", None), **arguments)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (None, "known tokens and the mask of positions to redraw go together"),
        (torch.ones(15).bool(), r"mask: expected \(N,\) or \(1 or 3, N\) .* found \(15,\)"),
        (torch.ones(16), r"mask: expected \(3, 16\) bool, found \(3, 16\) torch\.float32"),
        (torch.ones(16).long(), r"found \(3, 16\) torch\.int64"),
        (torch.ones(2, 16).bool(), r"with N = 16, or \(4 k, 4 k\) pixels, found \(2, 16\)"),
        (torch.ones(3, 4, 5).bool(), r"mask: expected .* found \(3, 4, 5\)"),
        (torch.zeros(16).bool(), "mask: nothing to draw anew in at least one image"),
        (torch.eye(3, 16).bool() & (torch.arange(3) < 2)[:, None], "in at least one image"),
    ],
)
def test_masks_that_do_not_fit_are_refused(
    generator: MaskedGenerator, known: Tokens, mask: Tensor | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        generate(generator, [0, 1, 2], known=known, mask=mask, num_steps=3)


def test_a_part_takes_no_more_steps_than_it_has_slots(
    generator: MaskedGenerator, known: Tokens
) -> None:
    """One position of two slots: three steps are two there; too many for an image stay refused."""
    mask = torch.arange(16) < 1
    drawn, two = (
        generate(generator, [0, 1, 2], known=known, mask=mask, num_steps=n) for n in (3, 2)
    )
    assert torch.equal(drawn.indices, two.indices)
    with pytest.raises(ValueError, match="33 steps for 32 slots to reveal"):
        generate(generator, [0, 1, 2], known=known, mask=mask, num_steps=33)


def test_known_tokens_that_do_not_fit_are_refused(
    generator: MaskedGenerator, known: Tokens
) -> None:
    mask = torch.arange(16) < 6
    with pytest.raises(ValueError, match="known: expected 1 or 2 images, found 3"):
        generate(generator, [0, 1], known=known, mask=mask)
    foreign = Tokens(torch.zeros(1, 9, 1, dtype=torch.int64), TokenSpec((3, 3), (7,)))
    with pytest.raises(SpecMismatch, match="the generator reads 4x4 tokens of"):
        generate(generator, [0], known=foreign, mask=mask)


@pytest.mark.parametrize("lengths", [[0, 4], [4, 11], [4], [4, 4, 4], [2.5, 3.0], [[4, 4]]])
def test_lengths_that_do_not_fit_are_refused(network: Any, lengths: list[Any]) -> None:
    generator = network("maskgit", TokenSpec((10,), (16,), ordered=True))
    with pytest.raises(ValueError, match="lengths: expected 2 numbers from 1 to 10, found"):
        generate(generator, [0, 1], lengths=lengths, num_steps=1)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("num_steps", [1, 4])
def test_guidance_of_an_unconditional_model_is_refused(
    network: Any, schedule: str, num_steps: int
) -> None:
    generator = network("maskbit", SPEC, num_classes=0)
    fields: dict[str, Any] = {"num_steps": num_steps, "guidance_schedule": schedule}
    with pytest.raises(ValueError, match="this generator is unconditional, there is nothing to"):
        generate(generator, num=2, guidance=2.0, **fields)
    with pytest.raises(ValueError, match=r"labels: this generator is unconditional, found \[1\]"):
        generate(generator, [1, -1], **fields)
    unlabelled = generate(generator, num=2, **fields)
    assert generate(generator, [-1, -1], **fields).equal(unlabelled)


def test_unknown_settings_are_named_with_a_near_one(generator: MaskedGenerator) -> None:
    with pytest.raises(TypeError, match="unknown argument 'num_step'; did you mean 'num_steps'"):
        generate(generator, [0], num_step=3)
    with pytest.raises(
        TypeError,
        match="'xyz'; generators of type maskbit have: sampler, num_steps",
    ):
        generate(generator, [0], xyz=3)


def test_a_generator_in_training_mode_is_refused(generator: MaskedGenerator) -> None:
    generator.train()
    try:
        with pytest.raises(ValueError, match="in training mode"):
            generate(generator, [0], num_steps=2)
    finally:
        generator.eval()


@pytest.mark.parametrize("stored", [{"guidance": "three"}, None, [1]])
def test_damaged_settings_in_the_card_are_named(generator: MaskedGenerator, stored: Any) -> None:
    generator.card = {"sampling": stored}
    try:
        with pytest.raises(ValueError, match="sampling in the generator's card"):
            generate(generator, [0])
    finally:
        generator.card = None


def test_a_generator_without_a_sampler_is_refused() -> None:
    class Unheard(ConditionalConfig):
        type, num_classes, label_dropout = "unheard", 3, 0.0

    with pytest.raises(TypeError, match="generate: no sampler for Generator"):
        generate(Generator(Unheard(), SPEC), [0])


def test_a_class_without_a_name_is_told_by_its_number(network: Any) -> None:
    """A generator may have more classes than its data has names."""
    model = network("maskbit", SPEC)
    model.classes = ("cat",)
    assert [class_name(model, label) for label in (0, 1, -1)] == ["cat", "1", "any"]


def test_class_names(generator: MaskedGenerator, network: Any) -> None:
    assert class_labels(generator, ["Ship", " grinning FACE ", "cat", "cat"]) == [2, 0, 1, 1]
    with pytest.raises(ValueError, match="class 'grining face': unknown; did you mean grinning fa"):
        class_labels(generator, ["cat", "grining face"])
    with pytest.raises(ValueError, match="class 'xyz': unknown; there are: grinning face, cat, sh"):
        class_labels(generator, ["xyz"])
    with pytest.raises(ValueError, match="has no class names; give labels instead"):
        class_labels(network("maskbit", SPEC), ["cat"])
