"""What the loaders make of a data set, before any training.

    python utils/inspect_data.py FILE_OR_SPEC ... [--tokenizer MODEL]

Prints for each file or hub data set its format, the rows read, how many become prompts, dialogues, ratings and
pairs, why the others do not, what the ratings are, and one example; with a tokenizer also how long they are in
tokens, and how many its chat template refuses. A source with a mistake does not keep the others from being shown; the
exit code is then 2.
"""

import argparse
import gc
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __name__ == "__main__":
    gc.disable()  # imports leave no garbage: a fifth less to start; `run_main` enables it
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.cli.arguments import Parser, add_loading_arguments, check_output_file
from utils.cli.types import positive_int, seed
from utils.data.loading import Inspection, and_others, inspect_source
from utils.data.ratings import RATINGS, RatingsView, add_attributes_argument, describe_ratings, named_attributes
from utils.data.records import Record, View
from utils.data.registry import views
from utils.data.sources import Source, parse_spec
from utils.data.summaries import SourceSummary, describe_formats
from utils.output.files import check_writable, write_json
from utils.process.errors import UserError, run_main
from utils.process.plain_text import printable

if TYPE_CHECKING:  # it takes seconds, which who asks for no tokens does not need to wait
    from transformers import PreTrainedTokenizerBase

PLACES = 3  # of rows with mistakes that are shown
SECONDS = 10  # between lines that say how far the reading is


def inspect(source: Source, args: argparse.Namespace, tokenizer: "PreTrainedTokenizerBase | None") -> dict[str, Any]:
    """Format, fields, row count, kept and dropped for each view (None: not offered), repeated ids, a record as an
    example, mistakes in rows, and with a tokenizer the lengths. Raises `UserError` if nothing can be read."""
    wanted = wanted_views(args)
    found = inspect_source(source, args.seed, announcer(source), wanted)
    summaries = {name: summary for name, (_, summary) in found.views.items()}
    examples = [records[0] for records, _ in found.views.values() if records]
    return {
        "name": source.name,
        "format": describe_formats(found.formats),
        "fields": [printable(str(name)) for name in found.fields],
        "read": found.read,
        "views": {view.name: _counts(summaries[view.name]) if view.name in summaries else None for view in wanted},
        "conflicting_ids": max((summary.conflicts for summary in summaries.values()), key=len),
        "example": examples[-1] if examples else None,  # the last view says most
        **({"ratings": describe_ratings(rated)} if (rated := found.views.get(RATINGS.name, ([], None))[0]) else {}),
        **({"faults": [printable(fault) for fault in found.faults]} if found.faults else {}),
        **({"tokens": _tokens(source, found, args, tokenizer)} if tokenizer else {}),
    }


def wanted_views(args: argparse.Namespace) -> list[View]:
    """All views; ratings on the attributes that are asked for, if any are."""
    asked = RatingsView(attributes=named_attributes(args.attributes)) if args.attributes else RATINGS
    return [asked if view == RATINGS else view for view in views()]


def announcer(source: Source) -> Callable[[int], None]:
    """Says every ten seconds how many rows of a source are read."""
    due = time.monotonic() + SECONDS

    def announce(read: int) -> None:
        nonlocal due
        if time.monotonic() > due:
            due += SECONDS
            print(printable(f"{source.name}: {read} rows read"), flush=True)

    return announce


def _tokens(
    source: Source, found: Inspection, args: argparse.Namespace, tokenizer: "PreTrainedTokenizerBase"
) -> dict[str, Any]:
    """Lengths of what each row says in the view that says most, what is beyond the limits, what is refused."""
    from utils.data.token_lengths import beyond_limits, describe_lengths, measure

    of_rows: dict[str, Record] = {}
    for records, _ in found.views.values():
        of_rows |= {record.source: record for record in records}
    written, refused = measure(tokenizer, list(of_rows.values()), f"tokens of {printable(source.name)}")
    lengths = {
        "prompt": [len(example.prompt) for example in written],
        "prompt and reply": [example.length for example in written if example.responses],
    }
    return {
        "rows": len(of_rows),
        **{name: describe_lengths(values) for name, values in lengths.items() if values},
        "beyond": beyond_limits(written, args.max_prompt_length, args.max_length),
        "unfit": {printable(reason): count for reason, count in refused.items()},
    }


def _counts(summary: SourceSummary) -> dict[str, Any]:
    return {"kept": summary.kept, "dropped": dict(summary.dropped.most_common())}


