"""Schedules as tables, guidance ramps and the Halton order: published numbers and exact laws."""

import dataclasses
import math
from fractions import Fraction
from itertools import pairwise
from typing import Any

import pytest
import torch

from tessella.generators.processes.masking import MaskSchedule
from tessella.sample.guidance import guidance_at, guide
from tessella.sample.halton import halton_cell, halton_order
from tessella.sample.masked_steps import (
    MaskedSampling,
    SamplingStep,
    format_table,
    sampling_table,
)

SCHEDULES: tuple[MaskSchedule, ...] = ("arccos", "cosine", "linear", "square")


def table(num_slots: int, **fields: Any) -> tuple[SamplingStep, ...]:
    return sampling_table(MaskedSampling(**fields), num_slots)


def hidden(num_slots: int, **fields: Any) -> list[int]:
    return [row.hidden for row in table(num_slots, **fields)]


def revealed(num_slots: int, **fields: Any) -> list[int]:
    return [row.revealed for row in table(num_slots, **fields)]


def test_arccos_with_64_steps_is_the_published_table() -> None:
    counts = hidden(512, num_steps=64, schedule="arccos")
    assert counts[:4] == [506, 501, 496, 491]
    assert counts[-4:] == [100, 81, 57, 0]
    steps = revealed(512, num_steps=64, schedule="arccos")
    assert steps[0] == 6 and set(steps[1:8]) <= {5, 6}
    assert steps[-2:] == [24, 57]


@pytest.mark.parametrize(
    ("num_steps", "last"), [(64, 57), (128, 40), (256, 28), (12, 134), (8, 164)]
)
def test_the_last_step_of_arccos_is_a_pile_up(num_steps: int, last: int) -> None:
    assert revealed(512, num_steps=num_steps, schedule="arccos")[-1] == last


def test_the_cosine_schedule_ends_gently() -> None:
    """2.5 % of the slots are left before the last of 64 steps, 11 % with arccos."""
    assert hidden(512, num_steps=64, schedule="cosine")[-2] == math.floor(
        512 * math.cos(math.pi / 2 * 63 / 64)
    )
    assert hidden(10_000, num_steps=64, schedule="cosine")[-2] == 245
    assert hidden(10_000, num_steps=64, schedule="arccos")[-2] == 1126


@pytest.mark.parametrize(
    ("num_slots", "start", "end"),
    [(256, [5, 5, 5], [11, 14, 17, 41]), (576, [11, 11, 12], [30, 39, 92])],
)
def test_halton_counts_are_the_references(num_slots: int, start: list[int], end: list[int]) -> None:
    counts = revealed(num_slots, num_steps=32, sampler="halton", schedule="arccos")
    assert counts[: len(start)] == start
    assert counts[-len(end) :] == end
    before, expected = 0, []
    for i in range(32):  # acos(1/2) is exactly a third of pi: the reference's floats miss that
        share = 1 - math.acos((i + 1) / 32) / (math.pi / 2)
        reached = max(i + 1, int(share * num_slots + 1e-9))
        expected.append(reached - before)
        before = reached
    assert counts == expected


def reference_counts(num_slots: int, num_steps: int, schedule: MaskSchedule) -> list[int]:
    """Hidden slots after each step, by the formulas of MaskBit in float32; the last is ignored."""
    counts, before = [], num_slots
    for i in range(num_steps):
        r = torch.tensor((i + 1) / num_steps)
        share = {
            "arccos": lambda r: torch.acos(r) / (math.pi * 0.5),
            "cosine": lambda r: torch.cos(r * math.pi * 0.5),
            "linear": lambda r: 1 - r,
            "square": lambda r: 1 - (r**2),
        }[schedule](r)
        before = int(torch.floor(torch.clamp(share, 1e-6, 1.0) * num_slots).clamp(1, before - 1))
        counts.append(before)
    return [*counts[:-1], 0]


