"""PPO's tensor functions against values worked out by hand, brute force and autograd."""

import math

import pytest
import torch

from step3_gapo import ppo
from step3_gapo.rollout import training_score
from tests.benchmarks.pieces import plain_advantages
from utils.data.batching import left_pad, right_pad
from utils.models.loading import position_ids_from_mask
from utils.policy.log_probs import log_probs_and_entropy, log_probs_of, response_mask

EOS, PAD = 2, 0


def close(actual: torch.Tensor, expected: object, tolerance: float = 1e-6) -> None:
    expected = torch.as_tensor(expected, dtype=actual.dtype)
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


# --- masks


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ([EOS, PAD, PAD, PAD], [1, 0, 0, 0]),  # ends at once
        ([5, 6, EOS, PAD], [1, 1, 1, 0]),  # EOS is an action, too
        ([5, 6, 7, 8], [1, 1, 1, 1]),  # never ends
        ([5, 6, 7, EOS], [1, 1, 1, 1]),  # ends at the limit
        ([5, PAD, 6, EOS], [1, 1, 1, 1]),  # the policy sampled the pad token
        ([PAD, PAD, EOS, PAD], [1, 1, 1, 0]),
        ([5, EOS, EOS, EOS], [1, 1, 0, 0]),  # pad is EOS: only the first one was sampled
        ([5, EOS, 7, EOS], [1, 1, 0, 0]),  # whatever follows the first EOS is no action
    ],
)
def test_response_mask(response: list[int], expected: list[int]) -> None:
    mask = response_mask(torch.tensor([response]), EOS)
    assert mask.dtype == torch.float32
    assert mask.tolist() == [expected]


def test_position_ids_count_from_the_first_real_token() -> None:
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [0, 1, 1, 1, 0]])
    assert position_ids_from_mask(mask).tolist() == [[0, 0, 0, 1, 2], [0, 1, 2, 3, 4], [0, 0, 1, 2, 2]]


def test_padding_of_either_side_takes_its_mask_from_the_lengths() -> None:
    ids, mask = left_pad([[PAD, 5], [6, 7, PAD]], PAD)
    assert (ids.tolist(), mask.tolist()) == ([[PAD, PAD, 5], [6, 7, PAD]], [[0, 1, 1], [1, 1, 1]])
    ids, mask = right_pad([[PAD, 5], [6, 7, PAD]], PAD)
    assert (ids.tolist(), mask.tolist()) == ([[PAD, 5, PAD], [6, 7, PAD]], [[1, 1, 0], [1, 1, 1]])


# --- log-probabilities and entropy


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_log_probs_and_entropy_are_of_the_sampled_distribution(temperature: float) -> None:
    odds = 3.0 ** (1 / temperature)  # logits (0, ln 3): the second token is 3^(1/T) times as likely
    p = [1 / (1 + odds), odds / (1 + odds)]
    logits = torch.tensor([[[0.0, math.log(3)], [0.0, math.log(3)]]])
    close(log_probs_of(logits, torch.tensor([[0, 1]]), temperature), [[math.log(p[0]), math.log(p[1])]])
    _, entropy = log_probs_and_entropy(logits, torch.tensor([[0, 1]]), temperature)
    close(entropy, [[-sum(q * math.log(q) for q in p)] * 2])


def test_log_probs_are_float32_under_bf16() -> None:
    logits = torch.randn(1, 3, 50, generator=torch.Generator().manual_seed(0)).bfloat16()
    log_probs = log_probs_of(logits, torch.tensor([[1, 2, 3]]), 0.7)
    _, entropy = log_probs_and_entropy(logits, torch.tensor([[1, 2, 3]]))
    assert log_probs.dtype == entropy.dtype == torch.float32
    close(log_probs[0, 1].double(), (logits[0, 1].double() / 0.7).log_softmax(-1)[2], 1e-5)


