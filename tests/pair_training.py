"""Runs of step3_dpo on few pairs, and the same steps in plain torch, from texts to weights."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import logsigmoid
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.helpers import Workshop, flags
from utils.data.batching import length_grouped_steps

STEP3_DPO = "step3_dpo/main.py"
NAMES = ("helpfulness", "harmlessness")
STEPS, PAIRS_A_STEP = 3, 8
BETA, RATE, EPS = 0.3, 3e-3, 1e-4  # a small ε lets AdamW magnify rounding where a gradient is almost 0


@dataclass(frozen=True)
class Labelled:
    """A pair as a test knows it: two replies, and which of them each objective prefers (1, -1, or 0)."""

    prompt: str
    first: str
    second: str
    labels: tuple[int, int]


def make_pairs(count: int, offset: int = 0) -> list[Labelled]:
    """Pairs that both objectives label alike or in opposite order, or only one of them; replies that begin alike."""
    labels = [(1, 1), (1, -1), (1, 0), (0, 1)]
    words = "bake bread fix bikes wait for friends open letters track dogs".split()
    pairs = []
    for i in range(offset, offset + count):
        word, other = words[i % len(words)], words[(3 * i + 1) % len(words)]
        first = f"To {word} {i}, first {other}." + " Then wait." * (i % 3)
        second = f"To {word} {i}, do not." if i % 4 else f"Sorry, no {other}."
        pairs.append(Labelled(f"How can I {word} number {i}?", first, second, labels[i % 4]))
    return pairs


def write_pairs(folder: Path, name: str, pairs: list[Labelled]) -> list[str]:
    """NAME=DATA of each objective, in a file of its own."""
    specs = []
    for i, objective in enumerate(NAMES):
        rows = []
        for pair in pairs:
            if pair.labels[i]:
                order = (pair.first, pair.second)[:: pair.labels[i]]
                rows.append({"prompt": pair.prompt, "chosen": order[0], "rejected": order[1]})
        path = folder / f"{name}_{objective}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        specs.append(f"{objective}={path}")
    return specs


def pair_flags(workshop: Workshop, folder: Path, name: str, **changes: Any) -> list[str]:
    """A small complete run into `folder/name`: three steps on 24 pairs; `changes` as in `flags`."""
    folder.mkdir(exist_ok=True)
    train, held_out = make_pairs(STEPS * PAIRS_A_STEP), make_pairs(8, offset=50)
    return flags(**{
        "actor_model": workshop.base, "objective": tuple(write_pairs(folder, "train", train)),
        "validation_objective": tuple(write_pairs(folder, "held_out", held_out)), "beta": BETA, "max_length": 96,
        "per_device_train_batch_size": PAIRS_A_STEP, "learning_rate": RATE, "adam_eps": EPS,
        "lr_scheduler_type": "constant", "max_grad_norm": 1000, "num_warmup_steps": 0, "export": "last",
        "print_interval": 1,
        "output_dir": folder / name,
    } | changes)  # fmt: skip


# --- the same in plain torch


def encode(tokenizer: Any, pair: Labelled) -> tuple[list[int], list[int], list[int]]:
    """Ids of the prompt and of both replies, each with what ends it."""
    turns = [{"role": "user", "content": pair.prompt}]
    prompt = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    ids = [tokenizer(prompt, add_special_tokens=False)["input_ids"]]
    for reply in (pair.first, pair.second):
        answered = [*turns, {"role": "assistant", "content": reply}]
        whole = tokenizer.apply_chat_template(answered, tokenize=False)
        ids.append(tokenizer(whole[len(prompt) :].rstrip(), add_special_tokens=False)["input_ids"])
        assert ids[-1][-1] == tokenizer.eos_token_id
    return tuple(ids)


def log_prob(model: Any, prompt: list[int], reply: list[int]) -> torch.Tensor:
    """Σ log π over all tokens of a reply, one sequence at a time, without padding."""
    logits = model(input_ids=torch.tensor([prompt + reply])).logits[0]
    predicted = logits[len(prompt) - 1 : -1].log_softmax(dim=-1)
    return predicted.gather(-1, torch.tensor(reply)[:, None]).sum()


def step_losses(model: Any, encoded: list, references: list[float], pairs: list[Labelled]) -> list[torch.Tensor]:
    """The mean DPO loss of each objective over its own pairs of a step."""
    losses: list[list[torch.Tensor]] = [[], []]
    for (prompt, first, second), reference, pair in zip(encoded, references, pairs, strict=True):
        margin = log_prob(model, prompt, first) - log_prob(model, prompt, second) - reference
        for i, label in enumerate(pair.labels):
            if label:
                losses[i].append(-logsigmoid(BETA * label * margin))
    return [torch.stack(own).mean() for own in losses]


def expected_run(
    base: Path, scope: str, coefficients: Any, loss: Any = None
) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    """Weights after three steps, and losses and coefficients of each.

    Args:
        scope: "last_layer" or "full".
        coefficients: Gram matrix [2, 2] -> [2], in plain Python.
    """
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base)
    # In the order in which the files of the objectives have them.
    pairs = sorted(make_pairs(STEPS * PAIRS_A_STEP), key=lambda pair: pair.labels[0] == 0)
    encoded = [encode(tokenizer, pair) for pair in pairs]
    with torch.no_grad():
        references = [
            (log_prob(model, prompt, first) - log_prob(model, prompt, second)).item()
            for prompt, first, second in encoded
        ]
    lengths = [len(prompt) + max(len(first), len(second)) for prompt, first, second in encoded]
    optimizer = torch.optim.AdamW(model.parameters(), RATE, betas=(0.9, 0.95), eps=EPS, weight_decay=0.0)
    compared = [model.get_output_embeddings().weight] if scope == "last_layer" else list(model.parameters())
    logged = []
    groups = [tuple(map(bool, pair.labels)) for pair in pairs]  # every step has pairs of both objectives
    for indices in length_grouped_steps(lengths, PAIRS_A_STEP, 42, 1, groups):
        part = [[each[i] for i in indices] for each in (encoded, references, pairs)]
        losses = step_losses(model, *part)
        gradients = [
            torch.cat([g.flatten() for g in torch.autograd.grad(each, compared, retain_graph=True)]) for each in losses
        ]
        gram = [[float(a.double() @ b.double()) for b in gradients] for a in gradients]
        weights = coefficients(gram)
        optimizer.zero_grad()
        sum(w * each for w, each in zip(weights, losses, strict=True)).backward()
        optimizer.step()
        logged.append({"losses": [each.item() for each in losses], "coefficients": weights, "gram": gram})
    return {name: weight.detach() for name, weight in model.state_dict().items()}, logged


def gapo(gram: list[list[float]]) -> list[float]:
    """α of the shortest mixture of unit gradients over the norms; of two, both are ½."""
    return [0.5 / math.sqrt(gram[i][i]) for i in range(2)]


def p_gapo(gram: list[list[float]]) -> list[float]:
    return [w / math.sqrt(gram[i][i]) for i, w in enumerate((0.7, 0.3))]


def mgda(gram: list[list[float]]) -> list[float]:
    (a, c), (_, b) = gram
    first = min(max((b - c) / (a + b - 2 * c), 0.0), 1.0)
    return [first, 1 - first]


def fixed(gram: list[list[float]]) -> list[float]:
    return [0.7, 0.3]


def raco(gram: list[list[float]]) -> list[float]:
    """With c = 0.4, p* from a fine grid."""
    w, c = (0.7, 0.3), 0.4
    product = lambda u, v: sum(u[i] * gram[i][j] * v[j] for i in range(2) for j in range(2))
    norm = lambda u: math.sqrt(product(u, u))
    grid = [(k / 100000, 1 - k / 100000) for k in range(100001)]
    worst = min(grid, key=lambda p: product(p, w) + c * norm(w) * norm(p))
    clipped = [min(p, own) for p, own in zip(worst, w, strict=True)]
    return [own + c * norm(w) / norm(clipped) * p for own, p in zip(w, clipped, strict=True)]


def expected_modpo(
    base: Path, aligned: Path, weights: dict[str, float], beta_of_margin: float
) -> tuple[dict[str, torch.Tensor], list[float]]:
    """Weights after three steps of MODPO on helpfulness, and its losses; margins of `aligned` and of the length."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    model, margin_model = (AutoModelForCausalLM.from_pretrained(path) for path in (base, aligned))
    pairs = [pair for pair in make_pairs(STEPS * PAIRS_A_STEP) if pair.labels[0]]
    encoded = [encode(tokenizer, pair) for pair in pairs]
    difference = lambda policy, ids: log_prob(policy, ids[0], ids[1]) - log_prob(policy, ids[0], ids[2])
    with torch.no_grad():
        references = [difference(model, ids).item() for ids in encoded]
        margins = []
        for ids, pair, reference in zip(encoded, pairs, references, strict=True):
            implicit = beta_of_margin * (difference(margin_model, ids).item() - reference)
            shorter = -0.1 * (len(pair.first) - len(pair.second))
            margins.append(weights["harmlessness"] * implicit + weights["short"] * shorter)
    lengths = [len(prompt) + max(len(first), len(second)) for prompt, first, second in encoded]
    optimizer = torch.optim.AdamW(model.parameters(), RATE, betas=(0.9, 0.95), eps=EPS, weight_decay=0.0)
    logged = []
    for indices in length_grouped_steps(lengths, PAIRS_A_STEP, 42, 1, groups=[0] * len(pairs)):
        losses = []
        for i in indices:
            delta = difference(model, encoded[i]) - references[i]
            losses.append(-logsigmoid((BETA * delta - margins[i]) / weights["helpfulness"] * pairs[i].labels[0]))
        loss = torch.stack(losses).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        logged.append(loss.item())
    return {name: weight.detach() for name, weight in model.state_dict().items()}, logged
