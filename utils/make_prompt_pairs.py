"""Makes data with several instructions a prompt of preference data: prompt pairs and instruction pairs (MAPL).

    python utils/make_prompt_pairs.py --data DATA --output_dir DIR

Every response gets two prompts, the original one with other instructions behind it, of which it answers one better
(prompt_pairs.jsonl); and every pair of responses gets one prompt, of whose instructions one response meets more
(instruction_pairs.jsonl). A program checks the instructions (utils/instructions): no model is asked, and which response
the data prefers does not matter.
"""

import argparse
import gc
import json
import sys
from pathlib import Path

if __name__ == "__main__":
    gc.disable()  # imports leave no garbage: a fifth less to start; `run_main` enables it
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.cli.arguments import Parser, check_output_file
from utils.cli.types import fraction, non_negative_int, one_of, positive_int, seed
from utils.data.loading import load_pairs
from utils.data.records import Pair
from utils.data.registry import preference_labels
from utils.instructions.kinds import KINDS
from utils.instructions.pairs import LEAST, Made, Recipe, make_rows
from utils.output.files import check_writable, write_json, write_text
from utils.output.metrics import Progress
from utils.process.errors import UserError, run_main

SORTS = {"prompt_pairs": "--prompt_pairs_per_response", "instruction_pairs": "--instruction_pairs_per_pair"}


def make(pairs: list[Pair], recipe: Recipe, spec: str) -> dict[str, Made]:
    """Rows of both sorts. Raises UserError if one that is wanted stays empty."""
    made = {name: Made() for name in SORTS}
    progress = Progress(len(pairs), "pairs", every=max(1, len(pairs) // 20))
    for number, pair in enumerate(pairs):
        make_rows(pair, number, recipe, **made)
        progress.update(number + 1)
    for name, flag in SORTS.items():
        if made[name].sources and not made[name].rows:
            what = name.replace("_", " ")
            raise UserError(f"--data {spec}: gives no {what} ({reasons(made[name])}); more --kinds, or {flag} 0")
    return made


def reasons(made: Made) -> str:
    """Why sources gave no row."""
    return ", ".join(f"{count} {reason}" for reason, count in made.failed.most_common())


def parse_arguments() -> argparse.Namespace:
    parser = Parser(description="Make prompts with several checked instructions of preference data, as pairs (MAPL).")
    parser.add_argument(
        "--data",
        required=True,
        metavar="PATH_OR_NAME[:fraction][,...]",
        help="preference data: files, folders or hub names, each with an optional fraction to subsample",
    )
    parser.add_argument(
        "--preference_label",
        choices=tuple(preference_labels()),
        default="better",
        help="which preference says what 'chosen' is in the column 'side'; rows without it are dropped",
    )
    parser.add_argument(
        "--output_dir", required=True, type=Path, help="gets prompt_pairs.jsonl, instruction_pairs.jsonl, summary.json"
    )
    parser.add_argument(
        "--kinds",
        nargs="+",
        type=one_of(*KINDS),
        metavar="KIND",
        help=f"kinds of instructions, instead of all: {', '.join(KINDS)}",
    )
    parser.add_argument("--max_instructions", type=positive_int, default=3, help="most instructions of a prompt")
    parser.add_argument(
        "--all_met_share",
        type=fraction,
        default=0.5,
        help="share of the prompt pairs whose chosen prompt the response meets in full, and breaks at least one"
        " instruction of the rejected one; of the others it breaks the rejected prompt in full, and meets at least one"
        " instruction of the chosen one",
    )
    parser.add_argument(
        "--prompt_pairs_per_response", type=non_negative_int, default=1, help="tries for each response; 0: none"
    )
    parser.add_argument(
        "--instruction_pairs_per_pair", type=non_negative_int, default=1, help="tries for each pair; 0: none"
    )
    parser.add_argument("--seed", type=seed, default=42, help="the same seed gives the same files")
    args = parser.parse_args()
    check_sizes(args)
    return args


def check_sizes(args: argparse.Namespace) -> None:
    """Raise UserError for flags that leave nothing to do."""
    if not (args.prompt_pairs_per_response or args.instruction_pairs_per_pair):
        raise UserError(f"{' and '.join(SORTS.values())}: one of them must be above 0")
    if args.instruction_pairs_per_pair and args.max_instructions < LEAST:
        raise UserError(
            f"--max_instructions {args.max_instructions}: instruction pairs have {LEAST} or more;"
            " --instruction_pairs_per_pair 0 makes none"
        )


def main() -> None:
    """Command line. Makes everything before it writes anything."""
    args = parse_arguments()
    names = [name for name in KINDS if name in (args.kinds or KINDS)]
    recipe = Recipe(
        [KINDS[name] for name in names], args.max_instructions, args.all_met_share,
        args.prompt_pairs_per_response, args.instruction_pairs_per_pair, args.seed,
    )  # fmt: skip
    files = {name: args.output_dir / f"{name}.jsonl" for name in SORTS}
    for file in (*files.values(), args.output_dir / "summary.json"):
        check_output_file(file)
    pairs, reading = load_pairs(args.data, args.preference_label, args.seed)
    check_writable(args.output_dir)
    print("\n".join(reading.lines()))
    made = make(pairs, recipe, args.data)
    for name, file in files.items():
        write(file, made[name])
    settings = {key: value for key, value in vars(args).items() if key != "output_dir"} | {"kinds": names}
    counts = {name: each.as_dict() for name, each in made.items()}
    write_json(args.output_dir / "summary.json", {**settings, "reading": reading.as_dict(), **counts})
    print_kinds(made)


def write(file: Path, made: Made) -> None:
    """The rows of one sort, and a line about them; without any, an older file goes, which others would be read for."""
    if not made.sources:
        file.unlink(missing_ok=True)
        return
    # ASCII, so that whatever JSON could carry (half a surrogate pair, say) is carried on.
    write_text(file, "".join(json.dumps(row) + "\n" for row in made.rows))
    unit = "responses" if "side" in made.rows[0] else "pairs of responses"
    line = f"{file.name}: {len(made.rows)} rows of {made.sources} {unit}"
    print(line + (f"; none of {made.failed.total()} ({reasons(made)})" if made.failed else ""))


def print_kinds(made: dict[str, Made]) -> None:
    """A line for each kind of instruction: how often it is met and broken, in each sort; and which are never both."""
    width = max(map(len, KINDS))
    print(f"{'instructions':{width}}" + "".join(f"  {name + ', met / broken':>32}" for name in made))
    one_sided = []
    for kind in KINDS:
        cells = [each.times(kind) for each in made.values()]
        met, broken = map(sum, zip(*cells, strict=True))
        if met or broken:
            print(f"{kind:{width}}" + "".join(f"  {met:>23} / {broken:>6}" for met, broken in cells))
        if (met == 0) != (broken == 0):
            one_sided.append(kind)
    if one_sided:
        print(f"note: whatever the response, always met or always broken: {', '.join(one_sided)}")
        print("  to tell such prompts apart, a model need not look at the response (--kinds leaves kinds out)")


if __name__ == "__main__":
    run_main(main)
