"""Prompts with the policy's responses, as every model of a rollout reads them, and their micro-batches."""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch.nn.functional import pad
from transformers import PreTrainedTokenizerBase

from utils.data.batching import accumulates, groups_by_tokens, left_pad, right_pad
from utils.data.encoding import Encoded, end_ids, response_text
from utils.policy.log_probs import finished, response_mask
from utils.policy.sampling import repeated
from utils.process.distributed import all_reduce_max, device
from utils.process.rank_watch import beat


@dataclass
class Sampled:
    """Prompts and the policy's responses to them, as tokens and as text; tensors on this rank's device.

    Attributes:
        input_ids, attention_mask: [batch, prompt + response] int64, prompts left-padded, responses right-padded.
        mask: [batch, time] float32 over the response, 1 on actions (everything up to and including EOS).
        finished: [batch] float32, 1 where the response ended by itself, with EOS.
    """

    prompts: list[Encoded]
    responses: list[str]
    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    mask: torch.Tensor
    finished: torch.Tensor

    @property
    def actions(self) -> torch.Tensor:
        """[batch, time] int64 response tokens."""
        return self.input_ids[:, -self.mask.shape[1] :]

    @property
    def lengths(self) -> torch.Tensor:
        """[batch] int64 tokens of each response, EOS included."""
        return self.mask.sum(dim=-1).long()

    def micro_batches(self, args: argparse.Namespace) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]]:
        """(rows, input_ids, attention_mask, time) of one micro-batch after another; as many of them on every rank."""
        for rows in micro_batch_rows(self.attention_mask, self.mask, args):
            ids, attention, mask = self.input_ids[rows], self.attention_mask[rows], self.mask[rows]
            if sorts_by_length(args):
                columns, time = columns_in_use(attention, mask)
                yield rows, ids[:, columns], attention[:, columns], time
            else:
                yield rows, ids, attention, mask.shape[1]


# [prompts, time] ids and mask, left-padded, and responses a prompt -> [prompts · responses, ...] ids with responses
Generate = Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor]


@torch.no_grad()
def sample_responses(
    generate: Generate, prompts: list[Encoded], tokenizer: PreTrainedTokenizerBase, size: int, copies: int = 1
) -> Sampled:
    """So many responses a prompt, one after another, `size` prompts at a time."""
    pad_id, ends = tokenizer.pad_token_id, end_ids(tokenizer)
    ids, attention = (t.to(device()) for t in left_pad([prompt.prompt for prompt in prompts], pad_id))
    sequences = []
    for batch in zip(ids.split(size), attention.split(size), strict=True):
        beat("generating")
        sequences.append(generate(*batch, copies))
    ids, attention = repeated(ids, copies), repeated(attention, copies)
    responses = [sequence[:, ids.shape[1] :] for sequence in sequences]  # each [size, its longest response]
    width = max(response.shape[1] for response in responses)
    masks = [response_mask(response, ends) for response in responses]
    mask = torch.cat([pad(mask, (0, width - mask.shape[1])) for mask in masks])
    response_ids = torch.cat([pad(r, (0, width - r.shape[1]), value=pad_id) for r in responses])
    response_ids = response_ids.masked_fill(mask == 0, pad_id)
    lengths = mask.sum(dim=-1).long().tolist()
    texts = [response_text(tokenizer, row[:length]) for row, length in zip(response_ids.tolist(), lengths, strict=True)]
    return Sampled(
        [prompt for prompt in prompts for _ in range(copies)],
        texts,
        input_ids=torch.cat([ids, response_ids], dim=1),
        attention_mask=torch.cat([attention, mask.long()], dim=1),
        mask=mask,
        finished=finished(response_ids, mask, ends),
    )


