"""PPO as pure functions on tensors: KL, advantages, losses. No engine, no collective, no state.

Shapes: batch x time, where time runs over response positions only. `mask` is 1.0 where an action was taken (the
response up to and including EOS) and 0.0 on padding. Losses are float32 sums over actions divided by a
denominator: the caller passes the number of actions of the whole optimizer step, so that micro-batches and ranks
add up to exactly one global mean.
"""

import torch
from torch.nn.functional import pad


def masked_mean(
    values: torch.Tensor, mask: torch.Tensor, denominator: torch.Tensor | float | None = None
) -> torch.Tensor:
    """Sum of `values` where `mask` is 1, over `denominator` (default: the number of ones). Scalar."""
    return (values * mask).sum() / (mask.sum() if denominator is None else denominator)


def kl_penalized_rewards(
    scores: torch.Tensor, log_probs: torch.Tensor, ref_log_probs: torch.Tensor, mask: torch.Tensor, kl_coeff: float
) -> torch.Tensor:
    """Per-token rewards of one objective: r_t = score · [t = last] - β · (log π - log π_ref)_t  (paper, eq. 10-14).

    Args:
        scores: [batch] score of the whole response.
        log_probs, ref_log_probs, mask: [batch, time].

    Returns:
        [batch, time] float32, zero on padding.
    """
    rewards = -kl_coeff * (log_probs - ref_log_probs) * mask
    return rewards + rewards_at_the_end(scores, mask)


def rewards_at_the_end(scores: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """r_t = score · [t = last]: [batch] and [batch, time] -> [batch, time] float32."""
    last = mask.long().sum(dim=-1, keepdim=True) - 1  # [batch, 1]
    return torch.zeros_like(mask).scatter(-1, last, scores.unsqueeze(-1))


def kl_estimate(log_probs: torch.Tensor, ref_log_probs: torch.Tensor) -> torch.Tensor:
    """KL(π ‖ π_ref) of every token by k3 = r - 1 - log r, r = π_ref / π (Schulman 2020; GRPO, eq. 4); never negative.

    Inputs and result [batch, time].
    """
    log_ratio = ref_log_probs - log_probs
    return torch.exp(log_ratio) - 1.0 - log_ratio


def generalized_advantage_estimate(
    rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, gamma: float, lam: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Advantages and returns (Schulman et al. 2016, eq. 16): A_t = Σ_l (γλ)^l δ_{t+l}, δ_t = r_t + γ V_{t+1} - V_t.

    Args:
        rewards, values, mask: [batch, time]; the value after the last action is 0.

    Returns:
        (advantages, returns), both [batch, time] float32, zero on padding.
    """
    values, rewards = values * mask, rewards * mask
    deltas = rewards + gamma * pad(values[:, 1:], (0, 1)) - values
    # What is left to do step by step is kept small: these are as many calls as a response has tokens.
    advantage, advantages = torch.zeros_like(values[:, 0]), []
    for delta, taken in zip(reversed(deltas.unbind(dim=1)), reversed(mask.unbind(dim=1)), strict=True):
        advantage = (delta + gamma * lam * advantage) * taken
        advantages.append(advantage)
    advantages = torch.stack(advantages[::-1], dim=1)
    return advantages, (advantages + values) * mask


def whiten(values: torch.Tensor, mean: torch.Tensor, variance: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Zero mean and unit variance over actions, given the global moments; [batch, time]."""
    return (values - mean) * torch.rsqrt(variance + 1e-8) * mask


def clipped_surrogate_loss(
    log_probs: torch.Tensor,
    old_log_probs: torch.Tensor,
    advantages: torch.Tensor,
    mask: torch.Tensor,
    clip_range: float,
    denominator: torch.Tensor | float | None = None,
) -> torch.Tensor:
    """PPO's clipped surrogate as a loss (Schulman et al. 2017, eq. 7; GAPO paper, eq. 15-16).

    Inputs [batch, time]; scalar.
    """
    ratio = torch.exp(log_probs - old_log_probs)
    clipped = ratio.clamp(1.0 - clip_range, 1.0 + clip_range)
    surrogate = torch.minimum(ratio * advantages, clipped * advantages)
    return -masked_mean(surrogate, mask, denominator)


def clip_fraction(
    log_probs: torch.Tensor,
    old_log_probs: torch.Tensor,
    mask: torch.Tensor,
    clip_range: float,
    denominator: torch.Tensor | float | None = None,
) -> torch.Tensor:
    """Share of actions whose ratio lies outside the clip range. Inputs [batch, time]; scalar."""
    ratio = torch.exp(log_probs - old_log_probs)
    return masked_mean(((ratio - 1.0).abs() > clip_range).float(), mask, denominator)


def clipped_value_loss(
    values: torch.Tensor,
    old_values: torch.Tensor,
    returns: torch.Tensor,
    mask: torch.Tensor,
    clip_range: float,
    denominator: torch.Tensor | float | None = None,
) -> torch.Tensor:
    """Half the squared error of the critic, where moving beyond `clip_range` from the old value earns nothing.

    Inputs [batch, time]; scalar.
    """
    clipped = old_values + (values - old_values).clamp(-clip_range, clip_range)
    errors = torch.maximum((values - returns).square(), (clipped - returns).square())
    return 0.5 * masked_mean(errors, mask, denominator)
