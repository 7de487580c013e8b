"""Splits raw data files into train, validation and test by prompt, rows unchanged, for every file alike.

The split of a row follows from a hash of how its conversation opens (the first user turn, case and spacing
aside): a prompt falls into the same split whatever file it is in, and so do all continuations of one
conversation, so that no later stage trains on a prompt that another one tests on.
"""

import gc
import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    gc.disable()  # imports leave no garbage: a fifth less to start; `run_main` enables it
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.cli.arguments import Parser, check_output_file
from utils.cli.types import fraction, named_value, seed
from utils.data.loading import inspect_source, load_view
from utils.data.records import PROMPTS, Message, Prompt, View
from utils.data.registry import Format
from utils.data.rows import Row
from utils.data.sources import Source
from utils.data.summaries import ReadingSummary
from utils.output.files import check_writable, write_json, write_text
from utils.process.errors import UserError, run_main

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Opening:
    """A raw row and how its conversation opens."""

    row: Row
    text: str


def split_of(text: str, validation: float, test: float, seed: int) -> str:
    """The split of a conversation, from a hash of its opening that is uniform in [0, 1)."""
    digest = hashlib.sha256(f"{seed}:{text}".encode()).digest()
    position = int.from_bytes(digest[:8]) / 2**64
    return "test" if position < test else "validation" if position < test + validation else "train"


def opening(messages: Sequence[Message]) -> str:
    """The first user turn, case and spacing evened out."""
    first = next(message["content"] for message in messages if message["role"] == "user")
    return " ".join(first.split()).casefold()


class Openings(View):
    """Every raw row with a prompt, also of a prompt that is there already."""

    def convert(self, data_format: Format, row: Row) -> Opening:
        return Opening(row, opening(data_format.read(row, PROMPTS).messages))


def split_input(name: str, spec: str, args: Any) -> tuple[dict[str, list[Row]], ReadingSummary]:
    """Rows of one input by split; raises `UserError` if a split that is asked for would be empty."""
    records, summary = load_view(spec, Openings(Prompt), args.seed)
    formats = {name for source in summary.sources for name in source.formats}
    if len(formats) > 1:
        raise UserError(f"--input {name}={spec}: one input must be of one format, found {', '.join(sorted(formats))}")
    rows: dict[str, list[Row]] = {split: [] for split in SPLITS}
    for record in records:
        split = split_of(record.text, args.validation_fraction, args.test_fraction, args.seed)
        rows[split].append(record.row)
    sizes = {"validation": args.validation_fraction, "test": args.test_fraction}
    for split in SPLITS:
        if not rows[split] and sizes.get(split, 1.0) > 0:
            raise UserError(
                f"--input {name}={spec}: the {split} split would be empty "
                f"({len(records)} usable rows; use larger fractions or more data)"
            )
    return rows, summary


def write_splits(name: str, rows: dict[str, list[Row]], output_dir: Path, seed: int) -> dict[str, Any]:
    """Writes one input's splits; returns the rows of each and what the loaders make of them, by view.

    Raises `UserError` for a row that some view refuses.
    """
    written = {}
    for split, members in rows.items():
        if members:
            path = output_dir / split / f"{name}.jsonl"
            # ASCII, so that whatever JSON could carry (half a surrogate pair, say) is carried on.
            write_text(path, "".join(json.dumps(row.fields, default=str) + "\n" for row in members))
            inspection = inspect_source(Source(str(path), 1.0, on_hub=False), seed)
            if inspection.faults:
                raise UserError(inspection.faults[0])
            written[split] = {
                "rows": len(members),
                "views": {
                    view: {"kept": summary.kept, "dropped": dict(summary.dropped.most_common())}
                    for view, (_, summary) in inspection.views.items()
                },
            }
    return written


def _named_inputs(inputs: list[tuple[str, str]]) -> dict[str, str]:
    for index, (name, spec) in enumerate(inputs):
        if name in dict(inputs[:index]):
            raise UserError(f"--input {name}={spec}: the name is used twice")
    return dict(inputs)


def _parse_arguments() -> Any:
    parser = Parser(description="Split data files into train, validation and test by prompt, rows unchanged.")
    parser.add_argument(
        "--input",
        action="append",
        required=True,
        type=named_value,
        metavar="NAME=SPEC",
        dest="inputs",
        help="what to split: file, folder or hub name, optional :fraction, several joined by commas;"
        " repeat the flag for several inputs",
    )
    parser.add_argument("--output_dir", required=True, type=Path, help="gets {train,validation,test}/NAME.jsonl")
    parser.add_argument("--validation_fraction", type=fraction, default=0.05, help="part of the prompts for validation")
    parser.add_argument("--test_fraction", type=fraction, default=0.1, help="part of the prompts for the test")
    parser.add_argument("--seed", type=seed, default=42, help="seed of the split and of subsamples")
    args = parser.parse_args()
    if args.validation_fraction + args.test_fraction >= 1:
        raise UserError("--validation_fraction and --test_fraction leave nothing to train on")
    return args


def main() -> None:
    """Command line. Reads every input before it writes anything."""
    args = _parse_arguments()
    inputs = _named_inputs(args.inputs)
    split = {name: split_input(name, spec, args) for name, spec in inputs.items()}
    files = [
        args.output_dir / part / f"{name}.jsonl" for name, (rows, _) in split.items() for part in rows if rows[part]
    ]
    files.append(args.output_dir / "summary.json")
    for file in files:
        check_output_file(file)
    for folder in dict.fromkeys([args.output_dir, *(file.parent for file in files)]):
        check_writable(folder)
    results = {}
    for name, (rows, summary) in split.items():
        print("\n".join(summary.lines()))
        written = write_splits(name, rows, args.output_dir, args.seed)
        results[name] = {**summary.as_dict(), "splits": written}
        for part, counts in written.items():
            print(f"  {part}/{name}.jsonl: {counts['rows']} rows")
            for view, outcome in counts["views"].items():
                reasons = ", ".join(f"{count} {reason}" for reason, count in outcome["dropped"].items())
                print(
                    f"    {view}: {outcome['kept']} kept" + (f"; dropped: {reasons}" if reasons else ""),
                    flush=True,
                )
    write_json(
        args.output_dir / "summary.json",
        {
            "validation_fraction": args.validation_fraction,
            "test_fraction": args.test_fraction,
            "seed": args.seed,
            "inputs": results,
        },
    )


if __name__ == "__main__":
    run_main(main)
