"""`--dry_run`: what a run would be, before anything expensive starts.

Everything that a run checks before it builds models has been checked when these functions are called. They build the
architectures without memory for weights, count batches and steps, and plan the memory of every phase. Nothing is
written, no process group is formed, no weight is read. A plan that does not fit is a `Failure`, after the tables.
"""

import argparse
import importlib
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from utils.cli.arguments import warmup_steps
from utils.data.encoding import Encoded
from utils.memory.advice import HOST_FLAGS, as_flags, cheapest_fit, excess
from utils.memory.plan import Phase, phases_of
from utils.memory.sizes import DEVICE, GIB, HOST, PlannedModel, Surroundings, shape_of
from utils.models.checking import lacks_weights
from utils.process.distributed import is_main, world_size
from utils.process.errors import Failure, UserError

MIB = 2**20
FIRST_USE = 40 * MIB  # of the process group, of engines and kernels; measured on a CPU with models of no size
CUDA_OVERHEAD, HOST_OVERHEAD = 2 * GIB, 2 * GIB  # of CUDA's context and NCCL; of Python: assumed
USABLE = 0.97  # of a GPU's memory: cards sold with 80 GB report 79.1 to 79.3 GiB, and freed memory is in pieces
PLANS = ("plan_ranks", "plan_devices", "plan_memory", "plan_host_memory", "plan_machines")
ITEMS = (
    "libraries", "parameter being read", "trained weights", "frozen weights", "gathered weights", "flattening",
    "optimizer", "gradients", "objectives' gradients", "reduction buckets", "reduction", "optimizer step",
    "activations", "kept graphs", "kept head inputs", "logits", "keys and values", "exported weights",
)  # fmt: skip


@dataclass(frozen=True)
class Described:
    """A model of the plan, as people know it.

    Attributes:
        model: without memory for weights.
        uses: what it is in the plan; several where several engines hold it.
        note: its tokenizer, or what starts from it.
    """

    role: str
    path: str
    model: Any
    uses: tuple[str, ...]
    note: str


def settle_ranks(args: argparse.Namespace) -> None:
    """In a dry run, make sure that there is a device for every rank; `--plan_ranks` are the ranks from here on.

    Raises:
        UserError: more ranks than devices, more machines than ranks; flags of a dry run in a real one.
    """
    if not args.dry_run:
        for name in PLANS:
            if getattr(args, name) is not None:
                raise UserError(f"--{name}: serves --dry_run alone")
        return
    ranks = args.plan_ranks or world_size()
    devices = args.plan_devices or torch.cuda.device_count() or ranks
    if ranks > devices:
        raise UserError(f"--plan_ranks: {ranks} ranks, but there are {devices} devices (--plan_devices)")
    if (args.plan_machines or 1) > ranks:
        raise UserError(f"--plan_machines: {args.plan_machines} machines, but {ranks} ranks")
    os.environ["WORLD_SIZE"] = str(ranks)  # what a launcher would set: batches and steps are counted with it


def surroundings(
    args: argparse.Namespace,
    longest: tuple[int, int],
    objectives: int = 1,
    compares: bool = False,
    sequences: int = 1,
    shares_prompts: bool = False,
) -> Surroundings:
    """Where the run is planned: on GPUs where there are some or `--plan_memory` says so, else on this CPU."""
    ranks, machines = world_size(), args.plan_machines or 1
    on_gpu = torch.cuda.is_available() or args.plan_memory is not None
    common = {"longest": longest, "machines": machines, "sequences": sequences}
    common |= {"objectives": objectives, "compares": compares, "shares_prompts": shares_prompts}
    host: int | None = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if args.plan_host_memory is not None:
        host = int(args.plan_host_memory * GIB)
    elif args.plan_memory is not None:  # of another machine, maybe, whose own memory is not known
        host = None
    host_share = host and host // -(-ranks // machines)
    if not on_gpu:
        return Surroundings(ranks, False, host_share, host_share, library_bytes(args), 0, **common)
    found = args.plan_memory * GIB if args.plan_memory else torch.cuda.get_device_properties(0).total_memory
    return Surroundings(ranks, True, int(USABLE * found), host_share, CUDA_OVERHEAD, HOST_OVERHEAD, **common)


def library_bytes(args: argparse.Namespace) -> int:
    """What this process takes now, without any model, once it has imported what a run imports later; on a CPU."""
    if args.zero_stage:
        importlib.import_module("deepspeed.runtime.zero.muon.muon_optimizer")  # brings torch's compiler
    with suppress(ImportError):
        importlib.import_module("matplotlib.pyplot")
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") + FIRST_USE


def print_dry_run(
    args: argparse.Namespace,
    models: Sequence[Described],
    batches: dict[str, object],
    around: Surroundings,
) -> None:
    """Tables of models, batches and memory, on the main rank.

    Args:
        batches: lines of the batch arithmetic, by what they count.

    Raises:
        Failure: the plan does not fit, on the main rank.
    """
    if not is_main():
        return
    lines = ["", "dry run: nothing is written, no weights are read", "", *model_table(args, models), ""]
    lines += aligned([[name, str(value)] for name, value in batches.items()])
    planned = [PlannedModel(use, shape_of(m.model)) for m in models for use in m.uses]
    planned.sort(key=lambda model: model.use not in ("policy", "dpo", "dpa", "sft", "reward"))
    phases = phases_of(planned, args, around)
    lines += ["", *memory_table(phases, around), *verdict(planned, args, around, phases)]
    print("\n".join(lines), flush=True)
    if beyond := excess(phases, around):
        raise Failure(f"{Path(args.output_dir).name}: the plan does not fit in memory ({', '.join(beyond)}; see above)")


