"""MODPO: DPO on the pairs of one objective, with margins of the others. Source: arXiv 2310.03708, eq. 12 and 13."""

import torch

from utils.combining.algorithm import LossLevel, Setting
from utils.process.errors import UserError

PAIRS, MARGIN = "pairs", "margin"  # the kinds of objectives of this stage


class MODPO(LossLevel):
    """−log σ(R(chosen) − R(rejected)) with R = (βΔ − Σ_{i≠k} w_i m_i) / w_k, Δ = log π − log π₀ of a whole response.

    Objective k has pairs, every other one a margin m_i: βΔ of a policy that DPO has aligned to it, or any reward.
    """

    name, summary = "modpo", "the pairs of one objective, margins for the others"
    reads_preference = True
    zero_preference = True
    reads_margins = True

    def __init__(self, setting: Setting):
        """Raises: UserError: not one objective with pairs, or it has no weight."""
        super().__init__(setting)
        trained = [name for name, kind in zip(setting.names, setting.kinds, strict=True) if kind == PAIRS]
        if len(trained) != 1:
            raise UserError(
                f"--algorithm modpo: trains on the pairs of one objective, not of {', '.join(trained)}: name the others"
                " in --monitor, and give them margins"
            )
        self.trained = list(setting.names).index(trained[0])
        if setting.preference[self.trained] == 0:
            raise UserError(f"--preference {trained[0]}=0: the objective with pairs must have a weight")

    @property
    def losses(self) -> list[str]:
        return [self.setting.names[self.trained]]

    @property
    def weights(self) -> torch.Tensor:
        return torch.ones(1, dtype=torch.float64)

    @property
    def logit_scale(self) -> float:
        """1 / w_k."""
        return 1.0 / self.setting.preference[self.trained].item()

    @property
    def margin_weights(self) -> dict[str, float]:
        """w_i / w_k of every other objective."""
        weights = dict(zip(self.setting.names, self.setting.preference.tolist(), strict=True))
        own = weights.pop(self.setting.names[self.trained])
        return {name: weight / own for name, weight in weights.items()}
