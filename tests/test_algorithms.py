"""From the flags to coefficients: algorithms by name, torchjd's weightings against torchjd's own aggregators on
explicit gradients, and a run of step 3 with one of them."""

import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torchjd.aggregation
from torchjd.aggregation import DualProj, UPGrad, UPGradWeighting

from step3_gapo.needs import METHODS
from tests.helpers import STEP3, Workshop, read_metrics, run_function, run_script
from tests.test_multi_objective import close, gradients, gram_of, tensor
from utils.combining.algorithm import Algorithm
from utils.combining.algorithm import build as build_method
from utils.combining.torchjd_weightings import TorchjdWeighting
from utils.gradients.multi_objective import gapo_coefficients, min_norm_weights, p_gapo_coefficients, rescaled_gram
from utils.process.errors import UserError

# Algorithm, --weighting_options, and the aggregator of torchjd that does the same to the gradients themselves.
AGGREGATORS = {
    "upgrad": ({}, UPGrad()),
    "dualproj": ({}, DualProj()),
    "cagrad": ({}, torchjd.aggregation.CAGrad(c=0.5)),
    "cagrad c": ({"c": "0.2"}, torchjd.aggregation.CAGrad(c=0.2)),
    "pcgrad": ({}, torchjd.aggregation.PCGrad()),
    "imtl_g": ({}, torchjd.aggregation.IMTLG()),
    "aligned_mtl": ({}, torchjd.aggregation.AlignedMTL()),
    "aligned_mtl scale_mode": ({"scale_mode": "rmse"}, torchjd.aggregation.AlignedMTL(scale_mode="rmse")),
    "fairgrad": ({}, torchjd.aggregation.FairGrad(alpha=1.0)),
    "fairgrad alpha": ({"alpha": "2"}, torchjd.aggregation.FairGrad(alpha=2.0)),
    "fairgrad alpha 0": ({"alpha": "0"}, torchjd.aggregation.FairGrad(alpha=0.0)),
}  # fmt: skip


WEIGHTINGS = [name for name, method in METHODS.items() if issubclass(method, TorchjdWeighting)]


def build(
    name: str,
    m: int,
    options: dict[str, str] | None = None,
    preference: dict[str, float] | None = None,
    normalize: bool = False,
    **own: Any,
) -> Algorithm:
    own |= {"weighting_options": list((options or {}).items())}
    return build_method(METHODS[name.split()[0]], "abcdefgh"[:m], ["reward"] * m, preference or {}, own, normalize)


def weigh(algorithm: Algorithm, gram: torch.Tensor) -> torch.Tensor:
    return algorithm.weigh(gram, torch.zeros(len(gram), dtype=torch.float64))


def coefficients_of(name: str, gram: torch.Tensor, options: dict[str, str] | None = None, **changes: Any):
    """Coefficients [m], with the random numbers of seed 0."""
    torch.manual_seed(0)
    return weigh(build(name, len(gram), options, **changes), gram)


def conflicting(m: int, seed: int) -> torch.Tensor:
    """m gradients [m, 12] float64 of several lengths, the first two at an obtuse angle."""
    vectors = gradients(m, seed, spread=0.5)
    if m > 1:
        vectors[1] -= 1.5 * vectors[0] * (vectors[0] @ vectors[1] / vectors[0].square().sum() + 0.5)
    return vectors


# --- the algorithms of the project


@pytest.mark.parametrize(("name", "power"), [("mgda", 1.0), ("gapo", 1.0), ("gapo", 2.0)])
@pytest.mark.parametrize("normalize", [False, True])
def test_the_weights_behind_the_coefficients(name: str, power: float, normalize: bool) -> None:
    gram = gram_of(gradients(3, seed=9, spread=0.5))
    algorithm = build(name, 3, rescale_power=power, normalize=normalize)
    coefficients = weigh(algorithm, gram)
    power = 0.0 if name == "mgda" else power
    plain = gapo_coefficients(gram, power)
    close(coefficients, plain / plain.sum() if normalize else plain)
    close(algorithm.alpha(gram, coefficients), min_norm_weights(rescaled_gram(gram, power)), 1e-9)


