"""What must hold for every method, those of examples/ and a user's own included.

A user's own: python -m pytest tests/test_every_method.py --algorithm my_method.py:Mine
"""

import json
from collections.abc import Sequence

import pytest
import torch

from step3_dpo.methods import METHODS as OF_DPO
from step3_gapo.needs import METHODS
from tests.test_multi_objective import gradients, gram_of
from utils.combining.algorithm import AdvantageLevel, Algorithm, GradientLevel, LossLevel, ScoreLevel, build
from utils.combining.registry import LEVELS, OF_PAIRS, own_method
from utils.process.errors import UserError

EXAMPLES = ("examples/softmin_score.py:SoftMin", "examples/agreeing_advantage.py:Agreeing",
            "examples/gradnorm.py:GradNorm", "examples/dynamic_weights.py:DynamicWeights")  # fmt: skip
ROWS, TIME = 4, 5


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    given = metafunc.config.getoption("--algorithm")
    every = tuple(dict.fromkeys((*LEVELS, *OF_PAIRS)))
    methods = {spec: own_method(spec, every) for spec in (given or EXAMPLES)} | ({} if given else METHODS | OF_DPO)
    levels = {"score_level": ScoreLevel, "advantage_level": AdvantageLevel, "gradient_level": GradientLevel,
              "loss_level": LossLevel}  # fmt: skip
    for argument, level in {"method": Algorithm, **levels}.items():
        if argument in metafunc.fixturenames:
            fitting = {name: method for name, method in methods.items() if issubclass(method, level)}
            metafunc.parametrize(argument, fitting.values(), ids=fitting.keys())


def make(method: type[Algorithm], m: int, order: Sequence[int] | None = None) -> Algorithm:
    """For m objectives, the last a cost, of unequal preference where there is one; in another order."""
    order = range(m) if order is None else order
    names, kinds = [f"o{i}" for i in range(m)], ["reward"] * (m - 1) + ["cost"]
    if issubclass(method, LossLevel):
        kinds = ["margin" if method.reads_margins and i else "pairs" for i in range(m)]
    weights = {name: (i + 1) / (m * (m + 1) / 2) for i, name in enumerate(names)} if method.reads_preference else {}
    options = {option.name: option.default for option in method.options}
    return build(method, [names[i] for i in order], [kinds[i] for i in order], weights, options)


def sizes(method: type[Algorithm]) -> list[int]:
    """Numbers of objectives that it takes."""
    found = []
    for m in (1, 2, 3, 5):
        try:
            make(method, m)
            found.append(m)
        except UserError:
            pass
    assert found
    return found


def close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance * expected.abs().max().item())


def coefficients(algorithm: Algorithm, gram: torch.Tensor, losses: torch.Tensor | None = None) -> torch.Tensor:
    torch.manual_seed(0)
    return algorithm.weigh(gram, torch.zeros(len(gram), dtype=torch.float64) if losses is None else losses)


# --- gradients


def test_coefficients_follow_their_objectives(gradient_level: type[GradientLevel]) -> None:
    for m in sizes(gradient_level):
        if m > 2 and gradient_level.draws:
            continue
        gram, order = gram_of(gradients(m, seed=m, spread=0.5)), torch.arange(m).flip(0)
        losses = torch.arange(1.0, m + 1, dtype=torch.float64)
        plain = coefficients(make(gradient_level, m), gram, losses)
        other = coefficients(make(gradient_level, m, order.tolist()), gram[order][:, order], losses[order])
        assert plain.dtype == torch.float64 and plain.shape == (m,)
        close(other, plain[order])


def test_coefficients_are_finite_and_those_of_zero_gradients_zero(gradient_level: type[GradientLevel]) -> None:
    for m in sizes(gradient_level):
        for vectors in (gradients(m, seed=1, spread=3.0), gradients(1, seed=2).expand(m, -1)):
            assert coefficients(make(gradient_level, m), gram_of(vectors)).isfinite().all()
        vectors = gradients(m, seed=3)
        vectors[-1] = 0
        assert coefficients(make(gradient_level, m), gram_of(vectors))[-1] == 0
        assert coefficients(make(gradient_level, m), torch.zeros(m, m, dtype=torch.float64)).eq(0).all()


@pytest.mark.parametrize("scale", [1e-12, 1e6])
def test_coefficients_scale_as_declared(gradient_level: type[GradientLevel], scale: float) -> None:
    for m in sizes(gradient_level):
        gram, algorithm = gram_of(gradients(m, seed=4, spread=0.5)), make(gradient_level, m)
        if (degree := algorithm.degree()) is None:
            continue
        scaled = coefficients(make(gradient_level, m), gram * scale)
        close(scaled, scale**degree * coefficients(algorithm, gram))


