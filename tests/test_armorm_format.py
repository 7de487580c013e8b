"""Score models in ArmoRM's released format: read without their code, scored as an independent computation in numpy."""

import json
from pathlib import Path

import numpy
import pytest
import torch

from tests.armorm import ATTRIBUTES, by_hand, pattern_of, rows_by_hand, write_armorm
from tests.helpers import Workshop, run_function
from tests.test_score_models import FINISHED, MESSAGES, RESPONSES, score_file, score_in_step3
from tests.test_turn_endings import ENDINGS
from utils.data.formats.rated import ARMORM
from utils.models.configs import load_tokenizer
from utils.process.errors import UserError
from utils.scoring import armorm_format
from utils.scoring.objectives import Objective, load_models

USES = {"gated": None, "helpful": "ultrafeedback-helpfulness", "safe": "10", "style": "code-style"}
LABELS = tuple(f"{name}={label}" for name, label in USES.items() if label)


@pytest.fixture(scope="module")
def released(tmp_path_factory) -> tuple[Path, dict[str, torch.Tensor]]:
    """A folder as released, with a tokenizer like Llama 3's, and its heads."""
    folder = tmp_path_factory.mktemp("armorm") / "model"
    return folder, write_armorm(folder, ENDINGS["llama3"].tokenizer())


def expected(folder: Path, heads: dict[str, torch.Tensor]) -> list[tuple[numpy.ndarray, ...]]:
    """Of the dialogues of tests/test_score_models.py."""
    dialogues = zip(MESSAGES, RESPONSES, FINISHED, strict=True)
    return rows_by_hand(
        folder, heads, [dict(zip(("messages", "response", "finished"), d, strict=True)) for d in dialogues]
    )


def values_by_hand(folder: Path, heads: dict[str, torch.Tensor]) -> dict[str, list[float]]:
    columns = {"gated": None, "helpful": ARMORM.index("ultrafeedback-helpfulness"), "safe": 10,
               "style": ARMORM.index("code-style")}  # fmt: skip
    rows = expected(folder, heads)
    return {name: [float(score if k is None else rewards[k]) for score, rewards, _ in rows]
            for name, k in columns.items()}  # fmt: skip


def test_scores_are_those_of_the_description(workshop: Workshop, released, tmp_path: Path) -> None:
    """In the evaluation and in step 3, in batches of dialogues of several turns and lengths; no code is run."""
    folder, heads = released
    assert any(len(messages) > 1 for messages in MESSAGES)
    wanted = values_by_hand(folder, heads)
    models = tuple(f"{name}={folder}" for name in USES)
    in_eval, _ = score_file(tmp_path, reward_model=models, score_label=LABELS)
    objectives = [Objective(name, "reward", str(folder), label) for name, label in USES.items()]
    for each in objectives:
        each.check()
    run_function(score_in_step3, str(workshop.base), objectives, str(tmp_path / "found.json"))
    in_step3 = json.loads((tmp_path / "found.json").read_text())
    for name in USES:
        assert in_eval[name] == pytest.approx(wanted[name], abs=1e-5), name
        assert in_step3[name]["values"] == pytest.approx(wanted[name], abs=1e-5), name


def test_objectives_share_one_model(released) -> None:
    folder, _ = released
    models = load_models([Objective(name, "reward", str(folder), label) for name, label in USES.items()])
    assert len({id(model.module) for model in models}) == 1 and not models[0].scores_tokens
    [alone] = load_models([Objective("helpful", "reward", str(folder), "ultrafeedback-helpfulness")])
    assert alone.scores_tokens, "an attribute alone is a head on every token"


