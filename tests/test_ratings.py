"""Ratings as data, as pairs and as regressions; prompt pairs: by hand, and by the command line against plain torch."""

import json
import math
import sys
from argparse import Namespace
from collections import Counter
from pathlib import Path

import numpy
import pytest
import torch
from scipy import stats
from torch.nn.functional import logsigmoid
from transformers import AutoModelForSequenceClassification

from step2_reward import losses, regression
from step2_reward import main as step2
from tests.helpers import flags, read_metrics, read_weights, run_killed, run_script
from tests.test_resume import assert_same_run, whole_checkpoints
from tests.test_step2_reward import WORDS, make_small_base
from utils.data.encoding import Encoded, fit_lengths
from utils.data.loading import load_view
from utils.data.prompt_pairs import PROMPT_PAIRS
from utils.data.ratings import RATINGS, PairsOfRatings, Rated, RatingsView, attributes_of, named_attributes
from utils.data.registry import detect_format
from utils.data.rows import Row
from utils.models.configs import load_tokenizer
from utils.process.distributed import seed_everything
from utils.process.errors import UserError, run_main
from utils.supervised.steps import epoch_steps

HELPSTEER = {"helpfulness": 3, "correctness": 4, "coherence": 4, "complexity": 1, "verbosity": 0}
TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
HUMAN = Path(__file__).resolve().parents[2] / "shared/data/rated_human_nlg.jsonl.gz"


