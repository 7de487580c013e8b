"""Which advantage (`--advantage`): from the scores of responses to one advantage, and one return, an action.

An estimator says whether it learns values (a critic a loss), whether it compares the responses to one prompt, and where
the KL penalty goes unless `--kl_in` says otherwise. All have one signature.
"""

import argparse
from abc import ABC, abstractmethod
from typing import ClassVar

import torch

from step3_gapo import ppo
from step3_gapo.critic_free import group_relative, leave_one_out
from step3_gapo.experience import Experience


class Estimator(ABC):
    """One way to tell how much better than expected an action was.

    Attributes:
        name: of `--advantage`.
        learns_values: whether critics are trained on the returns.
        compares_responses: whether it needs several responses a prompt.
        kl_in: "reward" where the penalty is part of the reward, "loss" where it is a term of every loss.
    """

    name: ClassVar[str]
    learns_values: ClassVar[bool]
    compares_responses: ClassVar[bool]
    kl_in: ClassVar[str]

    @abstractmethod
    def estimate(
        self, loss: str, scores: torch.Tensor, experience: Experience, kl_coeff: float, args: argparse.Namespace
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Advantages and returns for one loss.

        Args:
            loss: its name, of `Experience.values` and `Experience.counted`.
            scores: [rows] float32 training scores of the responses, 0 where there is none.
            kl_coeff: β of the penalty in the reward; 0 where it is in the loss.

        Returns:
            [rows, time] float32 each, zero on padding; no returns where no values are learned.
        """


class GAE(Estimator):
    """Generalized advantage estimation on per-token rewards with the KL penalty in them (GAPO paper, eq. 10-14)."""

    name, learns_values, compares_responses, kl_in = "gae", True, False, "reward"

    def estimate(
        self, loss: str, scores: torch.Tensor, experience: Experience, kl_coeff: float, args: argparse.Namespace
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        mask = experience.mask
        if kl_coeff:
            log_probs, ref_log_probs = experience.log_probs, experience.ref_log_probs
            rewards = ppo.kl_penalized_rewards(scores, log_probs, ref_log_probs, mask, kl_coeff)
        else:
            rewards = ppo.rewards_at_the_end(scores, mask)
        return ppo.generalized_advantage_estimate(rewards, experience.values[loss], mask, args.gamma, args.gae_lambda)


class CriticFree(Estimator, ABC):
    """One advantage a response, the same for all of its actions; the KL in the reward is that of the whole response."""

    learns_values, compares_responses, kl_in = False, True, "loss"

    @abstractmethod
    def advantages(self, scores: torch.Tensor, judged: torch.Tensor, args: argparse.Namespace) -> torch.Tensor:
        """[rows] float32 and bool -> [rows] float32; a prompt's responses are neighbours."""

    def estimate(
        self, loss: str, scores: torch.Tensor, experience: Experience, kl_coeff: float, args: argparse.Namespace
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        if kl_coeff:
            log_ratio = (experience.log_probs - experience.ref_log_probs) * experience.mask
            scores = scores - kl_coeff * log_ratio.sum(dim=-1)
        advantages = self.advantages(scores, experience.counted[loss] > 0, args)
        return advantages.unsqueeze(-1) * experience.mask, None


class GroupRelative(CriticFree):
    """GRPO's: see `group_relative`."""

    name = "group"

    def advantages(self, scores: torch.Tensor, judged: torch.Tensor, args: argparse.Namespace) -> torch.Tensor:
        return group_relative(scores, judged, args.responses_per_prompt, normalize=not args.group_without_std)


class LeaveOneOut(CriticFree):
    """RLOO's: see `leave_one_out`."""

    name = "rloo"

    def advantages(self, scores: torch.Tensor, judged: torch.Tensor, args: argparse.Namespace) -> torch.Tensor:
        return leave_one_out(scores, judged, args.responses_per_prompt)


ESTIMATORS = {estimator.name: estimator for estimator in (GAE(), GroupRelative(), LeaveOneOut())}
