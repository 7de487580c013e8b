"""The gate: weights of the attributes that follow from the prompt, trained on pairs (ArmoRM, stage 2)."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy
import torch
from scipy import optimize
from torch import nn

from step2_reward.accuracy import ALL_PAIRS, WHOLE, accuracy_differences
from step2_reward.armorm.attributes import Fitted
from step2_reward.armorm.states import KeptStates
from step2_reward.calibration import pair_calibration, pairwise_hits
from step2_reward.losses import preference_loss
from utils.cli.types import fraction, positive_float, positive_int
from utils.data.encoding import Encoded
from utils.data.registry import preference_labels
from utils.engines.engines import Engine
from utils.process.distributed import device
from utils.scoring.armorm_format import HIDDEN, LAYERS, TEMPERATURE, GatingNetwork
from utils.supervised.intervals import proportion
from utils.supervised.steps import per_example
from utils.supervised.task import Task

# The published settings; its 2000 steps of 1024 pairs are 32 passes over the 64,000 it trains on.
GATE_DEFAULTS = {
    "num_train_epochs": 32, "per_device_train_batch_size": 1024, "learning_rate": 1e-3, "num_warmup_steps": 0,
    "adam_betas": (0.9, 0.999), "max_length": 2048,
}  # fmt: skip


@dataclass(frozen=True)
class GateExample(Encoded):
    """A pair, reduced to what the gate and its loss see of it.

    Attributes:
        prompt_state: [d], the hidden state that the gate reads.
        rewards: [2, m] of the chosen and the rejected reply, verbosity taken out.
    """

    prompt_state: torch.Tensor = field(kw_only=True)
    rewards: torch.Tensor = field(kw_only=True)

    @property
    def length(self) -> int:
        """All are alike: batches are drawn at random."""
        return 1


class GatedPairs(nn.Module):
    """The gated score Σ_k g_k r'_k of both replies of a pair."""

    def __init__(self, gating: GatingNetwork):
        super().__init__()
        self.gating = gating

    def forward(self, prompt_states: torch.Tensor, rewards: torch.Tensor) -> torch.Tensor:
        """[b, d] and [b, k, m] -> [b, k] float32."""
        return (self.gating(prompt_states)[:, None] * rewards).sum(dim=-1)


def add_gate_arguments(parser: argparse.ArgumentParser) -> None:
    """The size of the gate; the defaults are the released model's."""
    group = parser.add_argument_group("gate")
    group.add_argument(
        "--preference_label",
        choices=tuple(preference_labels()),
        default="better",
        help="which preference of --data orders a pair",
    )
    group.add_argument("--gating_hidden_dim", type=positive_int, default=HIDDEN, help="units of a hidden layer")
    group.add_argument("--gating_n_hidden", type=positive_int, default=LAYERS, help="hidden layers")
    group.add_argument(
        "--gating_temperature", type=positive_float, default=TEMPERATURE, help="divides the logits before the softmax"
    )
    group.add_argument(
        "--gating_dropout", type=fraction, default=0.2, help="share of the hidden units dropped in training"
    )


def new_gate(args: argparse.Namespace, fitted: Fitted) -> GatingNetwork:
    """The gate before training."""
    attributes, features = fitted.regression.weights.shape
    return GatingNetwork(
        features,
        attributes,
        args.gating_hidden_dim,
        args.gating_n_hidden,
        args.gating_temperature,
        args.gating_dropout,
    )


def gate_examples(kept: KeptStates, fitted: Fitted, transform: numpy.ndarray) -> list[GateExample]:
    """Pairs with the states that the gate reads, and their rewards r' = r T."""
    found = []
    for start, states in kept.states():  # [rows, 3, d]: chosen, rejected, prompt
        rewards = torch.from_numpy(fitted.rewards(states[:, :2]) @ transform).float()
        prompts = torch.from_numpy(states[:, 2].copy())  # a view would keep the whole file mapped
        for row, example in enumerate(kept.examples[start : start + len(states)]):
            whole = {"prompt_state": prompts[row], "rewards": rewards[row]}
            found.append(GateExample(example.record, example.prompt, example.responses, **whole))
    return found


