"""Bayesian flows over discrete data: beliefs instead of corrupted tokens, sharpened by messages.

The mathematics of arXiv:2308.07037 sections 5 and 6: no network, and no random numbers of its own.
Nothing is ever flipped or hidden. A receiver holds a belief about every variable, at first the
uniform one; noisy messages about the data come in, and Bayes' rule turns them into better beliefs.
A network reads the beliefs of all variables together and predicts the data; its loss is how many
nats the messages cost a receiver that expects what the network predicts.

Beliefs are kept as log-odds (bits) or as log-probabilities up to a constant (classes): there a
message is simply added, nothing overflows, and messages of accuracies a and b together are one of
accuracy a + b. So the flow distribution, the belief after all messages up to time t, is one message
of accuracy beta(t) = beta_1 t^2, and `message` is the only place where noise comes in.

`BitFlow` is `ClassFlow` with two classes in another parameterization: the log-odds are the
difference of the two log-probabilities, and their noise the difference of both over sqrt(2).
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

MAX_STEPS = 100_000
"""Largest number of steps of a chain."""


@dataclass(frozen=True)
class BayesianFlow(ABC):
    """One flow: its accuracies, messages and losses.

    Data x has the shape (B, ...) of its variables; beliefs and logits have that of `message`.
    Accuracies and times are (B,) or (). Messages are computed in the type of the noise, losses in
    that of the logits.

    Args:
        accuracy: Accuracy beta_1 of all messages together, > 0.

    Raises:
        ValueError: If the accuracy is not positive and finite.
    """

    accuracy: float

    def __post_init__(self) -> None:
        if not 0 < self.accuracy < float("inf"):
            raise ValueError(f"accuracy: must be > 0, found {self.accuracy}")

    def beta(self, t: Tensor) -> Tensor:
        """Accuracy of the messages up to time t in [0, 1], float64."""
        return self.accuracy * t.double().square()

    def alphas(self, num_steps: int, device: torch.device | None = None) -> Tensor:
        """Accuracies of the messages of n equal steps of time, (n,) float64: their sum is beta_1.

        Raises:
            ValueError: If there is no step, or more than `MAX_STEPS`.
        """
        if not 1 <= num_steps <= MAX_STEPS:
            raise ValueError(f"num_steps: expected 1 to {MAX_STEPS:,}, found {num_steps}")
        odd = 2 * torch.arange(num_steps, dtype=torch.float64, device=device) + 1
        return self.accuracy * odd / num_steps**2

    @abstractmethod
    def message(self, x: Tensor, accuracy: Tensor, noise: Tensor) -> Tensor:
        """Summand of a belief from a message about x; by itself, a draw of the flow distribution.

        Args:
            x: Data known to the sender, int64.
            accuracy: Accuracy of the message, at least 0; at 0 the message is exactly 0.
            noise: Standard normal, of the shape of beliefs.
        """

    @abstractmethod
    def network_input(self, beliefs: Tensor) -> Tensor:
        """The believed probabilities as numbers in [-1, 1], of the shape of `beliefs`."""

    @abstractmethod
    def log_probability(self, logits: Tensor, x: Tensor) -> Tensor:
        """Log-probability log p(x) of predicted logits, of the shape of x, in nats."""

    @abstractmethod
    def squared_error(self, logits: Tensor, x: Tensor) -> Tensor:
        """||e_x - p||^2 of the predicted p, of the shape of x, in [0, 2]; 0 where p = e_x alone."""

    @abstractmethod
    def draw(self, logits: Tensor, u: Tensor) -> Tensor:
        """A draw of the predicted distribution for each of the numbers u in (0, 1), int64."""

    @abstractmethod
    def mode(self, logits: Tensor) -> Tensor:
        """The likeliest value of each variable, int64; of equals the lowest."""

    @property
    @abstractmethod
    def size(self) -> int:
        """Number of values K of a variable."""

    def loss(self, logits: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """Continuous-time loss K beta_1 t ||e_x - p||^2 of every variable, in nats.

        Its mean over uniform t is what all messages cost, in the limit of many small ones.
        """
        weight = _over(self.size * self.accuracy * t.double(), x)
        return weight.to(logits.dtype) * self.squared_error(logits, x)

    def step_loss(self, logits: Tensor, x: Tensor, accuracy: Tensor, noise: Tensor) -> Tensor:
        """An estimate of what one message costs, in nats, of the shape of x.

        log N(y; sender of x) - log sum_k p_k N(y; sender of k), for the message y that the noise
        makes: the likelihood ratio of two senders is the exponential of what y adds to a belief,
        so this is log p(x | y) - log p(x). Its mean over the noise is the divergence of the
        predicted distribution of messages from the true one; the sum over the steps of a chain is
        the n-step loss. As in the paper one k makes all K numbers of y; the published code lets
        each of them have a k of its own, which is another distribution.
        """
        message = self.message(x, accuracy, noise)
        return self.log_probability(logits + message, x) - self.log_probability(logits, x)


@dataclass(frozen=True)
class BitFlow(BayesianFlow):
    """Bits in log-odds form: beliefs, logits and noise have the shape of the bits.

    A belief is log P(1) / P(0), after accuracy beta distributed as N(2 beta (2x - 1), 4 beta).
    """

    @property
    def size(self) -> int:
        """Number of values of a bit, 2."""
        return 2

    def message(self, x: Tensor, accuracy: Tensor, noise: Tensor) -> Tensor:
        """A message in log-odds: 2 a (2x - 1) + 2 sqrt(a) noise, a the accuracy."""
        accuracy = _over(accuracy, x).to(noise.dtype)
        return 2 * accuracy * (2 * x - 1) + 2 * accuracy.sqrt() * noise

    def network_input(self, beliefs: Tensor) -> Tensor:
        """2 P(1) - 1; the published two-class models read 2 P(0) - 1, the negative."""
        return torch.tanh(beliefs / 2)

    def log_probability(self, logits: Tensor, x: Tensor) -> Tensor:
        """Log-sigmoid of the logit of the true value."""
        return F.logsigmoid((2 * x - 1) * logits)

    def squared_error(self, logits: Tensor, x: Tensor) -> Tensor:
        """Twice the square of the probability of the other value."""
        return 2 * torch.sigmoid((1 - 2 * x) * logits).square()

    def draw(self, logits: Tensor, u: Tensor) -> Tensor:
        """1 where u is below P(1)."""
        return (u < logits.sigmoid()).long()

    def mode(self, logits: Tensor) -> Tensor:
        """1 where the logit is positive."""
        return (logits > 0).long()


@dataclass(frozen=True)
class ClassFlow(BayesianFlow):
    """Variables of K classes; beliefs, logits and noise have one more dimension of K.

    A belief is log theta up to a constant, after accuracy beta distributed as
    N(beta (K e_x - 1), beta K I).

    Args:
        codebook_size: Number of classes K, at least 2.
    """

    codebook_size: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.codebook_size < 2:
            raise ValueError(f"codebook_size: expected at least 2, found {self.codebook_size}")

    @property
    def size(self) -> int:
        """Number of classes K."""
        return self.codebook_size

    def message(self, x: Tensor, accuracy: Tensor, noise: Tensor) -> Tensor:
        """A message in log-probabilities: a (K e_x - 1) + sqrt(K a) noise, a the accuracy."""
        accuracy = _over(accuracy, noise).to(noise.dtype)
        mean = self.size * F.one_hot(x, self.size) - 1
        return accuracy * mean + (self.size * accuracy).sqrt() * noise

    def network_input(self, beliefs: Tensor) -> Tensor:
        """2 theta - 1."""
        return 2 * torch.softmax(beliefs, -1) - 1

    def log_probability(self, logits: Tensor, x: Tensor) -> Tensor:
        """Log-softmax at the true class."""
        return F.log_softmax(logits, -1).gather(-1, x[..., None])[..., 0]

    def squared_error(self, logits: Tensor, x: Tensor) -> Tensor:
        """Sum over the K classes of the squared differences."""
        return (torch.softmax(logits, -1) - F.one_hot(x, self.size)).square().sum(-1)

    def draw(self, logits: Tensor, u: Tensor) -> Tensor:
        """Inverse of the cumulative distribution at u."""
        cumulative = torch.softmax(logits, -1).cumsum(-1)
        return (cumulative < u[..., None] * cumulative[..., -1:]).sum(-1)

    def mode(self, logits: Tensor) -> Tensor:
        """Class with the largest logit."""
        return logits.argmax(-1)


def _over(number: Tensor, variables: Tensor) -> Tensor:
    """A number, or one per image, broadcasting over variables."""
    return number.reshape(*number.shape, *(1,) * (variables.ndim - number.ndim))
