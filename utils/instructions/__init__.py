"""Instructions that a program can check, and data made of them. What needs a model to judge a text may not enter.

    Instruction.from_dict({"kind": "at_least_words", "arguments": {"count": 40}}, "rows.jsonl:7").met_by(response)

A kind is one decorated function in a file of kinds; importing this package registers those of the files named below.
"""

from utils.instructions import layout, length, wording  # noqa: F401  (registers the kinds)
from utils.instructions.kinds import KINDS, Instruction, Kind

__all__ = ["KINDS", "Instruction", "Kind"]
