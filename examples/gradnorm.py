"""A method of one's own that weighs gradients and remembers: GradNorm (Chen et al., ICML 2018) on the Gram matrix.

    python step3_gapo/main.py --algorithm examples/gradnorm.py:GradNorm --gradnorm_step_size 0.05 ...

Its weights are learned: those whose weighted gradient is longer than the mean one lose some, the others gain. The
paper also lets objectives that learn slowly have longer gradients (its α), by how their losses have fallen; the loss of
a policy gradient does not say that, so α is 0 here.
"""

from typing import Any

import torch

from utils.cli.types import positive_float
from utils.combining.algorithm import GradientLevel, Option, Setting


class GradNorm(GradientLevel):
    """w ← w - η ∂/∂w Σ_i |w_i ‖g_i‖ - mean_j w_j ‖g_j‖|, the mean held fixed; lengths relative to the mean length."""

    name, summary = "gradnorm", "learned weights that even out the lengths of the gradients"
    options = (Option("gradnorm_step_size", positive_float, 0.025, "η of the weights, once an optimizer step", "ETA"),)

    def __init__(self, setting: Setting):
        super().__init__(setting)
        self.learned = torch.ones(len(setting.names), dtype=torch.float64)

    def coefficients(self, gram: torch.Tensor, losses: torch.Tensor) -> torch.Tensor:
        norms = gram.diagonal().clamp(min=0).sqrt()
        active = norms > 0
        if active.any():
            lengths = self.learned * norms / norms[active].mean()
            slopes = torch.sign(lengths - lengths[active].mean()) * norms / norms[active].mean()
            moved = (self.learned - self.setting.options["gradnorm_step_size"] * slopes).clamp(min=1e-3)
            self.learned = torch.where(active, moved, self.learned)
            self.learned = self.learned * len(self.learned) / self.learned.sum()
        return torch.where(active, self.learned / len(self.learned), 0.0)

    def state_dict(self) -> dict[str, Any]:
        return {"learned": self.learned.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.learned = torch.tensor(state["learned"], dtype=torch.float64)
