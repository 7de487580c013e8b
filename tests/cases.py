"""What of many cases runs always; `bash tests/run.sh --all` runs the rest, too."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest

EXHAUSTIVE = pytest.mark.exhaustive


def cases(every: Iterable[Any], always: Collection[Any]) -> list[Any]:
    """For `parametrize`: every case; those that are not among `always` are left to the exhaustive run.

    Args:
        every: a case is one value, or a tuple of the values of several arguments.
        always: those that stand for the others in every run.

    Raises:
        AssertionError: a case that is to run always does not exist.
    """
    every = list(every)
    assert all(case in every for case in always), [case for case in always if case not in every]
    return [case if case in always else beyond(case) for case in every]


def beyond(case: Any) -> Any:
    """A case of `parametrize` that is left to the exhaustive run."""
    return pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=EXHAUSTIVE)
