"""The iterations of a run on disk: what is finished, what it was made with, and the record of all of them.

`<output_dir>/iteration_<t>/` holds

    train/, held_out/             samples/ and scores_<attributes>/: what the policy before it answers to the prompts,
                                  and what that is worth, until the iteration is finished
    kept.jsonl                    the replies that were kept: direction, values, the mean over their rivals
    checkpoints/                  of the fine-tuning, while it runs
    the exported policy           until the next iteration is finished, or for good with --keep_iterations
    metrics.jsonl, tensorboard/   of the fine-tuning
    figures.json                  what the record says of it; last of all: where it is, the iteration is finished

and `<output_dir>/run.json` the flags and fingerprints that all of them depend on.
"""

import argparse
import copy
import json
from pathlib import Path
from typing import Any

from step3_dpa.prompts import HELD_OUT, TRAIN
from utils.checkpoints.same_run import FIXED, Facts, differences
from utils.output.files import remove_folder, remove_left_overs, write_json
from utils.output.metrics import METRICS, MetricsLogger, start_record
from utils.process.distributed import all_gather_objects, barrier, is_main, print_main, world_size
from utils.process.errors import UserError

FIGURES, MANIFEST = "figures.json", "run.json"
PARTS = (TRAIN, HELD_OUT)
RECORDS = (FIGURES, "kept.jsonl", "evaluation.json", METRICS, "args.json")  # of an iteration, beside its policy


class Iterations:
    """What is there of a run; call every method on every rank.

    Args:
        facts: what the result depends on beside the flags, on the main rank.

    Raises:
        UserError: iterations of a run with another result are there; lists the differences.
    """

    def __init__(self, args: argparse.Namespace, facts: Facts):
        self.args, self.directory = args, Path(args.output_dir)
        if is_main():
            remove_left_overs(self.directory)
            if args.fresh:
                for folder in self.directory.glob("iteration_*"):
                    remove_folder(folder)
                (self.directory / MANIFEST).unlink(missing_ok=True)
        self.check_same_run(facts)
        self.logger: MetricsLogger | None = None
        if is_main():
            manifest = {"flags": vars(args), "facts": facts, "world_size": world_size()}
            write_json(self.directory / MANIFEST, json.loads(json.dumps(manifest)))
            self.logger = start_record(args, world_size(), None)
            for number in range(1, self.done + 1):
                self.logger.log(number, json.loads((self.folder(number) / FIGURES).read_text(encoding="utf-8")))
        barrier()
        if self.done:
            print_main(f"iterations 1 to {self.done} of {args.iterations} are finished")

    def check_same_run(self, facts: Facts) -> None:
        """Raise UserError where what is there has another result than this run, unless that is permitted."""
        path, found = self.directory / MANIFEST, []
        if is_main() and path.is_file() and any(self.directory.glob("iteration_*")):
            found = differences(json.loads(path.read_text(encoding="utf-8")), vars(self.args), facts, world_size())
            found = [line for line in found if not line.startswith("--iterations ")]  # more of them may follow
        found = all_gather_objects(found)[0]
        if found and (not self.args.allow_changed_flags or any(line.startswith(FIXED) for line in found)):
            ways = "--allow_changed_flags goes on with it, --fresh starts over"
            raise UserError(f"{self.directory} holds iterations of another run: {'; '.join(found)} ({ways})")
        if found:
            print_main(f"--allow_changed_flags: going on with {'; '.join(found)}")

    @property
    def done(self) -> int:
        """How many are finished."""
        number = 0
        while (self.folder(number + 1) / FIGURES).is_file():
            number += 1
        return number

    def folder(self, number: int) -> Path:
        """Of iteration 1, 2, ..."""
        return self.directory / f"iteration_{number}"

    def policy(self, number: int) -> str:
        """The policy after so many iterations."""
        return str(self.folder(number)) if number else self.args.actor_model

    def args_of(self, number: int) -> argparse.Namespace:
        """The flags of an iteration's fine-tuning, a run of its own in its folder."""
        own = copy.copy(self.args)
        own.output_dir = str(self.folder(number))
        own.model_name_or_path = self.policy(number - 1 if self.args.start == "last" else 0)
        own.fresh = False
        return own

    def finish(self, number: int, figures: dict[str, float]) -> None:
        """An iteration's policy is in place: note its figures, remove what has served."""
        barrier()
        if not is_main():
            return
        folder = self.folder(number)
        write_json(folder / FIGURES, figures)
        self.logger.log(number, figures)
        for part in PARTS:
            remove_folder(folder / part)
        if number > 1 and not self.args.keep_iterations:
            for file in self.folder(number - 1).iterdir():
                if file.is_file() and file.name not in RECORDS:
                    file.unlink()

    def text(self, tag: str, text: str, number: int) -> None:
        """A text for TensorBoard."""
        if self.logger:
            self.logger.text(tag, text, number)

    def close(self) -> None:
        if self.logger:
            self.logger.close()


def as_row(**values: Any) -> str:
    """A line of a jsonl file."""
    return json.dumps(values, ensure_ascii=False) + "\n"