def report(found: dict[str, Any]) -> list[str]:
    """The lines to print for one source, safe for a terminal."""
    lines = [
        found["name"],
        f"  format         {found['format']} (fields: {', '.join(found['fields'])})",
        f"  rows           {found['read']}",
    ]
    for name, counts in found["views"].items():
        lines.append(f"  {name:<14} " + ("not in this format" if counts is None else _outcome(counts)))
    for name, figures in found.get("ratings", {}).items():
        low, mean, high = (f"{figures[key]:.4g}" for key in ("min", "mean", "max"))
        lines.append(f"  rated on       {name}: {figures['rated']} replies, {low} to {high}, mean {mean}")
    if faults := found.get("faults"):
        lines += [f"  mistakes       in {len(faults)} rows, which no stage takes; the first:"]
        lines += [f"    {textwrap.shorten(fault, 200, placeholder=' ...')}" for fault in faults[:PLACES]]
    if found["conflicting_ids"]:
        places = f"(first: {found['conflicting_ids'][0]})"
        lines.append(f"  repeated ids   {len(found['conflicting_ids'])} rows have the id of a different row {places}")
    if example := found["example"]:
        place = example.source.removeprefix(found["name"] + ":")
        lines.append(f"  example        row or line {place.removeprefix('row ')}")
        lines += [f"    {name:<12} {textwrap.shorten(text, 80, placeholder=' ...')}" for name, text in example.shown()]
    if "tokens" in found:
        lines += _token_lines(found["tokens"])
    return [printable(line) for line in lines]


def _token_lines(tokens: dict[str, Any]) -> list[str]:
    from utils.data.token_lengths import histogram_lines

    lines = [f"  unfit          {count} {reason}" for reason, count in tokens["unfit"].items()]
    lines += [f"  too long       {count} {what}" for what, count in tokens["beyond"].items()]
    for name in ("prompt", "prompt and reply"):
        if name in tokens:
            figures = ", ".join(f"{key} {tokens[name][key]}" for key in ("min", "median", "95%", "max"))
            lines.append(f"  tokens         {name}: {figures}")
            lines += [f"    {line}" for line in histogram_lines(tokens[name]["histogram"])]
    return lines


def as_json(found: dict[str, Any]) -> dict[str, Any]:
    """The findings of one source for JSON."""
    return {**found, "example": found["example"] and found["example"].as_dict()}


def _outcome(counts: dict[str, Any]) -> str:
    reasons = ", ".join(f"{count} {reason}" for reason, count in counts["dropped"].items())
    return f"{counts['kept']} kept" + (f"; dropped: {reasons}" if reasons else "")


def parse_args() -> argparse.Namespace:
    parser = Parser(description="Show what the loaders make of data sets: format, rows, what is dropped and why.")
    parser.add_argument(
        "data",
        nargs="+",
        metavar="FILE_OR_SPEC",
        help="file, folder or hub name with an optional :fraction, or several joined by commas",
    )
    add_attributes_argument(
        parser, "ratings on these alone, of columns of any such name too; one out of range is a mistake"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the findings here")
    parser.add_argument("--seed", type=seed, default=42, help="seed of the subsample of a :fraction")
    group = parser.add_argument_group("tokens")
    group.add_argument("--tokenizer", metavar="PATH", help="model folder or hub name: measure with its tokenizer")
    group.add_argument("--max_prompt_length", type=positive_int, help="tokens: count the prompts that are longer")
    group.add_argument("--max_length", type=positive_int, help="tokens: count prompts and replies that are longer")
    add_loading_arguments(parser)
    args = parser.parse_args()
    named_attributes(args.attributes)
    if args.tokenizer is None and (args.max_prompt_length or args.max_length):
        raise UserError(f"--max_{'prompt_' if args.max_prompt_length else ''}length: needs --tokenizer")
    return args


def open_tokenizer(args: argparse.Namespace) -> "PreTrainedTokenizerBase | None":
    """The tokenizer to measure with, if one was named. Raises `UserError` if it has no chat template."""
    if args.tokenizer is None:
        return None
    from utils.models.configs import allow, load_tokenizer

    allow(args)
    tokenizer = load_tokenizer(args.tokenizer, "--tokenizer")
    if tokenizer.chat_template is None:
        raise UserError(f"--tokenizer {args.tokenizer}: the tokenizer has no chat template")
    return tokenizer


def main() -> None:
    """Command line."""
    args = parse_args()
    if args.json:
        check_output_file(args.json, "--json")
        check_writable(args.json.parent, "--json")
    tokenizer = open_tokenizer(args)
    findings, mistakes = [], []
    for spec in args.data:
        try:
            sources = parse_spec(spec)
        except UserError as error:
            mistakes.append(str(error))
            continue
        for source in sources:
            try:
                found = inspect(source, args, tokenizer)
            except UserError as error:
                mistakes.append(str(error))
                continue
            findings.append(found)
            print("\n".join(report(found)), flush=True)
            if faults := found.get("faults"):
                mistakes.append(faults[0] + and_others(faults))
    if args.json and findings:
        write_json(args.json, [as_json(found) for found in findings])
    for mistake in mistakes[:-1]:
        print(f"error: {printable(' '.join(mistake.split()))}", file=sys.stderr, flush=True)
    if mistakes:
        raise UserError(mistakes[-1])


if __name__ == "__main__":
    run_main(main)
