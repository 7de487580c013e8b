"""The command line of the benchmarks."""

import argparse
from pathlib import Path

import torch

from tests.benchmarks.accumulation import MICRO_BATCHES
from tests.benchmarks.peer_environment import check_environment
from tests.benchmarks.section import Settings
from tests.benchmarks.synthetic import SIZES, Load
from utils.cli.arguments import Parser
from utils.cli.types import positive_int
from utils.models.configs import DTYPES
from utils.output.files import check_writable
from utils.process.errors import UserError

PEERS = "peers"
STAGES = (0, 1, 2, 3)
FULL = {
    "stages": STAGES, "ranks": (1, 2), "objectives": (2, 3, 4), "rounds": 5, "batch_size": 64, "prompt_length": 96,
    "response_length": 96, "memory_size": "20m", "loading_size": "200m", "growth_sizes": ("tiny", "1m", "5m", "20m"),
    "growth_objectives": (1, 2, 4, 8), "peer_sizes": ("tiny", "14m"),
}  # fmt: skip
QUICK = FULL | {
    "stages": (2, 3), "ranks": (2,), "objectives": (2,), "rounds": 2, "batch_size": 16, "prompt_length": 48,
    "response_length": 48, "memory_size": "5m", "loading_size": "20m", "growth_sizes": ("tiny", "1m"),
    "growth_objectives": (1, 4), "peer_sizes": ("tiny",),
}  # fmt: skip


def parse_settings(sections: list[str], argv: list[str] | None = None) -> Settings:
    """Settings from the command line, complete and checked."""
    parser = Parser(
        prog="python -m tests.benchmarks",
        description="Time and memory of gradient-level algorithms against fixed weights, and what single tricks bring."
        " Models are random; every ratio is measured side by side. Prints tables; about 15 minutes on 2 cores.",
        formatter_class=argparse.HelpFormatter,
    )
    parser.add_argument(
        "--sections", nargs="+", choices=sections, help=f"what to run (all; {PEERS} with --peer_environment)"
    )
    parser.add_argument("--quick", action="store_true", help="small settings: a look in a minute or two")
    parser.add_argument("--output", metavar="PATH", help="also write the tables to this file: .md or .json")
    add_size_arguments(parser)
    add_layout_arguments(parser)
    add_peer_arguments(parser)
    args = parser.parse_args(argv)
    for name, value in (QUICK if args.quick else FULL).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    load = Load(args.model_size, args.dtype, args.batch_size, args.prompt_length, args.response_length)
    names = ("stages", "ranks", "objectives", "growth_sizes", "growth_objectives", "peer_sizes")
    lists = {name: tuple(dict.fromkeys(getattr(args, name))) for name in names}
    asked = args.sections or [name for name in sections if name != PEERS or args.peer_environment]
    settings = Settings(
        load, tuple(name for name in sections if name in asked), rounds=args.rounds, memory_size=args.memory_size,
        loading_size=args.loading_size, output=args.output, peer_environment=args.peer_environment, **lists,
    )  # fmt: skip
    check_settings(settings)
    if PEERS in settings.sections:
        check_environment(args.peer_environment, args.make_peer_environment)
    return settings


def default_of(name: str) -> str:
    """For the help: the default, and that of --quick."""
    full, quick = (" ".join(map(str, d[name])) if isinstance(d[name], tuple) else d[name] for d in (FULL, QUICK))
    return f"({full}; quick: {quick})"


def add_size_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("sizes")
    group.add_argument("--model_size", choices=SIZES, default="tiny", help="policy and critics, by name (tiny)")
    group.add_argument("--dtype", choices=DTYPES, default="fp32", help="precision of the models (fp32)")
    group.add_argument(
        "--batch_size",
        type=positive_int,
        help=f"sequences of an optimizer step over all ranks {default_of('batch_size')}",
    )
    group.add_argument("--prompt_length", type=positive_int, help=f"tokens {default_of('prompt_length')}")
    group.add_argument("--response_length", type=positive_int, help=f"tokens {default_of('response_length')}")
    for name, sections in (
        ("memory_size", "sections memory and objectives_memory"),
        ("loading_size", "section loading"),
    ):
        group.add_argument(f"--{name}", choices=SIZES, help=f"model of {sections} {default_of(name)}")
    group.add_argument(
        "--growth_sizes",
        nargs="+",
        choices=SIZES,
        help=f"models of sections growth, rollout and generation {default_of('growth_sizes')}",
    )


def add_layout_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("layouts and rounds")
    group.add_argument(
        "--stages", type=int, nargs="+", choices=STAGES, metavar="STAGE", help=f"of ZeRO {default_of('stages')}"
    )
    for name, what in (
        ("ranks", "numbers of ranks"),
        ("objectives", "numbers of objectives in sections step, critic_free and memory"),
        ("growth_objectives", "numbers of objectives in sections growth and pama"),
    ):
        group.add_argument(
            f"--{name}", type=positive_int, nargs="+", metavar=name[0].upper(), help=f"{what} {default_of(name)}"
        )
    group.add_argument("--rounds", type=positive_int, help=f"times that everything is measured {default_of('rounds')}")


def add_peer_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("section peers")
    group.add_argument(
        "--peer_environment",
        metavar="FOLDER",
        help="virtual environment with the packages of tests/benchmarks/peers.txt",
    )
    group.add_argument(
        "--make_peer_environment", action="store_true", help="install them there with pip where they are missing"
    )
    group.add_argument(
        "--peer_sizes", nargs="+", choices=SIZES, help=f"models that are compared {default_of('peer_sizes')}"
    )


def check_settings(settings: Settings) -> None:
    """Raise UserError for settings that cannot be measured."""
    devices = torch.cuda.device_count()
    for ranks in settings.ranks:
        if settings.load.batch % (ranks * MICRO_BATCHES):
            raise UserError(
                f"--batch_size {settings.load.batch}: not a multiple of {ranks} ranks × {MICRO_BATCHES} micro-batches"
            )
        if torch.cuda.is_available() and ranks > devices:
            raise UserError(f"--ranks {ranks}: there are {devices} GPUs")
    if settings.output:
        path = Path(settings.output)
        if path.suffix not in (".md", ".json"):
            raise UserError(f"--output {path}: must end in .md or .json")
        check_writable(path.parent, "--output")
