"""What a run needs of memory, phase by phase: arithmetic on the sizes of its models and its flags.

A phase is made of moments, each with what lies in memory then; the fullest counts. See `utils.memory.sizes` for what is
counted of weights, optimizers and activations.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from utils.data.batching import accumulates
from utils.memory.sizes import DEVICE, FLOAT, HEAD_CHUNK, HOST, MARGINS, Ledger, Memory, PlannedModel, Surroundings

Moments = Callable[[Memory], Iterator[Ledger]]


@dataclass(frozen=True)
class Phase:
    """What lies in memory at the fullest moments of a phase, that of the device and that of the host."""

    name: str
    ledger: Ledger

    def total(self, place: str) -> int:
        return sum(size for (where, _), size in self.ledger.items() if where == place)


def phases_of(models: list[PlannedModel], args: argparse.Namespace, around: Surroundings) -> list[Phase]:
    """Phases of a run, in their order; without those in which nothing happens."""
    memory = Memory(models, args, around)
    moments = MOMENTS.get(models[0].use, SUPERVISED_MOMENTS)
    found = {name: list(make(memory)) for name, make in moments.items()}
    return [fullest(name, ledgers) for name, ledgers in found.items() if ledgers]


def fullest(name: str, moments: list[Ledger]) -> Phase:
    """A phase from its moments: what is on the device when that is fullest, on the host when that is fullest."""
    phases, ledger = [Phase(name, ledger) for ledger in moments], Ledger()
    for place in (DEVICE, HOST):
        most = max(phases, key=lambda phase: phase.total(place))
        ledger.update({entry: size for entry, size in most.ledger.items() if entry[0] == place})
    return Phase(name, ledger)


def loading_moments(memory: Memory) -> Iterator[Ledger]:
    """Of a group the first is read, each parameter straight to its place, the others are copied; then their engines."""
    arrived: list[PlannedModel] = []
    running: list[PlannedModel] = []
    for group in loaded_together(memory):
        there = memory.libraries() + memory.with_only(running).optimizers()
        reading = being_read(memory, group[0]) + unparked(memory, group[0])
        yield there + memory.with_only([*arrived, group[0]]).weights() + reading
        arrived += group
        yield there + memory.with_only(arrived).weights() + unparked(memory, group[0])
        for model in group:
            there = memory.libraries() + memory.with_only(running).optimizers() + memory.with_only(arrived).weights()
            yield there + flattened(memory, model, there)
            running.append(model)


def loaded_together(memory: Memory) -> list[list[PlannedModel]]:
    """The models in the order in which they are loaded, those that start from the same weights together.

    A critic that starts from its score model comes with that, which makes no difference: all copies are made before the
    first engine that trains.
    """
    order = ("policy", "dpo", "reference", "critic") if memory.lora else ("reference", "critic", "policy", "dpo")
    uses = {use: [model for model in memory.models if model.use == use] for use in order}
    others = [[model] for model in memory.models if model.use not in uses]
    together = [model for use in order for model in uses[use]]
    return [*others, together] if together else others


def being_read(memory: Memory, model: PlannedModel) -> Ledger:
    """A parameter as it is stored, float32 at most, and in the type of the run; on the device when it is shared out."""
    largest = min(memory.base_numbers(model), model.shape.largest)
    ledger = Ledger({(memory.place(True), "parameter being read"): (FLOAT + memory.width) * largest})
    if memory.stage == 3 and memory.around.on_gpu:
        ledger[DEVICE, "gathered weights"] = memory.width * largest
    return ledger


def unparked(memory: Memory, model: PlannedModel) -> Ledger:
    """What a model takes of the device before it is parked on the host."""
    if memory.parked and not model.trained and memory.stage < 3 and memory.around.on_gpu:
        return Ledger({(DEVICE, "frozen weights"): memory.width * memory.base_numbers(model)})
    return Ledger()


def flattened(memory: Memory, model: PlannedModel, arrived: Ledger) -> Ledger:
    """ZeRO-1 and 2 copy what is trained into one piece: on the device where there is room, else on the host."""
    if memory.stage not in (1, 2) or not model.trained:
        return Ledger()
    size = memory.width * memory.trained_numbers(model)
    if Phase("", arrived).total(DEVICE) + size <= memory.around.memory:
        return Ledger({(DEVICE, "flattening"): size})
    return Ledger({(memory.place(True), "flattening"): 2 * size})  # the parameters come along


def generation_moments(memory: Memory) -> Iterator[Ledger]:
    policy, rows = memory.models[0], memory.args.per_device_prompt_batch_size * memory.responses_per_prompt
    vocabulary = policy.shape.vocabulary
    now = memory.visitor(policy)
    if memory.stage == 3:
        now[DEVICE, "gathered weights"] = memory.width * policy.shape.parameters  # the whole policy
    now[DEVICE, "keys and values"] = memory.key_values(policy, rows)
    now[DEVICE, "logits"] = rows * vocabulary * (memory.width + 3 * FLOAT)
    now[DEVICE, "activations"] = memory.working(policy, rows * memory.around.longest[0])
    yield memory.resident() + now


def keeps_head_inputs(args: argparse.Namespace, compares: bool) -> bool:
    """Whether a rollout of step 3 keeps them: where micro-batches accumulate and last-layer gradients are compared, as
    they are before the first backward pass."""
    return compares and accumulates(args) and args.gram_per == "step" and args.gradient_scope == "last_layer"


def kept_states(memory: Memory) -> Ledger:
    """The head inputs of a rollout, where it keeps them."""
    args, policy = memory.args, memory.models[0]
    if not keeps_head_inputs(args, memory.around.compares):
        return Ledger()
    responses = args.per_device_prompt_batch_size * args.generation_batches * memory.responses_per_prompt
    tokens = responses * memory.around.longest[1]
    return Ledger({(DEVICE, "kept head inputs"): tokens * policy.shape.hidden * memory.width})


def kept_graphs(memory: Memory, models: list[PlannedModel]) -> Ledger:
    """What these models' passes in the rollout leave for the update (`--keep_graphs`)."""
    if not memory.args.keep_graphs:
        return Ledger()
    rows = memory.rows()
    size = sum(memory.activations(model, rows) for model in models)
    if any(model.use == "policy" for model in models):
        size += memory.logits(memory.models[0], rows * memory.around.longest[1], 1)
    return Ledger({(DEVICE, "kept graphs"): size})