def test_the_weights_of_p_gapo_are_the_preference_in_the_order_of_the_objectives() -> None:
    gram = gram_of(gradients(3, seed=10, spread=0.5))
    algorithm = build("p_gapo", 3, preference={"c": 0.5, "a": 0.2, "b": 0.3})
    coefficients = weigh(algorithm, gram)
    close(coefficients, p_gapo_coefficients(gram, tensor([0.2, 0.3, 0.5])))
    close(algorithm.alpha(gram, coefficients), [0.2, 0.3, 0.5])


def test_reward_level_algorithms_have_fixed_weights() -> None:
    assert build("ppo", 1).weights.tolist() == [1.0]
    assert build("morlhf", 2, preference={"b": 1.0, "a": 0.0}).weights.tolist() == [0.0, 1.0]
    assert build("morlhf", 2).weights.tolist() == [0.5, 0.5]


# --- torchjd's weightings


def test_every_weighting_is_compared_with_torchjd() -> None:
    assert {name.split()[0] for name in AGGREGATORS} == set(WEIGHTINGS)


@pytest.mark.parametrize("m", [1, 2, 3, 5])
@pytest.mark.parametrize("name", AGGREGATORS)
def test_coefficients_combine_gradients_as_torchjd_does(name: str, m: int) -> None:
    options, aggregator = AGGREGATORS[name]
    for seed in range(3):
        vectors = conflicting(m, seed)
        coefficients = coefficients_of(name, gram_of(vectors), options)
        assert coefficients.dtype == torch.float64
        torch.manual_seed(0)
        close(coefficients @ vectors, aggregator(vectors), 1e-5)


def test_the_order_of_pcgrad_is_drawn_anew() -> None:
    gram = gram_of(gradients(5, seed=2, features=4))
    algorithm = build("pcgrad", 5)
    assert len({tuple(weigh(algorithm, gram).tolist()) for _ in range(20)}) > 1


@pytest.mark.parametrize(("name", "aggregator"), [
    ("upgrad", UPGrad), ("dualproj", DualProj), ("aligned_mtl", torchjd.aggregation.AlignedMTL)
])  # fmt: skip
def test_the_preference_reaches_torchjd_in_the_order_of_the_objectives(name: str, aggregator: type) -> None:
    vectors = conflicting(3, seed=0)
    coefficients = coefficients_of(name, gram_of(vectors), preference={"c": 0.7, "a": 0.2, "b": 0.1})
    close(coefficients @ vectors, aggregator(tensor([0.2, 0.1, 0.7]))(vectors), 1e-8)
    assert not torch.allclose(coefficients, coefficients_of(name, gram_of(vectors)), rtol=1e-2)


def test_no_objective_loses_under_upgrad_and_dualproj() -> None:
    for name, seed in (("upgrad", 0), ("upgrad", 1), ("dualproj", 0), ("dualproj", 1)):
        gram = gram_of(conflicting(2, seed))
        assert (gram @ tensor([0.1, 0.9])).min() < 0  # the objectives conflict
        coefficients = coefficients_of(name, gram, {"reg_eps": "1e-9"}, preference={"a": 0.1, "b": 0.9})
        assert (gram @ coefficients >= -1e-6 * gram.diagonal().max()).all()


@pytest.mark.parametrize("c", [0.0, 0.3, 0.8])
def test_cagrad_stays_within_c_of_the_mean_gradient(c: float) -> None:
    vectors = conflicting(3, seed=3)
    mean = vectors.mean(dim=0)
    moved = coefficients_of("cagrad", gram_of(vectors), {"c": str(c)}) @ vectors - mean
    assert moved.norm().item() == pytest.approx(c * mean.norm().item(), rel=1e-6)


def test_imtl_g_gains_the_same_along_every_unit_gradient() -> None:
    gram = gram_of(conflicting(4, seed=4))
    coefficients = coefficients_of("imtl_g", gram)
    gains = gram @ coefficients / gram.diagonal().sqrt()
    close(gains, gains[0].expand(4), 1e-9)
    assert coefficients.sum().item() == pytest.approx(1)