def write(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def read(tmp_path: Path, rows: list[dict], *attributes: str) -> tuple[list[Rated], Counter[str]]:
    spec = write(tmp_path / "rows.jsonl", rows)
    records, summary = load_view(spec, RatingsView(attributes=named_attributes(attributes)))
    return records, summary.dropped


# --- formats


@pytest.mark.parametrize(
    ("row", "name", "ratings"),
    [
        ({"prompt": "Hi", "response": "Hello."} | HELPSTEER, "helpsteer", HELPSTEER),
        ({"prompt": "Hi", "response": "Hello.", "scores": {"wit": 0.5, "tact": None}}, "rated", {"wit": 0.5}),
        ({"question": "Hi", "answer": "Hello.", "ratings": {"wit": "2", "tact": ""}}, "rated", {"wit": 2}),
        ({"input": "Hi", "output": "Hello.", "scores": {"wit": 1}, "system": "M1"}, "rated_input", {"wit": 1}),
        ({"instruction": "Hi", "input": "", "output": "Hello.", "scores": {"wit": 1}}, "rated_instruction", {"wit": 1}),
        ({"messages": TURNS, "scores": {"wit": 1}}, "rated_messages", {"wit": 1}),
        ({"messages": TURNS, "helpsteer-verbosity": 0.25, "code-style": None, "beavertails-is_safe": True}, "armorm",
         {"helpsteer-verbosity": 0.25, "beavertails-is_safe": 1}),
    ],
)  # fmt: skip
def test_ratings_are_read_in_every_layout(tmp_path, row, name, ratings):
    assert detect_format(Row(row, "here:1")).name == name
    [record], dropped = read(tmp_path, [row])
    assert (record.messages, record.response, record.ratings) == (TURNS[:1], "Hello.", ratings) and not dropped


def test_one_row_of_ultrafeedback_is_several_records(tmp_path):
    def completion(text: str, honesty: object, overall: object) -> dict:
        annotations = {"honesty": {"Rating": honesty, "Rationale": "..."}, "helpfulness": {"Rating": "N/A"}}
        return {"response": text, "annotations": annotations, "overall_score": overall, "model": "m"}

    row = {"instruction": "Hi", "models": ["m"], "completions": [
        completion("Hello.", "5", 8.5), completion(" ", "1", 1), completion("Go away.", "N/A", None),
        completion("Hey.", "2", None)]}  # fmt: skip
    records, dropped = read(tmp_path, [row])
    assert [(r.response, r.ratings) for r in records] == [
        ("Hello.", {"honesty": 5, "overall_score": 8.5}), ("Hey.", {"honesty": 2})
    ]  # fmt: skip
    assert dropped == {"empty reply": 1, "no rating": 1}
    assert [r.source.rpartition(", ")[2] for r in records] == ["completion 1", "completion 4"]


def test_prompts_of_several_turns_in_helpsteer2(tmp_path):
    text = "Hi\n<extra_id_1>Assistant\nHello.\n<extra_id_1>User\nBye"
    rows = [{"prompt": text, "response": "Bye."} | HELPSTEER,
            {"prompt": "Hi\n<extra_id_1>User\nHo", "response": "Ho."} | HELPSTEER]  # fmt: skip
    [record], dropped = read(tmp_path, rows)
    assert record.messages == [*TURNS, {"role": "user", "content": "Bye"}]
    assert dropped == {"turns that do not alternate": 1}


def test_rows_of_a_group_share_its_prompt(tmp_path):
    rows = [
        {"input": text, "output": f"Reply {i}.", "scores": {"wit": i}, "group": group}
        for i, (group, text) in enumerate([("a", "Hi"), ("a", None), ("b", "Ho"), ("a", None), ("c", None)])
    ]
    records, dropped = read(tmp_path, rows)
    assert [record.messages[-1]["content"] for record in records] == ["Hi", "Hi", "Ho", "Hi"]
    assert dropped == {"empty prompt": 1}


def test_columns_of_ones_own(tmp_path):
    rows = [
        {"prompt": "Hi", "response": "Hello.", "wit": "2", "tact:ful": 0.5, "note": "x"},
        {"prompt": "Hi", "response": "Hey.", "wit": "", "tact:ful": None, "note": "x"},
    ]
    [record], dropped = read(tmp_path, rows, "wit:0:4", "tact:ful", "depth")
    assert record.ratings == {"wit": 2, "tact:ful": 0.5} and dropped == {"no rating": 1}
    with pytest.raises(UserError, match="hold no ratings"):
        read(tmp_path, rows)
    with pytest.raises(UserError, match=r"rows.jsonl:1: 'wit' is rated 2, outside 3 to 4"):
        read(tmp_path, rows, "wit:3:4")
    with pytest.raises(UserError, match=r"rows.jsonl:1: the field 'note' must be a number, found 'x'"):
        read(tmp_path, rows, "note")
    with pytest.raises(UserError, match="'wit' cannot rate two replies"):
        read(tmp_path, [{"prompt": "Hi", "chosen": "a", "rejected": "b", "wit": 1}], "wit")


def test_columns_count_beside_known_ratings(tmp_path):
    [record], _ = read(
        tmp_path, [{"prompt": "Hi", "response": "Hello.", "scores": {"tact": 1}, "wit": 3}], "wit", "tact"
    )
    assert record.ratings == {"wit": 3, "tact": 1}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hi", "response": "No.", "scores": {"judge": "gpt", "verdict": "good"}},
        {"prompt": "Hi", "response": "No.", "scores": [1, 2]},
        {"prompt": "Hi", "response": "No.", "label": False, "scores": {"wit": 0.3}},
        {"messages": TURNS, "kto_tag": False, "scores": {"wit": 0.3}},
    ],
)
def test_other_things_called_scores_are_no_ratings(row):
    name = detect_format(Row(row, "here:1")).name
    assert name.startswith("labelled") if {"label", "kto_tag"} & set(row) else name == "prompt_response"


def test_chosen_attributes_alone_count(tmp_path):
    rows = [{"prompt": "Hi", "response": text, "scores": scores} for text, scores in
            (("a", {"wit": 1, "tact": 2}), ("b", {"tact": 3}), ("c", {"depth": 1}))]  # fmt: skip
    records, dropped = read(tmp_path, rows, "tact", "wit")
    assert [record.ratings for record in records] == [{"tact": 2, "wit": 1}, {"tact": 3}]
    assert attributes_of(records) == ["tact", "wit"] and dropped == {"no rating of tact, wit": 1}


@pytest.mark.skipif(not HUMAN.exists(), reason="needs human ratings beside the project")
def test_human_ratings_are_read_whole():
    records, summary = load_view(str(HUMAN), RATINGS)
    assert (summary.read, len(records)) == (4436, 4436) and not summary.dropped
    assert len({record.messages[-1]["content"] for record in records}) == 1192


