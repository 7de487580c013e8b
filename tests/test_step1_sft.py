"""Step 1: its command line on 1 and 2 ranks, every ZeRO stage, against plain torch; its masks; bad input."""

import json
import math
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from step1_sft import main as step1
from tests.helpers import flags, launch, read_metrics, read_weights, run_command, run_script
from utils import make_base
from utils.data import load_dialogues
from utils.data.encoding import Encoded, fit_lengths
from utils.data.records import Dialogue
from utils.models.configs import load_tokenizer
from utils.models.export import export_model
from utils.models.loading import new_score_model
from utils.process.errors import UserError, run_main
from utils.supervised import language
from utils.supervised.examples import hold_out
from utils.supervised.steps import epoch_steps, split_evenly

pytestmark = pytest.mark.slow

WORDS = "how can i bake the bread fix my bike first then wait for a friend".split()
EPOCHS = 2
# name: ranks and flags; every one takes 8 examples an optimizer step
RUNS = {
    "one_rank": (1, {"per_device_train_batch_size": 8}),
    "accumulated": (1, {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "zero_stage": 1}),
    "zero2": (2, {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "zero_stage": 2}),
    "zero3": (2, {"per_device_train_batch_size": 4, "zero_stage": 3, "gradient_checkpointing": True}),
    "bf16": (1, {"per_device_train_batch_size": 8, "dtype": "bf16", "zero_stage": 2}),
}
EXACT = [name for name in RUNS if name != "bf16"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base/ with a tiny model, train.jsonl with 20 and validation.jsonl with 7 dialogues of many lengths."""
    root = tmp_path_factory.mktemp("step1")
    pieces = make_base.train_sentencepiece([" ".join(WORDS)] * 3, 300, 1.0, seed=0)
    sizes = Namespace(hidden_size=16, num_layers=2, num_heads=2, num_kv_heads=1, intermediate_size=32,
                      max_position_embeddings=64, seed=0)  # fmt: skip
    tokenizer = make_base.make_tokenizer(pieces, 64)
    export_model(make_base.make_model(sizes, tokenizer), tokenizer, root / "base")
    rows = [
        {
            "prompt": " ".join(WORDS[i % 7 : i % 7 + 2 + i % 4]) + f" {i}?",
            "response": " ".join(WORDS[: 1 + i % 9]),
        }
        for i in range(27)
    ]
    for name, part in (("train", rows[:20]), ("validation", rows[20:])):
        (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    return root


def arguments(folder: Path, output: Path, **changes: object) -> list[str]:
    return flags(**{
        "model_name_or_path": folder / "base", "data": folder / "train.jsonl",
        "validation_data": folder / "validation.jsonl", "output_dir": output, "num_train_epochs": EPOCHS,
        "max_length": 64, "export": "last", "learning_rate": 0.01, "lr_scheduler_type": "constant",
        # Adam divides by the gradient's size: this keeps rounding of a vanishing one out of the comparison.
        "num_warmup_steps": 0, "adam_eps": 1e-4,
    } | changes)  # fmt: skip


@pytest.fixture(scope="module")
def outputs(folder: Path) -> dict[str, Path]:
    """The folders of all RUNS, one of them under the real launcher."""
    for name, (ranks, changes) in RUNS.items():
        start = launch if name == "zero3" else run_script
        result = start("step1_sft/main.py", arguments(folder, folder / name, **changes), ranks)
        assert result.code == 0, result.stdout + result.stderr
        (folder / name / "log").write_text(result.stdout)
    return {name: folder / name for name in RUNS}


@pytest.fixture(scope="module")
def reference(folder: Path) -> dict[str, torch.Tensor]:
    """The weights of a plain torch loop, one example at a time: Σ NLL / (mean response tokens of a step)."""
    tokenizer = load_tokenizer(str(folder / "base"), "")
    examples = encoded(folder / "train.jsonl", tokenizer)
    args = Namespace(per_device_train_batch_size=8, gradient_accumulation_steps=1, seed=42)
    constant = sum(len(e.responses[0]) for e in examples) / 3  # 20 examples, 8 a step
    model = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, betas=(0.9, 0.95), eps=1e-4, weight_decay=0.0)
    for epoch in range(1, EPOCHS + 1):
        for [batch] in epoch_steps(examples, args, epoch):
            for example in batch:
                (sequence_nll(model, example) / constant).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
    return model.state_dict()


def encoded(path: Path, tokenizer) -> list[Encoded]:
    records, summary = load_dialogues(str(path), 42)
    return fit_lengths(tokenizer, records, summary, max_length=64)


def sequence_nll(model, example: Encoded) -> torch.Tensor:
    """−Σ log p(response token | everything before), written out."""
    ids = example.prompt + example.responses[0]
    log_probs = model(torch.tensor([ids])).logits[0].log_softmax(dim=-1)
    return -sum(log_probs[t - 1, ids[t]] for t in range(len(example.prompt), len(ids)))


@pytest.mark.parametrize("name", EXACT)
def test_weights_equal_plain_torch(outputs, reference, name):
    for key, weight in read_weights(outputs[name]).items():
        torch.testing.assert_close(weight, reference[key], rtol=0, atol=1e-5, msg=key)


def test_accumulating_two_by_four_equals_eight(outputs):
    whole, accumulated = read_weights(outputs["one_rank"]), read_weights(outputs["accumulated"])
    assert max((whole[key] - accumulated[key]).abs().max() for key in whole) < 1e-5


@pytest.mark.parametrize("name", RUNS)
def test_output_folder(folder, outputs, name):
    lines = read_metrics(outputs[name])
    perplexity = {line["step"]: line["validation/perplexity"] for line in lines if "validation/loss" in line}
    assert list(perplexity) == [0, 3, 6]  # before, and after each epoch of 3 steps
    assert perplexity[6] < perplexity[0]
    assert [line["step"] for line in lines if "learning_rate" in line and "loss" in line] == list(range(1, 7))
    evaluation = json.loads((outputs[name] / "evaluation.json").read_text())
    assert evaluation["perplexity"] == perplexity[6] and evaluation["examples"] == 7
    args = json.loads((outputs[name] / "args.json").read_text())
    assert args["world_size"] == RUNS[name][0]
    assert list((outputs[name] / "tensorboard").glob("events.out.tfevents.*"))
    assert "7 to validate on" in (outputs[name] / "log").read_text()
    assert not list(outputs[name].glob(".*"))
    saved, base = (AutoTokenizer.from_pretrained(path) for path in (outputs[name], folder / "base"))
    assert saved.chat_template == base.chat_template and saved.get_vocab() == base.get_vocab()


def test_perplexity_is_that_of_the_exported_model(folder, outputs):
    model = AutoModelForCausalLM.from_pretrained(outputs["zero3"])
    examples = encoded(folder / "validation.jsonl", load_tokenizer(str(folder / "base"), ""))
    with torch.no_grad():
        total = sum(sequence_nll(model, example).item() for example in examples)
    perplexity = math.exp(total / sum(len(example.responses[0]) for example in examples))
    reported = json.loads((outputs["zero3"] / "evaluation.json").read_text())["perplexity"]
    assert reported == pytest.approx(perplexity, rel=1e-5)


def test_bf16_stays_near_fp32(outputs):
    bf16, fp32 = (json.loads((outputs[name] / "evaluation.json").read_text()) for name in ("bf16", "one_rank"))
    assert bf16["loss"] == pytest.approx(fp32["loss"], rel=0.05)
    assert AutoModelForCausalLM.from_pretrained(outputs["bf16"], dtype="auto").dtype == torch.bfloat16


def test_exported_policy_loads_without_the_project(outputs):
    code = (
        "import sys, torch; from transformers import AutoModelForCausalLM;"
        "m = AutoModelForCausalLM.from_pretrained(sys.argv[1]);"
        "x = m(torch.arange(4, 12).view(1, -1)).logits; print(repr(x.double().sum().item()));"
        "assert not [name for name in sys.modules if name.split('.')[0] in ('utils', 'step1_sft')]"
    )
    result = run_command([sys.executable, "-c", code, str(outputs["zero2"])], cwd=outputs["zero2"])
    assert result.code == 0, result.stderr
    model = AutoModelForCausalLM.from_pretrained(outputs["zero2"])
    with torch.no_grad():
        logits = model(torch.arange(4, 12).view(1, -1)).logits
    assert float(result.stdout) == pytest.approx(logits.double().sum().item(), rel=1e-6)


def test_label_nll_by_hand():
    # Two tokens, probabilities 1/4 and 3/4 everywhere.
    logits = torch.log(torch.tensor([0.25, 0.75])).expand(2, 4, 2)
    labels = torch.tensor([[-100, -100, 0, 1], [-100, 1, -100, -100]])
    expected = torch.tensor([math.log(4) + math.log(4 / 3), math.log(4 / 3)])
    torch.testing.assert_close(language.label_nll(logits, labels), expected)


def test_prompt_and_padding_get_no_gradient():
    record = Dialogue([{"role": "user", "content": "x"}], "y", "file:1")
    examples = [Encoded(record, [5, 6, 7], ([8, 9],)), Encoded(record, [5], ([4],))]
    ids, mask, labels = language.collate(examples, pad_id=0)
    assert ids.tolist() == [[5, 6, 7, 8, 9], [5, 4, 0, 0, 0]] and mask.tolist() == [[1] * 5, [1, 1, 0, 0, 0]]
    logits = torch.randn(2, 5, 10, requires_grad=True)
    language.label_nll(logits, labels).sum().backward()
    trained = logits.grad.abs().sum(dim=-1) > 0
    # Position t predicts token t + 1: 8 and 9 of the first row, 4 of the second, and nothing else.
    assert trained.tolist() == [[False, False, True, True, False], [True, False, False, False, False]]


def test_hold_out_is_by_prompt():
    records = [Dialogue([{"role": "user", "content": str(i % 10)}], "answer", f"file:{i}") for i in range(40)]
    train, validation = hold_out(records, 0.2, seed=1)
    prompts = [{record.messages[0]["content"] for record in side} for side in (train, validation)]
    assert (len(train), len(validation)) == (32, 8) and not prompts[0] & prompts[1]
    assert hold_out(records, 0.2, seed=1)[1] == validation
    with pytest.raises(UserError, match="one prompt"):
        hold_out(records[:1] * 3, 0.2, seed=1)


def test_split_evenly():
    assert split_evenly([1, 2, 3, 4, 5], 2) == [[1, 2], [3, 4, 5]]
    assert split_evenly([1], 3) == [[1], [1], [1]]


BAD_INPUT = {
    "no model": ({"model_name_or_path": "/nowhere/model"}, "--model_name_or_path /nowhere/model"),
    "score model": ({"model_name_or_path": "{folder}/score"}, "not a language model"),
    "no data": ({"data": "{folder}/missing.jsonl"}, "missing.jsonl"),
    "empty data": ({"data": "{folder}/empty.jsonl"}, "empty.jsonl"),
    "malformed line": ({"data": "{folder}/malformed.jsonl"}, "malformed.jsonl:2"),
    "nothing to validate on": ({"validation_data": None, "validation_fraction": 0}, "--validation_fraction"),
    "not writable": ({"output_dir": "{folder}/train.jsonl/sft"}, "--output_dir"),
    "long prompt": ({"max_length": 6}, "--max_length 6"),
    "more than the model's positions": (
        {"data": "{folder}/long.jsonl", "max_length": 200},
        "positions for 64",
    ),
    "learning rate": ({"learning_rate": -1}, "--learning_rate"),
    "unknown flag": ({"learning_speed": 1}, "--learning_speed"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_ends_in_one_line(folder, tmp_path, monkeypatch, capsys, case):
    (folder / "empty.jsonl").write_text("")
    (folder / "malformed.jsonl").write_text('{"prompt": "a", "response": "b"}\n{"prompt": "a"\n')
    (folder / "long.jsonl").write_text(json.dumps({"prompt": "a", "response": " ".join(WORDS * 8)}) + "\n")
    base = str(folder / "base")
    if case == "score model":
        export_model(new_score_model(base, ""), load_tokenizer(base, ""), folder / "score")
    changes, culprit = BAD_INPUT[case]
    changes = {k: v.format(folder=folder) if isinstance(v, str) else v for k, v in changes.items()}
    words = arguments(folder, tmp_path / "out", **changes)
    monkeypatch.setattr(sys, "argv", ["main.py", *words])
    with pytest.raises(SystemExit) as stop:
        run_main(step1.main)
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert error.startswith("error: ") and culprit in error and error.count("\n") == 1
    assert not (tmp_path / "out" / "config.json").exists()
