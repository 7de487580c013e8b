"""From the Gram matrix of an optimizer step to coefficients of its losses, and what is known of them across steps."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from utils.combining.algorithm import Algorithm, GradientLevel, LossLevel, checked
from utils.gradients.multi_objective import cosine_matrix
from utils.output.files import write_json
from utils.process.distributed import all_reduce_sum, broadcast_from_main, print_main

Scalars = dict[str, float]


class KeptCoefficients:
    """Coefficients that serve for several optimizer steps (`--gram_every`), and how many they have served for.

    Attributes:
        whole: whether they are of all losses; otherwise they do not serve again.
    """

    def __init__(self, steps: int):
        self.steps, self.age, self.whole = steps, 0, True
        self.values: torch.Tensor | None = None  # [m] float64

    @property
    def are_due(self) -> bool:
        """Whether the next step makes new ones."""
        return self.values is None or self.age >= self.steps or not self.whole

    def state_dict(self) -> dict[str, Any] | None:
        """None where they never serve twice."""
        if self.steps == 1 or self.values is None or not self.whole:
            return None
        return {"coefficients": self.values.tolist(), "age": self.age}

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """Go on from what `state_dict` gave."""
        self.age, self.whole = state["age"] if state else 0, True
        self.values = torch.tensor(state["coefficients"], dtype=torch.float64) if state else None


class Weigher:
    """Coefficients of m losses, by an algorithm; the same on every rank.

    Attributes:
        gram: [m, m] float64, the last one.
        not_finite: what the last step failed on, where it did.

    Args:
        names: [m] of the losses.
        compares: whether Gram matrices are made, to weigh by them or to log them.
        every: optimizer steps that coefficients serve for.
        warns_of_absent: whether a loss that a step has nothing of is to be warned of like one whose gradient vanishes.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        names: list[str],
        compares: bool,
        every: int = 1,
        warns_of_absent: bool = False,
    ):
        self.algorithm, self.names, self.compares = algorithm, names, compares
        self.warns_of_absent = warns_of_absent
        self.kept = KeptCoefficients(every)
        self.warned: set[str] = set()
        self.gram: torch.Tensor | None = None
        self.not_finite = ""

    @property
    def compares_now(self) -> bool:
        """Whether the step to come compares gradients; not where it goes by coefficients that are kept."""
        return self.compares and self.kept.are_due

    def weigh(
        self,
        gram: torch.Tensor | None,
        losses: torch.Tensor | None,
        gradient: str,
        present: Sequence[bool] | None = None,
    ) -> tuple[torch.Tensor | None, Scalars | None]:
        """Coefficients [m] of the losses, or weights of what they are mixed from, where there are some.

        Args:
            gram: [m, m] float64, if gradients are compared.
            losses: [m] this rank's parts of the losses, if they are.
            gradient: what the gradients are called.
            present: [m] whether the step has anything that a loss is a mean over; None: it has, of all. Coefficients
                of a step that lacks something serve for that one alone.

        Returns:
            Also what to log of them; None in its place where something is not finite (see `not_finite`).

        Raises:
            UserError: a method's weights or coefficients are of another shape.
        """
        self.not_finite, coefficients = gradient, self.weights()
        present = [True] * len(self.names) if present is None else present
        weighs_gradients = isinstance(self.algorithm, GradientLevel)
        if gram is None:
            coefficients = self.kept.values if weighs_gradients else coefficients
            return coefficients, self.named("coefficient", coefficients)
        self.gram = gram
        if not gram.isfinite().all():
            return None, None
        if weighs_gradients:
            losses = all_reduce_sum(losses).cpu().double()
            coefficients = broadcast_from_main(self.algorithm.weigh(gram, losses))  # some draw random numbers
            if not coefficients.isfinite().all():
                self.not_finite = f"what --algorithm {self.algorithm.name} makes of the gradients"
                return None, None
            self.kept.values, self.kept.whole = coefficients, all(present)
            self.warn_of_zero_gradients(gram, present)
        scalars = gram_scalars(gram, coefficients, self.names) | self.named("coefficient", coefficients)
        if weighs_gradients:
            scalars |= self.named("alpha", self.algorithm.alpha(gram, coefficients))
        return coefficients, scalars

    def took_step(self, compared: bool) -> None:
        """Take note of an optimizer step."""
        self.kept.age = 1 if compared else self.kept.age + 1

    def weights(self) -> torch.Tensor | None:
        """[m] of losses that are weighed by what is known before them; whatever of others."""
        weights = self.algorithm.weights
        if isinstance(self.algorithm, LossLevel):
            weights = checked(weights, [len(self.names)], self.algorithm, "weights").double().cpu()
        return weights

    def warn_of_zero_gradients(self, gram: torch.Tensor, present: Sequence[bool]) -> None:
        """One line, once an objective: it has weight 0 as long as its gradient vanishes."""
        for name, square, there in zip(self.names, gram.diagonal().tolist(), present, strict=True):
            if (there or self.warns_of_absent) and square == 0 and name not in self.warned:
                self.warned.add(name)
                print_main(f"warning: the gradient of {name} is zero; it has weight 0 until it is not")

    def named(self, tag: str, values: torch.Tensor | None) -> Scalars:
        """Scalars of values [m], of which there may be none."""
        if values is None:
            return {}
        return {f"{tag}/{name}": value for name, value in zip(self.names, values.tolist(), strict=True)}

    def state_dict(self) -> dict[str, Any]:
        """What a run that goes on must know, as JSON."""
        own = self.algorithm.state_dict() or None
        state = {"name": self.algorithm.name, "warned": sorted(self.warned), "adaptive": own}
        return state | ({"kept": kept} if (kept := self.kept.state_dict()) else {})

    def go_back(self, state: dict[str, Any]) -> None:
        """To what was known before a step that was not taken; what was said stays said."""
        self.algorithm.load_state_dict(state["adaptive"] or {})
        self.kept.load_state_dict(state.get("kept"))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave; of another algorithm only the warnings."""
        self.warned = set(state["warned"])
        if state["name"] != self.algorithm.name:
            return
        if state["adaptive"]:
            self.algorithm.load_state_dict(state["adaptive"])
        self.kept.load_state_dict(state.get("kept"))


def write_algorithm_state(algorithm: Algorithm, step: int, directory: str | Path) -> None:
    """Keep the state of an algorithm that has one where people can look at it."""
    if state := algorithm.state_dict():
        write_json(Path(directory) / "algorithm_state.json", {"step": step, **state})


def gram_scalars(gram: torch.Tensor, coefficients: torch.Tensor | None, names: list[str]) -> Scalars:
    """What a Gram matrix says of a step: norms, cosines; with coefficients, the update's length and its progress on
    every objective."""
    norms, cosines = gram.diagonal().clamp(min=0).sqrt(), cosine_matrix(gram)
    scalars, progress = {}, None
    if coefficients is not None:
        progress = gram @ coefficients  # ⟨Δ, g_i⟩
        scalars["gradient/direction_norm"] = (coefficients @ progress).clamp(min=0).sqrt().item()
    for i, name in enumerate(names):
        scalars[f"gradient/norm/{name}"] = norms[i].item()
        if progress is not None:
            scalars[f"gradient/progress/{name}"] = progress[i].item()
        for j in range(i):
            scalars[f"gradient/cosine/{names[j]}_{name}"] = cosines[i, j].item()
    return scalars
