"""Dynamic weight averaging (Liu et al. 2019, "End-to-end multi-task learning with attention", eq. 7), on DPO losses.

    python step3_dpo/main.py --algorithm examples/dynamic_weights.py:DynamicWeights --dwa_temperature 2 ...

An example of a method of the level of losses: its weights are known before a step's losses are, and follow from those
of the steps before. A loss that falls more slowly than others gets more weight.
"""

from typing import Any

import torch

from utils.cli.types import positive_float
from utils.combining.algorithm import LossLevel, Option, Setting

MEMORY = 0.9  # of the running means, in place of the paper's means over epochs (ours: one epoch is usual here)


class DynamicWeights(LossLevel):
    """w_i = softmax(r_i / T), r_i the loss of late over that of before."""

    name, summary = "dynamic_weights", "more weight on losses that fall slowly (DWA)"
    options = (Option("dwa_temperature", positive_float, 2.0, "T, beyond which the weights are nearly equal"),)

    def __init__(self, setting: Setting):
        super().__init__(setting)
        self.late, self.before = (torch.zeros(len(self.losses), dtype=torch.float64) for _ in range(2))

    @property
    def weights(self) -> torch.Tensor:
        known = (self.before > 0) & (self.late > 0)
        ratios = torch.where(known, self.late / self.before.clamp(min=1e-12), 1.0)
        return torch.softmax(ratios / self.setting.options["dwa_temperature"], dim=0)

    def observe_losses(self, losses: torch.Tensor, present: list[bool]) -> None:
        for i, there in enumerate(present):
            if there:
                first = self.late[i] == 0
                self.before[i] = losses[i] if first else MEMORY * self.before[i] + (1 - MEMORY) * self.late[i]
                self.late[i] = losses[i] if first else MEMORY * self.late[i] + (1 - MEMORY) * losses[i]

    def scalars(self) -> dict[str, float]:
        return {f"dwa/{name}": weight for name, weight in zip(self.losses, self.weights.tolist(), strict=True)}

    def state_dict(self) -> dict[str, Any]:
        return {"late": self.late.tolist(), "before": self.before.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state:
            self.late, self.before = (torch.tensor(state[n], dtype=torch.float64) for n in ("late", "before"))
