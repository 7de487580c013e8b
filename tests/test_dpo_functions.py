"""The pure parts of step3_dpo: losses and margins by hand, pairs that objectives share, RACO's inner problem."""

import argparse
import itertools
import math
import random

import pytest
import torch

from step3_dpo import losses
from step3_dpo.batches import collate
from step3_dpo.objectives import named_data, split_label
from step3_dpo.pairs import LabelledPair, MeasuredPair, conflicts, merged, shared_prefix
from utils.combining.raco import norm_of, raco_coefficients, worst_mixture
from utils.data.batching import length_grouped_steps
from utils.data.encoding import Encoded
from utils.data.prompt_pairs import PromptPair
from utils.data.records import Pair

# --- losses


def test_differences_are_sums_over_the_tokens_that_count() -> None:
    log_probs = torch.tensor([[-1.0, -2.0, -9.0], [-3.0, -0.5, -0.25], [-1.0, -1.0, -1.0], [-9.0, -2.0, -4.0]])
    mask = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0], [0.0, 1.0, 1.0], [0.0, 1.0, 0.0]])
    found = losses.log_prob_differences(log_probs, mask)
    assert found.dtype == torch.float64 and found.tolist() == [-3.0 + 3.75, -2.0 + 2.0]


def test_the_implicit_margin_and_loss_by_hand() -> None:
    """β (log π/π₀(chosen) − log π/π₀(rejected)): 0.5·(4 − 1) of the first pair, the other order for objective 2."""
    labels = torch.tensor([[1.0, 0.0], [-1.0, 1.0]], dtype=torch.float64)
    beta = torch.tensor([0.5, 2.0], dtype=torch.float64)
    margins = losses.pair_logits(torch.tensor([4.0, 0.0]).double(), torch.tensor([1.0, 0.5]).double(), beta, labels)
    assert margins.tolist() == [[1.5, 0.0], [-6.0, -1.0]]
    found = losses.preference_losses(margins, labels, totals=torch.tensor([4.0, 2.0]).double())
    expected = [math.log(1 + math.exp(-1.5)) / 4, (math.log(1 + math.exp(6)) + math.log(1 + math.e)) / 2]
    assert found.tolist() == pytest.approx(expected)
    figures = losses.pair_figures(margins, margins, labels).sum(dim=1)
    assert figures[0].tolist() == pytest.approx([expected[0] * 4, 1.0, 1.5, 1.0])
    assert figures[1].tolist() == pytest.approx([expected[1] * 2, 0.0, -7.0, 2.0])


def test_modpo_by_hand() -> None:
    """(βΔ − w m) / w_k, its signs those of the label; with w_k = 1 and no margin the very same numbers."""
    margins, labels = torch.tensor([[1.5, -2.0]]).double(), torch.tensor([[1.0, -1.0]]).double()
    found = losses.modpo_logits(margins, 2.0, torch.tensor([0.5, 0.25]).double(), labels)
    assert found.tolist() == [[2.5, -3.75]]
    assert torch.equal(losses.modpo_logits(margins, 1.0, torch.zeros(2).double(), labels), margins)


# --- pairs


def pair(prompt: str, chosen: str, rejected: str) -> Pair:
    return Pair([{"role": "user", "content": prompt}], chosen, rejected, None, None, f"f:{chosen}{rejected}")


def test_a_pair_that_two_objectives_label_is_one() -> None:
    first = [pair("p", "a", "b"), pair("p", "c", "d"), pair("q", "a", "b"), pair("p", "a", "b")]
    second = [pair("p", "b", "a"), pair("q", "a", "b"), pair("r", "a", "b")]
    found = merged([first, second])
    labels = [(r.messages[0]["content"], r.first, r.second, r.labels) for r in found]
    assert labels == [
        ("p", "a", "b", (1, -1)), ("p", "c", "d", (1, 0)), ("q", "a", "b", (1, 1)),
        ("p", "a", "b", (1, 0)),  # once more in the first objective's data
        ("r", "a", "b", (0, 1)),
    ]  # fmt: skip
    assert conflicts(found, ["x", "y"]) == {"x, y": {"pairs": 2, "opposite": 1}}
    assert conflicts(found[3:], ["x", "y"]) == {}


