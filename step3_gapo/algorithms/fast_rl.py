"""Fast RL: weights of the rewards by mirror descent, alternating with the policy (Li et al., EMNLP 2024).

w_i ← w_i exp(-η r_i) / Σ_j w_j exp(-η r_j), where r_i is the mean reward of the rollout: the worse off gain weight. The
paper's r_i is the raw reward. The default here is ours: rewards normalized by their own history, so that no objective's
scale decides. The step size is not stated in what we could read.
"""

from typing import Any

import torch

from utils.cli.types import non_negative_float, one_of
from utils.combining.algorithm import Option, Setting, WeightedAdvantages


class FastRL(WeightedAdvantages):
    """Weights on the simplex by entropic mirror descent, once a rollout.

    Normalized rewards are measured by the mean and standard deviation of all responses so far: one that falls behind
    its own history gains weight, one that rises above it loses some.
    """

    name, summary = "fast_rl", "weights of the rewards by mirror descent"
    options = (
        Option("mirror_step_size", non_negative_float, 0.1, "step size of mirror descent, once a rollout", "ETA"),
        Option(
            "mirror_rewards", one_of("normalized", "raw"), None,
            "raw rewards, as published, or normalized by their own history, which is ours, and the default",
            "{normalized,raw}",
        ),
    )  # fmt: skip
    least_objectives = 2

    def __init__(self, setting: Setting):
        super().__init__(setting)
        m = len(setting.names)
        self.step_size, self.raw = setting.options["mirror_step_size"], setting.options["mirror_rewards"] == "raw"
        self.current = torch.full((m,), 1.0 / m, dtype=torch.float64)
        # Of every objective: scores so far, their mean, the sum of their squared distances from it.
        self.count, self.mean, self.squares = torch.zeros(3, m, dtype=torch.float64)

    @property
    def weights(self) -> torch.Tensor:
        return self.current

    def observe(self, scores: torch.Tensor, judged: torch.Tensor) -> None:
        scores, judged = scores.double().cpu(), judged.cpu()
        number = judged.sum(dim=0)
        mean = torch.where(number > 0, (scores * judged).sum(dim=0) / number.clamp(min=1), self.mean)
        count, distance = self.count + number, mean - self.mean
        # Chan et al. (1979): moments of two batches from those of each.
        self.squares = self.squares + ((scores - mean).square() * judged).sum(dim=0)
        self.squares += distance.square() * self.count * number / count.clamp(min=1)
        self.mean, self.count = self.mean + distance * number / count.clamp(min=1), count
        deviation = (self.squares / count.clamp(min=1)).sqrt()
        normalized = torch.where(deviation > 0, (mean - self.mean) / deviation, 0.0)
        rewards = mean if self.raw else normalized
        if (unseen := count == 0).any() and not unseen.all():
            rewards = torch.where(unseen, rewards[~unseen].mean(), rewards)  # neither better nor worse off
        self.current = descend_mirror(self.current, rewards, self.step_size)

    def state_dict(self) -> dict[str, Any]:
        return {
            "weights": self.current.tolist(),
            "count": self.count.tolist(),
            "mean": self.mean.tolist(),
            "squares": self.squares.tolist(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        count, *others = (
            torch.tensor(state[key], dtype=torch.float64) for key in ("count", "weights", "mean", "squares")
        )
        self.current, self.mean, self.squares = others
        self.count = count.expand_as(self.mean).clone()  # older checkpoints hold one number for all


def descend_mirror(weights: torch.Tensor, rewards: torch.Tensor, step_size: float) -> torch.Tensor:
    """Entropic mirror descent on the simplex, w_i ∝ w_i exp(-η r_i): the worse off gain weight; all [m] float64."""
    return torch.softmax(weights.log() - step_size * rewards, dim=0)
