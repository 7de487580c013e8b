"""ArmoRM's training: regressions, debiasing and gate by hand; the whole by the command line against numpy and torch."""

import functools
import json
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
import torch
from safetensors.torch import load_file
from scipy import stats
from transformers import AutoModel, AutoTokenizer

from step2_reward.armorm import debias, gate, ridge
from step2_reward.armorm import main as armorm
from tests.cases import cases
from tests.helpers import flags, run_killed, run_script
from tests.test_ratings import refusal, write
from tests.test_resume import assert_same_run
from tests.test_step2_reward import WORDS, make_small_base
from utils.data import load_pairs
from utils.data.encoding import Encoded
from utils.process.distributed import seed_everything
from utils.scoring.armorm_format import GatingNetwork, coefficients, contributions, gated_score
from utils.scoring.objectives import Objective
from utils.supervised.steps import epoch_steps

MAIN = "step2_reward/armorm/main.py"
NAMES = ["quality", "verbosity", "rare"]

# --- regressions


def test_ridge_is_the_closed_form():
    generator = numpy.random.default_rng(0)
    states, ratings = generator.normal(size=(50, 7)), generator.normal(size=50)
    found = ridge.ridge(states.T @ states, states.T @ ratings, [1e-4, 1.0, 1e4])
    for alpha, weights in zip([1e-4, 1.0, 1e4], found, strict=True):
        expected = numpy.linalg.solve(states.T @ states + alpha * numpy.eye(7), states.T @ ratings)
        assert weights == pytest.approx(expected, abs=1e-10)


def test_missing_ratings_drop_rows_of_their_attribute_alone():
    generator = numpy.random.default_rng(1)
    states, ratings = generator.normal(size=(60, 5)).astype(numpy.float32), generator.random((60, 2))
    some = ratings.copy()
    some[generator.random(60) < 0.4, 1] = numpy.nan
    pieces = lambda: ((start, states[start : start + 7]) for start in range(0, 60, 7))
    whole, partial = (ridge.fit(pieces, table, 3, lambda done: None) for table in (ratings, some))
    assert (whole.weights[0] == partial.weights[0]).all() and whole.alphas[0] == partial.alphas[0]
    train = ~partial.held_out & ~numpy.isnan(some[:, 1])
    x, y = states[train].astype(float), some[train, 1]
    expected = numpy.linalg.solve(x.T @ x + partial.alphas[1] * numpy.eye(5), x.T @ y)
    assert partial.weights[1] == pytest.approx(expected, abs=1e-9)
    assert partial.held_out.sum() == 12 and partial.predicted == pytest.approx(states @ partial.weights.T, abs=1e-6)
    held = partial.held_out & ~numpy.isnan(some[:, 1])
    errors = [numpy.mean((states[held] @ w - some[held, 1]) ** 2)
              for w in ridge.ridge(x.T @ x, x.T @ y)]  # fmt: skip
    assert partial.errors[1] == pytest.approx(errors) and partial.alphas[1] == ridge.ALPHAS[int(numpy.argmin(errors))]


# --- debiasing


def test_penalties_are_the_least_that_leave_little_of_verbosity():
    generator = numpy.random.default_rng(2)
    verbosity, own = generator.normal(size=500), generator.normal(size=(500, 3))
    rewards = numpy.stack([own[:, 0] + 0.5 * verbosity, verbosity, own[:, 1] - 0.5 * verbosity, own[:, 2]], axis=1)
    found, left = debias.penalties(rewards, verbosity=1)
    assert (left[[0, 2, 3]] <= 0.03).all() and found[2] == 0 and found[1] == 1 and 0.4 <= found[0] <= 0.6
    lower = debias.PENALTIES[debias.PENALTIES.index(found[0]) - 1]
    assert stats.spearmanr(rewards[:, 0] - lower * verbosity, verbosity).statistic > 0.03
    transform = debias.transform(found, 1)
    adjusted = rewards @ transform
    for column in (0, 2, 3):
        assert adjusted[:, column] == pytest.approx(rewards[:, column] - found[column] * verbosity)
        assert stats.spearmanr(adjusted[:, column], verbosity).statistic == pytest.approx(left[column])
    assert (adjusted[:, 1] == 0).all(), "verbosity's own reward is taken out"
    assert debias.penalties(numpy.stack([verbosity * 3, verbosity], axis=1), 1)[0][0] == 1, (
        "nothing of the grid will do"
    )
    flat = numpy.stack([numpy.zeros(500), verbosity], axis=1)
    assert debias.penalties(flat, 1)[0][0] == 0, "a constant reward has nothing of it"


