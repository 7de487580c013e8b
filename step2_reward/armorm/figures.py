"""What is to be known of attributes and gate on held-out data: numbers, lines for people, pictures."""

import argparse
from pathlib import Path
from typing import Any

import numpy
import torch
from matplotlib import pyplot

from step2_reward import calibration, regression
from step2_reward.armorm.attributes import Fitted
from step2_reward.armorm.gate import GateExample, GateTraining, compare, fixed_weights
from utils.process.distributed import device
from utils.process.rank_watch import beat


def evaluate(
    args: argparse.Namespace,
    training: GateTraining,
    pairs: list[GateExample],
    held_out: list[GateExample],
    fitted: Fitted,
    transform: numpy.ndarray,
) -> dict[str, Any]:
    """Of the attributes, figures on the replies that chose α; of the gate, accuracies on held-out pairs.

    The same on every rank. What the gate is compared with is chosen on the training pairs.
    """
    names, found = fitted.attributes.names, fitted.regression
    predicted, attributes = fitted.in_data_units(found.predicted), {}
    for column, name in enumerate(names):
        there = found.held_out & ~numpy.isnan(fitted.ratings[:, column])
        beat("figures of the attributes")
        if there.sum() > 1:
            figures = regression.figures(predicted[there, column], fitted.ratings[there, column], args.seed)
            attributes[name] = {"alpha": float(found.alphas[column]), **figures}
    train, test = (torch.stack([each.rewards for each in part]).double().numpy() for part in (pairs, held_out))
    differences = train[:, 0] - train[:, 1]  # [n, m]
    best = int((numpy.sign(differences).sum(axis=0)).argmax())
    gated = training.table(held_out)
    weights = training.table(held_out, lambda batch: gate_weights(training, batch))
    return {
        "objective": args.objective,
        "kind": "armorm",
        "pairs": len(held_out),
        "attributes": attributes,
        "gate": compare(gated, test, best, fixed_weights(differences), names, args.seed),
        "weights": {name: spread(weights[:, column]) for column, name in enumerate(names)},
        "transform": transform.tolist(),
    }


def gate_weights(training: GateTraining, examples: list[GateExample]) -> torch.Tensor:
    """The gate's weights of the attributes; [b, m]."""
    states = torch.stack([example.prompt_state for example in examples]).to(device())
    return training.weights(states)


def spread(values: numpy.ndarray) -> dict[str, float]:
    """Mean, and 5th, 25th, 50th, 75th and 95th percentiles."""
    named = zip(("5%", "25%", "50%", "75%", "95%"), numpy.percentile(values, (5, 25, 50, 75, 95)), strict=True)
    return {"mean": float(values.mean())} | {name: float(value) for name, value in named}


def lines(evaluation: dict[str, Any]) -> list[str]:
    """The figures for people."""
    gate = evaluation["gate"]
    best = gate["best_attribute"]
    found = ["attributes, on the replies held out to choose the regularization:"]
    found += regression.table_lines(evaluation["attributes"])
    found.append(calibration.figure_line("pairwise accuracy of the gated score", gate["accuracy"]))
    found.append(calibration.figure_line("of the best fixed weights", gate["fixed_weights"]))
    found.append(calibration.figure_line(f"of the best attribute alone, {best['name']}", best))
    for name, words in (("fixed_weights", "fixed weights"), ("best_attribute", "the best attribute")):
        less = gate["gate_less"][name]
        low, high = less["ci95"]
        found.append(f"gate less {words}: {less['mean']:+.3f} (95% interval {low:+.3f} to {high:+.3f})")
    return found


def plot(evaluation: dict[str, Any], folder: Path) -> None:
    """calibration.png of the attributes, gate.png: weights over held-out prompts, accuracies."""
    regression.plot(evaluation["attributes"], folder / "calibration.png")
    plot_gate(evaluation, folder / "gate.png")


@pyplot.rc_context({"text.parse_math": False})  # names may hold anything
def plot_gate(evaluation: dict[str, Any], path: Path) -> None:
    """The weights, a box an attribute from the quartiles with whiskers to 5% and 95%; accuracies beside them."""
    gate, weights = evaluation["gate"], evaluation["weights"]
    names = list(weights)
    height = 0.34 * len(names) + 1.6
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, height), dpi=120, sharey=False)
    boxes = [{"med": w["50%"], "q1": w["25%"], "q3": w["75%"], "whislo": w["5%"], "whishi": w["95%"], "label": name}
             for name, w in weights.items()]  # fmt: skip
    left.bxp(boxes, orientation="horizontal", showfliers=False)
    left.invert_yaxis()
    left.set_xlabel("weight of the gate, over held-out prompts")
    rows = {"gated score": gate["accuracy"], "best fixed weights": gate["fixed_weights"], **gate["attributes"]}
    for number, figures in enumerate(rows.values()):
        low, high = figures["ci95"]
        color = "#C8102E" if number == 0 else "#444444"
        right.plot([low, high], [number, number], color=color, linewidth=1)
        right.plot(figures["mean"], number, "o", color=color, markersize=5)
    right.axvline(0.5, color="0.8", linewidth=1, zorder=0)
    right.set_yticks(range(len(rows)), list(rows))
    right.invert_yaxis()
    right.set_xlabel("accuracy on held-out pairs, with 95% intervals")
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)
