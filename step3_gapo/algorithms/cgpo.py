"""Fixed weights of losses: CGPO's Σ ρ_l g_l over tasks (arXiv 2409.20370)."""

import torch

from utils.combining.algorithm import LossLevel


class CGPO(LossLevel):
    """One step on Σ ρ_l ∇L_l, with ρ fixed; the weights of `--tasks`, or those of `--preference`.

    [ours]: ρ is scaled to sum 1, which leaves the rest to the learning rate.
    """

    name, summary = "cgpo", "CGPO's: fixed weights of the tasks' losses"
    reads_preference = True
    of_tasks = True

    @property
    def weights(self) -> torch.Tensor:
        return self.setting.preference
