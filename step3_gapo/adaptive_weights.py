"""Weights of the rewards that follow what the rollouts score: Safe RLHF's multipliers, Fast RL's mirror descent.

Both are reward-level methods with a state: after every rollout they look at the scores of its responses and set the
weights that mix the objectives' advantages in the updates that follow. No gradient is compared.
"""

from typing import Any, Protocol

import torch


class AdaptiveWeights(Protocol):
    """What step 3 asks of such a method; every rank holds the same state."""

    @property
    def weights(self) -> torch.Tensor:
        """[m] float64, nonnegative, sum 1: the weights of the objectives' advantages."""

    def observe(self, scores: torch.Tensor) -> None:
        """Take in one rollout: [responses of all ranks, m] training scores, higher is better."""

    def scalars(self) -> dict[str, float]:
        """What to log of the state."""

    def state_dict(self) -> dict[str, Any]:
        """All of the state, as JSON holds it."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""


# ---- pure functions


def lagrangian_weights(multipliers: torch.Tensor, constrained: torch.Tensor) -> torch.Tensor:
    """Weights of the advantages in A = (A_r - Σ λ_j A_cj) / (1 + Σ λ_j), costs entering with their sign changed.

    Several rewards share the weight of A_r equally. The KL penalty is in every objective's reward (subtracted from the
    rewards, added to the costs), so that the division by 1 + Σ λ keeps its coefficient (Safe RLHF, section 3.3).

    Args:
        multipliers: [k] float64, λ of every constrained objective.
        constrained: [m] bool, k of them True.

    Returns:
        [m] float64, sum 1.
    """
    weights = torch.full(constrained.shape, 1.0 / (~constrained).sum().item(), dtype=torch.float64)
    weights[constrained] = multipliers
    return weights / (1.0 + multipliers.sum())


def ascend_multipliers(
    multipliers: torch.Tensor, violations: torch.Tensor, learning_rate: float, maximum: float
) -> torch.Tensor:
    """log λ ← min(log λ + lr · λ · (mean episode cost - threshold), log λ_max), written for λ; all [k] float64.

    Gradient ascent of λ · violation in log λ, as in Safe RLHF: λ rises iff the constraint is broken.
    """
    return (multipliers * torch.exp(learning_rate * multipliers * violations)).clamp(max=maximum)


def descend_mirror(weights: torch.Tensor, rewards: torch.Tensor, step_size: float) -> torch.Tensor:
    """Entropic mirror descent on the simplex, w_i ∝ w_i exp(-η r_i): the worse off gain weight; all [m] float64."""
    return torch.softmax(weights.log() - step_size * rewards, dim=0)


# ---- the two methods


class LagrangianWeights:
    """Safe RLHF (PPO-Lagrangian): maximize the rewards subject to mean cost ≤ threshold, for every cost.

    The multipliers step once a rollout, on the mean over the latest episodes. Source: Dai et al., ICLR 2024.

    Args:
        names: [m] objectives; constrained: [m], which of them are costs (at least one is, and at least one is not).
        thresholds: [k] allowed mean costs, in units of the training score.
        initial: λ at the start (0 keeps it at 0); maximum: upper bound of λ; window: episodes in the mean.
    """

    def __init__(
        self,
        names: list[str],
        constrained: list[bool],
        thresholds: list[float],
        initial: float,
        learning_rate: float,
        maximum: float,
        window: int,
    ):
        self.constrained = torch.tensor(constrained)
        self.names = [name for name, bound in zip(names, constrained, strict=True) if bound]
        self.thresholds = torch.tensor(thresholds, dtype=torch.float64)
        self.learning_rate, self.maximum, self.window = learning_rate, maximum, window
        self.multipliers = torch.full((len(self.names),), initial, dtype=torch.float64)
        self.episode_costs = torch.empty(0, len(self.names), dtype=torch.float64)  # [at most window, k]

    @property
    def weights(self) -> torch.Tensor:
        return lagrangian_weights(self.multipliers, self.constrained)

    def observe(self, scores: torch.Tensor) -> None:
        costs = -scores.double().cpu()[:, self.constrained]
        self.episode_costs = torch.cat([self.episode_costs, costs])[-self.window :]
        violations = self.episode_costs.mean(dim=0) - self.thresholds
        self.multipliers = ascend_multipliers(self.multipliers, violations, self.learning_rate, self.maximum)

    def scalars(self) -> dict[str, float]:
        shown = {"multiplier": self.multipliers}
        if len(self.episode_costs):
            shown["episode_cost"] = self.episode_costs.mean(dim=0)
        return {
            f"lagrangian/{tag}/{name}": value
            for tag, values in shown.items()
            for name, value in zip(self.names, values.tolist(), strict=True)
        }

    def state_dict(self) -> dict[str, Any]:
        return {"multipliers": self.multipliers.tolist(), "episode_costs": self.episode_costs.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.multipliers = torch.tensor(state["multipliers"], dtype=torch.float64)
        costs = torch.tensor(state["episode_costs"], dtype=torch.float64)
        self.episode_costs = costs.reshape(-1, len(self.names))


class MirrorDescentWeights:
    """Fast RL, adapted: weights on the simplex by entropic mirror descent, alternating with the policy.

    The update formula of the method (Li et al., EMNLP 2024) is not published in a form we could read; this is the
    textbook one. Rewards are normalized by the mean and standard deviation of all responses so far, so that no
    objective's scale decides: one that falls behind its own history gains weight, one that rises above it loses some.
    """

    def __init__(self, names: list[str], step_size: float):
        self.names, self.step_size = names, step_size
        self.weights = torch.full((len(names),), 1.0 / len(names), dtype=torch.float64)
        self.count = 0
        self.mean = torch.zeros(len(names), dtype=torch.float64)
        self.squares = torch.zeros(len(names), dtype=torch.float64)  # sum of squared distances from the mean

    def observe(self, scores: torch.Tensor) -> None:
        scores = scores.double().cpu()
        mean, count = scores.mean(dim=0), self.count + len(scores)
        distance = mean - self.mean
        # Chan et al. (1979): moments of two batches from those of each.
        self.squares += (scores - mean).square().sum(dim=0) + distance.square() * self.count * len(scores) / count
        self.mean, self.count = self.mean + distance * len(scores) / count, count
        deviation = (self.squares / count).sqrt()
        normalized = torch.where(deviation > 0, (mean - self.mean) / deviation, 0.0)
        self.weights = descend_mirror(self.weights, normalized, self.step_size)

    def scalars(self) -> dict[str, float]:
        return {}  # the weights are logged as coefficients

    def state_dict(self) -> dict[str, Any]:
        return {
            "weights": self.weights.tolist(),
            "count": self.count,
            "mean": self.mean.tolist(),
            "squares": self.squares.tolist(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count = state["count"]
        self.weights, self.mean, self.squares = (
            torch.tensor(state[key], dtype=torch.float64) for key in ("weights", "mean", "squares")
        )