# --- pairs of ratings


def pairs(tmp_path: Path, **how: object) -> tuple[list[tuple], Counter[str]]:
    replies = ("Hi", "a", 1), ("Ho", "b", 5), ("Hi", "c", 3), ("Hi", "d", 3), ("Hi", "a ", 2), ("He", "e", None)
    rows = [{"prompt": prompt, "response": text, "scores": {"wit": wit}} for prompt, text, wit in replies]
    view = PairsOfRatings(attributes=named_attributes(["wit"]), **how)
    records, summary = load_view(write(tmp_path / "rows.jsonl", rows), view)
    return [(pair.chosen, pair.rejected, pair.margin) for pair in records], summary.dropped


def test_replies_to_one_prompt_become_pairs(tmp_path):
    found, dropped = pairs(tmp_path)
    assert found == [("c", "a", 2), ("d", "a", 2), ("c", "a ", 1), ("d", "a ", 1)]
    assert dropped == {"only rated reply to its prompt": 1, "ties": 1, "no rating": 1, "pairs of identical replies": 1}


def test_ties_in_both_orders_and_least_differences(tmp_path):
    found, dropped = pairs(tmp_path, ties="both", least=1.5)
    assert found[:3] == [("c", "a", 2), ("d", "a", 2), ("c", "d", 0)] and len(found) == 8
    assert Counter(found)[("a ", "c", 0)] == Counter(found)[("c", "a ", 0)] == 1 and "ties" not in dropped
    assert pairs(tmp_path, least=1.5)[1]["ties"] == 3


def test_a_difference_is_not_less_by_rounding(tmp_path):
    rows = [{"prompt": "Hi", "response": text, "scores": {"wit": wit}} for text, wit in (("a", 0.3), ("b", 0.2))]
    view = PairsOfRatings(attributes=named_attributes(["wit"]), least=0.1)
    [pair], _ = load_view(write(tmp_path / "rows.jsonl", rows), view)
    assert (pair.chosen, pair.rejected) == ("a", "b")


def test_at_most_so_many_pairs_of_a_prompt(tmp_path):
    everything, few = pairs(tmp_path)[0], [pairs(tmp_path, most=2, seed=seed) for seed in range(9)]
    assert all(len(found) == 2 and set(found) < set(everything) for found, _ in few)
    assert len({tuple(found) for found, _ in few}) > 1 and few[0][1]["pairs beyond 2 of a prompt"] == 2


# --- figures and losses


def test_rating_loss_by_hand():
    scores = torch.tensor([[1.0, 2.0], [0.0, 5.0]], requires_grad=True)
    loss = losses.rating_loss(scores, torch.tensor([[0.0, 4.0], [3.0, math.nan]]), torch.tensor([[1.0, 1], [1, 0]]))
    assert loss.tolist() == [1 + 4, 9]
    loss.sum().backward()
    assert scores.grad.tolist() == [[2, -4], [-6, 0]]


def test_margins_by_hand():
    high, low = torch.tensor([1.0]), torch.tensor([0.0])
    torch.testing.assert_close(losses.reward_loss(high, low, margin=torch.tensor([3.0])), -logsigmoid(high - low - 3))
    cost = losses.cost_loss(low, high, torch.tensor([0]), torch.tensor([0]), margin=torch.tensor([3.0]))
    torch.testing.assert_close(cost, -logsigmoid(high - low - 3))


def test_figures_of_predicted_ratings():
    generator = numpy.random.default_rng(3)
    ratings = generator.normal(size=200)
    predicted = 0.5 * ratings + generator.normal(size=200)
    found = regression.figures(predicted, ratings, seed=1)
    assert found["rmse"]["value"] == pytest.approx(numpy.sqrt(numpy.mean((predicted - ratings) ** 2)))
    assert found["pearson"]["value"] == pytest.approx(stats.pearsonr(predicted, ratings).statistic)
    assert found["spearman"]["value"] == pytest.approx(stats.spearmanr(predicted, ratings).statistic)
    rounded = ratings.round()  # ties
    assert regression.spearman(predicted, rounded) == pytest.approx(stats.spearmanr(predicted, rounded).statistic)
    # The bootstrap's interval against Fisher's, of data for which that holds.
    center, width = math.atanh(found["pearson"]["value"]), 1.96 / math.sqrt(200 - 3)
    assert found["pearson"]["ci95"] == pytest.approx([math.tanh(center - width), math.tanh(center + width)], abs=0.03)
    assert sum(group["count"] for group in found["bins"]) == 200
    means = [group["predicted"] for group in found["bins"]]
    assert means == sorted(means) and numpy.mean(means) == pytest.approx(predicted.mean())


