"""What an iteration samples, and what it is worth: two tables on disk, piece by piece, that a killed run goes on with.

First the policy answers, alone in memory; then one score model after the other reads the answers. The random numbers
of a batch come from the seed, the iteration and the batch: what is sampled does not depend on where a run was killed.
"""

import argparse
import gc
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from deepspeed.accelerator import get_accelerator
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from step3_dpa.prompts import Asked
from utils.data.encoding import data_fingerprint, end_ids, response_text
from utils.models.configs import DTYPES, load_config, sampling_config
from utils.models.fingerprint import model_facts
from utils.models.loading import load_causal_lm
from utils.policy.sampled import sample_responses
from utils.policy.sampling import COMPACT_AT, decode
from utils.process.distributed import device, is_main, seed_everything
from utils.process.rank_watch import beat
from utils.scoring.objectives import Objective, by_source
from utils.scoring.scorers import Row, load_row_scorer
from utils.steering.directions import steering_of
from utils.supervised.kept import KeptTable

PIECE_SIZE = 256  # prompts in one file
NOTHING = -1  # in place of a token, behind the last one of a reply


def sample(
    folder: Path,
    asked: list[Asked],
    policy: str,
    label: str,
    tokenizer: PreTrainedTokenizerBase,
    args: argparse.Namespace,
) -> torch.Tensor:
    """`--samples_per_direction` replies of a policy to every prompt; those that are there already are kept.

    A policy that is not steered yet is not told the direction, which would only confuse it (ours: what the paper's
    first iteration samples is not known).

    Returns:
        [n, replies, --max_new_tokens] int32 ids, each reply up to and including what ends it, then `NOTHING`.
    """
    if steering_of(load_config(policy, "the policy"), policy) is None:
        asked = [each.untold(tokenizer) for each in asked]
    settings = {name: getattr(args, name) for name in ("temperature", "max_new_tokens", "dtype", "seed")}
    facts = prompts_of(asked) | settings | {"replies": args.samples_per_direction}
    if is_main():
        facts |= model_facts(policy, "the policy")
    table = KeptTable(folder / "samples", asked, facts, PIECE_SIZE, None)
    if table.missing():
        beat("loading the policy that samples")
        model = load_causal_lm(policy, "the policy", DTYPES[args.dtype]).to(device()).eval()
        model.generation_config = sampling_config(tokenizer, args.temperature, args.max_new_tokens)
        compute_replies(table, model, label, tokenizer, args)
        del model
        free_memory()
    return table.whole()


def compute_replies(
    table: KeptTable,
    model: PreTrainedModel,
    label: str,
    tokenizer: PreTrainedTokenizerBase,
    args: argparse.Namespace,
) -> None:
    """The missing pieces of the replies."""
    places = {id(each): place for place, each in enumerate(table.examples)}
    part = "/".join(table.folder.parts[-3:-1])  # such as iteration_1/train: not how many iterations there are to be

    def measure(examples: list[Asked]) -> torch.Tensor:
        seed_everything(seed_of(args.seed, part, places[id(examples[0])]))
        return replies_of(model, examples, tokenizer, args)

    table.compute(f"{label}: samples", None, args.per_device_prompt_batch_size, measure, torch.int32)


def prompts_of(asked: list[Asked]) -> dict[str, Any]:
    """What tells these prompts with their directions from others."""
    return {"prompts": data_fingerprint(asked)}


