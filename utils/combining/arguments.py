"""The flags that choose a method and say how its objectives combine, of every stage that has several."""

import argparse
from collections.abc import Callable, Collection, Mapping, Sequence

from utils.cli.arguments import Parser
from utils.cli.types import named_number, positive_int
from utils.combining.algorithm import Algorithm, GradientLevel, options_of, owners
from utils.combining.registry import describe
from utils.process.errors import AT_ONCE, Problems

OWN = "FILE.py:CLASS"
Methods = Mapping[str, type[Algorithm]]  # those of a stage, by name


def own_method_of(
    argv: list[str] | None, method_named: Callable[[str], type[Algorithm] | None]
) -> list[type[Algorithm]]:
    """The user's class that `--algorithm FILE.py:Class` names, whose flags have to be known before the others are read.

    Raises:
        UserError: see `utils.combining.registry.own_method`.
    """
    early = Parser(add_help=False)
    early.add_argument("--algorithm", nargs="?")
    name = early.parse_known_args(argv)[0].algorithm
    return [method_named(name)] if name and ":" in name else []


def add_algorithm_argument(group: argparse._ArgumentGroup, known: Methods, methods: Sequence[type[Algorithm]]) -> None:
    """`--algorithm`; `methods` are those known and a user's own."""

    def algorithm_name(text: str) -> str:
        if ":" not in text and text not in known:
            raise argparse.ArgumentTypeError(f"invalid choice: {text!r} (choose from {', '.join(known)})")
        return text

    group.add_argument(
        "--algorithm",
        type=algorithm_name,
        required=True,
        metavar=f"{{{','.join(known)},{OWN}}}",
        help=f"a method, or {OWN}, one of your own (see examples). {describe(methods)}",
    )


def add_weight_arguments(group: argparse._ArgumentGroup, methods: Sequence[type[Algorithm]]) -> None:
    """`--preference` and `--normalize_coefficients`."""
    group.add_argument(
        "--preference",
        type=named_number,
        nargs="+",
        default=[],
        metavar="NAME=W",
        help="weight of every objective, or task, sum 1 (default: equal), for "
        + ", ".join(method.name for method in methods if method.reads_preference),
    )
    group.add_argument(
        "--normalize_coefficients",
        action="store_true",
        help="methods that weigh gradients: scale the coefficients of the losses to sum 1",
    )


def add_scope_argument(group: argparse._ArgumentGroup) -> None:
    """`--gradient_scope`."""
    group.add_argument(
        "--gradient_scope",
        choices=("last_layer", "full"),
        default=None,
        help="gradients that gradient-level algorithms compare: those of the output head (last_layer: cheap, the"
        " paper's choice, and the default), or of all trained parameters (full: exact, a backward pass an objective;"
        " the default with --lora_dim, where the head is not trained)",
    )


def add_logging_arguments(group: argparse._ArgumentGroup) -> None:
    """`--gram_every` and `--log_gradients`."""
    group.add_argument(
        "--gram_every",
        type=positive_int,
        default=None,
        metavar="K",
        help="compare gradients in every K-th optimizer step; the coefficients serve until then: an approximation;"
        " 1 unless given",
    )
    group.add_argument(
        "--log_gradients",
        action="store_true",
        help="log norms and cosines of the objectives' last-layer gradients for algorithms that do not need them, too",
    )


def settle_method(
    args: argparse.Namespace, method: type[Algorithm], known: Methods, from_file: Collection[str]
) -> None:
    """Fill in the options of the method, and the gradients that it compares.

    Options that a file has for its own method are unset where the command line names another one.
    """
    if "algorithm" not in from_file:
        for option, _ in owners(list(known.values())):
            if option.name in from_file and option not in method.options:
                setattr(args, option.name, None)
    vars(args).update(options_of(method, args))
    if args.gradient_scope is None:
        weighs_gradients = issubclass(method, GradientLevel)
        args.gradient_scope = "full" if args.lora_dim and weighs_gradients else "last_layer"


def check_method_options(
    args: argparse.Namespace, method: type[Algorithm], known: Methods, problems: Problems = AT_ONCE
) -> None:
    """Problems: options that the method does not read."""
    for option, names in owners(list(known.values())):
        if option not in method.options and getattr(args, option.name) is not None:
            problems.add(f"--{option.name}: --algorithm {args.algorithm} has none (it serves {', '.join(names)})")
    if args.preference and not method.reads_preference:
        readers = ", ".join(other.name for other in known.values() if other.reads_preference)
        problems.add(f"--preference: --algorithm {args.algorithm} has none (it serves {readers})")
    if not issubclass(method, GradientLevel):
        if args.normalize_coefficients:
            problems.add(f"--normalize_coefficients: --algorithm {args.algorithm} weighs no gradients")
        if args.gradient_scope == "full":
            problems.add(f"--gradient_scope full: --algorithm {args.algorithm} compares no gradients")
        for flag in ("gram_fraction", "gram_every"):
            if getattr(args, flag, None) is not None:
                problems.add(f"--{flag}: --algorithm {args.algorithm} weighs no gradients")
