"""Folders in peft's format: the adapters of a policy, and what their base is.

They can be named where a policy is read (stages 1 and 3, generate, chat, judge) and are merged into their base on the
way; stage 2 and soups need a whole model. `--lora_export adapter` writes the base's config.json and the tokenizer
beside peft's two files; where these are missing, they are the base's own.
"""

import json
import warnings
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import nn

from utils.cli.hub import is_local, source_of
from utils.engines.arrival import whole
from utils.process.errors import UserError

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
TOKENIZER_FILES = ("tokenizer_config.json", "tokenizer.json", "tokenizer.model")
PREFIX = "base_model.model."  # of peft, before the names of the base


def is_adapter_folder(path: str) -> bool:
    return (Path(path) / ADAPTER_CONFIG).is_file()


def has_tokenizer(path: str) -> bool:
    return any((Path(path) / name).is_file() for name in TOKENIZER_FILES)


def are_hub_adapters(path: str) -> bool:
    """Whether a hub name, perhaps `NAME@REVISION`, stands for adapters alone."""
    from transformers.utils.peft_utils import find_adapter_config_file

    if is_local(path):
        return False
    source = source_of(path)
    try:
        return (
            find_adapter_config_file(source["pretrained_model_name_or_path"], revision=source["revision"]) is not None
        )
    except OSError:  # there is no such name, or nobody to ask
        return False


def base_of(path: str, flag: str) -> str:
    """Folder or hub name (`NAME@REVISION`) of the model that the adapters in a folder belong to.

    Raises:
        UserError: it does not say, or that is a folder of adapters, too; names `flag`.
    """
    try:
        config = json.loads((Path(path) / ADAPTER_CONFIG).read_text(encoding="utf-8"))
        base, revision = config["base_model_name_or_path"], config.get("revision")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{flag} {path}: {ADAPTER_CONFIG} names no base ({type(error).__name__})") from None
    if not isinstance(base, str) or is_adapter_folder(base):
        raise UserError(f"{flag} {path}: the base in {ADAPTER_CONFIG} is no whole model: {base}")
    return f"{base}@{revision}" if revision and not Path(base).is_dir() else base


def check_adapters(model: nn.Module, path: str, flag: str) -> None:
    """Compare the headers of a folder's adapters with the base.

    Args:
        model: the base; may be on the meta device.

    Raises:
        UserError: no safetensors there, damaged, or of layers that the base lacks or has in another size; names
            `flag`.
    """
    try:
        with safe_open(Path(path) / ADAPTER_WEIGHTS, framework="pt") as file:
            shapes = {name.removeprefix(PREFIX): file.get_slice(name).get_shape() for name in file.keys()}
    except (OSError, SafetensorError) as error:
        raise UserError(f"{flag} {path}: cannot read {ADAPTER_WEIGHTS} ({error})") from None
    modules, parameters = dict(model.named_modules()), dict(model.named_parameters(remove_duplicate=False))
    for name, shape in sorted(shapes.items()):
        layer, _, part = name.partition(".lora_")
        if layer not in modules and layer not in parameters:
            raise UserError(f"{flag} {path}: the adapters are of {layer}, which the base lacks")
        expected = parameters[name].shape if name in parameters else adapter_shape(modules.get(layer), part, shape)
        if list(expected) != shape:
            raise UserError(f"{flag} {path}: {name} has shape {shape}, the base takes {list(expected)}")


def adapter_shape(layer: nn.Module | None, part: str, shape: list[int]) -> list[int]:
    """The shape that the matrix A or B of an adapter needs on a linear layer; `shape` itself for all else.

    Args:
        part: what follows ".lora_" in its name.
        shape: what it has; of A [rank, inputs], of B [outputs, rank].
    """
    if len(shape) != 2 or part not in ("A.weight", "B.weight"):
        return shape
    if hasattr(layer, "nf"):  # GPT-2's Conv1D
        inputs, outputs = layer.nx, layer.nf
    elif isinstance(layer, nn.Linear):
        inputs, outputs = layer.in_features, layer.out_features
    else:
        return shape
    return [shape[0], inputs] if part == "A.weight" else [outputs, shape[1]]


def needs_whole_base(path: str) -> bool:
    """Whether peft reads or replaces weights of the base to attach a folder's adapters: all but plain LoRA do."""
    config = json.loads((Path(path) / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    plain = config.get("peft_type") == "LORA" and config.get("bias", "none") == "none"
    if not plain or config.get("use_dora") or config.get("target_parameters"):
        return True
    if config.get("init_lora_weights", True) not in (True, False, "gaussian"):
        return True
    with safe_open(Path(path) / ADAPTER_WEIGHTS, framework="pt") as file:
        return not all(name.endswith((".lora_A.weight", ".lora_B.weight")) for name in file.keys())


def merge_adapters(model: nn.Module, path: str) -> nn.Module:
    """The base, which may be partitioned, with a folder's adapters merged into its weights."""
    from peft import PeftModel  # costs a while, and most models have no adapters
    from peft.tuners.tuners_utils import BaseTunerLayer

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about names that peft takes from transformers, and that all is merged
        adapted = PeftModel.from_pretrained(model, path)
        for layer in adapted.modules():
            if isinstance(layer, BaseTunerLayer):
                with whole(*layer.get_base_layer().parameters(), changed=True):
                    layer.merge()
        return adapted.merge_and_unload().requires_grad_(True)
