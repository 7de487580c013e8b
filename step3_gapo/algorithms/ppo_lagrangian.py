"""Safe RLHF (PPO-Lagrangian): rewards under constraints on the costs. Source: Dai et al., ICLR 2024."""

from typing import Any

import torch

from utils.cli.types import by_name, named_number, non_negative_float, positive_float, positive_int
from utils.combining.algorithm import Option, Setting, WeightedAdvantages
from utils.process.errors import UserError


class PPOLagrangian(WeightedAdvantages):
    """Maximize the rewards subject to mean cost ≤ threshold, for every cost.

    The multipliers step once a rollout, on the mean over the latest episodes. Defaults are Safe RLHF's.
    """

    name, summary = "ppo_lagrangian", "Safe RLHF, rewards under constraints on the costs"
    options = (
        Option(
            "cost_threshold", named_number, [],
            "mean training cost that is allowed (after --score_scale); 0 unless given", "NAME=D",
        ),
        Option("lambda_init", non_negative_float, 1.0, "multiplier at the start, 0 stays 0"),
        Option(
            "lambda_learning_rate", positive_float, 0.01,
            "step size of log λ, once a rollout, for runs of thousands of rollouts",
        ),
        Option("lambda_max", positive_float, 10.0, "upper bound of λ"),
        Option("episode_cost_window", positive_int, 128, "episodes of all ranks in the mean cost", "N"),
    )  # fmt: skip

    def __init__(self, setting: Setting):
        """Raises: UserError: no cost, no reward, a threshold of something else, or λ beyond its bound."""
        super().__init__(setting)
        options, constrained = setting.options, [kind == "cost" for kind in setting.kinds]
        costs = [name for name, bound in zip(setting.names, constrained, strict=True) if bound]
        if not 0 < len(costs) < len(constrained):
            raise UserError(
                "--algorithm ppo_lagrangian: at least one --reward_model and one --cost_model are optimized"
            )
        thresholds = by_name("--cost_threshold", options["cost_threshold"])
        for name in thresholds:
            if name not in costs:
                raise UserError(f"--cost_threshold {name}: no such cost (there are {', '.join(costs)})")
        initial, self.maximum = options["lambda_init"], options["lambda_max"]
        if initial > self.maximum:
            raise UserError(f"--lambda_init {initial:g}: is above --lambda_max {self.maximum:g}")
        self.learning_rate, self.window = options["lambda_learning_rate"], options["episode_cost_window"]
        self.names, self.constrained = costs, torch.tensor(constrained)
        self.thresholds = torch.tensor([thresholds.get(name, 0.0) for name in costs], dtype=torch.float64)
        self.multipliers = torch.full((len(costs),), initial, dtype=torch.float64)
        self.episode_costs = torch.empty(0, len(costs), dtype=torch.float64)  # [at most window, k]

    @property
    def weights(self) -> torch.Tensor:
        return lagrangian_weights(self.multipliers, self.constrained)

    def observe(self, scores: torch.Tensor, judged: torch.Tensor) -> None:
        costs = -scores.double().cpu()[:, self.constrained]  # by models, which judge every response
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


# --- pure functions


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
