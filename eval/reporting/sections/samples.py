"""Which test prompts to show side by side, and whose answers.

The prompts are those where the chosen policies differ most, of every labelled kind. The policies are a few that span
the trade-off; the others' answers are there to be unfolded, further seeds of a policy are left out.
"""

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eval.reporting.blocks import PAGE, Block, Html, Report, Section, Text, fill
from eval.results.methods import EXPERT, START, lead_front
from eval.results.runs import Run, find_conditions, read_json_lines
from eval.results.shapes import TEXT, Leaf, Maybe, find_difference
from utils.process.errors import UserError

PLACE = 110
LABEL = {
    "prompt": TEXT,
    "risky": Maybe(Leaf("true or false", lambda value: isinstance(value, bool))),
    "category": Maybe(Leaf("text or a number", lambda value: isinstance(value, str | int))),
}
KINDS = {True: "risky", False: "benign", None: ""}
MOST_CHOSEN = 8  # so many policies are shown without choosing


@dataclass(frozen=True)
class Answer:
    """One policy's response to the prompt; `scores` has a line an objective."""

    run: Run
    row: dict[str, Any]
    scores: list["Score"]


@dataclass(frozen=True)
class Score:
    """`best` marks the highest model score among the policies on this prompt; `value` is None where not judged."""

    objective: str
    value: float | None
    gold: float | None
    best: bool


@dataclass(frozen=True)
class Sample:
    """One prompt with the chosen policies' answers, and the others'; `kind` is 'risky', 'benign' or ''."""

    prompt: str
    source: str
    kind: str
    earlier_turns: list[dict[str, str]]
    answers: list[Answer]
    others: list[Answer]


def read_labels(path: Path | None) -> dict[str, dict[str, Any]]:
    """{prompt: its row} of a file of labelled prompts; 'risky' and 'category' are used where present.

    Raises:
        UserError: a file that cannot be read, or a label of another kind.
    """
    if path is None or not path.is_file():
        return {}
    rows = [row for row in read_json_lines(path) if "prompt" in row]
    for row in rows:
        if difference := find_difference(row, LABEL):
            raise UserError(f"{path}: {difference}")
    return {row["prompt"]: row for row in rows}


def shared_rows(runs: list[Run]) -> list[list[dict[str, Any]]]:
    """Prompts that every run answered: a list of rows (one a run) for each, in the order of the first run."""
    by_source = [{row["source"]: row for row in run.evaluation["rows"]} for run in runs]
    return [
        [rows[source] for rows in by_source] for source in by_source[0] if all(source in rows for rows in by_source)
    ]


def spreads(rows: list[list[dict[str, Any]]]) -> np.ndarray:
    """How much the policies differ on each prompt [n]: std over runs relative to the std over all, summed.

    Each is over what is judged, 0 of nothing.
    """
    names = [name for name in rows[0][0]["scores"] if all(name in row["scores"] for row in rows[0])]
    scores = [[[row["scores"][name] for name in names] for row in answers] for answers in rows]
    judged = np.ma.masked_invalid(np.array(scores, dtype=float))  # [n, r, m]; null, no judgement, is NaN
    overall = judged.std(axis=(0, 1)).filled(0.0)
    return (judged.std(axis=1).filled(0.0) / np.where(overall > 0, overall, 1.0)).sum(axis=-1)


def choose_prompts(rows: list[list[dict[str, Any]]], labels: dict[str, dict[str, Any]], count: int) -> list[int]:
    """Indices of `count` prompts: widest spread first, risky and benign in turn, all categories first.

    Deterministic: ties go to the earlier prompt.
    """
    order = np.argsort(-spreads(rows).round(9), kind="stable").tolist()
    by_kind: dict[bool | None, dict[Any, list[int]]] = {}
    for index in order:
        label = labels.get(rows[index][0]["prompt"], {})
        categories = by_kind.setdefault(label.get("risky"), {})
        categories.setdefault(label.get("category"), []).append(index)
    queues = []
    for kind in sorted(by_kind, key=lambda kind: (kind is None, not kind)):
        rounds = itertools.zip_longest(*by_kind[kind].values())
        queues.append([index for one_round in rounds for index in one_round if index is not None])
    chosen = [index for turn in itertools.zip_longest(*queues) for index in turn if index is not None][:count]
    return sorted(
        chosen,
        key=lambda index: (not labels.get(rows[index][0]["prompt"], {}).get("risky"), order.index(index)),
    )


def choose_runs(runs: list[Run]) -> tuple[list[Run], list[Run]]:
    """(chosen, others): the first seed of every policy, those of the default condition chosen from.

    Chosen are the start, the experts, what the others are compared with, the last point of its front, and as many
    others as there is room for.
    """
    first = list({run.name.group: run for run in reversed(runs)}.values())[::-1]
    if len(first) <= MOST_CHOSEN:
        return first, []
    members = [run for run in first if run.name.condition == find_conditions(first)[0]]
    ends = [run for run in members if run.name.row.place in (START, EXPERT)]
    single = [run for run in members if run.name.is_single_method]
    compared = [run for run in single if run.name.row.leads or run.name.row.is_own]
    points = [run for run in members if run.name.family == lead_front()][-1:]
    wanted = [*ends, *compared, *points, *(run for run in single if run not in compared)] or members
    chosen = [run for run in members if run in wanted[:MOST_CHOSEN]]
    return chosen, [run for run in first if run not in chosen]


