"""What the report knows about a run: its name taken apart, its place among the others, its files.

Run names carry the structure of an experiment: `p_gapo_0.2@imbalanced#3` is P-GAPO with weight 0.2 on the
first objective, under the imbalanced condition, with seed 3. Tables, plots and pages all read it from here.
"""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from eval.results.methods import (
    BASELINE,
    EXPERT,
    FRONT,
    METHOD,
    OTHER,
    START,
    Method,
    Weight,
    known_methods,
    match_run,
    preference,
    use_methods,
)
from eval.results.shapes import (
    NUMBER,
    OBJECT,
    SCALES,
    TEXT,
    WHOLE,
    Each,
    Leaf,
    Maybe,
    Shape,
    find_difference,
    is_number,
    is_number_word,
)
from utils.process.errors import UserError

DEFAULT_CONDITION = "balanced"  # what tables and files call the condition of names without one

# What is read of args.json, of an evaluation (of models or of gold scores) and of its rows. An objective that does not
# judge a response has null there; one that judges none has no mean, and then there is no average.
BETA = Leaf("β or NAME=β", lambda value: TEXT.holds(value) and is_number_word(value.rpartition("=")[2]))
SETTINGS = {"algorithm": Maybe(TEXT), "seed": Maybe(WHOLE), "score_scale": Maybe(SCALES),
            "loss_scale": Maybe(SCALES), "beta": Maybe([BETA]),
            "actor_model": Maybe(TEXT), "actor_model_sha256": Maybe(TEXT)}  # fmt: skip
SCORES = {"objectives": Each({"mean": NUMBER, "ci95": NUMBER}), "average": Maybe(NUMBER),
          "harmless_ratio": Maybe(NUMBER)}  # fmt: skip
ROW = {"prompt": TEXT, "source": TEXT, "response": TEXT, "scores": Each(Maybe(NUMBER)), "gold": Maybe(Each(NUMBER)),
       "messages": Maybe([{"role": TEXT, "content": TEXT}])}  # fmt: skip
SHARES = Each({"mean": NUMBER, "ci95": NUMBER})
TASK = {"prompts": WHOLE, "rewards": Each(NUMBER), "objectives": SHARES, "gold": Maybe(SHARES), "judges": SHARES}
SCORED = {"objectives": Maybe(Each({"kind": Maybe(TEXT)}))}
EVALUATION = {"run": TEXT, "args": Maybe(SETTINGS), "scored": Maybe(SCORED), **SCORES, "gold": Maybe(SCORES),
              "explanations": Maybe(Each(Each({"mean": NUMBER, "ci95": NUMBER}))), "kl": NUMBER,
              "judges": Maybe(SHARES), "tasks": Maybe(Each(TASK)),
              "response_length": Maybe(NUMBER), "rows": [ROW]}  # fmt: skip

_NAME = re.compile(r"(?P<base>[^@#]+)(@(?P<condition>[^#]+))?(#(?P<seed>.+))?")


@dataclass(frozen=True)
class RunName:
    """`base[@condition][#seed]`.

    Attributes:
        row: what the table of methods says of it; its place is 'other' where it is no row's.
        weight: of what is one of many preferences: that of the first of two objectives, or those of all.
        objective: of an expert, the one it is trained on.
    """

    text: str
    base: str
    row: Method
    weight: Weight | None
    objective: str
    condition: str
    seed: str

    @property
    def variant(self) -> str:
        """The suffix that sets this run apart from others with the same base name, e.g. 'imbalanced #3'."""
        return " ".join(filter(None, (self.condition, self.seed and f"#{self.seed}")))

    @property
    def group(self) -> str:
        """The name without its seed, e.g. 'p_gapo_0.2@imbalanced'."""
        return f"{self.base}@{self.condition}" if self.condition else self.base

    @property
    def family(self) -> str:
        """The method without what tells its runs apart: 'gapo', 'ppo'."""
        return self.row.family

    @property
    def method(self) -> str:
        """What tables and plots call the method: 'GAPO p=1', 'PPO helpfulness', 'MORLHF 0.5'."""
        return f"{self.row.title} {self.row.detail}".strip()

    @property
    def label(self) -> str:
        """The method, with condition and seed where there are any: 'MORLHF 0.5 (imbalanced #43)'."""
        return f"{self.method} ({self.variant})" if self.variant else self.method

    @property
    def is_single_method(self) -> bool:
        """Whether a run balances the objectives, and is no point of a front only."""
        return self.row.place in (BASELINE, METHOD, OTHER)


