"""MORLHF: PPO on a fixed weighted sum of the rewards (GAPO paper, section 4.1)."""

import torch

from utils.combining.algorithm import WeightedAdvantages


class MORLHF(WeightedAdvantages):
    """Weights are the preference."""

    name, summary = "morlhf", "fixed weights of the rewards"
    reads_preference = zero_preference = True

    @property
    def weights(self) -> torch.Tensor:
        return self.setting.preference