def test_masked_mean() -> None:
    values, mask = torch.tensor([[1.0, 2.0, 100.0]]), torch.tensor([[1.0, 1.0, 0.0]])
    assert ppo.masked_mean(values, mask).item() == 1.5
    assert ppo.masked_mean(values, mask, 6).item() == 0.5


# --- rewards


def test_the_score_lands_on_the_last_action_and_the_penalty_on_every_one() -> None:
    mask = torch.tensor([[1.0, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]])
    log_probs = torch.tensor([[-1.0, -2, -3, 9], [-1, 9, 9, 9], [-1, -1, -1, -1]])
    ref_log_probs = torch.tensor([[-2.0, -2, -1, 5], [-3, 5, 5, 5], [-1, -1, -1, -3]])
    rewards = ppo.kl_penalized_rewards(torch.tensor([10.0, 20.0, -30.0]), log_probs, ref_log_probs, mask, 0.1)
    close(rewards, [[-0.1, 0, 10 + 0.2, 0], [20 - 0.2, 0, 0, 0], [0, 0, 0, -30 - 0.2]])


def test_training_scores_are_clipped_and_unfinished_responses_pay_before_scaling() -> None:
    args = type("Args", (), {"clip_range_score": 5.0, "missing_eos_penalty": 0.5})
    scores, finished = torch.tensor([9.0, -9.0, 1.0, 1.0]), torch.tensor([1.0, 1.0, 1.0, 0.0])
    close(training_score(scores, 4.0, finished, args), [20.0, -20.0, 4.0, 2.0])


# --- advantages


def test_gae_by_hand() -> None:
    rewards, values = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[0.5, 0.25, 0.125]])
    # δ = (1 + 0.9·0.25 - 0.5, 2 + 0.9·0.125 - 0.25, 3 - 0.125) = (0.725, 1.8625, 2.875), γλ = 0.72
    expected = [0.725 + 0.72 * (1.8625 + 0.72 * 2.875), 1.8625 + 0.72 * 2.875, 2.875]
    advantages, returns = ppo.generalized_advantage_estimate(rewards, values, torch.ones(1, 3), 0.9, 0.8)
    close(advantages, [expected])
    close(returns, [[a + v for a, v in zip(expected, [0.5, 0.25, 0.125], strict=True)]])


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 1.0), (1.0, 0.0), (0.0, 0.95), (0.97, 0.9), (1.0, 0.95)])
def test_gae_is_the_discounted_sum_of_temporal_differences(gamma: float, lam: float) -> None:
    generator = torch.Generator().manual_seed(1)
    rewards, values = torch.randn(4, 6, generator=generator), torch.randn(4, 6, generator=generator)
    lengths = [6, 1, 4, 3]
    mask = torch.tensor([[1.0] * n + [0.0] * (6 - n) for n in lengths])
    advantages, returns = ppo.generalized_advantage_estimate(rewards, values, mask, gamma, lam)
    for row, length in enumerate(lengths):
        r, v = rewards[row].tolist(), [*values[row, :length].tolist(), 0.0]
        deltas = [r[t] + gamma * v[t + 1] - v[t] for t in range(length)]
        expected = [sum((gamma * lam) ** (k - t) * deltas[k] for k in range(t, length)) for t in range(length)]
        padding = [0.0] * (6 - length)
        close(advantages[row], expected + padding, 1e-5)
        close(returns[row], [a + x for a, x in zip(expected, v, strict=False)] + padding, 1e-5)


def test_gae_is_to_the_bit_what_it_is_step_by_step() -> None:
    generator = torch.Generator().manual_seed(3)
    rewards, values = torch.randn(2, 16, 50, generator=generator)
    mask = (torch.arange(50) < torch.randint(1, 51, (16, 1), generator=generator)).float()
    arguments = rewards, values, mask, 0.97, 0.95
    ours, plain = ppo.generalized_advantage_estimate(*arguments), plain_advantages(*arguments)
    assert all(map(torch.equal, ours, plain))