def parse_run_name(text: str) -> RunName:
    """Take a run name apart."""
    match = _NAME.fullmatch(text)
    parts = match.groupdict(default="") if match else {"base": text, "condition": "", "seed": ""}
    found = match_run(parts["base"])
    return RunName(text, parts["base"], found.method, found.weight, found.objective, parts["condition"], parts["seed"])


def sort_names(names: Iterable[str], objectives: list[str]) -> list[str]:
    """The order of the table, experts by objective, fronts by weight, then the rest; suffixes follow their base."""
    rows = [method.run for method in known_methods()]

    def key(text: str) -> tuple:
        name = parse_run_name(text)
        is_other = name.row.place == OTHER or (name.objective and name.objective not in objectives)
        place = len(rows) if is_other else rows.index(name.row.run)
        order = [objectives.index(name.objective)] if name.objective and not is_other else weights_of(name)
        return place, order, name.base, name.condition, len(name.seed), name.seed

    return sorted(names, key=key)


def weights_of(name: RunName) -> list[float]:
    """By which the points of a front are sorted; none for a run that has no weight."""
    return [] if name.weight is None else list(preference(name.weight))


@dataclass(frozen=True)
class Run:
    """One evaluated policy: `eval/<run>.json`, and `metrics.jsonl` where it was trained here."""

    name: RunName
    evaluation: dict[str, Any]
    metrics: dict[str, list[tuple[int, float]]] = field(default_factory=dict)

    @property
    def args(self) -> dict[str, Any]:
        return self.evaluation.get("args") or {}

    @property
    def objectives(self) -> dict[str, dict[str, float]]:
        return self.evaluation["objectives"]

    @property
    def gold(self) -> dict[str, Any] | None:
        return self.evaluation.get("gold")

    @property
    def algorithm(self) -> str:
        return self.args.get("algorithm") or self.name.family

    @property
    def scales(self) -> dict[str, float]:
        """Factors on the scores of objectives in training, other than 1."""
        return {name: scale for name, scale in self.args.get("score_scale") or [] if scale != 1}

    @property
    def betas(self) -> dict[str, float]:
        """β of objectives that have one of their own, in training on pairs."""
        words = [word.partition("=") for word in self.args.get("beta") or []]
        return {name: float(beta) for name, _, beta in words if beta}

    @property
    def changed(self) -> set[str]:
        """Objectives that training has scaled, in whatever way."""
        losses = {name for name, scale in self.args.get("loss_scale") or [] if scale != 1}
        return {*self.scales, *self.betas, *losses}

    @property
    def seed(self) -> int | None:
        """The seed it was trained with, or the one its name carries."""
        if self.args.get("seed") is not None:
            return self.args["seed"]
        return int(self.name.seed) if self.name.seed.isdigit() else None


AnyRun = TypeVar("AnyRun", bound=Run)


@dataclass(frozen=True)
class Front:
    """The points of one method across preferences: `points` are (weight, run), by weight."""

    family: str
    variant: str
    points: list[tuple[Weight, Run]]


def find_fronts(runs: list[Run]) -> list[Front]:
    """Fronts with at least two points, by weight, in the order of the table.

    A run that stands for a point (GAPO with p=1 for P-GAPO at 0.5, the same of two objectives) takes its place where
    that one is missing.
    """
    groups: dict[tuple[str, str], dict[Weight, Run]] = {}
    for run in runs:
        if run.name.weight is not None:
            groups.setdefault((run.name.family, run.name.variant), {})[run.name.weight] = run
    for run in runs:
        if run.name.row.stands_for:
            point = parse_run_name(run.name.row.stands_for)
            if len(run.objectives) == len(preference(point.weight)):
                groups.setdefault((point.family, run.name.variant), {}).setdefault(point.weight, run)
    families = [method.family for method in known_methods() if method.place == FRONT]
    order = sorted(groups, key=lambda key: (families.index(key[0]) if key[0] in families else len(families), key))
    return [
        Front(*key, sorted(groups[key].items(), key=lambda point: preference(point[0])))
        for key in order
        if len(groups[key]) > 1
    ]


