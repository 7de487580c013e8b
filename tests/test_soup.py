"""Rewarded Soups through the command line: the average itself, and what must not be averaged."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from tests.helpers import Result, Workshop, flags, read_weights, run_script
from utils.models.card import CARD
from utils.models.fingerprint import weights_fingerprint

pytestmark = pytest.mark.slow

HEAD = "lm_head.weight"
TELLS_ITS_ORIGIN = ("args.json", CARD)


def soup(output: Path, experts: dict[str, Path], weights: dict[str, float], **changes: Any) -> Result:
    named = {
        "expert": tuple(f"{name}={path}" for name, path in experts.items()),
        "weight": tuple(f"{name}={weight}" for name, weight in weights.items()),
    }
    return run_script("eval/soup.py", flags(**(named | {"output_dir": output} | changes)))


def refused(output: Path, experts: dict[str, Path], **changes: Any) -> str:
    """The one line that a soup of equal shares is refused with; nothing may be left behind."""
    result = soup(output, experts, dict.fromkeys(experts, 1 / len(experts)), **changes)
    assert result.code == 2, result.stdout + result.stderr
    assert result.stderr.count("\n") == 1 and result.stderr.startswith("error: --")
    assert not list(output.parent.glob(f"*{output.name}*"))
    return result.stderr


def fine_tuned(base: Path, folder: Path, seed: int, dtype: torch.dtype = torch.float32, **settings: str) -> Path:
    """A copy of `base` with other weights and, with `settings`, the args.json of its training."""
    shutil.copytree(base, folder, ignore=shutil.ignore_patterns("args.json"))
    generator = torch.Generator().manual_seed(seed)
    weights = read_weights(base)
    changed = {name: (w + 0.1 * torch.randn(w.shape, generator=generator)).to(dtype) for name, w in weights.items()}
    save_file(changed, folder / "model.safetensors", {"format": "pt"})
    if settings:
        (folder / "args.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="module")
def base(workshop: Workshop) -> Path:
    return workshop.base


@pytest.fixture
def experts(base: Path, tmp_path: Path) -> dict[str, Path]:
    names = ("helpfulness", "harmlessness")
    return {name: fine_tuned(base, tmp_path / name, seed, actor_model=str(base)) for seed, name in enumerate(names)}


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(folder: Path, **changes: torch.Tensor) -> None:
    save_file(read_weights(folder) | changes, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_average(base: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    shares = {"a": 0.5, "b": 0.3, "c": 0.2}
    experts = {name: fine_tuned(base, tmp_path / name, seed, dtype) for seed, name in enumerate(shares)}
    result = soup(tmp_path / "soup", experts, shares)
    assert result.code == 0, result.stderr
    weights = {name: read_weights(path) for name, path in experts.items()}
    average = read_weights(tmp_path / "soup")
    assert average.keys() == weights["a"].keys()
    for name, tensor in average.items():
        expected = sum(share * weights[expert][name].double() for expert, share in shares.items())
        assert tensor.dtype == dtype
        assert torch.equal(tensor, expected.to(dtype))
    settings = json.loads((tmp_path / "soup/args.json").read_text())
    assert settings["algorithm"] == "rewarded_soup" and dict(settings["weight"]) == shares
    assert dict(settings["expert"]) == {name: str(path) for name, path in experts.items()}


@pytest.mark.parametrize("chosen", ["helpfulness", "harmlessness"])
def test_weight_one_is_the_expert(experts: dict[str, Path], tmp_path: Path, chosen: str) -> None:
    """Bit for bit with its tokenizer and configuration, even where the other expert has no number."""
    other = next(path for name, path in experts.items() if name != chosen)
    edit_weights(other, **{HEAD: torch.full_like(read_weights(other)[HEAD], torch.nan)})
    edit_weights(experts[chosen], **{HEAD: torch.full_like(read_weights(other)[HEAD], -0.0)})
    (experts[chosen] / "metrics.jsonl").write_text("{}\n")
    result = soup(tmp_path / "soup", experts, {name: float(name == chosen) for name in experts})
    assert result.code == 0, result.stderr
    expert, made = ({file.name: file.read_bytes() for file in folder.iterdir() if file.name not in TELLS_ITS_ORIGIN}
                    for folder in (experts[chosen], tmp_path / "soup"))  # fmt: skip
    assert made == {name: content for name, content in expert.items() if name != "metrics.jsonl"}
    assert {"config.json", "model.safetensors", "tokenizer.json"} < made.keys()


def test_not_a_number_of_an_unused_expert(base: Path, experts: dict[str, Path], tmp_path: Path) -> None:
    experts["unused"] = fine_tuned(base, tmp_path / "unused", 5)
    edit_weights(experts["unused"], **{HEAD: torch.full_like(read_weights(base)[HEAD], torch.inf)})
    assert soup(tmp_path / "soup", experts, {"helpfulness": 0.5, "harmlessness": 0.5, "unused": 0}).code == 0
    assert all(torch.isfinite(tensor).all() for tensor in read_weights(tmp_path / "soup").values())


def test_shards(experts: dict[str, Path], tmp_path: Path) -> None:
    """Experts may be sharded differently; the soup has the layout of the larger share, and loads."""
    shares = {"helpfulness": 0.4, "harmlessness": 0.6}
    assert soup(tmp_path / "whole", experts, shares).code == 0
    model = AutoModelForCausalLM.from_pretrained(experts["harmlessness"])
    mark = weights_fingerprint(experts["harmlessness"])
    (experts["harmlessness"] / "model.safetensors").unlink()
    model.save_pretrained(experts["harmlessness"], max_shard_size="40KB")
    assert weights_fingerprint(experts["harmlessness"]) == mark
    assert soup(tmp_path / "sharded", experts, shares).code == 0
    shards = sorted((tmp_path / "sharded").glob("*.safetensors"))
    assert len(shards) > 1
    merged = {name: tensor for shard in shards for name, tensor in load_file(shard).items()}
    whole = read_weights(tmp_path / "whole")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "sharded").state_dict()
    for name, tensor in whole.items():
        assert torch.equal(merged[name], tensor) and torch.equal(loaded[name], tensor)
    edit(
        experts["harmlessness"] / "model.safetensors.index.json", weight_map={HEAD: "model-00001-of-00009.safetensors"}
    )
    assert "--expert harmlessness" in refused(tmp_path / "new", experts)


def test_tied_weights_and_buffers(base: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base)
    experts = {}
    for seed, name in enumerate("ab"):
        torch.manual_seed(seed)
        config = GPT2Config(vocab_size=len(tokenizer), n_positions=32, n_embd=8, n_layer=1, n_head=2)
        GPT2LMHeadModel(config).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        edit_weights(tmp_path / name, steps=torch.tensor([7]), mask=torch.tensor([True, False]))
        experts[name] = tmp_path / name
    assert soup(tmp_path / "soup", experts, {"a": 0.5, "b": 0.5}).code == 0
    made, a, b = (read_weights(tmp_path / name) for name in ("soup", "a", "b"))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "soup")
    assert model.lm_head.weight is model.transformer.wte.weight
    name = next(name for name in made if name.endswith("wte.weight"))
    assert torch.equal(made[name], ((a[name].double() + b[name].double()) / 2).float())
    assert made["steps"].tolist() == [7] and made["mask"].tolist() == [True, False]
    edit_weights(tmp_path / "b", mask=torch.tensor([True, True]))
    assert "mask cannot be averaged" in refused(tmp_path / "new", experts)


def test_models_that_differ(workshop: Workshop, experts: dict[str, Path], tmp_path: Path) -> None:
    other = tmp_path / "other"
    for path, expected in ((workshop.folder / "other", "vocab_size"), (workshop.reward, "another configuration")):
        assert expected in refused(tmp_path / "new", experts | {"harmlessness": path})
    fine_tuned(workshop.base, other, 1)
    pair = {"helpfulness": experts["helpfulness"], "other": other}
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    first, second = sorted(vocabulary)[-2:]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    original = (other / "tokenizer.json").read_text()
    edit(other / "tokenizer.json", model=tokenizer["model"])
    assert "another tokenizer" in refused(tmp_path / "new", pair)
    (other / "tokenizer.json").write_text(original)
    edit(other / "tokenizer.json", truncation={"max_length": 8})  # no part of the vocabulary
    assert soup(tmp_path / "fine", pair, {"helpfulness": 0.5, "other": 0.5}).code == 0
    head = read_weights(other)[HEAD]
    for tensor, expected in ((head[:, 1:].contiguous(), "[600, 31]"), (head.bfloat16(), "BF16")):
        edit_weights(other, **{HEAD: tensor})
        line = refused(tmp_path / "new", pair)
        assert HEAD in line and expected in line and "--expert other" in line
    save_file({name: w for name, w in read_weights(other).items() if name != HEAD}, other / "model.safetensors")
    assert f"only one has {HEAD}" in refused(tmp_path / "new", pair)


def test_bases(base: Path, experts: dict[str, Path], tmp_path: Path) -> None:
    """Known by fingerprint, else by path, else by the weights at the path; unknown ones are taken on trust."""
    equal = {"helpfulness": 0.5, "harmlessness": 0.5}
    settings = experts["harmlessness"] / "args.json"
    moved = shutil.copytree(base, tmp_path / "moved")
    edit(settings, actor_model=str(moved))
    assert soup(tmp_path / "soup", experts, equal, base=base).code == 0
    other = fine_tuned(base, tmp_path / "other_base", 9)
    edit(settings, actor_model=str(other))
    line = refused(tmp_path / "new", experts)
    assert "--expert harmlessness" in line and str(other) in line
    assert "--expert helpfulness" in refused(tmp_path / "new", experts, base=other)
    edit(settings, actor_model=str(base), actor_model_sha256=weights_fingerprint(other))
    edit(experts["helpfulness"] / "args.json", actor_model_sha256=weights_fingerprint(base))
    assert "--expert harmlessness" in refused(tmp_path / "new", experts)
    edit(settings, actor_model="gone", actor_model_sha256=weights_fingerprint(base))
    assert soup(tmp_path / "soup", experts, equal, base=base).code == 0
    settings.unlink()
    result = soup(tmp_path / "soup", experts, equal)
    assert result.code == 0 and f"--expert harmlessness {experts['harmlessness']}: no args.json" in result.stdout
    assert "--expert harmlessness" in refused(tmp_path / "new", experts, base=base)


def test_flags(experts: dict[str, Path], tmp_path: Path) -> None:
    output, one = tmp_path / "new", {"helpfulness": 0.5}
    for weights, expected in (
        (one, "--weight: harmlessness has none"),
        (one | {"harmlessness": 0.6}, "sum to 1.1"),
        ({"helpfulness": -0.5, "harmlessness": 1.5}, "--weight helpfulness=-0.5"),
        (one | {"harmlessness": "nan"}, "--weight harmlessness=nan"),
        (one | {"harmlessness": 0.5, "length": 0}, "--weight length=0: no expert"),
    ):
        result = soup(output, experts, weights)
        assert result.code == 2 and expected in result.stderr, result.stderr
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    assert "no such model" in refused(output, experts | {"harmlessness": adapter})
    (adapter / "adapter_config.json").write_text("{}")
    assert "merge it" in refused(output, experts | {"harmlessness": adapter})
    for taken in (experts["helpfulness"], tmp_path):
        result = soup(taken, experts, dict.fromkeys(experts, 0.5))
        assert result.code == 2 and "would delete --expert" in result.stderr
    assert read_weights(experts["helpfulness"])
