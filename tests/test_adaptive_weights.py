"""Safe RLHF's multipliers and Fast RL's mirror descent: the formulas, their states, and whole runs of step 3."""

import json
import math

import pytest
import torch

from step3_gapo.algorithms.fast_rl import FastRL, descend_mirror
from step3_gapo.algorithms.ppo_lagrangian import PPOLagrangian, ascend_multipliers, lagrangian_weights
from tests.helpers import STEP3, Workshop, read_metrics, run_script
from tests.test_multi_objective import close, tensor
from tests.test_step3_cli import same_weights
from utils.combining.algorithm import Algorithm, build

SAFE = {"algorithm": "ppo_lagrangian", "lambda_learning_rate": 0.5}


def lagrangian(**changes: object) -> PPOLagrangian:
    options = {"cost_threshold": [], "lambda_init": 1.0, "lambda_learning_rate": 0.1, "lambda_max": 10.0,
               "episode_cost_window": 4} | changes  # fmt: skip
    return build(PPOLagrangian, ["helpfulness", "harmlessness"], ["reward", "cost"], {}, options)


def mirror_descent(step_size: float, rewards: str = "normalized") -> FastRL:
    return build(
        FastRL, ["a", "b"], ["reward", "reward"], {}, {"mirror_step_size": step_size, "mirror_rewards": rewards}
    )


def scores(*costs: float) -> torch.Tensor:
    """[n, 2] training scores with these costs; the reward does not matter."""
    return torch.stack([torch.randn(len(costs)), -torch.tensor(costs)], dim=-1)


def observe(method: Algorithm, seen: torch.Tensor) -> None:
    """Scores [n, m], all of them judged."""
    method.observe(seen, torch.ones_like(seen, dtype=torch.bool))


# --- Safe RLHF


def test_the_advantage_is_that_of_safe_rlhf() -> None:
    reward, cost, multiplier = 1.7, 0.4, 2.5
    weights = lagrangian_weights(tensor([multiplier]), torch.tensor([False, True]))
    close(weights @ tensor([reward, -cost]), (reward - multiplier * cost) / (1 + multiplier))
    close(weights.sum(), 1)  # so does the coefficient of the KL penalty, which is in every reward
    several = lagrangian_weights(tensor([1.0, 3.0]), torch.tensor([False, True, False, True]))
    close(several, [0.1, 0.2, 0.1, 0.6])
    close(lagrangian_weights(tensor([0.0]), torch.tensor([True, False])), [0, 1])


def test_the_multiplier_moves_as_in_safe_rlhf() -> None:
    multipliers, violations = tensor([0.5, 1.0, 2.0, 0.0]), tensor([0.3, -0.7, 40.0, 5.0])
    expected = [math.exp(math.log(m) + 0.1 * m * v) if m else 0.0 for m, v in zip(multipliers, violations, strict=True)]
    close(ascend_multipliers(multipliers, violations, 0.1, 10.0), [*expected[:2], 10.0, 0.0])


@pytest.mark.parametrize(("threshold", "costs", "rises"), [
    (0.0, (0.3, -0.1), True), (0.0, (-0.3, 0.1), False), (-1.0, (-0.9, -0.9), True), (0.5, (0.4, 0.4), False),
])  # fmt: skip
def test_the_multiplier_rises_iff_the_mean_cost_exceeds_the_threshold(
    threshold: float, costs: tuple[float, ...], rises: bool
) -> None:
    method = lagrangian(cost_threshold=[("harmlessness", threshold)])
    observe(method, scores(*costs))
    assert (method.multipliers.item() > 1) == rises != (method.multipliers.item() < 1)


def test_the_mean_is_over_the_latest_episodes() -> None:
    method = lagrangian(episode_cost_window=3)
    observe(method, scores(9.0, 1.0, 2.0, 3.0))
    observe(method, scores(4.0))
    assert method.scalars()["lagrangian/episode_cost/harmlessness"] == pytest.approx((2 + 3 + 4) / 3)


