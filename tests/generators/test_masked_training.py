"""The training step of MaskBit and MaskGIT: labels, corruption, loss and metrics."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tessella.generators.bucket_metrics import BUCKETS, bucket_name
from tessella.generators.noise import uniform
from tessella.generators.processes.masking import MEAN_SHARE, MaskSchedule, masked_share
from tessella.tests.cases import over
from tessella.tokens.tokens import TokenSpec

SCHEDULES: tuple[MaskSchedule, ...] = ("arccos", "cosine", "linear", "square")
KINDS = ("maskbit", "maskgit")
BITS = TokenSpec((3, 4), (2,) * 6)
VQ = TokenSpec((3, 4), (32,))
MIXED = TokenSpec((3, 4), (8, 5, 3))
ORDERED = TokenSpec((12,), (16,), ordered=True)
PAIRS = [
    ("maskbit", BITS, None),
    ("maskbit", VQ, (8, 4)),
    ("maskgit", VQ, None),
    ("maskgit", BITS, (8, 8)),
    ("maskgit", MIXED, (8, 5, 3)),
    ("maskbit", ORDERED, (4, 4)),
    ("maskgit", ORDERED, None),
]


@pytest.mark.parametrize("kind", KINDS)
def test_every_way_to_give_no_label_is_the_same(make: Any, kind: str) -> None:
    generator, tokens = make.randomised(kind, BITS, label_dropout=0.0), make.tokens(BITS)
    seeds = torch.arange(3)
    ways = [None, torch.tensor([-1, -1, -1]), torch.tensor([3, 3, 3]), torch.tensor([-1, 3, -1])]
    losses = [generator(tokens, labels, seeds=seeds).loss for labels in ways]
    assert all(torch.equal(loss, losses[0]) for loss in losses)
    labelled = generator(tokens, torch.tensor([0, 1, 2]), seeds=seeds).loss
    assert not torch.equal(labelled, losses[0])


def test_the_callers_labels_and_tokens_stay_as_they_are(make: Any) -> None:
    """Invariant 9; the reference writes the null label into the caller's tensor."""
    generator, tokens = make("maskbit", BITS, label_dropout=1.0), make.tokens(BITS)
    labels, before = torch.tensor([0, -1, 2]), tokens.indices.clone()
    generator(tokens, labels, seeds=torch.arange(3))
    assert labels.tolist() == [0, -1, 2]
    assert torch.equal(tokens.indices, before)


def test_label_dropout_hides_its_share_of_labels(make: Any) -> None:
    """Of n = 4000 labels 0.3 within 4 sigma; the rest is kept; none without dropout."""
    count, share = 4000, 0.3
    spec = TokenSpec((1,), (2,) * 2)
    tokens = make.tokens(spec, count)
    labels = torch.arange(count) % 3
    seen: list[Tensor] = []

    def dropped(label_dropout: float) -> Tensor:
        generator = make("maskbit", spec, label_dropout=label_dropout)
        generator.class_embedding.register_forward_hook(lambda m, args, out: seen.append(args[0]))
        generator(tokens, labels, seeds=torch.arange(count))
        assert ((seen[-1] == labels) | (seen[-1] == 3)).all()
        return seen[-1] == 3

    bound = 4 * math.sqrt(share * (1 - share) / count)
    some = dropped(share)
    assert abs(some.float().mean().item() - share) < bound
    for label in range(3):  # whatever the label, 4 sigma of a third of them
        part = some[labels == label].float().mean().item()
        assert abs(part - share) < bound * math.sqrt(3.01)
    assert not dropped(0.0).any()
    assert dropped(1.0).all()


def test_label_dropout_and_masked_share_are_independent(make: Any) -> None:
    """n = 4000 images, 30 % of the labels dropped: the mean masked share of these is that of the
    others within 4 sigma; the share of an image of 2 slots has sigma below 0.45."""
    count, spec = 4000, TokenSpec((2,), (4,))
    generator = make("maskgit", spec, label_dropout=0.3)
    seen: list[Tensor] = []
    generator.class_embedding.register_forward_hook(lambda m, args, out: seen.append(args[0]))
    hidden = masks(generator, count, spec, make, labels=torch.zeros(count, dtype=torch.int64))
    share, dropped = hidden.float().mean((1, 2)), seen[0] == 3
    gap = share[dropped].mean() - share[~dropped].mean()
    assert abs(gap.item()) < 4 * 0.45 * math.sqrt(1 / (0.3 * count) + 1 / (0.7 * count))


