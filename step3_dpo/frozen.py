"""What frozen models say of pairs before training: the reference's log-probabilities, and MODPO's margins.

Each is one number a pair, computed once and kept in pieces under `<output_dir>/frozen` until the run is finished.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from step3_dpo.batches import collate, differences
from step3_dpo.pairs import LabelledPromptPair, MeasuredPair
from utils.data.encoding import Encoded, end_ids, response_text
from utils.engines.arrival import arriving
from utils.engines.engines import engine_config, make_frozen_engine
from utils.models.configs import DTYPES
from utils.models.fingerprint import model_facts
from utils.models.loading import load_causal_lm
from utils.output.files import remove_folder
from utils.policy.forward import PolicyForward
from utils.process.distributed import device, is_main
from utils.process.rank_watch import beat
from utils.scoring.objectives import Objective
from utils.scoring.scorers import load_row_scorer
from utils.supervised.kept import KeptTable

SIDES = ("train", "held_out")
PIECE_SIZE = 4096  # pairs in one file
Sides = dict[str, list[Encoded]]  # by `SIDES`
Values = dict[str, torch.Tensor]  # [n] float64, by `SIDES`
Measure = Callable[[list[Encoded]], torch.Tensor]  # b pairs -> [b]


@dataclass(frozen=True)
class MarginModel:
    """An objective whose margin is implicit: β (log π − log π₀) of a policy that was aligned to it.

    Attributes:
        path: folder or hub name of that policy.
        beta: β.
    """

    name: str
    path: str
    beta: float

    @property
    def flag(self) -> str:
        return f"--margin_model {self.name}"


Margin = MarginModel | Objective


class Frozen:
    """Computes and keeps values of training and held-out pairs; call every method on every rank."""

    def __init__(self, args: argparse.Namespace, sides: Sides, tokenizer: PreTrainedTokenizerBase):
        self.args, self.sides, self.tokenizer = args, sides, tokenizer
        self.folder = Path(args.output_dir) / "frozen"
        if is_main() and args.fresh:
            remove_folder(self.folder)

    def reference(self, forward: PolicyForward) -> Values:
        """log π₀(first) − log π₀(second) of every pair, by the policy before it is trained."""
        facts = self.facts(lambda: model_facts(self.args.actor_model, "--actor_model"))
        return self.values("reference", facts, forward.engine, self.by_policy(forward))

    def margin(self, margin: Margin) -> Values:
        """m(first) − m(second); of a `MarginModel`, log π(first) − log π(second) alone."""
        args = self.args
        if isinstance(margin, MarginModel):
            facts = self.facts(lambda: model_facts(margin.path, margin.flag))
            if tables := self.complete(f"margin_{margin.name}", facts):
                return tables
            beat(f"loading the policy of {margin.flag}")
            with arriving(engine_config(args, frozen=True)):
                model = load_causal_lm(margin.path, margin.flag, DTYPES[args.dtype])
            engine = make_frozen_engine(model, args)
            forward = PolicyForward(engine, 1.0, args.logits_chunk_size)
            return self.values(f"margin_{margin.name}", facts, engine, self.by_policy(forward))
        facts = self.facts(margin.facts)
        if tables := self.complete(f"margin_{margin.name}", facts):
            return tables
        beat(f"loading {margin.flag}")
        return self.values(f"margin_{margin.name}", facts, None, self.by_scores(margin))

    def facts(self, find: Callable[[], dict[str, str]]) -> dict[str, Any]:
        """What values depend on beside the pairs, on the main rank."""
        own = {"--dtype": self.args.dtype, "--attn_implementation": self.args.attn_implementation}
        return find() | own if is_main() else {}

    def table(self, name: str, side: str, facts: Mapping[str, Any]) -> KeptTable:
        way_out = "--fresh starts over"
        return KeptTable(self.folder / name / side, self.sides[side], dict(facts), PIECE_SIZE, way_out)

    def complete(self, name: str, facts: Mapping[str, Any]) -> Values | None:
        """Values that an earlier, interrupted run has computed, if it has all."""
        tables = {side: self.table(name, side, facts) for side in SIDES}
        if any(table.missing() for table in tables.values()):
            return None
        return {side: table.whole() for side, table in tables.items()}

    def values(self, name: str, facts: Mapping[str, Any], engine: Any, measure: Measure) -> Values:
        """Values of both sides; those that are missing are computed."""
        found = {}
        for side in SIDES:
            table = self.table(name, side, facts)
            label = f"{name.replace('_', ' of ', 1) if name != 'reference' else name}, {side.replace('_', ' ')} pairs"
            table.compute(label, engine, self.args.per_device_eval_batch_size, measure, torch.float64)
            found[side] = table.whole()
        return found

    def by_policy(self, forward: PolicyForward) -> Measure:
        """Differences of a policy's log-probabilities."""
        return lambda examples: differences(forward, collate(examples, self.tokenizer.pad_token_id))

    def by_scores(self, objective: Objective) -> Measure:
        """Differences of an objective's values; 0 where a function has none of one reply."""
        score = load_row_scorer([objective], DTYPES[self.args.dtype], 2 * self.args.per_device_eval_batch_size)

        def measure(examples: list[Encoded]) -> torch.Tensor:
            rows = [row for example in examples for row in rows_of(example, self.tokenizer)]
            values = score(rows).values[objective.name]
            pairs = zip(values[::2], values[1::2], strict=True)
            found = [0.0 if None in pair else pair[0] - pair[1] for pair in pairs]
            return torch.tensor(found, dtype=torch.float64, device=device())

        return measure

    def remove(self) -> None:
        """They have served."""
        if is_main():
            remove_folder(self.folder)


def rows_of(example: Encoded, tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
    """Both replies as rows that a scorer reads; what was cut off is not there."""
    record = example.record
    prompts = record.prompts if isinstance(record, LabelledPromptPair) else [record.messages] * 2
    rows = []
    for messages, ids in zip(prompts, example.responses, strict=True):
        finished = ids[-1] in end_ids(tokenizer)
        text = response_text(tokenizer, ids)
        prompt = messages[-1]["content"]
        rows.append(
            {"prompt": prompt, "messages": messages, "response": text, "finished": finished, "source": record.source}
        )
    return rows


def with_values(
    examples: Sequence[Encoded],
    reference: torch.Tensor | None,
    margins: Mapping[str, torch.Tensor],
    weights: Mapping[str, float],
    betas: Mapping[str, float],
) -> list[MeasuredPair]:
    """Pairs with their values.

    Args:
        reference: [n]; None where it is computed when it is needed.
        margins: [n] of every margin.
        weights: w_i / w_k of each.
        betas: β of those that are implicit.
    """
    total, of_reference = torch.zeros(len(examples), dtype=torch.float64), 0.0
    for name, values in margins.items():
        total += weights[name] * betas.get(name, 1.0) * values
        of_reference += weights[name] * betas[name] if name in betas else 0.0
    known = reference if reference is not None else torch.full_like(total, torch.nan)
    return [
        MeasuredPair(**vars(example), reference=r, margin=m, of_reference=of_reference)
        for example, r, m in zip(examples, known.tolist(), total.tolist(), strict=True)
    ]
