"""The weights of a model folder without the model: where each tensor is stored, and a fingerprint of them all.

Needs torch and safetensors only, so that it costs no import of transformers.
"""

import hashlib
import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from utils.errors import UserError

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def find_tensors(folder: str | Path, flag: str) -> dict[str, Path]:
    """{name of a tensor: its file} of a Hugging Face folder in one file or in shards, sorted by name.

    Raises:
        UserError: no safetensors there, or not all that the index names; names `flag`.
    """
    folder = Path(folder)
    try:
        if (folder / INDEX).is_file():
            shards = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
            tensors = {name: folder / shard for name, shard in sorted(shards.items())}
        elif (folder / WEIGHTS).is_file():
            with safe_open(folder / WEIGHTS, framework="pt") as file:
                tensors = {name: folder / WEIGHTS for name in sorted(file.keys())}
        else:
            raise UserError(f"{flag} {folder}: no {WEIGHTS} there")
        for path in dict.fromkeys(tensors.values()):
            with safe_open(path, framework="pt") as file:
                stored = set(file.keys())
            if missing := [name for name, place in tensors.items() if place == path and name not in stored]:
                raise UserError(f"{flag} {folder}: {path.name} lacks {missing[0]}")
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise UserError(f"{flag} {folder}: cannot read the weights ({error})") from None
    return tensors


def load_tensor(path: Path, name: str) -> torch.Tensor:
    """One tensor of a safetensors file, on the CPU."""
    with safe_open(path, framework="pt") as file:
        return file.get_tensor(name)


def weights_fingerprint(folder: str | Path, flag: str = "model") -> str:
    """sha256 over name, type, shape and bytes of every tensor, in hexadecimal; the same however it is sharded.

    Raises:
        UserError: see `find_tensors`.
    """
    digest = hashlib.sha256()
    for name, path in find_tensors(folder, flag).items():
        tensor = load_tensor(path, name)
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
