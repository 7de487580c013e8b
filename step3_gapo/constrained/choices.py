"""What CGPO makes of a task's responses, as pure functions: calibrated rewards, constrained rewards, and choices.

Shapes: n prompts of a task, K responses to each. A response `passes` where no judge fails it, and it `counts` where
the task's objectives have given it a reward; others are in no mean and are never chosen. What may not be chosen is
masked by ±inf: a product with 0 would prefer a failing response to passing ones with negative rewards.
"""

import torch


def calibrated_rewards(rewards: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """R_c = σ(r(s, a) − r(s, ā)) against a reference answer ā (arXiv 2409.20370).

    Args:
        rewards: [n, K] float32.
        reference: [n] float32.

    Returns:
        [n, K] in (0, 1).
    """
    return torch.sigmoid(rewards - reference.unsqueeze(-1))


def constrained_rewards(
    calibrated: torch.Tensor, log_ratio: torch.Tensor, passes: torch.Tensor, kl_max: float
) -> torch.Tensor:
    """R̃ = max(1 − Δ/KL_max, 0) · R_c where a response passes, else 0 (CRPG, arXiv 2409.20370).

    Below the reference's probability, Δ < 0, the factor is above 1, as in the paper.

    Args:
        calibrated: [n, K] R_c.
        log_ratio: [n, K] Δ = log π(a|s) − log π₀(a|s), nats a response.
        passes: [n, K] bool.
        kl_max: KL_max > 0, nats.

    Returns:
        [n, K].
    """
    return torch.where(passes, (1.0 - log_ratio / kl_max).clamp(min=0.0) * calibrated, 0.0)


def best_response(
    rewards: torch.Tensor,
    log_ratio: torch.Tensor,
    passes: torch.Tensor,
    counts: torch.Tensor,
    reference_serves: torch.Tensor,
    kl_max: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The response of the highest reward among those that pass with Δ ≤ KL_max; where there is none, the reference
    answer, if it passes (CRRAFT, arXiv 2409.20370).

    Args:
        rewards, log_ratio: [n, K] float32; passes, counts: [n, K] bool.
        reference_serves: [n] bool.

    Returns:
        [n] int64, K for the reference answer, and [n] bool, whether there is a choice; whatever where there is none. Of
        equal rewards the first.
    """
    allowed = passes & counts & (log_ratio <= kl_max)
    found = allowed.any(dim=-1)
    best = rewards.masked_fill(~allowed, -torch.inf).argmax(dim=-1)
    return torch.where(found, best, rewards.shape[-1]), found | reference_serves


def preference_pairs(
    rewards: torch.Tensor, passes: torch.Tensor, counts: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """a⁺ of the highest reward among the passing responses, a⁻ of the lowest among the failing ones, or of all where
    none fails (CODPO, arXiv 2409.20370).

    Args:
        rewards: [n, K] float32; passes, counts: [n, K] bool.

    Returns:
        a⁺ and a⁻, [n] int64, and [n] bool, whether they are a pair: not where no response passes, nor where both are
        one response.
    """
    good, bad = passes & counts, ~passes & counts
    rejectable = torch.where(bad.any(dim=-1, keepdim=True), bad, counts)
    chosen = rewards.masked_fill(~good, -torch.inf).argmax(dim=-1)
    rejected = rewards.masked_fill(~rejectable, torch.inf).argmin(dim=-1)
    return chosen, rejected, good.any(dim=-1) & (chosen != rejected)