def find_conditions(runs: Sequence[Run]) -> list[str]:
    """Conditions in the order in which they are met, the default one ('') first."""
    return sorted(dict.fromkeys(run.name.condition for run in runs), key=bool)


def condition_title(condition: str) -> str:
    return condition or DEFAULT_CONDITION


def find_stand_ins(runs: Sequence[AnyRun], condition: str) -> list[AnyRun]:
    """Runs of the default condition that stand for `condition`, too, because it changes nothing for them.

    These are the SFT model and, where the condition is one of scaled objectives (--score_scale among the settings of
    its runs, or --beta of one), experts of an objective that it does not scale. A run of the condition itself goes
    before a stand-in.
    """
    if not condition:
        return []
    own = [run for run in runs if run.name.condition == condition]
    scaled = {name for run in own for name in run.changed}
    taken = {run.name.base for run in own}
    places = (START, EXPERT) if scaled else (START,)
    return [
        run
        for run in runs
        if not run.name.condition
        and run.name.row.place in places
        and run.name.objective not in scaled
        and run.name.base not in taken
    ]


def read_json(path: Path) -> Any:
    """Raises: UserError naming the file, and the line of the first mistake."""
    return parse_json(read_bytes(path), path, 1)


def read_bytes(path: Path) -> bytes:
    """Raises: UserError: the file cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def parse_json(content: bytes, path: Path, first_line: int) -> Any:
    """JSON that begins on a line of a file. Raises: UserError naming the file, and the line of the first mistake."""
    try:
        return json.loads(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        line = first_line + content.count(b"\n", 0, error.start)
        raise UserError(f"{path}:{line}: the text is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{first_line + error.lineno - 1}: not valid JSON ({error.msg})") from None
    except (RecursionError, ValueError) as error:  # nested too deeply, or a number of too many digits
        raise UserError(f"{path}:{first_line}: unusable JSON ({error})") from None


def read_json_object(path: Path, shape: Shape = OBJECT) -> dict[str, Any]:
    """Raises: UserError: see `read_json`, or something other than an object of this shape."""
    value = read_json(path)
    if difference := find_difference(value, shape):
        raise UserError(f"{path}: a JSON object of another form is expected ({difference})")
    return value


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Raises: UserError naming the file and line."""
    rows = []
    for number, line in enumerate(read_bytes(path).split(b"\n"), start=1):
        if not line.strip():
            continue
        rows.append(parse_json(line, path, number))
        if not isinstance(rows[-1], dict):
            raise UserError(f"{path}:{number}: a JSON object is expected")
    return rows


def find_args_file(root: Path, run: str) -> Path | None:
    """The settings a run was trained with, if they are there: policies/<run>/args.json, <run>/args.json of a stage."""
    paths = (root / "policies" / run / "args.json", root / run / "args.json")
    return next((path for path in paths if path.is_file()), None)


def find_args(root: Path, run: str) -> dict[str, Any]:
    """The settings a run was trained with; {} where none are there."""
    path = find_args_file(root, run)
    return read_json_object(path, SETTINGS) if path else {}


def show_setting(value: Any) -> str:
    """A setting as a user would type it; nothing for an unset one."""
    if value is None:
        return ""
    if isinstance(value, dict):
        return ", ".join(f"{name}={show_setting(item)}" for name, item in value.items())
    if isinstance(value, list):
        return ", ".join("=".join(map(str, item)) if isinstance(item, list) else show_setting(item) for item in value)
    return value if isinstance(value, str) else json.dumps(value)


def read_metrics(path: Path) -> dict[str, list[tuple[int, float]]]:
    """metrics.jsonl -> {tag: [(step, value)]} by step; a step logged again after a resume counts once."""
    if not path.is_file():
        return {}
    rows = [row for row in read_json_lines(path) if "step" in row]
    for row in rows:
        if not WHOLE.holds(row["step"]):
            raise UserError(f"{path}: 'step' is not {WHOLE.what}: {row['step']!r}")
    by_step = {row["step"]: row for row in rows}
    series: dict[str, list[tuple[int, float]]] = {}
    for step in sorted(by_step):
        for tag, value in by_step[step].items():
            if tag != "step" and is_number(value):
                series.setdefault(tag, []).append((step, float(value)))
    return series


