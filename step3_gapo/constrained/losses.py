"""CGPO's three policy losses (arXiv 2409.20370): policy gradient, reward-ranked fine-tuning, DPO on what passes.

Each says how many rows it trains a prompt, and which rewards it reads. Sequence log-probabilities are sums over the
actions of a response, EOS included. There is no critic, no ratio, no clip and no further KL penalty in any of them.

[ours], where the paper is silent: the numbers below (K, KL_max, β, λ); the reward is what the update sees of a score
(clipped, scaled, less the penalty for a response without EOS); a response or a reference answer without a reward is in
no mean; CRRAFT's and CODPO's means are over the prompts that have a choice.
"""

import argparse
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn.functional import logsigmoid

from step3_gapo.constrained.choices import best_response, calibrated_rewards, constrained_rewards, preference_pairs
from step3_gapo.experience import Experience
from step3_gapo.policy_losses import PolicyLoss
from utils.cli.types import non_negative_float, positive_float
from utils.combining.algorithm import Option
from utils.process.distributed import all_reduce_sum

RESPONSES, KL_MAX = 4, 20.0
REFERENCE = Option(
    "reference_answers",
    str,
    None,
    "field of the prompts' rows that holds the answer whose reward others are calibrated by; unless given, a sample of"
    " the policy before training for each prompt, kept in <output_dir>/reference_answers",
    metavar="FIELD",
)
CAP = Option("kl_max", positive_float, KL_MAX, "KL_max in nats a response, of tasks that name none")
BETA = Option("codpo_beta", positive_float, 0.1, "β of the implicit rewards")
LAMBDA = Option("codpo_lambda", non_negative_float, 1.0, "λ of the likelihood of the chosen response")


@dataclass(frozen=True)
class TaskResponses:
    """The responses to this rank's prompts of a task, n of them, K to each, and the reference answers.

    The last of C columns is the reference answers' where the loss reads them, C = K + 1; else C = K.

    Attributes:
        rows: [n, C] int64, of a rollout.
        rewards: [n, C] float32.
        counts: [n, C] bool, where there is a reward.
        passes: [n, C] bool, where no judge fails it.
        log_ratio: [n, C] float32, log π − log π₀ of a response, at the policy that has sampled.
        responses: K.
        kl_max: KL_max of the task.
    """

    rows: torch.Tensor
    rewards: torch.Tensor
    counts: torch.Tensor
    passes: torch.Tensor
    log_ratio: torch.Tensor
    responses: int
    kl_max: float

    def own(self, values: torch.Tensor) -> torch.Tensor:
        """Those of the policy's responses: [n, C] -> [n, K]."""
        return values[:, : self.responses]

    @property
    def calibrated(self) -> torch.Tensor:
        """[n, K] R_c, where there are reference answers."""
        return calibrated_rewards(self.own(self.rewards), self.rewards[:, -1])

    @property
    def comparable(self) -> torch.Tensor:
        """[n, K] bool, where a response and its reference answer have a reward."""
        return self.own(self.counts) & self.counts[:, -1:]


@dataclass(frozen=True)
class Choice:
    """What is trained of a task.

    Attributes:
        rows: [k] int64; targets, units: [k] float32.
        serves: [j] float32, 1 where a prompt, or a response, has something to learn from.
        references: [n] float32, 1 where a prompt's reference answer is learned, of losses that may do so.
    """

    rows: torch.Tensor
    targets: torch.Tensor
    units: torch.Tensor
    serves: torch.Tensor
    references: torch.Tensor | None = None


class ConstrainedLoss(PolicyLoss):
    """A loss of CGPO.

    Attributes:
        reads_references: whether it needs reference answers.
        least_responses: K at least.
        neighbours: rows that belong together, one after another.
    """

    per_response, by_task = True, True
    reads_references: ClassVar[bool] = True
    least_responses: ClassVar[int] = 1
    neighbours: ClassVar[int] = 1

    def rows(self, responses: int) -> int:
        return self.neighbours

    @abstractmethod
    def choose(self, task: TaskResponses) -> Choice:
        """What of a task's responses is trained on; called on every rank. As many rows whatever is chosen."""


class WeightedLikelihood(ConstrainedLoss):
    """− mean of target · log π(a|s) over the responses that count."""

    options = (REFERENCE, CAP)

    def loss(
        self,
        log_probs: torch.Tensor,
        batch: Experience,
        target: torch.Tensor,
        units: torch.Tensor,
        total: torch.Tensor,
        settings: argparse.Namespace,
    ) -> torch.Tensor:
        return weighted_likelihood(log_probs, target, units, total)


