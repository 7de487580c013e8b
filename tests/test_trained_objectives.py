"""eval/score.py without objectives on its command line: those that the policies were trained with."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import Result, Workshop, flags, run_script
from tests.test_reward_retries import write_responses

pytestmark = pytest.mark.slow

FUNCTION = "short=examples.reward_functions:conciseness"
TEMPLATE = "{% for turn in messages %}{{ turn['content'] + ' ' }}{% endfor %}"


@pytest.fixture(scope="module")
def trained(workshop: Workshop) -> Path:
    """A preset's folder: responses of sft, gapo_p1 and mgda, of which the last two were trained with objectives."""
    root = workshop.folder / "trained"
    (root / "eval/responses").mkdir(parents=True)
    (root / "turns.jinja").write_text(TEMPLATE)
    workshop.step3(
        "gapo_p1", output_dir=root / "policies/gapo_p1", max_steps=1, reward_function=FUNCTION, monitor="short",
        score_scale="short=3", score_template=f"helpfulness={root / 'turns.jinja'}",
    )  # fmt: skip
    (root / "sft").mkdir()
    (root / "sft/args.json").write_text(json.dumps({"model_name_or_path": str(workshop.base), "seed": 42}))
    for name in ("sft", "gapo_p1", "mgda"):
        write_responses(root / f"eval/responses/{name}.jsonl")
    add_run(root, "mgda")
    return root


def add_run(root: Path, name: str, **changes: Any) -> None:
    """A run with the settings of gapo_p1, but for `changes`."""
    settings = json.loads((root / "policies/gapo_p1/args.json").read_text())
    (root / "policies" / name).mkdir(exist_ok=True)
    (root / "policies" / name / "args.json").write_text(json.dumps(settings | changes))


@pytest.fixture
def root(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "preset"))


def score(root: Path, *runs: str, **options: Any) -> Result:
    files = tuple(root / f"eval/responses/{name}.jsonl" for name in runs or ("sft", "gapo_p1", "mgda"))
    return run_script("eval/score.py", flags(responses=files, output_dir=root / "eval", **options))


def test_scores_are_those_of_the_flags(workshop: Workshop, trained: Path, root: Path) -> None:
    """Also of objectives that were only monitored; a path may be written in several ways."""
    add_run(root, "mgda", score_scale=[], reward_model=[["helpfulness", f"{workshop.folder}/base/../reward"]])
    result = score(root)
    assert result.code == 0, result.stderr
    assert (
        f"objectives of gapo_p1 ({root}/policies/gapo_p1/args.json): --reward_model helpfulness={workshop.reward}"
        f" --score_template helpfulness={trained}/turns.jinja --cost_model harmlessness={workshop.cost}"
        f" --reward_function {FUNCTION}\n"
    ) in result.stdout
    found = [json.loads((root / f"eval/{name}.json").read_text()) for name in ("sft", "gapo_p1", "mgda")]
    assert all(list(entry["objectives"]) == ["helpfulness", "harmlessness", "short"] for entry in found)
    named = {"reward_model": f"helpfulness={workshop.reward}", "cost_model": f"harmlessness={workshop.cost}",
             "reward_function": FUNCTION, "score_template": f"helpfulness={trained / 'turns.jinja'}"}  # fmt: skip
    result = score(root, **named)
    assert result.code == 0 and "2 of 3" not in result.stdout and "objectives of" not in result.stdout, result.stderr
    assert "score helpfulness: 3 of 3 runs have scores" in result.stdout
    assert found == [json.loads((root / f"eval/{name}.json").read_text()) for name in ("sft", "gapo_p1", "mgda")]


@pytest.mark.parametrize(
    "changes, line",
    [
        ({"cost_model": []}, "gapo_p1: --cost_model harmlessness={cost}; mgda: no harmlessness"),
        ({"cost_model": [], "reward_model": [["helpfulness", "{reward}"], ["harmlessness", "{cost}"]]},
         "gapo_p1: --cost_model harmlessness={cost}; mgda: --reward_model harmlessness={cost}"),
        ({"cost_model": [["harmlessness", "{reward}"]]}, "mgda: --cost_model harmlessness={reward}"),
        ({"reward_function": []}, f"gapo_p1: --reward_function {FUNCTION}; mgda: no short"),
        ({"score_label": [["harmlessness", "0"]]}, "mgda: --cost_model harmlessness={cost} --score_label harmless"),
        ({"score_template": []}, "mgda: --reward_model helpfulness={reward})"),
    ],
)  # fmt: skip
def test_runs_with_other_objectives(workshop: Workshop, root: Path, changes: dict[str, Any], line: str) -> None:
    def filled(text: str) -> str:
        return text.replace("{cost}", str(workshop.cost)).replace("{reward}", str(workshop.reward))

    add_run(root, "mgda", **json.loads(filled(json.dumps(changes))))
    check_refusal(score(root), "--responses: gapo_p1 and mgda have other objectives (gapo_p1: ", filled(line))


def test_what_is_in_the_way(workshop: Workshop, root: Path) -> None:
    args = f"{root}/policies/mgda/args.json"
    for changes, parts in (
        ({"reward_model": [["helpfulness", "output/gone"]]},
         (f"{args}: --reward_model helpfulness output/gone", "paths count from ", "name the objectives with flags")),
        ({"reward_model": "helpfulness"}, (f"{args}: ", "'reward_model' is not pairs of a name and a text")),
        ({"reward_model": [["../up", "x"]]}, (f"{args}: '../up' cannot be a name",)),
        ({"reward_function": [["short", "none.py:rule"]]}, (f"{args}: --reward_function short=none.py:rule: no such",)),
        ({"score_template": [["helpfulness", "none.jinja"]]}, (f"{args}: --score_template helpfulness=none.jinja",)),
    ):  # fmt: skip
        add_run(root, "mgda", **changes)
        check_refusal(score(root, "sft", "mgda"), *parts)
    nothing = "at least one objective is needed (or a --reward_function); no args.json of sft in"
    check_refusal(score(root, "sft"), nothing, f"{root}/policies")
    check_refusal(score(root, score_label="helpfulness=1"), "at least one objective is needed")


def test_code_in_a_folder_of_a_policy(root: Path) -> None:
    """An args.json does not have code run that came with the model; the user may permit it."""
    rules = root / "policies/mgda/rules.py"
    ran = root / "it_ran"
    rules.write_text(f"open({str(ran)!r}, 'w')\ndef rule(prompts, responses): return [1.0 for _ in prompts]\n")
    others = {"reward_model": [], "cost_model": [], "score_template": []}
    add_run(root, "mgda", reward_function=[["rule", f"{rules}:rule"]], **others)
    check_refusal(score(root, "mgda"), f"{root}/policies/mgda/args.json: the function of rule", "--trust_remote_code")
    assert not ran.exists()
    assert score(root, "mgda", trust_remote_code=True).code == 0 and ran.exists()


def check_refusal(result: Result, *parts: str) -> None:
    assert result.code == 2 and result.stderr.startswith("error: ") and result.stderr.count("\n") == 1, result.stderr
    assert not [part for part in parts if part not in result.stderr], result.stderr
