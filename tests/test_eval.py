"""Generation and scoring against direct computation, one dialogue at a time and without padding."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    PreTrainedModel,
)

from eval import generate, score
from eval.results import answers, grading
from eval.results.answers import Answers
from eval.results.partial import PartialFile, checked_line, model_identity, partial_path
from tests.cases import EXHAUSTIVE
from tests.helpers import run_function
from utils import make_base
from utils.data.encoding import Encoded, encode_prompt
from utils.data.records import Prompt
from utils.models.configs import load_tokenizer
from utils.models.export import export_model
from utils.models.loading import load_causal_lm, new_score_model
from utils.models.token_head import TokenHead
from utils.policy.forward import response_log_probs
from utils.policy.sampled import Sampled
from utils.process.errors import UserError, run_main
from utils.scoring import scorers

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
WORDS = "how can i bake the bread fix my bike first then wait for a friend".split()
PROMPTS = [" ".join(WORDS[i % 5 : i % 5 + 3 + i]) + "?" for i in range(9)]
SCORE_MEAN = 0.25


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with policies sft and aligned, reward model useful, cost model harmful, and prompts.jsonl."""
    root = tmp_path_factory.mktemp("models")
    pieces = make_base.train_sentencepiece([" ".join(WORDS), *PROMPTS], 300, 1.0, seed=0)
    tokenizer = make_base.make_tokenizer(pieces, 64)
    sizes = Namespace(
        hidden_size=16,
        num_layers=2,
        num_heads=2,
        num_kv_heads=1,
        intermediate_size=32,
        max_position_embeddings=64,
    )
    for seed, name in enumerate(("sft", "aligned")):
        model = make_base.make_model(Namespace(**vars(sizes), seed=seed), tokenizer)
        with torch.no_grad():
            model.lm_head.weight *= 4
            model.lm_head.weight[tokenizer.eos_token_id] *= 3  # so that some responses end and some do not
        export_model(model, tokenizer, root / name)
    for seed, name in enumerate(("useful", "harmful")):
        torch.manual_seed(seed)
        model = new_score_model(str(root / "sft"), "--model")
        model.config.score_mean = SCORE_MEAN
        export_model(model, tokenizer, root / name)
    rows = [{"prompt": prompt, "category": "x", "risky": False} for prompt in PROMPTS]
    (root / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "grading.py").write_text(
        "def lengths(prompts, responses):\n"
        "    return {'useful': [len(r) for r in responses], 'harmful': [len(p) - 20.0 for p in prompts]}\n"
    )
    return root


def run_script(script: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "eval" / script), *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        cwd=ROOT,
        check=False,
    )


def generate_arguments(models: Path, output_dir: Path, *policies: str) -> list[str]:
    named = [f"{name}={models / name}" for name in policies]
    return [
        "--policy",
        *named,
        "--reference_model",
        str(models / "sft"),
        "--data",
        str(models / "prompts.jsonl"),
        "--output_dir",
        str(output_dir),
        "--max_new_tokens",
        "12",
        "--batch_size",
        "4",
    ]


