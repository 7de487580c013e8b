"""Data in: files, folders and hub data sets as prompts, dialogues and pairs. Only what needs no model may enter."""

from utils.data.loading import load_dialogues, load_pairs, load_prompts
from utils.data.records import Dialogue, Message, Pair, Prompt
from utils.data.summaries import ReadingSummary, SourceSummary

__all__ = [
    "Dialogue",
    "Message",
    "Pair",
    "Prompt",
    "ReadingSummary",
    "SourceSummary",
    "load_dialogues",
    "load_pairs",
    "load_prompts",
]
