"""Settings of the whole test run, and the tiny models that the tests of step 3 share."""

import os

# Before torch is imported: one thread, so that results do not depend on the number of cores; no network; and
# no GPU, because there may be more ranks than devices.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["CUDA_VISIBLE_DEVICES"], os.environ["DS_ACCELERATOR"] = "", "cpu"

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from tests.helpers import Workshop, flags, run_script


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--algorithm", action="append", help="a method of one's own, FILE.py:CLASS, for its checks")


# Files of more than half a minute, the longest first: workers that take them in this order end at about the same time.
LONGEST = """
    bad_inputs resume step3_distributed gradient_parity critic_free step3_cli rank_failures world_size judge eval
    dry_run lora mistral_7b gpu_check benchmarks export_checkpoint step1_sft step2_reward machines step3_engine
    safe_by_default loading models_of_others own_algorithms architectures run_all launchers report soup
""".split()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {f"test_{name}.py": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(LONGEST)))


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return make_workshop(tmp_path_factory.mktemp("workshop"))


def make_workshop(folder: Path) -> Workshop:
    """Data, policy and score models, made by the project's own commands."""
    sizes = {"num_sft": 200, "num_preferences": 8, "num_validation": 8, "num_validation_prompts": 8,
             "num_test_prompts": 8}  # fmt: skip
    data = flags(output_dir=folder / "data", **sizes)
    result = run_script("utils/safe_rlhf_mini/__main__.py", data)
    assert result.code == 0, result.stderr
    prompts = folder / "prompts.jsonl"
    lines = (folder / "data/prompts_train.jsonl").read_text().splitlines(keepends=True)
    prompts.write_text("".join(lines[:64]))
    make_base(folder, "base", vocab_size=600)
    make_base(folder, "other", vocab_size=520, seed=5)
    end_early(folder / "base")
    make_score_model(folder / "base", folder / "reward", seed=1, score_mean=0.3)
    make_score_model(folder / "base", folder / "cost", seed=2)
    make_score_model(folder / "other", folder / "foreign", seed=3)
    return Workshop(folder, prompts, *(folder / name for name in ("base", "reward", "cost", "foreign")))


def make_base(folder: Path, name: str, **changes: int) -> None:
    arguments = {
        "sft_data": folder / "data/sft_train.jsonl", "tokenizer_dir": folder / f"{name}_tokenizer",
        "model_dir": folder / name, "hidden_size": 32, "num_layers": 2, "intermediate_size": 64,
    } | changes  # fmt: skip
    result = run_script("utils/make_base.py", flags(**arguments))
    assert result.code == 0, result.stderr


def end_early(path: Path) -> None:
    """Stretch the logits of EOS, so that it is near certain in some states: responses of many lengths."""
    model, eos = AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path).eos_token_id
    model.lm_head.weight.data[eos] *= 12
    model.save_pretrained(path)


def make_score_model(base: Path, path: Path, seed: int, score_mean: float = 0.0) -> None:
    """A score model with a random head on the trunk of `base`."""
    torch.manual_seed(seed)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    model.config.score_mean = score_mean
    model.save_pretrained(path)
    AutoTokenizer.from_pretrained(base).save_pretrained(path)