def sampled_of(prompts: list[Encoded], responses: list[list[int]], tokenizer: PreTrainedTokenizerBase) -> Sampled:
    """Prompts and responses that are there as ids, each up to and including its end, if it has one."""
    ids, attention = left_pad([prompt.prompt for prompt in prompts], tokenizer.pad_token_id)
    response_ids, mask = right_pad(responses, tokenizer.pad_token_id)
    ends = set(end_ids(tokenizer))
    return Sampled(
        prompts,
        [response_text(tokenizer, response) for response in responses],
        input_ids=torch.cat([ids, response_ids], dim=1).to(device()),
        attention_mask=torch.cat([attention, mask], dim=1).to(device()),
        mask=mask.float().to(device()),
        finished=torch.tensor([float(response[-1] in ends) for response in responses], device=device()),
    )


def by_micro_batch(
    run: Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor], sampled: Sampled, args: argparse.Namespace
) -> torch.Tensor:
    """What a model says of every action, from passes that bound the memory.

    Args:
        run: (input_ids, attention_mask, time) of a micro-batch -> [rows, time, ...].

    Returns:
        [batch, time, ...], zero where a micro-batch has no column.
    """
    result = None
    for rows, ids, attention, time in sampled.micro_batches(args):
        part = run(ids, attention, time)
        if result is None:
            result = part.new_zeros(*sampled.mask.shape, *part.shape[2:])
        result[rows, :time] = part
    return result


def sorts_by_length(args: argparse.Namespace) -> bool:
    """Whether micro-batches are made of sequences of like length, without the columns that are padding in all of them.

    Always where an optimizer step has several: the step stays the same. Not where each has coefficients of its own,
    which would depend on the length.
    """
    return accumulates(args) and args.gram_per == "step"


def micro_batch_rows(
    attention_mask: torch.Tensor, mask: torch.Tensor, args: argparse.Namespace, neighbours: int = 1
) -> list[torch.Tensor]:
    """Rows of one micro-batch after another: `--per_device_train_batch_size` each, or by `--micro_batch_tokens`.

    Args:
        attention_mask: [batch, prompt + response].
        mask: [batch, time] over the response.
        neighbours: so many rows, one after another, stay together.

    Returns:
        [k] int64 indices each, as many on every rank: ZeRO's collectives have to meet.
    """
    responses = mask.sum(dim=-1).long()
    lengths = torch.stack([attention_mask.sum(dim=-1) - responses, responses], dim=-1)
    lengths = lengths.view(-1, neighbours, 2).amax(dim=1)  # of prompt and response, the longest that are together
    if args.micro_batch_tokens:
        budget, parts = args.micro_batch_tokens // neighbours, lengths.tolist()
        groups = groups_by_tokens(parts, budget)
        groups = groups_by_tokens(parts, budget, at_least=most_of_ranks(len(groups)))
        found = [torch.tensor(group, device=mask.device) for group in groups]
    else:
        order = torch.arange(len(lengths), device=mask.device)
        if sorts_by_length(args):
            # What takes most memory comes first.
            order = lengths.sum(dim=-1).argsort(descending=True, stable=True)
        found = list(order.split(args.per_device_train_batch_size // neighbours))
        if args.tasks and len(found) < (most := most_of_ranks(len(found))):  # tasks have other numbers of responses
            found = list(order.tensor_split(most))
    return [rows_of_groups(part, neighbours) for part in found]


def rows_of_groups(groups: torch.Tensor, size: int) -> torch.Tensor:
    """The rows of groups of so many rows, one after another: [k] int64 -> [k · size]."""
    return (groups.unsqueeze(-1) * size + torch.arange(size, device=groups.device)).flatten()


def most_of_ranks(number: int) -> int:
    """The largest of the ranks' numbers."""
    return int(all_reduce_max(torch.tensor(number, device=device())))


def columns_in_use(attention_mask: torch.Tensor, mask: torch.Tensor) -> tuple[slice, int]:
    """The columns of a micro-batch that are not padding in every row, and how many of them are the response's."""
    width, time = mask.shape[1], int(mask.sum(dim=-1).max())
    prompt = attention_mask.shape[1] - width
    longest = int(attention_mask[:, :prompt].sum(dim=-1).max()) if prompt else 0
    return slice(prompt - longest, prompt + time), time
