"""Score models in ArmoRM's released format: read without their code, scored as an independent computation in numpy."""

import json
from pathlib import Path

import numpy
import pytest
import torch
from safetensors.torch import load_file

from step2_reward.armorm.main import prompt_pattern
from step3_gapo.arguments import parse_args
from tests import architectures
from tests.armorm import ATTRIBUTES, by_hand, pattern_of, rows_by_hand, write_armorm
from tests.helpers import STEP3, Workshop, flags, read_metrics, run_function, run_script
from tests.test_score_models import FINISHED, MESSAGES, RESPONSES, sample, score_file, score_in_step3
from tests.test_turn_endings import ENDINGS, LLAMA_3
from utils.data.formats.rated import ARMORM
from utils.models.configs import load_tokenizer
from utils.process.distributed import init_distributed, rank, shutdown_distributed
from utils.process.errors import UserError
from utils.scoring import armorm_format
from utils.scoring.objectives import Objective, load_models
from utils.scoring.scorers import make_scorers, score_responses

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
    assert not alone.scores_tokens and not alone.gate_pattern, "critics start from the policy, whatever is asked for"


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


def test_long_dialogues_keep_what_the_gate_reads(tmp_path: Path) -> None:
    """The beginning goes, and of a reply that is longer than the room its beginning, too."""
    tokenizer = ENDINGS["llama3"].tokenizer()
    write_armorm(tmp_path / "short", tokenizer, max_position_embeddings=40)
    [model] = load_models([Objective("gated", "reward", str(tmp_path / "short"))])
    [whole] = load_models([Objective("gated", "reward", str(write_whole(tmp_path, tokenizer)))])
    pattern = model.gate_pattern
    for prompt, reply in (("a" * 60, "b"), ("a", "b" * 60), ("a" * 60, "b" * 60)):
        turns = [{"role": "user", "content": prompt}]
        (ids, cut), (every, _) = model.encode(turns, reply, True), whole.encode(turns, reply, True)
        at = armorm_format.find_pattern(ids, pattern)
        end = armorm_format.find_pattern(every, pattern) + len(pattern)
        assert cut and len(ids) == 40 and ids[-1] == every[-1]
        assert every[:end][-(at + len(pattern)) :] == ids[: at + len(pattern)], "the end of the prompt"
        assert ids[at + len(pattern) :] == every[len(every) - (40 - at - len(pattern)) :], "the end of the reply"


def write_whole(folder: Path, tokenizer) -> Path:
    write_armorm(folder / "whole", tokenizer)
    return folder / "whole"


def test_a_dialogue_without_the_pattern_is_told_in_one_line(tmp_path: Path) -> None:
    """With the row; at once, where the model's template writes none."""
    tokenizer = ENDINGS["llama3"].tokenizer()
    write_armorm(tmp_path / "model", tokenizer)
    [model] = load_models([Objective("gated", "reward", str(tmp_path / "model"))])
    model.tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    with pytest.raises(UserError) as error:
        model.encode(MESSAGES[0], "Yes", True, "rows.jsonl:7")
    assert str(error.value).startswith("rows.jsonl:7: the dialogue lacks '<|eot|><|start|>")
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


def test_padding_is_no_part_of_a_dialogue(tmp_path: Path) -> None:
    """Where the tokens to look for are what pads, too."""
    tokenizer = ENDINGS["llama3"].tokenizer()
    eos = tokenizer.eos_token_id
    heads = write_armorm(tmp_path / "model", tokenizer, gating_token_pattern=[eos], pad_token_id=eos)
    [model] = load_models([Objective("gated", "reward", str(tmp_path / "model"))])
    row, _ = model.encode(MESSAGES[0], "Yes", True)
    assert row[-1] != eos, "the last token that is not padding has the score"
    at = max(i for i, each in enumerate(row) if each == eos)
    score = float(by_hand(tmp_path / "model", heads, row, at)[0])
    for left in (False, True):
        padding, ones = [eos] * 9, [1] * len(row)
        ids, mask = (padding + row, [0] * 9 + ones) if left else (row + padding, ones + [0] * 9)
        with torch.no_grad():
            scores = model.module(torch.tensor([ids]), torch.tensor([mask]))[0, :, 0]
        assert scores[-1 if left else len(row) - 1].item() == pytest.approx(score, abs=1e-5)


