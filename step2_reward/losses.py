"""Losses of reward and cost models: pure functions of the scores of preferred and other responses."""

import torch
from torch.nn.functional import logsigmoid


def preference_loss(higher: torch.Tensor, lower: torch.Tensor, margin: torch.Tensor | float = 0.0) -> torch.Tensor:
    """−log σ(higher − lower − margin), the Bradley-Terry negative log-likelihood of a pair; any shape.

    Args:
        margin: by how much the scores should differ at least (Touvron et al. 2023, Llama 2, eq. 2).
    """
    return -logsigmoid(higher - lower - margin)


def sign_loss(cost: torch.Tensor, sign: torch.Tensor) -> torch.Tensor:
    """−log σ(s·C): a harmful response should cost more than 0, a safe one less (Safe RLHF, eq. 6); any shape.

    Args:
        sign: +1 harmful, −1 safe, 0 unknown, for which the loss is 0.
    """
    return -sign.abs() * logsigmoid(sign * cost)


def score_penalty(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Mean square of a pair's scores; it holds their scale and, for rewards, their origin; any shape."""
    return (first.square() + second.square()) / 2


def reward_loss(
    better: torch.Tensor, worse: torch.Tensor, regularization: float = 0.0, margin: torch.Tensor | float = 0.0
) -> torch.Tensor:
    """Loss of a reward model on pairs; [b] scores -> [b]."""
    return preference_loss(better, worse, margin) + regularization * score_penalty(better, worse)


def cost_loss(
    safer: torch.Tensor,
    unsafer: torch.Tensor,
    safer_sign: torch.Tensor,
    unsafer_sign: torch.Tensor,
    regularization: float = 0.0,
    margin: torch.Tensor | float = 0.0,
) -> torch.Tensor:
    """Loss of a cost model on pairs (Safe RLHF, eq. 6): order and, where known, signs; [b] each -> [b]."""
    order = preference_loss(unsafer, safer, margin)
    signs = sign_loss(safer, safer_sign) + sign_loss(unsafer, unsafer_sign)
    return order + signs + regularization * score_penalty(safer, unsafer)


def rating_loss(scores: torch.Tensor, ratings: torch.Tensor, rated: torch.Tensor) -> torch.Tensor:
    """Σ_k (score − rating)² over the attributes k that a reply is rated on; [b, m] each -> [b].

    Args:
        ratings: standardised; anything where there is none.
        rated: 1 where there is a rating, else 0.
    """
    return torch.where(rated.bool(), scores - ratings, 0.0).square().sum(dim=-1)
