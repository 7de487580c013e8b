"""Flags that a run may go on with otherwise: where and how often it writes, how its models lie on the devices."""

import argparse
from typing import Any

_free: set[str] = set()


def add_free(parser: argparse._ActionsContainer, name: str, **settings: Any) -> None:
    """`add_argument`, of a flag of which a run may go on from a checkpoint with another value."""
    _free.add(parser.add_argument(name, **settings).dest)


def free_flags() -> frozenset[str]:
    """Names of all flags of this process that are free."""
    return frozenset(_free)
