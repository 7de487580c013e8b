"""Step 3 through its command line on one rank: what a run leaves behind, which runs must end in the same
weights, and what bad input is answered with."""

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import deepspeed
import pytest
import torch
from safetensors.torch import save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
)

from step3_gapo.tracking import drawing_library
from tests.cases import EXHAUSTIVE, cases
from tests.helpers import (
    STEP3,
    Result,
    Workshop,
    distance,
    read_metrics,
    read_weights,
    run_command,
    run_script,
    untimed,
)
from utils.models.fingerprint import weights_fingerprint
from utils.policy import actor

OBJECTIVES = ("helpfulness", "harmlessness")
COMMON_TAGS = {
    "kl", "entropy", "response_length", "eos_rate", "loss/actor", "clip_fraction", "skipped_steps",
    "time/rollout", "time/score", "time/update",
    *(f"{tag}/{name}" for tag in ("reward", "loss/critic", "coefficient") for name in OBJECTIVES),
}  # fmt: skip
GRADIENT_TAGS = {
    "gradient/cosine/helpfulness_harmlessness",
    *(f"{tag}/{name}" for tag in ("gradient/norm", "alpha") for name in OBJECTIVES),
}  # fmt: skip


def same_weights(first: Path, second: Path) -> bool:
    a, b = read_weights(first), read_weights(second)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def gapo_run(workshop: Workshop) -> tuple[Path, Result]:
    """Two steps of GAPO by the real command."""
    output = workshop.folder / "gapo"
    result = run_command([sys.executable, STEP3, *workshop.step3_flags("gapo")])
    assert result.code == 0, result.stderr
    return output, result


# --- what a run leaves behind


def test_a_run_says_what_it_does_and_nothing_on_stderr(gapo_run: tuple[Path, Result]) -> None:
    output, result = gapo_run
    lines = result.stdout.splitlines()
    assert result.stderr == ""
    assert "prompts.jsonl (prompts): read 64, kept 64" in lines[0]
    assert [line.split(" · ")[0] for line in lines[1:3]] == ["gapo 1/2", "gapo 2/2"]
    assert lines[3:] == [f"policy saved in {output}"]


def test_metrics_have_one_line_a_step_and_every_tag(gapo_run: tuple[Path, Result]) -> None:
    metrics = read_metrics(gapo_run[0])
    assert [step["step"] for step in metrics] == [1, 2]
    for step in metrics:
        assert step.keys() >= COMMON_TAGS | GRADIENT_TAGS
        assert all(math.isfinite(value) for value in step.values())
        assert step["skipped_steps"] == 0
        assert 0 < step["eos_rate"] <= 1
        assert 1 <= step["response_length"] <= 12
        assert 0 < step["entropy"] < math.log(600)
        assert -1 <= step["gradient/cosine/helpfulness_harmlessness"] <= 1
        assert all(step[f"gradient/progress/{name}"] > 0 for name in OBJECTIVES)
    assert metrics[0]["kl"] == pytest.approx(0, abs=1e-5)
    assert abs(metrics[1]["kl"]) > 1e-4


def test_tensorboard_holds_the_same_numbers_texts_and_a_picture(gapo_run: tuple[Path, Result]) -> None:
    output, _ = gapo_run
    events = EventAccumulator(str(output / "tensorboard")).Reload()
    metrics = read_metrics(output)
    assert set(events.Tags()["scalars"]) == metrics[0].keys() - {"step"}
    for tag in events.Tags()["scalars"]:
        logged = {event.step: event.value for event in events.Scalars(tag)}
        assert logged == pytest.approx({step["step"]: step[tag] for step in metrics}, rel=1e-5, abs=1e-6)
    texts = {tag: events.Tensors(f"{tag}/text_summary") for tag in ("responses", "hyperparameters")}
    shown = [event.tensor_proto.string_val[0].decode() for event in texts["responses"]]
    assert [event.step for event in texts["responses"]] == [1, 2]
    assert all(text.startswith("| prompt | response | helpfulness | harmlessness |") for text in shown)
    assert all(len(text.split("\n")) == 2 + 4 for text in shown)
    assert "| algorithm | gapo |" in texts["hyperparameters"][0].tensor_proto.string_val[0].decode()
    assert [event.step for event in events.Images("pareto")] == [1, 2]