def read_rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def call(module, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", [f"{module.__name__}.py", *map(str, arguments)])
    module.main()


@pytest.fixture(scope="module")
def responses(models: Path) -> Path:
    """Responses of both policies, made through the command line."""
    output_dir = models / "preset" / "eval"
    done = run_script("generate.py", *generate_arguments(models, output_dir, "sft", "aligned"))
    assert done.returncode == 0, done.stderr
    assert "ETA" in done.stdout and "aligned: 9 responses" in done.stdout
    return output_dir / "responses"


def test_responses_file(responses: Path, models: Path):
    tokenizer = AutoTokenizer.from_pretrained(models / "sft")
    for name in ("sft", "aligned"):
        rows = read_rows(responses / f"{name}.jsonl")
        assert [row["prompt"] for row in rows] == PROMPTS
        assert [row["messages"] for row in rows] == [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
        assert [row["source"] for row in rows] == [f"{models / 'prompts.jsonl'}:{n}" for n in range(1, 10)]
        assert all(1 <= row["length"] <= 12 for row in rows)
        assert all(row["finished"] for row in rows if row["length"] < 12)
        assert not any(tokenizer.eos_token in row["response"] for row in rows)
    assert {row["finished"] for row in rows} == {True, False}
    assert all(row["kl"] == 0 for row in read_rows(responses / "sft.jsonl"))
    assert sum(row["kl"] for row in rows) > 1


def encoded_prompts(models: Path) -> list[Encoded]:
    tokenizer = load_tokenizer(str(models / "sft"), "--model")
    prompts = [Prompt([{"role": "user", "content": text}], f"p:{n}") for n, text in enumerate(PROMPTS)]
    return [Encoded(prompt, encode_prompt(tokenizer, prompt.messages), ()) for prompt in prompts]


def log_probs_under(model: PreTrainedModel, sampled: Sampled, temperature: float = 1.0) -> torch.Tensor:
    read = sampled.input_ids, sampled.attention_mask, sampled.mask.shape[1]
    return response_log_probs(model, *read, temperature)


def test_log_probs_equal_unpadded_forward(models: Path):
    """Left padding, positions, mask and temperature: as if each row were alone."""
    tokenizer = load_tokenizer(str(models / "sft"), "--model")
    prompts = encoded_prompts(models)
    model = load_causal_lm(str(models / "aligned"), "--policy").eval()
    torch.manual_seed(3)
    sampled = answers.sample(model, prompts, tokenizer, Namespace(temperature=0.7, max_new_tokens=12))
    log_probs = log_probs_under(model, sampled, 0.7)
    plain = AutoModelForCausalLM.from_pretrained(models / "aligned").eval()
    for prompt, ids, length, row in zip(prompts, sampled.actions, sampled.lengths, log_probs, strict=True):
        response = ids[:length]
        eos = (response == tokenizer.eos_token_id).nonzero().flatten().tolist()
        assert eos in ([], [length - 1])
        whole = torch.cat([torch.tensor(prompt.prompt), response])
        with torch.no_grad():
            logits = plain(whole[None]).logits[0, len(prompt.prompt) - 1 : -1] / 0.7
        expected = logits.log_softmax(-1)[torch.arange(length), response]
        torch.testing.assert_close(row[:length], expected, atol=1e-4, rtol=0)


def test_learned_positions_are_counted_from_the_prompt(models: Path):
    """GPT-2's positions are absolute: left padding must not move them."""
    tokenizer = load_tokenizer(str(models / "sft"), "--model")
    prompts = encoded_prompts(models)
    torch.manual_seed(0)
    special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = GPT2Config(vocab_size=len(tokenizer), n_positions=64, n_embd=16, n_layer=2, n_head=2, **special)
    config.num_labels, config.initializer_range = 1, 0.5
    policy, scorer = GPT2LMHeadModel(config).eval(), GPT2ForSequenceClassification(config).eval()
    sampled = answers.sample(policy, prompts, tokenizer, Namespace(temperature=1.0, max_new_tokens=8))
    padded = log_probs_under(policy, sampled)
    dialogues = [
        prompt.prompt + ids[:length].tolist()
        for prompt, ids, length in zip(prompts, sampled.actions, sampled.lengths, strict=True)
    ]
    head = TokenHead(scorer.transformer, scorer.score)
    scores = scorers.last_token_scores(head, dialogues, tokenizer.pad_token_id, batch_size=4)
    for index, (prompt, dialogue) in enumerate(zip(prompts, dialogues, strict=True)):
        ids = torch.tensor([dialogue])
        response = ids[0, len(prompt.prompt) :]
        with torch.no_grad():
            alone = policy(ids).logits[0, len(prompt.prompt) - 1 : -1].log_softmax(-1)
            last = scorer.score(scorer.transformer(ids).last_hidden_state)[0, -1, 0]
        expected = alone[torch.arange(len(response)), response]
        torch.testing.assert_close(padded[index, : len(response)], expected, atol=1e-4, rtol=0)
        torch.testing.assert_close(scores[index, 0], last, atol=1e-5, rtol=0)


def test_kl_is_summed_over_the_response(models: Path):
    tokenizer = load_tokenizer(str(models / "sft"), "--model")
    prompts = encoded_prompts(models)
    policy, reference = (load_causal_lm(str(models / name), "--policy").eval() for name in ("aligned", "sft"))
    args = Namespace(temperature=1.0, max_new_tokens=12, batch_size=9, seed=5)
    (lines,) = answers.answer_prompts(policy, reference, prompts, tokenizer, args)
    answers.seed_everything(5)
    order = list(lines)
    sampled = answers.sample(policy, [prompts[index] for index in order], tokenizer, args)
    ratio = log_probs_under(policy, sampled) - log_probs_under(reference, sampled)
    for row, length, index in zip(ratio, sampled.lengths, order, strict=True):
        assert lines[index]["length"] == length
        assert lines[index]["kl"] == pytest.approx(row[:length].sum().item(), abs=1e-4)


def test_same_seed_same_file(models: Path, responses: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A policy's file depends on the seed, not on the policies generated before it."""
    call(generate, monkeypatch, *generate_arguments(models, tmp_path / "a", "aligned"))
    call(generate, monkeypatch, *generate_arguments(models, tmp_path / "b", "aligned"), "--seed", 1)
    expected = (responses / "aligned.jsonl").read_bytes()
    assert (tmp_path / "a" / "responses" / "aligned.jsonl").read_bytes() == expected
    assert (tmp_path / "b" / "responses" / "aligned.jsonl").read_bytes() != expected


def test_complete_files_are_kept(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    arguments = generate_arguments(models, tmp_path, "aligned")
    file = tmp_path / "responses" / "aligned.jsonl"
    call(generate, monkeypatch, *arguments)
    complete = file.read_text()
    edited = complete.replace('"finished": true', '"finished": false')
    file.write_text(edited)
    call(generate, monkeypatch, *arguments)
    assert file.read_text() == edited and "skipped" in capsys.readouterr().out
    call(generate, monkeypatch, *arguments, "--overwrite")
    assert file.read_text() == complete
    file.write_text("".join(complete.splitlines(keepends=True)[:-1]))
    call(generate, monkeypatch, *arguments)
    assert file.read_text() == complete, "an incomplete file is generated again"
    settings = file.with_suffix(".settings.json")
    for change in ({"temperature": 0.3}, {"prompts": "others"}, {"policy": {}}, {"reference_model": None}):
        file.write_text(edited)
        settings.write_text(json.dumps(json.loads(settings.read_text()) | change))
        call(generate, monkeypatch, *arguments)
        assert file.read_text() == complete, f"a file made with another {change} is generated again"


def test_a_policy_is_known_by_what_is_in_its_folder(models: Path, tmp_path: Path, monkeypatch, capsys):
    """Its weights, configuration and tokenizer count, dates do not."""
    for name in ("sft", "aligned"):
        shutil.copytree(models / name, tmp_path / name)
    shutil.copy(models / "prompts.jsonl", tmp_path)
    arguments = generate_arguments(tmp_path, tmp_path / "eval", "aligned")

    def generates() -> bool:
        model_identity.cache_clear()
        call(generate, monkeypatch, *arguments)
        return "skipped" not in capsys.readouterr().out

    assert generates()
    os.utime(tmp_path / "aligned" / "model.safetensors")
    assert not generates()
    for name, change in (("aligned", 1e-3), ("sft", 1e-3)):  # the reference is part of the KL
        file = tmp_path / name / "model.safetensors"
        tensors = {key: value + change for key, value in load_file(file).items()}
        date = file.stat().st_mtime
        save_file(tensors, file, metadata={"format": "pt"})
        os.utime(file, (date, date))
        assert generates() and not generates()
    config = tmp_path / "aligned" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"rms_norm_eps": 1e-3}))
    assert generates() and not generates()


def partial_lines(file: Path) -> int:
    partial = partial_path(file)
    return partial.read_bytes().count(b"\n") if partial.is_file() else 0


@EXHAUSTIVE
def test_a_killed_generation_goes_on(models: Path, tmp_path: Path, monkeypatch, capsys):
    """The real command, killed in the middle; nine batches of one prompt."""
    changes = ["--batch_size", 1, "--max_new_tokens", 30]
    call(generate, monkeypatch, *generate_arguments(models, tmp_path / "whole", "sft", "aligned"), *changes)
    arguments = [*generate_arguments(models, tmp_path / "killed", "sft", "aligned"), *changes]
    files = [tmp_path / "killed" / "responses" / f"{name}.jsonl" for name in ("sft", "aligned")]
    process = subprocess.Popen([sys.executable, "eval/generate.py", *map(str, arguments)], cwd=ROOT)
    while partial_lines(files[1]) < 3:  # the settings and two batches of the second policy
        assert process.poll() is None
        time.sleep(0.005)
    process.kill()
    process.wait()
    done = partial_lines(files[1]) - 1
    assert files[0].is_file() and not files[1].is_file() and 2 <= done < 9
    capsys.readouterr()
    call(generate, monkeypatch, *arguments)
    said = capsys.readouterr().out
    assert f"going on after {done} of 9 responses" in said and "sft.jsonl is complete, skipped" in said
    assert f"generate {done + 1}/9" in said and "generate 9/9" in said
    assert_same_files(tmp_path / "whole", tmp_path / "killed")


def assert_same_files(first: Path, second: Path) -> None:
    """The same names, hidden ones included, with the same bytes."""
    a, b = ({path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}
            for root in (first, second))  # fmt: skip
    assert a and a == b


def killed_in(module, name: str, calls: int, target, first_half_written: bool = False) -> None:
    """`target.main()`, with SIGKILL when it calls `module.name` for the given time; for a process of its own."""
    original, count = getattr(module, name), 0

    def replacement(*arguments):
        nonlocal count
        count += 1
        if count == calls:
            if first_half_written:
                partial_file, part = arguments
                with partial_file.path.open("ab") as file:
                    file.write(checked_line(partial_file.count, part)[:-40])
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments)

    setattr(module, name, replacement)
    target.main()


