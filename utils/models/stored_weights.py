"""What loading a model folder would make of the tensors stored there, known from their headers alone.

transformers renames, stacks and splits tensors while it loads them (the heads of Pythia, the experts of mixtures, the
towers of vision models). So the folder is loaded in earnest here, with tensors without memory in place of those stored.
"""

import copy
import re
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from utils.models.fingerprint import find_tensors, tensor_shapes
from utils.process.errors import UserError

LAYER = re.compile(r"\.\d+\.")
STACK = re.compile(r"(?:\w+\.)?(?:layers|h)\.(\d+)\.")  # of the decoder's layers


@dataclass(frozen=True)
class StoredWeights:
    """A folder's tensors against a model.

    Attributes:
        missing: parameters and persistent buffers of the model for which nothing is stored, sorted.
        unused: tensors for which the model has no place, sorted, without those that its class is known to leave out.
        misshapen: (name, shape there, shape in the model), sorted.
    """

    missing: list[str]
    unused: list[str]
    misshapen: list[tuple[str, list[int], list[int]]]


def stored_weights(model: PreTrainedModel, path: str, flag: str) -> StoredWeights:
    """Compare the safetensors of a folder with a model.

    Args:
        model: may be on the meta device.

    Raises:
        UserError: no safetensors there, damaged, or tensors that cannot be put together; names `flag`.
    """
    shapes = tensor_shapes(find_tensors(path, flag))
    try:
        _, info = type(model).from_pretrained(
            None,
            config=copy.deepcopy(model.config),
            state_dict={name: torch.empty(shape, device="meta") for name, shape in shapes.items()},
            device_map={"": "meta"},
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except Exception as error:  # what stacks tensors found some of a set missing, a format needs a package, ...
        if isinstance(error, RuntimeError) and any("expert" in name for name in shapes):
            reason = "those of the experts do not fit together: some are missing or of other shapes"
        else:
            reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{flag} {path}: the weights cannot be loaded ({reason})") from None
    misshapen = [(name, list(there), list(here)) for name, there, here in info["mismatched_keys"]]
    return StoredWeights(sorted(info["missing_keys"]), sorted(info["unexpected_keys"]), sorted(misshapen))


def layers_beyond(model: PreTrainedModel, unused: list[str]) -> list[str]:
    """Those of the unused tensors that a further layer of the model would have, left out by loading without a word."""
    known = {LAYER.sub(".0.", name, count=1) for name in model.state_dict()}
    count = getattr(model.config.get_text_config(), "num_hidden_layers", None)

    def is_beyond(name: str) -> bool:
        number = STACK.match(name.removeprefix(model.base_model_prefix + "."))
        return LAYER.sub(".0.", name, count=1) in known or (
            count is not None and number is not None and int(number[1]) >= count
        )

    return [name for name in unused if LAYER.search(name) and is_beyond(name)]