def test_an_unconditional_model_ignores_labels(make: Any) -> None:
    generator, tokens = make.randomised("maskbit", BITS, num_classes=0), make.tokens(BITS)
    assert generator.class_embedding.num_embeddings == 1
    seeds = torch.arange(3)
    with_labels = generator(tokens, torch.tensor([5, -1, 0]), seeds=seeds).loss
    assert torch.equal(with_labels, generator(tokens, seeds=seeds).loss)


def masks(
    generator: Any,
    count: int,
    spec: TokenSpec,
    make: Any,
    first_seed: int = 0,
    labels: Tensor | None = None,
) -> Tensor:
    """The masks of a training step over `count` images."""
    seen: list[Tensor] = []
    hook = generator.input.register_forward_pre_hook(lambda m, args: seen.append(args[1]))
    with torch.no_grad():
        generator(make.tokens(spec, count), labels, seeds=torch.arange(count) + first_seed)
    hook.remove()
    return seen[0]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("mask_count", ["independent", "exact"])
def test_mean_masked_share_is_that_of_the_schedule(
    make: Any, schedule: MaskSchedule, mask_count: str
) -> None:
    """Invariant 8. n = 20,000 images: the share of an image has sigma below 0.33 whatever the
    schedule, so 4 sigma are below 1 %; `exact` rounds and hides at least one of 16."""
    spec, count = TokenSpec((8,), (4, 4)), 20_000
    generator = make(
        "maskgit",
        spec,
        codebook_sizes=(4, 4),
        mask_schedule=schedule,
        mask_count=mask_count,
    )
    hidden = masks(generator, count, spec, make)
    found = hidden.float().mean().item()
    assert abs(found - MEAN_SHARE[schedule]) < 4 * 0.33 / math.sqrt(count)
    # every (position, group) on its own, and groups of a position independently
    per_slot = hidden.float().mean(0)
    assert (per_slot - MEAN_SHARE[schedule]).abs().max() < 4 * 0.5 / math.sqrt(count) + 0.002
    assert (hidden[..., 0] ^ hidden[..., 1]).float().mean() > 0.05


def test_independent_masking_is_binomial_given_the_share(make: Any) -> None:
    """Linear schedule: the share is uniform, so each number of hidden slots 0..16 is equally
    likely; n = 20,000 images, every count within 4 sigma."""
    spec, count = TokenSpec((8,), (4, 4)), 20_000
    generator = make("maskgit", spec, codebook_sizes=(4, 4), mask_schedule="linear")
    numbers = masks(generator, count, spec, make).sum((1, 2))
    found = torch.bincount(numbers, minlength=17)
    p = 1 / 17
    assert len(found) == 17
    assert (found - count * p).abs().max() < 4 * math.sqrt(count * p * (1 - p))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_exact_counts_are_round_of_the_share_and_at_least_one(
    make: Any, schedule: MaskSchedule
) -> None:
    spec, count = TokenSpec((8,), (4, 4)), 500
    generator = make(
        "maskgit",
        spec,
        codebook_sizes=(4, 4),
        mask_schedule=schedule,
        mask_count="exact",
    )
    share = masked_share(uniform(torch.arange(count), 0, (2,))[:, 0], schedule)
    expected = (share * 16).round().clamp(min=1).long()
    found = masks(generator, count, spec, make).sum((1, 2))
    assert torch.equal(found, expected)
    assert expected.min() == 1 and expected.max() == 16


def test_exact_counts_are_of_the_real_positions_only(make: Any) -> None:
    generator = make("maskgit", ORDERED, mask_count="exact", codebook_sizes=(4, 4))
    tokens = make.tokens(ORDERED, 200)
    hidden = masks(generator, 200, ORDERED, make)
    assert not hidden[~tokens.valid].any()
    assert (hidden.sum((1, 2)) >= 1).all()
    assert (hidden.sum((1, 2)) == 2 * tokens.lengths).any()
    assert hidden[tokens.valid].float().mean() > 0.4


