"""DPO on the pairs of one objective. Source: Rafailov et al., "Direct Preference Optimization" (2023), eq. 7."""

import torch

from utils.combining.algorithm import LossLevel


class DPO(LossLevel):
    """The loss as it is."""

    name, summary = "dpo", "one objective alone"
    most_objectives = 1

    @property
    def weights(self) -> torch.Tensor:
        return torch.ones(1, dtype=torch.float64)
