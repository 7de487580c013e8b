"""Optimizer steps that are skipped because something was not finite: counted, and bounded."""

from typing import Any

from utils.checkpoints.checkpoints import Checkpoints
from utils.process.distributed import print_main
from utils.process.errors import UserError


class SkippedSteps:
    """How many optimizer steps were skipped, in all and in a row; the same on every rank.

    Args:
        limit: skipped steps in a row that end the run.
        advice: what a user can try, for the message a run ends with.
    """

    def __init__(self, limit: int, advice: str):
        self.limit, self.advice = limit, advice
        self.total = self.in_a_row = 0

    def observe(self, step: int, not_finite: str | None, checkpoints: Checkpoints) -> None:
        """Count one optimizer step.

        Args:
            not_finite: what was not finite, for which the step was skipped; None for a step that was taken.

        Raises:
            UserError: too many skipped in a row; names the last good checkpoint.
        """
        if not not_finite:
            self.in_a_row = 0
            checkpoints.prove()
            return
        self.total += 1
        self.in_a_row += 1
        print_main(f"step {step}: {not_finite} is not finite; that optimizer step is skipped")
        if self.in_a_row >= self.limit:
            raise UserError(
                f"{self.in_a_row} optimizer steps in a row were not finite, the last at step {step} ({not_finite}):"
                f" {self.advice}; {checkpoints.give_up()}"
            )

    def state_dict(self) -> dict[str, Any]:
        return {"total": self.total, "in_a_row": self.in_a_row}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.total, self.in_a_row = state["total"], state["in_a_row"]