def test_without_matplotlib_there_is_no_picture(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # as if it were not installed
    assert drawing_library() is None
    assert capsys.readouterr().out.startswith("note: matplotlib is not installed")


def test_the_flags_are_kept(gapo_run: tuple[Path, Result], workshop: Workshop) -> None:
    settings = json.loads((gapo_run[0] / "args.json").read_text())
    assert settings["algorithm"] == "gapo"
    assert settings["cost_model"] == [["harmlessness", str(workshop.cost)]]
    assert settings["world_size"] == 1
    assert settings["actor_model_sha256"] == weights_fingerprint(workshop.base)


def test_the_policy_is_a_model_folder_that_has_learned_something(
    gapo_run: tuple[Path, Result], workshop: Workshop
) -> None:
    output, _ = gapo_run
    names = {path.name for path in output.iterdir()}
    assert names >= {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "generation_config.json",
        "tensorboard",
    }
    assert not [name for name in names if name.startswith(".")]
    weights, start = read_weights(output), read_weights(workshop.base)
    assert weights.keys() == start.keys()
    for name, weight in weights.items():
        assert weight.dtype == torch.float32
        assert not torch.equal(weight, start[name]), name


# --- on-policy at first


@pytest.mark.slow
@pytest.mark.parametrize("changes", [
    {}, {"temperature": 0.7}, {"algorithm": "morlhf", "ppo_epochs": 2}, {"gradient_accumulation_steps": 2},
    {"generation_batches": 2, "per_device_train_batch_size": 16, "whiten_advantages": True},
], ids=str)  # fmt: skip
def test_the_first_minibatch_of_every_rollout_is_on_policy(workshop: Workshop, changes: dict) -> None:
    for step in read_metrics(workshop.step3("on_policy", **changes)):
        assert step["first_minibatch/ratio_error"] <= 1e-5
        assert step["first_minibatch/approximate_kl"] == pytest.approx(0, abs=1e-6)


def test_later_minibatches_are_not(gapo_run: tuple[Path, Result]) -> None:
    assert all(step["ratio_error"] > 1e-3 for step in read_metrics(gapo_run[0]))


@pytest.fixture(scope="module")
def gpt2(workshop: Workshop) -> Path:
    """A policy with learned positions, tied embeddings, and dropout in its configuration."""
    tokenizer = AutoTokenizer.from_pretrained(workshop.base)
    torch.manual_seed(0)
    special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=2, n_positions=128, **special)
    GPT2LMHeadModel(config).save_pretrained(workshop.folder / "gpt2")
    tokenizer.save_pretrained(workshop.folder / "gpt2")
    return workshop.folder / "gpt2"


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"zero_stage": 3, "ranks": 2, "critic": "shared"}], ids=str)
def test_another_architecture_with_dropout_and_tied_embeddings(workshop: Workshop, gpt2: Path, changes: dict) -> None:
    output = workshop.step3("gpt2_run", actor_model=gpt2, **changes)
    assert all(step["first_minibatch/ratio_error"] <= 1e-5 for step in read_metrics(output))
    policy, start = (AutoModelForCausalLM.from_pretrained(path) for path in (output, gpt2))
    assert policy.lm_head.weight is policy.transformer.wte.weight
    assert not torch.equal(policy.lm_head.weight, start.lm_head.weight)


# --- runs that must end in the same weights


def test_the_same_seed_gives_the_same_run(gapo_run: tuple[Path, Result], workshop: Workshop) -> None:
    again = workshop.step3("again")
    assert same_weights(again, gapo_run[0])
    assert untimed(read_metrics(again)) == untimed(read_metrics(gapo_run[0]))
    assert not same_weights(workshop.step3("other_seed", seed=43), again)


def test_a_run_replaces_what_an_earlier_one_left(workshop: Workshop) -> None:
    first = workshop.step3("replaced", max_steps=3)
    kept = first / "notes.txt"
    kept.write_text("mine")
    second = workshop.step3("replaced", seed=7)
    assert len(read_metrics(second)) == 2
    assert len(list((second / "tensorboard").iterdir())) == 1
    assert same_weights(second, workshop.step3("not_replaced", seed=7))
    assert kept.read_text() == "mine"