# --- losses


def test_weights_of_losses_follow_their_objectives(loss_level: type[LossLevel]) -> None:
    """Also after some steps, in some of which losses are missing."""
    for m in sizes(loss_level):
        order = torch.arange(m).flip(0)
        plain, other = make(loss_level, m), make(loss_level, m, order.tolist())
        for step in range(4):
            for algorithm, places in ((plain, torch.arange(m)), (other, order)):
                count = len(algorithm.losses)
                losses = (torch.arange(1.0, m + 1, dtype=torch.float64) / (step + 1))[places][:count]
                present = [not (step == 2 and losses[i] == losses.max() and count > 1) for i in range(count)]
                algorithm.observe_losses(losses * torch.tensor(present), present)
            weights = plain.weights
            assert weights.shape == (len(plain.losses),) and weights.isfinite().all() and (weights >= 0).all()
            if len(plain.losses) == m:
                close(other.weights, weights[order])


# --- advantages and scores


def mixed(algorithm: AdvantageLevel, *batch: torch.Tensor) -> torch.Tensor:
    """As in an update whose step is one micro-batch."""
    if algorithm.pools:
        algorithm.settle(algorithm.pool(*batch))
    return algorithm.mix(*batch)


def test_mixed_advantages_have_no_order(advantage_level: type[AdvantageLevel]) -> None:
    torch.manual_seed(5)
    for m in sizes(advantage_level):
        advantages, order = torch.randn(m, ROWS, TIME), torch.arange(m).flip(0)
        ratio, mask = torch.rand(ROWS, TIME) + 0.5, torch.ones(ROWS, TIME)
        judged = torch.ones(m, ROWS, dtype=torch.bool)
        plain = mixed(make(advantage_level, m), advantages, ratio, mask, judged)
        assert plain.shape == (ROWS, TIME) and plain.dtype == torch.float32 and plain.isfinite().all()
        close(mixed(make(advantage_level, m, order.tolist()), advantages[order], ratio, mask, judged), plain)


def test_mixed_scores_have_no_order(score_level: type[ScoreLevel]) -> None:
    torch.manual_seed(6)
    for m in sizes(score_level):
        scores, order, judged = torch.randn(ROWS, m), torch.arange(m).flip(0), torch.ones(ROWS, m, dtype=torch.bool)
        plain = make(score_level, m).mix_scores(scores, judged)
        assert plain.shape == (ROWS,) and plain.dtype == torch.float32 and plain.isfinite().all()
        close(make(score_level, m, order.tolist()).mix_scores(scores[:, order], judged), plain)
        assert len(make(score_level, m).losses) == 1


# --- all


def use(algorithm: Algorithm, step: int) -> torch.Tensor:
    """One rollout and one update; what came of it."""
    m = len(algorithm.setting.names)
    torch.manual_seed(step)
    if isinstance(algorithm, LossLevel):
        count = len(algorithm.losses)
        algorithm.observe_losses(torch.rand(count).double(), [True] * count)
        return algorithm.weights
    scores, judged = torch.randn(ROWS, m), torch.ones(ROWS, m, dtype=torch.bool)
    algorithm.observe(scores, judged)
    algorithm.observe_advantages(scores, judged, torch.randn(ROWS, len(algorithm.losses)))
    if isinstance(algorithm, GradientLevel):
        return coefficients(algorithm, gram_of(gradients(m, seed=step, spread=0.5)), torch.rand(m).double())
    if isinstance(algorithm, AdvantageLevel):
        ones = torch.ones(ROWS, TIME)
        return mixed(algorithm, torch.randn(m, ROWS, TIME), ones, ones, judged.T)
    return algorithm.mix_scores(scores, judged)


def test_a_restored_state_goes_on_exactly(method: type[Algorithm]) -> None:
    m = sizes(method)[-1]
    first, second = make(method, m), make(method, m)
    for step in (1, 2, 3):
        use(first, step)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for step in (4, 5):
        assert torch.equal(use(first, step), use(second, step))
    assert first.state_dict() == second.state_dict() and first.scalars() == second.scalars()


def test_it_says_what_it_is(method: type[Algorithm]) -> None:
    assert method.__doc__ and method.summary and "\n" not in method.summary
    assert all(option.help for option in method.options)
    assert set(make(method, sizes(method)[0]).losses) and method.least_objectives <= sizes(method)[0]
