"""Model folders in Hugging Face's format: what `save_pretrained` writes, and the tokenizer with its template."""

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from utils.data.encoding import end_ids

# Parameters of sampling in generation_config.json.
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "top_h")


def describe_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """Write what `export_model` writes beside the weights: configuration and tokenizer."""
    with as_published(model, tokenizer):
        model.config.architectures, model.config.dtype = [type(model).__name__], model.dtype
        model.config.save_pretrained(directory)
        if model.can_generate():
            model.generation_config.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def export_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    directory: Path,
    state_dict: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write a Hugging Face directory: configuration, safetensors, tokenizer with its chat template.

    Args:
        state_dict: gathered weights and persistent buffers when `model`'s own parameters are partitioned; of tied
            parameters, one name each is enough.
    """
    if state_dict is not None:
        state_dict = with_tied_names(model, state_dict)
    with as_published(model, tokenizer), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(directory, state_dict=state_dict)
    tokenizer.save_pretrained(directory)


def with_tied_names(model: PreTrainedModel, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights under all names of each parameter; transformers knows which of them it stores."""
    named = list(model.named_parameters(remove_duplicate=False))
    stored = {id(parameter): weights[name] for name, parameter in named if name in weights}
    return weights | {name: stored[id(parameter)] for name, parameter in named if id(parameter) in stored}


@contextmanager
def as_published(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Iterator[None]:
    """While it lasts, a model's configurations are those that its folder is to have.

    They say what pads, and all that ends a response; how to sample is what the folder it came from said.
    """
    ends = end_ids(tokenizer)
    ends = ends[0] if len(ends) == 1 else ends
    own, model.config = model.config, copy.deepcopy(model.config)
    for config in (model.config, model.config.get_text_config()):
        config.use_cache, config.pad_token_id = True, tokenizer.pad_token_id
        if not model.can_generate():  # what can has generation_config.json for it
            config.eos_token_id = ends
    own_generation = model.generation_config if model.can_generate() else None
    if own_generation is not None:
        model.generation_config = published_generation_config(own_generation, tokenizer.pad_token_id, ends)
    try:
        yield
    finally:
        model.config = own
        if own_generation is not None:
            model.generation_config = own_generation


def published_generation_config(
    generation: GenerationConfig, pad_token_id: int | None, ends: int | list[int]
) -> GenerationConfig:
    """A copy that stops at all `ends`. transformers loads settings that it would not write: those are mended.

    Without sampling, parameters of sampling go: they had no effect. If that is not all, the rest but sampling goes.
    """
    stops = {"pad_token_id": pad_token_id, "eos_token_id": ends, "bos_token_id": generation.bos_token_id}
    whole = copy.deepcopy(generation)
    whole.update(**stops)
    found = {name: value for name in SAMPLING if (value := getattr(generation, name, None)) is not None}
    kept = {"do_sample": True, **found} if generation.do_sample else {}
    greedy = copy.deepcopy(whole)
    greedy.update(**{} if kept else dict.fromkeys(SAMPLING))
    for published in (whole, greedy, GenerationConfig(**kept, **stops)):
        try:
            published.validate(strict=True)
        except ValueError:
            continue
        return published
    return GenerationConfig(**stops)