@pytest.mark.slow
@pytest.mark.parametrize("name", cases(OBJECTIVES, always=OBJECTIVES[:1]))
def test_one_hot_weights_are_ppo_on_that_objective(workshop: Workshop, name: str) -> None:
    (other,) = set(OBJECTIVES) - {name}
    weighted = workshop.step3("one_hot", algorithm="morlhf", preference=(f"{name}=1", f"{other}=0"))
    monitored = workshop.step3("monitored", algorithm="ppo", monitor=other)
    alone = workshop.step3(
        "alone", algorithm="ppo", **{"reward_model" if other == "helpfulness" else "cost_model": None}
    )
    assert same_weights(weighted, monitored)
    assert same_weights(weighted, alone)
    metrics = read_metrics(monitored)
    assert all(f"reward/{other}" in step and f"loss/critic/{other}" not in step for step in metrics)
    assert not same_weights(weighted, workshop.step3("equal", algorithm="morlhf"))


@pytest.mark.slow
def test_gapo_of_power_one_is_p_gapo_with_equal_preference(gapo_run: tuple[Path, Result], workshop: Workshop) -> None:
    equal = workshop.step3("equal_preference", algorithm="p_gapo", preference=("harmlessness=0.5", "helpfulness=0.5"))
    assert distance(gapo_run[0], equal) <= 1e-6
    unequal = workshop.step3("unequal", algorithm="p_gapo", preference=("helpfulness=0.8", "harmlessness=0.2"))
    assert distance(gapo_run[0], unequal) > 1e-4


def test_gapo_of_power_zero_is_mgda(workshop: Workshop) -> None:
    mgda = workshop.step3("mgda", algorithm="mgda")
    assert distance(mgda, workshop.step3("power_0", rescale_power=0)) <= 1e-6
    assert distance(mgda, workshop.step3("power_2", rescale_power=2)) > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", cases(["gapo", "morlhf"], always=["gapo"]))
def test_accumulated_micro_batches_are_one_batch(workshop: Workshop, algorithm: str) -> None:
    whole = workshop.step3("whole", algorithm=algorithm, per_device_train_batch_size=8)
    for size, parts in ((4, 2), (2, 4)):
        output = workshop.step3(
            "parts", algorithm=algorithm, per_device_train_batch_size=size, gradient_accumulation_steps=parts
        )
        assert distance(whole, output) <= 1e-5
        for step, expected in zip(untimed(read_metrics(output)), untimed(read_metrics(whole)), strict=True):
            assert step == pytest.approx(expected, rel=2e-4, abs=2e-6)
    assert distance(whole, workshop.step3("halves", algorithm=algorithm)) > 1e-4  # two steps of 4


@pytest.mark.slow
@EXHAUSTIVE
def test_the_scale_of_an_objective_does_not_move_gapo(workshop: Workshop) -> None:
    """A critic starts at the scale of its objective, so the advantages are four times as large, not more."""
    changes = {"per_device_train_batch_size": 8, "max_steps": 1}
    plain = workshop.step3("plain", **changes)
    scaled = workshop.step3("scaled", score_scale="harmlessness=4", **changes)
    assert distance(plain, scaled) <= 1e-6
    (before,), (after,) = read_metrics(plain), read_metrics(scaled)
    assert after["reward/harmlessness"] == before["reward/harmlessness"]  # logged in original units
    assert after["gradient/norm/harmlessness"] == pytest.approx(4 * before["gradient/norm/harmlessness"], rel=1e-5)
    assert after["coefficient/harmlessness"] == pytest.approx(before["coefficient/harmlessness"] / 4, rel=1e-5)
    assert after["coefficient/helpfulness"] == pytest.approx(before["coefficient/helpfulness"], rel=1e-5)
    moved = workshop.step3("moved", algorithm="mgda", score_scale="harmlessness=4", **changes)
    assert distance(moved, workshop.step3("unmoved", algorithm="mgda", **changes)) > 1e-4


def test_the_hybrid_engine_says_why_not_and_changes_nothing(gapo_run: tuple[Path, Result], workshop: Workshop) -> None:
    result = run_script(STEP3, workshop.step3_flags("hybrid", enable_hybrid_engine=True))
    assert result.code == 0, result.stderr
    (line,) = [line for line in result.stdout.splitlines() if "hybrid" in line and "/" not in line]
    assert line.startswith("--enable_hybrid_engine: its inference kernels need CUDA; generating natively")
    assert same_weights(workshop.folder / "hybrid", gapo_run[0])


