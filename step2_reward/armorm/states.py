"""Hidden states of a frozen backbone at the end of dialogues and where the gate reads, computed once and kept."""

import argparse
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from utils.cli.free_flags import add_free
from utils.cli.types import positive_int
from utils.data.batching import right_pad
from utils.data.encoding import Encoded, Writer, data_fingerprint
from utils.data.records import Record
from utils.data.summaries import ReadingSummary
from utils.engines.engines import Engine
from utils.models.fingerprint import model_facts
from utils.models.loading import position_ids_from_mask
from utils.output.files import remove_folder
from utils.process.distributed import device, is_main
from utils.process.errors import UserError
from utils.scoring.armorm_format import find_pattern, missing_pattern
from utils.scoring.score_models import up_to_score
from utils.supervised.kept import KeptTable

# What states depend on, beside data and backbone.
FLAGS = ("max_length", "dtype", "attn_implementation")


def add_state_arguments(parser: argparse.ArgumentParser) -> None:
    """Where hidden states are kept."""
    group = parser.add_argument_group("hidden states")
    add_free(
        group,
        "--states_dir",
        metavar="DIR",
        help="keep the hidden states here for further runs on the same data and backbone; the default is"
        " <output_dir>/states, which goes when the run is finished; 4 bytes a hidden unit for a rated reply, 12 for a"
        " pair; all machines have to see it",
    )
    group.add_argument("--piece_size", type=positive_int, default=2048, help="dialogues in one file of states")


def states_folder(args: argparse.Namespace) -> Path:
    """The folder of all hidden states."""
    return Path(args.states_dir) if args.states_dir else Path(args.output_dir) / "states"


def fit_dialogues(
    tokenizer: PreTrainedTokenizerBase,
    records: Sequence[Record],
    summary: ReadingSummary,
    overlong: str,
    max_length: int,
    unfit: str,
    embedding_rows: int | None,
    pattern: Sequence[int] = (),
) -> list[Encoded]:
    """Whole dialogues as the chat template writes them, up to where a score is read; `fit_lengths` has the rest.

    Nothing is cut: a dialogue that is too long is an error, or left out. So is one without the gate's `pattern`.
    """
    writer, fitted, long = Writer(tokenizer, unfit), [], 0
    for record in records:
        if (dialogues := writer.rendered(record)) is None:
            continue
        dialogues = tuple(up_to_score(ids, tokenizer.pad_token_id) for ids in dialogues)
        length = max(map(len, dialogues))
        if length > max_length and overlong == "error":
            raise UserError(
                f"{record.source}: dialogue of {length} tokens is longer than --max_length {max_length} (raise the flag"
                " or pass --overlong drop)"
            )
        if length > max_length:
            long += 1
            continue
        if pattern and any(find_pattern(ids, pattern) is None for ids in dialogues):
            raise UserError(f"{record.source}: {missing_pattern(tokenizer, pattern)}")
        if embedding_rows is not None and max(map(max, dialogues)) >= embedding_rows:
            raise UserError(
                f"{record.source}: holds an id for which the model has no embedding ({embedding_rows} rows)"
            )
        fitted.append(Encoded(record, [], dialogues))
    summary.encoding += writer.dropped()
    if long:
        summary.encoding[f"dialogues dropped: longer than --max_length {max_length}"] += long
    if not fitted:
        raise UserError(f"nothing is left of {len(records)} examples: {'; '.join(summary.lines())}")
    return fitted


class StateReader(nn.Module):
    """Hidden states of a trunk at given positions."""

    def __init__(self, trunk: nn.Module):
        super().__init__()
        self.trunk = trunk

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """[b, t] ids and mask, [b, k] positions -> [b, k, d] float32."""
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        inputs["position_ids"] = position_ids_from_mask(attention_mask)
        hidden = self.trunk(**inputs, use_cache=False).last_hidden_state  # [b, t, d]
        rows = torch.arange(len(positions), device=positions.device)[:, None]
        return hidden[rows, positions].float()


def states_of(engine: Engine, examples: list[Encoded], pad_token_id: int, pattern: Sequence[int]) -> torch.Tensor:
    """States at the end of every reply, and, with a `pattern`, where the gate reads; [b, replies (+ 1), d] float32.

    The gate reads the prompt: before the replies, all dialogues of an example are the same.
    """
    dialogues = [ids for example in examples for ids in example.responses]
    replies = len(examples[0].responses)
    ids, mask = (tensor.to(device()) for tensor in right_pad(dialogues, pad_token_id))
    positions = [[len(each) - 1] for each in dialogues]
    if pattern:
        positions = [[*p, find_pattern(each, pattern)] for p, each in zip(positions, dialogues, strict=True)]
    states = engine(ids, mask, torch.tensor(positions, device=device()))  # [b * replies, 1 or 2, d]
    states = states.view(len(examples), replies, *states.shape[1:])
    return torch.cat([states[:, :, 0], states[:, :1, 1]], dim=1) if pattern else states[:, :, 0]


class KeptStates(KeptTable):
    """The states of some examples; a piece is [rows, k, d] float32."""

    def states(self) -> Iterator[tuple[int, numpy.ndarray]]:
        """The index of each piece's first example, and its states."""
        for start, states in self.read():
            yield start, states.numpy()

    def last_states(self) -> Iterator[tuple[int, numpy.ndarray]]:
        """The same of the end of the first reply alone, [rows, d]."""
        for start, states in self.states():
            yield start, states[:, 0]


def keep_states(
    args: argparse.Namespace,
    engine: Engine,
    read: dict[str, tuple[list[Encoded], list[int]]],
    pad_token_id: int,
) -> dict[str, KeptStates]:
    """The states of several groups of examples, each with the pattern at which the gate reads them ([]: it does not);
    call on every rank.

    Raises:
        UserError: see `KeptTable`, of any group, before one is computed.
    """
    flag, own = "--model_name_or_path", args.states_dir is None
    facts = model_facts(args.model_name_or_path, flag) if is_main() else {}
    facts |= {f"--{name}": getattr(args, name) for name in FLAGS}
    if is_main() and own and args.fresh:
        remove_folder(states_folder(args))
    way_out = "--fresh starts over" if own else "remove it, or choose another --states_dir"
    kept = {
        name: KeptStates(
            states_folder(args) / name, group, facts | {"data": data_fingerprint(group)}, args.piece_size, way_out
        )
        for name, (group, _) in read.items()
    }
    for name, (_, pattern) in read.items():
        measure = functools.partial(states_of, engine, pad_token_id=pad_token_id, pattern=pattern)
        kept[name].compute(f"states of {name}", engine, args.per_device_eval_batch_size, measure)
    return kept
