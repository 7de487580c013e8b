"""Step 2: losses and calibration by hand; its command line, 1 and 2 ranks, against plain torch; bad input."""

import json
import math
import sys
from argparse import Namespace
from pathlib import Path

import numpy
import pytest
import torch
from torch.nn.functional import logsigmoid
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    PreTrainedTokenizerFast,
)

from eval.score import evaluation as score_evaluation
from step2_reward import calibration, losses
from step2_reward import main as step2
from step2_reward.pairs import PREFERENCE_LABELS
from step2_reward.training import dedicated_pad
from tests.helpers import flags, read_metrics, read_weights, run_command, run_script
from utils import make_base
from utils.data import load_pairs
from utils.data.batching import left_pad, right_pad
from utils.data.encoding import Encoded, fit_lengths
from utils.models.configs import load_tokenizer
from utils.models.export import export_model
from utils.models.loading import new_score_model
from utils.process.distributed import seed_everything
from utils.process.errors import run_main
from utils.scoring.objectives import Objective
from utils.supervised.intervals import proportion
from utils.supervised.steps import epoch_steps

pytestmark = pytest.mark.slow

WORDS = "how can i bake the bread fix my bike first then wait for a friend".split()
EPOCHS = 2
REGULARIZATION = 0.01
# name: kind, ranks and flags; every one takes 8 pairs an optimizer step
RUNS = {
    "reward": ("reward", 1, {"per_device_train_batch_size": 8}),
    "reward_zero2": ("reward", 2, {"per_device_train_batch_size": 4, "zero_stage": 2}),
    "cost_accumulated": ("cost", 1, {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}),
    "cost_zero3": ("cost", 2, {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2,
                               "zero_stage": 3, "gradient_checkpointing": True}),
}  # fmt: skip


# --- pure functions


def test_preference_loss_by_hand():
    loss = losses.preference_loss(torch.tensor([0.0, math.log(3), 1000.0, 0.0]), torch.tensor([0.0, 0.0, 0.0, 1000.0]))
    torch.testing.assert_close(loss, torch.tensor([math.log(2), math.log(4 / 3), 0.0, 1000.0]))


def test_sign_loss_by_hand():
    cost = torch.tensor([math.log(3), math.log(3), math.log(3), 0.0])
    loss = losses.sign_loss(cost, torch.tensor([1, -1, 0, 0]))
    torch.testing.assert_close(loss, torch.tensor([math.log(4 / 3), math.log(4), 0.0, 0.0]))


def test_reward_loss_by_hand():
    loss = losses.reward_loss(torch.tensor([math.log(3)]), torch.tensor([0.0]), regularization=0.5)
    torch.testing.assert_close(loss, torch.tensor([math.log(4 / 3) + 0.5 * math.log(3) ** 2 / 2]))


def test_cost_loss_by_hand():
    # The safer response costs −log 3 and is safe, the other costs log 3 and is harmful.
    safer, unsafer = torch.tensor([-math.log(3)]), torch.tensor([math.log(3)])
    loss = losses.cost_loss(safer, unsafer, torch.tensor([-1]), torch.tensor([1]))
    torch.testing.assert_close(loss, torch.tensor([math.log(10 / 9) + 2 * math.log(4 / 3)]))
    unlabelled = losses.cost_loss(safer, unsafer, torch.tensor([0]), torch.tensor([0]))
    torch.testing.assert_close(unlabelled, torch.tensor([math.log(10 / 9)]))


def test_cost_gradient_without_labels_is_that_of_the_preference():
    costs = torch.tensor([0.3, -0.2], requires_grad=True)
    losses.cost_loss(costs[:1], costs[1:], torch.tensor([0]), torch.tensor([0])).sum().backward()
    expected = torch.sigmoid(torch.tensor(0.5))  # of safer − unsafer
    torch.testing.assert_close(costs.grad, torch.stack([expected, -expected]))