def objective_names(evaluations: Iterable[dict[str, Any]], part: str = "objectives") -> list[str]:
    """Names of all objectives in the order they are first met, in those with the most of them first.

    So one that judges nothing of the first run keeps its place.
    """
    parts = sorted((evaluation.get(part) or {} for evaluation in evaluations), key=len, reverse=True)
    return list(dict.fromkeys(name for found in parts for name in found))


def check_evaluation(evaluation: Any, path: Path) -> None:
    """Raises: UserError: something other than what eval/score.py writes."""
    difference = find_difference(evaluation, EVALUATION)
    if difference is None and not evaluation["rows"]:
        difference = "'rows' has none"
    if difference is None and not evaluation["objectives"]:
        difference = "'objectives' has none"
    if difference is None:
        difference = find_unscored(evaluation)
    if difference:
        raise UserError(f"{path}: not an evaluation ({difference}); eval/score.py writes them")


def find_unscored(evaluation: dict[str, Any]) -> str | None:
    """The first row without a value of an objective (null is one), or an objective without a judgement, in words."""
    parts = {"scores": evaluation, "gold": evaluation.get("gold") or {"objectives": {}}}
    for number, row in enumerate(evaluation["rows"], start=1):
        for part, scored in parts.items():
            if missing := scored["objectives"].keys() - (row.get(part) or {}).keys():
                return f"'rows' {number} '{part}' has no '{min(missing)}'"
    for name in evaluation["objectives"]:
        if all(row["scores"][name] is None for row in evaluation["rows"]):
            return f"'scores' of '{name}' are null in all 'rows'"
    return None


def count_judged(runs: Iterable["Run"]) -> dict[str, list[tuple[int, int]]]:
    """{objective: (responses that it judges, responses) of every run}, of objectives that do not judge them all."""
    counts: dict[str, list[tuple[int, int]]] = {}
    for run in runs:
        rows = run.evaluation["rows"]
        for name in objective_names(rows, "scores"):
            column = [row["scores"][name] for row in rows if name in row["scores"]]
            counts.setdefault(name, []).append((sum(value is not None for value in column), len(column)))
    return {name: found for name, found in counts.items() if any(judged < total for judged, total in found)}


def load_runs(root: Path) -> list[Run]:
    """All runs with an evaluation under `root`, in the order of the report.

    Raises:
        UserError: no evaluation there, or a file that is not one; see `use_methods`.
    """
    use_methods(root / "methods.txt")
    evaluations = {}
    for path in sorted((root / "eval").glob("*.json")):
        evaluation = read_json(path)
        check_evaluation(evaluation, path)
        if evaluation["run"] != path.stem:  # it names the files of a run: what a file says must not choose others
            raise UserError(f"{path}: holds the run {evaluation['run']!r}, not {path.stem!r}")
        evaluations[path.stem] = evaluation
    if not evaluations:
        raise UserError(f"--input_dir {root}: no eval/*.json there (eval/score.py writes them)")
    names = sort_names(evaluations, objective_names(evaluations.values()))
    return [load_run(root, name, evaluations[name]) for name in names]


def load_run(root: Path, name: str, evaluation: dict[str, Any]) -> Run:
    """A run with its settings, its metrics and what its training has cost."""
    metrics = read_metrics(root / "policies" / name / "metrics.jsonl")
    found = {"args": evaluation.get("args") or find_args(root, name), "cost": training_cost(metrics)}
    return Run(parse_run_name(name), evaluation | found, metrics)


def training_cost(metrics: dict[str, list[tuple[int, float]]]) -> dict[str, float]:
    """Sums over a run of what its steps have logged: seconds, sequences that models have read (forward_passes), tokens
    that the policy has generated; without what was not logged."""
    total = lambda tags: sum(value for tag in tags for _, value in metrics[tag])
    times = [tag for tag in metrics if tag.startswith("time/")]
    cost = {"seconds": total(times)} if times else {}
    return cost | {tag.removeprefix("cost/"): total([tag]) for tag in metrics if tag.startswith("cost/")}
