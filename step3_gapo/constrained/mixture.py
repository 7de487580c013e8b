"""A mixture of tasks in one rollout: which prompts it has, how many responses each, and what is trained of them."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedTokenizerBase

from step3_gapo.constrained.losses import Choice, ConstrainedLoss, TaskResponses
from step3_gapo.constrained.references import Answers
from step3_gapo.experience import Experience
from utils.data.encoding import Encoded
from utils.policy.actor import Actor
from utils.policy.sampled import Sampled, sample_responses, sampled_of
from utils.process.distributed import device
from utils.process.errors import UserError
from utils.scoring.tasks import FLAG, Task, asked_by_task
from utils.scoring.verdicts import ALL, Verdicts

Ids = list[int]


def counts_of(tasks: Sequence[Task], prompts: Sequence[Encoded], size: int) -> dict[str, int]:
    """How many prompts of a rollout of `size` each task has, by the largest remainders of its share.

    Raises:
        UserError: one has none.
    """
    own = {task.name: sum(prompt.record.task == task.name for prompt in prompts) for task in tasks}
    exact = {task.name: size * (task.share or own[task.name] / len(prompts)) for task in tasks}
    counts = {name: math.floor(share + 1e-9) for name, share in exact.items()}
    by_remainder = sorted(counts, key=lambda name: counts[name] - exact[name])
    for name in by_remainder[: size - sum(counts.values())]:
        counts[name] += 1
    if none := [name for name, count in counts.items() if not count]:
        more = "more prompts a rollout, or another share, would"
        raise UserError(f"{FLAG}: {none[0]}: its share leaves it no prompt in a rollout of {size}: {more}")
    return counts


def task_rollouts(
    prompts: Sequence[Encoded], counts: Mapping[str, int], seed: int, rollouts: int
) -> Iterator[list[Encoded]]:
    """The prompts of one rollout after another, over all ranks, in random order.

    Each task goes through its own prompts in random orders of its own, again and again.
    """
    own = {name: [prompt for prompt in prompts if prompt.record.task == name] for name in counts}
    for number in range(rollouts):
        chosen = []
        for place, (name, count) in enumerate(counts.items()):
            first = number * count
            chosen += [own[name][i] for i in endless(len(own[name]), first, count, (place + 1) * 1_000_003 + seed)]
        order = torch.randperm(len(chosen), generator=torch.Generator().manual_seed(seed + number)).tolist()
        yield [chosen[i] for i in order]


def endless(number: int, first: int, count: int, seed: int) -> list[int]:
    """Entries `first` to `first + count` of a sequence that goes through 0 .. `number` - 1 in one random order after
    another."""
    found: list[int] = []
    for epoch in range(first // number, (first + count - 1) // number + 1):
        order = torch.randperm(number, generator=torch.Generator().manual_seed(seed + epoch)).tolist()
        start = epoch * number
        found += order[max(first - start, 0) : first + count - start]
    return found


@dataclass(frozen=True)
class Chosen:
    """What of a rollout is trained on, and what is logged.

    Attributes:
        trained: with a target and units of every task.
        figures: {tag: (values, 1 where they count)}, two tensors of one shape each.
    """

    trained: Experience
    figures: dict[str, tuple[torch.Tensor, torch.Tensor]]


@dataclass
class TaskMixture:
    """The tasks of a run, and their loss.

    Attributes:
        objectives: names in the order of training scores.
        references: the reference answer to every prompt of the run; empty where none is read.
    """

    tasks: Sequence[Task]
    loss: ConstrainedLoss
    objectives: Sequence[str]
    references: Answers = field(default_factory=dict)

    def responses_of(self, prompt: Encoded) -> int:
        """K of the task of a prompt."""
        return next(task.responses for task in self.tasks if task.name == prompt.record.task)

    def sample(self, actor: Actor, prompts: list[Encoded], tokenizer: PreTrainedTokenizerBase, size: int) -> Sampled:
        """The responses to each prompt, then its reference answer, if one is read; call inside `actor.gathered()`.

        Args:
            size: prompts that are answered at once.
        """
        numbers = [self.responses_of(prompt) for prompt in prompts]
        found: dict[int, list[Ids]] = {}  # by the prompt's place
        for number in sorted(set(numbers)):
            places = [place for place, own in enumerate(numbers) if own == number]
            part = sample_responses(actor.generate, [prompts[i] for i in places], tokenizer, size, number)
            lengths = part.lengths.tolist()
            ids = [row[:length] for row, length in zip(part.actions.tolist(), lengths, strict=True)]
            found |= {place: ids[i * number : (i + 1) * number] for i, place in enumerate(places)}
        rows = []
        for place, prompt in enumerate(prompts):
            references = [self.references[tuple(prompt.prompt)]] if self.loss.reads_references else []
            rows += [(prompt, ids) for ids in found[place] + references]
        return sampled_of([prompt for prompt, _ in rows], [ids for _, ids in rows], tokenizer)

    def rows_of(self, sampled: Sampled, task: Task) -> torch.Tensor:
        """[n, K + 1] int64 rows of the responses to a task's prompts, and of the reference answers where there are
        some, else [n, K]."""
        width = task.responses + self.loss.reads_references
        rows = [row for row, prompt in enumerate(sampled.prompts) if prompt.record.task == task.name]
        return torch.tensor(rows, dtype=torch.int64, device=device()).view(-1, width)

    def own_rows(self, sampled: Sampled) -> torch.Tensor:
        """Those of the policy's responses, without reference answers; [k] int64."""
        rows = [self.rows_of(sampled, task)[:, : task.responses].flatten() for task in self.tasks]
        return torch.cat(rows).sort().values

    def judged_by(self, sampled: Sampled) -> dict[str, list[bool]]:
        """{judge: whether it is asked of each response}."""
        return asked_by_task(self.tasks, [prompt.record.task for prompt in sampled.prompts])

    def choose(
        self,
        experience: Experience,
        sampled: Sampled,
        scores: torch.Tensor,
        judged: torch.Tensor,
        verdicts: Mapping[str, Verdicts],
    ) -> Chosen:
        """What is trained of a rollout; call on every rank.

        Args:
            scores, judged: [rows, m] float32 and bool, training scores, and where there is one.
            verdicts: of all judges.
        """
        log_ratio = ((experience.log_probs - experience.ref_log_probs) * experience.mask).sum(dim=-1)
        passes = torch.ones_like(log_ratio) > 0
        if verdicts:
            passes = verdicts[ALL].judged == verdicts[ALL].passed  # that no judge has judged, too
        parts: list[TaskResponses] = []
        for task in self.tasks:
            rows, columns = self.rows_of(sampled, task), [self.objectives.index(name) for name in task.objectives]
            weights = scores.new_tensor(list(task.objectives.values()))
            rewards, counts = scores[:, columns] @ weights, judged[:, columns].all(dim=-1)
            picked = (each[rows] for each in (rewards, counts, passes, log_ratio))
            parts.append(TaskResponses(rows, *picked, task.responses, task.kl_max))
        choices = [self.loss.choose(part) for part in parts]
        figures: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        for task, part, choice in zip(self.tasks, parts, choices, strict=True):
            figures |= self.figures(task, part, choice)
        return Chosen(self.trained(experience, choices), figures)

    def trained(self, experience: Experience, choices: Sequence[Choice]) -> Experience:
        """The rows of all tasks, with each task's targets and units on its own."""
        trained = experience.select(torch.cat([choice.rows for choice in choices]))
        trained.neighbours = self.loss.neighbours
        none = [torch.zeros_like(choice.units) for choice in choices]
        for number, (task, choice) in enumerate(zip(self.tasks, choices, strict=True)):
            before, after = none[:number], none[number + 1 :]
            trained.counted[task.name] = torch.cat([*before, choice.units, *after])
            targets = torch.cat([*before, choice.targets, *after])
            trained.advantages[task.name] = targets.unsqueeze(-1) * trained.mask
        return trained

    def figures(self, task: Task, part: TaskResponses, choice: Choice) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """`Chosen.figures` of a task: its mean reward, the share of responses that pass all judges, the KL, the share
        of prompts (of responses, where all are trained) that teach something, and of those that teach their reference
        answer."""
        counts, everywhere = part.own(part.counts).float(), torch.ones_like(part.own(part.rewards))
        found = {
            "reward": (part.own(part.rewards) * counts, counts),
            "passes": (part.own(part.passes).float(), everywhere),
            "kl": (part.own(part.log_ratio), everywhere),
            "serves": (choice.serves, torch.ones_like(choice.serves)),
        }
        if choice.references is not None:
            found["references"] = (choice.references, torch.ones_like(choice.references))
        return {f"task/{task.name}/{name}": values for name, values in found.items()}
