"""Rows with the same prompt that read it together: the same numbers and gradients, from fewer tokens."""

import argparse
import dataclasses
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, Lfm2Config, PreTrainedConfig, PreTrainedModel

from tests.architectures import ARCHITECTURES, SIZES, VOCABULARY, Architecture, random_model
from tests.cases import beyond
from tests.helpers import Workshop, run_function
from tests.test_policy_forward import Bare
from tests.test_score_models import ARGS, sample
from tests.test_turn_endings import ENDINGS, make_classifier
from utils.data.batching import left_pad
from utils.models.configs import load_tokenizer
from utils.models.loading import trunk_of
from utils.models.shared_prompts import can_share, distinct_rows, read_prompts_once, shares_prompts
from utils.models.token_head import TokenHead
from utils.policy.forward import PolicyForward
from utils.process.distributed import init_distributed
from utils.scoring.objectives import Objective
from utils.scoring.scorers import beginnings, make_scorers, neighbours, score_responses

TIME, PROMPTS = 9, (20, 7, 13)
ROWS = torch.tensor([0, 1, 2, 0, 0, 2, 1, 1])  # each row's prompt: of any order, as micro-batches sort them
LENGTHS = torch.tensor([9, 3, 5, 8, 1, 2, 9, 4])
FEW = ("gpt2", "bloom", "mistral", "deepseek_v3")  # mistral: a window shorter than the sequences
CHUNKS = {"mistral": 5}  # of the output head
BY_ITSELF = "opt"  # its language models call a part of their trunk; nothing is shared then


@pytest.fixture(scope="module")
def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids and mask, [rows, prompt + response], and the mask of the responses."""
    torch.manual_seed(1)
    ids, mask = left_pad([torch.randint(3, VOCABULARY, (length,)).tolist() for length in PROMPTS], 0)
    actions = (torch.arange(TIME) < LENGTHS[:, None]).long()
    responses = torch.randint(3, VOCABULARY, actions.shape) * actions
    return torch.cat([ids[ROWS], responses], dim=1), torch.cat([mask[ROWS], actions], dim=1), actions


@contextmanager
def counted(model: nn.Module) -> Iterator[list[int]]:
    """How many tokens each pass embeds."""
    tokens: list[int] = []
    handle = model.get_input_embeddings().register_forward_hook(lambda _, inputs, __: tokens.append(inputs[0].numel()))
    yield tokens
    handle.remove()


def gradients(model: nn.Module, loss: torch.Tensor) -> torch.Tensor:
    """Of all parameters, one after another."""
    parts = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    return torch.cat([part.flatten() for part in parts if part is not None])


def check_same(run: Callable[[bool], tuple[torch.Tensor, torch.Tensor, list[int]]], shared: bool = True) -> None:
    """`run` without and with shared prompts: values, gradients and the tokens of each pass."""
    (expected, slopes, whole), (found, own, parts) = run(False), run(True)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert (own - slopes).norm() <= 1e-5 * slopes.norm()
    width = max(PROMPTS) + TIME
    assert whole == [len(ROWS) * width]
    assert parts == ([len(PROMPTS) * max(PROMPTS), len(ROWS) * TIME] if shared else whole)


def named(name: str) -> Architecture:
    return next(row for row in ARCHITECTURES if row.name == name)


def made(architecture: Architecture) -> PreTrainedModel:
    return random_model(AutoModelForCausalLM, architecture.config())


ALL = [row if row.name in FEW else beyond(row) for row in ARCHITECTURES]


@pytest.mark.parametrize("architecture", ALL, ids=lambda row: row.name)
def test_log_probs_and_their_gradients(architecture: Architecture, batch: tuple) -> None:
    ids, mask, actions = batch

    def run(shares: bool) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
        model = made(architecture)
        with counted(model) as tokens:
            output = PolicyForward(Bare(model), 0.7, CHUNKS.get(architecture.name, 0), shares)(ids, mask, TIME)
        log_probs = output.log_probs * actions
        assert output.hidden.shape[:2] == actions.shape
        return log_probs, gradients(model, (log_probs * torch.linspace(-1, 1, TIME)).sum()), tokens

    check_same(run, shared=not architecture.name.startswith(BY_ITSELF))


@pytest.mark.parametrize("architecture", ALL, ids=lambda row: row.name)
def test_values_of_states_and_scores_and_their_gradients(architecture: Architecture, batch: tuple) -> None:
    ids, mask, actions = batch

    def run(shares: bool) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
        torch.manual_seed(2)
        trunk = trunk_of(made(architecture))
        model = TokenHead(trunk, nn.Linear(made(architecture).get_output_embeddings().weight.shape[1], 2))
        model.shares_prompts = shares
        with counted(trunk) as tokens:
            values = model(ids, mask, ids.shape[1] - TIME)[:, -TIME - 1 :]
        values = torch.cat([values[:, :-1] * actions.unsqueeze(-1), values[:, 1:] * actions.unsqueeze(-1)], dim=-1)
        return values, gradients(model, (values * torch.linspace(-1, 1, TIME)[:, None]).sum()), tokens

    check_same(run)


def test_rows_that_all_differ_are_read_in_two_parts_too(batch: tuple) -> None:
    """No rank's rows decide in which order gradients come."""
    ids, mask, _ = (part[[0, 1, 2]] for part in batch)
    trunk = trunk_of(made(named("llama")))
    with counted(trunk) as tokens:
        output = read_prompts_once(trunk, max(PROMPTS), ids, mask)
    assert tokens == [3 * max(PROMPTS), 3 * TIME] and output.last_hidden_state.shape[1] == 1 + TIME
    assert "past_key_values" not in output or output["past_key_values"] is None


