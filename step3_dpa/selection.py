"""Rejection sampling along directions: of N replies to a prompt, the best one in the direction that it asks for.

DPA's (arXiv 2402.18571): the reply with the largest vᵀr is kept and learned from.
"""

import torch


def weighted_ratings(values: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
    """vᵀr of every reply.

    Args:
        values: [n, replies, m] float64, r by attribute.
        directions: [n, m] float64, v of the prompts.

    Returns:
        [n, replies] float64.
    """
    return torch.einsum("nkm,nm->nk", values, directions)


def best_replies(ratings: torch.Tensor, judged: torch.Tensor) -> torch.Tensor:
    """The reply with the largest rating, the first of equals, among those that every attribute has a value for.

    Args:
        ratings: [n, replies] float64.
        judged: [n, replies] bool.

    Returns:
        [n] int64; −1 where no reply is judged.
    """
    found = ratings.masked_fill(~judged, -torch.inf).argmax(dim=1)
    return found.masked_fill(~judged.any(dim=1), -1)


def masked_mean(numbers: torch.Tensor, counted: torch.Tensor) -> float:
    """The mean of the [...] numbers that count; NaN where none does."""
    return (numbers * counted).sum().item() / counted.sum().item() if counted.any() else float("nan")


def direction_bins(angles: torch.Tensor, least: float, most: float, number: int) -> torch.Tensor:
    """The part, of so many equal ones of [least, most], that each angle lies in: [n] float64 -> [n] int64."""
    if most == least:
        return torch.zeros_like(angles, dtype=torch.long)
    return ((angles - least) / (most - least) * number).floor().long().clamp(0, number - 1)