def generate_killed(arguments: list[str], where: str) -> None:
    sys.argv = ["generate.py", *arguments]
    module, name, calls, first_half_written = {
        "before a batch is kept": (PartialFile, "append", 2, False),
        "while a batch is written": (PartialFile, "append", 3, True),
        "before the responses": (answers, "write_text", 1, False),
        "before the settings": (answers, "write_json", 1, False),
        "before the parts are removed": (PartialFile, "remove", 1, False),
    }[where]
    killed_in(module, name, calls, generate, first_half_written)


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("before a batch is kept", "going on after 4 of 9 responses"),
        ("while a batch is written", "going on after 8 of 9 responses"),
        ("before the responses", "going on after 9 of 9 responses"),
        ("before the settings", "going on after 9 of 9 responses"),
        ("before the parts are removed", "is complete, skipped"),
    ],
)
def test_a_generation_killed_anywhere_goes_on(where, said, models, responses, tmp_path, monkeypatch, capsys):
    arguments = generate_arguments(models, tmp_path, "aligned")
    assert run_function(generate_killed, arguments, where).code == -signal.SIGKILL
    call(generate, monkeypatch, *arguments)
    assert said in capsys.readouterr().out
    names = ("aligned.jsonl", "aligned.settings.json")
    assert [path.name for path in sorted((tmp_path / "responses").iterdir())] == list(names)
    assert all((tmp_path / "responses" / n).read_bytes() == (responses / n).read_bytes() for n in names)


