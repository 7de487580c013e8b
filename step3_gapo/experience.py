"""What the policy did with a batch of prompts and what it was worth; its rows, columns and micro-batches."""

import argparse
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from utils.policy.forward import PolicyOutput
from utils.policy.sampled import columns_in_use, micro_batch_rows, sorts_by_length
from utils.process.distributed import all_reduce_sum

NamedTensors = dict[str, torch.Tensor]


def role(called: str | None = None, over_time: bool = True, **default: Any) -> Any:
    """A field of `Experience`, and what becomes of it.

    Args:
        called: what one of its numbers is called where it is not finite; None where it always is.
        over_time: whether its second dimension is the response's time.
    """
    return field(metadata={"called": called, "over_time": over_time}, **default)


@dataclass
class Graphs:
    """Passes of a whole rollout with what their backward passes need (`--keep_graphs`); each is taken once.

    Attributes:
        policy: output of the policy's pass; None once it is taken.
        values: [batch, time, heads] float32 of every critic, by the first of its names.
    """

    policy: PolicyOutput | None
    values: NamedTensors

    def take_policy(self) -> PolicyOutput:
        """The policy's output, which nothing else holds from then on."""
        output, self.policy = self.policy, None
        return output


@dataclass
class Experience:
    """What the policy did with a batch of prompts and what it was worth, objective by objective.

    Time runs over the response. All tensors are on this rank's device.

    Attributes:
        input_ids, attention_mask: [batch, prompt + response] int64, prompts left-padded, responses right-padded.
        mask: [batch, time] float32, 1 on actions (the response up to and including EOS).
        finished: [batch] float32, 1 where the response ended by itself, with EOS.
        log_probs, ref_log_probs: [batch, time] float32 of the actions, at the sampling temperature; the first are None
            where the update's own pass tells them.
        scores: name -> [batch] float32 objective values in original units, for every scored objective; 0 where there is
            none.
        judged: name -> [batch] float32, 1 where there is one.
        values, advantages, returns: name -> [batch, time] float32, for every loss (one an optimized objective, unless
            their scores are mixed); values and returns where critics learn them.
        counted: name -> [batch] float32, 1 where a response counts in that loss, because its objective has judged it.
        hidden: [batch, time, features], the input of the output head when the log-probabilities were computed, where
            an update has use for it.
        graphs: of a rollout that is one micro-batch, where the update goes on from them.
        neighbours: so many rows, one after another, stay together in a micro-batch.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    mask: torch.Tensor = role()
    finished: torch.Tensor
    log_probs: torch.Tensor | None = role("a log-probability", default=None, kw_only=True)
    ref_log_probs: torch.Tensor = role("a log-probability of the reference")
    scores: NamedTensors = role("a score", over_time=False)
    judged: NamedTensors
    values: NamedTensors = role("a value", default_factory=dict)
    advantages: NamedTensors = role("an advantage", default_factory=dict)
    returns: NamedTensors = role("a return", default_factory=dict)
    counted: NamedTensors = field(default_factory=dict)
    hidden: torch.Tensor | None = role(default=None)
    graphs: Graphs | None = None
    neighbours: int = 1

    @property
    def actions(self) -> torch.Tensor:
        """[batch, time] int64 response tokens."""
        return self.input_ids[:, -self.mask.shape[1] :]

    def units(self, losses: Sequence[str], per_response: bool = False) -> torch.Tensor:
        """[len(losses) + 1, batch, time] float32: 1 on the actions that count in a loss; at last, in any of them.

        Args:
            per_response: the responses themselves are counted, [len(losses) + 1, batch].
        """
        counted = torch.stack([self.counted[loss] for loss in losses])
        counted = torch.cat([counted, counted.amax(dim=0, keepdim=True)])
        return counted if per_response else counted.unsqueeze(-1) * self.mask

    def select(self, rows: torch.Tensor) -> "Experience":
        """The rows with these indices ([k] int64)."""

        def pick(value: torch.Tensor | NamedTensors | int | None) -> torch.Tensor | NamedTensors | int | None:
            if isinstance(value, dict):
                return {name: tensor[rows] for name, tensor in value.items()}
            return value[rows] if isinstance(value, torch.Tensor) else value

        return Experience(**{f.name: pick(getattr(self, f.name)) for f in dataclasses.fields(self)})

    def micro_batches(self, rows: torch.Tensor, args: argparse.Namespace) -> list["Experience"]:
        """The micro-batches of an optimizer step on these rows ([k] int64); none without rows."""
        if not len(rows):
            return []
        step = self.select(rows)
        rows_of_parts = micro_batch_rows(step.attention_mask, step.mask, args, self.neighbours)
        parts = [step.select(part) for part in rows_of_parts]
        return [part.trimmed() for part in parts] if sorts_by_length(args) else parts

    def trimmed(self) -> "Experience":
        """Without the columns that are padding in every row."""
        columns, time = columns_in_use(self.attention_mask, self.mask)
        over_time = [each.name for each in dataclasses.fields(self) if each.metadata.get("over_time")]

        def trim(value: torch.Tensor | NamedTensors | None) -> torch.Tensor | NamedTensors | None:
            if isinstance(value, dict):
                return {name: tensor[:, :time] for name, tensor in value.items()}
            return None if value is None else value[:, :time]

        return dataclasses.replace(
            self,
            input_ids=self.input_ids[:, columns],
            attention_mask=self.attention_mask[:, columns],
            **{name: trim(getattr(self, name)) for name in over_time},
        )

    def not_finite(self) -> str | None:
        """What of it is not finite on some rank, the first of these; None where all is."""
        tensors: NamedTensors = {}
        for each in dataclasses.fields(self):
            if called := each.metadata.get("called"):
                if (value := getattr(self, each.name)) is None:
                    continue
                parts = value.items() if isinstance(value, dict) else [(None, value)]
                tensors |= {f"{called} of {name}" if name else called: tensor for name, tensor in parts}
        bad = all_reduce_sum(torch.stack([~tensor.isfinite().all() for tensor in tensors.values()]).float())
        return next((name for name, count in zip(tensors, bad.tolist(), strict=True) if count), None)