@pytest.mark.parametrize("mask_count", ["independent", "exact"])
def test_the_mask_of_an_image_depends_on_its_seed_alone(make: Any, mask_count: str) -> None:
    generator = make("maskbit", BITS, mask_count=mask_count)
    together = masks(generator, 8, BITS, make)
    for i in range(8):
        assert torch.equal(masks(generator, 1, BITS, make, first_seed=i)[0], together[i])
    assert together.flatten(1).unique(dim=0).shape[0] >= 7


def test_without_seeds_the_global_generator_decides(make: Any) -> None:
    generator, tokens = make("maskbit", BITS), make.tokens(BITS)
    losses = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        losses.append(generator(tokens).loss.item())
    assert losses[0] == losses[1] != losses[2]
    state = torch.get_rng_state()
    generator(tokens, seeds=torch.arange(3))
    assert torch.equal(torch.get_rng_state(), state)


def brute_force(
    logits: Tensor,
    targets: Tensor,
    mask: Tensor,
    valid: Tensor,
    sizes: tuple[int, ...],
    config: Any,
) -> dict[str, float]:
    """Loss and metrics slot by slot, in Python floats."""
    total = weights = nats = correct = count = 0.0
    for b, n, g in itertools.product(*map(range, targets.shape)):
        if not valid[b, n]:
            continue
        log_p = logits[b, n, g, : sizes[g]].double().log_softmax(0)
        smoothing, target = config.label_smoothing, int(targets[b, n, g])
        wanted = torch.full((sizes[g],), smoothing / sizes[g], dtype=torch.float64)
        wanted[target] += 1 - smoothing
        hidden = bool(mask[b, n, g])
        weight = 1.0 if hidden else config.unmasked_weight
        total += weight * -(wanted * log_p).sum().item()
        weights += weight
        if hidden:
            nats -= log_p[target].item()
            correct += int(log_p.argmax()) == target
            count += 1
    return {"loss": total / weights, "nats": nats, "correct": correct, "count": count}


@over(("kind", "spec", "sizes"), PAIRS)
@over("unmasked_weight", [0.0, 0.1, 1.0])
def test_the_loss_is_the_smoothed_cross_entropy(
    make: Any,
    kind: str,
    spec: TokenSpec,
    sizes: tuple[int, ...] | None,
    unmasked_weight: float,
) -> None:
    smoothing = 0.0 if unmasked_weight == 0.1 else 0.1
    generator = make.randomised(
        kind,
        spec,
        codebook_sizes=sizes,
        unmasked_weight=unmasked_weight,
        label_smoothing=smoothing,
    )
    seen: list[tuple[Tensor, Tensor]] = []
    inner = generator.predict

    def spy(indices: Tensor, mask: Tensor, *rest: Any) -> Tensor:
        seen.append((mask, inner(indices, mask, *rest)))
        return seen[-1][1]

    generator.predict = spy
    tokens = make.tokens(spec)
    out = generator(tokens, torch.tensor([0, 1, 2]), seeds=torch.arange(3) + 40)
    mask, logits = seen[0]
    targets = tokens.regroup(generator.codebook_sizes).indices
    expected = brute_force(
        logits, targets, mask, tokens.valid, generator.codebook_sizes, generator.config
    )
    assert out.loss.shape == () and out.loss.requires_grad
    assert out.loss.item() == pytest.approx(expected["loss"], rel=1e-5)
    assert out.metrics["masked_loss"].tolist() == pytest.approx(
        [expected["nats"], expected["count"]], rel=1e-5
    )
    assert out.metrics["masked_accuracy"].tolist() == [expected["correct"], expected["count"]]
    assert 0 < expected["count"] < tokens.valid.sum() * generator.num_groups
    assert not any(metric.requires_grad for metric in out.metrics.values())


