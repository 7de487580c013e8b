"""What responses are worth: frozen reward and cost models, functions, and their values of a batch of responses."""

import argparse
import dataclasses
import itertools
import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from utils.data.batching import left_pad, right_pad
from utils.data.encoding import Encoded
from utils.data.records import Prompt
from utils.engines.arrival import arriving, copy_of
from utils.engines.engines import Engine, engine_config, make_frozen_engine
from utils.engines.parking import park, resident
from utils.models.configs import DTYPES, same_tokenizer
from utils.models.shared_prompts import shares_prompts
from utils.policy.sampled import Sampled, by_micro_batch
from utils.process.distributed import device
from utils.process.rank_watch import beat
from utils.scoring.objectives import Objective, by_source, load_models
from utils.scoring.reward_functions import RewardFunction
from utils.scoring.score_models import Reading, ScoreModel


@dataclass
class Scored:
    """Objective values of a batch of responses.

    Attributes:
        values: [batch] float32, in original units; 0 where there is none.
        judged: [batch] float32, 1 where there is one.
        truncated: [batch] float32, 1 where a score model had to read the dialogue without its beginning; None where
            every dialogue fits for sure.
    """

    values: torch.Tensor
    judged: torch.Tensor
    truncated: torch.Tensor | None = None


def function_values(
    function: RewardFunction, prompts: Sequence[Prompt], responses: Sequence[str]
) -> tuple[torch.Tensor, torch.Tensor]:
    """What a function says of responses to these prompts, 0 where it says nothing, and 1 where it does; [batch]
    float32."""
    messages, sources = [prompt.messages for prompt in prompts], [prompt.source for prompt in prompts]
    found = function([turns[-1]["content"] for turns in messages], list(responses), messages, sources)
    columns = [value or 0.0 for value in found], [value is not None for value in found]
    return tuple(torch.tensor(column, dtype=torch.float32, device=device()) for column in columns)


@dataclass
class FunctionScorer:
    """An objective that is a function of the texts."""

    objective: Objective
    function: RewardFunction

    def score(self, sampled: Sampled, args: argparse.Namespace) -> dict[str, Scored]:
        """Call the function once for this rank's responses."""
        beat(f"calling the function of {self.objective.name}")
        records = [prompt.record for prompt in sampled.prompts]
        return {self.objective.name: Scored(*function_values(self.function, records, sampled.responses))}

    def take_critic_start(self, name: str) -> None:
        """It has none."""


@dataclass
class ModelScorer:
    """A frozen reward or cost model, of one objective or several.

    Attributes:
        models: of every objective, around one module.
        starts_critics: whether it has values for every token of the policy.
        critic_starts: copies of it that are to become critics, until they have, by objective.
    """

    objectives: list[Objective]
    models: list[ScoreModel]
    engine: Engine
    starts_critics: bool
    critic_starts: dict[str, ScoreModel]

    @property
    def reads_policy_tokens(self) -> bool:
        """Whether its ids of every dialogue are the policy's, that is, prompt and response apart and up to EOS."""
        return self.starts_critics and self.models[0].reading is Reading.APART

    def take_critic_start(self, name: str) -> ScoreModel | None:
        """The copy of an objective's model that becomes its critic, if there is one."""
        return self.critic_starts.pop(name, None)

    def score(self, sampled: Sampled, args: argparse.Namespace) -> dict[str, Scored]:
        """Values of every response by objective, from the scores at its last token.

        A model of stage 2 with the policy's tokenizer reads the policy's tokens; any other reads the texts through its
        own tokenizer and template.
        """
        truncated = None
        if not self.reads_policy_tokens:
            sampled, truncated = in_other_tokens(sampled, self.models[0])

        def run(ids: torch.Tensor, attention: torch.Tensor, time: int) -> torch.Tensor:
            return self.engine(ids, attention, ids.shape[1] - time)[:, -time:]

        with resident(self.engine.module):
            scores = by_micro_batch(run, sampled, args)  # [batch, time, columns]
        last = sampled.mask.sum(dim=-1).long() - 1
        scores = scores[torch.arange(len(last), device=last.device), last]
        judged = torch.ones_like(sampled.mask[:, 0])
        return {
            objective.name: Scored(model.values(scores), judged, truncated)
            for objective, model in zip(self.objectives, self.models, strict=True)
        }


