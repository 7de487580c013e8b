"""Which advantage (`--advantage`): from the scores of responses to one advantage, and one return, an action.

An estimator says whether it learns values (a critic a loss) and where the KL penalty goes. All have one signature.
"""

import argparse
from abc import ABC, abstractmethod
from typing import ClassVar

import torch

from step3_gapo import ppo
from step3_gapo.experience import Experience


class Estimator(ABC):
    """One way to tell how much better than expected an action was.

    Attributes:
        name: of `--advantage`.
        learns_values: whether critics are trained on the returns.
        kl_in: "reward" where the penalty is part of every token's reward.
    """

    name: ClassVar[str]
    learns_values: ClassVar[bool]
    kl_in: ClassVar[str]

    @abstractmethod
    def estimate(
        self, loss: str, scores: torch.Tensor, experience: Experience, args: argparse.Namespace
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Advantages and returns for one loss.

        Args:
            loss: its name, of `Experience.values`.
            scores: [rows] float32 training scores of the responses.

        Returns:
            [rows, time] float32 each, zero on padding.
        """


class GAE(Estimator):
    """Generalized advantage estimation on per-token rewards with the KL penalty in them (GAPO paper, eq. 10-14)."""

    name, learns_values, kl_in = "gae", True, "reward"

    def estimate(
        self, loss: str, scores: torch.Tensor, experience: Experience, args: argparse.Namespace
    ) -> tuple[torch.Tensor, torch.Tensor]:
        mask = experience.mask
        rewards = ppo.kl_penalized_rewards(scores, experience.log_probs, experience.ref_log_probs, mask, args.kl_coeff)
        return ppo.generalized_advantage_estimate(rewards, experience.values[loss], mask, args.gamma, args.gae_lambda)


ESTIMATORS = {estimator.name: estimator for estimator in (GAE(),)}