@over("smoothing", [0.0, 0.1, 1.0])
@over(("kind", "spec", "sizes"), PAIRS)
def test_knowing_nothing_costs_log_k(
    make: Any, kind: str, spec: TokenSpec, sizes: tuple[int, ...] | None, smoothing: float
) -> None:
    """Invariant 11: the smoothed loss of a uniform predictor is ln V, mixed sizes included."""
    generator = make(
        kind, spec, codebook_sizes=sizes, label_smoothing=smoothing, unmasked_weight=1.0
    )
    with torch.no_grad():
        for parameter in (generator.dense_norm.weight, generator.dense_norm.bias):
            parameter.zero_()
    out = generator(make.tokens(spec), seeds=torch.arange(3))
    assert out.loss.item() == pytest.approx(generator.uniform_loss, rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_without_hidden_slots_has_a_finite_loss(
    make: Any, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = make(kind, BITS, unmasked_weight=0.0)
    monkeypatch.setattr(
        generator, "_hide", lambda seeds, share, real: torch.zeros_like(real, dtype=torch.bool)
    )
    out = generator(make.tokens(BITS), seeds=torch.arange(3))
    assert out.loss.item() == 0
    out.loss.backward()
    for name, parameter in generator.named_parameters():
        assert parameter.grad is not None and not parameter.grad.any(), name
    for name, metric in out.metrics.items():
        assert metric.tolist() == [0, 0], name


def test_a_single_slot_is_sometimes_not_hidden_and_the_loss_stays_finite(make: Any) -> None:
    """Without patching anything: one slot an image, masked-only loss, one image a batch."""
    spec = TokenSpec((1,), (4,))
    generator = make("maskgit", spec, unmasked_weight=0.0)
    tokens, zeros = make.tokens(spec, 1), 0
    for seed in range(20):
        out = generator(tokens, seeds=torch.tensor([seed]))
        assert out.loss.isfinite()
        zeros += int(out.metrics["masked_loss"][1] == 0)
    assert 0 < zeros < 20


def test_metrics_are_sums_that_add_up_over_batches_and_buckets(make: Any) -> None:
    generator = make.randomised("maskbit", BITS)
    tokens, seeds = make.tokens(BITS, 24), torch.arange(24)
    whole = generator(tokens, seeds=seeds).metrics
    parts = [generator(tokens[i : i + 1], seeds=seeds[i : i + 1]).metrics for i in range(24)]
    buckets = [bucket_name("masked_loss", low, high) for low, high in itertools.pairwise(BUCKETS)]
    assert buckets == [f"masked_loss_{a}" for a in ("0_25", "25_50", "50_75", "75_100")]
    assert list(whole) == ["masked_loss", "masked_accuracy", *buckets]
    for name, value in whole.items():
        assert value.shape == (2,) and value.dtype == torch.float32
        added = torch.stack([part[name] for part in parts]).sum(0)
        torch.testing.assert_close(added, value, rtol=1e-5, atol=0, msg=name)
    in_buckets = sum(whole[name] for name in buckets)
    torch.testing.assert_close(in_buckets, whole["masked_loss"], rtol=1e-5, atol=0)
    assert all(whole[name][1] > 0 for name in buckets)


def test_an_image_counts_in_the_bucket_of_its_share(make: Any) -> None:
    generator = make("maskbit", BITS)
    tokens, seen = make.tokens(BITS, 1), set()
    slots = BITS.num_tokens * generator.num_groups
    for seed in range(12):
        seeds = torch.tensor([seed])
        metrics = generator(tokens, seeds=seeds).metrics
        share = metrics["masked_loss"][1].item() / slots
        for low, high in itertools.pairwise(BUCKETS):
            here = low <= share < high or share == high == 1
            name = bucket_name("masked_loss", low, high)
            assert metrics[name][1] == (metrics["masked_loss"][1] if here else 0)
            seen |= {low} if here else set()
    assert len(seen) == 4


@over(("kind", "spec", "sizes"), PAIRS)
@over("mixed_precision", [False, True], ids=["fp32", "bf16"])
def test_gradients_reach_every_parameter(
    make: Any,
    kind: str,
    spec: TokenSpec,
    sizes: tuple[int, ...] | None,
    mixed_precision: bool,
) -> None:
    generator = make(kind, spec, codebook_sizes=sizes)
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed_precision):
        out = generator(make.tokens(spec, 8), torch.arange(8) % 3, seeds=torch.arange(8))
    assert out.loss.dtype == torch.float32
    out.loss.backward()
    for name, parameter in generator.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_bf16_changes_the_loss_little(make: Any) -> None:
    generator, tokens = make.randomised("maskbit", BITS), make.tokens(BITS)
    exact = generator(tokens, seeds=torch.arange(3)).loss
    with torch.autocast("cpu", torch.bfloat16):
        rounded = generator(tokens, seeds=torch.arange(3)).loss
    assert 0 < abs(rounded - exact) < 0.05