Scorer = FunctionScorer | ModelScorer


def make_scorers(
    objectives: Sequence[Objective],
    args: argparse.Namespace,
    policy_tokenizer: PreTrainedTokenizerBase,
    with_critics: Collection[str],
) -> list[Scorer]:
    """What scores the objectives; models are loaded into frozen engines, each once.

    Args:
        with_critics: names of objectives whose critics may start from their models.
    """
    return [
        FunctionScorer(group[0], group[0].load_function())
        if group[0].is_function
        else make_model_scorer(group, args, policy_tokenizer, with_critics)
        for group in by_source(objectives)
    ]


def make_model_scorer(
    objectives: list[Objective],
    args: argparse.Namespace,
    policy_tokenizer: PreTrainedTokenizerBase,
    with_critics: Collection[str],
) -> ModelScorer:
    """Of objectives that share a model; see `make_scorers`."""
    beat(f"loading the {objectives[0].kind} model of {', '.join(objective.name for objective in objectives)}")
    with arriving(engine_config(args, frozen=True)):
        models = load_models(objectives, DTYPES[args.dtype])
    first = models[0]
    same = first.scores_tokens and same_tokenizer(first.tokenizer, policy_tokenizer)
    starts = {
        objective.name: dataclasses.replace(model, module=copy_of(model.module, engine_config(args)))
        for objective, model in zip(objectives, models, strict=True)
        if same and objective.name in with_critics
    }
    if first.scores_tokens:
        first.module.shares_prompts = shares_prompts(args, first.module.trunk, args.responses_per_prompt)
    engine = make_frozen_engine(first.module, args)
    if args.park_frozen_models and args.zero_stage < 3:
        park(engine.module)
    return ModelScorer(objectives, models, engine, same, starts)


@torch.no_grad()
def score_responses(scorers: Sequence[Scorer], sampled: Sampled, args: argparse.Namespace) -> dict[str, Scored]:
    """Every objective's values of every response."""
    scored: dict[str, Scored] = {}
    for scorer in scorers:
        scored |= scorer.score(sampled, args)
    return scored


def in_other_tokens(sampled: Sampled, model: ScoreModel) -> tuple[Sampled, torch.Tensor]:
    """The same dialogues in a score model's own ids and chat template, and `Scored.truncated`.

    What begins all of the responses to a prompt, one after another in the batch, is the prompt of the result, where the
    model reads it once for them.
    """
    rows, truncated = model.encode_all(
        [prompt.record.messages for prompt in sampled.prompts],
        sampled.responses,
        [bool(finished) for finished in sampled.finished.tolist()],
        [prompt.record.source for prompt in sampled.prompts],
    )
    padding = model.tokenizer.pad_token_id
    shares = model.scores_tokens and model.module.shares_prompts
    begun = beginnings(rows, neighbours(sampled.prompts)) if shares else [0] * len(rows)
    parts = [right_pad([ids[n:] for ids, n in zip(rows, begun, strict=True)], padding)]
    if any(begun):
        parts.insert(0, left_pad([ids[:n] for ids, n in zip(rows, begun, strict=True)], padding))
    ids, attention = (torch.cat(columns, dim=1).to(device()) for columns in zip(*parts, strict=True))
    mask = parts[-1][1].to(device()).float()
    other = dataclasses.replace(sampled, input_ids=ids, attention_mask=attention, mask=mask)
    return other, torch.tensor(truncated, dtype=torch.float32, device=device())


