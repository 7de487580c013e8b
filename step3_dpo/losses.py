"""The losses of preference pairs, as functions of log-probabilities. Pure.

Shapes: b pairs, whose replies are rows 2i (first) and 2i + 1 (second) of what has rows; t response tokens; m
objectives. Sums over tokens and all that follows are float64: a policy near its reference has margins near 0, small
differences of large sums.
"""

import torch
from torch.nn.functional import logsigmoid

TIE = 1e-6  # margins below are rounding


def log_prob_differences(log_probs: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """log π(first) − log π(second), summed over the tokens that count; [2b, t] each -> [b] float64."""
    first, second = (log_probs.double() * mask).sum(dim=-1).view(-1, 2).unbind(dim=-1)
    return first - second


def pair_logits(
    differences: torch.Tensor, reference: torch.Tensor, beta: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """Implicit margins β(Δ(chosen) − Δ(rejected)) with Δ = log π − log π₀ (DPO, arXiv 2305.18290, eq. 7).

    Args:
        differences, reference: [b] float64 of policy and reference; see `log_prob_differences`.
        beta: [m] float64.
        labels: [m, b], 1 where an objective prefers the first reply, −1 the second, 0 where it says nothing.

    Returns:
        [m, b] float64, 0 without a label.
    """
    return labels * beta[:, None] * (differences - reference)


def modpo_logits(logits: torch.Tensor, scale: float, margins: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """R(chosen) − R(rejected) of MODPO (arXiv 2310.03708, eq. 12).

    Args:
        logits: [m, b] implicit margins.
        scale: 1 / w_k.
        margins: [b] float64 Σ_{i≠k} (w_i / w_k) (m_i(first) − m_i(second)).
        labels: [m, b].

    Returns:
        [m, b].
    """
    return scale * logits - labels * margins


def preference_losses(logits: torch.Tensor, labels: torch.Tensor, totals: torch.Tensor) -> torch.Tensor:
    """Each objective's part of the mean of −log σ(logit) over its own pairs.

    Args:
        logits, labels: [m, b].
        totals: [m] labelled pairs of the whole step.

    Returns:
        [m].
    """
    return (-logsigmoid(logits) * labels.abs()).sum(dim=-1) / totals


def pair_figures(logits: torch.Tensor, margins: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Of each pair and objective the loss, whether the policy orders it right (a tie is half of that), the implicit
    margin, and 1; all 0 without a label.

    Args:
        logits: [m, b] of the losses.
        margins: [m, b] implicit ones of the policy.
        labels: [m, b].

    Returns:
        [m, b, 4].
    """
    right = (torch.sign(margins.where(margins.abs() > TIE, 0.0)) + 1) / 2
    values = torch.stack([-logsigmoid(logits), right, margins, torch.ones_like(margins)], dim=-1)
    return values * labels.abs().unsqueeze(-1)
