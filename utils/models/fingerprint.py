"""The weights of a model folder without the model: where each tensor is stored, and a fingerprint of them all.

Needs torch and safetensors only, so that it costs no import of transformers.
"""

import hashlib
import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from utils.models.adapter_folder import ADAPTER_WEIGHTS, base_of, is_adapter_folder
from utils.process.errors import UserError
from utils.process.rank_watch import beat

MODEL_SUFFIXES = {".json", ".txt", ".model", ".jinja", ".py", ".bin", ".pt", ".pth"}
RECORDS = {"args.json", "evaluation.json", "algorithm_state.json"}  # what runs of this project leave beside a model
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def find_tensors(folder: str | Path, flag: str) -> dict[str, Path]:
    """{name of a tensor: its file} of a Hugging Face folder in one file or in shards, sorted by name.

    Raises:
        UserError: no safetensors there, or not all that the index names; names `flag`.
    """
    folder = Path(folder)
    try:
        if (folder / WEIGHTS).is_file():  # first, as transformers does
            with safe_open(folder / WEIGHTS, framework="pt") as file:
                tensors = {name: folder / WEIGHTS for name in sorted(file.keys())}
        elif (folder / INDEX).is_file():
            shards = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
            tensors = {name: folder / shard for name, shard in sorted(shards.items())}
        elif is_adapter_folder(str(folder)):
            raise UserError(f"{flag} {folder}: holds adapters alone (--lora_export merged makes a whole model)")
        else:
            raise UserError(f"{flag} {folder}: no {WEIGHTS} there")
        for path in dict.fromkeys(tensors.values()):
            with safe_open(path, framework="pt") as file:
                stored = set(file.keys())
            if missing := [name for name, place in tensors.items() if place == path and name not in stored]:
                raise UserError(f"{flag} {folder}: {path.name} lacks {missing[0]}")
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{flag} {folder}: cannot read the weights ({error})") from None
    return tensors


def tensor_shapes(tensors: dict[str, Path]) -> dict[str, list[int]]:
    """{name: shape} of what `find_tensors` found, from the headers alone."""
    shapes = {}
    for path in dict.fromkeys(tensors.values()):
        with safe_open(path, framework="pt") as file:
            shapes |= {name: file.get_slice(name).get_shape() for name, place in tensors.items() if place == path}
    return shapes


def load_tensor(path: Path, name: str) -> torch.Tensor:
    """One tensor of a safetensors file, on the CPU."""
    with safe_open(path, framework="pt") as file:
        return file.get_tensor(name)


def model_fingerprint(path: str, flag: str = "model") -> str:
    """`weights_fingerprint` of a folder with safetensors; of any other its name, and a hub name's commit.

    Of a folder of adapters: of them and of their base.
    """
    if is_adapter_folder(path):
        digest = hashlib.sha256((Path(path) / ADAPTER_WEIGHTS).read_bytes())
        digest.update(model_fingerprint(base_of(path, flag), flag).encode())
        return digest.hexdigest()
    if any((Path(path) / name).is_file() for name in (WEIGHTS, INDEX)):
        return weights_fingerprint(path, flag)
    from utils.cli.hub import commit_of

    return " ".join(filter(None, (path, commit_of(path))))


def model_facts(path: str, flag: str) -> dict[str, str]:
    """What tells a model from others, by `flag`: `model_fingerprint` and `files_fingerprint`."""
    return {flag: model_fingerprint(path, flag), f"{flag} (configuration, tokenizer)": files_fingerprint(path)}


def files_fingerprint(path: str) -> str:
    """sha256 of what lies in a model folder beside its safetensors: configuration, tokenizer, code, other weights.

    A run's own records there do not count. Of a hub name: of nothing.
    """
    folder, digest = Path(path), hashlib.sha256()
    files = [file for file in folder.iterdir() if file.is_file()] if folder.is_dir() else []
    for file in sorted(files):
        if file.suffix in MODEL_SUFFIXES and file.name not in RECORDS:
            with file.open("rb") as content:
                digest.update(f"{file.name} ".encode() + hashlib.file_digest(content, "sha256").digest())
            beat(f"reading {file}")
    return digest.hexdigest()


def weights_fingerprint(folder: str | Path, flag: str = "model") -> str:
    """sha256 over name, type, shape and bytes of every tensor, in hexadecimal; the same however it is sharded.

    Raises:
        UserError: see `find_tensors`.
    """
    digest = hashlib.sha256()
    for name, path in find_tensors(folder, flag).items():
        tensor = load_tensor(path, name)
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        beat(f"reading {path}")
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
