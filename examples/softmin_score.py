"""A method of one's own that mixes scores: the worse an objective is served, the more it counts.

    python step3_gapo/main.py --algorithm examples/softmin_score.py:SoftMin --softmin_temperature 0.5 ...

One score, one critic, one advantage a response, as if a single reward model had given it.
"""

import math

import torch

from utils.cli.types import positive_float
from utils.combining.algorithm import Option, ScoreLevel


class SoftMin(ScoreLevel):
    """-T log mean exp(-r_i / T): the mean for a high temperature T, the lowest score for a low one."""

    name, summary = "softmin", "a soft minimum of the scores"
    options = (Option("softmin_temperature", positive_float, 1.0, "in units of the scores", "T"),)
    least_objectives = 2

    def mix_scores(self, scores: torch.Tensor, judged: torch.Tensor) -> torch.Tensor:
        temperature = self.setting.options["softmin_temperature"]
        scores = scores.masked_fill(~judged, math.inf)  # what nobody has judged is no reason to worry
        total = torch.logsumexp(-scores / temperature, dim=-1)
        return -temperature * (total - judged.sum(dim=-1).log())
