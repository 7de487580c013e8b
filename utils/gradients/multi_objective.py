"""From an m×m Gram matrix of objective gradients to one coefficient an objective. Pure, float64, on the host.

G_ij = ⟨∇J_i, ∇J_j⟩ is all that MGDA, GAPO and P-GAPO need of the gradients: ‖∇J_i‖ = √G_ii, and the update is
Δ = Σ c_i ∇J_i, taken by one backward pass of the loss Σ c_i L_i. Nothing here knows of models or ranks.
Source: "Gradient-Adaptive Policy Optimization" (ACL 2025), sections 3.1-3.3.
"""

import numpy
import torch

TOLERANCE = 1e-12  # of the optimality conditions, relative to the size of their terms


def min_norm_weights(gram: torch.Tensor) -> torch.Tensor:
    """Weights α on the simplex of the shortest vector Σ α_i g_i: MGDA (paper, eq. 5).

    Exact for any m and whatever the scales: with v = Gα and μ = αᵀGα = ‖Σ α_i g_i‖², the conditions v_i = μ where
    α_i > 0 and v_i ≥ μ elsewhere hold to 1e-12 of (|G|α)_i + αᵀ|G|α, that is, up to relative changes of 1e-12 in
    the entries of G. Of a Gram matrix that rounding has left indefinite, to about as much as its cosines are.
    Equal gradients get equal weights; opposite ones meet in the origin.
    A zero gradient is itself the shortest vector; it says nothing about the others and gets weight 0.

    Args:
        gram: [m, m] symmetric positive semidefinite.

    Returns:
        [m] float64, non-negative, sum 1 (all zero when every gradient is zero).

    Raises:
        ValueError: `gram` is not square, or not finite.
    """
    gram = checked_gram(gram)
    alpha = torch.zeros(len(gram), dtype=torch.float64)
    active = gram.diagonal() > 0
    if active.any():
        alpha[active] = torch.from_numpy(_min_norm_point(gram[active][:, active].numpy()))
    equal = (gram[:, None] == gram).all(dim=-1).double()
    return equal @ alpha / equal.sum(dim=1)


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
    norms = checked_gram(gram).diagonal().clamp(min=0).sqrt()
    return torch.where(norms > 0, 1.0 / norms, torch.zeros_like(norms))


def rescaled_gram(gram: torch.Tensor, power: float) -> torch.Tensor:
    """Gram matrix of g_i / ‖g_i‖^p: G_ij / (‖g_i‖^p ‖g_j‖^p); [m, m] -> [m, m] float64."""
    gram = checked_gram(gram)
    norms = gram.diagonal().clamp(min=0).sqrt()
    scale = torch.where(norms > 0, norms, torch.inf) ** -power if power else (norms > 0).double()
    rescaled = gram * scale.outer(scale)
    # The diagonal from its own formula: exactly 1 at p = 1, so that two unit vectors share the weight exactly.
    return rescaled.diagonal_scatter(torch.where(norms > 0, norms ** (2 - 2 * power), 0.0))


def cosine_matrix(gram: torch.Tensor) -> torch.Tensor:
    """Cosines between the gradients: [m, m] -> [m, m] float64; 0 against a zero gradient."""
    return rescaled_gram(gram, 1.0)


def checked_gram(gram: torch.Tensor) -> torch.Tensor:
    """A Gram matrix as float64 on the CPU: [m, m]; raises ValueError unless it is square and finite."""
    if gram.ndim != 2 or gram.shape[0] != gram.shape[1]:
        raise ValueError(f"a Gram matrix is square, not {tuple(gram.shape)}")
    gram = gram.detach().to("cpu", torch.float64)
    if not gram.isfinite().all():
        raise ValueError("the Gram matrix is not finite")
    return gram


def _min_norm_point(gram: numpy.ndarray) -> numpy.ndarray:
    """Min-norm weights of a Gram matrix without zero gradients: [m, m] -> [m], sum 1.

    Two gradients have a closed form. Beyond, the method of Wolfe ("Finding the nearest point in a polytope",
    1976): while a gradient lies on the near side of the plane through the point x = Σ α_i g_i and normal to it, the
    gradient enters the support, and x moves to the shortest vector of the support's affine hull, stopping at the
    simplex's border, where gradients leave, as often as it must. ‖x‖ falls with every round, so no support recurs.

    It works on cosines and β_i = α_i ‖g_i‖ / min ‖g‖, whose constraint is wᵀβ = 1 with w_i = min ‖g‖ / ‖g_i‖, so
    that gradients of 1e-6 are weighed as carefully as gradients of 1e6.
    """
    if len(gram) == 2:
        excess = (gram.diagonal()[::-1] - gram[0, 1]).clip(min=0.0)  # ⟨g_j, g_j - g_i⟩
        return excess / excess.sum() if excess.any() else numpy.full(2, 0.5)
    norms = numpy.sqrt(gram.diagonal())
    cosines, w = _positive_definite(gram / norms / norms[:, None]), norms.min() / norms
    support = numpy.arange(len(gram)) == norms.argmin()
    beta = support.astype(float)
    for _ in range(100 * len(gram)):  # hardly more than m rounds are ever needed
        progress, size = cosines @ beta, abs(cosines) @ beta
        excess = (progress - (beta @ progress) * w) / (size + (beta @ size) * w)
        excess[support] = 0.0
        if excess.min() >= -TOLERANCE:
            break
        support[excess.argmin()] = True
        beta = _descend(cosines, w, beta, support)
    return beta * w / (beta @ w)


def _descend(cosines: numpy.ndarray, w: numpy.ndarray, beta: numpy.ndarray, support: numpy.ndarray) -> numpy.ndarray:
    """β ≥ 0 [m] of the shortest vector of the affine hull of `support` ([m] bool, which loses those at the border)."""
    while True:
        target = numpy.zeros_like(beta)
        target[support] = numpy.linalg.solve(cosines[support][:, support], w[support])
        target /= w @ target
        outside = target < 0
        if not outside.any():
            return target
        steps = numpy.full_like(beta, numpy.inf)
        steps[outside] = beta[outside] / (beta - target)[outside]
        beta = (beta + steps.min() * (target - beta)).clip(min=0.0)
        support[steps.argmin()] = False


def _positive_definite(cosines: numpy.ndarray) -> numpy.ndarray:
    """`cosines` [m, m] with the addition to its diagonal, of the order of rounding, that makes it definite."""
    rounding = len(cosines) * numpy.finfo(float).eps
    return cosines + (rounding - 2 * min(0.0, numpy.linalg.eigvalsh(cosines)[0])) * numpy.eye(len(cosines))
