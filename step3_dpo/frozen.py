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
from utils.engines.engines import Engine, engine_config, make_frozen_engine, release
from utils.models.configs import DTYPES
from utils.models.fingerprint import model_facts
from utils.models.loading import load_causal_lm
from utils.output.files import remove_folder
from utils.policy.forward import PolicyForward
from utils.process.distributed import all_gather_objects, device, is_main, print_main
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
        seconds, sequences: that computing them has taken, and that models have read for them, in this run or an earlier
            one.
    """

    def __init__(self, args: argparse.Namespace, sides: Sides, tokenizer: PreTrainedTokenizerBase):
        self.args, self.sides, self.tokenizer = args, sides, tokenizer
        self.folder = Path(args.frozen_dir or Path(args.output_dir) / "frozen")
        self.seconds, self.sequences = 0.0, 0
        self.data = {side: data_fingerprint(examples) for side, examples in sides.items()}
        if is_main() and args.fresh and not args.frozen_dir:
            remove_folder(self.folder)

    def reference(self, forward: PolicyForward) -> Values:
        """log π₀(first) − log π₀(second) of every pair, by the policy before it is trained."""
        facts = self.facts(lambda: model_facts(self.args.actor_model, "--actor_model"))
        found = self.values("reference", facts, lambda: (forward.engine, self.by_policy(forward)))
        self.sequences += self.rows()
        return found

    def margin(self, margin: Margin) -> Values:
        """m(first) − m(second); of a `MarginModel`, log π(first) − log π(second) alone."""
        if isinstance(margin, MarginModel):
            facts, load = self.facts(lambda: model_facts(margin.path, margin.flag)), lambda: self.by_aligned(margin)
        else:
            facts = self.facts(lambda: margin.facts() | {"kind": margin.kind, "label": margin.label})
            load = lambda: (None, self.by_scores(margin))
        found = self.values(f"margin_{margin.name}", facts, load, only_for_this=True)
        self.sequences += self.rows() if isinstance(margin, MarginModel) or not margin.is_function else 0
        return found

    def by_aligned(self, margin: MarginModel) -> tuple[Engine, Measure]:
        """Differences of the policy behind an implicit margin."""
        args = self.args
        beat(f"loading the policy of {margin.flag}")
        with arriving(engine_config(args, frozen=True)):
            model = load_causal_lm(margin.path, margin.flag, DTYPES[args.dtype])
        engine = make_frozen_engine(model, args)
        return engine, self.by_policy(PolicyForward(engine, 1.0, args.logits_chunk_size))

    def rows(self) -> int:
        """Sequences that a model reads for all pairs."""
        return REPLIES * sum(map(len, self.sides.values()))

    def scalars(self) -> dict[str, float]:
        """What to log of their cost."""
        return {"time/frozen": self.seconds, "cost/forward_passes": self.sequences}

    def facts(self, find: Callable[[], dict[str, str]]) -> dict[str, Any]:
        """What values depend on beside the pairs, on the main rank."""
        own = {"--dtype": self.args.dtype, "--attn_implementation": self.args.attn_implementation}
        return find() | own if is_main() else {}

    def table(self, name: str, side: str, facts: Mapping[str, Any]) -> KeptTable:
        """The values of one side."""
        facts = {**facts, "data": self.data[side]}
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
        folder = self.folder / f"{name}-{all_gather_objects(digest)[0]}" / side
        return KeptTable(folder, self.sides[side], facts, PIECE_SIZE, "remove it")

    def values(
        self,
        name: str,
        facts: Mapping[str, Any],
        load: Callable[[], tuple[Engine | None, Measure]],
        only_for_this: bool = False,
    ) -> Values:
        """Values of both sides; those that are missing are computed.

        Args:
            load: the engine that computes, if there is one, and how; called if something is missing.
            only_for_this: whether the engine has served then.
        """
        tables = {side: self.table(name, side, facts) for side in SIDES}
        if not any([table.missing() for table in tables.values()]):
            print_main(f"{name}: found in {self.folder}")
        else:
            engine, measure = load()
            for side, table in tables.items():
                batch_size = self.args.per_device_eval_batch_size
                table.compute(f"{name} of {side} pairs", engine, batch_size, measure, torch.float64)
            if engine is not None and only_for_this:
                release(engine)
        self.seconds += sum(table.seconds() for table in tables.values())
        found = {side: table.whole() for side, table in tables.items()}
        train = found[SIDES[0]]
        print_main(f"{name}: first reply − second, {train.mean():.3g} ± {train.std():.3g} over {len(train)} pairs")
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