def test_calibration_error_by_hand():
    # Bin 0.9-1.0: mean probability 0.95, half of them true; bin 0.6-0.7: 0.65, all true.
    probabilities, outcomes = numpy.array([0.95, 0.95, 0.65, 0.65]), numpy.array([1.0, 0.0, 1.0, 1.0])
    assert calibration.calibration_error(probabilities, outcomes) == pytest.approx(0.5 * 0.45 + 0.5 * 0.35)
    figures = calibration.calibration(probabilities, outcomes, 0.0, seed=0)
    assert [b["probability"] for b in figures["bins"]] == pytest.approx([0.65, 0.95])
    assert [b["count"] for b in figures["bins"]] == [2, 2]


def test_calibrated_predictions_have_little_error():
    generator = numpy.random.default_rng(0)
    probabilities = generator.random(20_000)
    outcomes = (generator.random(20_000) < probabilities).astype(float)
    assert calibration.calibration_error(probabilities, outcomes) < 0.015
    assert calibration.calibration_error(probabilities, 1 - outcomes) > 0.4


def test_figures_of_pairs_and_signs():
    assert calibration.pairwise_hits(numpy.array([1.0, 0.0, 2.0]), numpy.array([0.0, 1.0, 2.0])).tolist() == [
        1,
        0,
        0.5,
    ]
    accuracy = proportion(numpy.array([1.0] * 8 + [0.0] * 2))
    assert accuracy["mean"] == 0.8 and accuracy["ci95"] == pytest.approx([0.4902, 0.9433], abs=1e-4)  # Wilson
    figures = calibration.sign_figures(numpy.array([1.0, -1.0, 1.0, 5.0]), numpy.array([1, -1, -1, 0]), seed=0)
    assert figures["sign_accuracy"]["mean"] == pytest.approx(2 / 3) and figures["sign_accuracy"]["count"] == 3
    assert calibration.sign_figures(numpy.ones(2), numpy.zeros(2), seed=0) is None


# --- the command line


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base/, train.jsonl with 20 pairs and validation.jsonl with 7, whose preferences are reversed: the first
    epoch is the best one."""
    root = tmp_path_factory.mktemp("step2")
    make_small_base(root / "base")
    rows = [pair_row(i, reverse=i >= 20) for i in range(27)]
    for name, part in (("train", rows[:20]), ("validation", rows[20:])):
        (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    return root


def make_small_base(path: Path) -> None:
    """A decoder of width 16, and a tokenizer of `WORDS`."""
    pieces = make_base.train_sentencepiece([" ".join(WORDS)] * 3, 300, 1.0, seed=0)
    sizes = Namespace(hidden_size=16, num_layers=2, num_heads=2, num_kv_heads=1, intermediate_size=32,
                      max_position_embeddings=64, seed=0)  # fmt: skip
    tokenizer = make_base.make_tokenizer(pieces, 64)
    export_model(make_base.make_model(sizes, tokenizer), tokenizer, path)


def pair_row(i: int, reverse: bool) -> dict[str, object]:
    """A pair whose longer answer is better and harmful."""
    short, long = " ".join(WORDS[: 1 + i % 3]), " ".join(WORDS[2 : 7 + i % 7])
    first_is_long = i % 2 == 0
    better = int(first_is_long == reverse)
    return {
        "prompt": " ".join(WORDS[i % 7 : i % 7 + 2 + i % 4]) + f" {i}?",
        "response_0": long if first_is_long else short, "response_1": short if first_is_long else long,
        "is_response_0_safe": not first_is_long, "is_response_1_safe": first_is_long,
        "better_response_id": better, "safer_response_id": 1 - better,
    }  # fmt: skip


def arguments(folder: Path, output: Path, kind: str, **changes: object) -> list[str]:
    return flags(**{
        "objective": f"my_{kind}", "kind": kind, "model_name_or_path": folder / "base",
        "data": folder / "train.jsonl", "validation_data": folder / "validation.jsonl", "output_dir": output,
        "num_train_epochs": EPOCHS, "max_length": 64, "score_regularization": REGULARIZATION,
        "learning_rate": 0.01, "lr_scheduler_type": "constant", "num_warmup_steps": 0,
        # Adam divides by the gradient's size: this keeps rounding of a vanishing one out of the comparison.
        "adam_eps": 1e-4,
    } | changes)  # fmt: skip


@pytest.fixture(scope="module")
def outputs(folder: Path) -> dict[str, Path]:
    """The folders of all RUNS. The launcher starts stages 1 and 3 in their tests."""
    for name, (kind, ranks, changes) in RUNS.items():
        result = run_script("step2_reward/main.py", arguments(folder, folder / name, kind, **changes), ranks)
        assert result.code == 0, result.stdout + result.stderr
    return {name: folder / name for name in RUNS}


def encoded(path: Path, label: str, tokenizer) -> list[Encoded]:
    records, summary = load_pairs(str(path), label, 42)
    return fit_lengths(tokenizer, records, summary, max_length=64)


def score(model, pair: Encoded, side: int) -> torch.Tensor:
    """transformers' own score of one unpadded response."""
    return model(torch.tensor([pair.prompt + pair.responses[side]])).logits.squeeze()


