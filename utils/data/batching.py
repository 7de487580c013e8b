"""Batches: padding on either side, and grouping by length so that little padding is computed on."""

import argparse
import itertools
import math
import random
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

MEGABATCH = 50  # batches sorted together: enough to group well, few enough to stay random


def accumulates(args: argparse.Namespace) -> bool:
    """Whether an optimizer step has several micro-batches, under the flags of any stage."""
    return args.gradient_accumulation_steps > 1 or getattr(args, "micro_batch_tokens", 0) > 0


def share_of(fraction: float, number: int) -> int:
    """The least whole number that is at least so much of another one, whatever the rounding of floats."""
    return math.ceil(fraction * number - 1e-9)


def evenly_spread(items: Sequence[Any], most: int | None) -> list[Any]:
    """So many of the items at most, in their order and spread over all of them; None: all."""
    count = len(items) if most is None else min(len(items), most)
    return [items[index * len(items) // count] for index in range(count)]


def right_pad(sequences: Sequence[Sequence[int]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """b id lists -> (ids, mask), both [b, t] int64 with t the longest; the mask comes from the lengths."""
    return _pad(sequences, pad_id, "right")


def left_pad(sequences: Sequence[Sequence[int]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Like `right_pad`, with the padding in front, as generation wants it."""
    return _pad(sequences, pad_id, "left")


def _pad(sequences: Sequence[Sequence[int]], pad_id: int, side: str) -> tuple[torch.Tensor, torch.Tensor]:
    rows = [torch.tensor(ids, dtype=torch.int64) for ids in sequences]
    ids = pad_sequence(rows, batch_first=True, padding_value=pad_id, padding_side=side)
    mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True, padding_side=side)
    return ids, mask


def length_grouped_batches(
    lengths: Sequence[int], batch_size: int, seed: int, epoch: int, rank: int = 0, world_size: int = 1
) -> list[list[int]]:
    """This rank's batches of an epoch, as lists of indices into `lengths`; all ranks get the same number of
    them.

    Each index is in one batch of one rank. Batches have `batch_size` indices, but for one: the rest of the
    epoch, which is dealt out evenly. Only a rest of fewer than `world_size` indices repeats some, so that
    no rank is left without work. Deterministic in (seed, epoch), the same on every rank.
    """
    steps = length_grouped_steps(lengths, batch_size * world_size, seed, epoch)
    return [enough(indices, world_size)[rank::world_size] for indices in steps]


def length_grouped_steps(
    lengths: Sequence[int], size: int, seed: int, epoch: int, groups: Sequence[Hashable] | None = None
) -> list[list[int]]:
    """The indices of an epoch in steps of `size`, but for one, with those of like lengths together; each index once.

    Args:
        groups: what every index belongs to. Each step then has of every group the share that there is of it, as nearly
            as whole numbers allow, lengths are alike within groups, and steps are of one size, give or take one.
    """
    generator = random.Random(f"{seed}:{epoch}")
    order = list(range(len(lengths)))
    generator.shuffle(order)
    grouped = []
    for start in range(0, len(order), MEGABATCH * size):
        part = sorted(order[start : start + MEGABATCH * size], key=lambda index: lengths[index])
        grouped += part if groups is None else interleaved(part, [groups[index] for index in part])
    count = math.ceil(len(grouped) / size)
    ends = [n * size if groups is None else n * len(grouped) // count for n in range(count + 1)]
    steps = [grouped[start:end] for start, end in itertools.pairwise(ends)]
    generator.shuffle(steps)
    return steps


def interleaved(items: Sequence[Any], groups: Sequence[Hashable]) -> list[Any]:
    """Items with those of each group spread evenly over all of them, in their order."""
    counts, seen = Counter(groups), Counter()
    places = []
    for group in groups:
        places.append((seen[group] + 0.5) / counts[group])
        seen[group] += 1
    return [items[index] for index in sorted(range(len(items)), key=lambda index: places[index])]


def enough(items: list[Any], count: int) -> list[Any]:
    """The items, the first of them once more where there are fewer than `count`."""
    return (items * count)[:count] if len(items) < count else items


def groups_by_tokens(lengths: Sequence[Sequence[int]], budget: int, at_least: int = 1) -> list[list[int]]:
    """Indices into `lengths` in groups of like length, each with width × size <= `budget` tokens.

    Args:
        lengths: of every sequence its parts that are padded apart (prompt, response); a group is as wide as the
            longest of each part together.
        budget: tokens of a group, padding included; a sequence beyond it is alone.
        at_least: groups that there have to be, as far as there are sequences.
    """
    groups: list[list[int]] = []
    widest: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: -sum(lengths[index])):
        wider = [max(pair) for pair in zip(widest, lengths[index], strict=True)] if groups else []
        if not groups or sum(wider) * (len(groups[-1]) + 1) > budget:
            groups.append([])
            wider = list(lengths[index])
        groups[-1].append(index)
        widest = wider
    while len(groups) < min(at_least, len(lengths)):
        largest = max(groups, key=len)
        half = (len(largest) + 1) // 2
        groups.append(largest[half:])
        del largest[half:]
    return groups
