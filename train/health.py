"""Alarms about a training that goes wrong, with advice.

Measured over the window between two log lines, on the training tokens of every process, and over
the validations of a generator so far.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ..errors import UserError
from ..metrics.codes import CodeStatistics
from ..tokenizers.base import check_pixel_range
from ..tokens.tokens import TokenSpec

SETTLING_STEPS = 200
"""Steps after the warm-up before alarms about the cross-entropy are raised."""
MEMORIZATION_EVALUATIONS, MEMORIZATION_SHARE = 3, 0.03
"""Number of validations in a row that are worse than the best one by this share."""


@dataclass(frozen=True, kw_only=True)
class Alarm:
    """One symptom of a training that goes wrong.

    Args:
        what: Observation, with the number.
        advice: Remedies to try.
    """

    what: str
    advice: str

    def __str__(self) -> str:
        return f"{self.what}; try: {self.advice}"


class NonFiniteLoss(UserError, RuntimeError):
    """A loss became NaN or infinite; the run stops, nothing is masked."""


class CodeWindow:
    """Token statistics since the last report; indices stay on the device until then."""

    def __init__(self, spec: TokenSpec) -> None:
        self.statistics = CodeStatistics(spec.codebook_sizes)
        self._pending: list[Tensor] = []

    def add(self, indices: Tensor) -> None:
        """Add one batch of indices (B, N, G)."""
        self._pending.append(indices.detach())

    def flush(self) -> CodeStatistics:
        """Count the pending indices; return the statistics."""
        for indices in self._pending:
            self.statistics.update(indices)
        self._pending.clear()
        return self.statistics

    def reset(self) -> None:
        """Start a new window."""
        self.flush().reset()


def check_first_batch(images: Tensor) -> None:
    """Refuse a data source whose pixels are not in [-1, 1].

    Raises:
        ValueError: If they are not; the message has the range found.
    """
    low, high = images.float().aminmax()
    check_pixel_range(low.item(), high.item())


def code_alarms(codes: dict[str, float], vocab_size: int) -> list[Alarm]:
    """Alarms about the use of the codes, from `CodeStatistics.compute`.

    Low usage is an alarm only where the window had at least four tokens a code.
    """
    alarms = []
    stuck = codes.get("num_stuck_bits", 0)
    if stuck:
        alarms.append(
            Alarm(
                what=f"{stuck:.0f} bits hardly ever change (mean below 0.01 or above 0.99)",
                advice="a higher entropy weight, a longer entropy_boost, a lower learning rate, "
                "a lower commitment weight",
            )
        )
    usage = codes.get("codebook_usage", 1.0)
    if usage < 0.1 and codes["num_tokens"] >= 4 * vocab_size:
        alarms.append(
            Alarm(
                what=f"only {usage:.1%} of the codes were used",
                advice="an EMA codebook with revival, normalize: true, narrower codes, or bits",
            )
        )
    return alarms


def loss_alarms(losses: dict[str, float]) -> list[Alarm]:
    """Alarms about losses and gradient norms, from the means of a window."""
    alarms = []
    if losses.get("discriminator", 1.0) < 0.02:
        alarms.append(
            Alarm(
                what=f"the discriminator has won (its loss is {losses['discriminator']:.3g})",
                advice="a lower discriminator rate, a LeCam weight, a later adversarial start",
            )
        )
    for name in ("grad_norm", "discriminator_grad_norm"):
        if losses.get(name, 0.0) > 1000:
            alarms.append(
                Alarm(
                    what=f"{name} is {losses[name]:.3g} before clipping",
                    advice="a lower learning rate or a longer warm-up",
                )
            )
    return alarms


def prediction_alarms(record: dict[str, float], warmup_steps: int) -> list[Alarm]:
    """Alarms about the cross-entropy of a generator, from a line of the log.

    None in the warm-up and the 200 steps after it, when nothing can be said yet.
    """
    alarms: list[Alarm] = []
    if record["step"] < warmup_steps + SETTLING_STEPS:
        return alarms
    loss = record.get("masked_loss", record.get("cross_entropy"))
    uniform = record.get("uniform_loss")
    if loss is not None and uniform is not None and loss >= uniform:
        alarms.append(
            Alarm(
                what=f"the cross-entropy is {loss:.3f}; knowing nothing gives {uniform:.3f}",
                advice="a lower learning rate, a longer warm-up, norm: pre",
            )
        )
    seen, hidden = record.get("masked_loss_0_25"), record.get("masked_loss_75_100")
    if seen is not None and hidden is not None and seen >= hidden:
        alarms.append(
            Alarm(
                what=f"with nearly all tokens visible the loss is {seen:.3f}, with nearly none "
                f"{hidden:.3f}: the visible ones are of no use",
                advice="tessella info on store and tokenizer (wrong store or bit order), "
                "fewer bits in a group, more steps",
            )
        )
    return alarms


def memorization_alarms(
    records: Sequence[dict[str, float]], monitor: str = "masked_loss"
) -> list[Alarm]:
    """Alarm if validation gets worse while training gets better, from all lines of the log.

    Worse: three validations in a row more than 3 % above the best one. Better: a lower value of the
    metric `monitor` in training than at that best one.
    """
    measured = f"val_{monitor}"
    validations = [r for r in records if isinstance(r.get(measured), float)]
    if len(validations) <= MEMORIZATION_EVALUATIONS:
        return []
    best = min(validations, key=lambda r: r[measured])
    last = validations[-MEMORIZATION_EVALUATIONS:]
    limit = (1 + MEMORIZATION_SHARE) * best[measured]
    training = [r for r in records if isinstance(r.get(monitor), float)]
    before = [r[monitor] for r in training if r["step"] <= best["step"]]
    if not before or any(r[measured] <= limit for r in last):
        return []
    if training[-1][monitor] >= before[-1]:
        return []
    return [
        Alarm(
            what=f"validation was best at step {best['step']} "
            f"({best[measured]:.3f}, now {last[-1][measured]:.3f}) while the "
            "training loss falls: the generator memorizes its training data",
            advice="more views of the images, more dropout, a smaller model, fewer steps",
        )
    ]


def check_finite(record: dict[str, float], ids: Sequence[str]) -> None:
    """Stop the run on NaN or infinity.

    Raises:
        NonFiniteLoss: If a value is not finite; with the step, the names of the values and the
            images of the last batch.
    """
    bad = [name for name, value in record.items() if value != value or abs(value) == float("inf")]
    if bad:
        raise NonFiniteLoss(
            f"{', '.join(bad)} not finite at step {record['step']}; last batch: {', '.join(ids)}. "
            "Resume from the last checkpoint with a lower learning rate, or train in fp32."
        )