@pytest.mark.parametrize("changed", ["--seed", "--temperature"])
def test_parts_of_other_settings_are_discarded(changed: str, models: Path, tmp_path: Path, monkeypatch, capsys):
    arguments = generate_arguments(models, tmp_path / "killed", "aligned")
    assert run_function(generate_killed, arguments, "before a batch is kept").code == -signal.SIGKILL
    call(generate, monkeypatch, *arguments, changed, 2)
    assert ".aligned.jsonl.partial: of other models, prompts or settings, discarded" in capsys.readouterr().out
    call(generate, monkeypatch, *generate_arguments(models, tmp_path / "whole", "aligned"), changed, 2)
    assert_same_files(tmp_path / "whole", tmp_path / "killed")


def test_damaged_parts_are_dropped(tmp_path: Path):
    result = tmp_path / "run.jsonl"
    file = PartialFile(result, {"seed": 1})
    for part in range(4):
        file.append({"part": part, "text": "ä\u2028"})
    file.close()
    lines = file.path.read_bytes().splitlines(keepends=True)
    damages = {
        3: b"".join(lines[:4]) + lines[4].replace(b"3", b"4", 1), 1: b"".join(lines[:2]) + b"\0" * 50 + lines[3],
        2: b"".join(lines[:3]) + lines[3].rstrip(b"\n"), 0: lines[0][:-3],
        4: b"".join(lines) + lines[4],  # twice, as of two processes
    }  # fmt: skip
    for whole, damaged in damages.items():
        file.path.write_bytes(damaged)
        found = PartialFile(result, {"seed": 1})
        assert [part["part"] for part in found.parts] == list(range(whole))
        found.append({"part": "new"})
        found.close()
        again = PartialFile(result, {"seed": 1})
        assert [part["part"] for part in again.parts] == [*range(whole), "new"]
        again.close()


