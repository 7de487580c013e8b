"""MO-GRPO: every objective standardized within a prompt's responses, then summed (Ichihara et al. 2025, 2509.22047)."""

import torch

from utils.combining.algorithm import WeightedAdvantages


class MOGRPO(WeightedAdvantages):
    """Σ_k z-score of score k in its group: affine changes of a score change nothing. All weights are 1."""

    name, summary = "mo_grpo", "a sum of the objectives' group-relative advantages"
    default_advantage = "group"

    @property
    def weights(self) -> torch.Tensor:
        return torch.ones(len(self.setting.names), dtype=torch.float64)
