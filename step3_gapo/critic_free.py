"""Advantages without critics, as pure functions: a response is compared with the others to the same prompt.

Shapes: n responses, a prompt's `group_size` responses one after another. All numbers of a response's advantage are
computed in float64, so that equal scores are equal. A response that was not judged (a function has returned None) is in
no statistic and has advantage 0; so has one that is alone, whose group shows nothing.
"""

import torch

EPSILON = 1e-4  # added to the standard deviation of a group, as in TRL


def group_relative(scores: torch.Tensor, judged: torch.Tensor, group_size: int, normalize: bool) -> torch.Tensor:
    """A_i = (R_i - mean of the group) / (its standard deviation + 1e-4): GRPO (Shao et al. 2024, section 4.1.2).

    The standard deviation is the unbiased one. A group whose scores are all equal has advantages of exactly 0: their
    mean has rounding errors, which a division would make large.

    Args:
        scores: [n] floats.
        judged: [n] bool, where there is a score.
        normalize: divide by the standard deviation; without it (Liu et al. 2025, "Dr. GRPO") the scale of the scores
            stays.

    Returns:
        [n] in the type of `scores`.

    Raises:
        ValueError: see `groups`.
    """
    values, there, count = groups(scores, judged, group_size)
    centered = center(values, there, count)
    if normalize:
        variance = centered.square().sum(dim=-1, keepdim=True) / (count - 1).clamp(min=1)
        centered = centered / (variance.sqrt() + EPSILON)
    return centered.flatten().to(scores.dtype)


def leave_one_out(scores: torch.Tensor, judged: torch.Tensor, group_size: int) -> torch.Tensor:
    """A_i = R_i - mean of the other scores of the group: RLOO (Kool et al. 2019; Ahmadian et al. 2024, eq. 8).

    Arguments, result and errors as in `group_relative`.
    """
    values, there, count = groups(scores, judged, group_size)
    return (center(values, there, count) * count / (count - 1).clamp(min=1)).flatten().to(scores.dtype)


def groups(
    scores: torch.Tensor, judged: torch.Tensor, group_size: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Scores [groups, size] float64, 0 where there is none; where there is one, bool; how many a group, [groups, 1].

    Raises:
        ValueError: groups of fewer than two responses, or a number of responses that is no multiple of theirs.
    """
    if group_size < 2:
        raise ValueError(f"a group of {group_size}: responses are compared with others to the same prompt")
    if len(scores) % group_size:
        raise ValueError(f"{len(scores)} responses are not groups of {group_size}")
    there = judged.reshape(-1, group_size).bool()
    values = scores.double().reshape(-1, group_size).masked_fill(~there, 0.0)
    return values, there, there.sum(dim=-1, keepdim=True)


def center(values: torch.Tensor, there: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    """Distances from the group's mean, exactly 0 where all scores are equal or there are fewer than two."""
    least = values.masked_fill(~there, torch.inf).amin(dim=-1, keepdim=True)
    most = values.masked_fill(~there, -torch.inf).amax(dim=-1, keepdim=True)
    mean = values.sum(dim=-1, keepdim=True) / count.clamp(min=1)
    return torch.where(there & (least < most), values - mean, 0.0)