def test_two_processes_do_not_write_one_result(models: Path, responses: Path, tmp_path: Path, monkeypatch, capsys):
    """Whoever comes second ends, whether the first has begun to write or not, and nothing of the first is lost."""
    arguments = generate_arguments(models, tmp_path, "aligned")
    assert run_function(generate_killed, arguments, "while a batch is written").code == -signal.SIGKILL
    result = tmp_path / "responses" / "aligned.jsonl"
    first = Answers(result, kept_settings(partial_path(result)), 9)
    assert first.batches == 2
    expect_one_line(generate, monkeypatch, capsys, f"{result}: another process is writing it", *arguments)
    with pytest.raises(RuntimeError, match="1 of 9 prompts have no response"):
        first.write()
    first.partial.remove()
    early, late = (PartialFile(result, {"seed": 1}) for _ in range(2))
    early.append("part")
    with pytest.raises(UserError, match="another process"):
        late.append("part")
    early.close()
    call(generate, monkeypatch, *arguments)
    assert result.read_bytes() == (responses / "aligned.jsonl").read_bytes()


def kept_settings(partial: Path) -> dict:
    """The settings that the parts in a file are of."""
    identity = json.loads(partial.read_bytes().splitlines()[0])["entry"][1]
    return {key: value for key, value in identity.items() if key != "cuda_devices"}


def score_arguments(models: Path, folder: Path, output_dir: Path) -> list[str]:
    return [
        "--responses",
        *(str(folder / f"{name}.jsonl") for name in ("sft", "aligned")),
        "--reward_model",
        f"useful={models / 'useful'}",
        "--cost_model",
        f"harmful={models / 'harmful'}",
        "--output_dir",
        str(output_dir),
        "--batch_size",
        "4",
    ]


@pytest.fixture(scope="module")
def evaluations(models: Path, responses: Path) -> dict[str, dict]:
    """Both runs scored through the command line, with gold scores."""
    settings = models / "preset" / "policies" / "aligned" / "args.json"
    settings.parent.mkdir(parents=True)
    settings.write_text(json.dumps({"algorithm": "gapo", "seed": 7}))
    arguments = [*score_arguments(models, responses, responses.parent), "--gold", "grading:lengths"]
    done = run_script("score.py", *arguments, PYTHONPATH=str(models))
    assert done.returncode == 0, done.stderr
    return {name: json.loads((responses.parent / f"{name}.json").read_text()) for name in ("sft", "aligned")}