# --- Fast RL


def test_mirror_descent_shifts_weight_to_the_worse_off() -> None:
    weights, rewards = tensor([0.2, 0.5, 0.3]), tensor([1.0, -2.0, 0.0])
    expected = weights * (-0.7 * rewards).exp()
    close(descend_mirror(weights, rewards, 0.7), expected / expected.sum())
    close(descend_mirror(weights, rewards, 0.0), weights)


def test_rewards_are_compared_with_their_own_history_whatever_their_scale() -> None:
    torch.manual_seed(1)
    batches = [torch.randn(6, 2) + torch.tensor([0.4 * t, -0.1 * t]) for t in range(5)]
    plain, scaled = (mirror_descent(0.5) for _ in range(2))
    for batch in batches:
        observe(plain, batch)
        observe(scaled, batch * torch.tensor([1.0, 100.0]) + torch.tensor([0.0, 7.0]))
    rows = torch.cat(batches).double()
    close(plain.mean, rows.mean(dim=0), 1e-6)
    close((plain.squares / plain.count).sqrt(), rows.std(dim=0, correction=0), 1e-6)
    close(plain.weights, scaled.weights, 1e-5)
    assert plain.weights[1] > 0.55  # b falls behind
    close(plain.weights.sum(), 1)


def test_a_constant_reward_leaves_the_weights_alone() -> None:
    method = mirror_descent(0.5)
    for _ in range(2):
        observe(method, torch.ones(3, 2))
    close(method.weights, [0.5, 0.5])


# --- the state


@pytest.mark.parametrize("make", [lagrangian, lambda: mirror_descent(0.3)])
def test_a_restored_state_goes_on_exactly(make) -> None:
    torch.manual_seed(2)
    first, second, batches = make(), make(), torch.randn(4, 3, 2)
    for batch in batches[:2]:
        observe(first, batch)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for batch in batches[2:]:
        observe(first, batch)
        observe(second, batch)
    assert torch.equal(first.weights, second.weights) and first.scalars() == second.scalars()
    assert first.state_dict() == second.state_dict()


# --- whole runs


@pytest.mark.slow
def test_without_multiplier_it_is_ppo_on_the_reward(workshop: Workshop) -> None:
    """The multiplier starts at 0 and stays there, whatever the costs."""
    unconstrained = workshop.step3("unconstrained", **SAFE, lambda_init=0)
    assert same_weights(unconstrained, workshop.step3("reward_only", algorithm="ppo", monitor="harmlessness"))
    assert not same_weights(unconstrained, workshop.step3("constrained", **SAFE))


def test_a_run_logs_and_keeps_its_multiplier(workshop: Workshop) -> None:
    changes = {"max_steps": 3, "cost_threshold": "harmlessness=-100", "episode_cost_window": 12}
    output = workshop.step3("safe_rlhf", **SAFE, **changes)
    metrics, multiplier = read_metrics(output), 1.0
    costs: list[float] = []
    for step in metrics:
        cost = step["lagrangian/episode_cost/harmlessness"]
        multiplier = min(10.0, multiplier * math.exp(0.5 * multiplier * (cost + 100)))
        assert step["lagrangian/multiplier/harmlessness"] == pytest.approx(multiplier)
        assert step["coefficient/harmlessness"] == pytest.approx(multiplier / (1 + multiplier))
        costs.append(-step["reward/harmlessness"])
    assert metrics[0]["lagrangian/episode_cost/harmlessness"] == pytest.approx(costs[0], rel=1e-5)
    assert metrics[1]["lagrangian/episode_cost/harmlessness"] != pytest.approx(costs[1], rel=1e-5)  # 4 of step 1, too
    state = json.loads((output / "algorithm_state.json").read_text())
    assert (state["step"], len(state["episode_costs"])) == (3, 12)
    assert state["multipliers"] == [metrics[-1]["lagrangian/multiplier/harmlessness"]]


