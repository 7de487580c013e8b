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

from eval.results.shapes import NUMBER, OBJECT, SCALES, TEXT, WHOLE, Each, Maybe, Shape, find_difference, is_number
from utils.process.errors import UserError

FAMILY_LABELS = {
    "sft": "SFT",
    "ppo": "PPO",
    "safe_rlhf": "Safe RLHF",
    "fast_rl": "Fast RL",
    "mgda": "MGDA",
    "gapo": "GAPO",
    "p_gapo": "P-GAPO",
    "morlhf": "MORLHF",
    "rewarded_soup": "Rewarded Soup",
    "upgrad": "UPGrad",
    "dualproj": "DualProj",
    "cagrad": "CAGrad",
    "pcgrad": "PCGrad",
    "imtl_g": "IMTL-G",
    "aligned_mtl": "Aligned-MTL",
    "fairgrad": "FairGrad",
}
FRONT_FAMILIES = ("p_gapo", "morlhf", "rewarded_soup")
DEFAULT_CONDITION = "balanced"  # what tables and files call the condition of names without one
SINGLE_RUNS = ("safe_rlhf", "fast_rl", "morlhf_0.5", "mgda", "gapo_p1", "gapo_p2")

# What is read of args.json, of an evaluation (of models or of gold scores) and of its rows.
SETTINGS = {"algorithm": Maybe(TEXT), "seed": Maybe(WHOLE), "score_scale": Maybe(SCALES),
            "actor_model": Maybe(TEXT), "actor_model_sha256": Maybe(TEXT)}  # fmt: skip
SCORES = {"objectives": Each({"mean": NUMBER, "ci95": NUMBER}), "average": NUMBER, "harmless_ratio": Maybe(NUMBER)}
ROW = {"prompt": TEXT, "source": TEXT, "response": TEXT, "scores": Each(NUMBER), "gold": Maybe(Each(NUMBER)),
       "messages": Maybe([{"role": TEXT, "content": TEXT}])}  # fmt: skip
SCORED = {"objectives": Maybe(Each({"kind": Maybe(TEXT)}))}
EVALUATION = {"run": TEXT, "args": Maybe(SETTINGS), "scored": Maybe(SCORED), **SCORES, "gold": Maybe(SCORES),
              "kl": NUMBER, "response_length": Maybe(NUMBER), "rows": [ROW]}  # fmt: skip

_NAME = re.compile(r"(?P<base>[^@#]+)(@(?P<condition>[^#]+))?(#(?P<seed>.+))?")
_WEIGHTED = re.compile(rf"(?P<family>{'|'.join(FRONT_FAMILIES)})_(?P<weight>\d*\.?\d+)")


@dataclass(frozen=True)
class RunName:
    """`base[@condition][#seed]`; `weight`, of families that trace a front, is that of the first objective."""

    text: str
    base: str
    family: str
    weight: float | None
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
    def method(self) -> str:
        """What tables and plots call the method: 'GAPO p=1', 'PPO helpfulness', 'MORLHF 0.5'."""
        rest = self.base[len(self.family) :].strip("_").replace("_", " ")
        rest = re.sub(r"^p(?=\d)", "p=", rest)
        return f"{FAMILY_LABELS.get(self.family, self.family)} {rest}".strip()

    @property
    def label(self) -> str:
        """The method, with condition and seed where there are any: 'MORLHF 0.5 (imbalanced #43)'."""
        return f"{self.method} ({self.variant})" if self.variant else self.method


def parse_run_name(text: str) -> RunName:
    """Take a run name apart; a name of no known family is its own family."""
    match = _NAME.fullmatch(text)
    parts = match.groupdict(default="") if match else {"base": text, "condition": "", "seed": ""}
    base = parts["base"]
    weighted = _WEIGHTED.fullmatch(base)
    if weighted:
        return RunName(text, base, weighted["family"], float(weighted["weight"]), parts["condition"], parts["seed"])
    known = [family for family in FAMILY_LABELS if base == family or base.startswith(f"{family}_")]
    return RunName(text, base, max(known, key=len, default=base), None, parts["condition"], parts["seed"])


