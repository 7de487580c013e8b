"""Checkpoints that are whole or absent, and going on from the newest whole one.

`<output_dir>/checkpoints/step_00000012/` holds

    manifest.json       step, stage, flags, fingerprints of data and models, versions, size and sha256 of every file
    state.json          step, and what the stage keeps beside its engines
    engines/<name>/     each engine as DeepSpeed saves it: weights, optimizer, learning-rate schedule
    rank_<r>.pt         the random generators of a rank
    metrics.jsonl       what the run had logged
    model/              configuration and tokenizer of the trained model, for utils/export_checkpoint.py

It is written under another name and renamed once every rank is done, and read only if every file still has its
checksum. All ranks must see the same file system.
"""

import argparse
import hashlib
import json
import platform
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
import transformers

from utils.distributed import is_main, print_main, rank, world_size
from utils.engines import Engine, quiet
from utils.errors import Failure, UserError, file_system_error
from utils.output import write_json
from utils.random_states import random_states, restore_random_states
from utils.rank_watch import beat
from utils.reshape_checkpoint import load_engine

FORMAT = 1
MANIFEST, STATE, ENGINES = "manifest.json", "state.json", "engines"

# What a run may go on with otherwise: where and how often it writes, and how the models lie on the devices.
FREE_FLAGS = {
    "output_dir", "print_interval", "checkpoint_interval", "checkpoints_kept", "keep_checkpoints", "fresh",
    "allow_changed_flags", "max_skipped_steps", "rank_timeout", "local_rank", "trust_remote_code", "allow_pickle",
    "zero_stage", "offload", "gradient_checkpointing", "enable_hybrid_engine", "per_device_eval_batch_size",
}  # fmt: skip
# Told by their content, and by batch sizes over all ranks: see `Facts`.
FIXED = ("stage ", "--dtype ", "--critic ", "--monitor ")  # engines of other kinds: nothing goes on with these
FLAGS_BEHIND_FACTS = {
    "actor_model", "reward_model", "cost_model", "model_name_or_path", "data", "validation_data",
    "per_device_train_batch_size", "gradient_accumulation_steps", "per_device_prompt_batch_size", "generation_batches",
}  # fmt: skip

