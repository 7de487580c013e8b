"""The table of methods: every row is a command of its stage, whatever the objectives; and rows of a user's own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from eval import report, soup
from eval.reporting.plane import neighbors
from eval.reporting.sections.summary import order_sentences
from eval.results.methods import read_methods, use_methods
from eval.results.runs import find_fronts, load_runs, parse_run_name, sort_names
from step3_dpo import arguments as step3_dpo
from step3_dpo.frozen import MarginModel
from step3_dpo.objectives import objectives_of
from step3_gapo.arguments import check_algorithm_options, parse_args
from step3_gapo.constrained.arguments import check_policy_loss
from step3_gapo.needs import method_of
from tests.cases import cases
from tests.evaluations import make_run, noisy_run, write_runs
from utils.combining.algorithm import build, options_of
from utils.process.errors import AT_ONCE, UserError
from utils.scoring.objectives import declared_objectives

ROOT = Path(__file__).resolve().parents[1]
TWO = "reward/helpfulness cost/harmlessness"
THREE = f"{TWO} function/conciseness=examples/reward_functions.py:conciseness"
NAMES = {TWO: ["helpfulness", "harmlessness"], THREE: ["helpfulness", "harmlessness", "conciseness"]}
WEIGHTS = {TWO: ("0.2", "0.5"), THREE: ("0.6_0.2_0.2", "0.33_0.33_0.33")}
SETTLED = "source utils/launch/variables.sh; source utils/launch/objectives.sh; source utils/launch/methods.sh; "
SETTLED += "settle_objectives && read_methods || exit; "


def bash(script: str, **variables: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHON": sys.executable, "OUTPUT": "out"} | variables
    return subprocess.run(
        ["bash", "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )


def test_runs_that_need_other_memory_are_planned_apart() -> None:
    """A dry run plans one run of every shape in full: with critics and without, of all parameters and not."""
    alike = [["gapo_p1", "safe_rlhf", "p_gapo_0.2", "pama", "mgda@imbalanced"], ["gapo_p1_full", "mgda_full"],
             ["gapo_group", "grpo#43", "p_gapo_group_0.6"], ["gapo_group_full"], ["ppo_helpfulness"],
             ["cgpo_crpg", "cgpo_crpg_gapo"], ["cgpo_crraft"], ["cgpo_codpo"]]  # fmt: skip
    runs = [run for group in alike for run in group]
    shapes = bash(f"{SETTLED} source utils/launch/plan.sh; for run in {' '.join(runs)}; do shape_of $run; done")
    found = dict(zip(runs, shapes.stdout.splitlines(), strict=True))
    assert [len({found[run] for run in group}) for group in alike] == [1] * len(alike) == [1] * len(set(found.values()))


def commands(objectives: str, runs: list[str], stage: str = "step3_gapo", **variables: str) -> list[list[str]]:
    """What preset tiny's script of a stage would start for each run: [[script, log, flags ...]]."""
    script = (ROOT / f"{stage}/training_scripts/tiny_policy.sh").read_text()
    script = script.replace('$(dirname "${BASH_SOURCE[0]}")', f"{stage}/training_scripts")
    train = f'launch() {{ printf "%s\\n" "$@"; echo; }}; for run in {" ".join(runs)}; do train_policy "$run"; done'
    result = bash(script.replace('train_policy "${1:-}"; exit', train), OBJECTIVES=objectives, **variables)
    assert result.returncode == 0, result.stderr
    return [block.splitlines() for block in result.stdout.removesuffix("\n\n").split("\n\n")]


def rows() -> dict[str, str]:
    """The stage or script that makes the runs of each row of the table, patterns included; of conditions, the last."""
    lines = (ROOT / "presets/methods.txt").read_text().splitlines()
    cells = [[cell.strip() for cell in line.split("|")] for line in lines if line.strip() and not line.startswith("#")]
    return {run: maker for run, *_, maker, _, _ in cells if run not in ("run", "sft")}


def expand(row: str, objectives: str) -> list[str]:
    """Runs that a row stands for."""
    if "{objective}" in row:
        return [row.replace("{objective}", name) for name in NAMES[objectives]]
    return list(dict.fromkeys(row.replace("{w}", text).replace("{equal}", WEIGHTS[objectives][1])
                              for text in WEIGHTS[objectives]))  # fmt: skip


