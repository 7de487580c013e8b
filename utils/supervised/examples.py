"""Records of --data as examples of one stage, for training and for validation."""

import argparse
import functools
import heapq
import itertools
import random
from collections.abc import Callable, Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from utils.data.encoding import Encoded, fit_lengths
from utils.data.records import Record, conversation_key
from utils.data.summaries import ReadingSummary
from utils.models.configs import embedding_rows, load_config, positions_of
from utils.process.distributed import print_main
from utils.process.errors import AT_ONCE, Problems, UserError

Read = tuple[list[Record], ReadingSummary]
Load = Callable[[str, int], Read]
Fit = Callable[..., list[Encoded]]  # like `fit_lengths`
SAMPLED = (
    1000  # examples that a dry run draws from more of them; besides, half as many with the longest prompts and texts
)


class Examples(list[Encoded]):
    """Encoded examples; `total` counts them, and is an estimate where a dry run has encoded only some."""

    def __init__(self, examples: list[Encoded], total: int):
        super().__init__(examples)
        self.total = total


def read_examples(
    args: argparse.Namespace,
    tokenizer: PreTrainedTokenizerBase | None,
    load: Load,
    architecture: PreTrainedModel | None = None,
    problems: Problems = AT_ONCE,
    fit: Fit = fit_lengths,
    load_held_out: Load | None = None,
) -> tuple[Examples | None, Examples | None]:
    """Training and validation examples that fit `--max_length` and the model; prints what was read.

    Args:
        tokenizer, architecture: None in a dry run that has found none; the data is read all the same.
        fit: how records are encoded.
        load_held_out: of `--validation_data`, where that is not `load`.

    Returns:
        None for a side with a problem: unusable data, nothing to validate on, or examples longer than the model has
        positions for, or with ids beyond its embedding.
    """
    read, held_out = read_sides(args, load, load_held_out or load, problems)
    encoding = functools.partial(encode, rows=embedding_rows(architecture), fit=fit)
    train, validation = (problems.take(encoding, args, tokenizer, side) for side in (read, held_out))
    if train is not None and validation is not None:
        print_main("\n".join(read[1].lines() + [f"validation: {line}" for line in held_out[1].lines()]))
        print_main(f"{train.total} examples to train on, {validation.total} to validate on")
        problems.take(check_positions, args, max(example.length for example in train + validation))
    return train, validation


def read_sides(
    args: argparse.Namespace, load: Load, load_held_out: Load, problems: Problems
) -> tuple[Read | None, Read | None]:
    """What is to be trained on, and what is held out; None where there is a problem with it."""
    if not args.validation_data and args.validation_fraction == 0:
        problems.add("--validation_fraction 0: needs --validation_data")
    read = problems.take(load, args.data, args.seed)
    if args.validation_data:
        return read, problems.take(load_held_out, args.validation_data, args.seed)
    return problems.take(split_off, args, read) or (None, None)


def split_off(args: argparse.Namespace, read: Read) -> tuple[Read, Read]:
    """Both sides of the data, by `--validation_fraction`."""
    train, held_out = hold_out(read[0], args.validation_fraction, args.seed)
    return (train, read[1]), (held_out, ReadingSummary())


def encode(
    args: argparse.Namespace,
    tokenizer: PreTrainedTokenizerBase,
    read: Read,
    rows: int | None = None,
    fit: Fit = fit_lengths,
) -> Examples:
    """The records that fit `--max_length` and the model; in a dry run of many records, those of a sample."""
    records, summary = read
    limits = {"max_length": args.max_length, "unfit": args.unfit, "embedding_rows": rows}
    if not args.dry_run or len(records) <= 2 * SAMPLED:
        fitted = fit(tokenizer, records, summary, args.overlong, **limits)
        return Examples(fitted, len(fitted))
    drawn = random.Random(args.seed).sample(records, SAMPLED)
    longest = (heapq.nlargest(SAMPLED // 2, records, key=length) for length in (prompt_characters, characters))
    chosen = {id(record): record for record in itertools.chain(drawn, *longest)}
    print_main(
        f"dry run: {len(chosen)} of {len(records)} examples are tokenized, the longest and {SAMPLED} at random; what is"
        " dropped or cut is counted among these, numbers of examples and steps are estimates"
    )
    fitted = fit(tokenizer, list(chosen.values()), summary, args.overlong, **limits)
    kept = {id(example.record) for example in fitted}
    share = sum(id(record) in kept for record in drawn) / SAMPLED
    return Examples(fitted, max(1, round(share * len(records))))


def prompt_characters(record: Record) -> int:
    return sum(len(message["content"]) for message in record.messages)


def characters(record: Record) -> int:
    """Of the prompt and the longest reply."""
    return prompt_characters(record) + max(map(len, record.replies))


def hold_out(records: Sequence[Record], fraction: float, seed: int) -> tuple[list[Record], list[Record]]:
    """(training, validation) records: all records of a prompt are on one side, at least one prompt on each.

    Raises:
        UserError: fewer than two distinct prompts.
    """
    prompts = list(dict.fromkeys(conversation_key(record.messages) for record in records))
    if len(prompts) < 2:
        raise UserError("--data: one prompt cannot be split in training and validation (use --validation_data)")
    count = min(max(1, round(fraction * len(prompts))), len(prompts) - 1)
    if count != round(fraction * len(prompts)):
        print_main(f"note: --validation_fraction {fraction:g}: holds out {count} of {len(prompts)} prompts, as it must")
    chosen = set(random.Random(seed).sample(prompts, count))
    sides: tuple[list[Record], list[Record]] = ([], [])
    for record in records:
        sides[conversation_key(record.messages) in chosen].append(record)
    return sides


def check_positions(args: argparse.Namespace, longest: int) -> None:
    """Raise UserError if the model has fewer positions than the longest example has tokens."""
    positions = positions_of(load_config(args.model_name_or_path, "--model_name_or_path"))
    if positions is not None and longest > positions:
        raise UserError(
            f"--max_length {args.max_length}: an example has {longest} tokens,"
            f" {args.model_name_or_path} has positions for {positions}"
        )