class CRPG(WeightedLikelihood):
    """Constrained, calibrated policy gradient: − mean of (R̃_i − mean R̃) log π(a_i|s_i); the target is R̃_i − mean R̃."""

    name, summary = "crpg", "CGPO's policy gradient of calibrated rewards that pass judges and a cap on the KL"

    def rows(self, responses: int) -> int:
        return responses

    def choose(self, task: TaskResponses) -> Choice:
        """All responses; the mean of R̃ is that of all ranks. None counts where R̃ is 0 throughout: there is no loss."""
        passes, counts = task.own(task.passes), task.comparable
        rewards = constrained_rewards(task.calibrated, task.own(task.log_ratio), passes, task.kl_max)
        rewards = rewards.masked_fill(~counts, 0.0)
        total, number = all_reduce_sum(torch.stack([rewards.sum(), counts.sum().float()]))
        targets = (rewards - total / number.clamp(min=1)).masked_fill(~counts, 0.0)
        serves, units = (rewards > 0).float(), (counts & (total > 0)).float()
        return Choice(task.own(task.rows).flatten(), targets.flatten(), units.flatten(), serves.flatten())


class CRRAFT(WeightedLikelihood):
    """Constrained, calibrated reward-ranked fine-tuning: − mean of R_c(a*) log π(a*|s) over the prompts that have an
    a*; the target is R_c(a*)."""

    name, summary = "crraft", "CGPO's likelihood of the best response that passes, or of the reference answer"

    def choose(self, task: TaskResponses) -> Choice:
        """One row a prompt: a*, or whatever, with unit 0."""
        rewards, log_ratio, passes = (task.own(each) for each in (task.rewards, task.log_ratio, task.passes))
        reference = task.counts[:, -1] & task.passes[:, -1]
        best, kept = best_response(rewards, log_ratio, passes, task.comparable, reference, task.kl_max)
        best, half = best.unsqueeze(-1), torch.full_like(task.rewards[:, -1:], 0.5)  # σ(0) of the reference itself
        targets = torch.cat([task.calibrated, half], dim=1).gather(1, best).squeeze(-1)
        kept, is_reference = kept.float(), (best.squeeze(-1) == task.responses).float()
        return Choice(task.rows.gather(1, best).squeeze(-1), targets * kept, kept, kept, kept * is_reference)


class CODPO(ConstrainedLoss):
    """Constrained online DPO: − log σ(β(Δ⁺ − Δ⁻)) − (λ/|a⁺|) log π(a⁺|s), a mean over the prompts that have a pair.

    Rows alternate between a⁺ and a⁻, and units count those of a⁺. The paper's eq. 15 prints the second term with the
    other sign, which would lower the likelihood of what is chosen.
    """

    name, summary = "codpo", "CGPO's DPO on the best response that passes and the worst that fails"
    options = (BETA, LAMBDA)
    reads_references, least_responses, neighbours = False, 2, 2

    def choose(self, task: TaskResponses) -> Choice:
        """Two rows a prompt: a⁺ and a⁻, or whatever, with unit 0."""
        *pair, kept = preference_pairs(*(task.own(each) for each in (task.rewards, task.passes, task.counts)))
        rows = task.rows.gather(1, torch.stack(pair, dim=-1)).flatten()
        kept = kept.float()
        units = torch.stack([kept, torch.zeros_like(kept)], dim=-1).flatten()
        return Choice(rows, torch.zeros_like(units), units, kept)

    def loss(
        self,
        log_probs: torch.Tensor,
        batch: Experience,
        target: torch.Tensor,
        units: torch.Tensor,
        total: torch.Tensor,
        settings: argparse.Namespace,
    ) -> torch.Tensor:
        return codpo_loss(
            log_probs, batch.ref_log_probs, batch.mask, units, total, settings.codpo_beta, settings.codpo_lambda
        )


def weighted_likelihood(
    log_probs: torch.Tensor, target: torch.Tensor, units: torch.Tensor, total: torch.Tensor
) -> torch.Tensor:
    """− Σ target · log π over the actions of the responses that count, by `total`; see `PolicyLoss.loss`."""
    return -(target * log_probs * units.unsqueeze(-1)).sum() / total


def codpo_loss(
    log_probs: torch.Tensor,
    ref_log_probs: torch.Tensor,
    mask: torch.Tensor,
    units: torch.Tensor,
    total: torch.Tensor,
    beta: float,
    weight: float,
) -> torch.Tensor:
    """See `CODPO`; scalar.

    Args:
        log_probs, ref_log_probs, mask: [2 n, time] float32, a⁺ in even and a⁻ in odd rows.
        units: [2 n] float32, 1 on the a⁺ of pairs that count.
        weight: λ.
    """
    of_policy = (log_probs * mask).sum(dim=-1)
    delta = of_policy - (ref_log_probs * mask).sum(dim=-1)
    likelihood = of_policy[::2] / mask[::2].sum(dim=-1)
    losses = -logsigmoid(beta * (delta[::2] - delta[1::2])) - weight * likelihood
    return (losses * units[::2]).sum() / total