def test_constant_predictions_have_no_correlation():
    found = regression.figures(numpy.zeros(5), numpy.arange(5.0), seed=0)
    assert found["pearson"] is None and found["spearman"] is None
    assert "undefined" in regression.table_lines({"wit": found})[1]


# --- the command line


def rating_row(i: int) -> dict:
    """Two attributes, of which one or both are rated, on scales far apart."""
    text = " ".join(WORDS[i % 5 : i % 5 + 2 + i % 6])
    scores = {"length": 100.0 * len(text), "start": None if i % 3 == 0 else 0.01 * (i % 5)}
    return {"prompt": f"{WORDS[i // 2 % 7]} {i // 2}?", "response": text, "scores": scores}


def prompt_pair_row(i: int) -> dict:
    prompts = [f"{WORDS[i % 7]} {word} {i}?" for word in ("bake", "wait")]
    response = " ".join(WORDS[: 2 + i % 4])
    return dict(
        zip(("chosen_prompt", "rejected_prompt", "response", "side"), (*prompts, response, "chosen"), strict=True)
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("ratings")
    make_small_base(root / "base")
    for name, rows in (("train", range(22)), ("validation", range(22, 30))):
        write(root / f"{name}.jsonl", [rating_row(i) for i in rows])
        write(root / f"prompts_{name}.jsonl", [prompt_pair_row(i) for i in rows if i])
    return root


RATED_PAIRS = {"kind": "reward", "objective": "long", "pairs_from": "length", "margin_weight": 0.002,
               "score_regularization": 0.01, "prompt_pair_weight": 0.5}  # fmt: skip
RUNS = {
    "ratings": ({"kind": "ratings"}, 1, {"per_device_train_batch_size": 8}),
    "ratings_zero3": ({"kind": "ratings"}, 2, {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2,
                                               "zero_stage": 3}),
    "pairs": (RATED_PAIRS, 1, {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}),
    "pairs_zero2": (RATED_PAIRS, 2, {"per_device_train_batch_size": 4, "zero_stage": 2}),
}  # fmt: skip


def arguments(folder: Path, output: Path, **changes: object) -> list[str]:
    common = {
        "model_name_or_path": folder / "base", "data": folder / "train.jsonl", "output_dir": output,
        "validation_data": folder / "validation.jsonl", "num_train_epochs": 1, "max_length": 64, "learning_rate": 0.01,
        "lr_scheduler_type": "constant", "num_warmup_steps": 0, "adam_eps": 1e-4,
    }  # fmt: skip
    if changes["kind"] != "ratings":
        common |= {"prompt_pairs": folder / "prompts_train.jsonl",
                   "validation_prompt_pairs": folder / "prompts_validation.jsonl"}  # fmt: skip
    return flags(**(common | changes))


@pytest.fixture(scope="module")
def outputs(folder: Path) -> dict[str, tuple[Path, str]]:
    """The folders of all RUNS, and what they said."""
    found = {}
    for name, (kind, ranks, changes) in RUNS.items():
        result = run_script("step2_reward/main.py", arguments(folder, folder / name, **kind, **changes), ranks)
        assert result.code == 0, result.stdout + result.stderr
        found[name] = folder / name, result.stdout
    return found


def test_a_killed_run_goes_on_byte_identical(folder, tmp_path):
    """With prompt pairs among its batches; and the weights of a checkpoint are a model with its labels."""
    changes = {"checkpoint_interval": 2, "num_train_epochs": 3, "per_device_train_batch_size": 8}
    for kind, name in ((RATED_PAIRS, "pairs"), ({"kind": "ratings", "keep_checkpoints": True}, "ratings")):
        whole, killed = tmp_path / f"whole_{name}", tmp_path / f"killed_{name}"
        assert run_script("step2_reward/main.py", arguments(folder, whole, **kind, **changes)).code == 0
        words = arguments(folder, killed, **kind, **changes)
        run_killed("step2_reward/main.py", words, 1, lambda killed=killed: whole_checkpoints(killed))
        result = run_script("step2_reward/main.py", words)
        assert result.code == 0 and "going on from" in result.stdout, result.stderr
        assert_same_run(whole, killed)
        assert (whole / "evaluation.json").read_bytes() == (killed / "evaluation.json").read_bytes()
    result = run_script("utils/export_checkpoint.py", [str(whole), *flags(output_dir=tmp_path / "exported")])
    assert result.code == 0, result.stderr
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "exported")
    assert model.config.id2label == {0: "length", 1: "start"} and len(model.config.rating_std) == 2


