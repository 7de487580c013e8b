"""Coefficients from Gram matrices: the min-norm problem against brute force, an exact solution in fractions and its
optimality conditions, and the properties the paper proves of GAPO and P-GAPO."""

import itertools
import math
from fractions import Fraction

import numpy
import pytest
import torch
from scipy.optimize import minimize
from torchjd.aggregation import MGDAWeighting

from tests.cases import beyond
from utils.gradients.multi_objective import (
    cosine_matrix,
    gapo_coefficients,
    inverse_norms,
    min_norm_weights,
    p_gapo_coefficients,
    rescaled_gram,
)

POWERS = (0.0, 0.5, 1.0, 2.0)


def tensor(values: object) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def gradients(m: int, seed: int, features: int = 12, spread: float = 0.0) -> torch.Tensor:
    """m random gradients, their lengths spread over `10^±spread`; [m, features] float64."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(m, features, generator=generator, dtype=torch.float64)
    exponents = 2 * torch.rand(m, 1, generator=generator, dtype=torch.float64) - 1
    return directions * 10 ** (spread * exponents)


def gram_of(vectors: torch.Tensor) -> torch.Tensor:
    return vectors @ vectors.T


def squared_length(alpha: torch.Tensor, gram: torch.Tensor) -> float:
    return (alpha @ gram @ alpha).item()


def close(actual: torch.Tensor, expected: object, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=torch.float64), rtol=tolerance, atol=tolerance)


# --- the min-norm point


@pytest.mark.parametrize(
    ("gram", "expected"),
    [
        ([[4.0]], [1]),
        ([[1, 0], [0, 1]], [1 / 2, 1 / 2]),
        ([[1, 0], [0, 4]], [4 / 5, 1 / 5]),  # orthogonal: in inverse proportion to the squared lengths
        ([[1, 1], [1, 4]], [1, 0]),  # the foot of the perpendicular is the end point itself
        ([[1, 1.5], [1.5, 4]], [1, 0]),  # and here beyond it
        ([[4, -2], [-2, 1]], [1 / 3, 2 / 3]),  # opposite: the origin is reached
        ([[2, 2], [2, 2]], [1 / 2, 1 / 2]),  # the same gradient twice
        ([[1, 0, 0], [0, 2, 0], [0, 0, 4]], [4 / 7, 2 / 7, 1 / 7]),
        ([[1, 0, 2], [0, 1, 2], [2, 2, 9]], [1 / 2, 1 / 2, 0]),  # the third adds nothing to the first two
        ([[9, 0, 0], [0, 0, 0], [0, 0, 9]], [1 / 2, 0, 1 / 2]),  # a zero gradient has no say
        ([[0, 0], [0, 3]], [0, 1]),
        ([[0, 0], [0, 0]], [0, 0]),
    ],
)
def test_min_norm_weights_by_hand(gram: list, expected: list) -> None:
    alpha = min_norm_weights(torch.tensor(gram))
    assert alpha.dtype == torch.float64
    close(alpha, expected)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("m", [2, 3])
def test_no_point_of_a_grid_on_the_simplex_is_shorter(m: int, seed: int) -> None:
    gram = gram_of(gradients(m, seed, features=3))
    steps = 400 if m == 2 else 60
    points = [p for p in itertools.product(range(steps + 1), repeat=m - 1) if sum(p) <= steps]
    grid = tensor([[*p, steps - sum(p)] for p in points]) / steps
    lengths = ((grid @ gram) * grid).sum(dim=1)
    alpha = min_norm_weights(gram)
    assert squared_length(alpha, gram) <= lengths.min().item() + 1e-12
    # The best of the grid is as close as the grid is fine.
    assert lengths.min().item() <= squared_length(alpha, gram) + (m / steps) ** 2 * gram.diagonal().max().item()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("m", [2, 3, 4, 5])
def test_as_short_as_what_a_general_optimizer_finds(m: int, seed: int) -> None:
    gram = gram_of(gradients(m, seed, features=4) + gradients(1, seed + 100, features=4))
    found = minimize(
        lambda a: a @ gram.numpy() @ a, numpy.full(m, 1 / m), jac=lambda a: 2 * gram.numpy() @ a,
        bounds=[(0, 1)] * m, constraints={"type": "eq", "fun": lambda a: a.sum() - 1}, method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    )  # fmt: skip
    assert squared_length(min_norm_weights(gram), gram) == pytest.approx(found.fun, abs=1e-7)


def gram_matrices(m: int, count: int, spread: float, seed: int) -> dict[str, torch.Tensor]:
    """`count` Gram matrices of each kind [count, m, m] float64, norms spread log-uniformly over 10^±spread."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(count, *shape, generator=generator, dtype=torch.float64)

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(count, *shape, generator=generator, dtype=torch.float64)

    independent, flat = normal(m, m + 6), normal(m, max(1, m // 2))
    related = 0.3 * independent + normal(1, m + 6)
    repeated = related.gather(1, (uniform(m, 1) * m).long().expand(-1, -1, m + 6))
    nearly_repeated = repeated + 10 ** (-9 + 6 * uniform(m, 1)) * normal(m, m + 6)
    signs = normal(m, 1).sign()
    eigenvectors = torch.linalg.qr(normal(m, m)).Q
    kinds = {
        "condition 1e12": eigenvectors * 10 ** (-6 * torch.linspace(0, 1, m, dtype=torch.float64)),
        "condition up to 1e12": eigenvectors * 10 ** (-6 * uniform(1, m)),
        "independent": independent,
        "related": related,
        "linearly dependent": flat,
        "linearly dependent and related": flat + 2,
        "repeated": repeated,
        "nearly repeated": nearly_repeated,
        "opposite": repeated * signs,
        "nearly opposite": nearly_repeated * signs,
    }
    norms = 10 ** (spread * (2 * uniform(m, 1) - 1))
    return {name: (norms * vectors) @ (norms * vectors).mT for name, vectors in kinds.items()}


def optimality_residual(alpha: torch.Tensor, gram: torch.Tensor, scale: torch.Tensor | float | None = None) -> float:
    """By how much the conditions v_i = μ (α_i > 0) and v_i ≥ μ (α_i = 0), v = Gα and μ = αᵀGα, are missed at worst.

    Relative to `scale`, by default (|G|α)_i + αᵀ|G|α: the residual is then, to first order, the relative change of
    the single entries of G for which α is optimal, and no row is hidden behind a larger one.
    """
    v, size = gram @ alpha, gram.abs() @ alpha
    excess = v - alpha @ v
    violation = torch.where(alpha > 0, excess.abs(), -excess)
    return (violation / (size + alpha @ size if scale is None else scale)).max().item()


@pytest.mark.parametrize("spread", [beyond(0.0), 3.0, beyond(6.0), 30.0])
def test_the_optimality_conditions_hold_at_every_scale(spread: float) -> None:
    """4 × 10 sizes × 10 kinds × 30 = 12,000 matrices.

    Where long opposite gradients cancel, rounding leaves more of μ than short gradients have to say; in all other
    cases the conditions also hold relative to (|G|α)_i + μ, which does not count what cancels in μ.
    """
    for m in range(1, 11):
        for kind, grams in gram_matrices(m, 30, spread, seed=m).items():
            for gram in grams:
                alpha = min_norm_weights(gram)
                assert alpha.min() >= 0
                assert alpha.sum().item() == pytest.approx(1, abs=1e-14)
                assert optimality_residual(alpha, gram) <= 1e-10, (m, kind)
                assert optimality_residual(alpha, gram, gram.abs().max()) <= 1e-10, (m, kind)
                if spread == 0 or "opposite" not in kind:
                    strict = gram.abs() @ alpha + squared_length(alpha, gram)
                    assert optimality_residual(alpha, gram, strict) <= 1e-10, (m, kind)


def test_many_objectives() -> None:
    for m in (30, 60):
        for kind, grams in gram_matrices(m, 2, 3.0, seed=m).items():
            for gram in grams:
                assert optimality_residual(min_norm_weights(gram), gram) <= 1e-10, (m, kind)


def exact_min_norm(gram: list[list[int]]) -> list[Fraction]:
    """Gα* of the min-norm weights α* of an integer Gram matrix, by trying every support in exact arithmetic.

    The shortest vector is unique, hence so is Gα*, even where α* is not.
    """
    for size in range(1, len(gram) + 1):
        for support in itertools.combinations(range(len(gram)), size):
            system = [[Fraction(gram[i][j]) for j in support] + [Fraction(-1), Fraction(0)] for i in support]
            solution = solve_exactly([*system, [Fraction(1)] * size + [Fraction(0), Fraction(1)]])
            if solution and min(solution[:-1]) >= 0:
                products = [sum(a * row[j] for a, j in zip(solution, support, strict=False)) for row in gram]
                if min(products) >= solution[-1]:
                    return products
    raise AssertionError("a min-norm point exists")


def solve_exactly(rows: list[list[Fraction]]) -> list[Fraction] | None:
    """Gauss-Jordan elimination of [n, n + 1]; None when the system is singular."""
    for k in range(len(rows)):
        pivot = next((i for i in range(k, len(rows)) if rows[i][k]), None)
        if pivot is None:
            return None
        rows[k], rows[pivot] = rows[pivot], rows[k]
        rows[k] = [value / rows[k][k] for value in rows[k]]
        for i in range(len(rows)):
            if i != k:
                rows[i] = [
                    value - rows[i][k] * pivot_value for value, pivot_value in zip(rows[i], rows[k], strict=True)
                ]
    return [row[-1] for row in rows]


@pytest.mark.parametrize("features", [2, 6])
@pytest.mark.parametrize("m", [2, 3, 4, 5])
def test_the_shortest_vector_is_that_of_exact_arithmetic(m: int, features: int) -> None:
    for seed in range(25):
        generator = torch.Generator().manual_seed(seed)
        vectors = torch.randint(-3, 6, (m, features), generator=generator)
        vectors[vectors.abs().sum(dim=1) == 0] = 1
        vectors *= 10 ** torch.randint(0, 7 if seed % 2 else 1, (m, 1), generator=generator)
        gram = vectors @ vectors.T
        expected = tensor([float(product) for product in exact_min_norm(gram.tolist())])
        gram = gram.double()
        alpha = min_norm_weights(gram)
        size = gram.abs() @ alpha
        assert ((gram @ alpha - expected).abs() <= 1e-10 * (size + alpha @ size)).all()


@pytest.mark.slow
@pytest.mark.parametrize("m", [3, beyond(6)])
def test_no_longer_than_what_frank_wolfe_approaches(m: int) -> None:
    """torchjd's MGDA: after 10,000 steps its squared length is still up to 4e-4 longer than the shortest."""
    approach = MGDAWeighting(epsilon=1e-6, max_iters=10000)
    for seed in range(4):
        gram = gram_of(gradients(m, seed) + gradients(1, seed + 100))
        approached = squared_length(approach(gram), gram)
        assert approached * (1 - 1e-3) <= squared_length(min_norm_weights(gram), gram) <= approached * (1 + 1e-12)


def test_an_opposite_pair_makes_the_point_stationary() -> None:
    """Δ = 0: nothing improves both."""
    vectors = gradients(4, seed=0)
    vectors[3] = -3 * vectors[1]
    gram = gram_of(vectors)
    alpha = min_norm_weights(gram)
    assert squared_length(alpha, gram) < 1e-12 * gram.diagonal().max().item()
    close(alpha, [0, 3 / 4, 0, 1 / 4], 1e-9)


def test_duplicates_share_equally_what_one_of_them_would_get() -> None:
    gram = gram_of(gradients(3, seed=1))
    alone = min_norm_weights(gram)
    assert (alone > 0.1).all()
    copies = torch.tensor([0, 1, 0, 2, 0])
    share = tensor([1 / 3, 1, 1 / 3, 1, 1 / 3])
    repeated = gram[copies][:, copies]
    close(min_norm_weights(repeated), alone[copies] * share)
    assert torch.equal(min_norm_weights(repeated), min_norm_weights(repeated.clone()))
    close(min_norm_weights(torch.full((4, 4), 9.0)), [1 / 4] * 4)


@pytest.mark.parametrize("scale", [1e-60, 1e-30, 1e30, 1e60])
def test_the_common_scale_of_a_gram_matrix_does_not_matter(scale: float) -> None:
    for m, seed in itertools.product((1, 2, 3, 6), range(5)):
        gram = gram_of(gradients(m, seed, spread=1.0))
        close(min_norm_weights(gram * scale), min_norm_weights(gram), 1e-9)


def test_norms_from_1e_minus_30_to_1e30_in_one_matrix() -> None:
    close(min_norm_weights(torch.diag(tensor([1e60, 1e-60, 1.0]))) * tensor([1e120, 1, 1e60]), [1, 1, 1])
    close(min_norm_weights(torch.diag(tensor([1e60, 1e-60]))) * tensor([1e120, 1]), [1, 1])


@pytest.mark.parametrize("kind", ["opposite", "linearly dependent"])
@pytest.mark.parametrize("m", [2, 5, 7, 10])
def test_a_matrix_that_float32_made_indefinite_is_solved_to_that_precision(m: int, kind: str) -> None:
    indefinite = 0
    for gram in gram_matrices(m, 100, 3.0, seed=m)[kind].float():
        smallest = torch.linalg.eigvalsh(cosine_matrix(gram))[0].item()
        assert smallest > -1e-6
        assert optimality_residual(min_norm_weights(gram), gram.double()) <= 1e-10 + 3 * max(0.0, -smallest)
        indefinite += smallest < -1e-9
    assert indefinite > 0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("m", [1, 2, 3])
def test_non_finite_gradients_are_refused(m: int, bad: float) -> None:
    gram = torch.eye(m)
    gram[m - 1, 0] = bad
    for function in (min_norm_weights, inverse_norms, cosine_matrix):
        with pytest.raises(ValueError, match="not finite"):
            function(gram)
    with pytest.raises(ValueError, match="not finite"):
        gapo_coefficients(gram, 1.0)
    with pytest.raises(ValueError, match="not finite"):
        p_gapo_coefficients(gram, torch.full((m,), 1 / m))


@pytest.mark.parametrize("shape", [(2, 3), (4,), (2, 2, 2)])
def test_what_is_not_square_is_refused(shape: tuple[int, ...]) -> None:
    for function in (min_norm_weights, inverse_norms, lambda gram: gapo_coefficients(gram, 1.0)):
        with pytest.raises(ValueError, match="square"):
            function(torch.ones(shape))


# --- GAPO


def test_cosines_and_rescaled_gram_by_hand() -> None:
    gram = tensor([[4, 3, 0], [3, 9, 0], [0, 0, 0]])
    close(cosine_matrix(gram), [[1, 0.5, 0], [0.5, 1, 0], [0, 0, 0]])
    close(rescaled_gram(gram, 2.0), [[1 / 4, 1 / 12, 0], [1 / 12, 1 / 9, 0], [0, 0, 0]])
    close(rescaled_gram(gram, 0.0), gram)
    close(inverse_norms(gram), [1 / 2, 1 / 3, 0])


@pytest.mark.parametrize("power", POWERS)
@pytest.mark.parametrize("m", [1, 2, 3, 5])
def test_coefficients_are_those_of_the_rescaled_vectors(m: int, power: float) -> None:
    """The definition (eq. 6-7) on the vectors themselves: rescale them, take their min-norm point."""
    vectors = gradients(m, seed=m, spread=1.0)
    norms = vectors.norm(dim=1)
    rescaled = vectors / norms[:, None] ** power
    alpha = min_norm_weights(gram_of(rescaled))
    coefficients = gapo_coefficients(gram_of(vectors), power)
    close(coefficients * norms**power, alpha, 1e-9)
    close(coefficients @ vectors, alpha @ rescaled, 1e-9)


@pytest.mark.parametrize("seed", range(20))
def test_two_unit_vectors_meet_in_the_middle(seed: int) -> None:
    gram = gram_of(gradients(2, seed, spread=2.0))
    assert min_norm_weights(rescaled_gram(gram, 1.0)).tolist() == [0.5, 0.5]  # exactly
    assert torch.equal(gapo_coefficients(gram, 1.0), p_gapo_coefficients(gram, tensor([0.5, 0.5])))


def test_power_zero_is_mgda() -> None:
    for m, seed in itertools.product((2, 3, 4), range(5)):
        gram = gram_of(gradients(m, seed, spread=1.0))
        close(gapo_coefficients(gram, 0.0), min_norm_weights(gram))


@pytest.mark.parametrize("power", POWERS)
def test_one_objective_is_its_own_gradient_at_another_length(power: float) -> None:
    close(gapo_coefficients(tensor([[9]]), power), [3.0**-power])
    close(p_gapo_coefficients(tensor([[9]]), tensor([1])), [1 / 3])


@pytest.mark.parametrize("power", POWERS)
@pytest.mark.parametrize("order", [(1, 0), (2, 0, 1), (3, 1, 0, 2)])
def test_permuting_the_objectives_permutes_the_coefficients(order: tuple[int, ...], power: float) -> None:
    vectors = gradients(len(order), seed=7, spread=1.0)
    preference = torch.arange(1, len(order) + 1, dtype=torch.float64) / sum(range(1, len(order) + 1))
    order = torch.tensor(order)
    gram, permuted = gram_of(vectors), gram_of(vectors[order])
    close(gapo_coefficients(permuted, power), gapo_coefficients(gram, power)[order], 1e-9)
    close(p_gapo_coefficients(permuted, preference[order]), p_gapo_coefficients(gram, preference)[order])


def test_the_scale_of_an_objective_does_not_move_the_update_at_power_one() -> None:
    """What GAPO and P-GAPO are for: reward models that do not share a scale. MGDA's update does move."""
    vectors, scale = gradients(3, seed=3), tensor([[4.0], [1.0], [0.01]])
    preference = tensor([0.2, 0.3, 0.5])
    for solve in (lambda g: gapo_coefficients(g, 1.0), lambda g: p_gapo_coefficients(g, preference)):
        plain, scaled = solve(gram_of(vectors)), solve(gram_of(scale * vectors))
        close(scaled, plain / scale.squeeze(), 1e-9)
        close(scaled @ (scale * vectors), plain @ vectors, 1e-9)
    moved = min_norm_weights(gram_of(scale * vectors)) @ (scale * vectors)
    assert not torch.allclose(moved, min_norm_weights(gram_of(vectors)) @ vectors, rtol=0.1)


@pytest.mark.parametrize("power", POWERS)
def test_a_common_scale_changes_the_length_only(power: float) -> None:
    gram = gram_of(gradients(3, seed=4, spread=0.5))
    close(gapo_coefficients(100.0 * gram, power), gapo_coefficients(gram, power) * 10.0**-power, 1e-9)


def test_power_two_favors_the_small_gradient() -> None:
    """Orthogonal, of lengths 1 and 2: rescaled to 1 and 1/2, weighed 1/5 to 4/5; MGDA has 4/5 to 1/5."""
    gram = tensor([[1, 0], [0, 4]])
    close(gapo_coefficients(gram, 2.0), [1 / 5, (4 / 5) / 4])
    close(gapo_coefficients(gram, 1.0), [1 / 2, 1 / 4])
    close(gapo_coefficients(gram, 0.0), [4 / 5, 1 / 5])


@pytest.mark.parametrize("power", POWERS)
@pytest.mark.parametrize("m", [2, 3, 5])
def test_every_objective_gains(m: int, power: float) -> None:
    """Theorem 3.2: ⟨Δ, ĝ_i⟩ ≥ ‖Δ‖² > 0 away from stationary points."""
    for seed in range(20):
        vectors = gradients(m, seed, spread=1.0) + gradients(1, seed + 50)
        gram = gram_of(vectors)
        coefficients = gapo_coefficients(gram, power)
        direction = coefficients @ vectors
        gains = (vectors @ direction) / gram.diagonal().sqrt() ** power
        assert direction.norm() > 0
        assert (gains >= direction.square().sum() * (1 - 1e-8)).all()


@pytest.mark.parametrize("power", POWERS)
def test_gains_are_in_proportion_to_a_power_of_the_norms(power: float) -> None:
    """Theorem 3.3: at an interior solution ⟨Δ, g_i⟩ ∝ ‖g_i‖^p; at p = 0 (theorem 3.1) all gain the same."""
    directions, _ = torch.linalg.qr(gradients(5, seed=5).T)
    vectors = (directions.T + 0.05 * gradients(5, seed=6)) * tensor([[0.5], [1.0], [1.5], [2.0], [3.0]])
    norms = vectors.norm(dim=1)
    coefficients = gapo_coefficients(gram_of(vectors), power)
    assert (coefficients > 1e-6).all()  # interior
    gains = vectors @ (coefficients @ vectors) / norms**power
    close(gains, gains[0].expand(5), 1e-9)


@pytest.mark.parametrize("power", POWERS)
def test_a_zero_gradient_gets_no_coefficient_and_changes_nothing(power: float) -> None:
    vectors = gradients(3, seed=8)
    vectors[1] = 0
    gram, without = gram_of(vectors), gram_of(vectors[[0, 2]])
    expected = gapo_coefficients(without, power)
    close(gapo_coefficients(gram, power), [expected[0], 0, expected[1]], 1e-9)
    close(gapo_coefficients(torch.zeros(3, 3), power), [0, 0, 0])
    preference = p_gapo_coefficients(gram, tensor([0.2, 0.3, 0.5]))
    close(preference, [0.2 / gram[0, 0].sqrt(), 0, 0.5 / gram[2, 2].sqrt()])
