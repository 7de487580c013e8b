"""What frozen models say of pairs before training: the reference's log-probabilities, and MODPO's margins.

Each is one number a pair, computed once and kept in pieces: in `--frozen_dir` for further runs on the same pairs, such
as those of a front, or under `<output_dir>/frozen` until the run is finished. A folder is called by what its values are
and a digest of all that they depend on.
"""

import argparse
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from step3_dpo.batches import collate, differences
from step3_dpo.pairs import REPLIES, LabelledPromptPair, MeasuredPair
from utils.data.encoding import Encoded, data_fingerprint, end_ids, response_text
from utils.engines.arrival import arriving
from utils.engines.engines import Engine, engine_config, make_frozen_engine
from utils.models.configs import DTYPES
from utils.models.fingerprint import model_facts
from utils.models.loading import load_causal_lm
from utils.output.files import remove_folder
from utils.policy.forward import PolicyForward
from utils.process.distributed import all_gather_objects, device, is_main
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
    """Computes and keeps values of training and held-out pairs; call every method on every rank.

    Attributes:
        sequences: that models have read for them, in this run or an earlier one.
    """

    def __init__(self, args: argparse.Namespace, sides: Sides, tokenizer: PreTrainedTokenizerBase):
        self.args, self.sides, self.tokenizer = args, sides, tokenizer
        self.folder, self.sequences = Path(args.frozen_dir or Path(args.output_dir) / "frozen"), 0
        if is_main() and args.fresh and not args.frozen_dir:
            remove_folder(self.folder)

    def reference(self, forward: PolicyForward) -> Values:
        """log π₀(first) − log π₀(second) of every pair, by the policy before it is trained."""
        facts = self.facts(lambda: model_facts(self.args.actor_model, "--actor_model"))
        self.count()
        return self.values("reference", facts, forward.engine, self.by_policy(forward))

    def margin(self, margin: Margin) -> Values:
        """m(first) − m(second); of a `MarginModel`, log π(first) − log π(second) alone."""
        name = f"margin_{margin.name}"
        if isinstance(margin, MarginModel):
            self.count()
            facts = self.facts(lambda: model_facts(margin.path, margin.flag))
            return self.complete(name, facts) or self.values(name, facts, *self.aligned(margin))
        if not margin.is_function:
            self.count()
        facts = self.facts(lambda: margin.facts() | {"kind": margin.kind, "label": margin.label})
        return self.complete(name, facts) or self.values(name, facts, None, self.by_scores(margin))

    def aligned(self, margin: MarginModel) -> tuple[Engine, Measure]:
        """The policy behind an implicit margin."""
        args = self.args
        beat(f"loading the policy of {margin.flag}")
        with arriving(engine_config(args, frozen=True)):
            model = load_causal_lm(margin.path, margin.flag, DTYPES[args.dtype])
        engine = make_frozen_engine(model, args)
        return engine, self.by_policy(PolicyForward(engine, 1.0, args.logits_chunk_size))

    def count(self) -> None:
        """A model reads all pairs."""
        self.sequences += REPLIES * sum(map(len, self.sides.values()))

    def facts(self, find: Callable[[], dict[str, str]]) -> dict[str, Any]:
        """What values depend on beside the pairs, on the main rank."""
        own = {"--dtype": self.args.dtype, "--attn_implementation": self.args.attn_implementation}
        return find() | own if is_main() else {}

    def table(self, name: str, side: str, facts: Mapping[str, Any]) -> KeptTable:
        """The values of one side."""
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
        digest.update(data_fingerprint(self.sides[side]).encode())
        folder = self.folder / f"{name}-{all_gather_objects(digest.hexdigest()[:16])[0]}" / side
        return KeptTable(folder, self.sides[side], dict(facts), PIECE_SIZE, "remove it")

    def complete(self, name: str, facts: Mapping[str, Any]) -> Values | None:
        """Values that an earlier or interrupted run has computed, if it has all."""
        tables = {side: self.table(name, side, facts) for side in SIDES}
        if any(table.missing() for table in tables.values()):
            return None
        return {side: table.whole() for side, table in tables.items()}

    def values(self, name: str, facts: Mapping[str, Any], engine: Engine | None, measure: Measure) -> Values:
        """Values of both sides; those that are missing are computed."""
        found = {}
        for side in SIDES:
            table = self.table(name, side, facts)
            batch_size = self.args.per_device_eval_batch_size
            table.compute(f"{name} of {side} pairs", engine, batch_size, measure, torch.float64)
            found[side] = table.whole()
        return found

    def by_policy(self, forward: PolicyForward) -> Measure:
        """Differences of a policy's log-probabilities."""
        return lambda examples: differences(forward, collate(examples, self.tokenizer.pad_token_id))

    def by_scores(self, objective: Objective) -> Measure:
        """Differences of an objective's values; 0 where a function has none of one reply."""
        beat(f"loading {objective.flag}")
        score = load_row_scorer([objective], DTYPES[self.args.dtype], REPLIES * self.args.per_device_eval_batch_size)

        def measure(examples: list[Encoded]) -> torch.Tensor:
            rows = [row for example in examples for row in rows_of(example, self.tokenizer)]
            values = score(rows).values[objective.name]
            pairs = zip(values[::2], values[1::2], strict=True)
            found = [0.0 if None in pair else pair[0] - pair[1] for pair in pairs]
            return torch.tensor(found, dtype=torch.float64, device=device())

        return measure

    def finish(self) -> None:
        """They have served, unless they are kept for further runs."""
        if is_main() and not self.args.frozen_dir:
            remove_folder(self.folder)


def rows_of(example: Encoded, tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
    """Both replies as rows that a scorer reads; what was cut off is not there."""
    record = example.record
    prompts = record.prompts if isinstance(record, LabelledPromptPair) else [record.messages] * REPLIES
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