def test_published_counts_are_the_references_float32() -> None:
    """The named case is linear, 192 slots in 12 steps: 127.99999 hidden slots are 127, not 128."""
    assert reference_counts(192, 12, "linear")[3] == 127
    assert hidden(192, num_steps=12, schedule="linear", counts="published")[3] == 127
    assert hidden(192, num_steps=12, schedule="linear")[3] == 128
    assert hidden(512, num_steps=12, schedule="cosine", counts="published")[7] == 255
    assert hidden(512, num_steps=12, schedule="cosine")[7] == 256
    different = 0
    for schedule in SCHEDULES:
        for num_slots in (64, 128, 192, 256, 512, 576, 1024):
            for num_steps in (4, 8, 12, 16, 32, 64, 128, 256):
                if num_steps < num_slots:
                    expected = reference_counts(num_slots, num_steps, schedule)
                    fields = {"num_steps": num_steps, "schedule": schedule}
                    assert hidden(num_slots, **fields, counts="published") == expected, fields
                    different += hidden(num_slots, **fields) != expected
    assert 0 < different < 20


def test_published_halton_counts_are_the_references_float32() -> None:
    different = 0
    for num_slots in (64, 192, 256, 576, 1023):
        for num_steps in (3, 8, 12, 32, 60):
            before, expected = 0, []
            for i in range(num_steps):
                share = 1 - (torch.arccos(torch.tensor((i + 1) / num_steps)) / (math.pi * 0.5))
                reached = max(i + 1, int(share * num_slots))
                expected.append(reached - before)
                before = reached
            fields = {"num_steps": num_steps, "sampler": "halton", "schedule": "arccos"}
            assert revealed(num_slots, **fields, counts="published") == expected, fields
            different += revealed(num_slots, **fields) != expected
    assert 0 < different < 20


@pytest.mark.parametrize("counts", ["exact", "published"])
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("sampler", ["confidence", "halton", "entropy"])
def test_every_table_reveals_everything_once(
    schedule: MaskSchedule, sampler: Any, counts: Any
) -> None:
    """Invariant 4, for every number of steps that is allowed."""
    for num_slots in (*range(1, 20), 64, 127):
        for num_steps in range(1, num_slots + 1):
            fields = {"num_steps": num_steps, "schedule": schedule, "sampler": sampler}
            rows = table(num_slots, **fields, counts=counts)
            assert [row.step for row in rows] == list(range(1, num_steps + 1))
            assert sum(row.revealed for row in rows) == num_slots
            assert rows[-1].hidden == 0
            before = num_slots
            for row in rows:
                assert row.revealed >= 1
                assert row.hidden == before - row.revealed
                before = row.hidden


def test_linear_reveals_equally_many_in_every_step() -> None:
    for sampler in ("confidence", "halton"):
        for num_slots in (*range(1, 33), 49, 64, 100, 127, 128):
            for num_steps in range(1, num_slots + 1):
                counts = revealed(
                    num_slots, num_steps=num_steps, schedule="linear", sampler=sampler
                )
                assert max(counts) - min(counts) <= 1, (num_slots, num_steps)


def test_as_many_steps_as_slots_reveal_one_each() -> None:
    for schedule in SCHEDULES:
        assert revealed(128, num_steps=128, schedule=schedule) == [1] * 128


def test_one_step_reveals_all() -> None:
    for schedule in SCHEDULES:
        assert revealed(77, num_steps=1, schedule=schedule) == [77]


@pytest.mark.parametrize(("num_slots", "num_steps"), [(512, 16), (16, 16), (5, 5), (1, 1)])
def test_without_a_number_there_are_16_steps_or_fewer(num_slots: int, num_steps: int) -> None:
    assert len(table(num_slots)) == num_steps


def test_more_steps_than_slots_are_refused() -> None:
    with pytest.raises(ValueError, match="num_steps: 40 steps for 32 slots to reveal"):
        table(32, num_steps=40)
    assert len(table(32, num_steps=32)) == 32


