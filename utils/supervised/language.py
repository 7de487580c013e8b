"""Language modeling on responses: the loss of stage 1, and of every iteration of step3_dpa."""

import argparse
import math

import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerBase

from utils.data.batching import right_pad
from utils.data.encoding import Encoded
from utils.engines.engines import Engine
from utils.models.loading import position_ids_from_mask
from utils.process.distributed import device
from utils.supervised.steps import per_example
from utils.supervised.task import Task

MAX_EXPONENT = 700  # of a float
IGNORED = -100  # label of a token that is not trained on


def language_task(
    engine: Engine,
    sides: tuple[list[Encoded], list[Encoded]],
    tokenizer: PreTrainedTokenizerBase,
    args: argparse.Namespace,
) -> Task:
    """The mean negative log-likelihood of response tokens, and perplexity on the validation data.

    Args:
        sides: training and validation examples, whose first responses count.
    """
    train, held_out = sides

    def validate() -> dict[str, float]:
        nll = lambda examples: response_nll(engine, examples, tokenizer.pad_token_id)
        table = per_example(engine, held_out, args.per_device_eval_batch_size, nll)
        loss = (table[:, 0].sum() / sum(map(response_length, held_out))).item()
        return {"loss": loss, "perplexity": math.exp(loss) if loss < MAX_EXPONENT else math.inf}

    return Task(
        train=train,
        units=response_length,
        sums=lambda examples: {"loss": response_nll(engine, examples, tokenizer.pad_token_id).sum()},
        validate=validate,
        shown=("perplexity",),
    )


def response_length(example: Encoded) -> int:
    """Response tokens, EOS included."""
    return len(example.responses[0])


def collate(examples: list[Encoded], pad_id: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Right-padded (input_ids, attention_mask, labels), each [b, t]; IGNORED labels prompt and padding."""
    ids, mask = right_pad([example.prompt + example.responses[0] for example in examples], pad_id)
    labels, _ = right_pad([[IGNORED] * len(e.prompt) + e.responses[0] for e in examples], IGNORED)
    return ids.to(device()), mask.to(device()), labels.to(device())


def response_nll(engine: Engine, examples: list[Encoded], pad_id: int) -> torch.Tensor:
    """Negative log-likelihood of each response given its prompt, summed over its tokens; [b] float32."""
    ids, mask, labels = collate(examples, pad_id)
    logits = engine(
        input_ids=ids, attention_mask=mask, position_ids=position_ids_from_mask(mask), use_cache=False
    ).logits
    return label_nll(logits, labels)


def label_nll(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Sum of −log softmax(logits_t)[labels_{t+1}] over the labels that are not IGNORED, in float32.

    Args:
        logits: [b, t, vocabulary].
        labels: [b, t].

    Returns:
        [b].
    """
    targets = labels[:, 1:]
    losses = cross_entropy(
        logits[:, :-1].float().flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none"
    )
    return losses.view_as(targets).sum(dim=-1)
