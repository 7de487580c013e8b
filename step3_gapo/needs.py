"""What a run needs, as its method, its estimator of advantages and its policy loss declare it."""

import argparse
import functools
from dataclasses import dataclass

from step3_gapo.advantages import ESTIMATORS, Estimator
from utils.combining.algorithm import Algorithm, GradientLevel, ScoreLevel
from utils.combining.registry import find_methods, method_called

METHODS = find_methods("step3_gapo.algorithms", "utils.combining")


@dataclass(frozen=True)
class Needs:
    """Read by engine, rollout, update, dry run and memory plan, which know no names of methods.

    Attributes:
        losses: names of the policy's losses, each with an advantage of its own.
        critics: names whose values are learned.
        starts: those objectives whose score models may become their critics.
        scores: whether the method follows the scores of all ranks, rollout by rollout.
        gram: whether Gram matrices of the losses' gradients are computed, to weigh objectives or to log them.
    """

    losses: list[str]
    critics: list[str]
    starts: list[str]
    scores: bool
    gram: bool


@functools.cache
def method_named(name: str) -> type[Algorithm] | None:
    """The method of `--algorithm NAME`, or of a user's file; None where there is none of that name."""
    return method_called(name, METHODS)


def method_of(args: argparse.Namespace) -> type[Algorithm]:
    return method_named(args.algorithm)


def estimator_of(args: argparse.Namespace) -> Estimator:
    """That of `--advantage`, or the one that serves the method."""
    return ESTIMATORS[args.advantage or method_of(args).default_advantage]


def compares_gradients(args: argparse.Namespace) -> bool:
    """Whether a run computes Gram matrices."""
    return issubclass(method_of(args), GradientLevel) or args.log_gradients


def critics_start_from_scores(args: argparse.Namespace) -> bool:
    """Whether every optimized objective has a critic of its own, which is not an adapter."""
    own = args.critic == "separate" and not args.lora_dim and not issubclass(method_of(args), ScoreLevel)
    return own and estimator_of(args).learns_values


def needs_of(args: argparse.Namespace, algorithm: Algorithm) -> Needs:
    """What a run of this method needs under these flags."""
    losses = algorithm.losses
    critics = losses if estimator_of(args).learns_values else []
    starts = critics if critics_start_from_scores(args) else []
    follows = type(algorithm).observe is not Algorithm.observe
    return Needs(losses, critics, starts, follows, compares_gradients(args))