def test_temperature_and_randomness_are_linear() -> None:
    """Invariant 7: the noise factor of the last step is 0, that of step i is 1 - (i + 1) / N."""
    rows = table(64, num_steps=4, temperature=1.3, temperature_end=0.5, randomness=8.0)
    assert [row.randomness for row in rows] == [6.0, 4.0, 2.0, 0.0]
    assert [row.temperature for row in rows] == pytest.approx([1.1, 0.9, 0.7, 0.5])
    assert {row.temperature for row in table(64, num_steps=4, temperature=0.7)} == {0.7}
    assert table(64, num_steps=3, temperature_end=0.0)[-1].temperature == 0
    assert {row.randomness for row in table(64, num_steps=4, sampler="halton")} == {0.0}


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("power", [0.5, 1.0, 3.0])
def test_guidance_ramps_start_off_and_grow(schedule: Any, power: float) -> None:
    """Invariant 6: the first step costs one pass."""
    rows = table(512, num_steps=64, guidance=8.1, guidance_schedule=schedule, guidance_power=power)
    scales = [row.guidance for row in rows]
    assert scales[0] == 1
    assert all(a < b for a, b in pairwise(scales))
    assert scales[-1] < 8.1


def test_guidance_ramps_are_the_formulas() -> None:
    for i in (0, 3, 7):
        x = i / 8
        cosine = 1 + 7.1 * (1 - math.cos(math.pi * x**3)) / 2
        assert guidance_at(i, 8, 8.1, "cosine", 3.0) == pytest.approx(cosine, abs=1e-12)
        assert guidance_at(i, 8, 8.1, "linear", 3.0) == pytest.approx(1 + 7.1 * x, abs=1e-12)
        assert guidance_at(i, 8, 8.1, "constant", 3.0) == pytest.approx(8.1, abs=1e-12)


@pytest.mark.parametrize(("num_steps", "s", "mean"), [(64, 7.1, 1.56), (256, 5.8, 1.31)])
def test_mean_guidance_is_the_published_one(num_steps: int, s: float, mean: float) -> None:
    rows = table(512, num_steps=num_steps, guidance=1 + s, guidance_power=3.0)
    assert sum(row.guidance - 1 for row in rows) / num_steps == pytest.approx(mean, abs=0.006)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_guidance_1_is_off_in_every_step(schedule: Any) -> None:
    assert {row.guidance for row in table(64, guidance=1.0, guidance_schedule=schedule)} == {1}


def test_guide_in_the_one_convention() -> None:
    cond, uncond = torch.tensor([1.0, -2.0, 3.0]), torch.tensor([0.5, -2.0, 5.0])
    assert torch.equal(guide(cond, uncond, 1.0), cond)
    assert torch.equal(guide(cond, uncond, 0.0), uncond)
    assert guide(cond, uncond, 3.0).tolist() == [2.0, -2.0, -1.0]
    assert torch.equal(guide(cond, uncond, torch.tensor(3.0)), guide(cond, uncond, 3.0))
    s = 2.0  # the paper's form
    assert torch.equal(guide(cond, uncond, 1 + s), cond + s * (cond - uncond))


def test_guide_leaves_what_both_agree_on() -> None:
    """Invariant 6; and entries beyond a smaller group stay at -inf instead of turning NaN."""
    same = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    same[::7] = -torch.inf
    for scale in (0.0, 1.0, 8.1, 1e4):
        assert torch.equal(guide(same, same.clone(), scale), same)