def sort_names(names: Iterable[str], objectives: list[str]) -> list[str]:
    """The order of the paper's table 1, then fronts by weight, then the rest; suffixes follow their base."""
    single = ["sft", *(f"ppo_{name}" for name in objectives), *SINGLE_RUNS]

    def key(text: str) -> tuple:
        name = parse_run_name(text)
        if name.base in single:
            place = single.index(name.base)
        elif name.weight is not None:
            place = len(single) + FRONT_FAMILIES.index(name.family)
        else:
            place = len(single) + len(FRONT_FAMILIES)
        return place, name.weight or 0.0, name.base, name.condition, len(name.seed), name.seed

    return sorted(names, key=key)


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
    def seed(self) -> int | None:
        """The seed it was trained with, or the one its name carries."""
        if self.args.get("seed") is not None:
            return self.args["seed"]
        return int(self.name.seed) if self.name.seed.isdigit() else None


AnyRun = TypeVar("AnyRun", bound=Run)


@dataclass(frozen=True)
class Front:
    """The points of one method across preferences: `points` are (weight of the first objective, run)."""

    family: str
    variant: str
    points: list[tuple[float, Run]]


def find_fronts(runs: list[Run]) -> list[Front]:
    """Fronts with at least two points, by weight.

    GAPO with p=1 on two objectives is P-GAPO at 0.5 (the paper plots it so), and stands in for it.
    """
    groups: dict[tuple[str, str], dict[float, Run]] = {}
    for run in runs:
        if run.name.weight is not None:
            groups.setdefault((run.name.family, run.name.variant), {})[run.name.weight] = run
    for run in runs:
        if run.name.base == "gapo_p1" and len(run.objectives) == 2:
            groups.setdefault(("p_gapo", run.name.variant), {}).setdefault(0.5, run)
    order = sorted(groups, key=lambda key: (FRONT_FAMILIES.index(key[0]), key[1]))
    return [Front(*key, sorted(groups[key].items())) for key in order if len(groups[key]) > 1]


def find_conditions(runs: Sequence[Run]) -> list[str]:
    """Conditions in the order in which they are met, the default one ('') first."""
    return sorted(dict.fromkeys(run.name.condition for run in runs), key=bool)


def condition_title(condition: str) -> str:
    return condition or DEFAULT_CONDITION


def find_stand_ins(runs: Sequence[AnyRun], condition: str) -> list[AnyRun]:
    """Runs of the default condition that stand for `condition`, too, because it changes nothing for them.

    These are the SFT model and, where the condition is one of scaled scores (--score_scale among the settings of
    its runs), PPO on an objective that it does not scale. A run of the condition itself goes before a stand-in.
    """
    if not condition:
        return []
    own = [run for run in runs if run.name.condition == condition]
    scaled = {f"ppo_{name}" for run in own for name, scale in run.args.get("score_scale") or [] if scale != 1}
    taken = scaled | {run.name.base for run in own}
    families = ("sft", "ppo") if scaled else ("sft",)
    return [
        run for run in runs if not run.name.condition and run.name.family in families and run.name.base not in taken
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
    """Names of all objectives in the order they are first met."""
    return list(dict.fromkeys(name for evaluation in evaluations for name in evaluation.get(part) or {}))


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
    """The first row without a value of an objective, in words."""
    parts = {"scores": evaluation, "gold": evaluation.get("gold") or {"objectives": {}}}
    for number, row in enumerate(evaluation["rows"], start=1):
        for part, scored in parts.items():
            if missing := scored["objectives"].keys() - (row.get(part) or {}).keys():
                return f"'rows' {number} '{part}' has no '{min(missing)}'"
    return None


def load_runs(root: Path) -> list[Run]:
    """All runs with an evaluation under `root`, in the order of the report.

    Raises:
        UserError: no evaluation there, or a file that is not one.
    """
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
    return [
        Run(
            parse_run_name(name),
            {**evaluations[name], "args": evaluations[name].get("args") or find_args(root, name)},
            read_metrics(root / "policies" / name / "metrics.jsonl"),
        )
        for name in names
    ]
