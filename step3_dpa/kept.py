"""The replies that an iteration keeps: as dialogues to learn from, as a file to read, and in figures."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from step3_dpa.iterations import as_row
from step3_dpa.prompts import Asked
from step3_dpa.sampling import tokens_of
from step3_dpa.selection import best_replies, direction_bins, masked_mean, weighted_ratings
from utils.data.encoding import Encoded, end_ids, response_text
from utils.data.records import Dialogue
from utils.output.files import write_text
from utils.process.errors import UserError

BINS = 5  # of directions, in the record
SHOWN = 8  # kept replies in TensorBoard


@dataclass(frozen=True)
class Answered:
    """Prompts with directions, the replies to them, and what these are worth.

    Attributes:
        replies: [n, replies, time] int32, see `step3_dpa.sampling.sample`.
        values: [n, replies, m] float64, in original units.
        judged: [n, replies] bool.
        ratings: [n, replies] float64, vᵀr of scaled values.
    """

    asked: list[Asked]
    replies: torch.Tensor
    values: torch.Tensor
    judged: torch.Tensor
    ratings: torch.Tensor

    @classmethod
    def of(
        cls,
        asked: list[Asked],
        replies: torch.Tensor,
        values: torch.Tensor,
        judged: torch.Tensor,
        scales: Sequence[float],
    ) -> "Answered":
        """`scales`: the factor on every attribute's value."""
        directions = torch.tensor([each.direction.weights for each in asked], dtype=torch.float64)
        ratings = weighted_ratings(values * torch.tensor(scales, dtype=torch.float64), directions)
        return cls(asked, replies, values, judged, ratings)

    @property
    def best(self) -> torch.Tensor:
        """[n] int64, the reply that is kept of each prompt; −1 where there is none."""
        return best_replies(self.ratings, self.judged)

    def kept(self, tokenizer: PreTrainedTokenizerBase) -> list[Encoded]:
        """The kept replies behind the prompts with their directions.

        Raises:
            UserError: no attribute judges anything.
        """
        found = []
        for each, replies, best in zip(self.asked, self.replies, self.best.tolist(), strict=True):
            if best >= 0:
                ids = tokens_of(replies[best])
                record = Dialogue(each.record.messages, response_text(tokenizer, ids), each.record.source)
                found.append(Encoded(record, each.prompt, (ids,)))
        if not found:
            raise UserError("--reward_function: there is no reply that all attributes have a value for")
        return found

    def figures(self, tokenizer: PreTrainedTokenizerBase, angles: tuple[float, float]) -> dict[str, float]:
        """What the record says: ratings and values of all replies and of those kept, by direction, too.

        Args:
            angles: the smallest and the largest.
        """
        names, best = self.asked[0].direction.names, self.best
        chosen = torch.zeros_like(self.judged).scatter_(1, best.clamp(min=0).unsqueeze(1), best.unsqueeze(1) >= 0)
        ends = torch.tensor(end_ids(tokenizer))
        finished = torch.isin(self.replies, ends).any(dim=-1).double()
        found = {}
        for part, counted in (("sampled", self.judged), ("kept", chosen)):
            found[f"rating/{part}"] = masked_mean(self.ratings, counted)
            found[f"finished/{part}"] = masked_mean(finished, counted)
            for column, name in enumerate(names):
                found[f"reward/{part}/{name}"] = masked_mean(self.values[..., column], counted)
        found["rating/gain"] = found["rating/kept"] - found["rating/sampled"]
        found["acceptance/replies"] = chosen.sum().item() / chosen.numel()
        found["acceptance/prompts"] = (best >= 0).double().mean().item()
        found["acceptance/distinct"] = distinct_share(self.replies)
        places = direction_bins(torch.tensor([each.direction.angle for each in self.asked]), *angles, BINS)
        for number in range(BINS):
            rows = places == number
            if rows.any():
                middle = angles[0] + (angles[1] - angles[0]) * (number + 0.5) / BINS
                found[f"direction/{middle:.0f}/rating"] = masked_mean(self.ratings[rows], self.judged[rows])
                for column, name in enumerate(names):
                    found[f"direction/{middle:.0f}/{name}"] = masked_mean(
                        self.values[rows][..., column], self.judged[rows]
                    )
        return found

    def write(self, path: Path, tokenizer: PreTrainedTokenizerBase) -> str:
        """The kept replies as lines of JSON; some of them as a table for TensorBoard."""
        lines, table = [], ["| direction | prompt | kept | rating | mean of all |", "|---|---|---|---:|---:|"]
        for i, best in enumerate(self.best.tolist()):
            if best < 0:
                continue
            each, names = self.asked[i], self.asked[i].direction.names
            reply = response_text(tokenizer, tokens_of(self.replies[i, best]))
            rating, mean = self.ratings[i, best].item(), masked_mean(self.ratings[i], self.judged[i])
            lines.append(
                as_row(
                    prompt=each.plain.messages[-1]["content"],
                    messages=each.record.messages,
                    response=reply,
                    source=each.plain.source,
                    direction=dict(zip(names, each.direction.weights, strict=True)),
                    values=dict(zip(names, self.values[i, best].tolist(), strict=True)),
                    rating=rating,
                    mean_rating=mean,
                )
            )
            if len(lines) <= SHOWN:
                cells = (each.direction.said(), each.plain.messages[-1]["content"], reply)
                table.append("| " + " | ".join(map(cell, cells)) + f" | {rating:.3g} | {mean:.3g} |")
        write_text(path, "".join(lines))
        return "\n".join(table)


def distinct_share(replies: torch.Tensor) -> float:
    """The mean over prompts of the share of replies that are different ones; replies: [n, replies, time]."""
    shares = [len(torch.unique(of_a_prompt, dim=0)) / len(of_a_prompt) for of_a_prompt in replies]
    return sum(shares) / len(shares)


def cell(text: str) -> str:
    """A text in a cell of a Markdown table."""
    return " ".join(text.replace("|", "\\|").split()).replace("<", "&lt;")