def written_out_loss(model, pair: Encoded, kind: str) -> torch.Tensor:
    """A pair's loss as the formulas say, with labels that are all known."""
    first, second = score(model, pair, 0), score(model, pair, 1)
    penalty = REGULARIZATION * (first**2 + second**2) / 2
    if kind == "reward":
        return -logsigmoid(first - second) + penalty
    signs = [-1 if safe else 1 for safe in (pair.record.chosen_safe, pair.record.rejected_safe)]
    return -logsigmoid(second - first) - logsigmoid(signs[0] * first) - logsigmoid(signs[1] * second) + penalty


@pytest.fixture(scope="module", params=["reward", "cost"])
def reference(request, folder: Path) -> tuple[str, torch.nn.Module]:
    """The kind, and the model after the first epoch of a plain torch loop, one sequence at a time."""
    kind = request.param
    pairs = encoded(folder / "train.jsonl", PREFERENCE_LABELS[kind], load_tokenizer(str(folder / "base"), ""))
    args = Namespace(per_device_train_batch_size=8, gradient_accumulation_steps=1, seed=42)
    seed_everything(42)
    model = AutoModelForSequenceClassification.from_pretrained(folder / "base", num_labels=1, dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, betas=(0.9, 0.95), eps=1e-4, weight_decay=0.0)
    for [batch] in epoch_steps(pairs, args, epoch=1):
        for pair in batch:
            (written_out_loss(model, pair, kind) / (20 / 3)).backward()  # 20 pairs in 3 steps
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return kind, model


def test_exported_weights_equal_plain_torch(outputs, reference):
    kind, expected = reference
    for name in (name for name, run in RUNS.items() if run[0] == kind):
        for key, weight in read_weights(outputs[name]).items():
            torch.testing.assert_close(weight, expected.state_dict()[key], rtol=0, atol=1e-5, msg=f"{name} {key}")


@pytest.mark.parametrize("name", RUNS)
def test_output_folder(folder, outputs, name):
    kind = RUNS[name][0]
    lines = read_metrics(outputs[name])
    accuracies = {line["step"]: line["validation/accuracy"] for line in lines if "validation/loss" in line}
    assert list(accuracies) == [0, 3, 6]
    evaluation = json.loads((outputs[name] / "evaluation.json").read_text())
    assert evaluation["epoch"] == 1 and evaluation["pairs"] == 7 and evaluation["objective"] == f"my_{kind}"
    assert evaluation["accuracy"]["mean"] == pytest.approx(accuracies[3])
    assert ("sign_accuracy" in evaluation) == (kind == "cost")
    assert (outputs[name] / "calibration.png").read_bytes().startswith(b"\x89PNG")
    assert list((outputs[name] / "tensorboard").glob("events.out.tfevents.*"))
    assert not list(outputs[name].glob(".*"))
    config = json.loads((outputs[name] / "config.json").read_text())
    assert (config["objective"], config["kind"]) == (f"my_{kind}", kind)
    assert config.get("zero_divides") == (True if kind == "cost" else None)
    assert config["architectures"] == ["MistralForSequenceClassification"]
    assert config["pad_token_id"] is not None


