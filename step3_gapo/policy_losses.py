"""Which policy loss (`--policy_loss`): one signature, and what a loss is a mean over.

A loss of PPO's kind is a mean over actions and takes an advantage as its target. Those of CGPO
(`step3_gapo.constrained`) are means over responses, or over pairs of them, that are chosen from a rollout by task.
"""

import argparse
from abc import ABC, abstractmethod
from typing import ClassVar

import torch

from step3_gapo import ppo
from step3_gapo.experience import Experience
from utils.combining.algorithm import Option


class PolicyLoss(ABC):
    """One loss.

    Attributes:
        name: of `--policy_loss`; summary: a few words for --help.
        options: flags of its own.
        per_response: whether it is a mean over responses; else over actions.
        by_task: whether there is one a task, on what is chosen of its responses; else one an objective, or what the
            algorithm mixes objectives to.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    options: ClassVar[tuple[Option, ...]] = ()
    per_response: ClassVar[bool] = False
    by_task: ClassVar[bool] = False

    def rows(self, responses: int) -> int:
        """Rows that are trained of so many responses to a prompt."""
        return responses

    @abstractmethod
    def loss(
        self,
        log_probs: torch.Tensor,
        batch: Experience,
        target: torch.Tensor,
        units: torch.Tensor,
        total: torch.Tensor,
        settings: argparse.Namespace,
    ) -> torch.Tensor:
        """A micro-batch's part of the mean over all units of an optimizer step; scalar.

        Args:
            log_probs: [rows, time] float32 of the actions, with gradients.
            target: [rows, time] float32, zero on padding: the advantage, or what else the loss goes by.
            units: [rows, time] float32, or [rows] of a loss per response: 1 on what counts.
            total: how much counts in the whole step, over micro-batches and ranks; 1 at least.
            settings: the run's flags.
        """


class ClippedSurrogate(PolicyLoss):
    """PPO's clipped surrogate over the actions of the step (GAPO paper, eq. 15-16)."""

    name, summary = "clipped_surrogate", "PPO's"

    def loss(
        self,
        log_probs: torch.Tensor,
        batch: Experience,
        target: torch.Tensor,
        units: torch.Tensor,
        total: torch.Tensor,
        settings: argparse.Namespace,
    ) -> torch.Tensor:
        return ppo.clipped_surrogate_loss(log_probs, batch.log_probs, target, units, settings.clip_range_ratio, total)
