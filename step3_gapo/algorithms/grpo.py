"""Multi-objective GRPO: one weighted sum of the scores, compared within a prompt's responses (arXiv 2503.21819).

There the scores are the labels of one reward model (`--score_label`); its weights, group size, clip range, KL
coefficient and learning rate are not stated in what we could read. A response that some objectives have not judged has
the weighted mean over those that have, which is ours.
"""

import torch

from utils.combining.algorithm import ScoreLevel


class GRPO(ScoreLevel):
    """Weights are the preference."""

    name, summary = "grpo", "a weighted sum of the scores, relative to the other responses"
    reads_preference = zero_preference = True
    default_advantage = "group"

    def mix_scores(self, scores: torch.Tensor, judged: torch.Tensor) -> torch.Tensor:
        return weighted_scores(scores, judged, self.setting.preference)

    def counts(self, judged: torch.Tensor) -> torch.Tensor:
        return judged_with_weight(judged, self.setting.preference)


def judged_with_weight(judged: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Whether an objective that has weight has judged a response: [rows, m] bool and [m] -> [rows] bool."""
    return judged[:, (weights > 0).to(judged.device)].any(dim=-1)


def weighted_scores(scores: torch.Tensor, judged: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Σ w_i r_i over what is judged, scaled up by the weight that is missing.

    Args:
        scores: [rows, m] float32; 0 where there is none.
        judged: [rows, m] bool.
        weights: [m] float64, non-negative.

    Returns:
        [rows] float32; 0 where nothing that has weight is judged.
    """
    there = judged.to(weights.device).double() @ weights
    mixed = (scores.double().cpu() * judged.cpu()) @ weights
    scale = torch.where(there > 0, weights.sum() / there.clamp(min=torch.finfo(torch.float64).tiny), 0.0)
    return (mixed * scale).to(scores)
