"""The objectives of a run: each is data that orders pairs, `NAME=DATA[:label]`."""

import argparse
import dataclasses
import hashlib
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import partial

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from step3_dpo.pairs import Labelled, conflicts, merged
from utils.cli.types import by_name, named_value
from utils.data import load_pairs
from utils.data.loading import load_view
from utils.data.prompt_pairs import PROMPT_PAIRS
from utils.data.ratings import PairsOfRatings, named_attributes, parse_attribute
from utils.data.records import LABELS, Pair, conversation_key
from utils.data.registry import preference_labels
from utils.data.summaries import ReadingSummary
from utils.models.configs import embedding_rows
from utils.process.distributed import print_main
from utils.process.errors import Problems, UserError
from utils.supervised.examples import Examples, Read, encode

OF_PROMPTS = "prompt_pairs"  # label of one reply to two prompts
OF_RATINGS = "rating/"  # before the attribute whose ratings order the replies to a prompt
LOWER_IS_BETTER = "-"  # before an attribute


@dataclass(frozen=True)
class PairObjective:
    """One named thing to improve.

    Attributes:
        data: files or hub names, as of `--data`.
        label: which of the data's preferences orders a pair.
        optimized: False for objectives that are validated only.
    """

    name: str
    data: str
    label: str
    optimized: bool = True

    def load(self, seed: int) -> Read:
        """Its pairs, or prompt pairs.

        Raises:
            UserError: see `load_view`.
        """
        if self.label == OF_PROMPTS:
            return load_view(self.data, PROMPT_PAIRS, seed)
        if self.label.startswith(OF_RATINGS):
            name = self.label.removeprefix(OF_RATINGS)
            attribute = named_attributes([name.removeprefix(LOWER_IS_BETTER)])
            pairs, summary = load_view(self.data, PairsOfRatings(attributes=attribute, seed=seed), seed)
            return [turned(pair) for pair in pairs] if name.startswith(LOWER_IS_BETTER) else pairs, summary
        return load_pairs(self.data, self.label, seed)


def turned(pair: Pair) -> Pair:
    """A pair in the opposite order."""
    return dataclasses.replace(pair, chosen=pair.rejected, rejected=pair.chosen)


def named_data(text: str) -> tuple[str, str]:
    """argparse type of `NAME=DATA[:LABEL]`: the name, and 'DATA[:LABEL]' (see `split_label`)."""
    name, value = named_value(text)
    try:
        split_label(value)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from None
    return name, value


def split_label(text: str) -> tuple[str, str]:
    """The data and the label of 'DATA[:LABEL]'; without one, the first of all labels.

    Raises:
        ValueError: no such label.
    """
    *others, last = text.split(",")  # a fraction may stand behind each source
    data, separator, label = last.partition(f":{OF_RATINGS}")
    if separator:
        parse_attribute(label.removeprefix(LOWER_IS_BETTER))
        label = f"{OF_RATINGS}{label}"
    else:
        data, separator, label = last.rpartition(":")
    if not separator or is_fraction(label):
        return text, LABELS[0]
    known = (*preference_labels(), OF_PROMPTS)
    if label not in known and not label.startswith(OF_RATINGS):
        raise ValueError(f"{label!r} is no label (there are {', '.join(known)}, and {OF_RATINGS}ATTRIBUTE)")
    return ",".join([*others, data]), label


