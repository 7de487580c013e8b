"""Fast RL, adapted: weights of the rewards by mirror descent, alternating with the policy (Li et al., EMNLP 2024).

The update formula of the method is not published in a form we could read; this is the textbook one.
"""

from typing import Any

import torch

from utils.cli.types import non_negative_float
from utils.combining.algorithm import Option, Setting, WeightedAdvantages


class FastRL(WeightedAdvantages):
    """Weights on the simplex by entropic mirror descent, once a rollout.

    Rewards are normalized by the mean and standard deviation of all responses so far, so that no objective's scale
    decides: one that falls behind its own history gains weight, one that rises above it loses some.
    """

    name, summary = "fast_rl", "weights of the rewards by mirror descent"
    options = (
        Option("mirror_step_size", non_negative_float, 0.1, "step size of mirror descent, once a rollout", "ETA"),
    )
    least_objectives = 2

    def __init__(self, setting: Setting):
        super().__init__(setting)
        m = len(setting.names)
        self.step_size = setting.options["mirror_step_size"]
        self.current = torch.full((m,), 1.0 / m, dtype=torch.float64)
        self.count = 0
        self.mean = torch.zeros(m, dtype=torch.float64)
        self.squares = torch.zeros(m, dtype=torch.float64)  # sum of squared distances from the mean

    @property
    def weights(self) -> torch.Tensor:
        return self.current

    def observe(self, scores: torch.Tensor) -> None:
        scores = scores.double().cpu()
        mean, count = scores.mean(dim=0), self.count + len(scores)
        distance = mean - self.mean
        # Chan et al. (1979): moments of two batches from those of each.
        self.squares += (scores - mean).square().sum(dim=0) + distance.square() * self.count * len(scores) / count
        self.mean, self.count = self.mean + distance * len(scores) / count, count
        deviation = (self.squares / count).sqrt()
        normalized = torch.where(deviation > 0, (mean - self.mean) / deviation, 0.0)
        self.current = descend_mirror(self.current, normalized, self.step_size)

    def state_dict(self) -> dict[str, Any]:
        return {
            "weights": self.current.tolist(),
            "count": self.count,
            "mean": self.mean.tolist(),
            "squares": self.squares.tolist(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count = state["count"]
        self.current, self.mean, self.squares = (
            torch.tensor(state[key], dtype=torch.float64) for key in ("weights", "mean", "squares")
        )


def descend_mirror(weights: torch.Tensor, rewards: torch.Tensor, step_size: float) -> torch.Tensor:
    """Entropic mirror descent on the simplex, w_i ∝ w_i exp(-η r_i): the worse off gain weight; all [m] float64."""
    return torch.softmax(weights.log() - step_size * rewards, dim=0)