def encoded(folder: Path, file: str, view) -> list[Encoded]:
    records, summary = load_view(str(folder / file), view)
    return fit_lengths(load_tokenizer(str(folder / "base"), ""), records, summary, max_length=64)


def outputs_of(model, ids: list[int]) -> torch.Tensor:
    """transformers' own scores of an unpadded sequence."""
    return model(torch.tensor([ids])).logits[0]


def trained(folder: Path, labels: int, examples: list[Encoded], loss_of, units_per_step: float):
    """A plain torch loop of one epoch, one sequence at a time."""
    args = Namespace(per_device_train_batch_size=8, gradient_accumulation_steps=1, seed=42)
    seed_everything(42)
    model = AutoModelForSequenceClassification.from_pretrained(folder / "base", num_labels=labels, dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, betas=(0.9, 0.95), eps=1e-4, weight_decay=0.0)
    for [batch] in epoch_steps(examples, args, epoch=1):
        for example in batch:
            (loss_of(model, example) / units_per_step).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return model


def test_regressions_equal_plain_torch(folder, outputs):
    examples = encoded(folder, "train.jsonl", RATINGS)
    table = {
        name: [e.record.ratings[name] for e in examples if name in e.record.ratings] for name in ("length", "start")
    }

    def loss(model, example):
        scores = outputs_of(model, example.prompt + example.responses[0])
        targets = {n: (r - numpy.mean(table[n])) / numpy.std(table[n]) for n, r in example.record.ratings.items()}
        return sum((scores[list(table).index(name)] - target) ** 2 for name, target in targets.items())

    assert sum(map(len, table.values())) == 22 + 14
    expected = trained(folder, 2, examples, loss, 36 / 3).state_dict()  # 22 examples in 3 steps
    for name in ("ratings", "ratings_zero3"):
        for key, weight in read_weights(outputs[name][0]).items():
            torch.testing.assert_close(weight, expected[key], rtol=0, atol=1e-5, msg=f"{name} {key}")
        config = json.loads((outputs[name][0] / "config.json").read_text())
        assert config["id2label"] == {"0": "length", "1": "start"} and config["label2id"] == {"length": 0, "start": 1}
        assert config["rating_mean"] == pytest.approx([numpy.mean(values) for values in table.values()])
        assert config["rating_std"] == pytest.approx([numpy.std(values) for values in table.values()])
        assert (config["kind"], config["objective"]) == ("ratings", "ratings")