class GateTraining:
    """Loss and figures of the gate in an engine of `GatedPairs`."""

    def __init__(self, engine: Engine, args: argparse.Namespace):
        self.engine, self.batch_size = engine, args.per_device_eval_batch_size

    def scores(self, examples: list[GateExample]) -> torch.Tensor:
        """Of (chosen, rejected); [b, 2] float32."""
        states = torch.stack([example.prompt_state for example in examples])
        rewards = torch.stack([example.rewards for example in examples])
        return self.engine(states.to(device()), rewards.to(device())).float()

    @torch.no_grad()
    def weights(self, prompt_states: torch.Tensor) -> torch.Tensor:
        """The gate's weights of the attributes; [b, d] -> [b, m] float32."""
        count = self.engine.module.gating.layers[-1].out_features
        ones = torch.eye(count, device=prompt_states.device).expand(len(prompt_states), -1, -1)
        return self.engine(prompt_states, ones)

    def losses(self, examples: list[GateExample]) -> tuple[torch.Tensor, torch.Tensor]:
        """−log σ of the difference, and whether the order is right; [b] each."""
        chosen, rejected = self.scores(examples).unbind(dim=1)
        return preference_loss(chosen, rejected), (chosen > rejected).float()

    def sums(self, examples: list[GateExample]) -> dict[str, torch.Tensor]:
        """`Task.sums`."""
        return dict(zip(("loss", "accuracy"), (values.sum() for values in self.losses(examples)), strict=True))

    def task(self, train: list[GateExample], held_out: list[GateExample]) -> Task:
        """What `utils.supervised.run.train` is to do."""
        return Task(train, lambda: self.validate(held_out), ("accuracy",), units=lambda pair: 1, sums=self.sums)

    def validate(self, examples: list[GateExample]) -> dict[str, float]:
        """`Task.validate`."""
        table = per_example(self.engine, examples, self.batch_size, lambda e: torch.stack(self.losses(e), dim=1))
        return dict(zip(("loss", "accuracy"), table[:, :2].mean(dim=0).tolist(), strict=True))

    def table(self, examples: list[GateExample], measure: Callable[..., torch.Tensor] | None = None) -> numpy.ndarray:
        """Scores of all pairs, [n, 2], or another measure; float64, the same on every rank."""
        return per_example(self.engine, examples, self.batch_size, measure or self.scores)[:, :-1].numpy()


# --- what the gate is compared with


def fixed_weights(differences: numpy.ndarray) -> numpy.ndarray:
    """The weights w that maximise Σ log σ(w · (r'_chosen − r'_rejected)): no gate, any sign; [n, m] -> [m]."""

    def loss_and_gradient(weights: numpy.ndarray) -> tuple[float, numpy.ndarray]:
        margins = differences @ weights
        loss = numpy.logaddexp(0.0, -margins).mean()
        return loss, -(differences * (1 / (1 + numpy.exp(margins.clip(-700, 700))))[:, None]).mean(axis=0)

    start = numpy.zeros(differences.shape[1])
    return optimize.minimize(loss_and_gradient, start, jac=True, method="L-BFGS-B", options={"maxiter": 1000}).x


def compare(
    gated: numpy.ndarray, rewards: numpy.ndarray, best: int, weights: numpy.ndarray, names: list[str], seed: int
) -> dict[str, Any]:
    """Pairwise accuracies on held-out pairs of the gate, of every attribute, and of fixed weights; differences of them.

    Args:
        gated: [n, 2] scores of (chosen, rejected).
        rewards: [n, 2, m].
        best: the attribute that orders the training pairs best.
        weights: [m], the best fixed ones on the training pairs.
    """
    fixed, single = rewards @ weights, rewards[..., best]
    whole = numpy.zeros(len(gated), dtype=int)
    against = {"fixed_weights": fixed, "best_attribute": single}
    return {
        "accuracy": proportion(pairwise_hits(*gated.T)),
        "calibration": pair_calibration(*gated.T, seed),
        "fixed_weights": proportion(pairwise_hits(*fixed.T)),
        "best_attribute": {"name": names[best]} | proportion(pairwise_hits(*single.T)),
        "attributes": {name: proportion(pairwise_hits(*rewards[..., k].T)) for k, name in enumerate(names)},
        "gate_less": {
            name: accuracy_differences(gated, other, whole, [WHOLE], seed)[ALL_PAIRS] for name, other in against.items()
        },
    }
