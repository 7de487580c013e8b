"""Several responses to a prompt: a trunk reads it once, and each response after its keys and values, as it was sampled.

Gradients flow back through them. The numbers are those of whole rows, up to rounding.
"""

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer
from transformers.generation import GenerationMixin

Trunk = Callable[..., Any]  # a decoder's call, or forward pass, without its head


# Language models that call a part of what is their trunk: no pass of theirs can be taken apart there.
CALL_A_PART = ("opt",)
# Their frequencies depend on the longest position of a call.
VARYING_ROTATIONS = {"dynamic", "longrope"}


def cache_obstacle(language_model: type[PreTrainedModel], config: PreTrainedConfig) -> str | None:
    """Why what such a model keeps of a row is not just keys and values, by row; None where it is.

    So do layers of attention, full or in a sliding window.
    """
    if not language_model._supports_default_dynamic_cache():
        return f"{language_model.__name__} keeps states of its own"
    layers = DynamicCache(config=config.get_text_config(decoder=True)).layers
    others = {type(layer).__name__ for layer in layers} - {DynamicLayer.__name__, DynamicSlidingWindowLayer.__name__}
    if others:
        return f"{language_model.__name__} keeps more than keys and values ({', '.join(sorted(others))})"
    makes_positions = language_model._prepare_position_ids_for_generation
    if makes_positions is not GenerationMixin._prepare_position_ids_for_generation:
        return f"{language_model.__name__} keeps positions of its own"
    return None


def shares_prompts(args: argparse.Namespace, model: PreTrainedModel, responses: int | None) -> bool:
    """Whether passes of step 3 through a language model, or a trunk, read a prompt once for all of its responses.

    Args:
        responses: to each prompt; None: one.
    """
    return allows_sharing(args, responses) and can_share(model)


def allows_sharing(args: argparse.Namespace, responses: int | None) -> bool:
    """Not under ZeRO-3, where every further call gathers the weights again, nor with gradient checkpointing, which
    keeps no keys and values."""
    return (responses or 1) > 1 and args.zero_stage < 3 and not args.gradient_checkpointing


def can_share(model: PreTrainedModel) -> bool:
    """Whether the states of a prompt are the same whatever follows, and all that a model keeps are keys and values.

    Said of models whose code is transformers' own.
    """
    config = model.config.get_text_config(decoder=True)
    language_model = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(model.config), None)
    if language_model is None or model.is_remote_code() or not issubclass(language_model, GenerationMixin):
        return False
    part = isinstance(model, GenerationMixin) and config.model_type in CALL_A_PART
    looks_back = getattr(config, "is_causal", True) and not getattr(config, "use_bidirectional_attention", False)
    # Losses of routers are made from the whole text's.
    routes = getattr(config, "output_router_logits", False)
    plain = not part and looks_back and not routes and not VARYING_ROTATIONS & rotations(config)
    return plain and cache_obstacle(language_model, model.config) is None


def rotations(config: PreTrainedConfig) -> set[str]:
    """The kinds of rotary embeddings in a configuration, of all its layers."""
    settings = getattr(config, "rope_parameters", None) or {}
    kinds = [settings, *(value for value in settings.values() if isinstance(value, dict))]
    return {kind["rope_type"] for kind in kinds if kind.get("rope_type")}


class SharedPrompts:
    """The forward pass of a trunk that its model calls: inside `of`, rows with the same prompt read it together."""

    def __init__(self, trunk: nn.Module):
        self.plain, trunk.forward = trunk.forward, self.forward
        self.prompt = 0  # columns of it in the pass at work; 0: nothing is shared

    @contextmanager
    def of(self, prompt: int) -> Iterator[None]:
        """Passes over rows whose first so many columns are the prompt; see `read_prompts_once`."""
        self.prompt = prompt
        try:
            yield
        finally:
            self.prompt = 0

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """The trunk's own, or in its place `read_prompts_once`."""
        if not self.prompt:
            return self.plain(*inputs, **named)
        if inputs:  # some models give the first one without its name
            named["input_ids"], *_ = inputs
        return read_prompts_once(self.plain, self.prompt, **named)


def read_prompts_once(
    trunk: Trunk,
    prompt: int,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    position_ids: torch.Tensor | None = None,
    **others: Any,
) -> Any:
    """A trunk's pass over prompts and responses, in which rows with the same prompt share its part.

    In two parts even where no rows share one: what backward passes do in which order depends on no rank's rows.

    Args:
        prompt: columns of the prompt, left-padded; at least one.
        input_ids, attention_mask, position_ids: [rows, prompt + response] int64.

    Returns:
        The output, whose `last_hidden_state` has the prompt's last column and the response's alone,
        [rows, 1 + response, features].
    """
    first, which = distinct_rows(input_ids[:, :prompt], attention_mask[:, :prompt])
    positions = ({}, {})
    if position_ids is not None:
        positions = {"position_ids": position_ids[first, :prompt]}, {"position_ids": position_ids[:, prompt:]}
    others |= {"use_cache": True, "past_key_values": None}
    read = trunk(
        input_ids=input_ids[first, :prompt], attention_mask=attention_mask[first, :prompt], **others | positions[0]
    )
    read.past_key_values.batch_select_indices(which)
    others["past_key_values"] = read.past_key_values
    output = trunk(input_ids=input_ids[:, prompt:], attention_mask=attention_mask, **others | positions[1])
    output.last_hidden_state = torch.cat([read.last_hidden_state[which, -1:], output.last_hidden_state], dim=1)
    output["past_key_values"] = None
    return output


def distinct_rows(ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The rows that differ: for each the index of its first one, and for every row which of them it is.

    Args:
        ids, mask: [rows, columns] int64.

    Returns:
        [distinct] and [rows] int64.
    """
    _, which = torch.unique(2 * ids + mask, dim=0, return_inverse=True)
    order = torch.arange(len(ids), device=ids.device)
    first = order.new_full((int(which.max()) + 1,), len(ids)).scatter_reduce(0, which, order, "amin")
    return first, which