def scoring_moments(memory: Memory) -> Iterator[Ledger]:
    """Policy and critics first; what is kept of them stays while the others score."""
    rows = memory.rows()
    kept = kept_graphs(memory, memory.in_turn)
    for model in memory.models:
        now = memory.visitor(model) + (Ledger() if model.trained else kept)
        now[DEVICE, "activations"] = memory.working(model, rows * sum(memory.around.longest))
        if memory.shares_prompts:
            now[DEVICE, "keys and values"] = memory.key_values(model, rows)
        if model.use in ("policy", "reference"):
            now[DEVICE, "logits"] = memory.logits(model, rows * memory.around.longest[1], 1)
        yield memory.resident() + now + kept_states(memory)


def policy_moments(memory: Memory) -> Iterator[Ledger]:
    """The objectives' gradients are compared; a backward pass of their combination."""
    base = memory.resident() + memory.visitor(memory.models[0]) + kept_states(memory)
    base += kept_graphs(memory, memory.in_turn[1:])
    if memory.args.gradient_scope == "full":
        yield from full_comparison(memory, base)
        return
    if memory.around.compares:
        yield base + head_comparison(memory)
    yield from backward_moments(memory, base, memory.rows(), memory.accumulates)


def head_comparison(memory: Memory) -> Ledger:
    """A forward pass over a micro-batch, and the gradients of the output head."""
    policy, tokens = memory.models[0], memory.rows() * memory.around.longest[1]
    head = policy.shape.vocabulary * policy.shape.hidden
    chunk = 3 * min(tokens, HEAD_CHUNK) * policy.shape.vocabulary
    numbers = memory.around.objectives * head + chunk
    return graph(memory, memory.rows(), 1) + Ledger({(DEVICE, "objectives' gradients"): FLOAT * numbers})


def full_comparison(memory: Memory, base: Ledger) -> Iterator[Ledger]:
    """The first loss's backward pass ends, and memory for the gradients of all is made; a later pass begins, and ends
    with that; then those of what is not compared."""
    rows, objectives = memory.compared_rows(), memory.around.objectives
    kept = graph(memory, rows, 1) if memory.stage < 3 and objectives > 1 else Ledger()  # for the next loss
    reduced = gradient(memory) + Ledger({(DEVICE, "reduction"): memory.reduction(memory.models[0])})
    copies, several = objectives_gradients(memory), memory.step_rows_compared > rows
    yield base + kept + reduced
    yield base + kept + gradient(memory) + copies
    if objectives > 2 or several:
        yield base + kept + reduced + copies
    yield from backward_moments(memory, base + copies, rows, several)
    if others := memory.other_rows():
        yield from backward_moments(
            memory, base + copies, others, memory.step_rows - memory.step_rows_compared > others
        )


