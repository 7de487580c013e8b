"""Other methods of gradient surgery: torchjd turns the same Gram matrix into coefficients of the losses.

Here are torchjd's weightings that read nothing but one Gram matrix and remember nothing. Left out are those with a
state, which would belong into every checkpoint (GradVac, PCD, CR-MOGM, SDMGrad, MoDo, ExcessMTL, and Nash-MTL, which
approaches G w = 1 / w from step to step: fairgrad with alpha=1, as by default, solves that equation); those that need
the gradients themselves (ConFIG, GradDrop, trimmed mean) or other batches; Krum, which drops objectives as outliers;
mean, sum and random weights, which look at no gradient; and torchjd's MGDA, which approaches the point that
`min_norm_weights` computes.

torchjd is imported when an algorithm of its own is built: it takes most of a second.
"""

import argparse
import functools
from abc import abstractmethod
from collections.abc import Callable
from types import ModuleType
from typing import Any, ClassVar

import torch

from utils.cli.types import by_name, named_value, non_negative_float, positive_float
from utils.combining.algorithm import GradientLevel, Option, Setting
from utils.gradients.multi_objective import checked_gram
from utils.process.distributed import print_main
from utils.process.errors import UserError


def scale_mode(text: str) -> str:
    """argparse type of AlignedMTL's `scale_mode`."""
    modes = ("min", "median", "rmse")
    if text not in modes:
        raise argparse.ArgumentTypeError(f"not one of {', '.join(modes)}")
    return text


OPTIONS_HELP = (
    "of its options (upgrad, dualproj reg_eps=0.0001; cagrad c=0.5 norm_eps=0.0001; aligned_mtl scale_mode=min, median"
    " or rmse; fairgrad alpha=1)"
)
Weigh = Callable[[torch.Tensor], torch.Tensor]  # [m, m] Gram matrix -> [m] weights


class TorchjdWeighting(GradientLevel):
    """A weighting of torchjd, at torchjd's scale.

    An objective with a zero gradient gets 0, and the others what they would get without it. The matrix is handed on
    with gradients of mean square 1, because torchjd compares it with absolute numbers. Where a solver fails, all
    coefficients are NaN, as they would be from gradients that are not finite.

    Attributes:
        keys: name -> (argparse type, default) of what --weighting_options sets.
    """

    options = (Option("weighting_options", named_value, [], OPTIONS_HELP, "KEY=VALUE"),)
    keys: ClassVar[dict[str, tuple[Callable[[str], Any], Any]]] = {}

    def __init__(self, setting: Setting):
        """Raises: UserError: no such option; torchjd, or a library that this weighting needs, is not installed."""
        super().__init__(setting)
        self.values = weighting_options(self.name, self.keys, setting.options["weighting_options"])
        self.torchjd = _import_torchjd(self.name)
        try:
            self.build(self.torchjd, setting.preference[setting.preference > 0])
        except ImportError as error:
            raise UserError(f"--algorithm {self.name}: {error}") from None

    @abstractmethod
    def build(self, jd: ModuleType, preference: torch.Tensor) -> Weigh:
        """torchjd's object for these objectives, of `preference` [m]."""

    def coefficients(self, gram: torch.Tensor, losses: torch.Tensor) -> torch.Tensor:
        gram = checked_gram(gram)
        weights, active = torch.zeros(len(gram), dtype=torch.float64), gram.diagonal() > 0
        if not active.any():
            return weights
        scale, preference = gram.diagonal()[active].mean(), self.setting.preference[active]
        try:
            weigh = self.build(self.torchjd, preference / preference.sum())
            weights[active] = weigh(gram[active][:, active] / scale) * scale ** self.degree()
        except Exception as error:  # of whatever solver is behind it
            _say_once(f"warning: --algorithm {self.name}: {type(error).__name__}: {error}")
            weights[active] = torch.nan
        return weights


