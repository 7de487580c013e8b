"""Checkpoints that are whole or absent, and going on from the newest whole one.

`<output_dir>/checkpoints/step_00000012/` holds

    manifest.json       step, stage, flags, fingerprints of data and models, versions, size and sha256 of every file
    state.json          step, and what the stage keeps beside its engines
    engines/<name>/     each engine as DeepSpeed saves it: trained weights, optimizer, learning-rate schedule
    rank_<r>.pt         the random generators of a rank
    metrics.jsonl       what the run had logged
    best.safetensors    stages 1 and 2: the weights of the best epoch, while those are not the present ones
    model/              configuration and tokenizer of the trained model, for utils/export_checkpoint.py

It is written under another name and renamed once every rank is done, and read only if every file still has its
checksum. All ranks must see the same file system.
"""

import argparse
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from utils.checkpoints.manifest import (
    ENGINES,
    FORMAT,
    MANIFEST,
    STATE,
    Checkpoint,
    describe_files,
    newest_whole,
    sealed,
    step_folders,
)
from utils.checkpoints.reshape import load_engine
from utils.checkpoints.same_run import FIXED, Facts, differences, library_versions
from utils.engines.deepspeed_config import quiet
from utils.engines.engines import Engine, hyperparameters_of, set_hyperparameters
from utils.output.files import EXPORT_PREFIX, flush_to_disk, remove_folder, remove_left_overs, write_json
from utils.process.distributed import all_gather_objects, barrier, is_main, print_main, rank, world_size
from utils.process.errors import Failure, UserError, writing
from utils.process.random_states import random_states, restore_random_states
from utils.process.rank_watch import beat

# --- one checkpoint


# --- what must be the same when a run goes on


# --- the checkpoints of a run


