"""One file a data format; importing this package registers them. Of equally fitting ones the first wins."""

from utils.data.formats import (
    alpaca,
    chosen_rejected,
    hh_rlhf,
    labelled,
    messages,
    pairs,
    pku_saferlhf,
    safety_pairs,
)

__all__ = [
    "alpaca",
    "chosen_rejected",
    "hh_rlhf",
    "labelled",
    "messages",
    "pairs",
    "pku_saferlhf",
    "safety_pairs",
]