def test_rows_differ_by_ids_or_mask() -> None:
    ids = torch.tensor([[5, 6], [5, 7], [5, 6], [5, 6], [5, 7]])
    mask = torch.tensor([[1, 1], [1, 1], [0, 1], [1, 1], [1, 1]])
    first, which = distinct_rows(ids, mask)
    assert sorted(first.tolist()) == [0, 1, 2] and first[which].tolist() == [0, 1, 2, 0, 1]


@pytest.mark.parametrize(
    ("changes", "shares"),
    [
        ({}, True), ({"responses": None}, False), ({"responses": 1}, False),
        ({"zero_stage": 3}, False), ({"gradient_checkpointing": True}, False),
    ],
)  # fmt: skip
def test_flags_under_which_prompts_are_shared(changes: dict[str, object], shares: bool) -> None:
    args = {"responses": 4, "zero_stage": 2, "gradient_checkpointing": False} | changes
    responses = args.pop("responses")
    assert shares_prompts(argparse.Namespace(**args), made(named("llama")), responses) is shares


def test_models_whose_prompts_can_be_shared() -> None:
    for row in ARCHITECTURES:
        model = made(row)
        assert can_share(trunk_of(model)) and can_share(model) == (not row.name.startswith(BY_ITSELF)), row.name


def configured(name: str, **changes: object) -> PreTrainedConfig:
    return replace(named(name), changes=named(name).changes | changes).config()


CANNOT = {
    "recurrent": Lfm2Config(**SIZES, layer_types=["conv", "full_attention"]),
    "rotations by the length of a call": configured("llama", rope_parameters={"rope_type": "dynamic", "factor": 2.0}),
    "losses of routers": configured("mixtral", output_router_logits=True),
    "prompts that see responses": configured("gemma3_text", use_bidirectional_attention=True),
}


@pytest.mark.parametrize("what", CANNOT)
def test_models_whose_prompts_cannot_be_shared(what: str) -> None:
    assert not can_share(random_model(AutoModelForCausalLM, CANNOT[what], spread=1.0))


# --- score models with ids of their own


def score_shared_and_whole(policy: str, folders: list[str], result: str) -> None:
    """By score model, in a process: the scores of two responses to each of two prompts, and the tokens read."""
    init_distributed(60.0)
    tokenizer, found = load_tokenizer(policy, "--actor_model"), []
    one, sizes = sample(tokenizer), {"per_device_train_batch_size": 4, "zero_stage": 2}
    prompts, responses = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])
    several = dataclasses.replace(
        one, prompts=[one.prompts[i] for i in prompts], responses=[one.responses[i] for i in responses],
        input_ids=one.input_ids[prompts], attention_mask=one.attention_mask[prompts], mask=one.mask[prompts],
        finished=one.finished[responses],
    )  # fmt: skip
    for folder in folders:
        for copies in (1, 2):
            args = argparse.Namespace(**vars(ARGS) | sizes | {"responses_per_prompt": copies})
            (scorer,) = make_scorers([Objective("score", "reward", folder)], args, tokenizer, with_critics=[])
            with counted(scorer.engine.module.trunk) as tokens:
                scores = score_responses([scorer], several, args)["score"].values.tolist()
            found.append([scores, tokens])
    Path(result).write_text(json.dumps(found))


def test_scores_of_models_that_read_texts(workshop: Workshop, tmp_path: Path) -> None:
    """What begins the texts of a prompt's responses is read once, whatever its tokens are."""
    trunks = ("llama", "gpt_neox", "opt_projected")
    folders = [make_classifier(ENDINGS["chatml"], trunk, tmp_path / trunk) for trunk in trunks]
    done = run_function(score_shared_and_whole, str(workshop.base), list(map(str, folders)), str(tmp_path / "found"))
    assert done.code == 0, done.stderr
    found = json.loads((tmp_path / "found").read_text())
    for (scores, whole), (shared, parts) in zip(found[::2], found[1::2], strict=True):
        assert shared == pytest.approx(scores, abs=1e-5) and len(set(shared)) == len(shared)
        assert len(whole) == 1 and len(parts) == 2 and sum(parts) < 0.8 * sum(whole)


@pytest.mark.parametrize(
    ("rows", "sizes", "expected"),
    [
        ([[1, 2, 3, 4], [1, 2, 5], [6, 7], [6, 7, 8]], [2, 2], [2, 2, 1, 1]),  # a token is left of each
        ([[1, 2, 3, 4], [1, 2, 5], [6, 7], [7, 7, 8]], [2, 2], [0, 0, 0, 0]),
        ([[1, 2], [1, 2], [1], [1]], [2, 2], [0, 0, 0, 0]),
        ([[1, 2, 3], [1, 2, 4], [1, 2, 5, 6], [7, 8]], [3, 1], [2, 2, 2, 1]),
    ],
)
def test_what_begins_all_responses_to_a_prompt(rows: list[list[int]], sizes: list[int], expected: list[int]) -> None:
    assert beginnings(rows, sizes) == expected


def test_neighbours_are_rows_of_one_prompt() -> None:
    first, second, third = ([number] for number in (1, 1, 2))  # objects, not what they hold
    assert neighbours([first, first, second, third, third, third]) == [2, 1, 3]