def test_prompt_pairs_are_labelled_too() -> None:
    messages = [[{"role": "user", "content": text}] for text in ("in caps", "in prose")]
    one = PromptPair(messages[0], messages[1], "YES", "chosen", "f:1")
    (found,) = merged([[], [one]])
    assert found.labels == (0, 1) and found.prompts == messages and found.sequences == 2


def encoded(prompt: list[int], *responses: list[int], labels: tuple[int, ...] = (1,)) -> Encoded:
    record = LabelledPair([{"role": "user", "content": "p"}], "a", "b", labels, "f:1")
    return Encoded(record, prompt, responses)


def test_the_shared_beginning_of_replies_counts_nothing() -> None:
    examples = [encoded([5, 6], [1, 2, 3], [1, 2, 4, 3]), encoded([7], [3], [8, 3])]
    assert [shared_prefix(example) for example in examples] == [2, 0]
    batch = collate(examples, pad_id=0)
    assert batch.input_ids.tolist() == [
        [5, 6, 1, 2, 3, 0], [5, 6, 1, 2, 4, 3], [0, 7, 3, 0, 0, 0], [0, 7, 8, 3, 0, 0],
    ]  # fmt: skip
    assert batch.attention_mask.tolist() == [
        [1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1], [0, 1, 1, 0, 0, 0], [0, 1, 1, 1, 0, 0],
    ]  # fmt: skip
    assert batch.mask.tolist() == [[0, 0, 1, 0], [0, 0, 1, 1], [1, 0, 0, 0], [1, 1, 0, 0]]  # EOS counts
    assert batch.labels.tolist() == [[1.0, 1.0]]
    # Whatever the policy says of what is shared, margin and gradient are the same, exactly.
    log_probs = -torch.rand(4, 4)
    log_probs.requires_grad_()
    losses.log_prob_differences(log_probs, batch.mask)[0].backward()
    assert log_probs.grad[:2, :2].abs().max() == 0
    other = log_probs.detach().clone()
    other[:2, :2] = -100.0
    assert torch.equal(*(losses.log_prob_differences(each, batch.mask) for each in (log_probs.detach(), other)))


@pytest.mark.parametrize(("text", "data", "label"), [
    ("x.jsonl", "x.jsonl", "better"), ("x.jsonl:0.5", "x.jsonl:0.5", "better"),
    ("x.jsonl:0.5:safer", "x.jsonl:0.5", "safer"), ("x.jsonl,y.jsonl:safer", "x.jsonl,y.jsonl", "safer"),
    ("x.jsonl:0.5,y.jsonl", "x.jsonl:0.5,y.jsonl", "better"),
    ("x.jsonl:0.5,y.jsonl:0.1:safer", "x.jsonl:0.5,y.jsonl:0.1", "safer"),
    ("x.jsonl:prompt_pairs", "x.jsonl", "prompt_pairs"), ("x.jsonl:rating/clarity", "x.jsonl", "rating/clarity"),
    ("owner/name@train:rating/clarity:1:5", "owner/name@train", "rating/clarity:1:5"),
    ("x.jsonl:wittier", None, "no label"), ("x.jsonl:rating/", None, "is not NAME"),
    ("x.jsonl:rating/a:5:1", None, "low below high"),
])  # fmt: skip
def test_an_objective_on_the_command_line(text: str, data: str | None, label: str) -> None:
    if data is not None:
        assert named_data(f"a={text}") == ("a", text) and split_label(text) == (data, label)
    else:
        with pytest.raises(argparse.ArgumentTypeError, match=label):
            named_data(f"a={text}")


# --- steps


def test_every_step_has_its_share_of_every_group() -> None:
    """Where the pairs of one objective are short and those of another long, too."""
    lengths, groups = [*range(40), *range(1000, 1024)], ["short"] * 40 + ["long"] * 24
    steps = length_grouped_steps(lengths, 8, seed=3, epoch=1, groups=groups)
    assert sorted(i for step in steps for i in step) == list(range(64))
    assert {sum(groups[i] == "long" for i in step) for step in steps} == {3}
    alike = length_grouped_steps(lengths, 8, seed=3, epoch=1, groups=["one"] * 64)
    assert alike == length_grouped_steps(lengths, 8, seed=3, epoch=1)
    apart = [{groups[i] for i in step} for step in alike]
    assert sum(len(found) == 1 for found in apart) >= 7, "without groups lengths alone would part them"