def score_killed(arguments: list[str], where: str) -> None:
    sys.argv = ["score.py", *arguments]
    module, name, calls = {
        "the first objective": (PartialFile, "append", 2),
        "the second objective": (PartialFile, "append", 4),
        "writing": (score, "write_json", 2),
    }[where]
    killed_in(module, name, calls, score, first_half_written=where != "writing")


@pytest.fixture
def scored(models: Path, responses: Path, tmp_path: Path, monkeypatch):
    """`scored(output_dir)`: score the responses in `tmp_path/responses`; how often a model was asked."""
    shutil.copytree(responses, tmp_path / "responses")
    asked = []
    original = scorers.last_token_scores
    monkeypatch.setattr(scorers, "last_token_scores", lambda *args: asked.append(1) or original(*args))

    def run(output_dir: Path, *changes: object, models: Path = models) -> int:
        asked.clear()
        model_identity.cache_clear()
        call(score, monkeypatch, *score_arguments(models, tmp_path / "responses", output_dir), *changes)
        return len(asked)

    return run


@pytest.mark.parametrize(
    ("where", "lacking"), [("the first objective", 3), ("the second objective", 1), ("writing", 0)]
)
def test_killed_scoring_goes_on(where, lacking, scored, models, tmp_path):
    assert scored(tmp_path / "whole") == 4
    arguments = score_arguments(models, tmp_path / "responses", tmp_path / "killed")
    assert run_function(score_killed, arguments, where).code == -signal.SIGKILL
    assert scored(tmp_path / "killed") == lacking
    assert_same_files(tmp_path / "whole", tmp_path / "killed")


def test_only_what_changed_is_scored_again(scored, models: Path, tmp_path: Path):
    output_dir, own = tmp_path / "eval", tmp_path / "models"
    shutil.copytree(models, own, ignore=shutil.ignore_patterns("preset"))
    assert scored(output_dir, models=own) == 4
    before = (output_dir / "sft.json").read_bytes()
    assert scored(output_dir, models=own) == 0 and (output_dir / "sft.json").read_bytes() == before
    config = own / "harmful" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"score_mean": 7.0}))
    assert scored(output_dir, models=own) == 2
    file = tmp_path / "responses" / "sft.jsonl"
    file.write_text(file.read_text().replace('"finished": false', '"finished": true', 1))
    assert scored(output_dir, models=own) == 2
    assert scored(output_dir, "--batch_size", 2, models=own) == 4
    (output_dir / "sft.json").write_text("{")
    assert scored(output_dir, "--batch_size", 2, models=own) == 2


RULES = """
def odd(prompts, responses):
    return [float(len(r)) if len(r) % 2 else None for r in responses]
def never(prompts, responses):
    return [None] * len(responses)
"""


