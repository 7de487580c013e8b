"""`--config FILE`: a run is repeated from what it left behind, the command line wins, a mistake is one line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from step3_gapo.arguments import parse_args
from step3_gapo.needs import METHODS
from tests.helpers import STEP3, Workshop, distance, flags, read_metrics, run_script, untimed
from tests.test_soup import fine_tuned
from utils.cli.arguments import Parser
from utils.cli.types import named_number, named_value, positive_float, positive_int

CALL = {"output_dir", "print_interval"}  # what differs between the runs below


def settings_of(folder: Path) -> dict[str, Any]:
    return {name: value for name, value in json.loads((folder / "args.json").read_text()).items() if name not in CALL}


def weights_of(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


# --- runs


RUNS = {
    "lists, names with values, switches": {
        "algorithm": "p_gapo", "preference": ("helpfulness=0.3", "harmlessness=0.7"), "adam_betas": (0.8, 0.99),
        "score_scale": "harmlessness=2", "whiten_advantages": True, "reward_function":
        "conciseness=examples.reward_functions:conciseness", "monitor": "conciseness", "max_steps": 1,
    },
    "values that follow from others, two ranks": {
        "algorithm": "ppo_lagrangian", "cost_threshold": "harmlessness=-0.5", "lora_dim": 2, "kl_coeff": 1e-05,
        "zero_stage": 2, "offload": True, "max_steps": 1,
    },
}  # fmt: skip


@pytest.mark.parametrize("what", RUNS)
def test_a_run_is_repeated_from_its_settings(workshop: Workshop, tmp_path: Path, what: str) -> None:
    ranks = 2 if "two ranks" in what else 1
    workshop.step3("config_first", ranks, **RUNS[what])
    first, again = workshop.folder / "config_first", tmp_path / "again"
    result = run_script(STEP3, flags(config=first / "args.json", output_dir=again), ranks)
    assert result.code == 0 and "note:" not in result.stdout, result.stderr + result.stdout
    assert weights_of(first) == weights_of(again)
    assert settings_of(first) == settings_of(again)
    assert untimed(read_metrics(first)) == untimed(read_metrics(again))


@pytest.mark.parametrize("algorithm", METHODS)
def test_the_settings_of_every_method_are_taken(tmp_path: Path, algorithm: str) -> None:
    words = flags(actor_model="x", data="x", output_dir="x", algorithm=algorithm, responses_per_prompt=4,
                  conditioned="a=b:0.5", gram_every=2)  # fmt: skip
    first = parse_args(words)
    (tmp_path / "args.json").write_text(json.dumps(vars(first)))
    again = parse_args(flags(config=tmp_path / "args.json"))
    assert json.loads(json.dumps(vars(again))) == json.loads(json.dumps(vars(first)))


def test_another_number_of_ranks_and_another_algorithm_are_taken(workshop: Workshop, tmp_path: Path) -> None:
    """An option of the file's algorithm does not stand in the way of another one."""
    first = workshop.step3("config_ranks", rescale_power=2, max_steps=1)
    file = tmp_path / "args.json"
    file.write_text(json.dumps(json.loads((first / "args.json").read_text()) | {"world_size": 2}))
    result = run_script(STEP3, flags(config=file, algorithm="mgda", output_dir=tmp_path / "other"))
    assert result.code == 0, result.stderr
    assert f"note: --config {file}: that run had 2 ranks, this one has 1\n" in result.stdout
    settings = settings_of(tmp_path / "other")
    assert (settings["algorithm"], settings["rescale_power"], settings["world_size"]) == ("mgda", None, 1)


def test_a_resumed_run_is_compared_by_its_values(workshop: Workshop, tmp_path: Path) -> None:
    folder = workshop.step3("config_kept", keep_checkpoints=True, max_steps=1)
    file = tmp_path / "step3.yaml"
    file.write_text(json.dumps(json.loads((folder / "args.json").read_text()) | {"fresh": False}))  # JSON is YAML, too
    (folder / "unfinished").touch()
    result = run_script(STEP3, ["--config", str(file), "--kl_coeff", "0.5"])
    assert result.code == 2 and "is of a run with another result: --kl_coeff 0.05 -> 0.5 (" in result.stderr
    result = run_script(STEP3, ["--config", str(file)])
    assert result.code == 0 and "going on from" in result.stdout, result.stderr


