"""The seam: how m objectives make one update. A method is one class in a file of its own, found and not listed.

    class Mine(GradientLevel):
        '''What it does, and its source.'''

        name, summary = "mine", "one line for --help"
        options = (Option("mine_step_size", positive_float, 0.1, "step size of ..."),)

        def coefficients(self, gram, losses): ...

It is a `ScoreLevel`, an `AdvantageLevel`, a `LossLevel` or a `GradientLevel`, after the place where its objectives
become one. Every rank holds an object with the same state and sees the same numbers.
"""

import argparse
import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from utils.process.errors import UserError


@dataclass(frozen=True)
class Option:
    """A flag that belongs to a method.

    Attributes:
        name: of the flag, without the dashes before it; a word as of Python. Methods that share it have equal ones.
        type: argparse type of one value.
        default: where the flag is not given; a list where there may be several values.
        help: what it is, for --help.
    """

    name: str
    type: Callable[[str], Any]
    default: Any
    help: str
    metavar: str | None = None

    @property
    def nargs(self) -> str | None:
        return "+" if isinstance(self.default, list) else None

    def shown_default(self) -> str:
        """For --help; nothing where there is none."""
        if self.default in (None, []):
            return ""
        shown = f"{self.default:g}" if isinstance(self.default, float) else self.default
        return f"; {shown} unless given"


@dataclass(frozen=True)
class Setting:
    """What a method is built for.

    Attributes:
        names: [m] optimized objectives.
        kinds: [m] "reward", "cost" or "function", whose values are higher-is-better whatever the kind; "task" where
            every task has a loss; in a stage of pairs "pairs", or "margin" of objectives that have margins in place of
            pairs.
        preference: [m] float64, sum 1.
        normalize: scale gradient-level coefficients to sum 1.
        options: {name: value} of the method's own.
        responses: to each prompt; they are neighbours.
    """

    names: Sequence[str]
    kinds: Sequence[str]
    preference: torch.Tensor
    normalize: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    responses: int = 1


class Algorithm:
    """One method. Subclasses say in `__init__` what does not fit them, as UserError.

    Attributes:
        name: of `--algorithm`; summary: one line for --help.
        options: flags of its own; their values are in `setting.options`.
        reads_preference: whether `--preference` means something to it; zero_preference: whether a weight may be 0.
        default_advantage: which estimator serves it unless `--advantage` says otherwise.
        least_objectives, most_objectives: how many it takes.
        of_tasks: whether it weighs the losses of tasks alone.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    options: ClassVar[tuple[Option, ...]] = ()
    reads_preference: ClassVar[bool] = False
    zero_preference: ClassVar[bool] = False
    default_advantage: ClassVar[str] = "gae"
    least_objectives: ClassVar[int] = 1
    most_objectives: ClassVar[int | None] = None
    of_tasks: ClassVar[bool] = False

    def __init__(self, setting: Setting):
        self.setting = setting

    @property
    def losses(self) -> list[str]:
        """Names of the losses it wants: one an objective, unless scores are mixed before."""
        return list(self.setting.names)

    @property
    def weights(self) -> torch.Tensor | None:
        """[losses] float64 weights as of now, where they are known before an update; for what is logged."""
        return None

    def observe(self, scores: torch.Tensor, judged: torch.Tensor) -> None:
        """Take in one rollout, before anything is made of its scores.

        Args:
            scores: [responses of all ranks, m] float32 training scores, 0 where there is none; a prompt's responses are
                neighbours.
            judged: [responses of all ranks, m] bool, where there is one.
        """

    def observe_advantages(self, scores: torch.Tensor, judged: torch.Tensor, advantages: torch.Tensor) -> None:
        """Take in what became of them, before the updates.

        Args:
            scores, judged: as in `observe`.
            advantages: [responses of all ranks, losses] float32, mean over the actions of a response.
        """

    def scalars(self) -> dict[str, float]:
        """What to log of the state, once a rollout."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """All of the state, as JSON holds it; empty where there is none."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""


class ScoreLevel(Algorithm, ABC):
    """Scores become one before the advantage: one critic, one advantage, one loss."""

    MIXED = "mixed"

    def __init__(self, setting: Setting):
        """Raises: UserError: an objective has the name of the mixture."""
        super().__init__(setting)
        if self.MIXED in setting.names:
            raise UserError(f"--algorithm {self.name}: its loss is called {self.MIXED}: rename that objective")

    @property
    def losses(self) -> list[str]:
        return [self.MIXED]

    @property
    def weights(self) -> torch.Tensor:
        return torch.ones(1, dtype=torch.float64)

    @abstractmethod
    def mix_scores(self, scores: torch.Tensor, judged: torch.Tensor) -> torch.Tensor:
        """One score a response of this rank's, by the state that `observe` has left, of this rollout, too.

        Args:
            scores: [rows, m] float32 training scores, higher is better; 0 where there is none.
            judged: [rows, m] bool, where there is one.

        Returns:
            [rows] float32; of a response that does not count, whatever.
        """

    def counts(self, judged: torch.Tensor) -> torch.Tensor:
        """Which responses have a mixed score: those that any objective has judged, unless overridden.

        [rows, m] bool -> [rows] bool.
        """
        return judged.any(dim=-1)