def test_held_out_figures_are_those_of_the_export(folder, outputs):
    path, said = outputs["ratings_zero3"]
    examples, config = encoded(folder, "validation.jsonl", RATINGS), json.loads((path / "config.json").read_text())
    model = AutoModelForSequenceClassification.from_pretrained(path)
    with torch.no_grad():
        scores = torch.stack([outputs_of(model, e.prompt + e.responses[0]) for e in examples]).double().numpy()
    predicted = scores * config["rating_std"] + config["rating_mean"]
    evaluation = json.loads((path / "evaluation.json").read_text())
    last = read_metrics(path)[-1]
    squares = []
    for column, name in enumerate(("length", "start")):
        rated = [i for i, e in enumerate(examples) if name in e.record.ratings]
        ratings = numpy.array([examples[i].record.ratings[name] for i in rated])
        found = evaluation["attributes"][name]
        assert found["count"] == len(rated)
        assert found["rmse"]["value"] == pytest.approx(
            numpy.sqrt(((predicted[rated, column] - ratings) ** 2).mean()), rel=1e-4
        )
        assert found["spearman"]["value"] == pytest.approx(stats.spearmanr(predicted[rated, column], ratings).statistic)
        errors = ((predicted[rated, column] - ratings) / config["rating_std"][column]) ** 2
        assert last[f"validation/loss_{name}"] == pytest.approx(errors.mean(), rel=1e-3)
        squares += errors.tolist()
    assert last["validation/loss"] == pytest.approx(numpy.mean(squares), rel=1e-3)
    assert (path / "calibration.png").read_bytes().startswith(b"\x89PNG")
    assert "attributes, and replies that are rated on them: length 22, start 14" in said


def test_labels_are_objectives_with_one_model(folder, outputs, tmp_path):
    """What `eval/score.py` says of a label is the model's output, in units of the ratings' spread."""
    path = outputs["ratings"][0]
    common = {"prompt": "bake", "messages": [{"role": "user", "content": "bake"}], "finished": True, "kl": 0.0}
    rows = [common | {"response": text, "source": f"a:{text}", "length": 1} for text in ("fix my bike", "wait")]
    file = write(tmp_path / "sft.jsonl", rows)
    words = flags(responses=file, output_dir=tmp_path / "eval") + [
        "--reward_model", f"long={path}", f"begins={path}", "--score_label", "long=length", "begins=start"
    ]  # fmt: skip
    result = run_script("eval/score.py", words)
    assert result.code == 0, result.stdout + result.stderr
    scored = json.loads((tmp_path / "eval/sft.json").read_text())["rows"]
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(path), load_tokenizer(str(path), "")
    for row in scored:
        record = Rated(row["messages"], row["response"], {}, "a:1")
        [example] = fit_lengths(tokenizer, [record], load_view(str(folder / "train.jsonl"), RATINGS)[1])
        with torch.no_grad():
            expected = outputs_of(model, example.prompt + example.responses[0]).tolist()
        assert [row["scores"]["long"], row["scores"]["begins"]] == pytest.approx(expected, abs=1e-5)


def test_pairs_of_ratings_and_prompt_pairs_equal_plain_torch(folder, outputs):
    examples = encoded(folder, "train.jsonl", PairsOfRatings(attributes=named_attributes(["length"])))
    ordinary = len(examples)
    examples += encoded(folder, "prompts_train.jsonl", PROMPT_PAIRS)
    assert ordinary == 11 and len(examples) == 32

    def loss(model, example):
        if example.other_prompts:
            prompts, margin, weight = (example.prompt, *example.other_prompts), 0, 0.5
            sequences = [prompt + example.responses[0] for prompt in prompts]
        else:
            sequences = [example.prompt + response for response in example.responses]
            margin, weight = 0.002 * example.record.margin, 1.0
        high, low = (outputs_of(model, ids).squeeze() for ids in sequences)
        return weight * (-logsigmoid(high - low - margin) + 0.01 * (high**2 + low**2) / 2)

    expected = trained(folder, 1, examples, loss, (ordinary + 0.5 * 21) / 4).state_dict()
    for name in ("pairs", "pairs_zero2"):
        path, said = outputs[name]
        for key, weight in read_weights(path).items():
            torch.testing.assert_close(weight, expected[key], rtol=0, atol=1e-5, msg=f"{name} {key}")
        assert "only chosen replies of the pairs" in said
        evaluation = json.loads((path / "evaluation.json").read_text())
        assert evaluation["pairs"] == 3 and evaluation["prompt_pairs"]["count"] == 8
        assert "prompt_pairs_rejected" not in evaluation
        assert read_metrics(path)[-1]["validation/prompt_pair_accuracy"] == evaluation["prompt_pairs"]["mean"]