def test_a_cost_without_safety_labels_says_so(folder: Path, tmp_path: Path):
    """Its zero divides nothing, and so the evaluation has no share of harmless responses."""
    rows = [{"prompt": f"{word}?", "chosen": WORDS[0], "rejected": word} for word in WORDS[1:]]
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = arguments(folder, tmp_path / "cost", "cost", data=data, validation_data=data, num_train_epochs=1)
    result = run_script("step2_reward/main.py", words)
    assert result.code == 0 and "its zero divides nothing" in result.stdout, result.stderr
    assert not Objective("a", "cost", str(tmp_path / "cost")).zero_divides
    rewards = Objective("b", "reward", str(tmp_path / "cost"))
    row = {"scores": {"a": 1.0, "b": 1.0}, "kl": 0.0, "length": 3}
    unlabelled = [Objective("a", "cost", str(tmp_path / "cost")), rewards]
    assert score_evaluation("x", [row], unlabelled, {}, {}, {})["harmless_ratio"] is None
    labelled = [Objective("a", "cost", str(folder / "base")), rewards]  # nothing is known against it
    assert score_evaluation("x", [row], labelled, {}, {}, {})["harmless_ratio"] == 100


@pytest.mark.parametrize("name", ["reward", "cost_zero3"])
def test_score_statistics_and_evaluation_are_those_of_the_export(folder, outputs, name):
    kind = RUNS[name][0]
    model = AutoModelForSequenceClassification.from_pretrained(outputs[name])
    tokenizer = load_tokenizer(str(outputs[name]), "")
    label = PREFERENCE_LABELS[kind]
    with torch.no_grad():
        train, validation = ([[score(model, pair, side).item() for side in (0, 1)] for pair in pairs]
                             for pairs in (encoded(folder / f"{part}.jsonl", label, tokenizer)
                                           for part in ("train", "validation")))  # fmt: skip
    assert model.config.score_mean == pytest.approx(numpy.mean(train), abs=1e-5)
    assert model.config.score_std == pytest.approx(numpy.std(train), abs=1e-5)
    sign = 1 if kind == "reward" else -1
    accuracy = numpy.mean([sign * (chosen - rejected) > 0 for chosen, rejected in validation])
    assert json.loads((outputs[name] / "evaluation.json").read_text())["accuracy"]["mean"] == pytest.approx(accuracy)


def test_exported_model_scores_padded_batches_without_the_project(folder, outputs):
    path = outputs["reward"]
    tokenizer = load_tokenizer(str(path), "")
    pairs = encoded(folder / "validation.jsonl", "better", tokenizer)
    rows = [pair.prompt + response for pair in pairs for response in pair.responses]
    model = new_score_model(str(path), "").eval()
    with torch.no_grad():
        ids, mask = right_pad(rows, tokenizer.pad_token_id)
        ours = step2.LastTokenScore(model)(ids, mask, mask.sum(dim=-1) - 1).squeeze(-1)
    batches = {side: [t.tolist() for t in pad(rows, tokenizer.pad_token_id)] for side, pad in
               (("right", right_pad), ("left", left_pad))}  # fmt: skip
    code = (
        "import json, sys, torch; from transformers import AutoModelForSequenceClassification as M\n"
        "model = M.from_pretrained(sys.argv[1]); scores = {}\n"
        "for side, (ids, mask) in json.loads(sys.argv[2]).items():\n"
        "    with torch.no_grad():\n"
        "        output = model(torch.tensor(ids), attention_mask=torch.tensor(mask))\n"
        "    scores[side] = output.logits.squeeze(-1).tolist()\n"
        "assert not [name for name in sys.modules if name.split('.')[0] in ('utils', 'step2_reward')]\n"
        "print(json.dumps(scores))"
    )
    result = run_command([sys.executable, "-c", code, str(path), json.dumps(batches)], cwd=path)
    assert result.code == 0, result.stderr
    for scores in json.loads(result.stdout).values():
        torch.testing.assert_close(torch.tensor(scores), ours, rtol=0, atol=1e-5)


