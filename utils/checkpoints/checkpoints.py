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
import transformers

from utils.checkpoints.reshape import load_engine
from utils.engines.deepspeed_config import quiet
from utils.engines.engines import Engine, hyperparameters_of, set_hyperparameters
from utils.output.files import EXPORT_PREFIX, flush_to_disk, remove_folder, remove_left_overs, write_json
from utils.process.distributed import all_gather_objects, barrier, is_main, print_main, rank, world_size
from utils.process.errors import Failure, UserError, writing
from utils.process.random_states import random_states, restore_random_states
from utils.process.rank_watch import beat

FORMAT = 1
MANIFEST, STATE, ENGINES, BEST = "manifest.json", "state.json", "engines", "best.safetensors"

# What a run may go on with otherwise: where and how often it writes, and how the models lie on the devices.
FREE_FLAGS = {
    "output_dir", "print_interval", "checkpoint_interval", "checkpoints_kept", "keep_checkpoints", "fresh",
    "allow_changed_flags", "max_skipped_steps", "rank_timeout", "local_rank", "trust_remote_code", "allow_pickle",
    "zero_stage", "offload", "gradient_checkpointing", "enable_hybrid_engine", "per_device_eval_batch_size",
    "logits_chunk_size", "micro_batch_tokens", "park_frozen_models", "lora_export", "compact_at", "reward_retries",
    "reward_retry_wait", "unfit",
    "dry_run", "plan_ranks", "plan_devices", "plan_memory", "plan_host_memory", "plan_machines",
}  # fmt: skip
# Engines of other kinds, other objectives: nothing goes on with these.
FIXED = (
    "stage ", "objectives ", "--dtype ", "--critic ", "--export ", "--lora_dim ", "--lora_alpha ",
    "--lora_target_modules ", "base of the adapters (--actor_model) ",
)  # fmt: skip
# Told by their content: see `Facts`.
FLAGS_BY_CONTENT = {
    "actor_model", "reward_model", "cost_model", "reward_function", "score_template", "model_name_or_path", "data",
    "validation_data",
}  # fmt: skip
# Compared over all ranks where the number of ranks has changed.
BATCH_FLAGS = {
    "per_device_train_batch_size", "gradient_accumulation_steps", "per_device_prompt_batch_size", "generation_batches",
}  # fmt: skip
SEQUENCES = "sequences an optimizer step (--per_device_train_batch_size and others)"
PROMPTS = "prompts a rollout (--per_device_prompt_batch_size and others)"
CHUNK = 2**26  # bytes read at once

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
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            beat(f"checksum of {path.name}")
    return digest.hexdigest()


def sealed(manifest: dict[str, Any]) -> dict[str, Any]:
    """A manifest with a checksum of its own."""
    text = json.dumps({name: value for name, value in manifest.items() if name != "sha256"}, sort_keys=True)
    return manifest | {"sha256": hashlib.sha256(text.encode()).hexdigest()}


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a checkpoint.

    Raises:
        ValueError: missing, unreadable, altered, or of another format.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        whole = sealed(manifest) == manifest
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise ValueError(f"{MANIFEST} cannot be read ({type(error).__name__})") from None
    if not whole:
        raise ValueError(f"the checksum of {MANIFEST} is wrong")
    if manifest["format"] != FORMAT:
        raise ValueError(f"{MANIFEST} is of format {manifest['format']}, not {FORMAT}")
    return manifest


def fault_of_file(folder: Path, name: str, entry: dict[str, Any]) -> str | None:
    """What is wrong with one file of a checkpoint, or None."""
    path = folder / name
    try:
        if path.stat().st_size != entry["bytes"]:
            return f"{name} has {path.stat().st_size} bytes instead of {entry['bytes']}"
        return None if sha256_of(path) == entry["sha256"] else f"the checksum of {name} is wrong"
    except FileNotFoundError:
        return f"{name} is missing"
    except OSError as error:
        return f"{name} cannot be read: {error.strerror}"


def shares(sizes: dict[str, int], parts: int) -> list[list[str]]:
    """Files in `parts` lists of about equal bytes, the same on every rank."""
    lists: list[list[str]] = [[] for _ in range(parts)]
    loads = [0] * parts
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        least = loads.index(min(loads))
        lists[least].append(name)
        loads[least] += sizes[name]
    return lists


