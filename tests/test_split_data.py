"""Splitting raw files by prompt, through the command line: no leak, nothing lost, rows unchanged."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest

from utils.process.errors import run_main
from utils.split_data import main, opening, split_of

ROOT = Path(__file__).resolve().parents[1]
SPLITS = ("train", "validation", "test")


def run(*arguments):
    command = [sys.executable, "utils/split_data.py", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def hh(first, *later, reply="Yes.", other="No."):
    prompt = f"\n\nHuman: {first}" + "".join(f"\n\nAssistant: Hm.\n\nHuman: {text}" for text in later)
    return {"chosen": f"{prompt}\n\nAssistant: {reply}", "rejected": f"{prompt}\n\nAssistant: {other}"}


def lines(path):
    return [json.loads(line) for line in path.read_text().split("\n") if line]


@pytest.fixture
def inputs(tmp_path):
    """Dialogues of 300 openings in one file, the same openings as safety pairs in another."""
    dialogues = [row for n in range(300) for row in (hh(f"Question {n}?"), hh(f"question  {n}?", "And then?"))]
    dialogues += [hh("Question 1?", reply=""), hh("  "), {**hh("Question 2?"), "note": "\ud83d odd \u2028"}]
    safety = [{"prompt": f"Question {n}?", "responses": ["a", "b"], "safer": [0, 1, None][n % 3]} for n in range(300)]
    (tmp_path / "hh.jsonl.gz").write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in dialogues).encode()))
    (tmp_path / "safety.json").write_text(json.dumps(safety))
    return tmp_path, dialogues, safety


def test_every_row_in_one_split_and_every_opening_too(inputs):
    folder, dialogues, safety = inputs
    result = run(
        "--input",
        f"helpful={folder}/hh.jsonl.gz",
        "--input",
        f"safety={folder}/safety.json",
        "--output_dir",
        folder / "out",
        "--validation_fraction",
        0.1,
        "--test_fraction",
        0.2,
    )
    assert result.returncode == 0, result.stderr
    helpful = {split: lines(folder / "out" / split / "helpful.jsonl") for split in SPLITS}
    pairs = {split: lines(folder / "out" / split / "safety.jsonl") for split in SPLITS}
    written = [json.dumps(row) for rows in helpful.values() for row in rows]
    assert sorted(written) == sorted(json.dumps(row) for row in dialogues if row != hh("  "))
    assert sum(map(len, pairs.values())) == len(safety)

    opened = {
        split: {
            row["chosen"].split("\n\n")[1].removeprefix("Human: ").lower().replace("  ", " ") for row in helpful[split]
        }
        for split in SPLITS
    }
    asked = {split: {row["prompt"].lower() for row in pairs[split]} for split in SPLITS}
    assert opened == asked
    assert not (asked["train"] & asked["test"] or asked["train"] & asked["validation"])
    assert len(asked["test"]) == pytest.approx(60, abs=20) and len(asked["validation"]) == pytest.approx(30, abs=15)


def test_the_summary_counts_what_was_read_and_what_the_stages_will_drop(inputs):
    folder, dialogues, _ = inputs
    result = run("--input", f"helpful={folder}/hh.jsonl.gz", "--output_dir", folder / "out")
    summary = json.loads((folder / "out" / "summary.json").read_text())["inputs"]["helpful"]
    assert (summary["read"], summary["kept"]) == (len(dialogues), len(dialogues) - 1)
    assert summary["dropped"] == {"empty prompt": 1}
    splits = summary["splits"].values()
    assert sum(split["rows"] for split in splits) == len(dialogues) - 1
    assert sum(split["views"]["pairs, better"]["dropped"].get("empty reply", 0) for split in splits) == 1
    assert "read 603, kept 602, dropped 1 (1 empty prompt)" in result.stdout
    assert "train/helpful.jsonl:" in result.stdout


def test_the_split_depends_on_the_opening_and_the_seed_alone():
    first = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello \n there"}]
    longer = [
        {"role": "user", "content": "hello there"},
        {"role": "assistant", "content": "Hi"},
        {"role": "user", "content": "Bye"},
    ]
    assert opening(first) == opening(longer) == "hello there"
    texts = [f"prompt {n}" for n in range(4000)]
    splits = [split_of(text, 0.05, 0.1, seed=1) for text in texts]
    assert splits == [split_of(text, 0.05, 0.1, seed=1) for text in texts]
    assert splits != [split_of(text, 0.05, 0.1, seed=2) for text in texts]
    assert splits.count("test") == pytest.approx(400, abs=80)
    assert splits.count("validation") == pytest.approx(200, abs=60)


def test_a_split_of_size_zero_is_not_written(inputs, monkeypatch):
    folder, _, _ = inputs
    monkeypatch.setattr(
        sys,
        "argv",
        [
            "split_data.py",
            "--input",
            f"safety={folder}/safety.json",
            "--output_dir",
            f"{folder}/out",
            "--test_fraction",
            "0",
        ],
    )
    run_main(main)
    assert sorted(path.name for path in (folder / "out").iterdir()) == ["summary.json", "train", "validation"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--input", "safety"], "'safety' is not NAME=VALUE"),
        (["--input", "safety=nowhere.jsonl"], "nowhere.jsonl: no such file or folder"),
        (["--input", "a/b={safety}"], "--input: 'a/b' cannot be a name"),
        (["--input", "a={safety}", "--input", "a={safety}"], "--input a={safety}: the name is used twice"),
        (["--input", "a={safety},{hh}"], "one input must be of one format, found hh_rlhf, safety_pairs"),
        (["--input", "a={few}"], "--input a={few}: the validation split would be empty (1 usable rows"),
        (["--input", "a={safety}", "--test_fraction", "0.97"], "leave nothing to train on"),
        (["--input", "a={safety}", "--test_fraction", "2"], "2 is not between 0 and 1"),
        (["--input", "a={safety}", "--input", "b={broken}"], "{broken}:2: malformed JSON"),
        (["--input", "a={safety}", "--output_dir", "{few}"], "--output_dir {few}: cannot write there"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(inputs, monkeypatch, capsys, arguments, message):
    folder, _, _ = inputs
    (folder / "few.jsonl").write_text('{"prompt": "Hi"}\n')
    (folder / "broken.jsonl").write_text('{"prompt": "Hi"}\n{"prompt"\n')
    names = {
        "safety": folder / "safety.json",
        "hh": folder / "hh.jsonl.gz",
        "few": folder / "few.jsonl",
        "broken": folder / "broken.jsonl",
    }
    arguments = [argument.format(**names) for argument in arguments]
    monkeypatch.setattr(sys, "argv", ["split_data.py", "--output_dir", str(folder / "out"), *arguments])
    with pytest.raises(SystemExit) as ended:
        run_main(main)
    stderr = capsys.readouterr().err
    assert ended.value.code == 2
    assert message.format(**names) in stderr and stderr.startswith("error: ")
    assert stderr.count("\n") == 1
    assert not (folder / "out").exists()