def test_stages_1_and_2_take_a_file(workshop: Workshop, tmp_path: Path) -> None:
    data = workshop.folder / "data"
    file = tmp_path / "sft.yaml"
    file.write_text(f"""# the same for both stages
model_name_or_path: {workshop.base}
per_device_train_batch_size: 8
learning_rate: 1e-3
num_warmup_steps: ~
gradient_checkpointing: true
""")
    own = {
        "step1_sft/main.py": {"data": f"{data}/sft_train.jsonl:0.1"},
        "step2_reward/main.py": {"data": f"{data}/preferences_train.jsonl", "objective": "h", "kind": "cost"},
    }
    for stage, words in own.items():
        first, again = tmp_path / stage[:5], tmp_path / f"{stage[:5]}_again"
        for arguments in (
            flags(config=file, output_dir=first, **words),
            flags(config=first / "args.json", output_dir=again),
        ):
            result = run_script(stage, arguments)
            assert result.code == 0, result.stderr
        assert weights_of(first) == weights_of(again) and settings_of(first) == settings_of(again)
        assert settings_of(first)["learning_rate"] == 1e-3 and settings_of(first)["gradient_checkpointing"]


def test_a_soup_is_repeated(workshop: Workshop, tmp_path: Path) -> None:
    experts = [f"{name}={fine_tuned(workshop.base, tmp_path / name, seed)}" for seed, name in enumerate("ab")]
    for arguments in (
        flags(expert=tuple(experts), weight=("a=0.3", "b=0.7"), output_dir=tmp_path / "first"),
        flags(config=tmp_path / "first/args.json", output_dir=tmp_path / "again"),
    ):
        result = run_script("eval/soup.py", arguments)
        assert result.code == 0, result.stderr
    assert distance(tmp_path / "first", tmp_path / "again") == 0
    assert settings_of(tmp_path / "first") == settings_of(tmp_path / "again")


# --- the parser


def parser() -> Parser:
    made = Parser(prog="script.py", facts=("world_size",))
    made.add_argument("files", nargs="*")
    made.add_argument("--rate", type=positive_float, default=0.5)
    made.add_argument("--steps", type=positive_int)
    made.add_argument("--betas", type=float, nargs=2, default=(0.9, 0.95))
    made.add_argument("--model", type=named_value, nargs="+", action="extend", default=[])
    made.add_argument("--scale", type=named_number, nargs="+", default=[])
    made.add_argument("--input", type=named_value, action="append", dest="inputs")
    made.add_argument("--kind", choices=("010", "1:30", "no"))
    made.add_argument("--text", default="")
    choice = made.add_mutually_exclusive_group()
    choice.add_argument("--warmth", type=positive_float)
    choice.add_argument("--greedy", action="store_true")
    return made


def parsed(tmp_path: Path, text: str, *words: str, name: str = "a.yaml") -> dict[str, Any]:
    file = tmp_path / name
    file.write_text(text)
    return vars(parser().parse_args(["--config", str(file), *words]))


def given(values: dict[str, Any]) -> dict[str, Any]:
    """What differs from the defaults."""
    defaults = vars(parser().parse_args([]))
    assert values.keys() == defaults.keys()  # no trace of the file
    return {name: value for name, value in values.items() if value != defaults[name]}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("rate: 1e-6\nsteps: 7", {"rate": 1e-6, "steps": 7}),
        ("--rate: 2\nsteps: null\ngreedy: false\nmodel: []", {"rate": 2.0}),
        ("betas: [0.1, 0.2]", {"betas": [0.1, 0.2]}),
        ("model: {a: x, b: y=z}", {"model": [("a", "x"), ("b", "y=z")]}),
        ("model: [a=x, {b: y}, [c, z]]", {"model": [("a", "x"), ("b", "y"), ("c", "z")]}),
        ("scale: {a: -1e-5}\ninput: {a: x, b: y}", {"scale": [("a", -1e-5)], "inputs": [("a", "x"), ("b", "y")]}),
        ("kind: 010", {"kind": "010"}),
        ("kind: 1:30", {"kind": "1:30"}),
        ("kind: no", {"kind": "no"}),
        ("text: '- null'\ngreedy: True", {"text": "- null", "greedy": True}),
        ("text: 'null'", {"text": "null"}),
        ("text: --rate=3", {"text": "--rate=3"}),
        ("world_size: 1", {}),
    ],
)
def test_values_are_those_of_the_flags(tmp_path: Path, text: str, expected: dict[str, Any]) -> None:
    assert given(parsed(tmp_path, text)) == expected


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], {"rate": 3.0, "model": [("a", "x")], "betas": [1.0, 2.0], "greedy": True}),
        (["--rate", "4"], {"rate": 4.0, "model": [("a", "x")], "betas": [1.0, 2.0], "greedy": True}),
        (["--model", "b=y", "--model=c=z"], {"rate": 3.0, "model": [("b", "y"), ("c", "z")], "betas": [1.0, 2.0],
                                            "greedy": True}),
        (["--greedy=null", "--betas=null"], {"rate": 3.0, "model": [("a", "x")]}),
        (["--warmth", "2"], {"rate": 3.0, "model": [("a", "x")], "betas": [1.0, 2.0], "warmth": 2.0}),
        (["f", "g"], {"rate": 3.0, "model": [("a", "x")], "betas": [1.0, 2.0], "greedy": True, "files": ["f", "g"]}),
        (["--", "--rate=4"], {"rate": 3.0, "model": [("a", "x")], "betas": [1.0, 2.0], "greedy": True,
                              "files": ["--rate=4"]}),
    ],
)  # fmt: skip
def test_the_command_line_wins(tmp_path: Path, words: list[str], expected: dict[str, Any]) -> None:
    text = '{"rate": 3.0, "greedy": true, "model": [["a", "x"]], "betas": [1.0, 2.0], "world_size": 1}'
    assert given(parsed(tmp_path, text, *words, name="args.json")) == expected