def test_the_pattern_is_what_nothing_merges_with() -> None:
    chatml = architectures.tokenizer()
    whole = chatml("<|im_end|>\n<|im_start|>assistant\n", add_special_tokens=False)["input_ids"]
    assert armorm_format.template_pattern(chatml, "m", "--m") == whole
    chatml.add_tokens(["\n\n"])  # a reply may begin with a line break
    assert armorm_format.template_pattern(chatml, "m", "--m") == whole[:-1]
    bare = architectures.tokenizer("{% for m in messages %}{{ m.content }}{% endfor %}")
    with pytest.raises(UserError, match="writes nothing of its own"):
        armorm_format.template_pattern(bare, "m", "--m")


def test_a_template_that_always_opens_a_reply_is_told(tmp_path: Path, capsys) -> None:
    """As Llama 3's first one: the gate reads behind the reply, which training refuses."""
    tokenizer = ENDINGS["llama3"].tokenizer()
    opening = LLAMA_3.replace("{%- if add_generation_prompt -%}", "").replace("{%- endif -%}", "")
    tokenizer.chat_template = opening
    write_armorm(tmp_path / "model", tokenizer)
    Objective("a", "reward", str(tmp_path / "model")).check()
    assert "note: --reward_model a" in (said := capsys.readouterr().out) and "opens a reply after every turn" in said
    with pytest.raises(UserError, match="opens a reply after every turn"):
        prompt_pattern(tokenizer, "m")


def scores_of_a_rank(policy: str, folder: str, stage: int, dtype: str, result: str) -> None:
    """Of every rank's two dialogues, in an engine of this ZeRO stage."""
    init_distributed(60.0)
    words = flags(actor_model="x", algorithm="ppo", data="x", output_dir="x", zero_stage=stage, dtype=dtype,
                  per_device_train_batch_size=1)  # fmt: skip
    args, tokenizer = parse_args(words), load_tokenizer(policy, "--actor_model")
    objectives = [Objective("gated", "reward", folder), Objective("safe", "reward", folder, "10")]
    scorers = make_scorers(objectives, args, tokenizer, with_critics=["gated", "safe"])
    assert [scorer.take_critic_start("gated") for scorer in scorers] == [None]
    scored = score_responses(scorers, sample(tokenizer), args)
    Path(f"{result}{rank()}").write_text(json.dumps({name: part.values.tolist() for name, part in scored.items()}))
    shutdown_distributed()


@pytest.mark.parametrize(("stage", "dtype", "tolerance"), [(3, "fp32", 1e-5), (3, "bf16", 0.05)])
def test_scores_in_engines_of_two_ranks(workshop, released, tmp_path, stage: int, dtype: str, tolerance: float) -> None:
    folder, heads = released
    words = (str(workshop.base), str(folder), stage, dtype, str(tmp_path / "scores"))
    done = run_function(scores_of_a_rank, *words, ranks=2)
    assert done.code == 0, done.stderr
    wanted = values_by_hand(folder, heads)
    for number in range(2):
        found = json.loads((tmp_path / f"scores{number}").read_text())
        for name in ("gated", "safe"):
            assert found[name] == pytest.approx(wanted[name], abs=tolerance * max(1, *map(abs, wanted[name])))


def test_step3_trains_on_the_gated_score_and_an_attribute(workshop: Workshop, released) -> None:
    """Two objectives of one model on two ranks under ZeRO-3; their critics start from the policy."""
    folder, _ = released
    models = {"reward_model": (f"gated={folder}", f"safe={folder}"), "cost_model": None, "score_label": "safe=10"}
    run = workshop.step3("gated_zero3", ranks=2, zero_stage=3, max_steps=1, **models, per_device_prompt_batch_size=4)
    [line] = read_metrics(run)
    assert all(numpy.isfinite(line[f"loss/critic/{name}"]) and line[f"reward/{name}"] for name in ("gated", "safe"))
    planned = run_script(STEP3, workshop.step3_flags("gated_plan", dry_run=True, **models))
    assert planned.code == 0, planned.stderr
    numbers = sum(tensor.numel() for tensor in load_file(folder / "model.safetensors").values())
    [line] = [each for each in planned.stdout.splitlines() if "reward of gated, reward of safe" in each]
    assert f"{numbers / 1e3:.2f}k" in line and planned.stdout.count("the policy's; from the policy") == 2
