"""Reference answers ā, by whose reward CGPO calibrates others: of the data, or of the policy before training."""

import argparse
import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from utils.data.encoding import Encoded, data_fingerprint, encode_response
from utils.models.fingerprint import model_facts
from utils.output.files import remove_folder
from utils.policy.actor import Actor
from utils.policy.sampled import sample_responses
from utils.process.distributed import barrier, is_main, print_main, seed_everything
from utils.process.errors import UserError
from utils.supervised.kept import KeptTable

FOLDER = "reference_answers"
PIECE_SIZE = 1024  # answers in one file
NO_TOKEN = -1
Answers = dict[tuple[int, ...], list[int]]  # by the ids of their prompts


def given_answers(
    prompts: Sequence[Encoded], tokenizer: PreTrainedTokenizerBase, args: argparse.Namespace, rows: int | None
) -> Answers:
    """Those in the field `--reference_answers` of the prompts' rows, cut after `--max_new_tokens`.

    Args:
        rows: of the policy's embedding, if they are known.

    Raises:
        UserError: a row without one, or with one that the chat template refuses, or that has ids beyond the embedding.
    """
    name, found, cut = args.reference_answers, {}, 0
    for prompt in prompts:
        record = prompt.record
        text = record.fields.get(name)
        if not isinstance(text, str) or not text.strip():
            raise UserError(f"{record.source}: no reference answer in the field '{name}' (--reference_answers)")
        try:
            ids = encode_response(tokenizer, record.messages, text)
        except UserError as error:
            raise UserError(f"{record.source}: {error}") from None
        if rows is not None and max(ids) >= rows:
            raise UserError(f"{record.source}: the field '{name}' has the id {max(ids)}, the policy {rows} of them")
        cut += len(ids) > args.max_new_tokens
        found[tuple(prompt.prompt)] = ids[: args.max_new_tokens]
    if cut:
        print_main(f"note: {cut} of {len(found)} reference answers are cut after {args.max_new_tokens} tokens")
    return found


def sampled_answers(
    prompts: Sequence[Encoded],
    actor: Actor,
    tokenizer: PreTrainedTokenizerBase,
    args: argparse.Namespace,
    goes_on: bool,
) -> Answers:
    """One response of the policy, which is not trained yet, to each prompt; made once, and kept in pieces.

    Args:
        goes_on: whether a checkpoint has been trained with those that are there.

    Raises:
        UserError: it has been, and they are of another run.
    """
    folder = Path(args.output_dir) / FOLDER
    if is_main() and args.fresh:
        remove_folder(folder)
    barrier()
    by_ids = {tuple(prompt.prompt): prompt for prompt in prompts}
    distinct = [by_ids[ids] for ids in sorted(by_ids)]  # whatever the order of rollouts
    facts = {
        "data": data_fingerprint(distinct),
        "--temperature": args.temperature,
        "--max_new_tokens": args.max_new_tokens,
        "--dtype": args.dtype,
        "--seed": args.seed,
    } | (model_facts(args.actor_model, "--actor_model") if is_main() else {})
    table = KeptTable(folder, distinct, facts, PIECE_SIZE, "start over with --fresh" if goes_on else None)

    def measure(examples: list[Encoded]) -> torch.Tensor:
        seed_everything(seed_of(examples[0], args.seed))  # after whatever pieces
        sampled = sample_responses(actor.generate, examples, tokenizer, len(examples))
        ids = sampled.actions.masked_fill(sampled.mask == 0, NO_TOKEN)
        return torch.nn.functional.pad(ids, (0, args.max_new_tokens - ids.shape[1]), value=NO_TOKEN)

    if table.missing():
        with actor.gathered():
            table.compute("reference answers", None, args.per_device_prompt_batch_size, measure, torch.int32)
    rows = table.whole().tolist()
    return {tuple(p.prompt): [i for i in row if i != NO_TOKEN] for p, row in zip(distinct, rows, strict=True)}


def seed_of(example: Encoded, seed: int) -> int:
    """A seed that follows from an example and that of the run."""
    digest = hashlib.sha256(f"{seed} {example.prompt}".encode()).digest()
    return int.from_bytes(digest[:4], "big")
