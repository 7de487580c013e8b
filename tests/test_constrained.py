"""CGPO's steps on two tasks under every ZeRO stage, on 1 and 2 ranks, against plain torch on one process.

tests/constrained.py has the rollouts, which are dealt to ranks and micro-batches, and the reference.
"""

import itertools

import pytest
import torch

from tests.cases import cases
from tests.constrained import OF_PROMPTS, TASKS, Library, Problem, build, make_library, step, train
from tests.critic_free import Layout, deviations, movement_error
from tests.helpers import run_function
from tests.test_gradient_parity import label, process_group
from utils.process.distributed import rank

pytestmark = pytest.mark.slow

TOLERANCE = 1e-5  # of the way that the weights have gone
PROBLEMS = [
    Problem(loss, algorithm, scope)
    for loss in ("crpg", "crraft", "codpo")
    for algorithm, scope in (("cgpo", "last_layer"), ("gapo", "last_layer"), ("gapo", "full"), ("mgda", "last_layer"))
]


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    return make_library(tmp_path_factory.mktemp("constrained"))


def check_problems(library: Library, jobs: list[tuple[Problem, Layout]]) -> None:
    """On every rank: each problem in its layout takes the reference's steps. All deviations are named."""
    wrong, names = [], [task.name for task in TASKS]
    with process_group():
        for problem, layout in jobs:
            reference, case = library.solve(problem), f"rank {rank()}, {label(problem, layout)}"
            wrong += deviations(case, reference, train(library, problem, layout), names, TOLERANCE)
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(("stage", "ranks"), cases(itertools.product((0, 2, 3), (1, 2)), always=[(0, 1), (3, 2)]))
def test_three_steps_are_those_of_plain_torch(library: Library, stage: int, ranks: int) -> None:
    for problem in PROBLEMS:
        library.solve(problem)
    jobs = [(problem, Layout(stage, accumulation)) for problem, accumulation in itertools.product(PROBLEMS, (1, 2))]
    result = run_function(check_problems, library, jobs, ranks=ranks)
    assert result.code == 0, result.stderr


def check_absent_tasks(library: Library) -> None:
    """Where a task has nothing to learn in a step, its coefficient, 0, serves for that step alone."""
    with process_group():
        for loss in ("crpg", "crraft", "codpo"):
            update, mixture = build(library, Problem(loss, "gapo"), Layout(2, 2))
            update.weigher.kept.steps = 10
            first, second, third = library.rollouts()
            of_b = torch.tensor([OF_PROMPTS[prompt] == "b" for prompt in first.prompts.tolist()])
            first.failed.logical_or_(of_b)
            first.judged.logical_and_(~of_b.unsqueeze(-1))
            logged = [step(update, mixture, sampling, n) for n, sampling in enumerate((first, second, third))]
            assert logged[0]["coefficient/b"] == 0, loss
            assert logged[1]["coefficient/b"] == logged[2]["coefficient/b"] > 0, loss
            assert ["gradient/norm/b" in scalars for scalars in logged] == [True, True, False]


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_task_without_anything_to_learn_from(library: Library, ranks: int) -> None:
    result = run_function(check_absent_tasks, library, ranks=ranks)
    assert result.code == 0, result.stderr


def test_another_problem_would_show(library: Library) -> None:
    """The references of any two problems end far from each other, as far as the comparison can see."""
    for one, other in itertools.combinations(PROBLEMS, 2):
        (start, end, _), (_, another, _) = library.solve(one), library.solve(other)
        assert movement_error(another, start, end) > 100 * TOLERANCE, (one, other)
