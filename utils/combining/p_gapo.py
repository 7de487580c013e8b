"""P-GAPO: a preference over unit gradients. Source: "Gradient-Adaptive Policy Optimization" (ACL 2025), eq. 8."""

import torch

from utils.combining.algorithm import GradientLevel
from utils.gradients.multi_objective import p_gapo_coefficients


class PreferenceGAPO(GradientLevel):
    """c_i = λ_i / ‖g_i‖, λ the preference."""

    name, summary = "p_gapo", "preference over unit gradients"
    reads_preference = True
    power = 1.0

    def coefficients(self, gram: torch.Tensor, losses: torch.Tensor) -> torch.Tensor:
        return p_gapo_coefficients(gram, self.setting.preference)

    def degree(self) -> float:
        return -0.5
