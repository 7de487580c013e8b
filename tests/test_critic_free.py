"""Steps without critics under every ZeRO stage, on 1 and 2 ranks, against plain torch on one process.

tests/critic_free.py has the rollouts, which are dealt to ranks and micro-batches, and the reference.
"""

import itertools
from dataclasses import replace
from unittest import mock

import pytest
import torch

from tests.cases import cases
from tests.critic_free import (
    Layout,
    Library,
    Problem,
    build,
    deviations,
    make_library,
    movement_error,
    rollout_step,
    start_of,
    train,
)
from tests.helpers import run_function
from tests.test_gradient_parity import Tensors, label, model_weights, process_group
from utils.process.distributed import rank, world_size

pytestmark = pytest.mark.slow

TOLERANCE = 1e-5  # of the way that the weights have gone
ALL = [
    Problem(advantage, algorithm, scope, options=options)
    for advantage, noon in (("group", "on"), ("rloo", "off"))
    for algorithm, scope, options in (
        ("morlhf", "last_layer", ()),
        ("gdpo", "last_layer", ()),
        ("pama", "last_layer", (("pama_noon", noon),)),
        ("gapo", "last_layer", ()),
        ("gapo", "full", ()),
    )
]
WITHOUT_STD = Problem("group", "morlhf", without_std=True)
BY_BATCH = Problem("rloo", "pama", options=(("pama_level", "batch"), ("pama_noon", "off")))
WHITENED = Problem("rloo", "gapo", whiten=True)
KEPT, KEPT_OF_PARTS = Problem("group", "gapo", every=2), Problem("rloo", "gapo", "full", fraction=0.5, every=2)
PARTS = {advantage: Problem(advantage, "gapo", "full", fraction=0.5) for advantage in ("group", "rloo")}
MORE = {  # by ZeRO stage
    0: [(WITHOUT_STD, 2), (BY_BATCH, 2), (KEPT_OF_PARTS, 2), (PARTS["group"], 1), (PARTS["rloo"], 4)],
    2: [(BY_BATCH, 4), (KEPT, 2), (WHITENED, 2)],
    3: [(BY_BATCH, 2), (KEPT_OF_PARTS, 1), (PARTS["group"], 1), (PARTS["rloo"], 4)],
}


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    return make_library(tmp_path_factory.mktemp("critic_free"))


def check_problems(library: Library, jobs: list[tuple[Problem, Layout]]) -> None:
    """On every rank: each problem in its layout takes the reference's steps. All deviations are named."""
    wrong = []
    with process_group():
        for problem, layout in jobs:
            reference, case = library.solve(problem, world_size()), f"rank {rank()}, {label(problem, layout)}"
            wrong += deviations(case, reference, train(library, problem, layout), problem.names, TOLERANCE)
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(("stage", "ranks"), cases(itertools.product((0, 2, 3), (1, 2)), always=[(0, 1), (3, 2)]))
def test_three_steps_are_those_of_plain_torch(library: Library, stage: int, ranks: int) -> None:
    jobs = [*itertools.product(ALL, (1, 2)), *MORE[stage]]
    for problem, _ in jobs:
        library.solve(problem, ranks)
    jobs = [(problem, Layout(stage, accumulation)) for problem, accumulation in jobs]
    result = run_function(check_problems, library, jobs, ranks=ranks)
    assert result.code == 0, result.stderr


def test_another_problem_would_show(library: Library) -> None:
    """The references of any two problems end far from each other, as far as the comparison can see."""
    problems = [*ALL, *(problem for problem, _ in itertools.chain(*MORE.values()))]
    for one, other in itertools.combinations(set(problems), 2):
        (start, end, _), (_, another, _) = library.solve(one), library.solve(other)
        assert movement_error(another, start, end) > 100 * TOLERANCE, (one, other)


# --- what the shortcuts are worth


