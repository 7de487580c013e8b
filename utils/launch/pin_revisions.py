"""Give hub names the commit they have at first use, so that later runs of the same output meet the same of each.

    python utils/launch/pin_revisions.py --file output/x/revisions.json --model org/policy --data org/prompts@train:0.5

prints one line for each, in this order: org/policy@COMMIT and org/prompts@train@COMMIT:0.5. What is a folder or file or
names a revision stays as it is. The commit is the one in the file; failing that the hub's, kept in the file. Where the
hub does not answer, a model gets the commit of its copy in the cache, and data stays as it is.
"""

import argparse
import gc
import json
import sys
from collections.abc import Callable
from pathlib import Path

if __name__ == "__main__":
    gc.disable()  # imports leave no garbage: a fifth less to start; `run_main` enables it
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import huggingface_hub

from utils.cli.arguments import Parser
from utils.cli.hub import commit_of, describe_hub_error, is_local, reach_hub
from utils.data.sources import HUB_NAME, is_hub_data
from utils.output.files import write_json
from utils.process.errors import UserError, run_main

DATA = "datasets/"  # before the names of data sets in the file


def main() -> None:
    args = parse_args()
    pins = Pins(Path(args.file), args.known_only)
    lines = [pins.pin_data(name) if kind == "data" else pins.pin_model(name) for kind, name in args.named]
    pins.write()
    print("\n".join(lines))


def parse_args() -> argparse.Namespace:
    parser = Parser(description="Give hub names the commit they have at first use")
    parser.add_argument("--file", required=True, help="JSON, {name: commit}; made when a name is pinned")
    parser.add_argument("--known_only", action="store_true", help="what the file does not name stays as it is")
    for kind in ("model", "data"):
        parser.add_argument(
            f"--{kind}",
            dest="named",
            type=lambda name, kind=kind: (kind, name),
            action="append",
            default=[],
            metavar="NAME",
            help={"model": "folder or hub name", "data": "PATH_OR_NAME[:fraction][,...]"}[kind],
        )
    return parser.parse_args()


class Pins:
    """Names and their commits: those in a file, and those that come to them.

    Attributes:
        commits: {name of a model, or "datasets/" and that of a data set: commit}.
        known_only: nothing is added.
    """

    def __init__(self, file: Path, known_only: bool):
        self.file, self.known_only = file, known_only
        self.commits = read_pins(file)
        self.read = dict(self.commits)

    def pin_model(self, name: str) -> str:
        """A model's name with its commit; unchanged if it is a folder or has a revision."""
        if is_local(name) or "@" in name:
            return name
        commit = self._commit(name, lambda: current_commit(name))
        return f"{name}@{commit}" if commit else name

    def pin_data(self, spec: str) -> str:
        """A data spec, every hub name in it with its commit."""
        return ",".join(self._pin_source(part.strip()) for part in spec.split(","))

    def _pin_source(self, source: str) -> str:
        name, colon, fraction = source.partition(":")
        match = HUB_NAME.fullmatch(name)
        if not is_hub_data(name) or match["revision"]:
            return source
        commit = self._commit(DATA + match["name"], lambda: current_data_commit(match["name"]))
        return f"{match['name']}@{match['split'] or 'train'}@{commit}{colon}{fraction}" if commit else source

    def _commit(self, name: str, find: Callable[[], str | None]) -> str | None:
        if name not in self.commits and not self.known_only and (commit := find()):
            self.commits[name] = commit
        return self.commits.get(name)

    def write(self) -> None:
        if self.commits != self.read:
            write_json(self.file, self.commits)


def read_pins(file: Path) -> dict[str, str]:
    """{name: commit} so far; raises UserError for a file that holds something else."""
    try:
        pinned = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    except (OSError, ValueError) as error:
        raise UserError(f"--file {file}: cannot be read ({error})") from None
    if not isinstance(pinned, dict) or not all(isinstance(commit, str) for commit in pinned.values()):
        raise UserError(f"--file {file}: not an object of names and commits")
    return pinned


def current_commit(name: str) -> str:
    """The commit of a model on the hub, or of its copy where the hub does not answer.

    Raises:
        UserError: neither is there.
    """
    if not reach_hub():
        if commit := commit_of(name):
            return commit
        reason = describe_hub_error(huggingface_hub.errors.OfflineModeIsEnabled())
        raise UserError(f"{name}: {reason}")
    try:
        return huggingface_hub.HfApi().model_info(name).sha
    except Exception as error:  # of the hub's library or of the HTTP library below it
        raise UserError(f"{name}: {describe_hub_error(error) or error}") from None


def current_data_commit(name: str) -> str | None:
    """The commit of a data set on the hub; None where the hub does not answer.

    Raises:
        UserError: the hub has no such data set.
    """
    if not reach_hub():
        print(f"note: {name}: not pinned, for the hub does not answer; the newest copy is used", file=sys.stderr)
        return None
    try:
        return huggingface_hub.HfApi().dataset_info(name).sha
    except Exception as error:  # of the hub's library or of the HTTP library below it
        raise UserError(f"{name}: {describe_hub_error(error, 'data set') or error}") from None


if __name__ == "__main__":
    run_main(main)
