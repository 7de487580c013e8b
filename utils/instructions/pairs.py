"""Data with several instructions a prompt, made of pairs of replies: MAPL (arXiv 2505.12845).

Intra-sample: two prompts to one response, of which it answers one better. The response meets all instructions of the
chosen prompt and breaks at least one of the rejected prompt; or it breaks all of the rejected prompt and meets at least
one of the chosen prompt.

Inter-sample: a prompt with several instructions, of which one of its two responses meets more than the other. The
paper's formula for it is not published; these pairs and their margin (the difference in instructions met, as a share of
all) are this project's own. So is how instructions are drawn, for both.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from utils.data.prompt_pairs import SIDES
from utils.data.records import Message, Pair
from utils.data.rows import Drop
from utils.data.turns import is_turns
from utils.instructions.kinds import KINDS, Instruction, Kind

DRAWS = 4  # of each kind that has arguments, for a pair
LEAST = 2  # instructions of an instruction pair

JsonRow = dict[str, Any]
Outcomes = dict[tuple[bool, bool], list[Instruction]]


@dataclass(frozen=True)
class Recipe:
    """What is made.

    Attributes:
        kinds: that may stand in a prompt.
        max_instructions: of a prompt.
        all_met_share: of prompt pairs, how many have a chosen prompt that the response meets in full; of the others it
            breaks the rejected prompt in full.
        prompt_pairs, instruction_pairs: tries for each response, and for each pair of them.
    """

    kinds: Sequence[Kind]
    max_instructions: int
    all_met_share: float
    prompt_pairs: int
    instruction_pairs: int
    seed: int


@dataclass
class Made:
    """Rows of one sort, and what became of what they were to be made from.

    Attributes:
        sources: responses, or pairs of them.
        failed: of these the ones that gave no row, by reason.
        judgements: {(kind, whether it is met): times}, each instruction and each response to its prompt once.
    """

    rows: list[JsonRow] = field(default_factory=list)
    sources: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    judgements: Counter[tuple[str, bool]] = field(default_factory=Counter)

    def take(self, make: Callable[[], JsonRow], tries: int) -> None:
        """The distinct rows that one source gives in so many tries."""
        rows, reason = [], ""
        for _ in range(tries):
            try:
                row = make()
            except Drop as error:
                reason = str(error)
                continue
            if row not in rows:
                rows.append(row)
        self.sources += 1
        self.rows += rows
        if not rows:
            self.failed[reason] += 1
        for row in rows:
            self.judgements.update(judgements(row))

    def times(self, kind: str) -> tuple[int, int]:
        """How often instructions of a kind are met and broken."""
        return self.judgements[kind, True], self.judgements[kind, False]

    def as_dict(self) -> dict[str, Any]:
        """The counts for JSON."""
        times = {kind: dict(zip(("met", "broken"), self.times(kind), strict=True)) for kind in KINDS}
        return {
            "rows": len(self.rows),
            "made_from": self.sources,
            "failed": dict(self.failed.most_common()),
            "kinds": {kind: counts for kind, counts in times.items() if any(counts.values())},
        }


def judgements(row: JsonRow) -> Iterator[tuple[str, bool]]:
    """(kind, whether it is met) of every instruction of a row and every response to its prompt."""
    responses = [row["response"]] if "response" in row else [row["chosen"], row["rejected"]]
    for name in ("instructions", "chosen_instructions", "rejected_instructions"):
        for value in row.get(name, ()):
            instruction = Instruction.from_dict(value, name)
            yield from ((instruction.kind.name, instruction.met_by(response)) for response in responses)


def make_rows(pair: Pair, number: int, recipe: Recipe, prompt_pairs: Made, instruction_pairs: Made) -> None:
    """Add what a pair gives; it depends on the seed, the pair and its `number`, the place among all pairs."""
    if recipe.prompt_pairs:
        for side in SIDES:
            rng = Random(f"{recipe.seed}:{number}:{side}")
            prompt_pairs.take(lambda rng=rng, side=side: prompt_pair(rng, pair, side, recipe), recipe.prompt_pairs)
    if recipe.instruction_pairs:
        rng = Random(f"{recipe.seed}:{number}:both")
        instruction_pairs.take(lambda: instruction_pair(rng, pair, recipe), recipe.instruction_pairs)


def prompt_pair(rng: Random, pair: Pair, side: str, recipe: Recipe) -> JsonRow:
    """One response and two prompts to it, `side` says which response. Raises `Drop` where none can be made."""
    outcomes, place = draw_outcomes(rng, pair, recipe.kinds), SIDES.index(side)
    met = [instruction for outcome, drawn in outcomes.items() if outcome[place] for instruction in drawn]
    broken = [instruction for outcome, drawn in outcomes.items() if not outcome[place] for instruction in drawn]
    if not (met and broken):
        raise Drop(f"{'breaks' if broken else 'meets'} every instruction drawn")
    chosen_size, rejected_size = (rng.randint(1, recipe.max_instructions) for _ in SIDES)
    if rng.random() < recipe.all_met_share:
        chosen = extended(rng, [], met, chosen_size)
        rejected = extended(rng, [], broken, rng.randint(1, rejected_size))
        rejected = extended(rng, rejected, met, rejected_size)
    else:
        rejected = extended(rng, [], broken, rejected_size)
        chosen = extended(rng, [], met, rng.randint(1, chosen_size))
        chosen = extended(rng, chosen, broken, chosen_size)
    return {
        "chosen_prompt": instructed(pair.messages, chosen),
        "rejected_prompt": instructed(pair.messages, rejected),
        "response": pair.replies[place],
        "side": side,
        "chosen_instructions": [instruction.as_dict() for instruction in chosen],
        "rejected_instructions": [instruction.as_dict() for instruction in rejected],
    }


def instruction_pair(rng: Random, pair: Pair, recipe: Recipe) -> JsonRow:
    """A prompt with instructions, of which the chosen response meets more. Raises `Drop` where none can be made."""
    outcomes = draw_outcomes(rng, pair, recipe.kinds)
    winners = [place for place in (0, 1) if outcomes[place == 0, place == 1]]
    if not winners:
        raise Drop("no instruction drawn tells the responses apart")
    winner = rng.choice(winners)
    better, worse = outcomes[winner == 0, winner == 1], outcomes[winner == 1, winner == 0]
    size = rng.randint(LEAST, recipe.max_instructions)
    met = extended(rng, [], better, rng.randint(1, size))
    met_by_other = extended(rng, met, worse, min(size, len(met) + rng.randint(0, len(met) - 1)))
    instructions = extended(rng, met_by_other, outcomes[True, True] + outcomes[False, False], size)
    if len(instructions) < LEAST:
        raise Drop(f"fewer than {LEAST} instructions drawn go together")
    difference = 2 * len(met) - len(met_by_other)
    return {
        "prompt": instructed(pair.messages, instructions),
        "chosen": pair.replies[winner],
        "rejected": pair.replies[1 - winner],
        "margin": difference / len(instructions),
        "instructions": [instruction.as_dict() for instruction in instructions],
    }


def draw_outcomes(rng: Random, pair: Pair, kinds: Sequence[Kind]) -> Outcomes:
    """{(met by the chosen, by the rejected response): instructions near what these are like, of a kind one at most}."""
    found: Outcomes = {(first, second): [] for first in (True, False) for second in (True, False)}
    orders = (pair.chosen, pair.rejected), (pair.rejected, pair.chosen)
    for kind in kinds:
        seen = set()
        for _ in range(DRAWS if kind.parameters else 1):
            instruction = kind.proposal(rng, *rng.choice(orders))
            outcome = instruction and (instruction.met_by(pair.chosen), instruction.met_by(pair.rejected))
            if outcome and outcome not in seen:
                seen.add(outcome)
                found[outcome].append(instruction)
    return found


def extended(rng: Random, taken: list[Instruction], pool: Sequence[Instruction], size: int) -> list[Instruction]:
    """`taken` and random ones of `pool` that go with all of them, up to `size` if there are enough."""
    taken = list(taken)
    for instruction in rng.sample(pool, len(pool)):
        if len(taken) < size and all(instruction.kind.goes_with(other.kind) for other in taken):
            taken.append(instruction)
    return taken


def instructed(messages: Sequence[Message], instructions: Sequence[Instruction]) -> str | list[Message]:
    """A prompt with instructions behind its last user turn, as a field of a row: text where it is that turn alone."""
    content = f"{messages[-1]['content']}\n\n{' '.join(instruction.text for instruction in instructions)}"
    turns = [*messages[:-1], {**messages[-1], "content": content}]
    return turns if len(turns) > 1 or is_turns(content) else content
