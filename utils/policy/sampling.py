"""Decoding a batch whose responses end at different times: it is compacted, rows that have ended leave it."""

from functools import partial
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer
from transformers.generation import LogitsProcessorList, StoppingCriteriaList

from utils.models.shared_prompts import cache_obstacle

COMPACT_AT = 0.25  # of the batch; docs/scaling.md has what shares bring


def compaction_obstacle(model: PreTrainedModel) -> str | None:
    """Why rows cannot leave a batch of `model` while it decodes; None where they can."""
    if "generate" in vars(model):
        return f"{type(model).__name__} brings its own `generate`"
    return cache_obstacle(type(model), model.config)


def decode(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    generation: GenerationConfig,
    compact_at: float,
    copies: int = 1,
) -> torch.Tensor:
    """What `model.generate` returns for the same random numbers, up to rounding; by itself where there is an obstacle.

    Args:
        input_ids, attention_mask: [prompts, prompt] int64, left-padded.
        generation: greedy or sampling, by tokens; one sequence a prompt.
        compact_at: rows that have ended leave the batch when they are at least this share of it; 0: never.
        copies: responses a prompt, which is read once for all of them, unless `model.generate` does it by itself.

    Returns:
        [prompts · copies, prompt + longest response] int64, padded after EOS; a prompt's responses are neighbours.
    """
    compacts = compact_at > 0 and compaction_obstacle(model) is None
    loop = {"custom_generate": partial(sample, compact_at=compact_at, copies=copies)} if compacts else {}
    if not compacts:
        input_ids, attention_mask = repeated(input_ids, copies), repeated(attention_mask, copies)
    return model.generate(input_ids=input_ids, attention_mask=attention_mask, generation_config=generation, **loop)


def repeated(rows: torch.Tensor, copies: int) -> torch.Tensor:
    """Every row so many times, one after another: [n, ...] -> [n · copies, ...]."""
    return rows if copies == 1 else rows.repeat_interleave(copies, dim=0)


def sample(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    compact_at: float,
    copies: int,
    **model_kwargs: Any,
) -> torch.Tensor:
    """transformers' loop (`GenerationMixin._sample`), which calls this in its place, with rows that leave."""
    pad_id, draw = generation_config._pad_token_tensor, Draw(generation_config.do_sample)
    inputs = model.prepare_inputs_for_generation(input_ids, is_first_iteration=True, **model_kwargs)
    outputs = model(**inputs, return_dict=True)
    if copies > 1:
        outputs.logits = repeated(outputs.logits[:, -1:], copies)
        outputs.past_key_values.batch_repeat_interleave(copies)
        input_ids, model_kwargs = model._expand_inputs_for_generation(copies, input_ids=input_ids, **model_kwargs)
    batch, prompt = input_ids.shape
    sequences = input_ids.new_full((batch, generation_config.max_length), int(pad_id))
    sequences[:, :prompt] = input_ids
    rows = torch.arange(batch, device=input_ids.device)  # of the batch, which are still in it
    running = torch.ones_like(rows, dtype=torch.bool)
    with model._optimize_model_for_decode():  # experts have other kernels for few tokens
        while True:
            model_kwargs = model._update_model_kwargs_for_generation(outputs, model_kwargs)
            logits = outputs.logits[:, -1].to(copy=True, dtype=torch.float32)
            del outputs  # holds the logits of the whole prompt where a model cannot leave them out
            tokens = torch.where(running, draw(logits_processor(input_ids, logits), rows), pad_id)
            sequences[rows, input_ids.shape[1]] = tokens
            input_ids = torch.cat([input_ids, tokens[:, None]], dim=-1)
            running &= ~stopping_criteria(input_ids, None)
            left = int(running.sum())
            if not left:
                return sequences[:, : input_ids.shape[1]]
            if len(rows) - left >= compact_at * len(rows):
                kept = running.nonzero().squeeze(-1)
                model_kwargs = select_rows(model_kwargs, kept, columns_count=model.is_remote_code())
                rows, input_ids, running = rows[kept], input_ids[kept], running[kept]
            inputs = model.prepare_inputs_for_generation(input_ids, next_sequence_length=1, **model_kwargs)
            outputs = model(**inputs, return_dict=True)


class Draw:
    """Next tokens: [rows, vocabulary] float32 logits and the rows' indices in the batch, [rows] -> [rows] int64.

    Random numbers are drawn for the whole batch at every step, for rows that have left it, too: a token does not
    depend on which others are there. Rows that have left keep the probabilities they had.
    """

    def __init__(self, do_sample: bool):
        self.do_sample = do_sample
        self.probabilities: torch.Tensor | None = None  # [batch, vocabulary]

    def __call__(self, logits: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        if not self.do_sample:
            return logits.argmax(dim=-1)
        probabilities = logits.softmax(dim=-1)
        if self.probabilities is None or len(rows) == len(self.probabilities):
            self.probabilities = probabilities
        else:
            self.probabilities[rows] = probabilities
        return torch.multinomial(self.probabilities, num_samples=1).squeeze(1)[rows]


def select_rows(model_kwargs: dict[str, Any], kept: torch.Tensor, columns_count: bool) -> dict[str, Any]:
    """What a model is called with, of these rows alone ([k] int64), without columns that are padding in all of them.

    The columns stay where a model may take positions from their number: without `position_ids`, with code of its own,
    or in a window, which counts the columns it has seen.
    """
    mask, cache = model_kwargs.get("attention_mask"), model_kwargs["past_key_values"]
    positions, first = model_kwargs.get("position_ids"), 0
    if mask is not None:
        mask = mask[kept]
        plain = positions is not None and all(type(layer) is DynamicLayer for layer in cache.layers)
        if plain and not columns_count:
            first = int(mask.any(dim=0).int().argmax())
        model_kwargs |= {"attention_mask": mask[:, first:]}
    if positions is not None:
        model_kwargs |= {"position_ids": positions[kept, first:]}
    select_keys_and_values(cache, kept, first)
    return model_kwargs


def select_keys_and_values(cache: Cache, kept: torch.Tensor, first: int) -> None:
    """Keep these rows and the columns from `first` on, in place, layer by layer."""
    for layer in cache.layers:
        layer.keys, layer.values = layer.keys[kept, :, first:], layer.values[kept, :, first:]