def test_a_numbers_text_is_kept(tmp_path: Path) -> None:
    """Every float of a run's args.json comes back as it was."""
    for rate in (0.1, 1 / 3, 1e-300, 123456789.123456789):
        assert parsed(tmp_path, json.dumps({"rate": rate}), name="args.json")["rate"] == rate


MISTAKES = {
    "rat: 1": "a.yaml: rat: script.py has no such flag (did you mean rate?)",
    "zzz: 1": "a.yaml: zzz: script.py has no such flag (see",
    "help: true": "a.yaml: help: script.py has no such flag",
    "config: b.yaml": "a.yaml: config: script.py has no such flag",
    "files: [x]": "a.yaml: files: script.py has no such flag",
    "rate: x": "a.yaml: rate: invalid positive_float value: 'x'",
    "rate: -1": "a.yaml: rate: -1 is not a positive number",
    "rate: true": "a.yaml: rate: takes a value, not true",
    "rate: [1, 2]": "a.yaml: rate: takes one value, not 2",
    "betas: [1]": "a.yaml: betas: expected 2 arguments",
    "betas: [1, null]": "a.yaml: betas: null cannot be one of its values",
    "greedy: yes": 'a.yaml: greedy: is a switch: true or false, not "yes"',
    "kind: 8": "a.yaml: kind: invalid choice: '8'",
    "model: x": "a.yaml: model: 'x' is not NAME=VALUE",
    "model: [[a, b, c]]": 'a.yaml: model: ["a", "b", "c"] cannot be one of its values',
    "model: {a: {b: c}}": 'a.yaml: model: {"b": "c"} cannot be one of its values',
    "model: {a: b, a: c}": "a.yaml: a: is given twice",
    "rate: 1\n--rate: 2": "a.yaml: rate: is given twice",
    "warmth: 1\ngreedy: true": "not allowed with argument",
    "rate: 1\n steps: 2": "a.yaml: line 2: not valid YAML",
    "rate: \a": "a.yaml: not valid YAML",
    "[a]: 1": "a.yaml: line 1: a key is no name",
    "- rate": "a.yaml: a mapping of flags to values is expected",
    "": "a.yaml: a mapping of flags to values is expected",
    "[" * 1500: "a.yaml: is nested too deeply",
}


@pytest.mark.parametrize("text", MISTAKES, ids=range(len(MISTAKES)))
def test_a_mistake_is_named_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture, text: str) -> None:
    with pytest.raises(SystemExit) as ended:
        parsed(tmp_path, text)
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.count("\n") == 1 and MISTAKES[text] in said


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda file: None, "--config {file}: cannot be read (No such file or directory)"),
        (lambda file: file.mkdir(), "--config {file}: cannot be read (Is a directory)"),
        (lambda file: file.write_bytes(b"\xff"), "--config {file}: the text is not UTF-8"),
        (lambda file: file.write_text('{"rate": 1,}'), "--config {file}: line 1: not valid JSON"),
        (lambda file: file.write_text('{"rate": 1, "rate": 2}'), "--config {file}: rate: is given twice"),
        (lambda file: file.write_text("[" * 15009), "--config {file}: is nested too deeply"),
    ],
)
def test_a_file_that_cannot_be_read(
    tmp_path: Path, capsys: pytest.CaptureFixture, make: Callable[[Path], object], expected: str
) -> None:
    file = tmp_path / "args.json"
    make(file)
    with pytest.raises(SystemExit):
        parser().parse_args(["--config", str(file)])
    assert capsys.readouterr().err.startswith(f"error: {expected.format(file=file)}")


def test_flags_that_nobody_knows_are_left_over(tmp_path: Path) -> None:
    """A script may look for some flags before it knows all of them."""
    (tmp_path / "a.yaml").write_text("rate: 2\nlater: 3")
    found, others = parser().parse_known_args(["--config", str(tmp_path / "a.yaml"), "--other"])
    assert found.rate == 2 and others == ["--other"]
    with pytest.raises(SystemExit):
        parser().parse_args(["--config", str(tmp_path / "a.yaml")])


def test_what_comes_from_the_file_is_known(tmp_path: Path) -> None:
    made = parser()
    (tmp_path / "a.yaml").write_text("rate: 2\nsteps: 3\ninput: {a: b}")
    made.parse_args(["--config", str(tmp_path / "a.yaml"), "--steps", "4"])
    assert made.from_file == {"rate", "inputs"}