OF_PAIRS = {"kind": "reward", "objective": "long", "prompt_pairs": None, "validation_prompt_pairs": None}
BAD_INPUT = {
    "unknown attribute": ({"kind": "ratings", "attributes": "wit"}, "22 no rating of wit"),
    "nobody rated it": ({"kind": "ratings", "attributes": ("start", "wit")}, "--attributes wit: no reply"),
    "out of range": ({"kind": "ratings", "attributes": "length:0:9"}, "train.jsonl:1: 'length' is rated"),
    "no range": ({"kind": "ratings", "attributes": "length:4:0"}, "--attributes: 'length:4:0' is not NAME:low:high"),
    "twice": ({"kind": "ratings", "attributes": ("start", "start:0:1")}, "--attributes start: is given twice"),
    "of one value": ({"kind": "ratings", "attributes": "flat"}, "--attributes flat: all 22 ratings to train on are 1"),
    "no ratings": ({"kind": "ratings", "data": "{folder}/prompts_train.jsonl"}, "hold no ratings"),
    "from a score model": ({"kind": "ratings", "model_name_or_path": "{folder}/pairs"}, "needs a language model"),
    "flags of pairs": ({"kind": "ratings", "margin_weight": 1}, "--margin_weight: serves --kind reward and cost"),
    "weight of pairs": ({"kind": "ratings", "prompt_pair_weight": 1}, "--prompt_pair_weight: serves --kind reward"),
    "statistics of pairs": ({"kind": "ratings", "statistics_pairs": 9}, "--statistics_pairs: serves --kind reward"),
    "nothing to validate on": ({"kind": "ratings", "validation_data": "{folder}/other.jsonl"}, "no held-out reply is"),
    "flags of ratings": (OF_PAIRS | {"attributes": "length"}, "--attributes: serves --kind ratings"),
    "no name": ({"kind": "cost"} , "--objective: needed"),
    "two orders": (OF_PAIRS | {"pairs_from": "length", "preference_label": "better"}, "--pairs_from: orders the pairs"),
    "ties of preferences": (OF_PAIRS | {"ties": "both"}, "--ties: serves --pairs_from"),
    "pairs of nothing": (OF_PAIRS | {"pairs_from": "wit"}, "22 no rating of wit"),
    "no margins": (OF_PAIRS | {"margin_weight": 1, "data": "{folder}/plain.jsonl",
                               "validation_data": "{folder}/plain.jsonl"}, "--margin_weight: no pair of"),
    "weight of nothing": (OF_PAIRS | {"prompt_pair_weight": 2}, "--prompt_pair_weight: serves --prompt_pairs"),
    "nothing to validate prompt pairs on": (
        OF_PAIRS | {"prompt_pairs": "{folder}/prompts_train.jsonl"}, "--prompt_pairs: needs --validation_data and"),
    "no prompt pairs": (OF_PAIRS | {"pairs_from": "length", "prompt_pairs": "{folder}/train.jsonl",
                                    "validation_prompt_pairs": "{folder}/train.jsonl"}, "hold no two prompts to a"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_ends_in_one_line(folder, outputs, tmp_path, monkeypatch, capsys, case):
    flat = [rating_row(i) | {"scores": rating_row(i)["scores"] | {"flat": 1}} for i in range(22)]
    write(folder / "flat.jsonl", flat)
    write(folder / "plain.jsonl", [{"prompt": f"{i}?", "chosen": "bake", "rejected": "wait"} for i in range(4)])
    write(folder / "other.jsonl", [{"prompt": "a", "response": "b", "scores": {"tact": 1}}])
    changes, said = BAD_INPUT[case]
    if case == "of one value":
        changes = changes | dict.fromkeys(("data", "validation_data"), "{folder}/flat.jsonl")
    changes = {n: value.format(folder=folder) if isinstance(value, str) else value for n, value in changes.items()}
    assert refusal(monkeypatch, capsys, step2.main, arguments(folder, tmp_path / "out", **changes), said)
    assert not (tmp_path / "out/config.json").exists()


def refusal(monkeypatch, capsys, main, words: list[str], said: str) -> str:
    """The line in which a script, run in this process, refuses its arguments."""
    monkeypatch.setattr(sys, "argv", ["main.py", *words])
    with pytest.raises(SystemExit) as stop:
        run_main(main)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.startswith("error: ") and said in error and error.count("\n") == 1, error
    return error
