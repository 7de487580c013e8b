"""CGPO's three losses on two tasks: optimizer steps on the device against plain torch on the CPU."""

from pathlib import Path

from tests.constrained import STEPS, Library, Problem, make_library, train
from tests.critic_free import Layout, movement_error
from tests.gpu_check.jobs import Checks, Settings
from utils.process.distributed import init_distributed

CASES = {
    "crpg by fixed weights, ZeRO-0": (Problem("crpg"), Layout(0)),
    "crraft by GAPO, last_layer, ZeRO-2": (Problem("crraft", "gapo"), Layout(2, 2)),
    "codpo by GAPO, full, ZeRO-3": (Problem("codpo", "gapo", "full"), Layout(3)),
}
ALLOWED = 1e-3  # of the way that the weights have gone


def constrained_checks(settings: Settings) -> Checks:
    folder = Path(settings.folder) / "constrained"
    folder.mkdir()
    library = make_library(folder)
    init_distributed()
    return {name: lambda case=case: same_steps(library, *case) for name, case in CASES.items()}


def same_steps(library: Library, problem: Problem, layout: Layout) -> str:
    """Raises AssertionError where the weights end elsewhere."""
    start, end, _ = library.solve(problem)
    weights, _ = train(library, problem, layout)
    error = movement_error({name: weight.cpu() for name, weight in weights.items()}, start, end)
    assert error <= ALLOWED, f"the weights are off by {error:.1e} of the way they have gone"
    return f"{STEPS} rollouts of two tasks: off by {error:.1e} of the way from plain torch on the CPU"