@pytest.mark.parametrize(("architectures", "obstacle"), [
    ("9.0a", "DeepSpeed cannot read TORCH_CUDA_ARCH_LIST=9.0a when it builds them: unset it"), ("8.0 9.0+PTX", None),
])  # fmt: skip
def test_gpus_that_deepspeed_cannot_build_for(
    monkeypatch: pytest.MonkeyPatch, architectures: str, obstacle: str | None
) -> None:
    """Said of a machine with CUDA, which is made up here: nothing is built."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setitem(deepspeed.ops.__compatible_ops__, "transformer_inference", True)
    monkeypatch.setattr(actor, "missing_inference_policy", lambda model: None)
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", architectures)
    assert actor.hybrid_engine_obstacle(torch.nn.Linear(1, 1)) == obstacle


def test_a_shared_critic_has_a_head_an_objective(workshop: Workshop) -> None:
    for step in read_metrics(workshop.step3("shared", critic="shared")):
        assert step.keys() >= COMMON_TAGS | GRADIENT_TAGS
        assert all(step[f"loss/critic/{name}"] > 0 for name in OBJECTIVES)


@pytest.mark.slow
def test_three_objectives_one_with_its_own_tokenizer(workshop: Workshop) -> None:
    arguments = [
        *workshop.step3_flags("three", rescale_power=2),
        "--reward_model",
        f"third={workshop.foreign}",
    ]
    result = run_script(STEP3, arguments)
    assert result.code == 0, result.stderr
    for step in read_metrics(workshop.folder / "three"):
        names = [*OBJECTIVES, "third"]
        assert sum(step[f"alpha/{name}"] for name in names) == pytest.approx(1)
        assert all(step[f"gradient/progress/{name}"] > 0 for name in names)
        assert step["gradient/cosine/helpfulness_third"] != step["gradient/cosine/third_harmlessness"]
        assert step["truncated/third"] == 0 and "truncated/helpfulness" not in step


def test_normalized_coefficients_sum_to_one(workshop: Workshop) -> None:
    for step in read_metrics(workshop.step3("normalized", rescale_power=2, normalize_coefficients=True)):
        assert sum(step[f"coefficient/{name}"] for name in OBJECTIVES) == pytest.approx(1)
        assert sum(step[f"alpha/{name}"] for name in OBJECTIVES) == pytest.approx(1)


@pytest.mark.slow
def test_scores_that_are_not_finite_skip_the_step_and_are_counted(workshop: Workshop) -> None:
    broken = workshop.folder / "broken_reward"
    copy_model(workshop.reward, broken)
    weights = read_weights(broken)
    weights["score.weight"][0, 0] = math.inf
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    output = workshop.step3("skipped", reward_model=f"helpfulness={broken}")
    assert same_weights(output, workshop.base)
    assert [step["skipped_steps"] for step in read_metrics(output)] == [2, 4]
    arguments = workshop.step3_flags("given_up", reward_model=f"helpfulness={broken}", ppo_epochs=4, max_steps=9)
    result = run_script(STEP3, arguments)
    check_refusal(result, ["20 optimizer steps", "learning_rate"])
    assert "step 3: a score of helpfulness is not finite" in result.stdout
    assert not (workshop.folder / "given_up/config.json").exists()


# --- which gradients are compared

COSINE = "gradient/cosine/helpfulness_harmlessness"


@pytest.mark.slow
@EXHAUSTIVE
def test_all_gradients_on_several_ranks(workshop: Workshop) -> None:
    """GAPO with p = 1 still is P-GAPO with equal preferences, and other numbers are compared than the last layer's."""
    shape = {"ranks": 2, "zero_stage": 3, "gradient_accumulation_steps": 2, "max_steps": 1}
    full = workshop.step3("gapo_full", gradient_scope="full", **shape)
    equal = workshop.step3("p_gapo_full", gradient_scope="full", algorithm="p_gapo", **shape)
    last_layer = workshop.step3("gapo_last_layer", **shape)
    assert distance(full, equal) <= 1e-6
    assert distance(full, last_layer) > 1e-6
    (metrics,), (others,) = read_metrics(full), read_metrics(last_layer)
    assert metrics["gradient/step_norm"] == pytest.approx(metrics["gradient/direction_norm"], rel=1e-4)
    for name in OBJECTIVES:
        assert metrics[f"gradient/norm/{name}"] > others[f"gradient/norm/{name}"]
        assert metrics[f"gradient/progress/{name}"] > 0