def optimizer_lines(args: argparse.Namespace, steps: int) -> dict[str, object]:
    """Optimizer steps and warm-up, for the table of batches."""
    return {"ranks": world_size(), "optimizer steps": steps, "of them warm-up": warmup_steps(args, steps)}


def model_table(args: argparse.Namespace, models: Sequence[Described]) -> list[str]:
    rows = [["model", "architecture", "parameters", "type", "positions", "tokenizer, start", "path"]]
    for described in models:
        config = described.model.config.get_text_config()
        parameters = sum(p.numel() for p in described.model.parameters())
        positions = getattr(config, "max_position_embeddings", None) or "no limit"
        name = type(described.model).__name__
        rows.append(
            [described.role, name, amount(parameters), args.dtype, str(positions), described.note, described.path]
        )
    missing = [d.path for d in dict.fromkeys(models) if lacks_weights(d.path)]
    return aligned(rows) + [f"no weights there yet: {path}" for path in dict.fromkeys(missing)]


def memory_table(phases: list[Phase], around: Surroundings) -> list[str]:
    """Phases side by side; what each takes of a device, item by item, and of the machine's memory."""
    device = size_of(around.memory) + (f" of a GPU ({USABLE:.0%} of it)" if around.on_gpu else " of the CPU")
    unit = GIB if max(phase.total(DEVICE) for phase in phases) > 10 * GIB else MIB
    rows = [[f"memory a rank in {'GiB' if unit == GIB else 'MiB'}, of {device}", *(phase.name for phase in phases)]]

    def row(label: str, sizes: list[int]) -> list[str]:
        return [label, *(f"{size / unit:.{1 if unit == GIB else 0}f}" if size else "" for size in sizes)]

    for place, prefix in ((DEVICE, ""), (HOST, "CPU: ")):
        for item in ITEMS:
            sizes = [phase.ledger[place, item] for phase in phases]
            rows += [row(prefix + item, sizes)] if any(sizes) else []
        totals = [phase.total(place) for phase in phases]
        rows += [row(prefix + "all", totals)] if any(totals) else []
    return aligned(rows)


def verdict(
    models: list[PlannedModel], args: argparse.Namespace, around: Surroundings, phases: list[Phase]
) -> list[str]:
    """Whether every phase fits, and what would make it fit."""
    beyond, largest = excess(phases, around), f"largest phase ({Path(args.output_dir).name}): {needs(phases, around)}"
    if not beyond:
        return ["every phase fits", largest]
    lines = [
        f"does not fit: {name} needs {size_of(size)} more {'on the CPU' if place == HOST else 'on the device'}"
        for name, (place, size) in beyond.items()
    ]
    changes, there = cheapest_fit(models, args, around)
    if changes is None:
        return [*lines, f"no flags of this stage make it fit; what comes closest: {needs(there, around)}", largest]
    lines += [f"the cheapest change that makes it fit: {as_flags(changes)}", f"  then {needs(there, around)}"]
    if around.on_gpu and HOST_FLAGS & changes.keys():
        changes, there = cheapest_fit(models, args, around, on_host=False)
        if changes is not None:
            lines += [f"with less of the host's memory: {as_flags(changes)}", f"  then {needs(there, around)}"]
    return [*lines, largest]


def needs(phases: list[Phase], around: Surroundings) -> str:
    """What the fullest phases take of a device and, beside GPUs, of the memory of a machine."""
    parts = [fullest_of(phases, DEVICE, 1, around.memory, "a GPU" if around.on_gpu else "the CPU a rank")]
    if around.on_gpu:
        parts.append(fullest_of(phases, HOST, around.ranks_here, around.host_memory, "a machine's own memory"))
    return "; ".join(parts)


def fullest_of(phases: list[Phase], place: str, ranks: int, memory: int | None, what: str) -> str:
    """The phase in which so many ranks take most of a place, and how much that is of what there is."""
    fullest = max(phases, key=lambda phase: phase.total(place))
    known = f" of {size_of(memory * ranks)}" if memory is not None else ""
    unchecked = "" if memory is not None else ", not checked: --plan_host_memory"
    return f"{size_of(fullest.total(place) * ranks)}{known} of {what} ({fullest.name}{unchecked})"


def aligned(rows: list[list[str]]) -> list[str]:
    """Lines of a table, columns as wide as their widest cell."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def size_of(size: int) -> str:
    """Bytes for people."""
    return f"{size / GIB:.1f} GiB" if size >= GIB else f"{size / MIB:.0f} MiB"


def amount(number: int) -> str:
    """A number of parameters, short."""
    for unit, name in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= unit:
            return f"{number / unit:.2f}{name}"
    return str(number)


def longest_of(examples: list[Encoded]) -> tuple[int, int]:
    """(tokens of the longest example, 0): in training, prompt and response are one sequence."""
    return max(example.length for example in examples), 0