def is_fraction(text: str) -> bool:
    """Whether what follows the last colon of data is a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def objectives_of(args: argparse.Namespace, problems: Problems) -> list[PairObjective]:
    """The named objectives, in the order given.

    Problems: a name given twice; an unknown one in --monitor.
    """
    names = [name for name, _ in args.objective]
    for name in dict.fromkeys(names):
        if names.count(name) > 1:
            problems.add(f"--objective {name}: is given twice")
    for name in args.monitor:
        if name not in names:
            problems.add(f"--monitor {name}: no such objective (there are {', '.join(names)})")
    if names and all(name in args.monitor for name in names):
        problems.add("--monitor: no objective is left to optimize")
    return declared(args.objective, args.monitor)


def declared(given: Sequence[tuple[str, str]], monitored: Sequence[str]) -> list[PairObjective]:
    """Objectives of words of the command line."""
    return [PairObjective(name, *split_label(value), name not in monitored) for name, value in given]


def read_pairs(
    args: argparse.Namespace,
    objectives: Sequence[PairObjective],
    tokenizer: PreTrainedTokenizerBase | None,
    architecture: PreTrainedModel | None,
    problems: Problems,
) -> tuple[Examples | None, Examples | None]:
    """Training and validation pairs that fit `--max_length` and the model; prints what was read, and what conflicts.

    Problems: unusable data, an objective without a pair to train or to validate on; see `encode`.
    """
    names = [objective.name for objective in objectives]
    held_out_data = problems.take(by_name, "--validation_objective", args.validation_objective) or {}
    if held_out_data and sorted(held_out_data) != sorted(names):
        problems.add(f"--validation_objective: names {', '.join(held_out_data)}, --objective {', '.join(names)}")
        held_out_data = {}
    read = problems.take(load_all, objectives, args.seed)
    if held_out_data:
        others = declared([(name, held_out_data[name]) for name in names], args.monitor)
        held_out = problems.take(load_all, others, args.seed)
    else:
        if args.validation_fraction == 0:
            problems.add("--validation_fraction 0: needs --validation_objective")
        read, held_out = problems.take(split_off, args, read) or (None, None)
    encoding = partial(encode, rows=embedding_rows(architecture))
    train, validation = (problems.take(encoding, args, tokenizer, side) for side in (read, held_out))
    if train is not None and validation is not None:
        print_main("\n".join(read[1].lines() + [f"validation: {line}" for line in held_out[1].lines()]))
        trained = [objective.name for objective in objectives if objective.optimized]
        train = problems.take(with_labels_of, train, [names.index(name) for name in trained])
        problems.take(count_labels, train, objectives, "train", trained)
        problems.take(count_labels, validation, objectives, "validate", names)
        print_conflicts(train, names)
    return train, validation


def load_all(objectives: Sequence[PairObjective], seed: int) -> tuple[list[Labelled], ReadingSummary]:
    """The pairs of all objectives, each once."""
    summary, records = ReadingSummary(), []
    for objective in objectives:
        own, theirs = objective.load(seed)
        records.append(own)
        for source in theirs.sources:
            source.name = f"{objective.name} ({objective.label}): {source.name}"
        summary.sources += theirs.sources
    return merged(records), summary


def split_off(args: argparse.Namespace, read: Read) -> tuple[Read, Read]:
    """Both sides of the pairs, by prompt: `--validation_fraction` of them, and one of every objective at least.

    A prompt is held out by a digest of itself and the seed, whatever others there are: what a policy is not trained on,
    policies of more or fewer objectives are not trained on, either.

    Raises:
        UserError: fewer than two prompts.
    """
    records, summary = read
    keys = [conversation_key(record.messages) for record in records]
    places = {key: digest_of(key, args.seed) for key in keys}
    held_out = {key for key, place in places.items() if place < args.validation_fraction}
    for i in range(len(records[0].labels)):
        own = {key for key, record in zip(keys, records, strict=True) if record.labels[i]}
        if len(own) > 1 and not own & held_out:
            held_out.add(min(own, key=places.get))
    if len(places) < 2 or len(held_out) == len(places):
        raise UserError("--objective: too few prompts to hold some out (use --validation_objective)")
    sides: tuple[list[Labelled], list[Labelled]] = ([], [])
    for key, record in zip(keys, records, strict=True):
        sides[key in held_out].append(record)
    return (sides[0], summary), (sides[1], ReadingSummary())


def digest_of(key: Hashable, seed: int) -> float:
    """A number from 0 to 1 that a conversation and a seed make."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{key}".encode()).digest()[:8]) / 2**64


def with_labels_of(examples: Examples, trained: Sequence[int]) -> Examples:
    """The pairs that some optimized objective has labelled.

    Raises:
        UserError: there is none.
    """
    found = [example for example in examples if any(example.record.labels[i] for i in trained)]
    if not found:
        raise UserError("--objective: no pair is left to train on")
    return Examples(found, round(examples.total * len(found) / len(examples)))


def count_labels(examples: Examples, objectives: Sequence[PairObjective], what: str, needed: Sequence[str]) -> None:
    """Print how many pairs each objective has.

    Args:
        needed: names of those that have to have some; not known where a dry run has looked at a sample.

    Raises:
        UserError: one of them has none.
    """
    names = [objective.name for objective in objectives]
    counts = {name: sum(bool(each.record.labels[i]) for each in examples) for i, name in enumerate(names)}
    shown = ", ".join(f"{name} {count}" for name, count in counts.items())
    sample = f" (a sample of {examples.total})" if examples.total != len(examples) else ""
    print_main(f"{len(examples)} pairs to {what} on{sample}, labelled by {shown}")
    for name in needed:
        if not counts[name] and examples.total == len(examples):
            remedy = " (--validation_objective, or a larger --validation_fraction)" if what == "validate" else ""
            raise UserError(f"--objective {name}: no pair is left to {what} on{remedy}")


def print_conflicts(train: Examples | None, names: Sequence[str]) -> None:
    """Say how often two objectives order a pair the opposite way."""
    for pair, found in conflicts([example.record for example in train or ()], names).items():
        share = found["opposite"] / found["pairs"]
        print_main(
            f"{pair}: {found['pairs']} pairs labelled by both, {found['opposite']} in opposite order ({share:.0%})"
        )
