"""What both sides of section `peers` share: the case, and how a worker takes its turns.

The standard library alone: each side is a process in an environment of its own.
"""

import json
import os
import sys
from dataclasses import asdict, dataclass, field

PHASES = ("generation", "scoring", "update")


@dataclass(frozen=True)
class Case:
    """What both sides train: one optimizer step a rollout, on one micro-batch.

    Attributes:
        folder: holds `policy` and `score`, model folders with one tokenizer, and `prompts.jsonl`, a text in each row.
        dtype: "fp32" or "bf16".
        responses: of a rollout; `generations` of them to every prompt.
        response: tokens that a response has at most.
        never: token ids that are never sampled.
    """

    folder: str
    dtype: str
    responses: int
    generations: int
    response: int
    kl_coeff: float = 0.05
    learning_rate: float = 1e-6
    never: list[int] = field(default_factory=list)

    def to_json(self) -> str:
        return json.dumps(asdict(self))


def case_of_command_line() -> Case:
    """The case that `Case.to_json` has put on a worker's command line."""
    return Case(**json.loads(sys.argv[1]))


class Turns:
    """A worker's side: a variant is asked for on stdin, its figures are answered on stdout, a line each.

    Figures are the seconds of the "step" and of every one of `PHASES`, "tokens" of the responses, and "threads".
    What else the process prints goes to stderr.
    """

    def __init__(self):
        self.answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def asked(self) -> str | None:
        """The variant to run; None where no more are asked for."""
        return sys.stdin.readline().strip() or None

    def answer(self, figures: dict[str, float]) -> None:
        print(json.dumps(figures), file=self.answers, flush=True)