Facts = dict[str, Any]  # what a run's result depends on beside its flags: {description: fingerprint or number}


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint on disk."""

    folder: Path
    manifest: dict[str, Any]

    @property
    def step(self) -> int:
        return self.manifest["step"]

    def state(self) -> dict[str, Any]:
        return json.loads((self.folder / STATE).read_text(encoding="utf-8"))


# --- one checkpoint


def step_folders(directory: Path) -> list[Path]:
    """Folders of checkpoints, whole or not, oldest first."""
    return sorted(directory.glob("step_*")) if directory.is_dir() else []


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a checkpoint.

    Raises:
        ValueError: missing, unreadable, or of another format.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT or not isinstance(manifest["files"], dict):
            raise ValueError(f"{MANIFEST} is of another format")
    except (OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{MANIFEST} cannot be read ({type(error).__name__})") from None
    return manifest


def fault_of_file(folder: Path, name: str, entry: dict[str, Any]) -> str | None:
    """What is wrong with one file of a checkpoint, or None."""
    path = folder / name
    if not path.is_file():
        return f"{name} is missing"
    if path.stat().st_size != entry["bytes"]:
        return f"{name} has {path.stat().st_size} bytes instead of {entry['bytes']}"
    return None if sha256_of(path) == entry["sha256"] else f"the checksum of {name} is wrong"


def verify(folder: Path, part: int = 0, parts: int = 1) -> str | None:
    """What is wrong with a checkpoint, or None where it is whole.

    Args:
        part, parts: which of so many equal parts of its files to look at.
    """
    try:
        files = read_manifest(folder)["files"]
    except ValueError as error:
        return str(error)
    faults = (fault_of_file(folder, name, files[name]) for name in sorted(files)[part::parts])
    return next((fault for fault in faults if fault), None)


def newest_whole(directory: Path) -> Checkpoint | None:
    """The newest whole checkpoint, each one's files shared out over the ranks; a line for every one that is not.

    Raises:
        UserError: there are checkpoints, but none is whole.
    """
    folders = step_folders(directory)
    for folder in reversed(folders):
        faults = all_gather(verify(folder, rank(), world_size()))
        if not any(faults):
            return Checkpoint(folder, read_manifest(folder))
        print_main(f"{folder} is damaged ({next(filter(None, faults))}); looking for the one before it")
    if folders:
        raise UserError(f"--output_dir: no checkpoint in {directory} is whole; --fresh starts over")
    return None


def all_gather(value: Any) -> list[Any]:
    """One small object of every rank, on every rank."""
    if world_size() == 1:
        return [value]
    values = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def barrier() -> None:
    if world_size() > 1:
        dist.barrier()


# --- what must be the same when a run goes on


def differences(manifest: dict[str, Any], flags: dict[str, Any], facts: Facts) -> list[str]:
    """What is other now than when the checkpoint was made, of all that changes the result."""
    then, now = manifest["flags"], json.loads(json.dumps(flags))
    names = [n for n in dict.fromkeys([*then, *now]) if n not in FREE_FLAGS | FLAGS_BEHIND_FACTS]
    found = [f"--{n} {shown(then.get(n))} -> {shown(now.get(n))}" for n in names if then.get(n) != now.get(n)]
    then, now = manifest["facts"], json.loads(json.dumps(facts))
    for name in dict.fromkeys([*then, *now]):
        if then.get(name) != now.get(name):
            found.append(f"{name} {shown(then.get(name))} -> {shown(now.get(name))}")
    return found


def shown(value: Any) -> str:
    """A value as on the command line; fingerprints by their first digits."""
    if value is None:
        return "(not given)"
    text = " ".join(map(str, value)) if isinstance(value, list) else str(value)
    return f"contents {text[:8]}" if len(text) == 64 and set(text) <= set("0123456789abcdef") else text


def batch_facts(args: argparse.Namespace) -> Facts:
    """Batch sizes over all ranks: what stays the same when their number changes along with the sizes a rank."""
    sequences = args.per_device_train_batch_size * args.gradient_accumulation_steps * world_size()
    facts = {"sequences an optimizer step (--per_device_train_batch_size and others)": sequences}
    if hasattr(args, "per_device_prompt_batch_size"):
        prompts = args.per_device_prompt_batch_size * args.generation_batches * world_size()
        facts["prompts a rollout (--per_device_prompt_batch_size and others)"] = prompts
    return facts


def library_versions() -> dict[str, str]:
    libraries = {module.__name__: module.__version__ for module in (torch, deepspeed, transformers)}
    return {"python": platform.python_version()} | libraries


# --- the checkpoints of a run


class Checkpoints:
    """The checkpoints of one run: finds the one to go on from, makes new ones, keeps a bounded number.

    Call every method on every rank, after the process group is formed.

    Attributes:
        newest: the one to go on from, None for a run that begins.

    Args:
        stage: "sft", "reward" or "gapo".
        facts: {what a result depends on: fingerprint}, beside flags and batch sizes; needed on the main rank only.

    Raises:
        UserError: no checkpoint is whole, or the one found belongs to a run with another result; lists the differences.
    """

    def __init__(self, args: argparse.Namespace, stage: str, facts: Facts):
        beat("looking for a checkpoint")
        self.args, self.stage, self.facts = args, stage, facts | batch_facts(args)
        self.directory = Path(args.output_dir) / "checkpoints"
        if args.fresh:
            self.remove_all()
        if is_main():
            for left_over in self.directory.glob(".step_*"):
                shutil.rmtree(left_over, ignore_errors=True)
        barrier()
        self.newest = newest_whole(self.directory)
        self.last_folder = self.newest and self.newest.folder
        if self.newest:
            self.check_same_run(self.newest)
            print_main(f"going on from {self.newest.folder}")

    def check_same_run(self, checkpoint: Checkpoint) -> None:
        found = []
        if is_main():
            found = differences(checkpoint.manifest, vars(self.args), self.facts)
            if checkpoint.manifest["stage"] != self.stage:
                found.insert(0, f"stage {checkpoint.manifest['stage']} -> {self.stage}")
        found = all_gather(found)[0]
        fixed = [line for line in found if line.startswith(FIXED)]
        if fixed or (found and not self.args.allow_changed_flags):
            ways = "--fresh starts over" if fixed else "--allow_changed_flags goes on nevertheless, --fresh starts over"
            raise UserError(
                f"{checkpoint.folder} is of a run with another result: {'; '.join(fixed or found)} ({ways})"
            )
        if found:
            print_main(f"--allow_changed_flags: going on with {'; '.join(found)}")
        if checkpoint.manifest["versions"] != library_versions():
            versions = " ".join(f"{name} {version}" for name, version in checkpoint.manifest["versions"].items())
            print_main(f"note: the checkpoint was made with {versions}: results may differ in rounding")
        if checkpoint.manifest["world_size"] != world_size():
            ranks = f"{checkpoint.manifest['world_size']} -> {world_size()}"
            print_main(f"number of ranks {ranks}: the run goes on, with other random numbers on its ranks")

    def due(self, step: int, last_step: int) -> bool:
        """Whether a checkpoint is to be made after `step`; the last step has one, so that exporting can be repeated."""
        interval = self.args.checkpoint_interval
        return interval > 0 and (step % interval == 0 or step == last_step)

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
            try:
                load_engine(engine, folder / ENGINES, name, manifest["world_size"], manifest["flags"]["zero_stage"])
            except RuntimeError as error:
                if "state_dict" not in str(error):
                    raise
                raise UserError(f"{folder}: {name} is a model of another shape (--fresh starts over)") from error
        own = folder / f"rank_{rank()}.pt"
        if own.is_file():
            restore_random_states(torch.load(own, weights_only=True))
        return self.newest.state()

    def save(
        self,
        step: int,
        engines: dict[str, Engine],
        state: dict[str, Any],
        write_more: Callable[[Path], None],
    ) -> None:
        """Make the checkpoint of a step, then remove the oldest beyond `--checkpoints_kept`.

        Args:
            write_more: adds files to the folder it is given; called on the main rank.

        Raises:
            Failure: it cannot be written; what was there before is untouched.
        """
        folder = self.directory / f"step_{step:08d}"
        partial = self.directory / f".{folder.name}"
        beat("writing a checkpoint")
        with self.failing_whole(step, partial):
            if is_main():
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)
            barrier()
            for name, engine in engines.items():
                with quiet():
                    engine.save_checkpoint(partial / ENGINES, tag=name, save_latest=False)
            torch.save(random_states(), partial / f"rank_{rank()}.pt")
            if is_main():
                write_json(partial / STATE, {"step": step} | state)
                write_more(partial)
            barrier()
            files = self.describe_files(partial)
            if is_main():
                write_json(partial / MANIFEST, self.manifest(step, files))
                shutil.rmtree(folder, ignore_errors=True)  # of this step, but damaged or refused before
                partial.rename(folder)
                for old in step_folders(self.directory)[: -self.args.checkpoints_kept]:
                    shutil.rmtree(old, ignore_errors=True)
            barrier()
        self.last_folder = folder

    @contextmanager
    def failing_whole(self, step: int, partial: Path) -> Iterator[None]:
        """Turn an error of writing into one line, without the half-written folder."""
        try:
            yield
        except Exception as error:
            found = file_system_error(error)
            if found is None:
                raise
            shutil.rmtree(partial, ignore_errors=True)
            raise Failure(
                f"--output_dir {self.args.output_dir}: the checkpoint of step {step} cannot be written ({found[1]});"
                f" {self.last_good()}"
            ) from error

    def describe_files(self, folder: Path) -> dict[str, Any]:
        """Sizes and checksums of all files of a folder, each rank taking its share."""
        names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
        own = {
            name: {"bytes": (folder / name).stat().st_size, "sha256": sha256_of(folder / name)}
            for name in names[rank() :: world_size()]
        }
        return {name: entry for part in all_gather(own) for name, entry in part.items()}

    def manifest(self, step: int, files: dict[str, Any]) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "step": step,
            "stage": self.stage,
            "flags": vars(self.args),
            "world_size": world_size(),
            "facts": self.facts,
            "versions": library_versions(),
            "files": dict(sorted(files.items())),
        }

    def last_good(self) -> str:
        """Where a run that stops can be taken up again, in words."""
        return f"the last good checkpoint is {self.last_folder}" if self.last_folder else "there is no checkpoint yet"

    def remove_all(self) -> None:
        if is_main():
            shutil.rmtree(self.directory, ignore_errors=True)
        barrier()

    def finish(self) -> None:
        """The run's result is in place: its checkpoints have served, unless `--keep_checkpoints`."""
        if not self.args.keep_checkpoints:
            self.remove_all()