def test_what_is_there_again_says_nothing() -> None:
    known = MeasuredPair(**vars(encoded([5], [1], [2], labels=(1, -1))), reference=0.5)
    batch = collate([known, known.again()], pad_id=0)
    assert batch.labels.tolist() == [[1.0, 0.0], [-1.0, 0.0]]


# --- RACO


def random_gram(count: int, seed: int) -> torch.Tensor:
    """Of gradients whose lengths are up to a thousand times another's."""
    generator = torch.Generator().manual_seed(seed)
    gradients = torch.randn(count, 6, generator=generator, dtype=torch.float64)
    lengths = torch.tensor([10.0 ** random.Random(seed + i).uniform(-1.5, 1.5) for i in range(count)])
    gradients *= lengths[:, None]
    return gradients @ gradients.T


def random_weights(count: int, seed: int) -> torch.Tensor:
    return torch.softmax(torch.randn(count, generator=torch.Generator().manual_seed(seed + 99)).double(), dim=0)


def objective(gram: torch.Tensor, weights: torch.Tensor, c: float, p: torch.Tensor) -> float:
    return (p @ gram @ weights + c * norm_of(gram, weights) * norm_of(gram, p)).item()


@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize("seed", range(4))
def test_raco_inner_problem_is_no_worse_than_any_point_of_a_grid(count: int, seed: int) -> None:
    gram, weights, c = random_gram(count, seed), random_weights(count, seed), 0.4
    found = worst_mixture(gram, weights, c)
    assert found.min() >= 0 and found.sum() == pytest.approx(1)
    parts = {2: 2000, 3: 100, 4: 30}[count]
    grid = (p for p in itertools.product(range(parts + 1), repeat=count) if sum(p) == parts)
    best = min(objective(gram, weights, c, torch.tensor(p).double() / parts) for p in grid)
    scale = gram.diagonal().max().item()
    assert objective(gram, weights, c, found) <= best + 1e-7 * scale


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_raco_never_corrects_by_more_than_a_weight_and_with_c_0_not_at_all(count: int) -> None:
    for seed in range(10):
        gram, weights = random_gram(count, seed), random_weights(count, seed)
        assert torch.equal(raco_coefficients(gram, weights, 0.0), weights)
        correction = raco_coefficients(gram, weights, 0.4) - weights
        assert (correction >= 0).all()
        assert norm_of(gram, correction) == pytest.approx(0.4 * norm_of(gram, weights).item(), rel=1e-6)
        # Along a p between 0 and both p* and the weights, elementwise: one factor makes it of the correction.
        upper = torch.minimum(worst_mixture(gram, weights, 0.4), weights)
        factor = (correction / upper.clamp(min=1e-9)).max()
        assert (correction / factor <= weights + 1e-9).all()


def test_raco_by_hand() -> None:
    """Opposite gradients of length 1 and 3, equal weights: g₀ = −1, p* = (0, 1), clipped to (0, ½), d = −1 − 0.4."""
    gram = torch.tensor([[1.0, -3.0], [-3.0, 9.0]]).double()
    found = raco_coefficients(gram, torch.tensor([0.5, 0.5]).double(), 0.4)
    # pᵀGw + c‖g₀‖‖G_p‖ is (1 − 4t)(−1) + 0.4 |1 − 4t| with t the weight of the second: least at t = 0, −1 + 0.4.
    assert found.tolist() == pytest.approx([0.5 + 0.4, 0.5], abs=1e-6)


def test_raco_of_gradients_that_are_zero() -> None:
    gram = torch.tensor([[4.0, 0.0], [0.0, 0.0]]).double()
    found = raco_coefficients(gram, torch.tensor([0.5, 0.5]), 0.4)
    assert found[1] == 0 and found[0] > 0.5
    assert raco_coefficients(torch.zeros(2, 2), torch.tensor([0.5, 0.5]), 0.4).tolist() == [0, 0]


def test_the_loss_of_logits_by_hand() -> None:
    logits = torch.tensor([[-40.0, -1.0, 0.0, 2.0, 40.0]]).double()
    found = losses.preference_losses(logits, torch.ones_like(logits), torch.tensor([5.0]).double())
    expected = 40 + math.log(1 + math.e) + math.log(2) + math.log(1 + math.exp(-2))
    assert found.item() == pytest.approx(expected / 5)