class AdvantageLevel(Algorithm, ABC):
    """Advantages become one inside the update: one loss."""

    @abstractmethod
    def mix(
        self, advantages: torch.Tensor, ratio: torch.Tensor, mask: torch.Tensor, judged: torch.Tensor
    ) -> torch.Tensor:
        """One advantage an action.

        Args:
            advantages: [m, rows, time] float32, 0 where there is no judgement.
            ratio: [rows, time] float32, probability of the action now over that when it was sampled.
            mask: [rows, time] float32, 1 on actions.
            judged: [m, rows] bool, where an objective has judged a response.

        Returns:
            [rows, time] float32.
        """

    @property
    def pools(self) -> bool:
        """Whether `mix` wants to know something of the whole optimizer step; costs a forward pass more where its
        micro-batches accumulate."""
        return False

    def pool(
        self, advantages: torch.Tensor, ratio: torch.Tensor, mask: torch.Tensor, judged: torch.Tensor
    ) -> torch.Tensor:
        """[k] float64 sums over a micro-batch; arguments as in `mix`, which follows."""
        raise NotImplementedError(f"{self.name} pools nothing")

    def settle(self, sums: torch.Tensor) -> None:
        """Take in [k] float64 sums of all micro-batches and ranks of a step, before its `mix`."""


class WeightedAdvantages(AdvantageLevel):
    """Advantages mixed by weights that are the same for all actions; those of Σ w_i r_i, as GAE is linear."""

    @property
    @abstractmethod
    def weights(self) -> torch.Tensor:
        """[m] float64 as of now, non-negative."""

    def mix(
        self, advantages: torch.Tensor, ratio: torch.Tensor, mask: torch.Tensor, judged: torch.Tensor
    ) -> torch.Tensor:
        return sum(w * advantage for w, advantage in zip(self.weights.tolist(), advantages, strict=True))


class LossLevel(Algorithm, ABC):
    """Losses become one by weights that are known before them. In stages whose objectives have neither scores nor
    advantages `observe` and `observe_advantages` are never called.

    Attributes:
        reads_margins: whether some objectives may have margins in place of pairs (see MODPO).
        logit_scale: factor on the implicit margins in the losses.
        margin_weights: of every objective with a margin, by which that is subtracted from them.
    """

    reads_margins: ClassVar[bool] = False
    logit_scale: float = 1.0

    @property
    @abstractmethod
    def weights(self) -> torch.Tensor:
        """[losses] float64 as of now, non-negative."""

    @property
    def margin_weights(self) -> dict[str, float]:
        return {}

    def observe_losses(self, losses: torch.Tensor, present: Sequence[bool]) -> None:
        """Take in what an optimizer step was on; the weights of the next one may follow from it.

        Args:
            losses: [losses] float64 means of the step; 0 where it had nothing of one.
            present: [losses] whether it had.
        """


class GradientLevel(Algorithm, ABC):
    """Losses become one by coefficients that are read from the Gram matrix of their gradients, at every step.

    Attributes:
        power: p of ‖g_i‖^p, by which gradients are rescaled before they are weighed; for what is logged as alpha.
        draws: whether it draws random numbers; all ranks use the coefficients of one.
    """

    power: float = 0.0
    draws: ClassVar[bool] = False

    @abstractmethod
    def coefficients(self, gram: torch.Tensor, losses: torch.Tensor) -> torch.Tensor:
        """Coefficients of the losses. A state across steps is allowed: see `state_dict`.

        Args:
            gram: [m, m] float64, G_ij = ⟨∇L_i, ∇L_j⟩; finite.
            losses: [m] float64, as they are at this step.

        Returns:
            [m] float64; 0 for a zero gradient.
        """

    def degree(self) -> float | None:
        """d where coefficients(s·G) = s^d coefficients(G) without a state; None where they have no such scale."""
        return 0.0

    def weigh(self, gram: torch.Tensor, losses: torch.Tensor) -> torch.Tensor:
        """`coefficients`, of sum 1 where that is asked for; [m] float64."""
        coefficients = checked(self.coefficients(gram, losses), losses.shape, self, "coefficients").double().cpu()
        return sum_to_one(coefficients) if self.setting.normalize else coefficients

    def alpha(self, gram: torch.Tensor, coefficients: torch.Tensor) -> torch.Tensor:
        """Weights α of the rescaled gradients behind the coefficients c_i = α_i / ‖g_i‖^p; [m] float64, sum 1 or 0."""
        return sum_to_one(coefficients * gram.diagonal().clamp(min=0).sqrt() ** self.power)


