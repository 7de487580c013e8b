"""Cards of exported models, and their upload to a stand-in for the hub."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from tests.helpers import ROOT, Workshop, flags, run_script
from tests.hub_stand_in import Hub, running_hub
from utils.models.card import MARK, card, figures_of

pytestmark = pytest.mark.slow

POLICY = {
    "actor_model": "mistralai/Mistral-7B-v0.1@26bca36", "reward_model": [["helpfulness", "my/reward|x"]],
    "cost_model": [["harmlessness", "/models/cost"]], "reward_function": [], "monitor": ["harmlessness"],
    "algorithm": "p_gapo", "preference": [["helpfulness", 0.6], ["harmlessness", 0.4]], "policy_loss": None,
    "data": "PKU-Alignment/PKU-SafeRLHF@train:0.5,prompts.jsonl", "seed": 7, "lora_dim": 0,
}  # fmt: skip


@pytest.fixture(scope="module")
def policy(workshop: Workshop) -> Path:
    return workshop.step3("carded", max_steps=1, algorithm="morlhf")


def test_a_policy_says_what_it_is() -> None:
    """On the hub it names base and data that are there, and no path of a machine nor a license as metadata."""
    found = ModelCard(card("mine", POLICY, {"reward/helpfulness": 1.25}, "python step3_gapo/main.py --seed 7"))
    data = found.data.to_dict()
    assert data == {
        "base_model": "mistralai/Mistral-7B-v0.1", "datasets": ["PKU-Alignment/PKU-SafeRLHF"],
        "library_name": "transformers", "pipeline_tag": "text-generation", "tags": ["alignment", "p_gapo"],
    }  # fmt: skip
    text = found.text
    for line in (
        "# mine", "aligned to several objectives by p_gapo",
        "| objective helpfulness | `reward_model: my/reward\\|x` |",
        "| objective harmlessness (only scored) | `cost_model: /models/cost` |",
        "| preference | `helpfulness=0.6 harmlessness=0.4` |", "| reward/helpfulness | `1.25` |", "--seed 7",
    ):  # fmt: skip
        assert line in text, line


def test_other_models_say_what_they_are() -> None:
    score = ModelCard(card("r", {"kind": "reward", "objective": "wit", "model_name_or_path": "/a/b"}, {}, "x"))
    assert score.data.pipeline_tag == "text-classification" and "A reward model of wit" in score.text
    assert score.data.base_model is None and "| base model | `/a/b` |" in score.text
    sft = ModelCard(card("s", {"model_name_or_path": "gpt2"}, {}, "x"))
    assert sft.data.base_model == "gpt2" and sft.data.tags == ["sft"]
    adapters = ModelCard(
        card("a", POLICY | {"lora_dim": 8, "lora_export": "adapter", "algorithm": "f.py:Mine"}, {}, "x")
    )
    assert adapters.data.library_name == "peft" and adapters.data.tags == ["alignment"]


def test_figures_of_an_evaluation() -> None:
    evaluation = {"loss": 0.5, "kind": "cost", "accuracy": {"mean": 0.75, "ci95": 0.1}, "bins": [1], "fits": True}
    assert figures_of(evaluation) == {"loss": 0.5, "accuracy": 0.75}


def test_runs_leave_a_card_and_yours_stays(workshop: Workshop, policy: Path) -> None:
    text = (policy / "README.md").read_text()
    assert MARK in text and "reward/helpfulness (last rollout)" in text and "step3_gapo/main.py" in text
    (policy / "README.md").write_text("# My own\n")
    workshop.step3("carded", max_steps=1, algorithm="morlhf")
    assert (policy / "README.md").read_text() == "# My own\n"
    (policy / "README.md").write_text(text)


def push(hub: Hub, *words: Any, **options: Any) -> subprocess.CompletedProcess:
    environment = os.environ | {
        "HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_x", "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0",
        "HF_HOME": "/nowhere",
    }  # fmt: skip
    command = [sys.executable, "-m", "utils.push_to_hub", *map(str, words), *flags(**options)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)


def test_an_upload(workshop: Workshop, policy: Path, tmp_path: Path) -> None:
    """The model's files and its card, with license and scores; the run's own record stays at home."""
    scores = {"objectives": {"helpfulness": {"mean": 1.5, "ci95": 0.25}}, "gold": {"objectives": {}}}
    (tmp_path / "eval.json").write_text(json.dumps(scores))
    with running_hub() as hub:
        tried = push(hub, policy, "owner/model", dry_run=True)
        assert tried.returncode == 0 and not hub.files and "model.safetensors" in tried.stdout, tried.stderr
        result = push(hub, policy, "owner/model", license="apache-2.0", evaluation=tmp_path / "eval.json", private=True)
        assert result.returncode == 0 and f"uploaded: {hub.url}/owner/model/commit" in result.stdout, result.stderr
    assert hub.files["model.safetensors"] == (policy / "model.safetensors").read_bytes()
    assert {"config.json", "tokenizer.json", "README.md"} <= hub.files.keys()
    assert not [name for name in hub.files if name.startswith(("metrics", "args", "checkpoints", "tensorboard"))]
    found = ModelCard(hub.files["README.md"].decode())
    assert found.data.license == "apache-2.0" and "| helpfulness (model score) | `1.5 ± 0.25` |" in found.text
    assert hub.commits == ["Upload model"] and hub.repositories[0]["name"] == "model"
    assert "apache" not in (policy / "README.md").read_text(), "the folder's own card stays"


def test_what_cannot_be_uploaded(workshop: Workshop, policy: Path, tmp_path: Path) -> None:
    with running_hub() as hub:
        for words, said, code in (
            ((tmp_path / "none", "owner/model"), "no such folder", 2), ((policy, "model"), "is not OWNER/NAME", 2),
            ((workshop.reward, "owner/model"), "no README.md there", 2),
            ((policy, "owner/model", "--evaluation", policy / "args.json"), "is no file of eval/score.py", 2),
        ):  # fmt: skip
            result = push(hub, *words)
            assert result.returncode == code and said in result.stderr and result.stderr.count("\n") == 1, result.stderr
        hub.refuses = True
        result = push(hub, policy, "owner/model")
        assert result.returncode == 1 and "not uploaded" in result.stderr and "Traceback" not in result.stderr
        assert not hub.files


def test_averages_and_checkpoints_say_what_they_are(workshop: Workshop, policy: Path, tmp_path: Path) -> None:
    other = workshop.step3("carded_too", max_steps=1, algorithm="morlhf", seed=5)
    words = flags(expert=(f"a={policy}", f"b={other}"), weight=("a=0.5", "b=0.5"), output_dir=tmp_path / "soup")
    result = run_script("eval/soup.py", words)
    assert result.code == 0, result.stderr
    text = (tmp_path / "soup" / "README.md").read_text()
    assert "| weight | `a=0.5 b=0.5` |" in text and f"expert: {policy}" in text