def verify(folder: Path, part: int = 0, parts: int = 1) -> str | None:
    """What is wrong with a checkpoint, or None where it is whole.

    Args:
        part, parts: which of so many equal parts of its files to look at.
    """
    try:
        files = read_manifest(folder)["files"]
    except ValueError as error:
        return str(error)
    own = shares({name: entry["bytes"] for name, entry in files.items()}, parts)[part]
    return next((fault for name in own if (fault := fault_of_file(folder, name, files[name]))), None)


def newest_whole(directory: Path) -> Checkpoint | None:
    """The newest whole checkpoint, each one's files shared out over the ranks; a line for every one that is not.

    Raises:
        UserError: there are checkpoints, but none is whole.
    """
    folders = all_gather_objects(step_folders(directory))[0]  # a shared disk may show new ones late
    for folder in reversed(folders):
        faults = all_gather_objects(verify(folder, rank(), world_size()))
        if not any(faults):
            return Checkpoint(folder, read_manifest(folder))
        print_main(f"{folder} is damaged ({next(filter(None, faults))}); looking for the one before it")
    if folders:
        raise UserError(f"--output_dir: no checkpoint in {directory} is whole; --fresh starts over")
    return None


# --- what must be the same when a run goes on


def differences(manifest: dict[str, Any], flags: dict[str, Any], facts: Facts, ranks: int) -> list[str]:
    """What is other now than when the checkpoint was made, of all that changes the result."""
    other_ranks = manifest["world_size"] != ranks
    unseen = FREE_FLAGS | FLAGS_BY_CONTENT | (BATCH_FLAGS if other_ranks else set())
    then, now = manifest["flags"], json.loads(json.dumps(flags))
    then, now = ({f"--{n}": v for n, v in part.items() if n not in unseen} for part in (then, now))
    then, now = then | manifest["facts"], now | json.loads(json.dumps(facts))
    if other_ranks:
        then, now = then | batches(manifest["flags"], manifest["world_size"]), now | batches(flags, ranks)
    then, now = ({n: None if value == [] else value for n, value in part.items()} for part in (then, now))
    names = dict.fromkeys([*then, *(n for n, value in now.items() if value or n in then)])  # no new flags that are off
    return [f"{n} {shown(then.get(n))} -> {shown(now.get(n))}" for n in names if then.get(n) != now.get(n)]


def shown(value: Any) -> str:
    """A value as on the command line; fingerprints by their first digits."""
    if value is None:
        return "(not given)"
    text = " ".join(map(str, value)) if isinstance(value, list) else str(value)
    return f"contents {text[:8]}" if len(text) == 64 and set(text) <= set("0123456789abcdef") else text


def batches(flags: dict[str, Any], ranks: int) -> dict[str, int]:
    """Batch sizes over all ranks: what has to stay when their number changes."""
    micro_batch = flags["per_device_train_batch_size"] * ranks
    found = {SEQUENCES: micro_batch * flags["gradient_accumulation_steps"]}
    if flags.get("gram_per") == "micro_batch":
        found[f"{SEQUENCES}, each micro-batch"] = micro_batch
    if "generation_batches" in flags:
        found[PROMPTS] = flags["per_device_prompt_batch_size"] * flags["generation_batches"] * ranks
    return found


def library_versions() -> dict[str, str]:
    libraries = {module.__name__: module.__version__ for module in (torch, deepspeed, transformers)}
    return {"python": platform.python_version()} | libraries


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


def describe_files(folder: Path) -> dict[str, Any]:
    """Sizes and checksums of all files of a folder, which are on the disk then; each rank takes its share."""
    paths = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    sizes = {name: path.stat().st_size for name, path in paths.items()}
    own = shares(sizes, world_size())[rank()]
    entries = {name: {"bytes": sizes[name], "sha256": sha256_of(paths[name])} for name in own}
    flush_to_disk([paths[name] for name in own])
    return dict(sorted((name, entry) for part in all_gather_objects(entries) for name, entry in part.items()))
