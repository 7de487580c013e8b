"""How a policy orders held-out pairs."""

import argparse
from typing import Any

import torch

from step3_dpo.batches import collate, differences, measured
from step3_dpo.pairs import MeasuredPair
from step3_dpo.policy import PairPolicy
from step3_dpo.update import FIGURES, PairLosses
from utils.combining.algorithm import Algorithm
from utils.supervised.intervals import proportion
from utils.supervised.steps import per_example


def pair_table(
    policy: PairPolicy, losses: PairLosses, examples: list[MeasuredPair], args: argparse.Namespace
) -> torch.Tensor:
    """`pair_figures` of every pair alone; [n, m, 4] float64 on the CPU of every rank."""

    def measure(part: list[MeasuredPair]) -> torch.Tensor:
        batch = measured(collate(part, policy.pad_id), policy.reference)
        found = differences(policy.forward, batch)
        figures = losses.each(found, batch)  # [m, b, 4]
        return figures.transpose(0, 1).flatten(1)

    table = per_example(policy.engine, examples, args.per_device_eval_batch_size, measure)
    return table[:, :-1].view(len(examples), len(losses.names), len(FIGURES) + 1)


def validation_figures(
    policy: PairPolicy,
    losses: PairLosses,
    examples: list[MeasuredPair],
    algorithm: Algorithm,
    args: argparse.Namespace,
) -> dict[str, float]:
    """Means over each objective's pairs; "loss", which chooses the best epoch, is the mean over optimized objectives,
    by the preference where the method reads one."""
    found = losses.named(pair_table(policy, losses, examples, args).sum(dim=0))
    names = [losses.names[i] for i in losses.optimized]
    weights = algorithm.setting.preference.tolist() if len(names) == len(algorithm.setting.names) else [1.0]
    loss = sum(weight * found[f"loss/{name}"] for weight, name in zip(weights, names, strict=True))
    return {"loss": loss, **found}


def evaluate(
    policy: PairPolicy, losses: PairLosses, examples: list[MeasuredPair], args: argparse.Namespace
) -> dict[str, Any]:
    """The figures of the exported policy for evaluation.json, by objective; accuracy with its 95% interval."""
    table = pair_table(policy, losses, examples, args)
    found = {}
    for i, name in enumerate(losses.names):
        own = table[table[:, i, -1] > 0, i]
        loss, accuracy, margin, _ = own.unbind(dim=-1)
        found[name] = {
            "loss": loss.mean().item(),
            "accuracy": proportion(accuracy.numpy()),
            "margin": margin.mean().item(),
        }
    return found


def evaluation_lines(evaluation: dict[str, Any]) -> list[str]:
    """The same for people."""
    lines = []
    for name, figures in evaluation.items():
        accuracy, (low, high) = figures["accuracy"], figures["accuracy"]["ci95"]
        lines.append(
            f"{name}: orders {accuracy['mean']:.1%} [{low:.1%}, {high:.1%}] of {accuracy['count']} held-out pairs"
            f" right · loss {figures['loss']:.4f} · implicit margin {figures['margin']:.4g}"
        )
    return lines