@pytest.mark.slow
@EXHAUSTIVE
def test_fixed_weights_can_log_gradients(workshop: Workshop) -> None:
    plain = workshop.step3("morlhf_plain", algorithm="morlhf")
    logged = workshop.step3("morlhf_logged", algorithm="morlhf", log_gradients=True)
    assert same_weights(plain, logged)
    gapo = read_metrics(workshop.step3("gapo_beside", max_steps=1))
    assert COSINE not in read_metrics(plain)[0]
    assert -1 <= read_metrics(logged)[0][COSINE] <= 1
    assert not any(tag.startswith("alpha/") for tag in read_metrics(logged)[0])
    # The first optimizer step of a rollout compares the same gradients whatever it makes of them.
    one_step = {"per_device_train_batch_size": 8, "max_steps": 1}
    (logged,) = read_metrics(workshop.step3("morlhf_one", algorithm="morlhf", log_gradients=True, **one_step))
    (gapo,) = read_metrics(workshop.step3("gapo_one", **one_step))
    assert logged[COSINE] == pytest.approx(gapo[COSINE], rel=1e-5)


@pytest.mark.slow
def test_a_model_that_caps_its_logits_needs_all_gradients(workshop: Workshop) -> None:
    capped = workshop.folder / "capped"
    tokenizer = AutoTokenizer.from_pretrained(workshop.base)
    torch.manual_seed(0)
    Gemma2ForCausalLM(Gemma2Config(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, final_logit_softcapping=0.5, pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )).save_pretrained(capped)  # fmt: skip
    tokenizer.save_pretrained(capped)
    changes = {"actor_model": capped, "max_steps": 1}
    result = run_script(STEP3, workshop.step3_flags("capped_last_layer", **changes))
    check_refusal(result, ["--gradient_scope last_layer", "--gradient_scope full"])
    (metrics,) = read_metrics(workshop.step3("capped_full", gradient_scope="full", **changes))
    assert metrics["gradient/progress/helpfulness"] > 0


# --- bad input


def copy_model(source: Path, target: Path) -> Path:
    target.mkdir()
    for file in source.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


def spoiled(source: Path, target: Path, name: str, content: bytes | None) -> Path:
    """A copy of a model folder in which one file is other, or missing."""
    copy_model(source, target)
    (target / name).unlink()
    if content is not None:
        (target / name).write_bytes(content)
    return target


def text_file(folder: Path, content: str) -> Path:
    path = folder / "rows.jsonl"
    path.write_text(content)
    return path


def preference(*weights: str, algorithm: str = "p_gapo") -> dict[str, Any]:
    return {"algorithm": algorithm, "preference": weights}


PROMPT = '{"prompt": "How do I fix my bike?"}\n'
LONG_PROMPT = json.dumps({"prompt": "How do I fix my bike? " * 40}) + "\n"

