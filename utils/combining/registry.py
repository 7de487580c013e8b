"""The methods there are: classes found in rooms of methods, and a user's own file."""

import importlib
import inspect
import pkgutil
from collections.abc import Sequence

from utils.cli.plugins import load_class
from utils.combining.algorithm import AdvantageLevel, Algorithm, GradientLevel, LossLevel, ScoreLevel
from utils.process.errors import UserError

LEVELS = (ScoreLevel, AdvantageLevel, LossLevel, GradientLevel)  # in this order --help has them
OF_PAIRS = (LossLevel, GradientLevel)  # of stages without scores


def find_methods(*rooms: str) -> dict[str, type[Algorithm]]:
    """{name: class} of all methods in the modules of these packages, by level and name."""
    found = set()
    for room in rooms:
        for module in pkgutil.iter_modules(importlib.import_module(room).__path__):
            members = vars(importlib.import_module(f"{room}.{module.name}")).values()
            found |= {member for member in members if is_method(member)}
    names = [method.name for method in found]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"several methods are called {', '.join(sorted(twice))}")
    return {method.name: method for method in sorted(found, key=lambda method: (level_of(method), method.name))}


def is_method(value: object) -> bool:
    """Whether something is a class of a method that can be built."""
    is_class = inspect.isclass(value) and issubclass(value, Algorithm) and hasattr(value, "name")
    return is_class and not inspect.isabstract(value)


def level_of(method: type[Algorithm]) -> int:
    return next(number for number, level in enumerate(LEVELS) if issubclass(method, level))


def own_method(spec: str, levels: tuple[type[Algorithm], ...] = LEVELS) -> type[Algorithm]:
    """The class that 'file.py:Class' or 'module:Class' names.

    Args:
        levels: one of which it has to be, of those there are.

    Raises:
        UserError: there is none, or it is no method.
    """
    method = load_class(spec, f"--algorithm {spec}", levels)
    if missing := [word for word in ("name", "summary") if not isinstance(vars(method).get(word), str)]:
        raise UserError(f"--algorithm {spec}: the class does not say its {' and '.join(missing)}")
    return method


def method_called(
    name: str, methods: dict[str, type[Algorithm]], levels: tuple[type[Algorithm], ...] = LEVELS
) -> type[Algorithm] | None:
    """The method of `--algorithm NAME`; None where there is none.

    Raises:
        UserError: see `own_method`; or it has the name of one of `methods`.
    """
    if ":" not in name:
        return methods.get(name)
    method = own_method(name, levels)
    if method.name in methods:
        raise UserError(f"--algorithm {name}: calls itself {method.name}, which is another method")
    return method


def describe(methods: Sequence[type[Algorithm]]) -> str:
    """All of them in words, for --help."""
    return "; ".join(f"{method.name}: {method.summary}" for method in methods)
