"""MGDA: the shortest convex combination of the gradients. Source: Désidéri 2012; GAPO paper, eq. 5."""

import torch

from utils.combining.algorithm import GradientLevel
from utils.gradients.multi_objective import min_norm_weights


class MGDA(GradientLevel):
    """Coefficients are the min-norm weights of the gradients as they are."""

    name, summary = "mgda", "min-norm weights of the gradients"

    def coefficients(self, gram: torch.Tensor, losses: torch.Tensor) -> torch.Tensor:
        return min_norm_weights(gram)