class Checkpoints:
    """The checkpoints of one run: finds the one to go on from, makes new ones, keeps a bounded number.

    Call every method on every rank, after the process group is formed.

    Attributes:
        newest: the one to go on from, None for a run that begins.
        changed: whether flags, data or models are others than then, as `--allow_changed_flags` permits.
        unproven: the newest one as long as no optimizer step was taken after it: its weights may have diverged.

    Args:
        stage: "sft", "reward" or "gapo".
        facts: {what a result depends on: fingerprint}, beside the flags; needed on the main rank only.

    Raises:
        UserError: no checkpoint is whole, or the one found belongs to a run with another result; lists the differences.
    """

    def __init__(self, args: argparse.Namespace, stage: str, facts: Facts):
        beat("looking for a checkpoint")
        self.args, self.stage, self.facts = args, stage, facts
        self.directory = Path(args.output_dir) / "checkpoints"
        if is_main():
            remove_left_overs(self.directory.parent)
            remove_left_overs(self.directory)
            if args.fresh:
                remove_folder(self.directory)
        barrier()
        self.newest, self.changed = newest_whole(self.directory), False
        self.unproven = self.newest and self.newest.folder
        if self.newest:
            self.check_same_run(self.newest)
            print_main(f"going on from {self.newest.folder}")
            if is_main():
                for folder in step_folders(self.directory):
                    if folder.name > self.newest.folder.name:  # damaged
                        remove_folder(folder)

    def check_same_run(self, checkpoint: Checkpoint) -> None:
        """Raise UserError where the checkpoint's run has another result than this one, unless that is permitted."""
        found, manifest = [], checkpoint.manifest
        if is_main():
            found = differences(manifest, vars(self.args), self.facts, world_size())
            if manifest["stage"] != self.stage:
                found.insert(0, f"stage {manifest['stage']} -> {self.stage}")
        found = all_gather_objects(found)[0]
        fixed = [line for line in found if line.startswith(FIXED)]
        if fixed or (found and not self.args.allow_changed_flags):
            ways = "--fresh starts over" if fixed else "--allow_changed_flags goes on with it, --fresh starts over"
            reasons = "; ".join(fixed or found)
            raise UserError(f"{checkpoint.folder} is of a run with another result: {reasons} ({ways})")
        if found:
            self.changed = True
            print_main(f"--allow_changed_flags: going on with {'; '.join(found)}")
        if manifest["versions"] != library_versions():
            versions = " ".join(f"{name} {version}" for name, version in manifest["versions"].items())
            print_main(f"note: the checkpoint was made with {versions}: results may differ in rounding")
        if manifest["world_size"] != world_size():
            ranks = f"{manifest['world_size']} -> {world_size()}"
            print_main(f"number of ranks {ranks}: the run goes on, with other random numbers on its ranks")

    def restore(self, engines: dict[str, Engine]) -> dict[str, Any] | None:
        """Load the checkpoint that was found, if any, into engines and random generators; what the stage kept.

        Raises:
            UserError: it is of other models.
        """
        if self.newest is None:
            return None
        manifest, folder = self.newest.manifest, self.newest.folder
        saved = sorted(path.name for path in (folder / ENGINES).iterdir() if path.is_dir())
        if saved != sorted(engines):
            raise UserError(f"{folder} has the engines {', '.join(saved)}, this run has {', '.join(engines)}")
        for name, engine in engines.items():
            beat(f"loading {name} from {folder.name}")
            own = hyperparameters_of(engine)
            try:
                load_engine(engine, folder / ENGINES, name, manifest["world_size"], manifest["flags"]["zero_stage"])
            except RuntimeError as error:
                if "state_dict" not in str(error):
                    raise
                raise UserError(f"{folder}: {name} is a model of another shape (--fresh starts over)") from error
            if self.changed:
                set_hyperparameters(engine, own)
        states = folder / f"rank_{rank()}.pt"
        if states.is_file():
            restore_random_states(torch.load(states, weights_only=True))
        return self.newest.state()

    def due(self, step: int, last_step: int, skipping: bool) -> bool:
        """Whether a checkpoint is to be made after `step`.

        The last step has one, so that exporting can be repeated; while steps are skipped there are none, since
        going on from them would go on skipping.
        """
        interval = self.args.checkpoint_interval
        return interval > 0 and not skipping and (step % interval == 0 or step == last_step)

    def save(
        self,
        step: int,
        engines: dict[str, Engine],
        state: dict[str, Any],
        write_more: Callable[[Path], None],
    ) -> None:
        """Make the checkpoint of a step.

        Args:
            write_more: adds files to the folder it is given; called on the main rank.

        Raises:
            Failure: it cannot be written; what was there before is untouched.
        """
        folder = self.directory / f"step_{step:08d}"
        partial = self.directory / f"{EXPORT_PREFIX}{folder.name}"
        with self.failing_whole(step, partial):
            if is_main():
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)
            barrier()
            for name, engine in engines.items():
                beat(f"writing {name} into {folder.name}")
                with quiet():
                    engine.save_checkpoint(
                        partial / ENGINES, tag=name, save_latest=False, exclude_frozen_parameters=True
                    )
            torch.save(random_states(), partial / f"rank_{rank()}.pt")
            if is_main():
                write_json(partial / STATE, {"step": step} | state)
                write_more(partial)
            barrier()
            files = describe_files(partial)
            if is_main():
                write_json(partial / MANIFEST, self.manifest(step, files))
                flush_to_disk([partial / MANIFEST])
                remove_folder(folder)
                partial.rename(folder)
            barrier()
        self.unproven = folder

    def manifest(self, step: int, files: dict[str, Any]) -> dict[str, Any]:
        manifest = {
            "format": FORMAT,
            "step": step,
            "stage": self.stage,
            "flags": vars(self.args),
            "world_size": world_size(),
            "facts": self.facts,
            "versions": library_versions(),
            "files": files,
        }
        return sealed(json.loads(json.dumps(manifest)))

    @contextmanager
    def failing_whole(self, step: int, partial: Path) -> Iterator[None]:
        """Turn an error of writing into one line, without the half-written folder."""
        try:
            with writing(partial):
                yield
        except Failure as error:
            shutil.rmtree(partial, ignore_errors=True)
            folders = step_folders(self.directory)
            raise Failure(
                f"--output_dir {self.args.output_dir}: the checkpoint of step {step} cannot be written ({error});"
                f" {f'the last one is {folders[-1]}' if folders else 'there is none before it'}"
            ) from error

    def prove(self) -> None:
        """A finite optimizer step was taken after the newest checkpoint: it is good, older ones have served."""
        if self.unproven:
            self.unproven = None
            self.remove_old()

    def give_up(self) -> str:
        """The run stops because nothing is finite any more: drop the checkpoint that led there; the last good one."""
        folders = [folder for folder in step_folders(self.directory) if folder != self.unproven]
        barrier()
        if self.unproven and is_main():
            remove_folder(self.unproven)
        return f"the last good checkpoint is {folders[-1]}" if folders else "there is no good checkpoint"

    def remove_old(self) -> None:
        if is_main():
            for folder in step_folders(self.directory)[: -self.args.checkpoints_kept]:
                remove_folder(folder)

    def finish(self) -> None:
        """The run's result is in place: its checkpoints have served, unless `--keep_checkpoints`."""
        barrier()  # where no step was left to do, other ranks may still be reading theirs
        self.remove_old()
        if is_main() and not self.args.keep_checkpoints:
            remove_folder(self.directory)
        barrier()
