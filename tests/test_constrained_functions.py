"""CGPO's choices and losses as pure functions: against cases made by hand and slow references."""

import math

import pytest
import torch

from step3_gapo.constrained.choices import best_response, calibrated_rewards, constrained_rewards, preference_pairs
from step3_gapo.constrained.losses import CODPO, CRPG, CRRAFT, TaskResponses, codpo_loss, weighted_likelihood
from step3_gapo.constrained.mixture import counts_of, endless, task_rollouts
from utils.data.encoding import Encoded
from utils.data.records import Prompt
from utils.process.errors import UserError
from utils.scoring.tasks import Task

NONE, ALL = [False] * 3, [True] * 3


def rows(*values: list[float]) -> torch.Tensor:
    return torch.tensor(values)


def test_calibrated_rewards_by_hand() -> None:
    found = calibrated_rewards(rows([0.0, 2.0], [-1.0, -1.0]), torch.tensor([0.0, -2.0]))
    assert torch.allclose(found, rows([0.5, 1 / (1 + math.exp(-2))], [1 / (1 + math.exp(-1))] * 2))


def test_constrained_rewards_by_hand() -> None:
    """Half of the cap halves; at the cap and beyond nothing is left; below the reference there is more than R_c."""
    calibrated, log_ratio = rows([0.8] * 5), rows([0.0, 2.0, 4.0, 9.0, -4.0])
    passes = torch.tensor([[True] * 5])
    found = constrained_rewards(calibrated, log_ratio, passes, 4.0)
    assert torch.allclose(found, rows([0.8, 0.4, 0.0, 0.0, 1.6]))
    assert constrained_rewards(calibrated, log_ratio, ~passes, 4.0).eq(0).all()
    assert constrained_rewards(rows([math.nan]), rows([0.0]), torch.tensor([[False]]), 1.0).item() == 0.0


# rewards, passes, counts, log ratio, whether the reference answer serves -> choice of three responses
BEST = [
    ("all pass: the best of all", [1.0, 3.0, 2.0], ALL, ALL, [0.0] * 3, False, 1),
    ("negative rewards: what fails is never chosen", [-5.0, -1.0, -3.0], [True, False, True], ALL, [0.0] * 3, False, 2),
    ("the best is beyond the cap", [1.0, 3.0, 2.0], ALL, ALL, [0.0, 4.1, 4.0], False, 2),
    ("a tie: the first", [2.0, 2.0, 1.0], ALL, ALL, [0.0] * 3, True, 0),
    ("the best has no reward", [1.0, 0.0, -2.0], ALL, [False, False, True], [0.0] * 3, True, 2),
    ("none passes: the reference", [1.0, 3.0, 2.0], NONE, ALL, [0.0] * 3, True, 3),
    ("none within the cap: the reference", [1.0, 3.0, 2.0], ALL, ALL, [9.0] * 3, True, 3),
    ("none passes, nor the reference", [1.0, 3.0, 2.0], NONE, ALL, [0.0] * 3, False, None),
]


@pytest.mark.parametrize(("rewards", "passes", "counts", "log_ratio", "serves", "expected"), [b[1:] for b in BEST],
                         ids=[b[0] for b in BEST])  # fmt: skip
def test_best_response(
    rewards: list, passes: list, counts: list, log_ratio: list, serves: bool, expected: int | None
) -> None:
    best, kept = best_response(
        rows(rewards), rows(log_ratio), torch.tensor([passes]), torch.tensor([counts]), torch.tensor([serves]), 4.0
    )
    assert kept.item() is (expected is not None)
    assert expected is None or best.item() == expected


