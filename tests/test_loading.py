"""Models go to their places while they are read: the weights that transformers loads, read once, and by one rank."""

import math
import re
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, Qwen3_5Config

from step3_gapo.arguments import parse_args
from step3_gapo.critics import critic_modules
from tests.architectures import SIZES, make_classifier, random_model, tokenizer
from tests.helpers import Workshop, flags, run_function
from tests.test_models_of_others import make, row_of
from tests.test_score_models import FULL, safe_rlhf_model
from utils.engines import arrival
from utils.engines.arrival import arriving, copy_of, is_partitioned, whole
from utils.engines.engines import engine_config, place
from utils.models.configs import DTYPES, load_tokenizer
from utils.models.fingerprint import INDEX, find_tensors, tensor_shapes
from utils.models.loading import load_causal_lm, new_score_model
from utils.models.lora import with_adapters
from utils.models.stored_tensors import ReadingProgress, StoredTensor
from utils.process.distributed import init_distributed, is_main
from utils.scoring.objectives import Objective
from utils.scoring.scorers import make_scorers

pytestmark = pytest.mark.slow

EVERY = ("llama_tied", "gpt2", "gpt_neox", "mixtral", "deepseek_v3", "gemma3_vision", "opt_projected", "qwen3_5")


def arguments(**changes: Any) -> Namespace:
    own = {"actor_model": "unused", "data": "unused", "output_dir": "unused", "algorithm": "ppo", "zero_stage": 3}
    return parse_args(flags(**own | changes))


def begin() -> None:
    """On every rank: each parameter goes by itself, and all but the smallest are read by the main rank alone."""
    init_distributed()
    arrival.AT_ONCE, arrival.SMALL = 1, 2


