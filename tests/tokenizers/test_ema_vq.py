"""EMA-VQ: running means against the recurrence in float64, revival, determinism."""

import copy

import pytest
import torch
from torch import Tensor

from tessella.tokenizers.quantizers.ema_vq import EMAVQ, EMAVQConfig

SIZE, DIM = 8, 4


def random_latents(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def build_ema_vq(**settings: object) -> EMAVQ:
    """A small quantizer with a fixed codebook and, unless told, no revival and no data init."""
    defaults = {"codebook_size": SIZE, "dim": DIM, "data_init": False, "revival_share": 0.0}
    quantizer = EMAVQ(EMAVQConfig(**(defaults | settings)))
    quantizer.codebook.copy_(quantizer._project(random_latents(SIZE, DIM, seed=99)))
    quantizer.sums.copy_(quantizer.codebook)
    return quantizer


@pytest.mark.parametrize("normalize", [False, True])
def test_three_updates_follow_the_recurrence(normalize: bool) -> None:
    quantizer = build_ema_vq(decay=0.9, epsilon=1e-3, normalize=normalize)
    codebook = quantizer.codebook.double()
    counts, sums = torch.ones(SIZE).double(), codebook.clone()
    for step in range(3):
        latents = random_latents(2, 32, DIM, seed=step)
        out = quantizer(latents)
        flat = latents.double().flatten(0, 1)
        if normalize:
            flat = torch.nn.functional.normalize(flat)
        nearest = (flat[:, None] - codebook).square().sum(-1).argmin(1)
        assert torch.equal(out.indices.flatten(), nearest)
        hits = torch.nn.functional.one_hot(nearest, SIZE).double()
        counts = 0.9 * counts + 0.1 * hits.sum(0)
        sums = 0.9 * sums + 0.1 * hits.T @ flat
        total = counts.sum()
        smoothed = (counts + 1e-3) / (total + SIZE * 1e-3) * total
        assert smoothed.sum().item() == pytest.approx(counts.sum().item())
        codebook = sums / smoothed[:, None]
        if normalize:
            codebook = torch.nn.functional.normalize(codebook)
        torch.testing.assert_close(quantizer.counts.double(), counts, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(quantizer.codebook.double(), codebook, rtol=1e-5, atol=1e-5)


def test_decay_zero_gives_the_cluster_means() -> None:
    quantizer = build_ema_vq(decay=0.0, epsilon=0.0)
    before = quantizer.codebook.clone()
    latents = random_latents(1, 20, DIM)
    indices = quantizer(latents).indices.flatten()
    for k in range(SIZE):
        mine = latents[0, indices == k]
        expected = mine.mean(0) if len(mine) else before[k]
        torch.testing.assert_close(quantizer.codebook[k], expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(quantizer.counts, torch.bincount(indices, minlength=SIZE).float())


def test_dead_codes_move_onto_latents_of_the_batch() -> None:
    quantizer = build_ema_vq(decay=0.5, revival_share=0.3)
    quantizer.codebook[5:] += 100  # nobody's nearest
    quantizer.sums.copy_(quantizer.codebook)
    latents = random_latents(2, 32, DIM)
    for step in range(4):
        indices = quantizer(latents).indices.flatten()
        if step == 0:
            assert indices.max() < 5
    share = 0.3 * quantizer.counts.sum() / SIZE
    assert quantizer.codebook.abs().max() < 10
    assert (quantizer.counts >= 0.9 * share).all()
    assert len(quantizer.encode(latents).unique()) > 5


def test_a_revived_code_is_a_latent_with_the_threshold_count() -> None:
    quantizer = build_ema_vq(decay=0.0, revival_share=0.5)
    quantizer.codebook[7] = 100.0
    latents = random_latents(1, 64, DIM)
    quantizer(latents)
    row = quantizer.codebook[7]
    assert (latents[0] == row).all(1).any()
    threshold = 0.5 * 64 / SIZE
    assert quantizer.counts[7].item() == pytest.approx(threshold)
    torch.testing.assert_close(quantizer.sums[7], row * threshold)
    assert (quantizer.counts >= threshold).all()


def test_data_init_takes_latents_of_the_first_batch_only() -> None:
    quantizer = build_ema_vq(data_init=True, decay=0.99)
    latents = random_latents(1, 40, DIM, seed=7)
    start = copy.deepcopy(quantizer)
    start._replace(torch.ones(SIZE, dtype=torch.bool), latents[0], count=1.0)
    assert all((latents[0] == row).all(1).any() for row in start.codebook)
    assert len(start.codebook.unique(dim=0)) == SIZE
    indices = quantizer(latents).indices
    assert torch.equal(indices, start.encode(latents))
    after_one = quantizer.codebook.clone()
    quantizer(random_latents(1, 40, DIM, seed=8) + 50)
    assert (quantizer.codebook - after_one).norm() < 0.5 * (after_one - 50).norm()
    assert quantizer.num_updates.item() == 2


def test_fewer_latents_than_codes_are_repeated() -> None:
    quantizer = build_ema_vq(data_init=True)
    latents = random_latents(1, 3, DIM)
    quantizer(latents)
    assert quantizer.codebook.isfinite().all()
    assert quantizer.encode(latents).shape == (1, 3, 1)


def test_updates_are_deterministic_and_ignore_the_global_rng() -> None:
    results = []
    for seed in (1, 2):
        quantizer = build_ema_vq(data_init=True, revival_share=0.5)
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        for step in range(5):
            quantizer(random_latents(2, 16, DIM, seed=step))
        assert torch.equal(torch.get_rng_state(), state)
        results.append(quantizer.state_dict())
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


def test_a_resumed_quantizer_continues_the_same_way() -> None:
    settings = {"data_init": True, "revival_share": 0.5}
    whole, first = build_ema_vq(**settings), build_ema_vq(**settings)
    batches = [random_latents(2, 16, DIM, seed=step) for step in range(6)]
    for batch in batches[:3]:
        whole(batch), first(batch)
    second = EMAVQ(first.config)
    second.load_state_dict(first.state_dict())
    for batch in batches[3:]:
        whole(batch), second(batch)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, second.state_dict()[name])


def test_only_training_steps_update() -> None:
    quantizer = build_ema_vq(data_init=True, revival_share=0.5)
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    latents = random_latents(2, 16, DIM)
    quantizer.encode(latents)
    quantizer.lookup(quantizer.encode(latents))
    quantizer.eval()(latents)
    for name, value in quantizer.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize("gradient", ["straight_through", "rotation"])
def test_returns_the_codes_that_were_chosen(gradient: str) -> None:
    """The codebook moves after the lookup; indices and values belong to the old one."""
    quantizer = build_ema_vq(decay=0.5, gradient=gradient)
    old = quantizer.codebook.clone()
    latents = random_latents(2, 16, DIM).requires_grad_()
    out = quantizer(latents)
    codes = old[out.indices[..., 0]]
    torch.testing.assert_close(out.quantized, codes, rtol=1e-5, atol=2e-6)
    assert not torch.equal(quantizer.codebook, old)
    expected = (latents - codes).square().mean().item()
    assert out.losses["commitment"].item() == pytest.approx(expected, rel=1e-6)
    out.losses["commitment"].backward()
    torch.testing.assert_close(latents.grad, 2 * (latents.detach() - codes) / latents.numel())


def test_has_no_parameters_and_one_loss() -> None:
    quantizer = build_ema_vq()
    assert not list(quantizer.parameters())
    assert quantizer.loss_names == ("commitment",)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_latents_give_the_codes_of_their_float32_upcast(dtype: torch.dtype) -> None:
    quantizer = build_ema_vq().eval()
    latents = random_latents(2, 100, DIM).to(dtype)
    full = quantizer(latents.float()).indices
    assert torch.equal(quantizer(latents).indices, full)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(quantizer(latents.float()).indices, full)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_converted_module_still_quantizes(dtype: torch.dtype) -> None:
    quantizer = build_ema_vq().eval().to(dtype)
    latents = random_latents(2, 16, DIM).to(dtype)
    out = quantizer(latents)
    assert torch.equal(out.indices, quantizer.encode(latents))
    assert quantizer.lookup(out.indices).dtype == torch.float32


@pytest.mark.parametrize(
    "settings,found",
    [({"decay": 1.0}, "decay.*found 1.0"), ({"revival_share": 1.0}, "revival_share.*found 1.0")],
)
def test_impossible_configs_are_refused(settings: dict, found: str) -> None:
    with pytest.raises(ValueError, match=found):
        EMAVQConfig(codebook_size=8, dim=4, **settings)
