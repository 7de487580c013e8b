"""Losses of reward and cost models: pure functions of the scores of preferred and other responses."""

import torch
from torch.nn.functional import logsigmoid


def preference_loss(higher: torch.Tensor, lower: torch.Tensor) -> torch.Tensor:
    """−log σ(higher − lower), the Bradley-Terry negative log-likelihood of a pair; any shape."""
    return -logsigmoid(higher - lower)


def sign_loss(cost: torch.Tensor, sign: torch.Tensor) -> torch.Tensor:
    """−log σ(s·C): a harmful response should cost more than 0, a safe one less (Safe RLHF, eq. 6); any shape.

    Args:
        sign: +1 harmful, −1 safe, 0 unknown, for which the loss is 0.
    """
    return -sign.abs() * logsigmoid(sign * cost)


def score_penalty(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Mean square of a pair's scores; it holds their scale and, for rewards, their origin; any shape."""
    return (first.square() + second.square()) / 2


def reward_loss(better: torch.Tensor, worse: torch.Tensor, regularization: float = 0.0) -> torch.Tensor:
    """Loss of a reward model on pairs; [b] scores -> [b]."""
    return preference_loss(better, worse) + regularization * score_penalty(better, worse)


def cost_loss(
    safer: torch.Tensor,
    unsafer: torch.Tensor,
    safer_sign: torch.Tensor,
    unsafer_sign: torch.Tensor,
    regularization: float = 0.0,
) -> torch.Tensor:
    """Loss of a cost model on pairs (Safe RLHF, eq. 6): order and, where known, signs; [b] each -> [b]."""
    order = preference_loss(unsafer, safer)
    signs = sign_loss(safer, safer_sign) + sign_loss(unsafer, unsafer_sign)
    return order + signs + regularization * score_penalty(safer, unsafer)
