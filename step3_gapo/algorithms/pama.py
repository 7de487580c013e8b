"""PAMA: per action the combination of the objectives' advantages that is nearest to zero (arXiv 2508.07768).

With "no negative" advantages A_i = max(A'_i, 0) and the clipped I(A_i) = A_i where the probability ratio is at most
1 + ε, else 0, the paper minimizes (Σ c_i I(A_i))² over the simplex. Its solution is the projection of 0 on the interval
[min_i I(A_i), max_i I(A_i)] (its theorem 1): no gradient of any objective is needed, so the cost does not grow with
their number beyond their critics.

Not stated there, and therefore ours: whether that is done by token or by batch (both are here; by token keeps the
credit of an action, by batch, as a port of others does, gives all actions one number); the ratio, printed as one to the
reference policy, is that to the policy that sampled; what has not judged a response is left out.
"""

import torch

from utils.cli.types import one_of, positive_float
from utils.combining.algorithm import AdvantageLevel, Option, Setting


class PAMA(AdvantageLevel):
    """One backward pass whatever the number of objectives."""

    name, summary = "pama", "of the objectives' advantages, the combination nearest to zero"
    options = (
        Option(
            "pama_level",
            one_of("token", "batch"),
            "token",
            "combined for every token, or one number for all",
            "{token,batch}",
        ),
        Option("pama_noon", one_of("on", "off"), "on", "'no negative' advantages", "{on,off}"),
        Option("pama_clip", positive_float, 0.2, "ε: advantages of ratios above 1 + ε count as 0"),
    )

    def __init__(self, setting: Setting):
        super().__init__(setting)
        self.by_token = setting.options["pama_level"] == "token"
        self.no_negative = setting.options["pama_noon"] == "on"
        self.clip = setting.options["pama_clip"]
        self.nearest: float | None = None  # of the step at work, by batch

    @property
    def pools(self) -> bool:
        return not self.by_token

    def clipped(self, advantages: torch.Tensor, ratio: torch.Tensor) -> torch.Tensor:
        """I(A_i): [m, rows, time] and [rows, time] -> [m, rows, time]."""
        values = advantages.clamp(min=0) if self.no_negative else advantages
        return values * (ratio <= 1 + self.clip)

    def pool(
        self, advantages: torch.Tensor, ratio: torch.Tensor, mask: torch.Tensor, judged: torch.Tensor
    ) -> torch.Tensor:
        """Sums of I(A_i) over the actions that objective i has judged, and how many these are; [2m]."""
        units = judged.unsqueeze(-1) * mask
        sums = (self.clipped(advantages, ratio).double() * units).sum(dim=(1, 2))
        return torch.cat([sums, units.double().sum(dim=(1, 2))])

    def settle(self, sums: torch.Tensor) -> None:
        totals, counts = sums.cpu().chunk(2)
        there = counts > 0
        self.nearest = nearest_to_zero(totals[there] / counts[there]).item() if there.any() else 0.0

    def mix(
        self, advantages: torch.Tensor, ratio: torch.Tensor, mask: torch.Tensor, judged: torch.Tensor
    ) -> torch.Tensor:
        if not self.by_token:
            return self.nearest * mask
        # What has not judged a response is between the others, whatever they are.
        values, there = self.clipped(advantages, ratio), judged.unsqueeze(-1)
        least = values.masked_fill(~there, torch.inf).amin(dim=0)
        most = values.masked_fill(~there, -torch.inf).amax(dim=0)
        return torch.where(there.any(dim=0), nearest_to_zero(torch.stack([least, most])), 0.0) * mask


def nearest_to_zero(values: torch.Tensor) -> torch.Tensor:
    """Of all convex combinations Σ c_i v_i the one nearest to 0: 0 between the least and the greatest value, else the
    one of them that is nearer (PAMA, theorem 1). [m, ...] floats -> [...]."""
    return values.amin(dim=0).clamp(min=0) + values.amax(dim=0).clamp(max=0)
