"""What a run needs, as its method, its estimator of advantages and its policy loss declare it."""

import argparse
import functools
from dataclasses import dataclass

from step3_gapo.advantages import ESTIMATORS, Estimator
from step3_gapo.constrained.losses import CODPO, CRPG, CRRAFT
from step3_gapo.policy_losses import ClippedSurrogate, PolicyLoss
from utils.combining.algorithm import AdvantageLevel, Algorithm, GradientLevel, ScoreLevel
from utils.combining.registry import find_methods, method_called
from utils.data.batching import accumulates
from utils.memory.plan import keeps_head_inputs

METHODS = find_methods("step3_gapo.algorithms", "utils.combining")
POLICY_LOSSES: dict[str, PolicyLoss] = {loss.name: loss for loss in (ClippedSurrogate(), CRPG(), CRRAFT(), CODPO())}


@dataclass(frozen=True)
class Needs:
    """Read by engine, rollout, update, dry run and memory plan, which know no names of methods.

    Attributes:
        losses: names of the policy's losses, each with a target of its own: an advantage, or what a task has chosen.
        critics: names whose values are learned.
        starts: those objectives whose score models may become their critics.
        scores: whether the method follows the scores of all ranks, rollout by rollout; advantages: what became of them.
        gram: whether Gram matrices of the losses' gradients are computed, to weigh objectives or to log them.
        pools: whether the method wants sums over a whole optimizer step before its backward passes.
    """

    losses: list[str]
    critics: list[str]
    starts: list[str]
    scores: bool
    advantages: bool
    gram: bool
    pools: bool


@functools.cache
def method_named(name: str) -> type[Algorithm] | None:
    """The method of `--algorithm NAME`, or of a user's file; None where there is none of that name."""
    return method_called(name, METHODS)


def method_of(args: argparse.Namespace) -> type[Algorithm]:
    return method_named(args.algorithm)


def policy_loss_of(args: argparse.Namespace) -> PolicyLoss:
    """That of `--policy_loss`; PPO's unless given."""
    return POLICY_LOSSES[args.policy_loss or ClippedSurrogate.name]


def estimator_of(args: argparse.Namespace) -> Estimator | None:
    """That of `--advantage`, or the one that serves the method; None where the loss goes by no advantage."""
    if policy_loss_of(args).by_task:
        return None
    return ESTIMATORS[args.advantage or method_of(args).default_advantage]


def learns_values(args: argparse.Namespace) -> bool:
    """Whether there are critics."""
    estimator = estimator_of(args)
    return estimator is not None and estimator.learns_values


def compares_gradients(args: argparse.Namespace) -> bool:
    """Whether a run computes Gram matrices."""
    return issubclass(method_of(args), GradientLevel) or args.log_gradients


def critics_start_from_scores(args: argparse.Namespace) -> bool:
    """Whether every optimized objective has a critic of its own, which is not an adapter."""
    own = args.critic == "separate" and not args.lora_dim and not issubclass(method_of(args), ScoreLevel)
    return own and learns_values(args)


def needs_of(args: argparse.Namespace, algorithm: Algorithm) -> Needs:
    """What a run of this method needs under these flags."""
    losses = algorithm.losses
    critics = losses if learns_values(args) else []
    starts = critics if critics_start_from_scores(args) else []
    follows = type(algorithm).observe is not Algorithm.observe
    follows_advantages = type(algorithm).observe_advantages is not Algorithm.observe_advantages
    pools = isinstance(algorithm, AdvantageLevel) and algorithm.pools
    return Needs(losses, critics, starts, follows, follows_advantages, compares_gradients(args), pools)


def kl_in(args: argparse.Namespace) -> str | None:
    """Where the KL penalty goes: "reward" or "loss"; None where there is none."""
    estimator = estimator_of(args)
    return None if estimator is None else args.kl_in or estimator.kl_in


def looks_before(args: argparse.Namespace, needs: Needs) -> bool:
    """Whether all micro-batches of a step have a forward pass without gradients before the one that goes on, as what
    the step's coefficients follow from is known only then."""
    return keeps_head_inputs(args, needs.gram) or (needs.pools and accumulates(args))


def step_sizes(args: argparse.Namespace) -> tuple[int, int]:
    """Responses that a rollout has, to be trained on, and an optimizer step, on a rank; of tasks with other numbers of
    responses the rollout has fewer."""
    prompts, responses = args.per_device_prompt_batch_size * args.generation_batches, args.responses_per_prompt or 1
    rollout = prompts * policy_loss_of(args).rows(responses)
    return rollout, args.per_device_train_batch_size * args.gradient_accumulation_steps


def update_tells_log_probs(args: argparse.Namespace, needs: Needs) -> bool:
    """Whether the log-probabilities of what was sampled come from the update's own forward pass: where nothing asks for
    them before, the policy is still the same in all of the update, and no other pass would take its place."""
    if args.keep_graphs:  # there is a pass before, with which the update goes on
        return False
    rollout, step = step_sizes(args)
    return kl_in(args) == "loss" and rollout == step and args.ppo_epochs == 1 and not looks_before(args, needs)