# What is wrong -> (changed flags, what the one line must name), given the workshop and the test's folder.
BAD_INPUT: dict[str, Callable[[Workshop, Path], tuple[dict[str, Any], list[str]]]] = {
    "unknown flag": lambda w, t: ({"bogus": 1}, ["--bogus"]),
    "abbreviated flag": lambda w, t: ({"max_new": 4}, ["--max_new"]),
    "no actor": lambda w, t: ({"actor_model": None}, ["--actor_model"]),
    "unknown algorithm": lambda w, t: ({"algorithm": "gapa"}, ["--algorithm", "gapa"]),
    "negative learning rate": lambda w, t: ({"actor_learning_rate": -1}, ["--actor_learning_rate"]),
    "zero temperature": lambda w, t: ({"temperature": 0}, ["--temperature"]),
    "no whole number": lambda w, t: ({"max_new_tokens": 1.5}, ["--max_new_tokens"]),
    "ZeRO stage 4": lambda w, t: ({"zero_stage": 4}, ["--zero_stage"]),
    "missing file": lambda w, t: ({"data": t / "none.jsonl"}, ["none.jsonl"]),
    "malformed line": lambda w, t: (
        {"data": text_file(t, PROMPT + PROMPT + '{"prompt": \n')}, ["rows.jsonl:3"]),
    "wrong type": lambda w, t: (
        {"data": text_file(t, PROMPT + '{"prompt": 3}\n')}, ["rows.jsonl:2", "prompt"]),
    "empty file": lambda w, t: ({"data": text_file(t, "")}, ["rows.jsonl"]),
    "nothing usable": lambda w, t: ({"data": text_file(t, '{"prompt": " "}\n')}, ["rows.jsonl"]),
    "too few prompts": lambda w, t: ({"data": text_file(t, PROMPT)}, ["--data"]),
    "prompt too long": lambda w, t: (
        {"data": text_file(t, PROMPT + LONG_PROMPT)}, ["rows.jsonl:2", "--max_prompt_length"]),
    "negative preference": lambda w, t: (
        preference("helpfulness=-0.5", "harmlessness=1.5"), ["--preference helpfulness"]),
    "preference of 0": lambda w, t: (
        preference("helpfulness=0", "harmlessness=1"), ["--preference helpfulness"]),
    "preference not a number": lambda w, t: (
        preference("helpfulness=nan", "harmlessness=0.5"), ["--preference helpfulness"]),
    "preference sums to 0.9": lambda w, t: (
        preference("helpfulness=0.5", "harmlessness=0.4", algorithm="morlhf"), ["--preference", "0.9"]),
    "preference of an unknown objective": lambda w, t: (
        preference("helpfulness=0.5", "harm=0.5"), ["--preference harm", "harmlessness"]),
    "preference lacks an objective": lambda w, t: (
        preference("helpfulness=1"), ["--preference", "harmlessness"]),
    "preference given twice": lambda w, t: (
        preference("helpfulness=0.9", "helpfulness=0.5", "harmlessness=0.5"),
        ["--preference", "helpfulness"]),
    "preference without number": lambda w, t: (
        preference("helpfulness"), ["--preference", "helpfulness"]),
    "preference for gapo": lambda w, t: (
        {"preference": ("helpfulness=0.5", "harmlessness=0.5")}, ["--preference", "gapo"]),
    "power for mgda": lambda w, t: ({"algorithm": "mgda", "rescale_power": 1}, ["--rescale_power", "mgda"]),
    "normalized weights": lambda w, t: (
        {"algorithm": "morlhf", "normalize_coefficients": True}, ["--normalize_coefficients", "morlhf"]),
    "all gradients of fixed weights": lambda w, t: (
        {"algorithm": "morlhf", "gradient_scope": "full"}, ["--gradient_scope full", "morlhf"]),
    "all gradients a micro-batch": lambda w, t: (
        {"gradient_scope": "full", "gram_per": "micro_batch"}, ["--gram_per micro_batch", "last_layer"]),
    "more tokens than positions": lambda w, t: ({"max_new_tokens": 600}, ["--max_new_tokens", "512"]),
    "unknown monitor": lambda w, t: ({"monitor": "truth"}, ["--monitor truth"]),
    "all monitored": lambda w, t: ({"monitor": OBJECTIVES}, ["--monitor"]),
    "unknown scale": lambda w, t: ({"score_scale": "truth=2"}, ["--score_scale truth"]),
    "scale not finite": lambda w, t: ({"score_scale": "helpfulness=nan"}, ["--score_scale", "helpfulness"]),
    "ppo with two objectives": lambda w, t: ({"algorithm": "ppo"}, ["--algorithm ppo", *OBJECTIVES]),
    "no objective": lambda w, t: (
        {"reward_model": None, "cost_model": None}, ["--reward_model", "--cost_model"]),
    "objective twice": lambda w, t: ({"cost_model": f"helpfulness={w.cost}"}, ["helpfulness"]),
    "objective without name": lambda w, t: ({"reward_model": w.reward}, ["--reward_model"]),
    "reward model is a language model": lambda w, t: (
        {"reward_model": f"helpfulness={w.base}"}, ["--reward_model helpfulness", "MistralForCausalLM"]),
    "cost model is a language model": lambda w, t: (
        {"cost_model": f"harmlessness={w.base}"}, ["--cost_model harmlessness", "MistralForCausalLM"]),
    "no such reward model": lambda w, t: (
        {"reward_model": f"helpfulness={t}/none"}, ["--reward_model helpfulness", "none"]),
    "reward model not on the hub": lambda w, t: (
        {"reward_model": "helpfulness=nobody/nothing"}, ["--reward_model helpfulness", "nobody/nothing"]),
    "reward model is damaged": lambda w, t: (
        {"reward_model": f"helpfulness={spoiled(w.reward, t / 'r', 'model.safetensors', b'junk')}"},
        ["--reward_model helpfulness"]),
    "configuration is damaged": lambda w, t: (
        {"reward_model": f"helpfulness={spoiled(w.reward, t / 'r', 'config.json', b'{')}"},
        ["--reward_model helpfulness"]),
    "actor is a reward model": lambda w, t: (
        {"actor_model": w.reward}, ["--actor_model", "MistralForSequence"]),
    "actor has no weights": lambda w, t: (
        {"actor_model": spoiled(w.base, t / "a", "model.safetensors", None)}, ["--actor_model"]),
    "actor has no chat template": lambda w, t: (
        {"actor_model": spoiled(w.base, t / "a", "chat_template.jinja", None)}, ["chat template"]),
    "output below a file": lambda w, t: ({"output_dir": w.prompts / "out"}, ["--output_dir"]),
    "batch sizes": lambda w, t: (
        {"per_device_train_batch_size": 3}, ["--per_device_prompt_batch", "--per_device_train_batch"]),
    "accumulated batch sizes": lambda w, t: (
        {"gradient_accumulation_steps": 3}, ["--gradient_accumulation_steps"]),
}  # fmt: skip


