"""The methods of this stage, and that of a run."""

import argparse
import functools

from utils.combining.algorithm import Algorithm, GradientLevel, LossLevel
from utils.combining.registry import OF_PAIRS, find_methods, method_called

METHODS = find_methods("step3_dpo.algorithms", "utils.combining")


@functools.cache
def method_named(name: str) -> type[Algorithm] | None:
    """The method of `--algorithm NAME`, or of a user's file; None where there is none of that name."""
    return method_called(name, METHODS, OF_PAIRS)


def method_of(args: argparse.Namespace) -> type[Algorithm]:
    return method_named(args.algorithm)


def compares_gradients(args: argparse.Namespace) -> bool:
    """Whether a run computes Gram matrices."""
    return issubclass(method_of(args), GradientLevel) or args.log_gradients


def reads_margins(args: argparse.Namespace) -> bool:
    """Whether the method takes margins in place of pairs."""
    method = method_of(args)
    return issubclass(method, LossLevel) and method.reads_margins
