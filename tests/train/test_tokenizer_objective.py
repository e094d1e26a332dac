"""Which loss counts when, and whose gradients it may touch."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from tessella.config import load_config
from tessella.train.ema import EMA
from tessella.train.engine import LossWindow, build_accelerator
from tessella.train.schedules import ema_decay_at
from tessella.train.tokenizer_recipe import TrainTokenizerConfig
from tessella.train.tokenizer_run import TokenizerRun

START, LEAD, RAMP = 6, 2, 4  # of debug.yaml


@pytest.fixture
def accelerator(reset_accelerate: None, debug_config: Path, tmp_path: Path) -> Accelerator:
    config = load_config(TrainTokenizerConfig, debug_config)
    return build_accelerator(config.run, tmp_path)


@pytest.fixture
def run(accelerator: Accelerator, debug_config: Path) -> Iterator[TokenizerRun]:
    """A run of debug.yaml before its first step."""
    yield TokenizerRun(load_config(TrainTokenizerConfig, debug_config), accelerator)


@pytest.fixture
def images() -> Tensor:
    rng = torch.Generator().manual_seed(0)
    return torch.rand(4, 3, 32, 32, generator=rng) * 2 - 1


def _gradients(module: torch.nn.Module) -> list[Tensor | None]:
    return [parameter.grad for parameter in module.parameters()]


def _tokenizer_losses(run: TokenizerRun, images: Tensor, step: int) -> tuple[Tensor, dict]:
    output = run.model(images)
    return run.objective.for_tokenizer(
        output, images, step, run.discriminator, run.tokenizer.last_layer
    )


def test_the_tokenizer_step_leaves_the_discriminator_alone(
    run: TokenizerRun, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the moment of either optimizer step, the other network has no gradient at all."""
    assert run.discriminator is not None
    seen: list[str] = []
    step_g, step_d = run.prepared_optimizer.step, run.prepared_d_optimizer.step

    def tokenizer_step() -> None:
        seen.append("tokenizer")
        assert all(g is not None and g.isfinite().all() for g in _gradients(run.tokenizer))
        assert all(gradient is None for gradient in _gradients(run.discriminator))
        step_g()

    def discriminator_step() -> None:
        seen.append("discriminator")
        assert all(g is not None and g.abs().sum() > 0 for g in _gradients(run.discriminator))
        assert all(gradient is None for gradient in _gradients(run.tokenizer))
        step_d()

    monkeypatch.setattr(run.prepared_optimizer, "step", tokenizer_step)
    monkeypatch.setattr(run.prepared_d_optimizer, "step", discriminator_step)
    run.step = START + 1
    before = [parameter.clone() for parameter in run.discriminator.parameters()]
    run.train_batch(images)
    assert seen == ["tokenizer", "discriminator"]
    assert all(g is None for g in _gradients(run.tokenizer) + _gradients(run.discriminator))
    after = list(run.discriminator.parameters())
    assert all(p.requires_grad for p in after)
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_the_discriminator_trains_alone_in_the_lead_steps_and_not_before(
    run: TokenizerRun, images: Tensor
) -> None:
    assert run.discriminator is not None
    for step, trains in ((START - LEAD - 1, False), (START - LEAD, True)):
        before = [parameter.clone() for parameter in run.discriminator.parameters()]
        run.step = step
        run.train_batch(images)
        pairs = zip(before, run.discriminator.parameters(), strict=True)
        assert any(not torch.equal(a, b) for a, b in pairs) == trains
        assert ("discriminator" in run.window.sums) == trains
        assert "adversarial" not in run.window.sums


