"""CTWA: weights of the rewards that keep each reward's covariance with the training signal positive (arXiv 2602.06869).

The signal of a response is its advantage of the mixed score. For every objective j, an average Ĉ_j follows the
covariance of its scores with the signal within a prompt's responses, Ĉ_j ← (1 - τ) Ĉ_j + τ Cov(r_j, A), and its weight
rises where that falls behind a target: log λ_j ← log λ_j + η max(target_j - Ĉ_j, 0), unless its mean score has reached
a cap.

The authors measure the signal in the update, where it is weighted by the clipped probability ratio; here it is measured
once a rollout, before the policy moves and where the ratio is 1, which is ours. So are the defaults of what they choose
by task: targets (.08-.15 there) and η (.02-.05). Their code drops outliers of the signal; advantages within a group are
bounded, and none is dropped here.
"""

import math
from typing import Any

import torch

from step3_gapo.algorithms.grpo import weighted_scores
from utils.cli.types import by_name, fraction, named_number, non_negative_float
from utils.combining.algorithm import Option, ScoreLevel, Setting
from utils.process.errors import UserError


class CTWA(ScoreLevel):
    """A weighted sum of the scores; weights start at the preference and only rise."""

    name, summary = "ctwa", "weights of the scores that keep them covarying with the advantage"
    options = (
        Option("ctwa_step_size", non_negative_float, 0.05, "η of the log-weights, once a rollout", "ETA"),
        Option("ctwa_target", non_negative_float, 0.1, "covariance, in score units, below which a weight rises", "C"),
        Option("ctwa_average", fraction, 0.1, "τ: share of the newest covariance in its average", "TAU"),
        Option("ctwa_cap", named_number, [], "mean training score above which a weight no longer rises", "NAME=R"),
    )
    reads_preference = True
    default_advantage = "group"

    def __init__(self, setting: Setting):
        """Raises: UserError: a cap of no objective."""
        super().__init__(setting)
        options = setting.options
        self.step_size, self.target, self.share = (options[f"ctwa_{n}"] for n in ("step_size", "target", "average"))
        caps = by_name("--ctwa_cap", options["ctwa_cap"])
        for name, cap in caps.items():
            if name not in setting.names:
                raise UserError(f"--ctwa_cap {name}: no such objective (there are {', '.join(setting.names)})")
            if math.isnan(cap):
                raise UserError(f"--ctwa_cap {name}={cap}: is no number")
        self.caps = torch.tensor([caps.get(name, torch.inf) for name in setting.names], dtype=torch.float64)
        self.log_weights = setting.preference.double().log()
        self.covariances = torch.full_like(self.log_weights, torch.nan)  # averages; NaN where there is none yet

    def mix_scores(self, scores: torch.Tensor, judged: torch.Tensor) -> torch.Tensor:
        return weighted_scores(scores, judged, self.log_weights.exp())

    def observe_advantages(self, scores: torch.Tensor, judged: torch.Tensor, advantages: torch.Tensor) -> None:
        scores, judged, signal = scores.double().cpu(), judged.cpu(), advantages[:, 0].double().cpu()
        newest = torch.stack([
            covariance(column, signal, there, self.setting.responses)
            for column, there in zip(scores.T, judged.T, strict=True)
        ])  # fmt: skip
        before = torch.where(self.covariances.isnan(), newest, self.covariances)
        averaged = (1 - self.share) * before + self.share * newest
        self.covariances = torch.where(newest.isnan(), self.covariances, averaged)
        means = (scores * judged).sum(dim=0) / judged.sum(dim=0).clamp(min=1)
        rises = ~newest.isnan() & (means < self.caps)
        behind = torch.where(rises, (self.target - self.covariances).clamp(min=0), 0.0)
        self.log_weights = self.log_weights + self.step_size * behind

    def scalars(self) -> dict[str, float]:
        shown = {"weight": self.log_weights.exp(), "covariance": self.covariances}
        return {
            f"ctwa/{tag}/{name}": value
            for tag, values in shown.items()
            for name, value in zip(self.setting.names, values.tolist(), strict=True)
            if math.isfinite(value)
        }

    def state_dict(self) -> dict[str, Any]:
        seen = [None if math.isnan(value) else value for value in self.covariances.tolist()]
        return {"log_weights": self.log_weights.tolist(), "covariances": seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        seen = [math.nan if value is None else value for value in state["covariances"]]
        self.log_weights, self.covariances = (
            torch.tensor(values, dtype=torch.float64) for values in (state["log_weights"], seen)
        )


def covariance(scores: torch.Tensor, signal: torch.Tensor, judged: torch.Tensor, group_size: int) -> torch.Tensor:
    """Mean over prompts of the covariance between a score and the signal over a prompt's responses that are judged.

    Prompts with fewer than two of these are left out; where every prompt has one response, all are one group.

    Args:
        scores, signal: [n] float64, a prompt's responses are neighbours; judged: [n] bool.

    Returns:
        Scalar; NaN where there is nothing to compare.
    """
    width = group_size if group_size > 1 else len(scores)
    there = judged.reshape(-1, width).double()
    count = there.sum(dim=-1, keepdim=True)
    centered = []
    for values in (scores, signal):
        rows = values.reshape(-1, width) * there
        centered.append((rows - rows.sum(dim=-1, keepdim=True) / count.clamp(min=1)) * there)
    found = (centered[0] * centered[1]).sum(dim=-1) / count[:, 0].clamp(min=1)
    enough = count[:, 0] >= 2
    return found[enough].mean()
