"""Metrics by quarters, and hiding an exact number of slots, against counting by hand."""

import torch

from tessella.generators.bucket_metrics import bucket_metrics, bucket_names
from tessella.generators.processes.masking import hide_exactly


def test_each_image_is_in_one_bucket_whichever_edge_belongs_to_it() -> None:
    share = torch.tensor([0.1, 0.25, 0.5, 0.6, 1.0])
    sums, counts = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0]), torch.ones(5)
    assert bucket_names("loss") == ["loss_0_25", "loss_25_50", "loss_50_75", "loss_75_100"]
    upper = bucket_metrics("loss", share, sums, counts)
    lower = bucket_metrics("loss", share, sums, counts, edge="lower")
    assert list(upper) == list(lower) == bucket_names("loss")
    assert [pair.tolist() for pair in upper.values()] == [[3, 2], [4, 1], [8, 1], [16, 1]]
    assert [pair.tolist() for pair in lower.values()] == [[1, 1], [2, 1], [12, 2], [16, 1]]


def test_the_slots_with_the_smallest_noise_are_hidden_and_no_padding() -> None:
    noise = torch.tensor([[[0.3, 0.1], [0.2, 0.9]], [[0.5, 0.6], [0.1, 0.2]]])
    real = torch.tensor([[[True, True], [True, True]], [[True, True], [False, False]]])
    found = hide_exactly(torch.tensor([3, 1]), real, noise)
    assert found.tolist() == [[[True, True], [True, False]], [[True, False], [False, False]]]
    assert torch.equal(hide_exactly(torch.tensor([4, 4]), real, noise), real)
