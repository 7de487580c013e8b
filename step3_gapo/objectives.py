"""The named objectives of a run: data, not code. Nothing in step 3 knows what any of them means."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Objective:
    """One named thing to improve, higher is better.

    Attributes:
        kind: "reward" (value = score - mean) or "cost" (value = -score).
        scale: factor on the value during training (1 except in experiments on scale).
        optimized: False for objectives that are scored and logged only.
    """

    name: str
    kind: str
    path: str
    scale: float = 1.0
    optimized: bool = True

    @property
    def flag(self) -> str:
        return f"--{self.kind}_model {self.name}"
