"""SAW: weights of the rewards by their relative spread in the batch (arXiv 2606.07705).

w_k ∝ std_k / |mean_k| of the scores of a rollout, shifted to be non-negative, scaled to sum m: an objective whose
scores have become alike has little left to teach. How scores without a known minimum are shifted is not stated; here it
is by the lowest that was seen so far, which is ours.
"""

from typing import Any

import torch

from step3_gapo.algorithms.grpo import judged_with_weight, weighted_scores
from utils.combining.algorithm import ScoreLevel, Setting

EPSILON = 1e-8


class SAW(ScoreLevel):
    """A weighted sum of the scores; its weights follow every rollout."""

    name, summary = "saw", "weights of the scores by their relative spread"
    default_advantage = "group"

    def __init__(self, setting: Setting):
        super().__init__(setting)
        m = len(setting.names)
        self.lowest = torch.full((m,), torch.inf, dtype=torch.float64)
        self.current = torch.ones(m, dtype=torch.float64)

    def observe(self, scores: torch.Tensor, judged: torch.Tensor) -> None:
        scores, judged = scores.double().cpu(), judged.cpu()
        lowest = scores.masked_fill(~judged, torch.inf).amin(dim=0)
        self.lowest = torch.minimum(self.lowest, lowest)
        variations = torch.stack([
            variation(column[there] - low)
            for column, there, low in zip(scores.T, judged.T, self.lowest, strict=True)
        ])  # fmt: skip
        if variations.sum() > 0:
            self.current = len(variations) * variations / variations.sum()

    def mix_scores(self, scores: torch.Tensor, judged: torch.Tensor) -> torch.Tensor:
        return weighted_scores(scores, judged, self.current)

    def counts(self, judged: torch.Tensor) -> torch.Tensor:
        return judged_with_weight(judged, self.current)

    def scalars(self) -> dict[str, float]:
        return {f"saw/weight/{n}": w for n, w in zip(self.setting.names, self.current.tolist(), strict=True)}

    def state_dict(self) -> dict[str, Any]:
        seen = [None if low == torch.inf else low for low in self.lowest.tolist()]
        return {"lowest": seen, "weights": self.current.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        seen = [torch.inf if low is None else low for low in state["lowest"]]
        self.lowest = torch.tensor(seen, dtype=torch.float64)
        self.current = torch.tensor(state["weights"], dtype=torch.float64)


def variation(values: torch.Tensor) -> torch.Tensor:
    """Coefficient of variation std / |mean| of [n] float64; 0 of fewer than two, or of values that are all equal."""
    if len(values) < 2 or values.min() == values.max():
        return values.new_zeros(())
    return values.std() / (values.mean().abs() + EPSILON)