def backward_moments(memory: Memory, base: Ledger, rows: int, after: bool) -> Iterator[Ledger]:
    """A backward pass of the policy begins, after others whose gradient is there or not; it ends.

    Args:
        base: what is there beside it.
        rows: of the micro-batch.
    """
    yield base + graph(memory, rows, 2) + (gradient(memory) if after else Ledger())
    yield base + gradient(memory) + Ledger({(DEVICE, "reduction"): memory.reduction(memory.models[0])})


def graph(memory: Memory, rows: int, copies: int) -> Ledger:
    """Of the policy's forward pass over so many sequences, with its logits."""
    policy = memory.models[0]
    logits = memory.logits(policy, rows * memory.around.longest[1], copies)
    return Ledger({(DEVICE, "activations"): memory.activations(policy, rows), (DEVICE, "logits"): logits})


def gradient(memory: Memory) -> Ledger:
    """That of the policy."""
    return Ledger({(DEVICE, "gradients"): memory.gradient(memory.models[0])})


def objectives_gradients(memory: Memory) -> Ledger:
    """Those of all objectives at scope full, and that of what is not compared."""
    count = memory.around.objectives + (memory.other_rows() > 0)
    part = memory.trained_numbers(memory.models[0]) // memory.around.ranks
    return Ledger({(memory.place(memory.offload), "objectives' gradients"): count * part * FLOAT})


def critic_moments(memory: Memory) -> Iterator[Ledger]:
    """Every critic's backward pass begins, and ends; the gradients before it stay."""
    there, rows = memory.gradient(memory.models[0]), max(memory.compared_rows(), memory.other_rows())
    for number, critic in enumerate(memory.in_turn[1:], start=1):
        base = memory.resident() + memory.visitor(critic) + kept_states(memory)
        base += kept_graphs(memory, memory.in_turn[number + 1 :])
        own = memory.gradient(critic)
        begins, ends = Ledger(base), Ledger(base)
        begins[DEVICE, "activations"] += memory.activations(critic, rows)
        begins[DEVICE, "gradients"] += there + (own if memory.accumulates else 0)
        ends[DEVICE, "gradients"] += there + own
        ends[DEVICE, "reduction"] += memory.reduction(critic)
        yield begins
        yield ends
        there += own


def step_moments(memory: Memory) -> Iterator[Ledger]:
    """One engine after another takes its step, and drops its gradient."""
    for number, model in enumerate(memory.in_turn):
        waiting = sum(memory.gradient(later) for later in memory.in_turn[number + 1 :])
        yield memory.resident() + memory.step(model) + Ledger({(DEVICE, "gradients"): waiting})


def margin_moments(memory: Memory) -> Iterator[Ledger]:
    """One model after another says what pairs are worth, alone, before the policy is built."""
    rows = memory.args.per_device_eval_batch_size * memory.around.sequences
    for model in memory.models:
        now = Ledger({(DEVICE, "activations"): memory.working(model, rows * sum(memory.around.longest))})
        if model.use == "margin":
            now[DEVICE, "logits"] = memory.logits(model, rows * memory.around.longest[1], 1)
            yield memory.libraries() + memory.with_only([model]).weights() + memory.visitor(model) + now
        elif model.use == "scored margin":  # whole on every rank
            yield memory.libraries() + Ledger({(DEVICE, "frozen weights"): memory.width * model.shape.parameters}) + now


def without_margins(memory: Memory) -> Memory:
    """What is there once pairs have their margins."""
    return memory.with_only([model for model in memory.models if model.use not in MARGINS])


def pair_loading_moments(memory: Memory) -> Iterator[Ledger]:
    yield from loading_moments(without_margins(memory))


def pair_reading_moments(memory: Memory) -> Iterator[Ledger]:
    """A pass over held-out pairs; before training one over all pairs, of the policy that is the reference then."""
    memory, rows = without_margins(memory), memory.args.per_device_eval_batch_size * memory.around.sequences
    for model in memory.models:
        now = memory.visitor(model)
        now[DEVICE, "activations"] = memory.working(model, rows * sum(memory.around.longest))
        now[DEVICE, "logits"] = memory.logits(model, rows * memory.around.longest[1], 1)
        if memory.shares_prompts:
            now[DEVICE, "keys and values"] = memory.key_values(model, rows)
        yield memory.resident() + now


def pair_update_moments(memory: Memory) -> Iterator[Ledger]:
    """As of step 3's policy; the reference's pass over a micro-batch, where it is made then, is none of the fullest."""
    memory = without_margins(memory)
    base = memory.resident() + memory.visitor(memory.models[0])
    if memory.around.compares and memory.args.gradient_scope == "full":
        yield from full_comparison(memory, base)
        return
    if memory.around.compares:
        yield base + head_comparison(memory)
    yield from backward_moments(memory, base, memory.rows(), memory.accumulates)


