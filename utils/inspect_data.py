"""What the loaders make of a data set, before any training.

    python utils/inspect_data.py FILE_OR_SPEC ...

Prints for each file or hub data set its format, the rows read, how many become prompts, dialogues and
pairs, why the others do not, and one example.
"""

import sys
import textwrap
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.arguments import Parser, check_output_file, seed
from utils.data.loading import VIEWS, view_summaries
from utils.data.records import Dialogue, Pair, Record, SourceSummary
from utils.data.sources import Source, parse_spec
from utils.errors import run_main
from utils.output import check_writable, write_json
from utils.plain_text import printable


def inspect(source: Source, seed: int) -> dict[str, Any]:
    """Format, fields, row count, kept and dropped for each view (None: not offered), repeated ids, an example."""
    fields = [printable(str(name)) for name in next(source.rows()).fields]
    summaries = view_summaries(source, seed)
    any_summary = next(summary for summary, _ in summaries.values())
    examples = [record for _, record in summaries.values() if record is not None]
    return {
        "name": source.name,
        "format": any_summary.format,
        "fields": fields,
        "read": any_summary.read,
        "views": {view.name: _counts(summaries[view.name][0]) if view.name in summaries else None for view in VIEWS},
        "conflicting_ids": max((summary.conflicts for summary, _ in summaries.values()), key=len),
        "example": _example(examples[-1]) if examples else None,  # the last view says most
    }


def _counts(summary: SourceSummary) -> dict[str, Any]:
    return {"kept": summary.kept, "dropped": dict(summary.dropped.most_common())}


def _example(record: Record) -> dict[str, Any]:
    example: dict[str, Any] = {"source": record.source, "messages": record.messages}
    if isinstance(record, Dialogue):
        example["response"] = record.response
    if isinstance(record, Pair):
        example |= {
            "chosen": record.chosen,
            "rejected": record.rejected,
            "chosen_safe": record.chosen_safe,
            "rejected_safe": record.rejected_safe,
        }
    return example


def report(found: dict[str, Any]) -> list[str]:
    """The lines to print for one source, safe for a terminal."""
    lines = [
        found["name"],
        f"  format         {found['format']} (fields: {', '.join(found['fields'])})",
        f"  rows           {found['read']}",
    ]
    for name, counts in found["views"].items():
        lines.append(f"  {name:<14} " + ("not in this format" if counts is None else _outcome(counts)))
    if found["conflicting_ids"]:
        places = f"(first: {found['conflicting_ids'][0]})"
        lines.append(f"  repeated ids   {len(found['conflicting_ids'])} rows have the id of a different row {places}")
    if found["example"]:
        place = found["example"]["source"].removeprefix(found["name"] + ":")
        lines.append(f"  example        row or line {place.removeprefix('row ')}")
        turns = [(turn["role"], turn["content"]) for turn in found["example"]["messages"]]
        answers = [
            (name, found["example"][name]) for name in ("response", "chosen", "rejected") if name in found["example"]
        ]
        lines += [f"    {name:<12} {textwrap.shorten(text, 80, placeholder=' ...')}" for name, text in turns + answers]
    return [printable(line) for line in lines]


def _outcome(counts: dict[str, Any]) -> str:
    reasons = ", ".join(f"{count} {reason}" for reason, count in counts["dropped"].items())
    return f"{counts['kept']} kept" + (f"; dropped: {reasons}" if reasons else "")


def main() -> None:
    """Command line."""
    parser = Parser(description="Show what the loaders make of data sets: format, rows, what is dropped and why.")
    parser.add_argument(
        "data",
        nargs="+",
        metavar="FILE_OR_SPEC",
        help="file, folder or hub name with an optional :fraction, or several joined by commas",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the findings here")
    parser.add_argument("--seed", type=seed, default=42, help="seed of the subsample of a :fraction")
    args = parser.parse_args()
    if args.json:
        check_output_file(args.json, "--json")
        check_writable(args.json.parent, "--json")
    findings = []
    for source in (source for spec in args.data for source in parse_spec(spec)):
        findings.append(inspect(source, args.seed))
        print("\n".join(report(findings[-1])), flush=True)
    if args.json:
        write_json(args.json, findings)


if __name__ == "__main__":
    run_main(main)