def test_a_table_reads_like_a_table() -> None:
    rows = table(512, num_steps=64, guidance=8.1)
    lines = format_table(rows).splitlines()
    assert len(lines) == 65
    assert lines[0].split() == [field.name for field in dataclasses.fields(SamplingStep)]
    assert len({len(line) for line in lines}) == 1
    last = lines[-1].split()
    assert [int(word) for word in last[:3]] == [64, 57, 0]
    assert [float(word) for word in last[3:]] == pytest.approx(
        [rows[-1].guidance, rows[-1].temperature, rows[-1].randomness], abs=5e-4
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_steps": 0}, "num_steps: expected at least 1, found 0"),
        ({"guidance": -1.0}, r"guidance: expected at least 0, found -1\.0"),
        ({"guidance": math.nan}, "guidance: expected at least 0, found nan"),
        ({"guidance": math.inf}, "guidance: expected at least 0, found inf"),
        ({"temperature": -0.5}, r"temperature: expected at least 0, found -0\.5"),
        ({"temperature_end": -0.5}, r"temperature_end: expected at least 0, found -0\.5"),
        ({"randomness": -1.0}, r"randomness: expected at least 0, found -1\.0"),
        ({"guidance_power": 0.0}, r"guidance_power: must be > 0, found 0\.0"),
        ({"sampler": "confidnce"}, "sampler: expected confidence, halton, entropy, found 'confid"),
        ({"schedule": "root"}, "schedule: expected arccos, cosine, linear, square, found 'root'"),
        ({"guidance_schedule": "late"}, "guidance_schedule: expected constant, linear, cosine, fo"),
        ({"halton_groups": "both"}, "halton_groups: expected passes, together, found 'both'"),
        ({"counts": "exakt"}, "counts: expected exact, published, found 'exakt'"),
    ],
)
def test_impossible_settings_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MaskedSampling(**fields)


def test_what_the_table_counts_as_one() -> None:
    assert MaskedSampling(sampler="halton", halton_groups="together").unit(3) == 3
    assert MaskedSampling(sampler="halton", halton_groups="passes").unit(3) == 1
    assert MaskedSampling(sampler="confidence", halton_groups="together").unit(3) == 1


def test_the_halton_order_starts_as_published() -> None:
    cells = [divmod(cell, 16) for cell in halton_order((16, 16)).tolist()[:6]]
    assert cells == [(8, 5), (4, 10), (12, 1), (2, 7), (10, 12), (6, 3)]


@pytest.mark.parametrize(
    "shape", [(1,), (7,), (256,), (1, 9), (2, 2), (16, 16), (24, 24), (32, 32), (5, 27), (3, 4, 5)]
)
def test_the_halton_order_is_a_permutation(shape: tuple[int, ...]) -> None:
    """Invariant 10."""
    order = halton_order(shape)
    assert order.dtype == torch.int64
    assert torch.equal(order.sort().values, torch.arange(math.prod(shape)))


def test_a_64x64_grid_is_complete() -> None:
    """10,000 points would miss 6 cells."""
    order = halton_order((64, 64))
    assert torch.equal(order.sort().values, torch.arange(4096))


def exact_point(number: int, base: int) -> Fraction:
    value, share = Fraction(0), Fraction(1, base)
    while number:
        number, digit = divmod(number, base)
        value, share = value + digit * share, share / base
    return value


@pytest.mark.parametrize("shape", [(9, 9), (12, 27), (16, 16)])
def test_the_halton_order_is_that_of_exact_fractions(shape: tuple[int, int]) -> None:
    seen: dict[int, None] = {}
    number = 0
    while len(seen) < math.prod(shape):
        number += 1
        row, column = (
            int(exact_point(number, base) * size) for base, size in zip((2, 3), shape, strict=True)
        )
        seen.setdefault(row * shape[1] + column)
    assert halton_order(shape).tolist() == list(seen)
    assert halton_cell(1, 3, 9) == 3 and halton_cell(8, 3, 9) == 8


def test_every_prefix_is_spread_over_the_quadrants() -> None:
    """Invariant 10: n / 4 +- 4 of the first n cells, for every n; measured 3.75."""
    order = halton_order((16, 16))
    quadrant = (order // 16 // 8) * 2 + order % 16 // 8
    counts = torch.nn.functional.one_hot(quadrant, 4).cumsum(0)
    n = torch.arange(1, 257)[:, None]
    worst = (counts - n / 4).abs().max().item()
    assert worst == 3.75
    row_major = torch.arange(256)
    quadrant = (row_major // 16 // 8) * 2 + row_major % 16 // 8
    counts = torch.nn.functional.one_hot(quadrant, 4).cumsum(0)
    assert (counts - n / 4).abs().max() > 30  # the measure tells spread from unspread


def test_too_many_dimensions_are_refused() -> None:
    with pytest.raises(ValueError, match="at most 6 dimensions, found 7"):
        halton_order((2,) * 7)