def test_what_a_function_does_not_judge(models: Path, responses: Path, tmp_path: Path, monkeypatch, capsys):
    """It is null in rows and kept as such, in the parts of a killed run, too; figures are over what is judged."""
    (tmp_path / "rules.py").write_text(RULES)
    functions = [f"{name}={tmp_path / 'rules.py'}:{name}" for name in ("odd", "never")]
    arguments = ["--responses", responses / "aligned.jsonl", "--output_dir", tmp_path / "eval"]
    arguments += ["--cost_model", f"harmful={models / 'harmful'}", "--reward_function"]
    asked, load = [], score.load_row_scorer

    def counted(*loaded):
        scorer = load(*loaded)
        return lambda rows: asked.append(len(rows)) or scorer(rows)

    monkeypatch.setattr(score, "load_row_scorer", counted)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(score, "write_json", interrupted)
    with pytest.raises(KeyboardInterrupt):
        call(score, monkeypatch, *arguments, *functions)
    monkeypatch.undo()
    monkeypatch.setattr(score, "load_row_scorer", counted)
    assert sorted(asked) == [1, 1, 9, 9, 9]  # each function once before models load
    capsys.readouterr()
    for _ in range(2):  # from the parts, then from the result
        asked.clear()
        call(score, monkeypatch, *arguments, *functions)
        said = capsys.readouterr().out
        assert asked == [1, 1] and "score odd: 1 of 1 runs have scores" in said
    result = json.loads((tmp_path / "eval" / "aligned.json").read_text())
    lengths = [len(row["response"]) for row in read_rows(responses / "aligned.jsonl")]
    odd = [length for length in lengths if length % 2]
    assert 0 < len(odd) < 9 and f"score odd: judged {len(odd)} of 9 responses of aligned" in said
    assert [row["scores"]["odd"] for row in result["rows"]] == [n if n % 2 else None for n in lengths]
    assert result["objectives"]["odd"] == grading.mean_and_interval(odd) | {"judged": len(odd)}
    assert list(result["objectives"]) == ["harmful", "odd"] and "judged" not in result["objectives"]["harmful"]
    assert result["average"] is None and list(result["rows"][0]["scores"]) == ["harmful", "odd", "never"]
    arguments = [*arguments[:2], "--output_dir", tmp_path / "none", "--reward_function", functions[1]]
    expect_one_line(score, monkeypatch, capsys, "aligned: no objective judges any of its responses", *arguments)
    grading.check_values([{"source": "here"}], "a", [None], "--flag")
    with pytest.raises(UserError, match="--flag: the score of a is nan on the response to here"):
        grading.check_values([{"source": "here"}], "a", [math.nan], "--flag")


def test_scores_equal_direct_computation(models: Path, evaluations: dict[str, dict]):
    tokenizer = AutoTokenizer.from_pretrained(models / "useful")
    useful, harmful = (
        AutoModelForSequenceClassification.from_pretrained(models / n).eval() for n in ("useful", "harmful")
    )
    for row in evaluations["aligned"]["rows"]:
        dialogue = [*row["messages"], {"role": "assistant", "content": row["response"]}]
        text = tokenizer.apply_chat_template(dialogue, tokenize=False)
        if not row["finished"]:
            text = text.removesuffix(tokenizer.eos_token)
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            reward, cost = (model(ids).logits.item() for model in (useful, harmful))
        assert row["scores"]["useful"] == pytest.approx(reward - SCORE_MEAN, abs=1e-5)
        assert row["scores"]["harmful"] == pytest.approx(-cost, abs=1e-5)


def test_statistics(evaluations: dict[str, dict]):
    result = evaluations["aligned"]
    assert set(result) == {
        "run",
        "args",
        "scored",
        "objectives",
        "harmless_ratio",
        "average",
        "kl",
        "response_length",
        "gold",
        "rows",
    }
    assert result["run"] == "aligned" and result["args"] == {"algorithm": "gapo", "seed": 7}
    assert evaluations["sft"]["args"] == {} and evaluations["sft"]["kl"] == 0
    rows = result["rows"]
    for part, figures in (("scores", result), ("gold", result["gold"])):
        for name, entry in figures["objectives"].items():
            values = torch.tensor([row[part][name] for row in rows], dtype=torch.float64)
            assert entry["mean"] == pytest.approx(values.mean().item())
            assert entry["ci95"] == pytest.approx(1.96 * values.std().item() / 3)
        assert list(figures["objectives"]) == ["useful", "harmful"]
        assert figures["average"] == pytest.approx(sum(e["mean"] for e in figures["objectives"].values()) / 2)
        assert figures["harmless_ratio"] == pytest.approx(100 * sum(row[part]["harmful"] > 0 for row in rows) / 9)
    assert result["kl"] == pytest.approx(sum(row["kl"] for row in rows) / 9)
    assert result["response_length"] == pytest.approx(sum(row["length"] for row in rows) / 9)
    assert [row["gold"]["useful"] for row in rows] == [len(row["response"]) for row in rows]