def checked(values: torch.Tensor, shape: Sequence[int], method: Algorithm, what: str) -> torch.Tensor:
    """What a method has returned, as it is; raises UserError where it is of another shape."""
    if not isinstance(values, torch.Tensor) or values.shape != torch.Size(shape):
        found = list(values.shape) if isinstance(values, torch.Tensor) else type(values).__name__
        raise UserError(f"--algorithm {method.name}: {what} returns {found}, not {list(shape)}")
    return values


def sum_to_one(coefficients: torch.Tensor) -> torch.Tensor:
    """Coefficients [m] at the scale of fixed weights; as they are where their sum is not positive."""
    total = coefficients.sum()
    return coefficients / total if total > 0 else coefficients


# --- from the command line to an object


def build(
    method: type[Algorithm],
    names: Sequence[str],
    kinds: Sequence[str],
    preference: dict[str, float],
    options: dict[str, Any],
    normalize: bool = False,
    responses: int = 1,
) -> Algorithm:
    """The method for these objectives.

    Args:
        preference: weight of every objective; empty means equal weights.
        responses: to each prompt.

    Raises:
        UserError: preference, options or number of objectives do not fit it, or a library is missing.
    """
    check_number(method, names)
    weights = preference_weights(method, names, preference)
    return method(Setting(list(names), list(kinds), weights, normalize, options, responses))


def check_number(method: type[Algorithm], names: Sequence[str]) -> None:
    """Raises: UserError: more or fewer objectives than the method takes."""
    there = f"{len(names)} ({', '.join(names)})"
    if method.most_objectives and len(names) > method.most_objectives:
        many = "one objective" if method.most_objectives == 1 else f"{method.most_objectives} objectives at most"
        raise UserError(f"--algorithm {method.name} optimizes {many}, not {there}: name the others in --monitor")
    if len(names) < method.least_objectives:
        least = f"{method.least_objectives} objectives at least"
        raise UserError(f"--algorithm {method.name} combines {least}, not {there}")


def preference_weights(method: type[Algorithm], names: Sequence[str], preference: dict[str, float]) -> torch.Tensor:
    """`--preference` in the order of the objectives, equal weights when it is not given; [m] float64.

    Raises:
        UserError: the method reads none, or the weights do not fit the objectives.
    """
    if not preference:
        return torch.full((len(names),), 1.0 / len(names), dtype=torch.float64)
    if not method.reads_preference:
        raise UserError(f"--preference: --algorithm {method.name} reads none")
    for objective, weight in preference.items():
        if objective not in names:
            raise UserError(f"--preference {objective}: no such objective (there are {', '.join(names)})")
        if not 0 <= weight <= 1 or (weight == 0 and not method.zero_preference):
            least = "at least 0" if method.zero_preference else "positive"
            raise UserError(f"--preference {objective}={weight:g}: must be {least} and at most 1")
    if missing := [objective for objective in names if objective not in preference]:
        raise UserError(f"--preference: no weight for {', '.join(missing)}")
    total = sum(preference.values())
    if abs(total - 1) > 1e-6:
        raise UserError(f"--preference: the weights sum to {total:g}, not 1")
    return torch.tensor([preference[objective] for objective in names], dtype=torch.float64)


def owners(methods: Sequence[type[Algorithm]]) -> Iterator[tuple[Option, list[str]]]:
    """Every option of these methods once, with the names of those that have it.

    Raises:
        UserError: two of them mean different things by one name.
    """
    found: dict[str, tuple[Option, list[str]]] = {}
    for method in methods:
        for option in method.options:
            known, names = found.setdefault(option.name, (option, []))
            if known != option:
                raise UserError(f"--algorithm {method.name}: its option --{option.name} is another one of {names[0]}")
            names.append(method.name)
    yield from found.values()


def add_options(group: argparse._ArgumentGroup, methods: Sequence[type[Algorithm]]) -> None:
    """A flag for every option of these methods; None where it is not given.

    Raises:
        UserError: see `owners`; the script has a flag of that name.
    """
    for option, names in owners(methods):
        if not option.name.isidentifier():
            raise UserError(f"--algorithm {names[0]}: its option {option.name!r} is no name of a flag")
        try:
            group.add_argument(
                f"--{option.name}", type=option.type, nargs=option.nargs, default=None, metavar=option.metavar,
                help=f"{', '.join(names)}: {option.help}{option.shown_default()}".replace("%", "%%"),
            )  # fmt: skip
        except argparse.ArgumentError:
            raise UserError(f"--algorithm {names[0]}: its option --{option.name} is a flag of this script") from None


def options_of(method: type[Algorithm], args: argparse.Namespace) -> dict[str, Any]:
    """The values of the method's own options, defaults where they are not given."""
    given = {option.name: getattr(args, option.name) for option in method.options}
    return {
        option.name: copy.copy(option.default) if given[option.name] is None else given[option.name]
        for option in method.options
    }