def test_every_rank_has_the_scores_of_all(workshop: Workshop) -> None:
    """Two ranks with half the prompts each are one rank with all: same scores in the window, same multiplier."""
    runs = {
        ranks: workshop.step3(f"safe_{ranks}", ranks, **SAFE, max_steps=1, per_device_prompt_batch_size=8 // ranks,
                              per_device_train_batch_size=8 // ranks, zero_stage=2, log_gradients=True)
        for ranks in (1, 2)
    }  # fmt: skip
    state = json.loads((runs[2] / "algorithm_state.json").read_text())
    assert len(state["episode_costs"]) == 8
    (metrics,) = read_metrics(runs[2])
    assert metrics["lagrangian/episode_cost/harmlessness"] == pytest.approx(-metrics["reward/harmlessness"], rel=1e-5)
    assert all(
        "gradient/cosine/helpfulness_harmlessness" in step for run in runs.values() for step in read_metrics(run)
    )


@pytest.mark.slow
def test_fast_rl_without_steps_is_morlhf(workshop: Workshop) -> None:
    still = workshop.step3("still", algorithm="fast_rl", mirror_step_size=0)
    assert same_weights(still, workshop.step3("equal_weights", algorithm="morlhf"))
    moving = workshop.step3("moving", algorithm="fast_rl", mirror_step_size=2, max_steps=3)
    weights = [
        [step[f"coefficient/{name}"] for name in ("helpfulness", "harmlessness")] for step in read_metrics(moving)
    ]
    assert weights[0] == [0.5, 0.5] and weights[1] != weights[0] and weights[2] != weights[1]
    assert all(sum(pair) == pytest.approx(1) for pair in weights)
    assert json.loads((moving / "algorithm_state.json").read_text())["weights"] == pytest.approx(weights[-1])


def test_before_the_first_finite_rollout_there_is_just_the_multiplier_to_log() -> None:
    assert lagrangian().scalars() == {"lagrangian/multiplier/harmlessness": 1.0}


# What is wrong -> (changed flags, what the one line must name).
BAD_FLAGS = {
    "no cost": ({"algorithm": "ppo_lagrangian", "monitor": "harmlessness"}, ["ppo_lagrangian", "--cost_model"]),
    "no reward": ({"algorithm": "ppo_lagrangian", "monitor": "helpfulness"}, ["ppo_lagrangian", "--reward_model"]),
    "threshold of a reward": (SAFE | {"cost_threshold": "helpfulness=0"}, ["--cost_threshold helpfulness"]),
    "multiplier above its bound": (SAFE | {"lambda_init": 11}, ["--lambda_init 11", "--lambda_max 10"]),
    "multiplier elsewhere": ({"lambda_max": 5}, ["--lambda_max", "gapo", "ppo_lagrangian"]),
    "step size elsewhere": (SAFE | {"mirror_step_size": 1}, ["--mirror_step_size", "fast_rl"]),
    "preference": (SAFE | {"preference": ("helpfulness=0.5", "harmlessness=0.5")}, ["--preference", "ppo_lagrangian"]),
    "one objective": ({"algorithm": "fast_rl", "monitor": "harmlessness"}, ["fast_rl", "helpfulness"]),
    "all gradients": ({"algorithm": "fast_rl", "gradient_scope": "full"}, ["--gradient_scope full", "fast_rl"]),
    "options": (SAFE | {"weighting_options": "c=1"}, ["--weighting_options", "ppo_lagrangian"]),
    "normalized": (SAFE | {"normalize_coefficients": True}, ["--normalize_coefficients", "ppo_lagrangian"]),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD_FLAGS)
def test_flags_that_do_not_fit_end_in_one_line(workshop: Workshop, what: str) -> None:
    changes, names = BAD_FLAGS[what]
    result = run_script(STEP3, workshop.step3_flags("refused", **changes))
    assert (result.code, result.stderr.count("\n")) == (2, 1) and result.stderr.startswith("error: ")
    assert all(name in result.stderr for name in names), result.stderr