def test_the_adversarial_term_is_absent_before_its_start(run: TokenizerRun, images: Tensor) -> None:
    """Before the start the sum is that of the other losses, and D is not even called."""
    before, losses = _tokenizer_losses(run, images, START - 1)
    assert "adversarial" not in losses
    expected = sum(run.config.loss_weights[name] * loss for name, loss in losses.items())
    boosted = run.config.losses.entropy_boost.extra * (1 - (START - 1) / 10)
    expected = expected + run.config.loss_weights["entropy"] * boosted * losses["entropy"]
    assert float(before.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    at, losses = _tokenizer_losses(run, images, START)
    boosted = run.config.losses.entropy_boost.extra * (1 - START / 10)
    expected = sum(run.config.loss_weights[name] * loss for name, loss in losses.items())
    expected = expected + run.config.loss_weights["entropy"] * boosted * losses["entropy"]
    missing = (1 - 1 / RAMP) * run.config.loss_weights["adversarial"] * losses["adversarial"]
    assert float(at.detach()) == pytest.approx(float((expected - missing).detach()), rel=1e-6)


def test_share_of_the_adversarial_weight(run: TokenizerRun) -> None:
    adversarial = run.config.adversarial
    assert adversarial is not None and adversarial.first_step == START - LEAD
    shares = [adversarial.share_at(step) for step in range(START - 2, START + RAMP + 2)]
    assert shares == [0.0, 0.0, 0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_entropy_counts_threefold_at_first_and_once_later(
    run: TokenizerRun, images: Tensor
) -> None:
    """The total at step s exceeds the last one by extra * (1 - s / steps) shares."""
    totals = {}
    for step in (0, 5, 10, 1000):
        output = run.model(images)
        total, losses = run.objective.for_tokenizer(
            output, images, step, None, run.tokenizer.last_layer
        )
        totals[step] = float(total.detach())
    share = run.config.loss_weights["entropy"] * float(losses["entropy"].detach())
    assert totals[0] - totals[1000] == pytest.approx(2 * share, rel=1e-4)
    assert totals[5] - totals[1000] == pytest.approx(share, rel=1e-4)
    assert totals[10] == totals[1000]


def test_the_perceptual_network_is_frozen(run: TokenizerRun, images: Tensor) -> None:
    """No parameter of it trains or is in an optimizer, and a step leaves it as it was."""
    perceptual = run.objective.perceptual
    assert perceptual is not None
    assert not [name for name, p in perceptual.named_parameters() if p.requires_grad]
    state = {name: tensor.clone() for name, tensor in perceptual.state_dict().items()}
    frozen = {id(p) for p in perceptual.parameters()}
    for optimizer in (run.optimizer, run.d_optimizer):
        assert not frozen & {id(p) for group in optimizer.param_groups for p in group["params"]}
    run.train_batch(images)
    assert all(torch.equal(state[name], t) for name, t in perceptual.state_dict().items())


def test_the_average_follows_its_formula() -> None:
    """First update copies, the n-th lerps by min((1 + n) / (10 + n), max); buffers are copied."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    ema, expected = EMA(model, 0.3), None
    assert [ema_decay_at(n, 0.3) for n in (0, 1, 2, 3, 99)] == [0.0, 2 / 11, 0.25, 0.3, 0.3]
    for n in range(4):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_()
        model(torch.randn(5, 3))
        ema.update(model)
        decay = ema_decay_at(n, 0.3)
        now = model[0].weight.detach().clone()
        expected = now if expected is None else decay * expected + (1 - decay) * now
        torch.testing.assert_close(ema.module[0].weight, expected)
        assert torch.equal(ema.module[1].running_mean, model[1].running_mean)
    assert not any(p.requires_grad for p in ema.module.parameters()) and not ema.module.training


def test_means_are_over_the_steps_that_have_the_value() -> None:
    """A loss that begins inside a window is not diluted by the steps before it began."""

    class OneProcess:
        device = torch.device("cpu")

        @staticmethod
        def reduce(value: torch.Tensor, kind: str) -> torch.Tensor:
            return value

    window = LossWindow()
    window.add({"loss": torch.tensor(1.0)})
    restored = LossWindow()
    restored.load_state_dict(window.state_dict(), torch.device("cpu"))
    restored.add({"loss": torch.tensor(3.0), "discriminator": torch.tensor(0.9)})
    means = restored.means(OneProcess())  # type: ignore[arg-type]
    assert means == {"loss": 2.0, "discriminator": pytest.approx(0.9)}
    assert restored.means(OneProcess()) == {}  # type: ignore[arg-type]