def weights_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters under all their names, and what is stored of buffers; the same on every rank."""
    found = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        with whole(tensor):
            found[name] = tensor.detach().clone()
    return found


def check_same(model: nn.Module, expected: dict[str, torch.Tensor]) -> None:
    found = weights_of(model)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


def test_a_long_reading_is_shown(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("utils.models.stored_tensors.SECONDS_OF_SILENCE", 0.0)
    progress = ReadingProgress("org/policy")
    progress.total, progress.start = 8 * 10**9, progress.start - 30
    progress(2 * 10**9)
    assert re.fullmatch(r"loading org/policy: 2.0 of 8.0 GB · ETA 9\d s\n", capsys.readouterr().out)


def loads_as_transformers(folder: Path, names: tuple[str, ...]) -> None:
    begin()
    for name, dtype in [(name, dtype) for name in names for dtype in DTYPES]:
        args = arguments(dtype=dtype)
        plain = AutoModelForCausalLM.from_pretrained(folder / name, dtype=DTYPES[dtype])
        expected = weights_of(plain)
        check_same(load_causal_lm(str(folder / name), "--actor_model", DTYPES[dtype]), expected)
        with arriving(engine_config(args, frozen=True)):
            model = load_causal_lm(str(folder / name), "--actor_model", DTYPES[dtype])
        whole_ones = [parameter for parameter in model.parameters() if not is_partitioned(parameter)]
        assert len(whole_ones) <= 2 * ("tied" in name or name in ("gpt2", "opt_projected", "gemma3_vision")), name
        assert model.generation_config.to_dict() == plain.generation_config.to_dict()
        assert model.name_or_path == model.config.name_or_path == str(folder / name)
        second = copy_of(model, engine_config(args))
        assert not {id(p) for p in model.parameters()} & {id(p) for p in second.parameters()}
        for one in (model, second):
            check_same(one, expected)
            place(one, engine_config(args))
            assert all(map(is_partitioned, one.parameters()))
            check_same(one, expected)


def test_partitioned_while_read(tmp_path: Path) -> None:
    """Renamed, split and stacked tensors, tied ones, buffers and towers, in both types, on two ranks."""
    for name in EVERY[:-1]:
        make(name, tmp_path / name)
    both = Qwen3_5Config(  # of which the text's model is loaded, by a configuration of its own
        text_config=SIZES | {"layer_types": ["full_attention"] * 2, "pad_token_id": 0, "eos_token_id": 2},
        vision_config={"depth": 1, "hidden_size": 16, "num_heads": 2, "out_hidden_size": 32, "intermediate_size": 32},
    )
    random_model(AutoModelForImageTextToText, both).save_pretrained(tmp_path / EVERY[-1])
    tokenizer().save_pretrained(tmp_path / EVERY[-1])
    result = run_function(loads_as_transformers, tmp_path, EVERY, ranks=2)
    assert result.code == 0, result.stderr


def loads_alike(folder: Path) -> None:
    begin()
    loaders: dict[str, Callable[[], nn.Module]] = {
        "adapters": lambda: load_causal_lm(str(folder / "adapters"), ""),
        "adapters and modules": lambda: load_causal_lm(str(folder / "modules"), ""),
        "DoRA": lambda: load_causal_lm(str(folder / "dora"), ""),
        "start of stage 2": lambda: new_score_model(str(folder / "gpt2"), ""),
        "label": lambda: Objective("a", "reward", str(folder / "classifier"), "2").load_model().module,
        "Safe RLHF": lambda: Objective("a", "reward", str(folder / "safe")).load_model().module,
        "LoRA": lambda: with_adapters(load_causal_lm(str(folder / "gpt2"), ""), arguments(lora_dim=2)),
    }
    for name, load in loaders.items():
        torch.manual_seed(0)
        expected = weights_of(load())
        torch.manual_seed(0)
        with arriving(engine_config(arguments())):
            model = load()
        assert any(map(is_partitioned, model.parameters())) == (name not in ("adapters and modules", "DoRA")), name
        check_same(model, expected)
    numbers = [Objective("a", "reward", str(folder / "safe")).load_model() for _ in range(2)]
    assert (numbers[0].slope, numbers[0].offset) == (numbers[1].slope, numbers[1].offset) != (1.0, 0.0)


def test_all_that_is_loaded_is_the_same(workshop: Workshop, tmp_path: Path) -> None:
    """Adapters merged into their base, a new head, one label of several, statistics, LoRA: partitioned and whole."""
    base = make("gpt2", tmp_path / "gpt2")
    adapters = {"r": 2, "target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True, "init_lora_weights": False}
    for name, more in {"adapters": {}, "modules": {"modules_to_save": ["lm_head"]}, "dora": {"use_dora": True}}.items():
        config = LoraConfig(**adapters, **more)
        torch.manual_seed(1)
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
        model.save_pretrained(tmp_path / name)
    make_classifier(row_of("llama"), tmp_path / "classifier", labels=3)
    safe_rlhf_model(workshop.base, tmp_path / "safe", "reward", FULL)
    result = run_function(loads_alike, tmp_path, ranks=2)
    assert result.code == 0, result.stderr


def reads_once(policy: str, score: str) -> None:
    begin()
    read, original = [], StoredTensor.__getitem__

    def counted(tensor: StoredTensor, everything: Any) -> torch.Tensor:
        if tensor.is_read and tensor.shape.numel() > arrival.SMALL:
            read.append(tensor.name)
        return original(tensor, everything)

    StoredTensor.__getitem__ = counted
    args, objective = arguments(), Objective("a", "reward", score, scale=2.0)
    (scorer,) = make_scorers([objective], args, load_tokenizer(policy, ""), with_critics=[objective.name])
    with arriving(engine_config(args, frozen=True)):
        reference = load_causal_lm(policy, "")
    copy_of(reference, engine_config(args))
    (critic,) = critic_modules(reference, args, [objective.name], [objective], [scorer])
    stored = [tensor_shapes(find_tensors(path, "")) for path in (policy, score)]
    large = [name for shapes in stored for name, shape in shapes.items() if math.prod(shape) > arrival.SMALL]
    assert sorted(read) == (sorted(large) if is_main() else [])
    assert scorer.starts_critics and not scorer.critic_starts
    own = [parameter for name, parameter in weights_of(scorer.engine.module).items() if name.startswith("trunk.")]
    check = [parameter for name, parameter in weights_of(critic).items() if name.startswith("trunk.")]
    assert len(own) == len(check) and all(map(torch.equal, own, check))


def test_what_shares_weights_is_read_once(workshop: Workshop) -> None:
    """Policy and reference, score model and critic: each tensor by the main rank, once."""
    result = run_function(reads_once, str(workshop.base), str(workshop.reward), ranks=2)
    assert result.code == 0, result.stderr


def test_one_file_of_all_comes_before_an_index(tmp_path: Path) -> None:
    """As in transformers: an index that an earlier export has left there says nothing."""
    folder = make("llama", tmp_path / "llama")
    (folder / INDEX).write_text('{"weight_map": {"lm_head.weight": "model-00001-of-00001.safetensors"}}')
    check_same(load_causal_lm(str(folder), ""), weights_of(AutoModelForCausalLM.from_pretrained(folder)))