def check_shortcuts(library: Library) -> None:
    """Bit for bit nothing where they are 1; coefficients that serve for three steps."""
    with process_group():
        layout = Layout(2, 2)
        for plain in (Problem("group", "gapo", "full"), Problem("group", "gapo")):
            weights, logged = train(library, plain, layout)
            ones = {"every": 1} | ({"fraction": 1.0} if plain.scope == "full" else {})
            same, logged_same = train(library, replace(plain, **ones), layout)
            assert all(torch.equal(weights[name], same[name]) for name in weights) and logged == logged_same
            half = replace(plain, every=3)
            update = build(library, half, layout)
            logged = [rollout_step(update, half, batch, n) for n, batch in enumerate(library.rollouts() * 2)]
            coefficients = [[scalars[f"coefficient/{name}"] for name in plain.names] for scalars in logged]
            for first in (0, 3):
                assert coefficients[first] == coefficients[first + 1] == coefficients[first + 2]
            assert all(abs(a / b - 1) > 1e-3 for a, b in zip(coefficients[0], coefficients[3], strict=True))
            assert ["gradient/norm/a" in scalars for scalars in logged] == [True, False, False] * 2


def test_shortcuts_that_are_one_change_nothing_and_longer_ones_keep_coefficients(library: Library) -> None:
    result = run_function(check_shortcuts, library, ranks=2)
    assert result.code == 0, result.stderr


def backward_passes(library: Library, problem: Problem) -> int:
    """Of one optimizer step of one micro-batch."""
    update = build(library, problem, Layout())
    with mock.patch.object(update.actor.engine, "backward", wraps=update.actor.engine.backward) as backward:
        rollout_step(update, problem, library.rollouts()[0], 0)
    return backward.call_count


def check_backward_passes(library: Library) -> None:
    with process_group():
        for m in (2, 4):
            for options in ((), (("pama_level", "batch"),)):
                assert backward_passes(library, Problem("group", "pama", objectives=m, options=options)) == 1
            assert backward_passes(library, Problem("group", "gapo", objectives=m)) == 1
            assert backward_passes(library, Problem("group", "mgda", "full", objectives=m)) == m
            part = Problem("group", "mgda", "full", objectives=m, fraction=0.5)
            assert backward_passes(library, part) == m + 1


def test_pama_takes_one_backward_pass_whatever_the_number_of_objectives(library: Library) -> None:
    result = run_function(check_backward_passes, library)
    assert result.code == 0, result.stderr


# --- the scale of a score


def weights_of_step(library: Library, problem: Problem) -> Tensors:
    update = build(library, problem, Layout())
    rollout_step(update, problem, library.rollouts()[0], 0)
    return model_weights(update.actor)


def check_scales(library: Library, problems: list[Problem], moves: bool) -> None:
    """What four times the score of one objective does to a step, beside what the step does; over the largest weight."""
    with process_group():
        start = dict(start_of(library).named_parameters())
        for problem in problems:
            plain, scaled = (
                weights_of_step(library, replace(problem, kl_coeff=0.0, scales=(factor, 1.0, 1.0, 1.0)))
                for factor in (1.0, 4.0)
            )
            moved, changed = (
                max(((other[n] - w).abs().max() / w.abs().max()).item() for n, w in plain.items())
                for other in (start, scaled)
            )
            print(f"{label(problem)}: {moved:.1e} {changed:.1e}")
            assert moved > 2e-3, problem
            assert changed > 0.1 * moved if moves else changed <= 1e-5, problem


FREE_OF_SCALE = [
    Problem(advantage, algorithm, scope, objectives=2)
    for advantage, algorithm, scope in (
        ("group", "gapo", "last_layer"),
        ("group", "gapo", "full"),
        ("rloo", "gapo", "last_layer"),
        ("group", "gdpo", "last_layer"),
        ("group", "mo_grpo", "last_layer"),
    )
]
OF_A_SCALE = [
    Problem(advantage, algorithm, objectives=2)
    for advantage, algorithm in (("group", "grpo"), ("rloo", "pama"), ("rloo", "gdpo"), ("rloo", "mgda"))
]


@pytest.mark.parametrize(("problems", "moves"), [(FREE_OF_SCALE, False), (OF_A_SCALE, True)], ids=["free", "bound"])
def test_the_scale_of_a_score(library: Library, problems: list[Problem], moves: bool) -> None:
    result = run_function(check_scales, library, problems, moves)
    assert result.code == 0, result.stderr