def test_with_lambda_one_the_return_is_the_reward_to_go_whatever_the_values() -> None:
    rewards, mask = torch.tensor([[1.0, 2.0, 4.0, 99.0]]), torch.tensor([[1.0, 1.0, 1.0, 0.0]])
    _, returns = ppo.generalized_advantage_estimate(rewards, torch.tensor([[3.0, -7.0, 5.0, 8.0]]), mask, 1.0, 1.0)
    close(returns, [[7.0, 6.0, 4.0, 0.0]], 1e-5)


def test_gae_is_linear_in_the_objectives() -> None:
    """The advantage of a mix of rewards is the mix of advantages: what lets morlhf mix after the fact."""
    generator = torch.Generator().manual_seed(2)
    r, v = torch.randn(2, 3, 5, generator=generator), torch.randn(2, 3, 5, generator=generator)
    mask = torch.tensor([[1.0] * 5, [1, 1, 0, 0, 0], [1, 1, 1, 1, 0]])
    each = [ppo.generalized_advantage_estimate(r[i], v[i], mask, 0.99, 0.9)[0] for i in range(2)]
    mixed, _ = ppo.generalized_advantage_estimate(0.3 * r[0] + 0.7 * r[1], 0.3 * v[0] + 0.7 * v[1], mask, 0.99, 0.9)
    close(mixed, 0.3 * each[0] + 0.7 * each[1], 1e-5)


def test_whitening() -> None:
    values, mask = torch.tensor([[1.0, 3.0, 50.0], [5.0, 7.0, -50.0]]), torch.tensor([[1.0, 1, 0], [1, 1, 0]])
    white = ppo.whiten(values, torch.tensor(4.0), torch.tensor(5.0), mask)
    close(white, torch.tensor([[-3.0, -1, 0], [1, 3, 0]]) / math.sqrt(5))
    close(white[mask > 0].square().mean(), 1.0)


# --- the clipped surrogate


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),  # slope: ∂loss/∂log π = -ratio · advantage where not clipped
    [
        (1.0, 2.0, -2.0, -2.0),  # on-policy: the plain policy gradient
        (1.05, 2.0, -2.1, -2.1),  # inside the range
        (0.95, -2.0, 1.9, 1.9),
        (1.5, 2.0, -2.2, 0.0),  # good and already likelier: clipped at 1 + ε
        (0.5, 2.0, -1.0, -1.0),  # good but less likely: pulled back
        (0.5, -2.0, 1.8, 0.0),  # bad and already less likely: clipped at 1 - ε
        (1.5, -2.0, 3.0, 3.0),  # bad but likelier: pushed back
    ],
)
def test_clipped_surrogate_in_every_regime(ratio: float, advantage: float, loss: float, slope: float) -> None:
    old = torch.tensor([[-1.7]])
    new = (old + math.log(ratio)).requires_grad_()
    value = ppo.clipped_surrogate_loss(new, old, torch.tensor([[advantage]]), torch.ones(1, 1), 0.1)
    close(value, loss)
    close(torch.autograd.grad(value, new)[0], [[slope]])


def surrogate_batch() -> tuple[torch.Tensor, ...]:
    """log π, old log π, advantages, mask; [4, 6] each."""
    generator = torch.Generator().manual_seed(3)
    new, old, advantages = (torch.randn(4, 6, generator=generator) * s for s in (0.2, 0.2, 1.0))
    mask = torch.tensor([[1.0] * n + [0.0] * (6 - n) for n in (6, 1, 4, 3)])
    return new, old, advantages, mask


def test_padding_has_no_part_in_the_losses() -> None:
    new, old, advantages, mask = surrogate_batch()
    for function in (ppo.clipped_surrogate_loss, ppo.clipped_value_loss):
        inputs = [new.clone().requires_grad_(), old, advantages]
        loss = function(*inputs, mask, 0.1)
        gradient = torch.autograd.grad(loss, inputs[0])[0]
        assert gradient[mask == 0].eq(0).all()
        assert gradient[mask == 1].ne(0).any()
        noisy = [torch.where(mask == 0, 3.0, tensor) for tensor in inputs]
        assert torch.equal(loss, function(*noisy, mask, 0.1))