class Projecting(TorchjdWeighting):
    """A weighting that projects on the dual cone: `reg_eps` is added to the diagonal of the matrix of trace 1."""

    reads_preference = True
    keys = {"reg_eps": (positive_float, 1e-4)}
    weighting: ClassVar[str]

    def build(self, jd: ModuleType, preference: torch.Tensor) -> Weigh:
        return getattr(jd.aggregation, self.weighting)(preference, jd.linalg.QuadprogProjector(**self.values))


class UPGrad(Projecting):
    """Quinton & Rey 2024: every gradient projected on the dual cone, then averaged."""

    name, summary, weighting = "upgrad", "torchjd: projections on the dual cone, averaged", "UPGradWeighting"


class DualProj(Projecting):
    """Lopez-Paz & Ranzato 2017, as torchjd has it: the mean projected on the dual cone."""

    name, summary, weighting = "dualproj", "torchjd: the mean, projected on the dual cone", "DualProjWeighting"


class CAGrad(TorchjdWeighting):
    """Liu et al. 2021: the best worst progress within a ball around the mean."""

    name, summary = "cagrad", "torchjd: best worst progress near the mean (needs cvxpy)"
    keys = {"c": (non_negative_float, 0.5), "norm_eps": (non_negative_float, 1e-4)}

    def build(self, jd: ModuleType, preference: torch.Tensor) -> Weigh:
        return jd.aggregation.CAGradWeighting(**self.values)


class PCGrad(TorchjdWeighting):
    """Yu et al. 2020, in a random order."""

    draws = True
    name, summary = "pcgrad", "torchjd: conflicting gradients projected on each other's normal planes"

    def build(self, jd: ModuleType, preference: torch.Tensor) -> Weigh:
        return jd.aggregation.PCGradWeighting()


class IMTLG(TorchjdWeighting):
    """Liu et al. 2021: equal projections of the update on all unit gradients."""

    name, summary = "imtl_g", "torchjd: equal projections on all unit gradients"

    def build(self, jd: ModuleType, preference: torch.Tensor) -> Weigh:
        return jd.aggregation.IMTLGWeighting()


class AlignedMTL(TorchjdWeighting):
    """Senushkin et al. 2023: gradients made orthogonal, of one length."""

    name, summary = "aligned_mtl", "torchjd: gradients made orthogonal and of one length"
    reads_preference = True
    keys = {"scale_mode": (scale_mode, "min")}

    def build(self, jd: ModuleType, preference: torch.Tensor) -> Weigh:
        return jd.aggregation.AlignedMTLWeighting(preference, **self.values)


class FairGrad(TorchjdWeighting):
    """Ban & Ji 2024: α-fair progress, the solution of G w = w^(-1/α)."""

    name, summary = "fairgrad", "torchjd: α-fair progress (with alpha=1, as by default, the solution of Nash-MTL)"
    keys = {"alpha": (non_negative_float, 1.0)}

    def build(self, jd: ModuleType, preference: torch.Tensor) -> Weigh:
        return jd.aggregation.FairGradWeighting(**self.values)

    def degree(self) -> float:
        return -self.values["alpha"] / (1 + self.values["alpha"])


def weighting_options(
    name: str, known: dict[str, tuple[Callable[[str], Any], Any]], pairs: list[tuple[str, str]]
) -> dict[str, Any]:
    """All options of a weighting: those given, as the types they are, and the defaults of the others.

    Raises:
        UserError: it has no such option, the value is not one for it, or an option is given twice.
    """
    options = {option: default for option, (_, default) in known.items()}
    for option, text in by_name("--weighting_options", pairs).items():
        if option not in known:
            has = f"it has {', '.join(known)}" if known else "it has none"
            raise UserError(f"--weighting_options {option}: no such option of --algorithm {name} ({has})")
        try:
            options[option] = known[option][0](text)
        except (ValueError, argparse.ArgumentTypeError) as error:
            raise UserError(f"--weighting_options {option}={text}: {error}") from None
    return options


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