def seed_of(seed: int, part: str, place: int) -> int:
    """A seed of its own for the batch that begins with this prompt."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{part}/{place}".encode()).digest()[:4], "big")


def replies_of(
    model: PreTrainedModel, asked: list[Asked], tokenizer: PreTrainedTokenizerBase, args: argparse.Namespace
) -> torch.Tensor:
    """[prompts, replies, --max_new_tokens] int64; see `sample`."""
    settings, copies = model.generation_config, args.samples_per_direction
    generate = lambda ids, attention, n: decode(model, ids, attention, settings, COMPACT_AT, n)
    sampled = sample_responses(generate, asked, tokenizer, len(asked), copies)
    ids = sampled.actions.masked_fill(sampled.mask == 0, NOTHING)
    ids = torch.nn.functional.pad(ids, (0, args.max_new_tokens - ids.shape[1]), value=NOTHING)
    return ids.view(len(asked), copies, -1)


def score(
    folder: Path,
    asked: list[Asked],
    replies: torch.Tensor,
    objectives: Sequence[Objective],
    label: str,
    tokenizer: PreTrainedTokenizerBase,
    args: argparse.Namespace,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Every attribute's value of every reply, in original units, by one model after the other.

    Returns:
        [n, replies, m] float64 values, 0 where there is none, and [n, replies] bool, whether every attribute has one.
    """
    values = torch.zeros(*replies.shape[:2], len(objectives), dtype=torch.float64)
    judged = torch.ones(replies.shape[:2], dtype=torch.bool)
    columns = {objective.name: column for column, objective in enumerate(objectives)}
    digest = hashlib.sha256(replies.numpy().tobytes()).hexdigest()
    for group in by_source(objectives):
        names = [objective.name for objective in group]
        facts = prompts_of(asked) | {"replies": digest, "dtype": args.dtype, "labels": [each.label for each in group]}
        for objective in group:
            facts |= objective.facts() if is_main() else {}
        table = KeptTable(folder / f"scores_{'_'.join(names)}", asked, facts, PIECE_SIZE, None)
        if table.missing():
            compute_scores(table, group, replies, f"{label}: {', '.join(names)}", tokenizer, args)
            free_memory()
        found = table.whole()  # [n, replies, group, 2]
        for place, name in enumerate(names):
            values[:, :, columns[name]] = found[:, :, place, 0]
            judged &= found[:, :, place, 1] > 0
    return values, judged


def compute_scores(
    table: KeptTable,
    group: list[Objective],
    replies: torch.Tensor,
    label: str,
    tokenizer: PreTrainedTokenizerBase,
    args: argparse.Namespace,
) -> None:
    """The missing pieces of the values of attributes that share a model: [n, replies, group, 2], the value and 1, or
    two zeros."""
    beat(f"loading {group[0].flag}")
    scorer = load_row_scorer(group, DTYPES[args.dtype], args.per_device_eval_batch_size)
    places = {id(each): place for place, each in enumerate(table.examples)}

    def measure(examples: list[Asked]) -> torch.Tensor:
        rows = [row for each in examples for row in rows_of(each, replies[places[id(each)]], tokenizer)]
        found = scorer(rows).values
        pairs = [[(found[o.name][i] or 0.0, found[o.name][i] is not None) for o in group] for i in range(len(rows))]
        numbers = torch.tensor(pairs, dtype=torch.float64, device=device())
        return numbers.view(len(examples), -1, len(group), 2)

    table.compute(label, None, args.per_device_prompt_batch_size, measure, torch.float64)


def rows_of(asked: Asked, replies: torch.Tensor, tokenizer: PreTrainedTokenizerBase) -> list[Row]:
    """The replies to a prompt as rows that a scorer reads, without the direction. Args: replies: [replies, time]."""
    plain, ends = asked.plain, set(end_ids(tokenizer))
    shared = {"prompt": plain.messages[-1]["content"], "messages": plain.messages, "source": plain.source}
    ids = [tokens_of(reply) for reply in replies]
    return [{**shared, "response": response_text(tokenizer, each), "finished": each[-1] in ends} for each in ids]


def tokens_of(reply: torch.Tensor) -> list[int]:
    """The ids of a reply, [time] int, without `NOTHING`."""
    return reply[reply != NOTHING].tolist()


def free_memory() -> None:
    """What nothing refers to any more is given back to the device."""
    gc.collect()
    get_accelerator().empty_cache()