@pytest.mark.parametrize("objectives", [TWO, THREE], ids=["two", "three"])
def test_every_row_is_a_command_of_its_stage(objectives: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With every condition, and with the gradients of all parameters where they are compared."""
    table = rows()
    conditions = [row for row in table if row.startswith("@")]
    stands_for = {run: row for row in reversed(table) if row not in conditions for run in expand(row, objectives)}
    runs = [run for row in table if row not in conditions for run in expand(row, objectives)]
    assert len(runs) == len(set(runs)) + 1, "the pattern of equal weights is one of the others, too"
    assert {run: parse_run_name(run).row.run for run in runs} == stands_for, "the report takes names apart alike"
    runs += [f"{run}{condition}" for run in runs for condition in conditions]
    of_pairs = [run for run in runs if table[stands_for[run.partition("@")[0]]] == "step3_dpo"]
    check_runs_of_pairs(of_pairs, objectives)
    runs = [run for run in runs if run not in of_pairs]
    for run, (script, _, *flags) in zip(runs, commands(objectives, runs), strict=True):
        assert flags[flags.index("--output_dir") + 1] == f"out/policies/{run}"
        if script == "eval/soup.py":
            monkeypatch.setattr(sys, "argv", [script, *flags])
            args = soup.parse_args()
            assert list(soup.check_weights(args.expert, args.weight)) == NAMES[objectives]
            continue
        assert script == "step3_gapo/main.py"
        args = parse_args(flags)
        check_algorithm_options(args)
        objectives_of_run = declared_objectives(args)
        assert [objective.name for objective in objectives_of_run] == NAMES[objectives]
        optimized = [objective for objective in objectives_of_run if objective.name not in args.monitor]
        assert len(optimized) == (1 if args.algorithm == "ppo" else len(objectives_of_run))
        names, kinds = zip(*((objective.name, objective.kind) for objective in optimized), strict=True)
        build(method_of(args), names, kinds, dict(args.preference), options_of(method_of(args), args))
        assert args.score_scale == ([("harmlessness", 4.0)] if "@" in run else [])


def check_runs_of_pairs(runs: list[str], objectives: str) -> None:
    """Every run's flags are some of step3_dpo, and go together."""
    assert len(runs) > 20
    names = NAMES[objectives]
    variables = {"PAIRS_conciseness": "short.jsonl:better", "VALIDATION_PAIRS_conciseness": "short.jsonl"}
    for run, (script, _, *flags) in zip(runs, commands(objectives, runs, "step3_dpo", **variables), strict=True):
        assert script == "step3_dpo/main.py" and flags[flags.index("--output_dir") + 1] == f"out/policies/{run}"
        args = step3_dpo.parse_args(flags)
        declared = objectives_of(args, AT_ONCE)
        assert [objective.label for objective in declared] == ["better", "safer", "better"][: len(names)]
        one = args.algorithm in ("dpo", "modpo")
        assert sum(objective.optimized for objective in declared) == (1 if one else len(names))
        margins = [MarginModel(name, path, 0.1) for name, path in args.margin_model]
        step3_dpo.check_numbers(args, declared, margins, AT_ONCE)
        assert step3_dpo.algorithm_of(args, declared, margins, AT_ONCE).losses
        assert args.beta == ["0.1", *(["harmlessness=0.4"] if "@" in run else [])]
        if args.algorithm == "modpo":
            suffix = "@imbalanced" if "@" in run else ""
            paths = {name: f"out/policies/dpo_{name}" for name in names[1:]}
            assert dict(args.margin_model) == paths | {"harmlessness": f"{paths['harmlessness']}{suffix}"}


def test_runs_with_tasks_read_variables(tmp_path: Path) -> None:
    """Tasks, judges and a policy to start from, which has to be made before; other runs know nothing of them."""
    (tmp_path / "rules.py").write_text("def kind(prompts, responses): return [True] * len(responses)")
    (tmp_path / "tasks.json").write_text("{}")
    given = {"TASKS": "presets/cgpo_tasks.json", "JUDGES": "kind=rules:kind safe=harmlessness:0"}
    runs = ["cgpo_crpg#7", "cgpo_crpg_gapo", "gapo_p1", "dpo_lw_0.5"]
    warm, gapo, plain = commands(TWO, runs[:3], **given, WARM_START="dpo_lw_0.5")
    args = parse_args(warm[2:])
    check_policy_loss(args)
    assert (args.tasks, args.policy_loss, args.algorithm) == (str(ROOT / given["TASKS"]), "crpg", "cgpo")
    assert args.judge == [("kind", "rules:kind"), ("safe", "harmlessness:0")]
    assert flag(warm, "--actor_model") == ["out/policies/dpo_lw_0.5#7"] and flag(plain, "--actor_model") == ["out/sft"]
    assert flag(gapo, "--policy_loss") == ["crpg"] and not {"--tasks", "--judge"} & set(plain)
    (alone,) = commands(TWO, ["cgpo_codpo"])
    assert not {"--tasks", "--judge"} & set(alone) and flag(alone, "--actor_model") == ["out/sft"]
    sources = bash(f"{SETTLED} for run in {' '.join(runs)}; do sources_of_run $run | paste -sd' '; done",
                   WARM_START="dpo_lw_0.5")  # fmt: skip
    scores = "sft reward/helpfulness cost/harmlessness"
    assert sources.stdout.splitlines() == [
        f"{scores} policies/dpo_lw_0.5#7", f"{scores} policies/dpo_lw_0.5", scores, "sft"
    ]  # fmt: skip
    script = f"cd '{tmp_path}' && source '{ROOT}/utils/launch/variables.sh' && make_paths_absolute"
    variables = {"TASKS": "tasks.json", "JUDGES": "kind=rules.py:kind safe=cost:-0.5"}
    absolute = bash(f'{script} && echo "$TASKS $JUDGES"', **variables)
    assert absolute.stdout.split() == [
        str(tmp_path / "tasks.json"), f"kind={tmp_path / 'rules.py'}:kind", "safe=cost:-0.5"
    ]  # fmt: skip


def test_a_name_says_all_weights_of_more_than_two_objectives() -> None:
    (two,), (corner, middle, soup_of_three) = (
        commands(TWO, ["p_gapo_0.2"]),
        commands(THREE, ["p_gapo_0.6_0.2_0.2_full", "morlhf_0.33_0.33_0.33", "rewarded_soup_0.5_0.3_0.2@imbalanced#7"]),
    )
    assert flag(two, "--preference") == ["helpfulness=0.2", "harmlessness=0.8"]
    assert flag(corner, "--preference") == ["helpfulness=0.6", "harmlessness=0.2", "conciseness=0.2"]
    assert flag(corner, "--gradient_scope") == ["full"] and "--gradient_scope" not in middle
    assert {word.split("=")[1] for word in flag(middle, "--preference")} == {"0.333333333"}, "rounded in the name alone"
    assert flag(soup_of_three, "--expert") == [
        "helpfulness=out/policies/ppo_helpfulness#7",
        "harmlessness=out/policies/ppo_harmlessness@imbalanced#7",
        "conciseness=out/policies/ppo_conciseness#7",
    ]


def flag(command: list[str], name: str) -> list[str]:
    """The words after a flag."""
    words = command[command.index(name) + 1 :]
    return words[: next((index for index, word in enumerate(words) if word.startswith("--")), None)]


# Objectives, a run -> what the one line says.
REFUSED = {
    "p_gapo_0.6_0.2": (THREE, "3 objectives need 3, joined by _, in the order helpfulness harmlessness conciseness"),
    "p_gapo_0.6_0.2_0.1": (THREE, "they do not sum to 1"),
    "p_gapo_0.2_0.8": (TWO, '"0.2_0.8" is not a number from 0 to 1'),
    "morlhf_0.5": ("reward/helpfulness", "there is one objective"),
    "ppo_harmlessness": ("reward/helpfulness", "there are ppo_helpfulness, safe_rlhf, "),
    "gapo_p1@imbalanced": ("reward/helpfulness", "no objective for the condition imbalanced: none is a cost"),
    "gapo_p1": (
        "harmlessness",
        "OBJECTIVES: harmlessness: none of reward/NAME, cost/NAME, function/NAME=FILE:FUNCTION",
    ),
    "gapo_p1#1": ("cost/a reward/b", "OBJECTIVES: reward/b: rewards come first, then costs, then functions"),
    "gapo_p1#2": ("reward/a cost/a", "OBJECTIVES: cost/a: there is another objective of this name"),
    "gapo_p1#3": ("reward/a-b", "OBJECTIVES: reward/a-b: a name is made of letters, digits and _"),
    "gapo_p1#4": (
        "reward/a=m.py:f",
        "OBJECTIVES: reward/a=m.py:f: a function is function/NAME=...; a model MODEL_NAME=",
    ),
}


@pytest.mark.parametrize("run", REFUSED)
def test_what_does_not_fit_the_objectives_is_refused_in_one_line(run: str) -> None:
    objectives, line = REFUSED[run]
    result = bash(f"{SETTLED} check_run '{run}'", OBJECTIVES=objectives)
    assert result.returncode == 2 and result.stderr.count("\n") == 1, result.stderr
    assert result.stderr.startswith("error: ") and line in result.stderr


def test_a_model_that_is_there_is_named_by_its_objective(tmp_path: Path) -> None:
    """By its kind where there is one of it; never by a kind of which there are two."""
    show = 'objective_flags; printf "%s\\n" "${OBJECTIVE_FLAGS[@]}"'
    one = bash(SETTLED + show, REWARD_MODEL="org/r", MODEL_harmlessness="org/h", COST_MODEL="org/c")
    assert one.stdout.split() == ["--reward_model", "helpfulness=org/r", "--cost_model", "harmlessness=org/h"]
    two = {"OBJECTIVES": "reward/a reward/b function/c=m:f", "MODEL_a": "org/a"}
    found = bash(SETTLED + show, **two)
    assert found.stdout.split()[:4] == ["--reward_model", "a=org/a", "--reward_model", "b=out/reward/b"]
    refused = bash(SETTLED + show, **two, REWARD_MODEL="org/r")
    assert refused.returncode == 2
    assert refused.stderr == "error: REWARD_MODEL=org/r: there are several of them; MODEL_NAME=PATH tells which\n"
    assert bash(SETTLED + show, **two, REWARD_MODEL="org/r", MODEL_b="org/b").returncode == 0
    missing = bash("bash run_all.sh tiny", OBJECTIVES="reward/wit", RUNS="gapo_p1", OUTPUT=str(tmp_path / "out"))
    assert missing.returncode == 2
    script = "step2_reward/training_scripts/tiny_wit.sh"
    assert missing.stderr == f"error: OBJECTIVES: reward/wit: there is no {script}, and MODEL_wit names no model\n"


OWN = "my_method_{w} | Mine | {w} | front | #123456 P | | step3_gapo | sft scores | --algorithm cagrad {scope}"
OWN += " --gamma {GAMMA:-1}"


def test_rows_of_a_users_own_are_runs(tmp_path: Path) -> None:
    beside = "filed | Filed | | other | #000000 X | | step3_gapo | sft scores | --algorithm mine.py:Mine"
    (tmp_path / "my.txt").write_text(f"# mine\n{OWN}\n{beside}")
    (tmp_path / "mine.py").touch()
    runs = ["my_method_0.3_full#7", "filed"]
    command, filed = commands(TWO, runs, METHODS=str(tmp_path / "my.txt"), GAMMA="0.9")
    assert flag(filed, "--algorithm") == [f"{tmp_path}/mine.py:Mine"], "a file that lies beside the rows"
    assert flag(command, "--algorithm") == ["cagrad"] and flag(command, "--gamma") == ["0.9"]
    assert flag(command, "--gradient_scope") == ["full"] and flag(command, "--seed") == ["7"]
    shown = bash("bash run_all.sh --help", METHODS=str(tmp_path / "my.txt"))
    assert "my_method_{w}" in shown.stdout and "gapo_p1" in shown.stdout


BAD_ROWS = {
    "eight columns": ("a | A | | method | #000000 o | | step3_gapo | sft", "my.txt:1: the columns are run | method | "),
    "a name that is none": ("a/b" + OWN[13:], 'my.txt:1: "a/b" cannot be the name of a run'),
    "a name that is taken": ("mgda" + OWN[13:], "my.txt:1: there is a row mgda already"),
    "no place, which the report needs": (OWN.replace("front", "top"), '"top" is no place'),
    "no marker": (OWN.replace(" P |", " nomarker |"), "is no style"),
    "it stands for no point": (OWN.replace("P | |", "P | mgda |"), 'stands for "mgda", which is no point of a front'),
}


@pytest.mark.parametrize("case", cases(BAD_ROWS, always=["eight columns", "a name that is taken", "no marker"]))
def test_what_is_no_row_is_refused_in_one_line(tmp_path: Path, case: str) -> None:
    row, line = BAD_ROWS[case]
    (tmp_path / "my.txt").write_text(row + "\n")
    result = bash("bash run_all.sh tiny", METHODS=str(tmp_path / "my.txt"), OUTPUT=str(tmp_path / "out"))
    assert result.returncode == 2 and result.stderr.count("\n") == 1 and line in result.stderr, result.stderr
    assert not (tmp_path / "out").exists()


def test_files_in_folders_with_blanks_are_refused_in_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "sp ace"
    folder.mkdir()
    (folder / "mine.py").write_text("def wit(prompts, responses): return [0.0] * len(responses)")
    (folder / "my.txt").write_text(
        "filed | Filed | | other | #000000 X | | step3_gapo | sft scores | --algorithm mine.py:Mine"
    )
    objectives = f"cd '{folder}' && OBJECTIVES='{TWO} function/wit=mine.py:wit' bash '{ROOT}/run_all.sh' tiny --dry_run"
    for script, variables in (
        (objectives, {}),
        ("bash run_all.sh tiny --dry_run", {"METHODS": str(folder / "my.txt")}),
    ):
        refused = bash(script, OUTPUT=str(tmp_path / "out"), **variables)
        assert refused.returncode == 2 and refused.stderr.count("\n") == 1, refused.stderr
        assert "a file in a folder with blanks in its path" in refused.stderr


def test_other_objectives_need_another_folder(tmp_path: Path) -> None:
    (tmp_path / "objectives.txt").write_text("reward/helpfulness cost/harmlessness\n")
    refused = bash("bash run_all.sh tiny --dry_run", OBJECTIVES="reward/helpfulness", OUTPUT=str(tmp_path))
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1
    assert "is of the objectives reward/helpfulness cost/harmlessness" in refused.stderr


# ---- in the report -----------------------------------------------------------------------------------------

# Name of a run -> what the report calls it, and its place.
NAMES_OF_RUNS = {
    "sft": ("SFT", "start"),
    "ppo_wit": ("PPO wit", "expert"),
    "morlhf_0.5@imbalanced": ("MORLHF 0.5 (imbalanced)", "method"),
    "morlhf_0.4": ("MORLHF 0.4", "front"),
    "morlhf_0.33_0.33_0.33": ("MORLHF equal", "method"),
    "p_gapo_0.6_0.2_0.2#7": ("P-GAPO 0.6/0.2/0.2 (#7)", "front"),
    "p_gapo_0.2_full": ("P-GAPO 0.2 full", "other"),
    "gapo_p1_full": ("GAPO p=1 full", "other"),
    "gapo_p1_slow": ("GAPO p=1 slow", "other"),
    "safe_rlhf_full": ("Safe RLHF full", "other"),
    "mine": ("mine", "other"),
}


def test_names_are_taken_apart() -> None:
    found = {text: parse_run_name(text) for text in NAMES_OF_RUNS}
    assert {text: (name.label, name.row.place) for text, name in found.items()} == NAMES_OF_RUNS
    assert found["p_gapo_0.6_0.2_0.2#7"].weight == (0.6, 0.2, 0.2) and found["morlhf_0.4"].weight == 0.4
    assert found["p_gapo_0.2_full"].weight is None, "another method than the front's"
    assert found["gapo_p1_slow"].row.color == parse_run_name("gapo_p1").row.color and found["mine"].row.is_own
    assert sort_names(["mine", "p_gapo_0.6_0.2_0.2", "p_gapo_0.2_0.6_0.2", "ppo_b", "ppo_a", "sft"], ["b", "a"]) == [
        "sft", "ppo_b", "ppo_a", "p_gapo_0.2_0.6_0.2", "p_gapo_0.6_0.2_0.2", "mine"
    ]  # fmt: skip


def test_fronts_of_three_objectives() -> None:
    """Scores that are the weights are in the order of the preferences. GAPO does not stand for equal weights."""
    weights = [(0.6, 0.2, 0.2), (0.2, 0.6, 0.2), (0.2, 0.2, 0.6), (0.33, 0.33, 0.33)]
    runs = {f"p_gapo_{'_'.join(map(str, point))}": point for point in weights} | {"gapo_p1": (0.3, 0.3, 0.3)}
    objectives = tuple(NAMES[THREE])
    (front,) = find_fronts([make_run(name, [point] * 2, objectives=objectives) for name, point in runs.items()])
    assert [weight for weight, _ in front.points] == sorted(weights)
    assert order_sentences([front]) == ["Fronts ordered by preference: P-GAPO on model scores."]
    turned = [make_run(name, [point[::-1]] * 2, objectives=objectives) for name, point in runs.items()]
    assert order_sentences(find_fronts(turned)) == ["Fronts ordered by preference: P-GAPO on no kind of score."]


def test_lines_join_neighboring_preferences() -> None:
    assert neighbors([0.8, 0.2, 0.5]) == [[1, 2, 0]]
    corners = [(0.6, 0.2, 0.2), (0.2, 0.6, 0.2), (0.2, 0.2, 0.6)]
    middle = (0.33, 0.33, 0.33)
    assert neighbors(corners) == [(0, 1), (0, 2), (1, 2)]
    assert neighbors([*corners, middle]) == [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    assert neighbors([corners[0], middle, (0.5, 0.25, 0.25)]) == [[1, 2, 0]], "on a line again"
    assert neighbors([(0.7, 0.1, 0.1, 0.1), (0.1, 0.7, 0.1, 0.1), (0.1, 0.1, 0.7, 0.1), (0.1, 0.1, 0.1, 0.7)]) == []
    assert neighbors([0.2]) == []


def test_rows_of_a_users_own_are_in_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = {"sft": (0, 1), "gapo_p1": (0.5, 2), "my_method_0.3": (0.2, 2.2), "my_method_0.7": (0.8, 1.5)}
    root = write_runs(tmp_path / "mine", [noisy_run(name, place) for name, place in places.items()])
    (root / "methods.txt").write_text(f"{OWN}\n")
    monkeypatch.setattr(sys, "argv", ["report.py", "--input_dir", str(root)])
    report.main()
    text = (root / "report/report.md").read_text()
    assert "| Mine 0.3 |" in text and "| Mine | 0.3, 0.7 |" in text
    assert "\nmine,,0.3,my_method_0.3," in (root / "report/front.csv").read_text()
    name = next(run.name for run in load_runs(root) if run.name.base == "my_method_0.3")
    assert (name.row.color, name.row.marker, name.row.is_own) == ("#123456", "P", True)
    other = write_runs(tmp_path / "other", [noisy_run("my_method_0.3", (0, 0))])
    assert load_runs(other)[0].name.label == "my_method_0.3", "the rows of one report are not those of another"


BAD_ROWS_OF_REPORTS = BAD_ROWS | {
    "a place that is none": (OWN.replace("front", "top"), '"top" is no place (start, '),
    "a style that is none": (OWN.replace("#123456", "red"), '"red P" is no style, such as #1B8A5A o'),
    "a method without a title": (OWN.replace("Mine", ""), "the method has no title"),
}


@pytest.mark.parametrize("case", BAD_ROWS_OF_REPORTS)
def test_the_report_refuses_what_is_no_row_in_one_line(tmp_path: Path, case: str) -> None:
    row, line = BAD_ROWS_OF_REPORTS[case]
    (tmp_path / "my.txt").write_text(f"# mine\n\n{row}\n")
    with pytest.raises(UserError) as refused:
        use_methods(tmp_path / "my.txt")
    use_methods()
    message = str(refused.value)
    assert f"{tmp_path}/my.txt:3: " in message and "\n" not in message
    assert line.removeprefix("my.txt:1: ") in message


def test_the_projects_own_table_has_one_row_a_run() -> None:
    table = read_methods(ROOT / "presets/methods.txt")
    assert [row.run for row in table] == ["sft", *(run for run in rows() if not run.startswith("@"))]
    assert not any(row.is_own for row in table) and [row.run for row in table if row.leads] == ["gapo_p1", "p_gapo_{w}"]
