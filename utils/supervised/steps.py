"""Optimizer steps: which examples each of them takes, and how it takes them."""

import argparse
import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch

from utils.data.batching import enough, length_grouped_batches, length_grouped_steps
from utils.data.encoding import Encoded
from utils.engines.engines import Engine
from utils.gradients.zero import step_if_finite
from utils.process.distributed import all_reduce_max, all_reduce_sum, device, rank, world_size
from utils.process.rank_watch import beat
from utils.supervised.task import Task


def steps_per_epoch(examples: int, args: argparse.Namespace) -> int:
    """Optimizer steps of a pass over the training data."""
    per_step = args.per_device_train_batch_size * args.gradient_accumulation_steps * world_size()
    return math.ceil(examples / per_step)


def epoch_steps(
    examples: list[Encoded],
    args: argparse.Namespace,
    epoch: int,
    groups: Sequence[Hashable] | None = None,
    again: Callable[[Encoded], Encoded] = lambda example: example,
) -> list[list[list[Encoded]]]:
    """This rank's micro-batches of one optimizer step after another.

    Batches are drawn for a whole step and then cut, so that accumulating micro-batches equals one batch. In a rest of
    too few examples some are there again, so that no rank and no micro-batch is without work.

    Args:
        groups: of each example; every step has its share of every group.
        again: what an example is that is there again.
    """
    micro_batches = args.gradient_accumulation_steps
    size = args.per_device_train_batch_size * micro_batches * world_size()
    steps = length_grouped_steps([example.length for example in examples], size, args.seed, epoch, groups)
    found = []
    for indices in steps:
        step = [examples[i] for i in indices]
        step += map(again, enough(step, world_size())[len(step) :])
        found.append(split_evenly(step[rank() :: world_size()], micro_batches, again))
    return found


def split_evenly(items: list[Any], parts: int, again: Callable[[Any], Any] = lambda item: item) -> list[list[Any]]:
    """`items` in `parts` runs of nearly equal size; too few items start over, `again`, so that no part is empty."""
    items = items + list(map(again, enough(items, parts)[len(items) :]))
    return [items[i * len(items) // parts : (i + 1) * len(items) // parts] for i in range(parts)]


@torch.no_grad()
def per_example(
    engine: Engine | None,
    examples: list[Encoded],
    batch_size: int,
    measure: Callable[[list[Encoded]], torch.Tensor],
) -> torch.Tensor:
    """`measure` (b examples -> [b] or [b, k]) of every example, without gradients, shared out over the ranks.

    Args:
        engine: to be in evaluation mode for it, if there is one.

    Returns:
        [n, k + 1] float64 on the CPU of every rank; the last column is 1.
    """
    if engine:
        engine.eval()
    lengths = [example.length for example in examples]
    batches = length_grouped_batches(lengths, batch_size, 0, 0, rank(), world_size())
    own = owned(sum(batches, []), len(examples))
    table = None
    for indices in batches:
        beat("evaluating")
        values = measure([examples[i] for i in indices]).double().reshape(len(indices), -1)
        if table is None:
            table = values.new_zeros(len(examples), values.shape[1] + 1)
        table[torch.tensor(indices, device=table.device)] = torch.nn.functional.pad(values, (0, 1), value=1.0)
    if engine:
        engine.train()
    return all_reduce_sum(table * own.unsqueeze(-1)).cpu()


def owned(indices: list[int], number: int) -> torch.Tensor:
    """[number] float64, 1 where this rank is the first of those that measure an example: a rest smaller than the number
    of ranks is measured by several."""
    places = torch.zeros(number, dtype=torch.float64, device=device())
    places[torch.tensor(indices, device=device())] = world_size() - rank()
    return (places > 0) * (places == all_reduce_max(places.clone()))


def optimizer_step(
    engine: Engine, micro_batches: list[list[Encoded]], task: Task, scale: float
) -> tuple[dict[str, float], str | None]:
    """One optimizer step on this rank's micro-batches, unless its gradient is not finite on some rank.

    Returns:
        Means over the units of all ranks; what was not finite, for which the step was skipped, if anything.
    """
    totals: dict[str, torch.Tensor] = {}
    learning_rate = engine.get_lr()[0]
    for number, examples in enumerate(micro_batches, start=1):
        sums = task.sums(examples)
        engine.set_gradient_accumulation_boundary(number == len(micro_batches))
        engine.backward(sums["loss"] * scale)
        sums["units"] = torch.tensor(sum(map(task.units, examples)), device=device())
        totals = {name: totals.get(name, 0.0) + value.detach() for name, value in sums.items()}
    *sums, units = all_reduce_sum(torch.stack([value.float() for value in totals.values()])).tolist()
    means = dict(zip(totals, (value / units for value in sums), strict=False))
    _, not_finite = step_if_finite({"the gradient": engine})
    return ({}, not_finite) if not_finite else (means | {"learning_rate": learning_rate}, None)