# rewards, passes, counts -> chosen and rejected
PAIRS = [
    ("some fail", [1.0, 3.0, 2.0], [True, True, False], ALL, (1, 2)),
    ("what fails has the highest reward", [1.0, 3.0, 5.0], [True, True, False], ALL, (1, 2)),
    ("negative rewards", [-1.0, -3.0, -2.0], [False, True, False], ALL, (1, 2)),
    ("all pass: the best and the worst", [1.0, 3.0, 2.0], ALL, ALL, (1, 0)),
    ("all pass with one reward", [2.0, 2.0, 2.0], ALL, ALL, None),
    ("none passes", [1.0, 3.0, 2.0], NONE, ALL, None),
    ("one that passes, and no reward else", [1.0, 3.0, 2.0], ALL, [True, False, False], None),
    ("the worst has no reward", [1.0, 3.0, -9.0], ALL, [True, True, False], (1, 0)),
    ("what fails has no reward: the worst that passes", [1.0, 3.0, 2.0], [True, True, False], [True, True, False],
     (1, 0)),
]  # fmt: skip


@pytest.mark.parametrize(("rewards", "passes", "counts", "expected"), [p[1:] for p in PAIRS], ids=[p[0] for p in PAIRS])
def test_preference_pairs(rewards: list, passes: list, counts: list, expected: tuple[int, int] | None) -> None:
    chosen, rejected, kept = preference_pairs(rows(rewards), torch.tensor([passes]), torch.tensor([counts]))
    assert kept.item() is (expected is not None)
    assert expected is None or (chosen.item(), rejected.item()) == expected


def task_responses(passes: list[list[bool]], counts: list[list[bool]] | None = None) -> TaskResponses:
    """Two prompts, two responses each and a reference answer, in rows 5 to 10."""
    rewards = rows([1.0, 3.0, 2.0], [0.5, -1.0, 0.0])
    counts = torch.ones(2, 3) > 0 if counts is None else torch.tensor(counts)
    log_ratio = rows([1.0, -1.0, 0.0], [3.0, 8.0, 0.0])
    return TaskResponses(torch.arange(5, 11).view(2, 3), rewards, counts, torch.tensor(passes), log_ratio, 2, 4.0)


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def test_what_crpg_trains() -> None:
    choice = CRPG().choose(task_responses([[True, True, False], [True, False, True]]))
    rewards = [0.75 * sigmoid(-1), 1.25 * sigmoid(1), 0.25 * sigmoid(0.5), 0.0]
    mean = sum(rewards) / 4
    assert choice.rows.tolist() == [5, 6, 8, 9] and choice.units.tolist() == [1.0] * 4
    assert torch.allclose(choice.targets, torch.tensor([reward - mean for reward in rewards]))
    assert choice.serves.tolist() == [1, 1, 1, 0]
    # A response without a reward is in no mean; without that of the reference none of its prompt's is.
    counts = [[True, False, True], [True, True, False]]
    choice = CRPG().choose(task_responses([[True] * 3] * 2, counts))
    assert choice.units.tolist() == [1, 0, 0, 0] and choice.targets.tolist() == [0.0] * 4
    choice = CRPG().choose(task_responses([[False] * 3] * 2))
    assert choice.targets.tolist() == choice.units.tolist() == [0.0] * 4, "where nothing passes there is no loss"


def test_what_crraft_trains() -> None:
    choice = CRRAFT().choose(task_responses([[True, True, False], [True, False, True]]))
    assert choice.rows.tolist() == [6, 8] and choice.units.tolist() == [1, 1]
    assert torch.allclose(choice.targets, torch.tensor([sigmoid(1), sigmoid(0.5)]))
    choice = CRRAFT().choose(task_responses([[False, False, True], [False, False, False]]))
    assert choice.rows[0] == 7 and choice.targets.tolist() == [0.5, 0.0] and choice.units.tolist() == [1, 0]


def test_what_codpo_trains() -> None:
    choice = CODPO().choose(task_responses([[True, True, False], [False, True, True]]))
    assert choice.rows.tolist() == [6, 5, 9, 8] and choice.units.tolist() == [1, 0, 1, 0]
    choice = CODPO().choose(task_responses([[True, True, False], [False, False, True]]))
    assert choice.units.tolist() == [1, 0, 0, 0] and len(choice.rows) == 4


