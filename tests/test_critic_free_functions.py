"""Advantages without critics and the methods that are made of them, against numbers worked out by hand."""

import itertools
import math
from argparse import Namespace
from dataclasses import replace

import pytest
import torch

from step3_gapo import ppo
from step3_gapo.advantages import ESTIMATORS
from step3_gapo.algorithms.pama import nearest_to_zero
from step3_gapo.arguments import parse_args
from step3_gapo.critic_free import group_relative, leave_one_out
from step3_gapo.experience import Experience
from step3_gapo.needs import METHODS, needs_of
from step3_gapo.policy_losses import ClippedSurrogate
from step3_gapo.rollout import add_advantages, training_scores
from step3_gapo.update import ActorUpdate
from tests.helpers import flags
from utils.combining.algorithm import AdvantageLevel, Algorithm, build
from utils.gradients.multi_objective import min_norm_weights
from utils.scoring.objectives import Condition, Objective

ROOT2 = math.sqrt(2)
TIME = 3
Column = list[float | None]  # scores of responses; None where there is none


def close(actual: torch.Tensor, expected: object, tolerance: float = 1e-6) -> None:
    expected = torch.as_tensor(expected, dtype=actual.dtype)
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def scored(column: Column, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores, 0 where there is none, and where there is one."""
    values = torch.tensor([value or 0.0 for value in column], dtype=dtype)
    return values, torch.tensor([value is not None for value in column])


# --- one objective: the responses to a prompt


def both(column: Column, size: int, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """By the deviation of a group, without it, and against the others."""
    there = scored(column, dtype)
    return [group_relative(*there, size, True), group_relative(*there, size, False), leave_one_out(*there, size)]


def test_group_relative_and_leave_one_out_by_hand() -> None:
    scaled, centered, against_others = both([1.0, 2.0, 3.0, 6.0, 0.0, 0.0, 0.0, 4.0], 4)
    first, second = math.sqrt(14 / 3) + 1e-4, 2 + 1e-4
    close(scaled, [-2 / first, -1 / first, 0, 3 / first, -1 / second, -1 / second, -1 / second, 3 / second])
    close(centered, [-2, -1, 0, 3, -1, -1, -1, 3])
    close(against_others, [1 - 11 / 3, 2 - 10 / 3, 0, 6 - 2, -4 / 3, -4 / 3, -4 / 3, 4])
    assert scaled.dtype == torch.float32


def test_leave_one_out_is_the_score_less_the_mean_of_the_others() -> None:
    scores = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    others = torch.stack([scores[:, [j for j in range(5) if j != i]].mean(dim=1) for i in range(5)], dim=1)
    close(leave_one_out(scores.flatten(), torch.ones(15), 5), (scores - others).flatten())


def test_of_two_responses_one_is_better_by_the_same_whatever_their_distance() -> None:
    for low, high in ((0.0, 1.0), (-3.0, 40.0)):
        assert both([low, high], 2)[0].tolist() == pytest.approx([-1 / ROOT2, 1 / ROOT2], rel=2e-4)


@pytest.mark.parametrize(("value", "size"), [(0.7, 7), (0.1, 10), (-1e6 / 3, 3), (0.0, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_scores_have_advantages_of_exactly_zero(value: float, size: int, dtype: torch.dtype) -> None:
    for advantages in both([value] * size + [float(i) for i in range(size)], size, dtype):
        assert advantages[:size].eq(0).all() and advantages[size:].abs().max() > 0.1


def test_what_is_not_judged_is_in_no_statistic() -> None:
    one_missing = both([1.0, 3.0, None, 5.0], 4)
    for advantages, expected in zip(
        one_missing, ([-2 / 2.0001, 0, 0, 2 / 2.0001], [-2, 0, 0, 2], [-3, 0, 0, 3]), strict=True
    ):
        close(advantages, expected)
    present = torch.tensor([True, True, False, True])
    whatever = torch.where(present, torch.tensor([1.0, 3.0, 0.0, 5.0]), 1e30)
    assert torch.equal(group_relative(whatever, present, 4, True), one_missing[0])
    for alone in ([None, None, 7.0], [None, None, None]):
        assert all(advantages.eq(0).all() for advantages in both(alone, 3))


def test_groups_of_one_and_parts_of_groups_are_refused() -> None:
    for scores, size in ((torch.ones(4), 1), (torch.ones(5), 2)):
        for estimate in (lambda *a: group_relative(*a, True), leave_one_out):
            with pytest.raises(ValueError, match="group"):
                estimate(scores, torch.ones(len(scores)), size)


def test_estimators_read_their_flags() -> None:
    """Advantages on every action and no returns; the whole KL of a response comes off its score."""
    log_probs = torch.tensor([[0.5, 0.5, 9.0], [0.0, 0.0, 0.0]])
    mask = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]])
    experience = replace(
        experience_of({"a": [3.0, 1.0]}), mask=mask, log_probs=log_probs, ref_log_probs=torch.zeros(2, TIME)
    )
    experience.counted["a"] = torch.ones(2)
    for name, without_std, kl_coeff, expected in (
        ("group", True, 0.0, 1.0),
        ("group", True, 0.5, 0.75),
        ("group", False, 0.0, 1 / ROOT2),
        ("rloo", False, 0.0, 2.0),
    ):
        settings = Namespace(responses_per_prompt=2, group_without_std=without_std)
        scores = experience.scores["a"]
        advantages, returns = ESTIMATORS[name].estimate("a", scores, experience, kl_coeff, settings)
        close(advantages, torch.tensor([[expected] * 2 + [0], [-expected] * 3]), 1e-4)
        assert returns is None


# --- the KL in the loss


def test_k3_is_never_negative_and_its_mean_is_the_kl() -> None:
    torch.manual_seed(0)
    policy, reference = torch.randn(2, 4, 50).log_softmax(dim=-1)
    estimates = ppo.kl_estimate(policy, reference)
    close(estimates, (reference - policy).exp() - 1 + policy - reference)
    assert estimates.min() >= 0 and ppo.kl_estimate(policy, policy).eq(0).all()
    close((policy.exp() * estimates).sum(-1), (policy.exp() * (policy - reference)).sum(-1), 1e-5)


def test_the_slope_of_k3_is_one_less_the_ratio() -> None:
    torch.manual_seed(1)
    policy, reference = torch.randn(4, 5, dtype=torch.float64, requires_grad=True), torch.randn(4, 5).double()
    (slope,) = torch.autograd.grad(ppo.kl_estimate(policy, reference).sum(), policy)
    close(slope, 1 - (reference - policy.detach()).exp(), 1e-12)


# --- several objectives


def experience_of(columns: dict[str, Column], log_probs: torch.Tensor | None = None) -> Experience:
    """Responses of TIME actions with these scores."""
    there = {name: scored(column) for name, column in columns.items()}
    n = len(next(iter(columns.values())))
    ids, ones = torch.ones(n, 2 + TIME, dtype=torch.int64), torch.ones(n, TIME)
    log_probs = torch.zeros(n, TIME) if log_probs is None else log_probs
    return Experience(
        ids, ids, ones, torch.ones(n), log_probs=log_probs, ref_log_probs=torch.zeros(n, TIME),
        scores={name: values for name, (values, _) in there.items()},
        judged={name: judged.float() for name, (_, judged) in there.items()},
    )  # fmt: skip


def make(name: str, objectives: list[str], responses: int = 2, preference: dict | None = None, **options) -> Algorithm:
    method = METHODS[name]
    options = {option.name: option.default for option in method.options} | options
    kinds = ["reward"] * len(objectives)
    return build(method, objectives, kinds, preference or {}, options, responses=responses)


def advantages_of(algorithm: Algorithm, columns: dict[str, Column], **changes) -> torch.Tensor:
    """One advantage a response, as an update sees it before the policy has moved."""
    args = parse_args(flags(
        actor_model="unused", algorithm=algorithm.name, data="unused", output_dir="unused",
        responses_per_prompt=algorithm.setting.responses, **{"advantage": "group"} | changes,
    ))  # fmt: skip
    experience = experience_of(columns)
    objectives = [Objective(name, "reward", "unused") for name in columns]
    add_advantages(experience, objectives, algorithm, needs_of(args, algorithm), args)
    if not isinstance(algorithm, AdvantageLevel):
        (mixed,) = experience.advantages.values()
    else:
        batch = (
            torch.stack(list(experience.advantages.values())), torch.ones(len(experience.mask), TIME), experience.mask,
            torch.stack(list(experience.counted.values())) > 0,
        )  # fmt: skip
        if algorithm.pools:
            algorithm.settle(algorithm.pool(*batch))
        mixed = algorithm.mix(*batch)
    assert torch.equal(mixed, mixed[:, :1].expand_as(mixed))
    return mixed[:, 0]


# Two prompts of two responses each, graded 0 or 1: the second is better by one objective, or by both.
BINARY = {"a": [0.0, 0.0, 0.0, 1.0], "b": [0.0, 1.0, 0.0, 1.0]}


def test_gdpo_tells_totals_apart_that_are_one_to_grpo() -> None:
    """The worked example of its paper, whose weights are 1; ours sum to 1."""
    close(advantages_of(make("grpo", ["a", "b"]), BINARY), [-1 / ROOT2, 1 / ROOT2] * 2, 5e-4)
    gdpo = make("gdpo", ["a", "b"])
    whitened = advantages_of(gdpo, BINARY)
    before = (whitened * (gdpo.deviation + 1e-4) + gdpo.mean) * 2
    close(before, [-1 / ROOT2, 1 / ROOT2, -ROOT2, ROOT2], 5e-4)
    close(whitened, torch.tensor([-1, 1, -2, 2]) / math.sqrt(10 / 3), 5e-4)
    close(advantages_of(make("mo_grpo", ["a", "b"]), BINARY), [-1 / ROOT2, 1 / ROOT2, -ROOT2, ROOT2], 5e-4)


def test_gdpo_weighs_by_the_preference_and_whitens_what_is_judged() -> None:
    columns = {"a": [0.0, 1.0, 0.0, 1.0, None, None], "b": [1.0, 0.0, 0.0, 1.0, None, None]}
    found = advantages_of(make("gdpo", ["a", "b"], preference={"a": 0.75, "b": 0.25}), columns)
    # Before whitening (-1/2, 1/2, -1, 1) / √2, of four responses: their deviation is √(5/12).
    close(found[:4], torch.tensor([-0.5, 0.5, -1, 1]) / ROOT2 / math.sqrt(5 / 12), 5e-4)


def test_one_objective_is_that_objective() -> None:
    column = [1.0, 2.0, 4.0, 0.5, 3.0, -1.0, 2.0, 2.5]
    alone = group_relative(*scored(column), 4, True)
    for name in ("grpo", "mo_grpo", "saw", "ctwa", "pama", "morlhf"):
        options = {"pama_noon": "off"} if name == "pama" else {}
        assert torch.equal(advantages_of(make(name, ["a"], 4, **options), {"a": column}), alone), name
    by_batch = advantages_of(make("pama", ["a"], 4, pama_level="batch"), {"a": column})
    close(by_batch, alone.clamp(min=0).mean().expand(8))
    whitened = advantages_of(make("gdpo", ["a"], 4), {"a": column})
    factor = (whitened / alone).mean()
    close(whitened, factor * alone, 1e-6)  # their mean is 0
    assert factor > 0


# --- PAMA


@pytest.mark.parametrize("signs", ["straddling", "positive", "negative"])
def test_pama_is_nearest_to_zero_of_all_combinations(signs: str) -> None:
    """Its theorem 1, against a fine grid over the simplex."""
    torch.manual_seed(2)
    for m, steps in itertools.product((2, 3), (200,)):
        values = torch.randn(m, 40, dtype=torch.float64)
        if signs != "straddling":
            values = values.abs() * (1 if signs == "positive" else -1)
        else:
            values[0], values[-1] = values[0].abs(), -values[-1].abs()
        grid = [(i, j) for i in range(steps + 1) for j in range(steps + 1 - i)] if m == 3 else range(steps + 1)
        weights = torch.tensor([(i, steps - i) if m == 2 else (*i, steps - sum(i)) for i in grid]).double() / steps
        combinations = weights @ values
        best = combinations.gather(0, combinations.abs().argmin(dim=0, keepdim=True))[0]
        found = nearest_to_zero(values)
        assert (found - best).abs().max() <= (0.5 / steps) * (values.amax(0) - values.amin(0)).max() + 1e-12
        assert found.eq(0).all() == (signs == "straddling") and (signs != "positive" or found.min() > 0)
        # The min-norm point of gradients in one dimension is the same.
        column = values[:, 0]
        assert (min_norm_weights(column.outer(column)) @ column - found[0]).abs() < 1e-9


ADVANTAGES = torch.tensor([
    [[2.0, -1.0, 3.0, -2.0, 5.0], [1.0, 1.0, 1.0, 4.0, 7.0]],
    [[1.0, 2.0, 2.0, -3.0, 4.0], [0.0, 0.0, 0.0, 0.0, 0.0]],
])  # fmt: skip
RATIO = torch.tensor([[1.0, 1.0, 1.3, 1.0, 1.1], [1.0, 1.21, 0.1, 1.0, 1.0]])
MASK = torch.tensor([[1.0] * 5, [1.0] * 4 + [0.0]])
JUDGED = torch.tensor([[True, True], [True, False]])  # the second objective has not judged the second response
TOKENS = {  # by no-negative advantages, and by all; ratios of 1.3 and 1.21 are above 1 + ε
    True: [[1.0, 0.0, 0.0, 0.0, 4.0], [1.0, 0.0, 1.0, 4.0, 0.0]],
    False: [[1.0, 0.0, 0.0, -2.0, 4.0], [1.0, 0.0, 1.0, 4.0, 0.0]],
}


@pytest.mark.parametrize("noon", [True, False])
def test_pama_by_token(noon: bool) -> None:
    pama = make("pama", ["a", "b"], pama_noon="on" if noon else "off")
    assert pama.mix(ADVANTAGES, RATIO, MASK, JUDGED).tolist() == TOKENS[noon] and not pama.pools
    negative = -ADVANTAGES.abs()
    found = pama.mix(negative, torch.ones_like(RATIO), MASK, JUDGED)
    assert found[0].tolist() == ([0.0] * 5 if noon else [-1.0, -1.0, -2.0, -2.0, -4.0])
    nobody = torch.zeros_like(JUDGED)
    assert pama.mix(ADVANTAGES, RATIO, MASK, nobody).eq(0).all()


@pytest.mark.parametrize("noon", [True, False])
def test_pama_by_batch_is_one_number_of_the_whole_step(noon: bool) -> None:
    """Means over what each objective has judged, however the rows are dealt to micro-batches."""
    pama = make("pama", ["a", "b"], pama_level="batch", pama_noon="on" if noon else "off")
    # Clipped sums: a 2 + 5 (and -1 - 2) in the first row, 1 + 1 + 4 in the second; b 1 + 2 + 4 (and -3).
    means = (13 / 9, 7 / 5) if noon else (10 / 9, 4 / 5)
    parts = [
        pama.pool(ADVANTAGES[:, i : i + 1], RATIO[i : i + 1], MASK[i : i + 1], JUDGED[:, i : i + 1]) for i in (0, 1)
    ]
    for sums in (sum(parts), pama.pool(ADVANTAGES, RATIO, MASK, JUDGED)):
        pama.settle(sums)
        close(pama.mix(ADVANTAGES, RATIO, MASK, JUDGED), min(means) * MASK)
    first_alone = JUDGED & torch.tensor([[True], [False]])
    pama.settle(pama.pool(ADVANTAGES, RATIO, MASK, first_alone))
    close(pama.mix(ADVANTAGES, RATIO, MASK, first_alone), means[0] * MASK)
    pama.settle(pama.pool(ADVANTAGES, RATIO, MASK, torch.zeros_like(JUDGED)))
    assert pama.mix(ADVANTAGES, RATIO, MASK, JUDGED).eq(0).all()


# --- weights that follow the rollouts


def rows(*columns: Column) -> tuple[torch.Tensor, torch.Tensor]:
    """What `observe` takes."""
    scores, judged = zip(*map(scored, columns), strict=True)
    return torch.stack(scores, dim=-1), torch.stack(judged, dim=-1)


def test_saw_weighs_by_the_relative_spread_above_the_lowest_score_so_far() -> None:
    saw = make("saw", ["a", "b"])
    saw.observe(*rows([0.0, 1.0, 2.0, 1.0], [10.0, 12.0, None, 12.0]))
    first, second = math.sqrt(2 / 3) / 1, math.sqrt(4 / 3) / (4 / 3)  # b less 10: 0, 2, 2
    expected = torch.tensor([2 * first, 2 * second], dtype=torch.float64) / (first + second)
    close(saw.current, expected)
    scores = torch.tensor([[1.0, 3.0], [2.0, 0.0]])
    both_there = torch.ones(2, 2, dtype=torch.bool)
    close(saw.mix_scores(scores, both_there), scores.double() @ expected)
    only_a = torch.tensor([[True, True], [True, False]])  # a response takes the weight that is missing from the rest
    close(saw.mix_scores(scores, only_a)[1], 2.0 * 2)
    saw.observe(*rows([3.0, 5.0, 3.0, 5.0], [9.0, 9.0, 13.0, 13.0]))
    first, second = math.sqrt(4 / 3) / 4, math.sqrt(16 / 3) / 2  # a less 0, b less 9
    close(saw.current, [2 * first / (first + second), 2 * second / (first + second)])
    saw.observe(*rows([1.0, 2.0, 3.0, 4.0], [4.0] * 4))
    close(saw.current, [2.0, 0.0])
    saw.observe(*rows([2.0] * 4, [None] * 4))
    close(saw.current, [2.0, 0.0])  # nothing to tell them apart: as they were


def test_ctwa_raises_weights_of_what_falls_behind_its_target() -> None:
    options = {"ctwa_step_size": 0.1, "ctwa_target": 2.0, "ctwa_average": 0.25}
    ctwa = make("ctwa", ["a", "b"], **options)
    signal = torch.tensor([[-1.0], [1.0], [-2.0], [2.0], [3.0], [-3.0]])
    # Within prompts a covaries by 1, 0 and 3: not by its differences between prompts. b has one pair that is judged.
    scores = rows([0.0, 2.0, 50.0, 50.0, 4.0, 2.0], [None, 1.0, 0.0, 3.0, 8.0, None])
    ctwa.observe_advantages(*scores, signal)
    close(ctwa.covariances, [4 / 3, 3.0])
    close(ctwa.log_weights, [math.log(0.5) + 0.1 * (2 - 4 / 3), math.log(0.5)])
    ctwa.observe_advantages(*rows([0.0, 0.0] * 3, [0.0, -4.0] * 3), signal.abs() * torch.tensor([[-1.0], [1.0]] * 3))
    # a: 3/4 · 4/3 + 0; b: 3/4 · 3 + 1/4 · mean(-2, -4, -6), both below the target now.
    close(ctwa.covariances, [1.0, 1.25])
    close(ctwa.log_weights, [math.log(0.5) + 0.1 * (2 / 3 + 1), math.log(0.5) + 0.1 * 0.75])
    mixed = ctwa.mix_scores(torch.tensor([[1.0, 0.0]]), torch.tensor([[True, True]]))
    close(mixed, [0.5 * math.exp(0.1 * 5 / 3)])


def test_a_cap_keeps_a_weight_where_it_is() -> None:
    """Of the mean of the judged training scores, once it is reached."""
    signal = torch.tensor([[-1.0], [1.0]])
    for score, rises in ((2.9, True), (3.0, False)):
        ctwa = make("ctwa", ["a", "b"], ctwa_cap=[("b", 3.0)], ctwa_target=1.0)
        ctwa.observe_advantages(*rows([9.0, 9.0], [score, score]), signal)
        assert ctwa.log_weights[0] > math.log(0.5) and (ctwa.log_weights[1] > math.log(0.5)) == rises


def test_fast_rl_on_raw_rewards_is_mirror_descent_as_published() -> None:
    fast = make("fast_rl", ["a", "b"], mirror_step_size=0.5, mirror_rewards="raw")
    fast.observe(*rows([0.0, 2.0, None, None], [3.0, 3.0, 1.0, 5.0]))
    expected = torch.tensor([-0.5 * 1, -0.5 * 3], dtype=torch.float64).exp()
    close(fast.weights, expected / expected.sum())
    fast.observe(*rows([-1.0, -1.0], [2.0, 2.0]))
    expected *= torch.tensor([0.5 * 1, -0.5 * 2], dtype=torch.float64).exp()
    close(fast.weights, expected / expected.sum())


def test_an_objective_without_judgements_is_neither_better_nor_worse_off() -> None:
    """By raw rewards: it has the reward of its history, or that of the others as long as there is none."""
    fast = make("fast_rl", ["a", "b"], mirror_step_size=0.5, mirror_rewards="raw")
    fast.observe(*rows([10.0, 10.0], [None, None]))
    close(fast.weights, [0.5, 0.5])
    fast.observe(*rows([10.0, 10.0], [12.0, 12.0]))
    weights = torch.tensor([-5.0, -6.0], dtype=torch.float64).softmax(0)
    close(fast.weights, weights)
    fast.observe(*rows([11.0, 11.0], [None, None]))
    close(fast.weights, (weights.log() - torch.tensor([5.5, 6.0], dtype=torch.float64)).softmax(0))


def test_ctwa_learns_nothing_of_what_is_not_judged() -> None:
    ctwa, signal = make("ctwa", ["a", "b"], ctwa_target=2.0), torch.tensor([[1.0], [-1.0]] * 2)
    ctwa.observe_advantages(*rows([1.0, -1.0] * 2, [None] * 4), signal)
    first = ctwa.log_weights.clone()
    assert first[0] > math.log(0.5) and first[1] == pytest.approx(math.log(0.5))
    assert "ctwa/covariance/b" not in ctwa.scalars() and ctwa.state_dict()["covariances"] == [1.0, None]
    ctwa.observe_advantages(*rows([None] * 4, [0.5, -0.5] * 2), signal)
    assert ctwa.log_weights[0] == first[0] and ctwa.log_weights[1] > first[1]
    close(ctwa.covariances, [1.0, 0.5])


def test_what_only_objectives_without_weight_have_judged_is_in_no_group() -> None:
    judged = torch.tensor([[True, True], [False, True], [True, False], [False, False]])
    grpo = build(METHODS["grpo"], ["a", "b"], ["reward"] * 2, {"a": 1.0, "b": 0.0}, {}, responses=4)
    assert grpo.counts(judged).tolist() == [True, False, True, False]
    saw = make("saw", ["a", "b"], 4)
    saw.observe(*rows([1.0, 2.0, 3.0, 4.0], [5.0, 5.0, 5.0, 5.0]))  # of which b teaches nothing
    assert saw.counts(judged).tolist() == [True, False, True, False]


def test_the_penalty_of_padding_is_nothing() -> None:
    """Whatever a policy thinks of padding: e to that would be infinite."""
    log_probs = torch.tensor([[-1.0, -200.0]], requires_grad=True)
    mask = torch.tensor([[1.0, 0.0]])
    batch = Namespace(mask=mask, log_probs=log_probs.detach() * mask, ref_log_probs=torch.tensor([[-1.5, 0.0]]))
    update = Namespace(policy_loss=ClippedSurrogate(), kl_coeff=0.5, args=Namespace(clip_range_ratio=0.2))
    loss = ActorUpdate.loss(update, log_probs, batch, torch.zeros(1, 2), mask, torch.tensor(1.0))
    (slope,) = torch.autograd.grad(loss, log_probs)
    close(loss.detach().double(), 0.5 * (math.exp(-0.5) + 0.5 - 1))
    assert slope.isfinite().all() and slope[0, 1] == 0 and slope[0, 0] != 0


# --- conditions


def test_a_conditioned_score_counts_where_the_other_one_is_high_enough() -> None:
    """In the units of the other one, before it is clipped or scaled; what is not judged is not high enough."""
    words = flags(actor_model="x", algorithm="gdpo", data="x", output_dir="x", clip_range_score=3, conditioned="a=b:4")
    args = parse_args(words)
    assert args.conditioned == [("a", "b:4")]
    columns = {"a": [1.0, 2.0, 5.0, 2.0, None, -1.0], "b": [3.9, 4.0, 9.0, None, 5.0, -8.0]}
    conditioned = Objective("a", "reward", "x", scale=2.0, condition=Condition("b", 4.0))
    objectives = [conditioned, Objective("b", "reward", "x")]
    scores, judged = training_scores(experience_of(columns), objectives, args)
    assert scores.T.tolist() == [[0, 4, 6, 0, 0, 0], [3, 3, 3, 0, 3, -3]]
    assert judged.T.tolist() == [[value is not None for value in column] for column in columns.values()]
    plain, _ = training_scores(experience_of(columns), [replace(conditioned, condition=None)], args)
    assert plain[:, 0].tolist() == [2, 4, 6, 4, 0, -2]
    monitored, _ = training_scores(experience_of(columns), [conditioned], args)  # the other one is not optimized
    assert torch.equal(monitored, scores[:, :1])