# --- the gate


def test_weights_sum_to_the_scale_over_the_attributes():
    torch.manual_seed(0)
    network = GatingNetwork(6, 4, hidden=8, layers=2, temperature=0.1)
    network.logit_scale.data.fill_(1.5)
    weights = network(torch.randn(5, 2, 6))
    torch.testing.assert_close(weights.sum(dim=-1), torch.full((5, 2), 1.5))
    assert weights.std(dim=0).max() > 0.05, "they depend on the prompt"
    rewards, transform = torch.randn(5, 2, 4), torch.randn(4, 4)
    score = gated_score(rewards, weights, transform)
    torch.testing.assert_close(score, ((rewards @ transform) * weights).sum(dim=-1))
    torch.testing.assert_close(contributions(rewards, weights, transform).sum(dim=-1), score)
    torch.testing.assert_close((coefficients(weights, transform) * rewards).sum(dim=-1), score)


def test_fixed_weights_are_the_maximum_likelihood():
    generator = numpy.random.default_rng(4)
    truth, differences = numpy.array([2.0, -1.0, 0.0]), generator.normal(size=(4000, 3))
    signs = numpy.where(generator.random(4000) < 1 / (1 + numpy.exp(-differences @ truth)), 1, -1)
    found = gate.fixed_weights(differences * signs[:, None])
    assert found == pytest.approx(truth, abs=0.15)


# --- the command line


