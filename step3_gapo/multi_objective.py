"""From an m×m Gram matrix of objective gradients to one coefficient an objective. Pure, float64, on the host.

G_ij = ⟨∇J_i, ∇J_j⟩ is all that MGDA, GAPO and P-GAPO need of the gradients: ‖∇J_i‖ = √G_ii, and the update is
Δ = Σ c_i ∇J_i, taken by one backward pass of the loss Σ c_i L_i. Nothing here knows of models or ranks.
Source: "Gradient-Adaptive Policy Optimization" (ACL 2025), sections 3.1-3.3.
"""

import numpy
import torch
from scipy.optimize import nnls


def min_norm_weights(gram: torch.Tensor) -> torch.Tensor:
    """Weights α on the simplex of the shortest vector Σ α_i g_i: MGDA (paper, eq. 5).

    Exact for any m. Two objectives have a closed form. Beyond, with any R such that RᵀR = G, the minimizer a of
    ‖R a‖² + (1ᵀa - 1)² over a ≥ 0, divided by its sum, is the min-norm point, and `nnls` finds it by pivoting.
    A zero gradient is itself the shortest vector; it says nothing about the others and gets weight 0.

    Args:
        gram: [m, m] symmetric positive semidefinite.

    Returns:
        [m] float64, non-negative, sum 1 (all zero when every gradient is zero).

    Raises:
        ValueError: `gram` is not square, or not finite.
    """
    gram = _checked(gram)
    alpha = torch.zeros(len(gram), dtype=torch.float64)
    active = gram.diagonal() > 0
    if active.any():
        alpha[active] = torch.from_numpy(_min_norm_point(gram[active][:, active].numpy()))
    return alpha


def gapo_coefficients(gram: torch.Tensor, power: float) -> torch.Tensor:
    """Coefficients of GAPO (paper, eq. 6-7): c_i = α_i / ‖g_i‖^p, α the min-norm weights of g_i / ‖g_i‖^p.

    Args:
        gram: [m, m] Gram matrix of the raw gradients.
        power: p; 1 compares directions only, 2 favors small gradients, 0 is MGDA.

    Returns:
        [m] float64; 0 for a zero gradient.

    Raises:
        ValueError: `gram` is not square, or not finite.
    """
    scale = inverse_norms(gram) ** power
    return min_norm_weights(rescaled_gram(gram, power)) * scale


def p_gapo_coefficients(gram: torch.Tensor, preference: torch.Tensor) -> torch.Tensor:
    """Coefficients of P-GAPO (paper, eq. 8): c_i = λ_i / ‖g_i‖.

    Args:
        gram: [m, m] Gram matrix of the raw gradients.
        preference: [m] λ, positive, sum 1.

    Returns:
        [m] float64; 0 for a zero gradient.

    Raises:
        ValueError: `gram` is not square, or not finite.
    """
    return preference.double() * inverse_norms(gram)


def inverse_norms(gram: torch.Tensor) -> torch.Tensor:
    """1 / ‖g_i‖, and 0 for a zero gradient: [m, m] -> [m] float64."""
    norms = _checked(gram).diagonal().clamp(min=0).sqrt()
    return torch.where(norms > 0, 1.0 / norms, torch.zeros_like(norms))


def rescaled_gram(gram: torch.Tensor, power: float) -> torch.Tensor:
    """Gram matrix of g_i / ‖g_i‖^p: G_ij / (‖g_i‖^p ‖g_j‖^p); [m, m] -> [m, m] float64."""
    gram = _checked(gram)
    norms = gram.diagonal().clamp(min=0).sqrt()
    scale = torch.where(norms > 0, norms, torch.inf) ** -power if power else (norms > 0).double()
    rescaled = gram * scale.outer(scale)
    # The diagonal from its own formula: exactly 1 at p = 1, so that two unit vectors share the weight exactly.
    return rescaled.diagonal_scatter(torch.where(norms > 0, norms ** (2 - 2 * power), 0.0))


def cosine_matrix(gram: torch.Tensor) -> torch.Tensor:
    """Cosines between the gradients: [m, m] -> [m, m] float64; 0 against a zero gradient."""
    return rescaled_gram(gram, 1.0)


def _checked(gram: torch.Tensor) -> torch.Tensor:
    if gram.ndim != 2 or gram.shape[0] != gram.shape[1]:
        raise ValueError(f"a Gram matrix is square, not {tuple(gram.shape)}")
    gram = gram.detach().to("cpu", torch.float64)
    if not gram.isfinite().all():
        raise ValueError("the Gram matrix is not finite")
    return gram


def _min_norm_point(gram: numpy.ndarray) -> numpy.ndarray:
    """Min-norm weights of a Gram matrix without zero gradients: [m, m] -> [m]."""
    if len(gram) == 1:
        return numpy.ones(1)
    if len(gram) == 2:
        (a, b), (_, c) = gram
        distance = a - 2 * b + c  # ‖g_1 - g_2‖²
        first = numpy.clip((c - b) / distance, 0.0, 1.0) if distance > 0 else 0.5
        return numpy.array([first, 1.0 - first])
    eigenvalues, vectors = numpy.linalg.eigh(gram / gram.diagonal().max())
    root = numpy.sqrt(eigenvalues.clip(min=0))[:, None] * vectors.T  # rootᵀ root = gram
    system = numpy.vstack([root, numpy.ones(len(gram))])
    target = numpy.append(numpy.zeros(len(gram)), 1.0)
    solution, _ = nnls(system, target)
    return solution / solution.sum()
