"""GAPO: min-norm weights of rescaled gradients. Source: "Gradient-Adaptive Policy Optimization" (ACL 2025), eq. 6-7."""

import torch

from utils.cli.types import non_negative_float
from utils.combining.algorithm import GradientLevel, Option, Setting
from utils.gradients.multi_objective import gapo_coefficients


class GAPO(GradientLevel):
    """c_i = α_i / ‖g_i‖^p, where α are the min-norm weights of g_i / ‖g_i‖^p; p = 1 compares directions alone."""

    name, summary = "gapo", "min-norm weights of rescaled gradients"
    options = (
        Option("rescale_power", non_negative_float, 1.0, "gradients are divided by the P-th power of their norm", "P"),
    )

    def __init__(self, setting: Setting):
        super().__init__(setting)
        self.power = setting.options["rescale_power"]

    def coefficients(self, gram: torch.Tensor, losses: torch.Tensor) -> torch.Tensor:
        return gapo_coefficients(gram, self.power)

    def degree(self) -> float:
        return -self.power / 2