def pair_step_moments(memory: Memory) -> Iterator[Ledger]:
    yield from step_moments(without_margins(memory))


def pair_export_moments(memory: Memory) -> Iterator[Ledger]:
    yield from export_moments(without_margins(memory))


def rejection_sampling_moments(memory: Memory) -> Iterator[Ledger]:
    """A policy that nothing else is beside, whole on every rank, answers prompts several times each."""
    policy, args = memory.models[0], memory.args
    rows = args.per_device_prompt_batch_size * args.samples_per_direction
    now = Ledger({(DEVICE, "frozen weights"): memory.width * policy.shape.parameters})
    now[DEVICE, "keys and values"] = memory.key_values(policy, rows)
    now[DEVICE, "logits"] = rows * policy.shape.vocabulary * (memory.width + 3 * FLOAT)
    now[DEVICE, "activations"] = memory.working(policy, args.per_device_prompt_batch_size * memory.around.longest[0])
    yield memory.libraries() + now


def without_scores(moments: Moments) -> Moments:
    """What is there once replies have their scores."""
    return lambda memory: moments(without_margins(memory))


def supervised_moments(memory: Memory) -> Iterator[Ledger]:
    (model,), args = memory.models, memory.args
    rows = args.per_device_train_batch_size * memory.around.sequences
    base = memory.resident() + memory.visitor(model)
    begins, ends = Ledger(base), Ledger(base)
    begins[DEVICE, "activations"] = memory.activations(model, rows)
    begins[DEVICE, "logits"] = supervised_logits(memory, rows, 3 * FLOAT)
    if memory.accumulates:
        begins[DEVICE, "gradients"] += memory.gradient(model)
    ends[DEVICE, "gradients"] += memory.gradient(model)
    ends[DEVICE, "reduction"] = memory.reduction(model)
    yield begins
    yield ends


def evaluation_moments(memory: Memory) -> Iterator[Ledger]:
    (model,) = memory.models
    rows = memory.args.per_device_eval_batch_size * memory.around.sequences
    now = memory.visitor(model)
    now[DEVICE, "activations"] = memory.working(model, rows * sum(memory.around.longest))
    now[DEVICE, "logits"] = supervised_logits(memory, rows, memory.width + 2 * FLOAT)
    yield memory.resident() + now


def export_moments(memory: Memory) -> Iterator[Ledger]:
    """The main rank collects the whole model on the CPU; safetensors copies it once more while it writes."""
    model, adapters = memory.models[0], getattr(memory.args, "lora_export", "merged") == "adapter"
    numbers = memory.trained_numbers(model) if adapters else model.shape.parameters
    size = 2 * memory.width * numbers
    if memory.around.on_gpu:
        size //= memory.around.ranks_here  # of the machine's memory, which is counted by rank
    yield memory.resident() + Ledger({(memory.place(True), "exported weights"): size})


def supervised_logits(memory: Memory, rows: int, size: int) -> int:
    """Bytes of the logits of whole sequences and their float32 copies; a score model has none."""
    (model,) = memory.models
    if model.use in ("reward", "backbone"):
        return 0
    return rows * sum(memory.around.longest) * model.shape.vocabulary * size


GAPO_MOMENTS = {
    "loading": loading_moments, "generation": generation_moments, "scoring": scoring_moments,
    "policy update": policy_moments, "critic update": critic_moments, "optimizer step": step_moments,
    "export": export_moments,
}  # fmt: skip
SUPERVISED_MOMENTS = {
    "loading": loading_moments, "training": supervised_moments, "evaluation": evaluation_moments,
    "optimizer step": step_moments, "export": export_moments,
}  # fmt: skip
BACKBONE_MOMENTS = {"loading": loading_moments, "hidden states": evaluation_moments, "export": export_moments}
PAIR_MOMENTS = {
    "margins": margin_moments, "loading": pair_loading_moments, "pairs read": pair_reading_moments,
    "policy update": pair_update_moments, "optimizer step": pair_step_moments, "export": pair_export_moments,
}  # fmt: skip
REJECTION_MOMENTS = {
    "sampling": rejection_sampling_moments, "scoring": margin_moments,
    **{name: without_scores(moments) for name, moments in SUPERVISED_MOMENTS.items()},
}  # fmt: skip
MOMENTS = {"dpa": REJECTION_MOMENTS, "policy": GAPO_MOMENTS, "backbone": BACKBONE_MOMENTS, "dpo": PAIR_MOMENTS}
