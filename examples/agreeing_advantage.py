"""A method of one's own that mixes advantages: where objectives disagree about an action, step carefully.

    python step3_gapo/main.py --algorithm examples/agreeing_advantage.py:Agreeing --disagreement 0.2 ...

Every objective keeps its critic and its advantage; the update sees one.
"""

import torch

from utils.cli.types import fraction
from utils.combining.algorithm import AdvantageLevel, Option


class Agreeing(AdvantageLevel):
    """The preferred mean of the advantages, made small where their signs differ."""

    name, summary = "agreeing", "mean advantage, made small where signs differ"
    options = (Option("disagreement", fraction, 0.1, "factor on advantages whose signs differ"),)
    reads_preference = True

    def mix(
        self, advantages: torch.Tensor, ratio: torch.Tensor, mask: torch.Tensor, judged: torch.Tensor
    ) -> torch.Tensor:
        weights = self.setting.preference.to(advantages)
        mean = torch.einsum("m,mrt->rt", weights, advantages)
        differ = (advantages > 0).any(dim=0) & (advantages < 0).any(dim=0)
        return torch.where(differ, self.setting.options["disagreement"] * mean, mean)
