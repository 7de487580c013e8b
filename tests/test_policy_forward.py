"""Log-probabilities without all logits at once, micro-batches by tokens, parked models: same numbers, less memory."""

import contextlib
import re
import weakref
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
)

from step3_gapo.main import main
from step3_gapo.update import StepBatches
from tests.benchmarks.synthetic import Load, arguments_of, make_actor, make_experience, make_update
from tests.cases import beyond
from tests.helpers import STEP3, Workshop, distance, read_metrics, run_function, untimed
from utils.data.batching import groups_by_tokens
from utils.engines import parking
from utils.policy.forward import ChunkedLogProbs, PolicyForward
from utils.process.distributed import init_distributed, shutdown_distributed

TEMPERATURE = 0.7
MEMORY = Load(size="1m", dtype="fp32", batch=4, prompt=8, response=120)


def plain(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, actions: torch.Tensor):
    """(log-probabilities, entropy) of the textbook."""
    distribution = (nn.functional.linear(hidden, weight, bias).float() / TEMPERATURE).log_softmax(dim=-1)
    chosen = distribution.gather(-1, actions.unsqueeze(-1)).squeeze(-1)
    return chosen, -(distribution.exp() * distribution).sum(dim=-1)


# --- the output head in chunks


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("chunk_size", [1, 7, 1000])
def test_chunks_of_the_head_change_nothing(
    dtype: torch.dtype, tolerance: float, with_bias: bool, chunk_size: int
) -> None:
    torch.manual_seed(0)
    hidden = torch.randn(3, 11, 16, dtype=dtype).requires_grad_()
    weight = torch.randn(50, 16, dtype=dtype).requires_grad_()
    bias = torch.randn(50, dtype=dtype).requires_grad_() if with_bias else None
    actions, slopes = torch.randint(50, (3, 11)), torch.randn(3, 11)
    inputs = [hidden, weight] + ([bias] if with_bias else [])
    expected, expected_entropy = plain(hidden, weight, bias, actions)
    read, entropy = ChunkedLogProbs.apply(hidden, weight, bias, actions, TEMPERATURE, chunk_size, True)
    assert not entropy.requires_grad
    torch.testing.assert_close(read, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(entropy, expected_entropy.detach(), rtol=1e-5, atol=1e-5)
    for own, other in zip(*(torch.autograd.grad(x, inputs, slopes) for x in (read, expected)), strict=True):
        assert own.dtype == dtype
        torch.testing.assert_close(own, other, rtol=tolerance, atol=tolerance)


def test_a_frozen_head_gets_no_gradient_and_costs_no_memory_for_one() -> None:
    hidden, weight = torch.randn(2, 3, 4).requires_grad_(), torch.randn(9, 4)
    read, _ = ChunkedLogProbs.apply(hidden, weight, None, torch.zeros(2, 3, dtype=torch.int64), 1.0, 2, False)
    read.sum().backward()
    assert weight.grad is None and hidden.grad.abs().sum() > 0


class Bare(nn.Module):
    """What an engine is to `PolicyForward`."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.module = model

    def forward(self, **inputs: object) -> object:
        return self.module(**inputs)


SIZES = {
    "vocab_size": 40, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 8,
}  # fmt: skip


@pytest.mark.parametrize("chunk_size", [4, 0])
@pytest.mark.parametrize(
    ("model", "is_plain"),
    [
        (lambda: MistralForCausalLM(MistralConfig(**SIZES)), True),
        (lambda: Gemma2ForCausalLM(Gemma2Config(**SIZES, final_logit_softcapping=30.0)), False),
        (lambda: CohereForCausalLM(CohereConfig(**SIZES, logit_scale=1.0625)), False),
    ],
)
def test_a_model_that_caps_its_logits_is_noticed(
    model: Callable[[], PreTrainedModel], is_plain: bool, chunk_size: int, capsys: pytest.CaptureFixture
) -> None:
    """Also where tokens are all but certain, whose log-probability and entropy no cap would move."""
    torch.manual_seed(0)
    model = model().eval()
    model.get_output_embeddings().weight.data.mul_(100)
    ids, mask = torch.randint(40, (3, 9)), torch.ones(3, 9, dtype=torch.int64)
    distribution = (model(ids).logits[:, -6:-1].float() / TEMPERATURE).log_softmax(dim=-1)
    expected = distribution.gather(-1, ids[:, -5:].unsqueeze(-1)).squeeze(-1)
    forward = PolicyForward(Bare(model), TEMPERATURE, chunk_size)
    for _ in range(2):
        output = forward(ids, mask, 5)
        torch.testing.assert_close(output.log_probs, expected, rtol=1e-5, atol=1e-4)
        assert output.entropy.shape == (3, 5) and output.hidden.shape == (3, 5, 16)
    assert forward.has_plain_head is is_plain and (output.logits is None) is (is_plain and chunk_size > 0)
    assert ("caps its logits" in capsys.readouterr().out) is (chunk_size > 0 and not is_plain)
    with torch.no_grad():
        assert forward(ids, mask, 5).entropy is None


# --- through the command line


def same_run(first: Path, second: Path) -> None:
    assert distance(first, second) <= 1e-5
    for own, other in zip(*(untimed(read_metrics(folder)) for folder in (first, second)), strict=True):
        for step in (own, other):
            assert step.pop("cost/forward_passes") > 0  # one layout may spare some
        assert own == pytest.approx(other, rel=1e-3, abs=1e-5)


@pytest.fixture(scope="module")
def whole(workshop: Workshop) -> dict[int, Path]:
    """By number of ranks, a run whose logits are made at once, in micro-batches of like many sequences."""
    return {
        ranks: workshop.step3(f"whole_{ranks}", ranks, **two_epochs(ranks), logits_chunk_size=0) for ranks in (1, 2)
    }


def two_epochs(ranks: int) -> dict[str, int]:
    """Flags of steps of two micro-batches, of which half come from a policy that has moved."""
    return {"ppo_epochs": 2, "gradient_accumulation_steps": 2, "per_device_prompt_batch_size": 8 // ranks,
            "per_device_train_batch_size": 4 // ranks}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ranks", "changes"),
    [
        beyond((1, {"logits_chunk_size": 5})),
        (2, {"logits_chunk_size": 7, "zero_stage": 3}),
        beyond((2, {"micro_batch_tokens": 70, "zero_stage": 2})),
        (2, {"micro_batch_tokens": 150, "zero_stage": 3, "offload": True}),
        beyond((1, {"micro_batch_tokens": 150, "zero_stage": 1, "offload": True})),
        (1, {"micro_batch_tokens": 1, "park_frozen_models": True, "logits_chunk_size": 0}),
    ],
)
def test_the_policy_is_the_same(
    workshop: Workshop, whole: dict[int, Path], ranks: int, changes: dict[str, object]
) -> None:
    name = "_".join(map(str, changes.values())) + f"_{ranks}"
    same_run(whole[ranks], workshop.step3(name, ranks, **two_epochs(ranks), **changes))


class PeakBytes(TorchDispatchMode):
    """Counts the bytes of the storages that are alive, of those that operators make while it is active."""

    def __init__(self):
        super().__init__()
        self.alive = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in self.known:
                storage = tensor.untyped_storage()
                self.known.add(storage._cdata)
                self.alive += storage.nbytes()
                weakref.finalize(storage, self.gone, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self.alive)
        return result

    def gone(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.alive -= size


def print_peak_of_update(chunk_size: int, algorithm: str, scope: str) -> None:
    """Print the peak of the bytes that an update of the policy allocates, and those of its logits."""
    init_distributed()
    args = arguments_of(MEMORY, 1, 0)
    args.logits_chunk_size = chunk_size
    actor = make_actor(MEMORY, args)
    update = make_update(actor, args, 2, algorithm=algorithm, gradient_scope=scope)
    batches = make_experience(actor, MEMORY, args, 2)
    update.accumulate(StepBatches(batches))
    with PeakBytes() as counted:
        update.accumulate(StepBatches(batches))
    print("peak", counted.peak, "logits", 4 * actor.twin.config.vocab_size * MEMORY.batch * MEMORY.response)
    shutdown_distributed()


@pytest.mark.parametrize(("algorithm", "scope"), [("morlhf", "last_layer"), ("gapo", "last_layer"), ("gapo", "full")])
def test_the_peak_of_an_update_falls_by_more_than_the_logits(algorithm: str, scope: str) -> None:
    peaks = []
    for chunk_size in (0, 128):
        result = run_function(print_peak_of_update, chunk_size, algorithm, scope)
        assert result.code == 0, result.stderr
        peak, logits = map(int, re.search(r"peak (\d+) logits (\d+)", result.stdout).groups())
        peaks.append(peak)
    assert peaks[0] - peaks[1] >= logits


# --- micro-batches by tokens


@pytest.mark.parametrize("budget", [1, 40, 100, 10_000])
def test_groups_hold_every_sequence_once_within_the_budget(budget: int) -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 30, (57, 2), generator=generator).tolist()
    groups = groups_by_tokens(lengths, budget)
    assert sorted(index for group in groups for index in group) == list(range(57))
    for group in groups:
        width = max(lengths[i][0] for i in group) + max(lengths[i][1] for i in group)
        assert width * len(group) <= budget or len(group) == 1
    more = groups_by_tokens(lengths, budget, at_least=len(groups) + 3)
    assert len(more) == min(57, len(groups) + 3) and all(more)
    assert sorted(index for group in more for index in group) == list(range(57))
    if budget == 10_000:
        assert len(groups) == 1


# --- parked models


def run_with_empty_host(arguments: list[str]) -> None:
    """Step 3 where the host's copies of parked models are nothing but NaN, and the device has the weights."""
    device: dict[int, torch.Tensor] = {}
    seen = []

    def on_host(data: torch.Tensor) -> torch.Tensor:
        host = torch.full_like(data, float("nan")) if data.is_floating_point() else torch.zeros_like(data)
        device[host.data_ptr()] = data
        return host

    def on_device(data: torch.Tensor) -> torch.Tensor:
        seen.append(data.data_ptr())
        return device[data.data_ptr()]

    with mock.patch.object(parking, "on_host", on_host), mock.patch.object(parking, "on_device", on_device):
        with mock.patch("sys.argv", [STEP3, *arguments]):
            main()
    assert set(seen) == device.keys() and len(seen) >= 2 * len(device)  # every rollout fetches what has been parked


def test_parked_models_are_used_on_the_device_alone(workshop: Workshop, whole: dict[int, Path]) -> None:
    """Reference, reward and cost models; whoever asked one that lies on the host would see NaN."""
    changes = {"logits_chunk_size": 0, "park_frozen_models": True, "fresh": True}
    arguments = workshop.step3_flags("parked_on_nothing", **two_epochs(1), **changes)
    result = run_function(run_with_empty_host, arguments)
    assert result.code == 0, result.stderr
    same_run(whole[1], workshop.folder / "parked_on_nothing")


def test_a_model_that_fails_on_the_device_is_parked_again() -> None:
    module = nn.Linear(3, 4)
    before = [tensor.data_ptr() for tensor in module.parameters()]
    with mock.patch.object(parking, "on_device", torch.clone), contextlib.suppress(RuntimeError):
        with parking.resident(module):
            copies = [weakref.ref(tensor.data.untyped_storage()) for tensor in module.parameters()]
            assert all(tensor.data_ptr() != place for tensor, place in zip(module.parameters(), before, strict=True))
            module(torch.ones(1, 2))
    assert [tensor.data_ptr() for tensor in module.parameters()] == before
    assert not any(copy() for copy in copies)


def test_a_parked_model_is_not_copied_where_the_host_is_the_device() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    before = {name: (tensor.data_ptr(), tensor.clone()) for name, tensor in module.state_dict().items()}
    parking.park(module)
    for context in (parking.resident(module), contextlib.nullcontext()):
        with context:
            for name, tensor in module.state_dict().items():
                place, values = before[name]
                assert tensor.data_ptr() == place and torch.equal(tensor, values)