def test_pcgrad_projects_each_of_two_off_the_other() -> None:
    gram = tensor([[1, -1], [-1, 4]])
    close(coefficients_of("pcgrad", gram), [1 + 1 / 1, 1 + 1 / 4])
    close(coefficients_of("pcgrad", gram.abs()), [1, 1])


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_fairgrad_solves_its_equation(alpha: float, scale: float) -> None:
    gram = gram_of(conflicting(3, seed=5)) * scale
    coefficients = coefficients_of("fairgrad", gram, {"alpha": str(alpha)})
    close(gram @ coefficients * coefficients ** (1 / alpha), [1, 1, 1], 1e-5)


def test_fairgrad_is_nash_mtl_unless_told_otherwise() -> None:
    """G w = 1 / w, the solution of Nash's bargaining game."""
    gram = gram_of(conflicting(4, seed=11))
    coefficients = coefficients_of("fairgrad", gram)
    close(gram @ coefficients, 1 / coefficients, 1e-5)


@pytest.mark.parametrize("scale", [1e-16, 1e-8, 1e8])
@pytest.mark.parametrize("name", [name for name in AGGREGATORS if not name.startswith("fairgrad")])
def test_the_common_length_of_the_gradients_does_not_matter(name: str, scale: float) -> None:
    """Policy gradients have norms of 1e-3 and less, where torchjd alone takes them for zero."""
    gram, (options, _) = gram_of(conflicting(3, seed=6)), AGGREGATORS[name]
    close(coefficients_of(name, scale * gram, options), coefficients_of(name, gram, options), 1e-6)


@pytest.mark.parametrize("name", AGGREGATORS)
def test_a_zero_gradient_is_as_though_it_were_not_there(name: str) -> None:
    vectors, options = conflicting(4, seed=7), AGGREGATORS[name][0]
    vectors[2] = 0
    others = torch.tensor([0, 1, 3])
    changes, without = {}, {}
    if METHODS[name.split()[0]].reads_preference:
        changes = {"preference": {"a": 0.1, "b": 0.2, "c": 0.5, "d": 0.2}}
        without = {"preference": {"a": 0.2, "b": 0.4, "c": 0.4}}
    coefficients = coefficients_of(name, gram_of(vectors), options, **changes)
    assert coefficients[2] == 0
    close(coefficients[others], coefficients_of(name, gram_of(vectors[others]), options, **without), 1e-9)
    assert coefficients_of(name, torch.zeros(3, 3), options).tolist() == [0, 0, 0]


@pytest.mark.parametrize("name", AGGREGATORS)
def test_dependent_gradients_have_finite_coefficients(name: str) -> None:
    vectors = conflicting(3, seed=8)
    for rows in (vectors[[0, 0]], vectors[[0, 1, 0]], torch.stack([vectors[0], -vectors[0]]),
                 torch.stack([vectors[0], -2 * vectors[0], vectors[1]]), vectors[[0]],
                 vectors[0] + 1e-9 * vectors):  # fmt: skip
        assert coefficients_of(name, gram_of(rows), AGGREGATORS[name][0]).isfinite().all()


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_coefficients_can_be_scaled_to_sum_one(name: str) -> None:
    gram = gram_of(conflicting(3, seed=9))
    plain, algorithm = coefficients_of(name, gram), build(name, 3, normalize=True)
    torch.manual_seed(0)
    coefficients = weigh(algorithm, gram)
    close(coefficients, plain / plain.sum())
    close(algorithm.alpha(gram, plain), coefficients)


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_non_finite_gradients_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="not finite"):
        coefficients_of(name, tensor([[1, 0], [0, math.nan]]))


def test_a_solver_that_fails_gives_nan_and_says_so_once(capsys: pytest.CaptureFixture) -> None:
    algorithm = build("dualproj", 3, normalize=True)
    impossible = tensor([[1, 5, 0], [5, 1, 0], [0, 0, 0]])  # of no gradients: ⟨g_1, g_2⟩ > ‖g_1‖‖g_2‖
    for _ in range(2):
        coefficients = weigh(algorithm, impossible)
        assert coefficients[:2].isnan().all() and coefficients[2] == 0
    said = capsys.readouterr().out
    assert said.startswith("warning: --algorithm dualproj: ") and "not positive definite" in said
    assert said.count("\n") == 1
    assert weigh(algorithm, torch.eye(3)).isfinite().all()


# --- flags

