"""RACO: fixed weights, corrected where objectives conflict. Source: arXiv 2602.02495 (ICML 2026)."""

import contextlib
import importlib.util
import warnings

import numpy
import torch

from utils.cli.types import non_negative_float
from utils.combining.algorithm import GradientLevel, Option, Setting
from utils.gradients.multi_objective import checked_gram
from utils.process.errors import UserError


class RACO(GradientLevel):
    """c = w + c‖g₀‖ p / ‖G_p‖, with g₀ = Σ w_i g_i, G_p = Σ p_i g_i and p = min(p*, w), elementwise.

    p* is the point of the simplex at which G_pᵀg₀ + c‖g₀‖‖G_p‖ is least: the mixture of gradients that the weights
    serve worst. The clip keeps a correction from favoring an objective by more than its weight. For any number of
    objectives; the authors' code has three at most.
    """

    name, summary = "raco", "fixed weights and a correction towards what they serve worst, clipped to them (RACO)"
    options = (Option("raco_c", non_negative_float, 0.4, "c, the length of the correction over that of Σ w_i g_i"),)
    reads_preference = True

    def __init__(self, setting: Setting):
        """Raises: UserError: a library is missing."""
        super().__init__(setting)
        if importlib.util.find_spec("cvxpy") is None:
            raise UserError("--algorithm raco: needs the package cvxpy")

    def coefficients(self, gram: torch.Tensor, losses: torch.Tensor) -> torch.Tensor:
        return raco_coefficients(gram, self.setting.preference, self.setting.options["raco_c"])


def raco_coefficients(gram: torch.Tensor, weights: torch.Tensor, c: float) -> torch.Tensor:
    """Coefficients of RACO (arXiv 2602.02495).

    Args:
        gram: [m, m] Gram matrix of the gradients.
        weights: [m] w, positive, sum 1.
        c: 0 leaves the weights as they are.

    Returns:
        [m] float64; 0 for a zero gradient.

    Raises:
        ValueError: `gram` is not square, or not finite.
    """
    gram, weights = checked_gram(gram), weights.double()
    active = gram.diagonal() > 0
    weights = torch.where(active, weights, 0.0)
    length = norm_of(gram, weights)  # ‖g₀‖
    if c == 0 or length == 0:
        return weights
    worst = torch.zeros_like(weights)
    worst[active] = worst_mixture(gram[active][:, active], weights[active], c)
    clipped = torch.minimum(worst, weights)
    size = norm_of(gram, clipped)
    return weights + (c * length / size) * clipped if size > 0 else weights


def norm_of(gram: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """‖Σ w_i g_i‖; [m, m] and [m] -> scalar."""
    return (weights @ gram @ weights).clamp(min=0).sqrt()


def worst_mixture(gram: torch.Tensor, weights: torch.Tensor, c: float) -> torch.Tensor:
    """p* of the simplex with the least pᵀGw + c √(wᵀGw) √(pᵀGp), a second-order cone program; [m] float64.

    Args:
        gram: [m, m] without zero gradients.
    """
    if len(gram) == 1:
        return torch.ones(1, dtype=torch.float64)
    import cvxpy  # takes a second

    gram = (gram / gram.diagonal().max()).numpy()  # p* is the same at every scale
    values, vectors = numpy.linalg.eigh(gram)
    root = vectors * numpy.sqrt(values.clip(min=0))  # G = R Rᵀ
    linear, weights = gram @ weights.numpy(), weights.numpy()
    p = cvxpy.Variable(len(gram), nonneg=True)
    norm = c * float(numpy.sqrt(max(weights @ linear, 0.0))) * cvxpy.norm(root.T @ p)
    problem = cvxpy.Problem(cvxpy.Minimize(linear @ p + norm), [cvxpy.sum(p) == 1])
    with warnings.catch_warnings(), contextlib.suppress(cvxpy.SolverError):
        warnings.simplefilter("ignore")  # of inaccurate solutions, which are good enough
        problem.solve(solver=cvxpy.CLARABEL)
    if p.value is None:  # the step will be skipped
        return torch.full((len(gram),), torch.nan, dtype=torch.float64)
    found = numpy.clip(p.value, 0.0, None)
    return torch.from_numpy(found / found.sum())
