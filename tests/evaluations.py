"""Hand-made evaluations of policies: runs with known scores on a few prompts, in memory or as a preset's files."""

import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np

from eval.results.runs import Run, parse_run_name

OBJECTIVES = ("helpfulness", "harmlessness")


def make_run(
    name: str,
    scores: Any,
    gold: Any = None,
    args: dict[str, Any] | None = None,
    metrics: dict[str, list[tuple[int, float]]] | None = None,
    objectives: tuple[str, ...] = OBJECTIVES,
    kinds: tuple[str, ...] = (),
) -> Run:
    """A run whose prompts scored `scores`, [prompts, m], NaN where not judged; `gold` likewise; `kinds` of its
    objectives, if told."""
    rows = []
    for index, values in enumerate(np.asarray(scores, dtype=float)):
        row = {"prompt": f"Prompt {index}", "source": f"test.jsonl:{index + 1}", "response": f"answer of {name}"}
        row |= {"messages": [{"role": "user", "content": f"Prompt {index}"}], "length": 10, "finished": True, "kl": 1.0}
        judged = [None if np.isnan(value) else float(value) for value in values]
        row |= {"scores": dict(zip(objectives, judged, strict=True))}
        if gold is not None:
            row |= {"gold": dict(zip(objectives, map(float, np.asarray(gold, dtype=float)[index]), strict=True))}
        rows.append(row)
    evaluation = {"run": name, "args": args or {}, **summarize(rows, "scores"), "kl": 2.0, "response_length": 10.0}
    evaluation |= {"gold": summarize(rows, "gold")} if gold is not None else {}
    if kinds:
        evaluation["scored"] = {"objectives": {o: {"kind": kind} for o, kind in zip(objectives, kinds, strict=True)}}
    return Run(parse_run_name(name), evaluation | {"rows": rows}, metrics or {})


def summarize(rows: list[dict[str, Any]], part: str) -> dict[str, Any]:
    """Means as eval/score.py writes them; the last objective is the cost."""
    values = {name: [row[part][name] for row in rows if row[part][name] is not None] for name in rows[0][part]}
    means = {name: statistics.fmean(column) for name, column in values.items() if column}
    harmless = [value > 0 for value in list(values.values())[-1]]
    return {
        "objectives": {name: {"mean": mean, "ci95": 0.25} for name, mean in means.items()},
        "harmless_ratio": 100 * statistics.fmean(harmless) if harmless else None,
        "average": statistics.fmean(means.values()) if len(means) == len(values) else None,
    }


def noisy_run(name: str, mean: tuple[float, ...], prompts: int = 40, spread: float = 0.5, **options: Any) -> Run:
    """A run around `mean`; the noise of a prompt depends on the run's name. Gold scores are its scores minus 1."""
    noise = np.random.default_rng(list(name.encode())).normal(scale=spread, size=(prompts, len(mean)))
    return make_run(name, noise + mean, gold=noise + mean - 1, **options)


def write_runs(root: Path, runs: list[Run]) -> Path:
    """eval/<run>.json and policies/<run>/metrics.jsonl, as eval/report.py reads them."""
    (root / "eval").mkdir(parents=True)
    for run in runs:
        (root / "eval" / f"{run.name.text}.json").write_text(json.dumps(run.evaluation))
        steps: dict[int, dict[str, float]] = {}
        for tag, series in run.metrics.items():
            for step, value in series:
                steps.setdefault(step, {"step": step})[tag] = value
        if steps:
            folder = root / "policies" / run.name.text
            folder.mkdir(parents=True)
            (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in steps.values()))
    return root
