"""What the policy did with a batch of prompts and what it was worth; its rows, columns and micro-batches."""

import argparse
import dataclasses
from dataclasses import dataclass, field

import torch

from utils.policy.sampled import columns_in_use, micro_batch_rows
from utils.process.distributed import all_reduce_sum

NamedTensors = dict[str, torch.Tensor]


@dataclass
class Experience:
    """What the policy did with a batch of prompts and what it was worth, objective by objective.

    Time runs over the response. All tensors are on this rank's device.

    Attributes:
        input_ids, attention_mask: [batch, prompt + response] int64, prompts left-padded, responses right-padded.
        mask: [batch, time] float32, 1 on actions (the response up to and including EOS).
        finished: [batch] float32, 1 where the response ended by itself, with EOS.
        log_probs, ref_log_probs: [batch, time] float32 of the actions, at the sampling temperature.
        scores: name -> [batch] float32 objective values in original units, for every scored objective.
        values, advantages, returns: name -> [batch, time] float32, for every loss (one an optimized objective, unless
            their scores are mixed).
        hidden: [batch, time, features], the input of the output head when the log-probabilities were computed, where
            an update has use for it.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    mask: torch.Tensor
    finished: torch.Tensor
    log_probs: torch.Tensor
    ref_log_probs: torch.Tensor
    scores: NamedTensors
    values: NamedTensors
    advantages: NamedTensors = field(default_factory=dict)
    returns: NamedTensors = field(default_factory=dict)
    hidden: torch.Tensor | None = None

    @property
    def actions(self) -> torch.Tensor:
        """[batch, time] int64 response tokens."""
        return self.input_ids[:, -self.mask.shape[1] :]

    def select(self, rows: torch.Tensor) -> "Experience":
        """The rows with these indices ([k] int64)."""

        def pick(value: torch.Tensor | NamedTensors | None) -> torch.Tensor | NamedTensors | None:
            if isinstance(value, dict):
                return {name: tensor[rows] for name, tensor in value.items()}
            return None if value is None else value[rows]

        return Experience(**{f.name: pick(getattr(self, f.name)) for f in dataclasses.fields(self)})

    def micro_batches(self, rows: torch.Tensor, args: argparse.Namespace) -> list["Experience"]:
        """The micro-batches of an optimizer step on these rows ([k] int64)."""
        step = self.select(rows)
        parts = [step.select(part) for part in micro_batch_rows(step.attention_mask, step.mask, args)]
        return [part.trimmed() for part in parts] if args.micro_batch_tokens else parts

    def trimmed(self) -> "Experience":
        """Without the columns that are padding in every row."""
        columns, time = columns_in_use(self.attention_mask, self.mask)
        over_time = ("mask", "log_probs", "ref_log_probs", "values", "advantages", "returns", "hidden")

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
        tensors = {"a log-probability": self.log_probs, "a log-probability of the reference": self.ref_log_probs}
        tensors |= {f"a score of {name}": scores for name, scores in self.scores.items()}
        tensors |= {f"a value of {name}": values for name, values in self.values.items()}
        tensors |= {f"an advantage of {name}": advantages for name, advantages in self.advantages.items()}
        tensors |= {f"a return of {name}": returns for name, returns in self.returns.items()}
        bad = all_reduce_sum(torch.stack([~tensor.isfinite().all() for tensor in tensors.values()]).float())
        return next((name for name, count in zip(tensors, bad.tolist(), strict=True) if count), None)
