"""How long a data set is in tokens, and what of it a chat template refuses or a limit would cut."""

import time
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from utils.data.encoding import Encoded, Writer
from utils.data.records import Record
from utils.output.metrics import Progress

BINS, WIDTH = 8, 40  # rows of a histogram, and characters of its longest bar
QUIET_SECONDS = 10  # before progress is shown


def measure(tokenizer: PreTrainedTokenizerBase, records: Sequence[Record], label: str) -> tuple[list[Encoded], dict]:
    """Records as token ids, and {why others cannot be written, with the first place: how many}.

    Shows how far it is, under `label`, once that has taken ten seconds.
    """
    writer, written = Writer(tokenizer, "drop"), []
    progress, start = Progress(len(records), label, every=max(1, len(records) // 20)), time.monotonic()
    for done, record in enumerate(records, start=1):
        prompts = writer.prompts(record)
        replies = None if prompts is None else writer.replies(record)
        if replies is not None:
            written.append(Encoded(record, prompts[0], tuple(replies), tuple(prompts[1:])))
        if time.monotonic() - start > QUIET_SECONDS:
            progress.update(done)
    return written, dict(writer.dropped())


def beyond_limits(written: Sequence[Encoded], max_prompt_length: int | None, max_length: int | None) -> dict[str, int]:
    """{what is longer than a limit that is given: how many}."""
    prompts, counts = [len(example.prompt) for example in written], {}
    if max_prompt_length is not None:
        counts[f"prompts longer than {max_prompt_length}"] = sum(length > max_prompt_length for length in prompts)
    if max_length is not None:
        counts[f"prompts that leave no room for a reply in {max_length}"] = sum(n >= max_length for n in prompts)
        counts[f"prompts with a reply longer than {max_length}"] = sum(
            example.length > max_length for example in written if example.responses
        )
    return counts


def describe_lengths(lengths: Sequence[int]) -> dict[str, Any]:
    """Minimum, median, 95% quantile and maximum of at least one length, and a histogram: [[from, to, count], ...]."""
    ordered = sorted(lengths)
    width = -(-(ordered[-1] - ordered[0] + 1) // BINS)
    counts = [0] * (1 + (ordered[-1] - ordered[0]) // width)
    for length in ordered:
        counts[(length - ordered[0]) // width] += 1
    edges = range(ordered[0], ordered[-1] + 1, width)
    return {
        "min": ordered[0],
        "median": ordered[(len(ordered) - 1) // 2],
        "95%": ordered[-(-95 * len(ordered) // 100) - 1],
        "max": ordered[-1],
        "histogram": [
            [edge, edge + width - 1, n] for edge, n in zip(edges, counts, strict=True) if edge <= ordered[-1]
        ],
    }


def histogram_lines(histogram: Sequence[Sequence[int]]) -> list[str]:
    """A line for each bin; its bar is as long as its share of the fullest."""
    fullest, digits = max(count for _, _, count in histogram), len(str(histogram[-1][1]))
    return [
        f"{first:>{digits}} - {last:>{digits}}  {'#' * -(-WIDTH * count // fullest):<{WIDTH}} {count}"
        for first, last, count in histogram
    ]