def check_refusal(result: Result, names: list[str]) -> None:
    """One line that names the culprit, exit code 2."""
    assert result.code == 2, result
    assert result.stderr.count("\n") == 1, result.stderr
    assert result.stderr.startswith("error: ")
    for name in names:
        assert name in result.stderr


def finished_run(folder: Path) -> dict[Path, bytes]:
    """What an earlier run left in `folder`."""
    folder.mkdir()
    files = {
        folder / name: name.encode() for name in ("config.json", "model.safetensors", "metrics.jsonl", "args.json")
    }
    for path, content in files.items():
        path.write_bytes(content)
    return files


@pytest.mark.slow
@pytest.mark.parametrize("what", BAD_INPUT)
def test_bad_input_is_one_line_and_leaves_everything_as_it_was(workshop: Workshop, tmp_path: Path, what: str) -> None:
    changes, names = BAD_INPUT[what](workshop, tmp_path)
    files = finished_run(tmp_path / "out")
    check_refusal(run_script(STEP3, workshop.step3_flags("", **{"output_dir": tmp_path / "out"} | changes)), names)
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*")} == files


@pytest.mark.slow
@pytest.mark.parametrize("what", cases(["malformed line", "actor is a reward model"], always=["malformed line"]))
def test_bad_input_by_the_real_command(workshop: Workshop, tmp_path: Path, what: str) -> None:
    changes, names = BAD_INPUT[what](workshop, tmp_path)
    arguments = workshop.step3_flags("", **{"output_dir": tmp_path / "out"} | changes)
    check_refusal(run_command([sys.executable, STEP3, *arguments]), names)


@pytest.mark.parametrize("what", cases(
    ["unknown flag", "malformed line", "too few prompts", "actor is a reward model"],
    always=["unknown flag", "malformed line"],
))  # fmt: skip
def test_several_ranks_refuse_with_one_voice(workshop: Workshop, tmp_path: Path, what: str) -> None:
    changes, names = BAD_INPUT[what](workshop, tmp_path)
    check_refusal(run_script(STEP3, workshop.step3_flags("refused", **changes), ranks=2), names)


def test_help_names_every_flag_with_its_default() -> None:
    result = run_script(STEP3, ["--help"])
    assert result.code == 0
    for flag in (
        "--algorithm",
        "--preference",
        "--gradient_scope",
        "--zero_stage",
        "--kl_coeff",
        "--ppo_epochs",
    ):
        assert flag in result.stdout
    assert "(default: 0.05)" in result.stdout
