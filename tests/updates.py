"""Optimizer steps of the policy alone and of one critic alone, which step 3 takes together."""

import argparse

from step3_gapo.critics import Critic
from step3_gapo.experience import Experience
from step3_gapo.update import ActorUpdate, Scalars, StepBatches, accumulate_critic_gradient, optimizer_step
from utils.gradients.zero import step_if_finite


def policy_step(
    update: ActorUpdate, batches: StepBatches | list[Experience], on_policy: bool = False
) -> Scalars | None:
    """The policy's step; None where it was skipped."""
    batches = batches if isinstance(batches, StepBatches) else StepBatches(batches)
    scalars, not_finite = optimizer_step(update, [], batches, on_policy, update.args)
    return None if not_finite else scalars


def critic_step(critic: Critic, batches: list[Experience], args: argparse.Namespace) -> Scalars:
    """A critic's step."""
    losses = accumulate_critic_gradient(critic, batches, args)
    step_if_finite({"the gradient": critic.engine})
    return losses