def build_sample(runs: list[Run], rows: list[dict[str, Any]], kind: str, shown: int) -> Sample:
    """`rows` are the runs' answers to one prompt; the first `shown` of them are shown at once."""
    judged = [(name, value) for row in rows for name, value in row["scores"].items() if value is not None]
    best = {name: max(value for other, value in judged if other == name) for name, _ in judged}
    answers = []
    for run, row in zip(runs, rows, strict=True):
        gold = row.get("gold") or {}
        scores = [
            Score(name, value, gold.get(name), value is not None and value == best[name])
            for name, value in row["scores"].items()
        ]
        answers.append(Answer(run, row, scores))
    turns = rows[0].get("messages", [])[:-1]
    return Sample(rows[0]["prompt"], rows[0]["source"], kind, turns, answers[:shown], answers[shown:])


def choose_samples(runs: list[Run], labels: dict[str, dict[str, Any]], count: int) -> list[Sample]:
    """Up to `count` prompts with the policies' answers; empty when the policies share no prompt."""
    chosen, others = choose_runs(runs)
    rows = shared_rows([*chosen, *others])
    if not rows:
        return []
    shown = len(chosen)
    kinds = [KINDS[labels.get(answers[0]["prompt"], {}).get("risky")] for answers in rows]
    indices = choose_prompts([answers[:shown] for answers in rows], labels, count)
    return [build_sample([*chosen, *others], rows[index], kinds[index], shown) for index in indices]


# ---- the section -------------------------------------------------------------------------------------------

PAGE_SAMPLE = """
{% macro answer_box(answer) %}
<div class="answer" style="border-color: {{ color(answer.run) }}">
  <strong>{{ answer.run.name.label }}</strong>
  {%- if not answer.row.finished %}<span class="flag">cut off</span>{% endif %}
  <div class="text">{{ answer.row.response|printable or "(empty)" }}</div>
  <ul>{% for score in answer.scores %}<li{% if score.best %} class="top"{% endif %}>
  {{- score.objective }} {{ score.value|number(2) }}
  {%- if score.gold is not none %} ({{ score.gold|number(2) }}){% endif %}</li>{% endfor %}</ul>
</div>
{% endmacro %}
<article class="sample">
<h3>{% if sample.kind %}<span class="kind {{ sample.kind }}">{{ sample.kind }}</span>{% endif %}
{{- sample.prompt|printable }}</h3>
{% if sample.earlier_turns %}
<details><summary>earlier turns</summary>
{% for turn in sample.earlier_turns %}
<p class="turn"><strong>{{ turn.role }}:</strong> {{ turn.content|printable }}</p>
{% endfor %}
</details>
{% endif %}
<div class="answers">
{% for answer in sample.answers %}{{ answer_box(answer) }}{% endfor %}
</div>
{% if sample.others %}
<details><summary>{{ sample.others|length }} more policies</summary>
<div class="answers">
{% for answer in sample.others %}{{ answer_box(answer) }}{% endfor %}
</div>
</details>
{% endif %}
</article>
"""
MARKDOWN_SAMPLE = """
### {{ sample.kind ~ ": " if sample.kind }}{{ sample.prompt|md }}

| run | scores{{ " (gold)" if has_gold }} | response |
| --- | --- | --- |
{% for answer in sample.answers + sample.others %}
| {{ answer.run.name.label|md }} |
{%- for score in answer.scores %} {{ score.objective|md }} {{ score.value|number(2) }}
{%- if score.gold is not none %} ({{ score.gold|number(2) }}){% endif %}{{ "<br>"|safe if not loop.last }}{% endfor %} |
{#- #} {{ answer.row.response|md or "*(empty)*" }}{{ " **[cut off]**" if not answer.row.finished }} |
{% endfor %}
"""


def make(report: Report) -> Section:
    samples = choose_samples(report.runs, report.labels, report.sample_count)
    if not samples:
        blocks: list[Block] = [
            Text(["No prompt was answered by all policies, or no samples were asked for."], note=True)
        ]
    else:
        blocks = [
            Text([how_chosen(samples, report)], note=True, only=PAGE),
            *(show(sample, report) for sample in samples),
        ]
    return Section("Sample responses", "Responses", blocks)


def how_chosen(samples: list[Sample], report: Report) -> str:
    kinds = ", risky and benign in equal number" if len({sample.kind for sample in samples}) > 1 else ""
    gold = ", gold score in parentheses" if report.has_gold else ""
    seeds = " Of several seeds the first is shown." if report.several_seeds else ""
    return (
        f"Chosen by rule, not by hand: the prompts on which the policies' scores differ most{kinds}. Model score{gold};"
        f" the highest on a prompt is green.{seeds}"
    )


def show(sample: Sample, report: Report) -> Html:
    return Html(
        fill(PAGE_SAMPLE, sample=sample, color=lambda run: run.name.row.color),
        fill(MARKDOWN_SAMPLE, sample=sample, has_gold=report.has_gold),
    )
