"""The algorithms of step 3, each one answer to the same question: how do m objectives make one update?

Reward level (ppo, morlhf; ppo_lagrangian and fast_rl, whose weights move with the scores): weights mix the advantages
before the loss. Gradient level (mgda, gapo, p_gapo and the weightings of torchjd): coefficients of the losses are
computed at every optimizer step from the Gram matrix of the objectives' gradients.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import torch

from step3_gapo.adaptive_weights import AdaptiveWeights
from step3_gapo.gram_weightings import GRAM_WEIGHTINGS, gram_weighting, weighting_options
from utils.gradients.multi_objective import gapo_coefficients, min_norm_weights, p_gapo_coefficients
from utils.process.errors import UserError

REWARD_LEVEL = ("ppo", "morlhf", "ppo_lagrangian", "fast_rl")  # no gradient is compared
ALGORITHMS = (*REWARD_LEVEL, "mgda", "gapo", "p_gapo", *GRAM_WEIGHTINGS)
# The algorithms that read --preference.
WEIGHTED = ("morlhf", "p_gapo", *(name for name, weighting in GRAM_WEIGHTINGS.items() if weighting.preferring))


def compares_gradients(args: argparse.Namespace) -> bool:
    """Whether a run computes Gram matrices, to weigh objectives or to log them."""
    return args.algorithm not in REWARD_LEVEL or args.log_gradients


@dataclass(frozen=True)
class Algorithm:
    """One of `fixed_weights`, `adaptive` and `coefficients` is set.

    Attributes:
        fixed_weights: [m] float64, weights of the advantages (reward level).
        adaptive: weights of the advantages that follow the scores (reward level).
        coefficients: [m, m] Gram matrix -> [m] float64 coefficients of the losses (gradient level).
        power: the p that gradients are rescaled with before they are weighed (gradient level).
    """

    name: str
    fixed_weights: torch.Tensor | None = None
    adaptive: AdaptiveWeights | None = None
    coefficients: Callable[[torch.Tensor], torch.Tensor] | None = None
    power: float = 0.0

    @property
    def weights(self) -> torch.Tensor | None:
        """[m] float64 weights of the advantages as of now; None for gradient-level algorithms."""
        return self.adaptive.weights if self.adaptive else self.fixed_weights

    def alpha(self, gram: torch.Tensor, coefficients: torch.Tensor) -> torch.Tensor:
        """Weights α of the rescaled gradients behind the coefficients c_i = α_i / ‖g_i‖^p; [m] float64, sum 1 or 0."""
        return _sum_to_one(coefficients * gram.diagonal().clamp(min=0).sqrt() ** self.power)


def build_algorithm(
    name: str,
    objectives: list[str],
    preference: dict[str, float],
    rescale_power: float | None,
    normalize: bool,
    options: dict[str, str] | None = None,
) -> Algorithm:
    """The algorithm called `name`, one without a state, for these objectives.

    Args:
        preference: weight of every objective; empty means equal weights.
        rescale_power: p of GAPO; None for the others.
        normalize: rescale gradient-level coefficients to sum to one, the scale of fixed weights.
        options: of torchjd's weightings, by name.

    Raises:
        UserError: preference or options do not fit the algorithm or the objectives; a library is missing.
    """
    weights, options = preference_weights(name, objectives, preference), weighting_options(name, options or {})
    if name == "ppo":
        if len(objectives) != 1:
            raise UserError(
                f"--algorithm ppo optimizes one objective, not {len(objectives)} ({', '.join(objectives)}):"
                " name the others in --monitor, or use morlhf"
            )
        return Algorithm(name, fixed_weights=weights)
    if name == "morlhf":
        return Algorithm(name, fixed_weights=weights)
    solvers = {
        "mgda": (0.0, min_norm_weights),
        "gapo": (rescale_power, lambda gram: gapo_coefficients(gram, rescale_power)),
        "p_gapo": (1.0, lambda gram: p_gapo_coefficients(gram, weights)),
    }
    power, solver = solvers[name] if name in solvers else (0.0, gram_weighting(name, weights, options))
    coefficients = (lambda gram: _sum_to_one(solver(gram))) if normalize else solver
    return Algorithm(name, coefficients=coefficients, power=power)


def preference_weights(name: str, objectives: list[str], preference: dict[str, float]) -> torch.Tensor:
    """`--preference` as a vector in the order of the objectives, equal weights when it is not given; [m] float64."""
    if not preference:
        return torch.full((len(objectives),), 1.0 / len(objectives), dtype=torch.float64)
    if name not in WEIGHTED:
        raise UserError(f"--preference: --algorithm {name} has none (it serves {', '.join(WEIGHTED)})")
    for objective, weight in preference.items():
        if objective not in objectives:
            raise UserError(f"--preference {objective}: no such objective (there are {', '.join(objectives)})")
        if not 0 <= weight <= 1 or (name != "morlhf" and weight == 0):
            raise UserError(
                f"--preference {objective}={weight:g}: must be {'at least 0' if name == 'morlhf' else 'positive'}"
                " and at most 1"
            )
    missing = [objective for objective in objectives if objective not in preference]
    if missing:
        raise UserError(f"--preference: no weight for {', '.join(missing)}")
    total = sum(preference.values())
    if abs(total - 1) > 1e-6:
        raise UserError(f"--preference: the weights sum to {total:g}, not 1")
    return torch.tensor([preference[objective] for objective in objectives], dtype=torch.float64)


def _sum_to_one(coefficients: torch.Tensor) -> torch.Tensor:
    total = coefficients.sum()
    return coefficients / total if total > 0 else coefficients
