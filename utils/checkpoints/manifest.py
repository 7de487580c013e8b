"""One checkpoint on disk: what it consists of, and whether it is whole."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.output.files import flush_to_disk
from utils.process.distributed import all_gather_objects, print_main, rank, world_size
from utils.process.errors import UserError
from utils.process.rank_watch import beat

FORMAT = 1
MANIFEST, STATE, ENGINES, BEST = "manifest.json", "state.json", "engines", "best.safetensors"
CHUNK = 2**26  # bytes read at once


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


def describe_files(folder: Path) -> dict[str, Any]:
    """Sizes and checksums of all files of a folder, which are on the disk then; each rank takes its share."""
    paths = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    sizes = {name: path.stat().st_size for name, path in paths.items()}
    own = shares(sizes, world_size())[rank()]
    entries = {name: {"bytes": sizes[name], "sha256": sha256_of(paths[name])} for name in own}
    flush_to_disk([paths[name] for name in own])
    return dict(sorted((name, entry) for part in all_gather_objects(entries) for name, entry in part.items()))