def test_micro_batches_with_the_common_denominator_add_up_to_the_batch() -> None:
    new, old, advantages, mask = surrogate_batch()
    for function in (ppo.clipped_surrogate_loss, ppo.clipped_value_loss):
        whole = function(new, old, advantages, mask, 0.1)
        parts = [function(new[i], old[i], advantages[i], mask[i], 0.1, mask.sum()) for i in range(4)]
        close(sum(parts), whole)
        assert not math.isclose(
            sum(function(new[i], old[i], advantages[i], mask[i], 0.1).item() for i in range(4)) / 4,
            whole.item(),
            rel_tol=1e-3,
        )


def test_clip_fraction_counts_actions_on_either_side() -> None:
    ratios = torch.tensor([[0.8, 0.95, 1.0, 1.05, 1.3, 5.0]])
    mask = torch.tensor([[1.0, 1, 1, 1, 1, 0]])
    close(ppo.clip_fraction(ratios.log(), torch.zeros(1, 6), mask, 0.1), 2 / 5)


# --- the value loss


@pytest.mark.parametrize(
    ("value", "old", "target", "loss", "slope"),
    [
        (1.0, 0.9, 3.0, 2.0, -2.0),  # inside the clip: half the squared error
        (5.0, 0.0, 9.0, 32.0, 0.0),  # moved beyond the clip towards the target: the clipped error, no slope
        (5.0, 0.0, 1.0, 8.0, 4.0),  # moved beyond the clip and overshot: pulled back
        (-5.0, 0.0, -9.0, 32.0, 0.0),
        (-5.0, 0.0, 9.0, 98.0, -14.0),  # moved the wrong way
    ],
)
def test_value_loss_in_every_regime(value: float, old: float, target: float, loss: float, slope: float) -> None:
    values = torch.tensor([[value]], requires_grad=True)
    result = ppo.clipped_value_loss(values, torch.tensor([[old]]), torch.tensor([[target]]), torch.ones(1, 1), 1.0)
    close(result, loss)
    close(torch.autograd.grad(result, values)[0], [[slope]])


# --- log-probabilities in chunks


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(30, 40, 1000), (2, 3, 400_000), (5, 1, 7)])
def test_chunks_do_not_change_log_probs_entropy_or_gradients(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    logits = (3 * torch.randn(shape[0], shape[1] + 1, shape[2])).to(dtype)[:, :-1].requires_grad_()
    actions, slopes = torch.randint(shape[2], shape[:2]), torch.randn(shape[:2])
    expected_all = (logits.float() / 0.7).log_softmax(dim=-1)
    expected = expected_all.gather(-1, actions.unsqueeze(-1)).squeeze(-1)
    actual = log_probs_of(logits, actions, 0.7)
    torch.testing.assert_close(actual, expected)
    gradients = [torch.autograd.grad(x, logits, slopes)[0] for x in (actual, expected)]
    assert gradients[0].dtype == dtype
    torch.testing.assert_close(*gradients)
    beside, entropy = log_probs_and_entropy(logits, actions, 0.7)
    assert torch.equal(beside, actual) and not entropy.requires_grad
    assert torch.equal(torch.autograd.grad(beside, logits, slopes)[0], gradients[0])
    expected_entropy = -(expected_all.exp() * expected_all).sum(dim=-1)
    torch.testing.assert_close(entropy, expected_entropy.detach(), rtol=1e-5, atol=1e-5)


def test_no_float32_copy_of_bf16_logits_is_kept_for_the_way_back() -> None:
    logits = torch.randn(4, 5, 100).bfloat16().requires_grad_()
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        log_probs_of(logits, torch.zeros(4, 5, dtype=torch.int64))
    assert [(tensor.dtype, tensor.numel()) for tensor in kept] == [(torch.bfloat16, 2000), (torch.int64, 20)]
