"""Pairs as a model reads them: two rows each, prompts left-padded, replies right-padded."""

from dataclasses import dataclass

import torch

from step3_dpo.losses import log_prob_differences
from step3_dpo.pairs import REPLIES, MeasuredPair, shared_prefix
from utils.data.batching import left_pad, right_pad
from utils.data.encoding import Encoded
from utils.policy.forward import PolicyForward
from utils.process.distributed import device


@dataclass
class PairBatch:
    """b pairs; rows 2i and 2i + 1 are the replies of pair i.

    Attributes:
        input_ids, attention_mask: [2b, prompt + time] int64.
        mask: [2b, time] float32, 1 on the tokens that a sum of log-probabilities counts: all of a reply, the token that
            ends it included, but for those with which both replies to one prompt begin, whose difference is 0.
        labels: [m, b] float64, see `LabelledPair`.
        examples: the pairs.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    mask: torch.Tensor
    labels: torch.Tensor
    examples: list[Encoded]

    @property
    def actions(self) -> torch.Tensor:
        """[2b, time] int64."""
        return self.input_ids[:, -self.mask.shape[1] :]


@dataclass
class MeasuredBatch(PairBatch):
    """The same with what frozen models say of it.

    Attributes:
        reference, margins: [b] float64; see `MeasuredPair`.
    """

    reference: torch.Tensor
    margins: torch.Tensor


def collate(examples: list[Encoded], pad_id: int) -> PairBatch:
    """A batch on this rank's device."""
    prompts, responses, begun = [], [], []
    for example in examples:
        prompts += [example.prompt, *(example.other_prompts or [example.prompt])]
        responses += example.responses
        begun += [shared_prefix(example)] * REPLIES
    ids, attention = left_pad(prompts, pad_id)
    response_ids, response_attention = right_pad(responses, pad_id)
    position = torch.arange(response_ids.shape[1])
    mask = response_attention * (position >= torch.tensor(begun)[:, None])
    labels = torch.tensor([labels_of(example) for example in examples], dtype=torch.float64).T
    columns = torch.cat([ids, response_ids], dim=1), torch.cat([attention, response_attention], dim=1), mask.float()
    return PairBatch(*(tensor.to(device()) for tensor in (*columns, labels)), examples)


def labels_of(example: Encoded) -> tuple[int, ...]:
    """[m] of a pair, measured or not."""
    return example.labels if isinstance(example, MeasuredPair) else example.record.labels


def measured(batch: PairBatch, reference: PolicyForward | None) -> MeasuredBatch:
    """A batch of `MeasuredPair`s with what is known of them.

    Args:
        reference: computes what they do not hold, where they do not.
    """
    examples: list[MeasuredPair] = batch.examples
    columns = [[each.reference, each.margin, each.of_reference] for each in examples]
    kept, margins, of_reference = torch.tensor(columns, dtype=torch.float64, device=device()).unbind(dim=-1)
    if reference is not None:
        kept = differences(reference, batch)
    return MeasuredBatch(**vars(batch), reference=kept, margins=margins - of_reference * kept)


@torch.no_grad()
def differences(forward: PolicyForward, batch: PairBatch) -> torch.Tensor:
    """log π(first) − log π(second) of each pair by a pass without gradients; [b] float64."""
    output = forward(batch.input_ids, batch.attention_mask, batch.mask.shape[1])
    return log_prob_differences(output.log_probs, batch.mask)
