"""GDPO: group-relative advantages of each objective, their weighted sum, whitened over the batch (arXiv 2601.05242).

The batch are all responses of a rollout, those of all ranks. Whitening is by response, not by token, where long answers
would dominate. Conditioned rewards are `--conditioned`, for every method.
"""

import torch

from utils.combining.algorithm import Setting, WeightedAdvantages

EPSILON = 1e-4  # added to the standard deviation, as in a group


class GDPO(WeightedAdvantages):
    """A = (Σ w_k A_k - mean) / standard deviation; weights are the preference."""

    name, summary = "gdpo", "a weighted sum of group-relative advantages, whitened over the batch"
    reads_preference = zero_preference = True
    default_advantage = "group"

    def __init__(self, setting: Setting):
        super().__init__(setting)
        self.mean, self.deviation = 0.0, 1.0  # of the rollout at work alone

    @property
    def weights(self) -> torch.Tensor:
        return self.setting.preference

    def observe_advantages(self, scores: torch.Tensor, judged: torch.Tensor, advantages: torch.Tensor) -> None:
        mixed = advantages.double().cpu() @ self.weights
        self.mean, self.deviation = moments(mixed[judged.any(dim=-1).cpu()])

    def mix(
        self, advantages: torch.Tensor, ratio: torch.Tensor, mask: torch.Tensor, judged: torch.Tensor
    ) -> torch.Tensor:
        mixed = super().mix(advantages, ratio, mask, judged)
        return (mixed - self.mean) / (self.deviation + EPSILON) * mask


def moments(values: torch.Tensor) -> tuple[float, float]:
    """Mean and unbiased standard deviation of [n] float64; (0, 1) where there is nothing to compare."""
    if len(values) < 2 or values.min() == values.max():
        return (values.mean().item() if len(values) else 0.0), 1.0
    return values.mean().item(), values.std().item()