def test_losses_and_their_gradients() -> None:
    """Against sums by hand, response by response; what does not count has no gradient."""
    torch.manual_seed(0)
    mask = (torch.arange(5) < torch.tensor([5, 2, 3, 1])[:, None]).float()
    log_probs = (-torch.rand(4, 5)).requires_grad_()
    ref, units, total = -torch.rand(4, 5) * mask, torch.tensor([1.0, 0.0, 0.0, 0.0]), torch.tensor(3.0)
    weights = torch.tensor([0.7, -0.2, 0.1, 0.4])
    loss = weighted_likelihood(log_probs, weights.unsqueeze(-1) * mask, torch.tensor([1.0, 1.0, 0.0, 1.0]), total)
    by_hand = -sum(weights[i] * log_probs[i, :n].sum() for i, n in ((0, 5), (1, 2), (3, 1))) / 3
    assert torch.allclose(loss, by_hand)
    (gradient,) = torch.autograd.grad(loss, log_probs)
    assert torch.allclose(gradient, torch.autograd.grad(by_hand, log_probs)[0]) and gradient[2].eq(0).all()

    loss = codpo_loss(log_probs, ref, mask, units, total, 0.3, 0.5)
    delta = [(log_probs[i] * mask[i]).sum() - ref[i].sum() for i in (0, 1)]
    by_hand = (-torch.log(torch.sigmoid(0.3 * (delta[0] - delta[1]))) - 0.5 * log_probs[0].mean()) / 3
    assert torch.allclose(loss, by_hand)
    (gradient,) = torch.autograd.grad(loss, log_probs)
    assert torch.allclose(gradient, torch.autograd.grad(by_hand, log_probs)[0], atol=1e-7)
    assert gradient[2:].eq(0).all() and gradient[0].lt(0).all(), "the chosen one becomes likelier"


# --- which prompts a rollout has


def prompts_of(**counts: int) -> list[Encoded]:
    names = [name for name, count in counts.items() for _ in range(count)]
    return [Encoded(Prompt([], f"f:{i}", task=name), [i], ()) for i, name in enumerate(names)]


def test_shares_of_a_rollout() -> None:
    prompts = prompts_of(a=30, b=10)
    tasks = [Task("a", "a", {}), Task("b", "b", {})]
    assert counts_of(tasks, prompts, 8) == {"a": 6, "b": 2}
    assert counts_of(tasks, prompts, 5) == {"a": 4, "b": 1}
    tasks = [Task("a", "a", {}, share=0.1), Task("b", "b", {}, share=0.9)]
    assert counts_of(tasks, prompts, 10) == {"a": 1, "b": 9}
    with pytest.raises(UserError, match="a: its share leaves it no prompt in a rollout of 4"):
        counts_of(tasks, prompts, 4)


def test_every_rollout_has_its_shares_and_every_prompt_its_turn() -> None:
    prompts = prompts_of(a=7, b=3)
    rollouts = list(task_rollouts(prompts, {"a": 2, "b": 2}, seed=5, rollouts=21))
    for batch in rollouts:
        assert sorted(prompt.record.task for prompt in batch) == ["a", "a", "b", "b"]
    for name, number in (("a", 7), ("b", 3)):
        order = [p.prompt[0] for batch in rollouts for p in batch if p.record.task == name]
        assert {order.count(one) for one in set(order)} == {42 // number}, "as often as any other of its task"
    assert rollouts == list(task_rollouts(prompts, {"a": 2, "b": 2}, seed=5, rollouts=21))
    assert rollouts[:4] == list(task_rollouts(prompts, {"a": 2, "b": 2}, seed=5, rollouts=4))


def test_an_endless_sequence() -> None:
    whole = endless(4, 0, 12, seed=1)
    assert [sorted(whole[i : i + 4]) for i in (0, 4, 8)] == [[0, 1, 2, 3]] * 3
    assert endless(4, 3, 6, seed=1) == whole[3:9]
