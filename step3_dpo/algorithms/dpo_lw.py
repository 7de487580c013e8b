"""DPO with loss weighting ("DPO LW"): Σ w_i L_i. A baseline of MODPO's authors (arXiv 2310.03708, section 4)."""

import torch

from utils.combining.algorithm import LossLevel


class LossWeighting(LossLevel):
    """The losses of all objectives by fixed weights, the preference."""

    name, summary = "dpo_lw", "fixed weights of the losses"
    reads_preference = True
    zero_preference = True

    @property
    def weights(self) -> torch.Tensor:
        return self.setting.preference