def test_single_value_has_no_interval():
    assert grading.mean_and_interval([2.0]) == {"mean": 2.0, "ci95": 0.0}
    assert grading.mean_and_interval([1.0, 3.0]) == {"mean": 2.0, "ci95": pytest.approx(1.96)}


def test_without_cost_model_or_gold():
    objectives = [score.Objective("a", "reward", "")]
    result = score.evaluation("x", [{"scores": {"a": 1.0}, "kl": 0.0, "length": 3}], objectives, {}, {}, {})
    assert result["harmless_ratio"] is None and "gold" not in result


def expect_one_line(module, monkeypatch, capsys, message: str, *arguments: object) -> None:
    """The script ends with exit code 2 and one line on stderr that holds `message`."""
    monkeypatch.setattr(sys, "argv", [f"{module.__name__}.py", *map(str, arguments)])
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        run_main(module.main)
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert message in error and error.startswith("error: ") and error.count("\n") == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--policy": ["sft"]}, "'sft' is not NAME=VALUE"),
        ({"--policy": ["a=nowhere/at/all"]}, "--policy a nowhere/at/all"),
        ({"--policy": ["a={models}/sft", "a={models}/aligned"]}, "--policy a: given twice"),
        ({"--policy": ["a/b={models}/sft"]}, "--policy: 'a/b' cannot be a name"),
        (
            {"--policy": ["a={models}/useful"]},
            "/useful: this is MistralForSequenceClassification, not a language model",
        ),
        ({"--reference_model": ["{models}/missing"]}, "--reference_model {models}/missing"),
        ({"--data": ["{models}/missing.jsonl"]}, "{models}/missing.jsonl"),
        ({"--data": ["{models}/grading.py"]}, "{models}/grading.py"),
        ({"--max_new_tokens": ["64"]}, "--max_new_tokens 64: the model has room for 64 tokens"),
        ({"--max_prompt_length": ["5"]}, "prompts.jsonl:"),
        ({"--temperature": ["0"]}, "--temperature"),
    ],
)
def test_generate_bad_input(change, message, models: Path, tmp_path: Path, monkeypatch, capsys):
    flags = {
        "--policy": ["sft={models}/sft"],
        "--reference_model": ["{models}/sft"],
        "--data": ["{models}/prompts.jsonl"],
        "--max_new_tokens": ["12"],
        "--output_dir": [str(tmp_path)],
    } | change
    arguments = [text.format(models=models) for flag, values in flags.items() for text in (flag, *values)]
    expect_one_line(generate, monkeypatch, capsys, message.format(models=models), *arguments)
    assert not list(tmp_path.rglob("*.jsonl"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--responses": ["{models}/missing.jsonl"]}, "--responses {models}/missing.jsonl: no such file"),
        ({"--responses": ["{models}/prompts.jsonl"]}, "prompts.jsonl:1: the field 'finished' is missing"),
        ({"--responses": ["{models}/grading.py"]}, "grading.py:1: not valid JSON"),
        ({"--cost_model": ["useful={models}/harmful"]}, "the objective useful is given twice"),
        ({"--cost_model": ["harmful={models}/sft"]}, "--cost_model harmful {models}/sft"),
        ({"--reward_model": None}, "--reward_model/--cost_model: at least one objective"),
        ({"--gold": ["no_such_module:scores"]}, "--gold no_such_module:scores"),
        ({"--gold": ["json:no_such_function"]}, "--gold json:no_such_function"),
    ],
)
def test_score_bad_input(change, message, models: Path, tmp_path: Path, monkeypatch, capsys):
    flags = {
        "--responses": ["{models}/prompts.jsonl"],
        "--reward_model": ["useful={models}/useful"],
        "--output_dir": [str(tmp_path)],
    } | change
    arguments = [t.format(models=models) for flag, values in flags.items() if values for t in (flag, *values)]
    expect_one_line(score, monkeypatch, capsys, message.format(models=models), *arguments)
    assert not list(tmp_path.iterdir())
