"""Other methods of gradient surgery, by name: torchjd turns the same Gram matrix into coefficients of the losses.

Here are torchjd's weightings that read nothing but one Gram matrix and remember nothing. Left out are those with a
state, which would belong into every checkpoint (GradVac, PCD, CR-MOGM, SDMGrad, MoDo, ExcessMTL, and Nash-MTL, which
approaches G w = 1 / w from step to step: fairgrad with alpha=1, as by default, solves that equation); those that need
the gradients themselves (ConFIG, GradDrop, trimmed mean) or other batches; Krum, which drops objectives as outliers;
mean, sum and random weights, which look at no gradient (equal weights are morlhf); and torchjd's MGDA, which approaches
the point that `min_norm_weights` computes.

torchjd is imported when an algorithm of its own is built: it takes most of a second.
"""

import argparse
import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch

from utils.cli.arguments import non_negative_float, positive_float
from utils.gradients.multi_objective import checked_gram
from utils.process.distributed import print_main
from utils.process.errors import UserError


def scale_mode(text: str) -> str:
    """argparse type of AlignedMTL's `scale_mode`."""
    modes = ("min", "median", "rmse")
    if text not in modes:
        raise argparse.ArgumentTypeError(f"not one of {', '.join(modes)}")
    return text


@dataclass(frozen=True)
class GramWeighting:
    """A weighting of torchjd.

    Attributes:
        build: (torchjd, preference [m], **options) -> torchjd's object, which maps [m, m] to weights [m].
        options: name -> (argparse type, default), for --weighting_options.
        preferring: whether it reads --preference.
        degree: d of the options, where weights(s·G) = s^d weights(G).
    """

    build: Callable[..., Callable[[torch.Tensor], torch.Tensor]]
    options: dict[str, tuple[Callable[[str], Any], Any]] = field(default_factory=dict)
    preferring: bool = False
    degree: Callable[[dict[str, Any]], float] = lambda options: 0.0


def projecting(weighting: str) -> GramWeighting:
    """A weighting that projects on the dual cone: `reg_eps` is added to the diagonal of the matrix of trace 1."""
    return GramWeighting(
        lambda jd, preference, **options: getattr(jd.aggregation, weighting)(
            preference, jd.linalg.QuadprogProjector(**options)
        ),
        {"reg_eps": (positive_float, 1e-4)},
        preferring=True,
    )


GRAM_WEIGHTINGS = {
    "upgrad": projecting("UPGradWeighting"),
    "dualproj": projecting("DualProjWeighting"),
    "cagrad": GramWeighting(
        lambda jd, preference, **options: jd.aggregation.CAGradWeighting(**options),
        {"c": (non_negative_float, 0.5), "norm_eps": (non_negative_float, 1e-4)},
    ),
    # The order of its projections is random: all ranks must use the coefficients of one.
    "pcgrad": GramWeighting(lambda jd, preference: jd.aggregation.PCGradWeighting()),
    "imtl_g": GramWeighting(lambda jd, preference: jd.aggregation.IMTLGWeighting()),
    "aligned_mtl": GramWeighting(
        lambda jd, preference, **options: jd.aggregation.AlignedMTLWeighting(preference, **options),
        {"scale_mode": (scale_mode, "min")},
        preferring=True,
    ),
    "fairgrad": GramWeighting(
        lambda jd, preference, **options: jd.aggregation.FairGradWeighting(**options),
        {"alpha": (non_negative_float, 1.0)},
        degree=lambda options: -options["alpha"] / (1 + options["alpha"]),  # of the solution of G w = w^(-1/α)
    ),
}


def weighting_options(name: str, given: dict[str, str]) -> dict[str, Any]:
    """All options of the algorithm `name`: those given, as the types they are, and the defaults of the others.

    Raises:
        UserError: the algorithm has no such option, or the value is not one for it.
    """
    known = GRAM_WEIGHTINGS[name].options if name in GRAM_WEIGHTINGS else {}
    options = {option: default for option, (_, default) in known.items()}
    for option, text in given.items():
        if option not in known:
            has = f"it has {', '.join(known)}" if known else "it has none"
            raise UserError(f"--weighting_options {option}: no such option of --algorithm {name} ({has})")
        try:
            options[option] = known[option][0](text)
        except (ValueError, argparse.ArgumentTypeError) as error:
            raise UserError(f"--weighting_options {option}={text}: {error}") from None
    return options


def gram_weighting(
    name: str, preference: torch.Tensor, options: dict[str, Any]
) -> Callable[[torch.Tensor], torch.Tensor]:
    """The weighting `name` as a function of the Gram matrix [m, m] -> coefficients [m] float64, at torchjd's scale.

    An objective with a zero gradient gets 0, and the others what they would get without it. The matrix is handed on
    with gradients of mean square 1, because torchjd compares it with absolute numbers. Where a solver fails, all
    coefficients are NaN, as they would be from gradients that are not finite.

    Args:
        preference: [m], positive; read by those that are `preferring`.
        options: see `weighting_options`.

    Raises:
        UserError: torchjd, or a library that this weighting needs, is not installed.
    """
    weighting = GRAM_WEIGHTINGS[name]
    torchjd = _import_torchjd(name)

    def build(active: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        return weighting.build(torchjd, preference[active] / preference[active].sum(), **options)

    def coefficients(gram: torch.Tensor) -> torch.Tensor:
        gram = checked_gram(gram)
        weights, active = torch.zeros(len(gram), dtype=torch.float64), gram.diagonal() > 0
        if not active.any():
            return weights
        scale = gram.diagonal()[active].mean()
        try:
            weights[active] = build(active)(gram[active][:, active] / scale) * scale ** weighting.degree(options)
        except Exception as error:  # of whatever solver is behind it
            _say_once(f"warning: --algorithm {name}: {type(error).__name__}: {error}")
            weights[active] = torch.nan
        return weights

    try:
        build(preference > 0)
    except ImportError as error:
        raise UserError(f"--algorithm {name}: {error}") from None
    return coefficients


def _import_torchjd(name: str) -> ModuleType:
    try:
        import torchjd.aggregation
        import torchjd.linalg
    except ImportError as error:
        raise UserError(f"--algorithm {name}: {error}; pip install -r requirements.txt") from None
    return torchjd


@functools.cache
def _say_once(line: str) -> None:
    print_main(" ".join(line.split()))
