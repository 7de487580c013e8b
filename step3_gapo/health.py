"""Warnings of PPO going wrong while every number stays finite: the KL explodes, the reward collapses."""

import math
import re
import statistics
from collections import deque

Scalars = dict[str, float]

KL_PER_TOKEN = 1.0  # nats: a sampled token is e times likelier than under the reference; tiny's runs stay below 0.4
KL_JUMP, KL_FLOOR = 5.0, 20.0  # a jump: so many times the median of late, and so many nats a response
COLLAPSE = 0.5  # standard deviations of the first scores that every objective lies below its start
SAME_SPREAD = 0.05  # share of the first spread of scores below which responses have become alike
TASK = re.compile(r"task/(.+)/serves")
TASK_ADVICE = (
    "no response passes (judge/* says which judge fails them, task/* the KL); try a judge apart, or a higher kl_max"
)
WATCHED = ("kl", "response_length", "reward")
AVERAGED, RECENT, SILENT = 3, 10, 10  # rollouts: of a mean; of a median; between two warnings of one kind

KL_ADVICE = "try a higher --kl_coeff, a lower --actor_learning_rate or fewer --ppo_epochs"
REWARD_ADVICE = "try a lower --actor_learning_rate, a smaller --clip_range_ratio or a higher --kl_coeff"
ALIKE_ADVICE = (
    "try a higher --kl_coeff or --temperature, and read the samples in TensorBoard: a score model may be exploited"
)


class Health:
    """Looks at a run's logged figures, rollout by rollout.

    Args:
        objectives: names of those that are optimized.
    """

    def __init__(self, objectives: list[str]):
        self.objectives = objectives
        self.start: list[Scalars] = []  # the first rollouts
        self.latest: deque[Scalars] = deque(maxlen=AVERAGED)
        self.kls: deque[float] = deque(maxlen=RECENT)
        self.last_warned: dict[str, int] = {}

    def observe(self, step: int, scalars: Scalars) -> list[str]:
        """Take in one rollout's figures; what to warn of now."""
        if not all(math.isfinite(value) for tag, value in scalars.items() if tag.startswith(WATCHED)):
            return []  # such a rollout trains nothing and is reported as skipped
        warnings = {"kl": self.kl_warning(scalars)}
        self.kls.append(scalars["kl"])
        self.latest.append(scalars)
        if len(self.start) < AVERAGED:
            self.start.append(scalars)
        else:
            warnings |= {"collapse": self.collapse_warning(), "alike": self.alike_warning()}
        if len(self.latest) == AVERAGED:
            warnings["task"] = self.task_warning()
        due = {kind: text for kind, text in warnings.items() if text and self.is_news(kind, step)}
        self.last_warned |= dict.fromkeys(due, step)
        return list(due.values())

    def is_news(self, kind: str, step: int) -> bool:
        return step - self.last_warned.get(kind, -SILENT) >= SILENT

    def kl_warning(self, scalars: Scalars) -> str | None:
        """The policy has left the reference behind, slowly or at once."""
        kl, per_token = scalars["kl"], scalars["kl"] / max(scalars["response_length"], 1.0)
        usual = statistics.median(self.kls) if self.kls else 0.0
        if per_token > KL_PER_TOKEN:
            return f"the KL to the reference is {kl:.3g} nats a response, {per_token:.2g} a token: {KL_ADVICE}"
        if len(self.kls) == RECENT and kl > KL_FLOOR and kl > KL_JUMP * usual:
            return f"the KL to the reference has jumped from {usual:.3g} to {kl:.3g} nats a response: {KL_ADVICE}"
        return None

    def task_warning(self) -> str | None:
        """Nothing is learned of a task, since judges, or the cap on the KL, let nothing pass."""
        tasks = {tag: found[1] for tag in self.latest[-1] if (found := TASK.fullmatch(tag))}
        silent = [name for tag, name in tasks.items() if not any(scalars.get(tag) for scalars in self.latest)]
        return f"nothing is learned of {', '.join(silent)}: {TASK_ADVICE}" if silent else None

    def judged(self) -> list[str]:
        """The objectives with scores in all rollouts that are compared."""
        rollouts = [*self.start, *self.latest]
        return [name for name in self.objectives if all(f"reward/{name}" in scalars for scalars in rollouts)]

    def collapse_warning(self) -> str | None:
        """No objective is traded for another: all are worse than at the start."""
        falls = {}
        for name in self.judged():
            before, now = (mean_of(part, f"reward/{name}") for part in (self.start, self.latest))
            if now >= before - COLLAPSE * mean_of(self.start, f"reward_std/{name}"):
                return None
            falls[name] = f"{name} {before:.3g} -> {now:.3g}"
        if not falls:
            return None
        return f"every optimized objective is worse than at the start ({', '.join(falls.values())}): {REWARD_ADVICE}"

    def alike_warning(self) -> str | None:
        """Scores of different prompts hardly differ any more: often one response to everything."""
        judged = self.judged()
        for name in judged:
            before, now = (mean_of(part, f"reward_std/{name}") for part in (self.start, self.latest))
            if now >= SAME_SPREAD * before:
                return None
        if not judged:
            return None
        return f"the scores of all responses have become nearly equal: {ALIKE_ADVICE}"


def mean_of(rollouts: list[Scalars] | deque[Scalars], tag: str) -> float:
    return statistics.fmean(scalars[tag] for scalars in rollouts)