def test_padding_is_not_trained_on(folder):
    model = new_score_model(str(folder / "base"), "")
    scorer = step2.LastTokenScore(model)
    ids, mask = torch.tensor([[1, 20, 21, 2, 3, 3]]), torch.tensor([[1, 1, 1, 1, 0, 0]])
    scorer(ids, mask, torch.tensor([3])).sum().backward()
    gradient = model.get_input_embeddings().weight.grad.abs().sum(dim=-1)
    assert gradient[3] == 0 and (gradient[[1, 20, 21, 2]] > 0).all()
    torch.testing.assert_close(scorer(ids, mask, torch.tensor([3])), scorer(ids[:, :4], mask[:, :4], torch.tensor([3])))


def test_a_tokenizer_that_pads_with_eos_pads_with_unk(folder):
    tokenizer = load_tokenizer(str(folder / "base"), "")
    tokenizer.pad_token = tokenizer.eos_token
    assert dedicated_pad(tokenizer).pad_token == "<unk>"
    tokenizer.unk_token = None
    tokenizer.pad_token = tokenizer.eos_token
    assert dedicated_pad(tokenizer).pad_token == tokenizer.eos_token


def test_preference_label_follows_the_kind():
    needed = ["--objective", "x", "--model_name_or_path", "m", "--data", "d", "--output_dir", "o", "--kind"]
    assert step2.parse_args([*needed, "reward"]).preference_label == "better"
    assert step2.parse_args([*needed, "cost"]).preference_label == "safer"
    assert step2.parse_args([*needed, "cost", "--preference_label", "better"]).preference_label == "better"


def make_encoder(folder: Path) -> None:
    """A model without a score head on every token, with a usable tokenizer."""
    tokenizer = load_tokenizer(str(folder / "base"), "")
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    config = BertConfig(vocab_size=len(tokenizer), hidden_size=8, num_hidden_layers=1, num_attention_heads=1,
                        intermediate_size=8)  # fmt: skip
    export_model(BertForMaskedLM(config), tokenizer, folder / "encoder")


BAD_INPUT = {
    "no model": ({"model_name_or_path": "/nowhere/model"}, "--model_name_or_path /nowhere/model"),
    "encoder": ({"model_name_or_path": "{folder}/encoder"}, "no score head"),
    "no data": ({"data": "{folder}/missing.jsonl"}, "missing.jsonl"),
    "empty data": ({"data": "{folder}/empty.jsonl"}, "empty.jsonl"),
    "no preferences": ({"data": "{folder}/sft.jsonl"}, "sft.jsonl:1"),
    "nothing to validate on": ({"validation_data": None, "validation_fraction": 0}, "--validation_fraction"),
    "not writable": ({"output_dir": "{folder}/train.jsonl/reward"}, "--output_dir"),
    "unknown kind": ({"kind": "price"}, "--kind"),
    "unknown label": ({"preference_label": "nicer"}, "--preference_label"),
    "negative penalty": ({"score_regularization": -1}, "--score_regularization"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_ends_in_one_line(folder, tmp_path, monkeypatch, capsys, case):
    (folder / "empty.jsonl").write_text("")
    (folder / "sft.jsonl").write_text('{"prompt": "a", "response": "b"}\n')
    if case == "encoder":
        make_encoder(folder)
    changes, culprit = BAD_INPUT[case]
    changes = {k: v.format(folder=folder) if isinstance(v, str) else v for k, v in changes.items()}
    words = arguments(folder, tmp_path / "out", **({"kind": "reward"} | changes))
    monkeypatch.setattr(sys, "argv", ["main.py", *words])
    with pytest.raises(SystemExit) as stop:
        run_main(step2.main)
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert error.startswith("error: ") and culprit in error and error.count("\n") == 1
    assert not (tmp_path / "out" / "config.json").exists()
