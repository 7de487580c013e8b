"""Which policy loss (`--policy_loss`): functions of one signature, by name.

    (log_probs [rows, time], batch, target [rows, time], units [rows, time], total, settings) -> scalar

`target` is the advantage, `units` are 1 on what the loss is a mean over and `total` is their number in the whole
optimizer step; the scalar is this micro-batch's part of that mean.
"""

import argparse
from collections.abc import Callable

import torch

from step3_gapo import ppo
from step3_gapo.experience import Experience

PolicyLoss = Callable[
    [torch.Tensor, Experience, torch.Tensor, torch.Tensor, torch.Tensor, argparse.Namespace], torch.Tensor
]


def clipped_surrogate(
    log_probs: torch.Tensor,
    batch: Experience,
    target: torch.Tensor,
    units: torch.Tensor,
    total: torch.Tensor,
    settings: argparse.Namespace,
) -> torch.Tensor:
    """PPO's clipped surrogate over the actions of the step (GAPO paper, eq. 15-16)."""
    return ppo.clipped_surrogate_loss(log_probs, batch.log_probs, target, units, settings.clip_range_ratio, total)


POLICY_LOSSES: dict[str, PolicyLoss] = {"clipped_surrogate": clipped_surrogate}
DEFAULT = "clipped_surrogate"