BAD_FLAGS = {
    "an unknown option": ({"algorithm": "cagrad", "weighting_options": "d=1"}, ["d", "cagrad", "c, norm_eps"]),
    "no options": ({"algorithm": "pcgrad", "weighting_options": "c=1"}, ["c", "pcgrad", "has none"]),
    "an algorithm without": ({"algorithm": "gapo", "weighting_options": "c=1"}, ["c", "gapo", "has none"]),
    "not a number": ({"algorithm": "cagrad", "weighting_options": "c=much"}, ["c=much"]),
    "a negative number": ({"algorithm": "fairgrad", "weighting_options": "alpha=-1"}, ["alpha=-1", "negative"]),
    "no such mode": ({"algorithm": "aligned_mtl", "weighting_options": "scale_mode=max"}, ["scale_mode=max", "rmse"]),
    "no value": ({"algorithm": "cagrad", "weighting_options": "c"}, ["c"]),
    "twice": ({"algorithm": "cagrad", "weighting_options": ("c=1", "c=2")}, ["twice"]),
    "preference": (
        {"algorithm": "cagrad", "preference": ("helpfulness=0.5", "harmlessness=0.5")}, ["p_gapo, raco, upgrad"]),
    "preference of 0": (
        {"algorithm": "upgrad", "preference": ("helpfulness=0", "harmlessness=1")}, ["helpfulness=0", "positive"]),
    "power": ({"algorithm": "upgrad", "rescale_power": 1}, ["--rescale_power", "upgrad"]),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD_FLAGS)
def test_flags_that_do_not_fit_end_in_one_line(workshop: Workshop, what: str) -> None:
    changes, names = BAD_FLAGS[what]
    result = run_script(STEP3, workshop.step3_flags("refused", **changes))
    assert result.code == 2
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    flag = next(flag for flag in ("weighting_options", "preference", "rescale_power") if flag in changes)
    assert all(name in result.stderr for name in [f"--{flag}", *names]), result.stderr


@pytest.mark.parametrize(("name", "library"), [("upgrad", "quadprog"), ("cagrad", "cvxpy"), ("fairgrad", "scipy")])
def test_a_missing_solver_is_named(name: str, library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchjd._mixins.find_spec", lambda wanted: None if wanted == library else wanted)
    with pytest.raises(UserError, match=rf"--algorithm {name}: .*\['{library}'\].*pip install"):
        build(name, 2)


def test_a_missing_torchjd_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchjd.aggregation", None)
    with pytest.raises(UserError, match="--algorithm imtl_g: .*torchjd.*pip install"):
        build("imtl_g", 2)
    assert weigh(build("gapo", 2, rescale_power=1.0), torch.eye(2)).tolist() == [0.5, 0.5]


def test_torchjd_is_imported_by_its_algorithms_only() -> None:
    code = "import sys, step3_gapo.arguments; sys.exit(3 if 'torchjd' in sys.modules else 0)"
    assert run_function(exec, code).code == 0


# --- a run


def test_upgrad_by_the_command_line_under_zero_2_on_2_ranks(workshop: Workshop) -> None:
    """One update: the coefficients in the metrics are torchjd's for the Gram matrix in the metrics."""
    output: Path = workshop.step3(
        "upgrad", ranks=2, zero_stage=2, algorithm="upgrad", preference=("harmlessness=0.3", "helpfulness=0.7"),
        weighting_options="reg_eps=0.01", per_device_prompt_batch_size=4, max_steps=1,
    )  # fmt: skip
    (step,) = read_metrics(output)
    norms = tensor([step["gradient/norm/helpfulness"], step["gradient/norm/harmlessness"]])
    cosine = step["gradient/cosine/helpfulness_harmlessness"]
    gram = tensor([[1, cosine], [cosine, 1]]) * norms.outer(norms)
    expected = UPGradWeighting(tensor([0.7, 0.3]), torchjd.linalg.QuadprogProjector(reg_eps=0.01))(gram / gram.trace())
    coefficients = tensor([step["coefficient/helpfulness"], step["coefficient/harmlessness"]])
    close(coefficients, expected, 1e-5)
    progress = [step["gradient/progress/helpfulness"], step["gradient/progress/harmlessness"]]
    close(tensor(progress), gram @ expected, 1e-5)