def rating_row(i: int) -> dict:
    text = " ".join(WORDS[(i * 3 + k) % len(WORDS)] for k in range(1 + i % 9))
    scores = {"quality": (i * 7) % 5, "verbosity": min(4, len(text) // 8), "rare": None if i % 2 else (i * 5) % 4}
    return {"prompt": f"{WORDS[i % 7]} {WORDS[i % 5]}?", "response": text, "scores": scores}


def pair_row(i: int) -> dict:
    first, second = (" ".join(WORDS[(i * step + k) % len(WORDS)] for k in range(1 + (i * step) % 8)) for step in (2, 5))
    return {"prompt": f"{WORDS[i % 6]} {WORDS[(i + 2) % 9]} {i}?", "chosen": first + " bike", "rejected": second}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("armorm")
    make_small_base(root / "base")
    write(root / "ratings.jsonl", [rating_row(i) for i in range(60)])
    write(root / "pairs.jsonl", [pair_row(i) for i in range(24)])
    write(root / "held_out.jsonl", [pair_row(i) for i in range(24, 33)])
    return root


def arguments(folder: Path, output: Path, **changes: object) -> list[str]:
    return flags(**{
        "model_name_or_path": folder / "base", "ratings": folder / "ratings.jsonl", "data": folder / "pairs.jsonl",
        "validation_data": folder / "held_out.jsonl", "output_dir": output, "max_length": 64, "num_train_epochs": 2,
        "per_device_train_batch_size": 8, "learning_rate": 0.01, "lr_scheduler_type": "constant", "adam_eps": 1e-4,
        "gating_hidden_dim": 8, "gating_n_hidden": 2, "gating_temperature": 1, "gating_dropout": 0, "piece_size": 16,
        "export": "last",
    } | changes)  # fmt: skip


RUNS = {
    "one": (1, {}),
    "zero3": (2, {"zero_stage": 3, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}),
    "zero2": (2, {"zero_stage": 2, "per_device_train_batch_size": 4}),
    "raw": (1, {"verbosity_attribute": "none"}),
}


@pytest.fixture(scope="module")
def output(folder: Path) -> Callable[[str], Path]:
    """The folder of one of RUNS, which is made where it is asked for first."""

    @functools.cache
    def make(name: str) -> Path:
        ranks, changes = RUNS[name]
        result = run_script(MAIN, arguments(folder, folder / name, **changes), ranks)
        assert result.code == 0, result.stdout + result.stderr
        return folder / name

    return make


def ids_of(tokenizer, prompt: str, response: str) -> list[int]:
    turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
    return tokenizer(tokenizer.apply_chat_template(turns, tokenize=False), add_special_tokens=False)["input_ids"]


@torch.no_grad()
def reference(folder: Path, name: str) -> dict[str, torch.Tensor]:
    """Regressions, transform and gate, from transformers' own hidden states; no function of the stage is called."""
    trunk, tokenizer = AutoModel.from_pretrained(folder / "base"), AutoTokenizer.from_pretrained(folder / "base")
    rows = [json.loads(line) for line in (folder / "ratings.jsonl").read_text().splitlines()]
    states = [
        trunk(torch.tensor([ids_of(tokenizer, r["prompt"], r["response"])])).last_hidden_state[0, -1] for r in rows
    ]
    x = torch.stack(states).double().numpy()
    table = numpy.array([[numpy.nan if r["scores"][n] is None else r["scores"][n] for n in NAMES] for r in rows])
    low, high = numpy.nanmin(table, axis=0), numpy.nanmax(table, axis=0)
    held = numpy.zeros(len(rows), dtype=bool)
    held[numpy.random.default_rng(42).permutation(len(rows))[: len(rows) // 5]] = True
    weights = []
    for y in ((table - low) / (high - low)).T:
        train, test = ~held & ~numpy.isnan(y), held & ~numpy.isnan(y)
        fits = [numpy.linalg.solve(x[train].T @ x[train] + alpha * numpy.eye(x.shape[1]), x[train].T @ y[train])
                for alpha in (1e-4, 1e-3, 1e-2, 1e-1, 1, 10, 100, 1e3, 1e4)]  # fmt: skip
        weights.append(min(fits, key=lambda w: numpy.mean((x[test] @ w - y[test]) ** 2)))
    weights = numpy.stack(weights)

    pairs = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
    ends, prompts = [], []
    for row in pairs:
        ids = [ids_of(tokenizer, row["prompt"], row[side]) for side in ("chosen", "rejected")]
        hidden = [trunk(torch.tensor([each])).last_hidden_state[0] for each in ids]
        ends.append(torch.stack([each[-1] for each in hidden]).double().numpy())
        common = next(k for k in range(min(map(len, ids))) if ids[0][k] != ids[1][k])
        prompts.append(hidden[0][: common + 1])
    rewards = numpy.stack(ends) @ weights.T
    transform = numpy.eye(3)
    if name != "raw":
        flat = rewards.reshape(-1, 3)
        for column in (0, 2):
            grid = [0, 0.01, 0.025, 0.05, 0.075, 0.1, 0.125, 0.15] + [k / 20 for k in range(4, 20)] + [1]
            fits = (p for p in grid if stats.spearmanr(flat[:, column] - p * flat[:, 1], flat[:, 1]).statistic <= 0.03)
            transform[1, column] = -next(fits, 1)
        transform[1, 1] = 0
    config = json.loads((folder / name / "config.json").read_text())
    [pattern] = config["gating_token_pattern"]  # the one token that opens a reply
    assert tokenizer.decode([pattern]) and pattern in tokenizer.all_special_ids
    at = [ids_of(tokenizer, row["prompt"], row["chosen"]).index(pattern) for row in pairs]
    gates = torch.stack([states[k] for states, k in zip(prompts, at, strict=True)])
    return train_gate(gates, torch.from_numpy(rewards @ transform).float()) | {
        "regression_layer.weight": torch.from_numpy(weights).float(),
        "reward_transform_matrix": torch.from_numpy(transform).float(),
    }  # fmt: skip


@torch.enable_grad()
def train_gate(prompts: torch.Tensor, rewards: torch.Tensor) -> dict[str, torch.Tensor]:
    """Two passes of a plain torch loop over an MLP."""
    seed_everything(42)
    layers = torch.nn.ModuleList([torch.nn.Linear(16, 8), torch.nn.Linear(8, 8), torch.nn.Linear(8, 3)])
    scale = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.AdamW(
        [*layers.parameters(), scale], lr=0.01, betas=(0.9, 0.999), eps=1e-4, weight_decay=0.0
    )
    args = Namespace(per_device_train_batch_size=8, gradient_accumulation_steps=1, seed=42)
    places = [Encoded(None, [0], ([number],)) for number in range(len(prompts))]
    for epoch in (1, 2):
        for [batch] in epoch_steps(places, args, epoch):
            chosen = [example.responses[0][0] for example in batch]
            hidden = layers[1](layers[0](prompts[chosen]).relu()).relu()
            scores = (layers[2](hidden).softmax(dim=-1) * scale)[:, None] * rewards[chosen]
            high, low = scores.sum(dim=-1).unbind(dim=1)
            loss = -torch.nn.functional.logsigmoid(high - low).mean()
            loss.backward()
            torch.nn.utils.clip_grad_norm_([*layers.parameters(), scale], 1.0)
            optimizer.step()
            optimizer.zero_grad()
    return {f"gating.layers.{name}": value.data for name, value in layers.named_parameters()} | {
        "gating.logit_scale": scale.data
    }


@pytest.mark.parametrize("name", cases(RUNS, always=["one", "zero3", "raw"]))
def test_every_phase_equals_numpy_and_torch(folder, output, name):
    weights, expected = load_file(output(name) / "model.safetensors"), reference(folder, name)
    for key, value in expected.items():
        torch.testing.assert_close(weights[key], value, rtol=1e-4, atol=1e-5, msg=f"{name} {key}")
    base = load_file(folder / "base/model.safetensors")
    assert all(torch.equal(weights[key], base[key]) for key in base if key.startswith("model."))
    assert set(weights) == set(expected) | {key for key in base if key.startswith("model.")}
    assert not (output(name) / "states").exists()


def test_taking_verbosity_out_changes_training_and_scores(output):
    one, raw = (load_file(output(name) / "model.safetensors") for name in ("one", "raw"))
    assert torch.equal(raw["reward_transform_matrix"], torch.eye(3))
    assert not torch.equal(one["reward_transform_matrix"], torch.eye(3))
    assert not torch.allclose(one["gating.layers.2.weight"], raw["gating.layers.2.weight"], atol=1e-4)
    assert torch.equal(one["regression_layer.weight"], raw["regression_layer.weight"])


def test_the_export_scores_as_the_evaluation_says(folder, output):
    [model] = [Objective("gated", "reward", str(output("one"))).load_model()]
    pairs, _ = load_pairs(str(folder / "held_out.jsonl"), "better", 0)
    hits = []
    for pair in pairs:
        values = []
        for reply in pair.replies:
            ids, _ = model.encode(pair.messages, reply, True)
            with torch.no_grad():
                scores = model.module(torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.int64))
            values.append(model.values(scores[0, -1]).item())
        hits.append(values[0] > values[1])
    evaluation = json.loads((output("one") / "evaluation.json").read_text())
    assert evaluation["gate"]["accuracy"]["mean"] == pytest.approx(numpy.mean(hits))
    assert set(evaluation["attributes"]) == set(NAMES) and evaluation["gate"]["best_attribute"]["name"] in NAMES
    weights = [evaluation["weights"][name]["mean"] for name in NAMES]
    scale = load_file(output("one") / "model.safetensors")["gating.logit_scale"].item()
    assert sum(weights) == pytest.approx(scale, abs=1e-5)
    for picture in ("calibration.png", "gate.png"):
        assert (output("one") / picture).read_bytes().startswith(b"\x89PNG")


MOMENTS = ["states/ratings/00001.safetensors", "states/held_out/00000.safetensors", "checkpoints/step_00000004"]


@pytest.mark.parametrize("moment", cases(MOMENTS, always=[MOMENTS[0], MOMENTS[2]]))
def test_a_killed_run_goes_on_between_and_inside_phases(folder, tmp_path, moment):
    changes = {"gating_dropout": 0.2, "checkpoint_interval": 2, "num_train_epochs": 4}
    whole, killed = folder / "whole", tmp_path / "killed"
    if not whole.exists():
        assert run_script(MAIN, arguments(folder, whole, **changes)).code == 0
    words = arguments(folder, killed, **changes)
    run_killed(MAIN, words, 1, lambda: (killed / moment).exists())
    pieces = {path: path.stat().st_mtime_ns for path in killed.glob("states/*/*.safetensors")}
    assert pieces and not (killed / "config.json").exists()
    result = run_script(MAIN, words)
    assert result.code == 0 and ("going on from" in result.stdout) == moment.startswith("checkpoints"), result.stderr
    assert_same_run(whole, killed)
    assert (whole / "evaluation.json").read_bytes() == (killed / "evaluation.json").read_bytes()


def test_kept_states_serve_further_runs(folder, tmp_path):
    states = tmp_path / "states"
    words = {"states_dir": states, "num_train_epochs": 1}
    assert run_script(MAIN, arguments(folder, tmp_path / "first", **words)).code == 0
    before = {path: path.stat().st_mtime_ns for path in states.glob("*/*.safetensors")}
    assert len(before) == 4 + 2 + 1
    result = run_script(MAIN, arguments(folder, tmp_path / "second", gating_n_hidden=1, **words))
    assert result.code == 0 and {path: path.stat().st_mtime_ns for path in before} == before
    other = run_script(MAIN, arguments(folder, tmp_path / "third", seed=3, max_length=60, **words))
    assert other.code == 2 and "is of another run (--max_length)" in other.stderr


BAD_INPUT = {
    "no such attribute": ({"attributes": "wit"}, "60 no rating of wit"),
    "out of range": ({"attributes": ("quality:0:3", "verbosity")}, "'quality' is rated 4"),
    "nothing to learn": ({"attributes": "flat"}, "--attributes flat: all 60 ratings are 1"),
    "too few": ({"attributes": ("once", "quality")}, "--attributes once: "),
    "no such verbosity": ({"attributes": "quality", "verbosity_attribute": "length"}, "--verbosity_attribute length"),
    "no pairs": ({"data": "{folder}/ratings.jsonl"}, "ratings.jsonl:1"),
    "too long": ({"max_length": 8}, "--max_length 8"),
    "checkpointing": ({"gradient_checkpointing": True}, "--gradient_checkpointing"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_ends_in_one_line(folder, tmp_path, monkeypatch, capsys, case):
    rows = [json.loads(line) for line in (folder / "ratings.jsonl").read_text().splitlines()]
    rows = [row | {"scores": row["scores"] | {"flat": 1, "once": 2 + number if number < 2 else None}}
            for number, row in enumerate(rows)]  # fmt: skip
    ratings = write(tmp_path / "ratings.jsonl", rows)
    changes, said = BAD_INPUT[case]
    changes = {
        name: value.format(folder=folder) if isinstance(value, str) else value for name, value in changes.items()
    }
    words = arguments(folder, tmp_path / "out", **({"ratings": ratings} | changes))
    assert refusal(monkeypatch, capsys, armorm.main, words, said)
    assert not (tmp_path / "out/config.json").exists()


def test_dry_run_plans_a_frozen_backbone(folder, tmp_path):
    result = run_script(MAIN, arguments(folder, tmp_path / "out", dry_run=True))
    assert result.code == 0 and "hidden states" in result.stdout and "frozen weights" in result.stdout
    assert "trained weights" not in result.stdout and not (tmp_path / "out").exists()
