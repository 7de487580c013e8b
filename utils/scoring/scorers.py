"""What responses are worth: frozen reward and cost models, functions, and their values of a batch of responses."""

import argparse
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from utils.data.batching import right_pad
from utils.engines.arrival import arriving, copy_of
from utils.engines.engines import Engine, engine_config, make_frozen_engine
from utils.engines.parking import park, resident
from utils.models.configs import DTYPES, same_tokenizer
from utils.models.token_head import TokenHead
from utils.policy.sampled import Sampled, by_micro_batch
from utils.process.distributed import device
from utils.process.rank_watch import beat
from utils.scoring.objectives import Objective
from utils.scoring.reward_functions import RewardFunction
from utils.scoring.score_models import Reading, ScoreModel


@dataclass
class Scored:
    """Objective values of a batch of responses.

    Attributes:
        values: [batch] float32, in original units.
        truncated: [batch] float32, 1 where a score model had to read the dialogue without its beginning; None where
            every dialogue fits for sure.
    """

    values: torch.Tensor
    truncated: torch.Tensor | None = None


@dataclass
class FunctionScorer:
    """An objective that is a function of the texts."""

    objective: Objective
    function: RewardFunction

    starts_critic = False

    def score(self, sampled: Sampled, args: argparse.Namespace) -> Scored:
        """Call the function once for this rank's responses."""
        records = [prompt.record for prompt in sampled.prompts]
        messages, sources = [record.messages for record in records], [record.source for record in records]
        prompts = [turns[-1]["content"] for turns in messages]
        beat(f"calling the function of {self.objective.name}")
        values = self.function(prompts, sampled.responses, messages, sources)
        return Scored(torch.tensor(values, dtype=torch.float32, device=device()))


@dataclass
class ModelScorer:
    """A frozen reward or cost model.

    Attributes:
        starts_critic: whether it has a value for every token of the policy.
        critic_start: a copy of it that is to become a critic, until it has.
    """

    objective: Objective
    model: ScoreModel
    engine: Engine
    starts_critic: bool
    critic_start: TokenHead | None = None

    @property
    def reads_policy_tokens(self) -> bool:
        """Whether its ids of every dialogue are the policy's, that is, prompt and response apart and up to EOS."""
        return self.starts_critic and self.model.reading is Reading.APART

    def score(self, sampled: Sampled, args: argparse.Namespace) -> Scored:
        """Value of every response, from the score at its last token.

        A model of stage 2 with the policy's tokenizer reads the policy's tokens; any other reads the texts through its
        own tokenizer and template.
        """
        truncated = None
        if not self.reads_policy_tokens:
            sampled, truncated = in_other_tokens(sampled, self.model)

        def run(ids: torch.Tensor, attention: torch.Tensor, time: int) -> torch.Tensor:
            return self.engine(ids, attention)[:, -time:].squeeze(-1)

        with resident(self.engine.module):
            scores = by_micro_batch(run, sampled, args)  # [batch, time]
        last = sampled.mask.sum(dim=-1, keepdim=True).long() - 1
        return Scored(self.model.values(scores.gather(-1, last).squeeze(-1)), truncated)


Scorer = FunctionScorer | ModelScorer


def make_scorer(
    objective: Objective, args: argparse.Namespace, policy_tokenizer: PreTrainedTokenizerBase, has_critic: bool
) -> Scorer:
    """What scores an objective; a model is loaded into a frozen engine.

    Args:
        has_critic: whether a critic may start from it.
    """
    if objective.is_function:
        return FunctionScorer(objective, objective.load_function())
    beat(f"loading the {objective.kind} model of {objective.name}")
    with arriving(engine_config(args, frozen=True)):
        model = objective.load_model(DTYPES[args.dtype])
    same = model.scores_tokens and same_tokenizer(model.tokenizer, policy_tokenizer)
    start = copy_of(model.module, engine_config(args)) if same and has_critic else None
    engine = make_frozen_engine(model.module, args)
    if args.park_frozen_models and args.zero_stage < 3:
        park(engine.module)
    return ModelScorer(objective, model, engine, same, start)


@torch.no_grad()
def score_responses(scorer: Scorer, sampled: Sampled, args: argparse.Namespace) -> Scored:
    """Objective value of every response."""
    return scorer.score(sampled, args)


def in_other_tokens(sampled: Sampled, model: ScoreModel) -> tuple[Sampled, torch.Tensor]:
    """The same dialogues in a score model's own ids and chat template, and `Scored.truncated`."""
    rows, truncated = model.encode_all(
        [prompt.record.messages for prompt in sampled.prompts],
        sampled.responses,
        [bool(finished) for finished in sampled.finished.tolist()],
        [prompt.record.source for prompt in sampled.prompts],
    )
    ids, attention = (t.to(device()) for t in right_pad(rows, model.tokenizer.pad_token_id))
    other = dataclasses.replace(sampled, input_ids=ids, attention_mask=attention, mask=attention.float())
    return other, torch.tensor(truncated, dtype=torch.float32, device=device())


# --- responses as rows of a file


Row = dict[str, Any]  # 'prompt', 'messages', 'response', 'source', 'finished'
RowScorer = Callable[[Sequence[Row]], tuple[list[float], int]]


def load_row_scorer(objective: Objective, dtype: torch.dtype = torch.float32, batch_size: int = 1) -> RowScorer:
    """The objective's values of responses, and how many of them its model had to read without their beginning.

    Args:
        dtype, batch_size: of a model; dialogues at once.
    """
    if objective.is_function:
        function = objective.load_function()
        return lambda rows: (function(*columns(rows, "prompt", "response", "messages", "source")), 0)
    model = objective.load_model(dtype)
    model.module.to(device()).eval()

    def score(rows: Sequence[Row]) -> tuple[list[float], int]:
        dialogues, truncated = model.encode_all(*columns(rows, "messages", "response", "finished", "source"))
        scores = last_token_scores(model.module, dialogues, model.tokenizer.pad_token_id, batch_size)
        return model.values(scores).tolist(), sum(truncated)

    return score


def columns(rows: Sequence[Row], *fields: str) -> list[list[Any]]:
    """The rows' values of each field."""
    return [[row[field] for row in rows] for field in fields]


@torch.no_grad()
def last_token_scores(
    module: nn.Module, dialogues: Sequence[list[int]], pad_token_id: int, batch_size: int
) -> torch.Tensor:
    """The score at the last token of each dialogue; [n] float32 on the CPU. Like lengths go together.

    Args:
        module: see `ScoreModel.module`.
    """
    order = sorted(range(len(dialogues)), key=lambda index: len(dialogues[index]))
    scores = torch.empty(len(dialogues))
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        ids, mask = (t.to(device()) for t in right_pad([dialogues[index] for index in indices], pad_token_id))
        last = mask.sum(dim=-1, keepdim=True) - 1  # [rows, 1]
        scores[indices] = module(ids, mask).squeeze(-1).gather(-1, last).squeeze(-1).cpu()
    return scores