def neighbours(prompts: Sequence[Encoded]) -> list[int]:
    """How many rows, one after another, are of one prompt."""
    return [len(list(group)) for _, group in itertools.groupby(map(id, prompts))]


def beginnings(rows: Sequence[list[int]], sizes: Sequence[int]) -> list[int]:
    """How many ids groups of neighbours, of these sizes, have in common at their beginning, all but one at most; 0
    everywhere if some have none."""
    ends = list(itertools.accumulate(sizes))
    groups = [rows[end - size : end] for size, end in zip(sizes, ends, strict=True)]
    common = [min(len(os.path.commonprefix(group)), min(map(len, group)) - 1) for group in groups]
    if min(common) <= 0:
        return [0] * len(rows)
    return [length for length, size in zip(common, sizes, strict=True) for _ in range(size)]


# --- responses as rows of a file


Row = dict[str, Any]  # 'prompt', 'messages', 'response', 'source', 'finished'


@dataclass(frozen=True)
class ScoredRows:
    """Objective values of responses.

    Attributes:
        values: of every row by objective, None where there is no judgement.
        truncated: of every row, whether a model had to read it without its beginning.
        contributions: what each attribute contributes to the values, {objective: {attribute: of every row}}; of
            objectives with a gate, where they were asked for.
    """

    values: dict[str, list[float | None]]
    truncated: list[bool]
    contributions: dict[str, dict[str, list[float]]] = field(default_factory=dict)


RowScorer = Callable[[Sequence[Row]], ScoredRows]


def load_row_scorer(
    objectives: Sequence[Objective], dtype: torch.dtype = torch.float32, batch_size: int = 1, explain: bool = False
) -> RowScorer:
    """What gives responses their values of objectives that are of one source (see `by_source`).

    Args:
        dtype, batch_size: of a model; dialogues at once.
        explain: whether contributions are asked for; they come from the same pass of the model.
    """
    names = [objective.name for objective in objectives]
    if objectives[0].is_function:
        function = objectives[0].load_function()
        asked = ("prompt", "response", "messages", "source")
        return lambda rows: ScoredRows({names[0]: function(*columns(rows, *asked))}, [False] * len(rows))
    models = dict(zip(names, load_models(objectives, dtype), strict=True))
    first = models[names[0]]
    module = first.module.to(device()).eval()
    gated = {name: model for name, model in models.items() if explain and model.attributes}
    run = module.explained if gated else module

    def score(rows: Sequence[Row]) -> ScoredRows:
        dialogues, truncated = first.encode_all(*columns(rows, "messages", "response", "finished", "source"))
        scores = last_token_scores(run, dialogues, first.tokenizer.pad_token_id, batch_size)
        values = {name: model.values(scores).tolist() for name, model in models.items()}
        return ScoredRows(values, truncated, {name: model.contributions(scores) for name, model in gated.items()})

    return score


def columns(rows: Sequence[Row], *fields: str) -> list[list[Any]]:
    """The rows' values of each field."""
    return [[row[field] for row in rows] for field in fields]


@torch.no_grad()
def last_token_scores(
    run: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    dialogues: Sequence[list[int]],
    pad_token_id: int,
    batch_size: int,
) -> torch.Tensor:
    """The scores at the last token of each dialogue; [n, columns] float32 on the CPU. Like lengths go together.

    Args:
        run: a module (see `ScoreModel.module`), or what gives columns to every token as one does.
    """
    order = sorted(range(len(dialogues)), key=lambda index: len(dialogues[index]))
    scores: list[torch.Tensor] = [torch.empty(0)] * len(dialogues)
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        ids, mask = (t.to(device()) for t in right_pad([dialogues[index] for index in indices], pad_token_id))
        last = mask.sum(dim=-1) - 1  # [rows]
        part = run(ids, mask)[torch.arange(len(indices), device=device()), last].cpu()
        for index, row in zip(indices, part, strict=True):
            scores[index] = row
    return torch.stack(scores)
