"""PPO on one objective (Schulman et al. 2017); the others can be scored and logged (`--monitor`)."""

import torch

from utils.combining.algorithm import WeightedAdvantages


class PPO(WeightedAdvantages):
    """The advantage of the only objective."""

    name, summary = "ppo", "one objective"
    most_objectives = 1

    @property
    def weights(self) -> torch.Tensor:
        return torch.ones(1, dtype=torch.float64)