def test_every_token_of_a_padded_batch_has_its_score(released) -> None:
    folder, heads = released
    [model] = load_models([Objective("gated", "reward", str(folder))])
    pattern = pattern_of(folder)
    rows = [[5, *pattern, 7, 8], [5, *pattern, 9, 9, *pattern, 4]]
    width = max(map(len, rows)) + 2
    ids = torch.tensor([row + [model.tokenizer.pad_token_id] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    with torch.no_grad():
        scores = model.module(ids, mask)[..., 0]
        explained = model.module.explained(ids, mask)
    assert torch.equal(explained[..., 0], scores)
    for row, at in ((0, 1), (1, len(pattern) + 3)):
        for end in range(at + len(pattern), len(rows[row]) + 1):
            score, _, contributions = by_hand(folder, heads, rows[row][:end], at)
            assert scores[row, end - 1].item() == pytest.approx(float(score), abs=1e-5)
            assert explained[row, end - 1, 1:].numpy() == pytest.approx(contributions, abs=1e-5)


@pytest.mark.parametrize("name", ["llama3", "chatml", "gemma", "zephyr", "tulu"])
def test_the_pattern_follows_from_the_template(tmp_path: Path, name: str) -> None:
    """It is what stands between a user's turn and the reply, in dialogues of any text."""
    tokenizer = ENDINGS[name].tokenizer()
    pattern = armorm_format.template_pattern(tokenizer, "m", "--reward_model a")
    between = {"llama3": "<|eot|><|start|>assistant<|end|>\n\n", "gemma": "<end>\n<turn>model\n"}
    if name in between:
        assert pattern == tokenizer(between[name], add_special_tokens=False)["input_ids"]
    turns = [{"role": "user", "content": "Hi there"}, {"role": "assistant", "content": "Yes"},
             {"role": "user", "content": "go on"}]  # fmt: skip
    text = tokenizer.apply_chat_template([*turns, {"role": "assistant", "content": "ok"}], tokenize=False)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    at = armorm_format.find_pattern(ids, pattern)
    assert tokenizer.decode(ids[:at]).rstrip().endswith("go on")


def test_config_may_name_the_pattern(tmp_path: Path) -> None:
    tokenizer = ENDINGS["llama3"].tokenizer()
    pattern = tokenizer("<|end|>\n\n", add_special_tokens=False)["input_ids"]
    heads = write_armorm(tmp_path / "own", tokenizer, gating_token_pattern=pattern)
    [model] = load_models([Objective("gated", "reward", str(tmp_path / "own"))])
    ids, cut = model.encode(MESSAGES[0], "Yes", True)
    at = max(i for i in range(len(ids)) if ids[i : i + len(pattern)] == pattern)
    with torch.no_grad():
        score = model.module(torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.int64))[0, -1, 0].item()
    assert score == pytest.approx(float(by_hand(tmp_path / "own", heads, ids, at)[0]), abs=1e-5) and not cut


def test_attributes_are_named_by_the_configuration(tmp_path: Path) -> None:
    labels = {str(index): f"quality {index}" for index in range(ATTRIBUTES)}
    write_armorm(tmp_path / "own", ENDINGS["llama3"].tokenizer(), id2label=labels)
    Objective("a", "reward", str(tmp_path / "own"), "quality 3").check()
    with pytest.raises(UserError, match=r"--score_label a=wit: .* has no such label \(there are quality 0, quality 1"):
        Objective("a", "reward", str(tmp_path / "own"), "wit").check()


def test_a_dialogue_without_the_pattern_is_told_in_one_line(tmp_path: Path) -> None:
    """With the row, where a long dialogue loses its beginning; at once, where the model's template writes none."""
    tokenizer = ENDINGS["llama3"].tokenizer()
    write_armorm(tmp_path / "short", tokenizer, max_position_embeddings=24)
    [model] = load_models([Objective("gated", "reward", str(tmp_path / "short"))])
    with pytest.raises(UserError) as error:
        model.encode(MESSAGES[0], "a" * 60, True, "rows.jsonl:7")
    assert str(error.value).startswith("rows.jsonl:7: the dialogue lacks '<|eot|><|start|>") and "24" in str(
        error.value
    )
    write_armorm(tmp_path / "other", tokenizer, gating_token_pattern=[3, 3, 3])
    with pytest.raises(UserError, match=r"--reward_model a .*other: the dialogue lacks .*ids \[3, 3, 3\]"):
        Objective("a", "reward", str(tmp_path / "other")).check()
    load_tokenizer(str(tmp_path / "other"), "")


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"num_objectives": None}, "num_objectives in config.json is no number of attributes: None"),
        ({"num_objectives": 18}, "has shape [19], config.json describes [18]"),
        ({"gating_n_hidden": 4}, "gating.layers"),
        ({"gating_token_pattern": "assistant"}, "gating_token_pattern in config.json is no list of ids"),
    ],
)
def test_what_does_not_fit_is_told_before_weights_are_read(tmp_path: Path, config: dict, said: str) -> None:
    write_armorm(tmp_path / "model", ENDINGS["llama3"].tokenizer(), **config)
    with pytest.raises(UserError) as error:
        Objective("a", "reward", str(tmp_path / "model")).check()
    assert said in str(error.value) and "\n" not in str(error.value)
