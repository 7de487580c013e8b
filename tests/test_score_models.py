"""Reward and cost models made elsewhere: Safe RLHF's format, classifiers with labels, encoders; each as step 3's
scorer and eval/score.py read them, against plain torch."""

import json
import math
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertTokenizer,
    LlamaConfig,
    LlamaForSequenceClassification,
    LlamaModel,
)

from eval import score
from step3_gapo.arguments import parse_args
from step3_gapo.critics import critic_from_scores
from tests.architectures import ARCHITECTURES, random_model
from tests.architectures import tokenizer as byte_tokenizer
from tests.helpers import Workshop, flags, run_function, run_script
from utils.data.encoding import Encoded, encode_prompt, encode_response
from utils.data.records import Prompt
from utils.models.configs import load_tokenizer
from utils.models.token_head import PooledHead, TokenHead
from utils.policy.sampled import Sampled
from utils.process.distributed import init_distributed
from utils.process.errors import UserError
from utils.scoring import score_models
from utils.scoring.objectives import Objective
from utils.scoring.scorers import make_scorers, score_responses

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
         "max_position_embeddings": 256, "initializer_range": 0.3}  # fmt: skip
MESSAGES = [
    [{"role": "user", "content": "How do I bake bread?"}],
    [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Good day."},
     {"role": "user", "content": "My friend is sad. What now?"}],
]  # fmt: skip
RESPONSES = ["Mix flour and water, then wait.", "Ask"]
FINISHED = [True, False]
ARGS = parse_args(flags(actor_model="x", algorithm="ppo", data="x", output_dir="x", per_device_train_batch_size=1))
# What scores are made of: with a bias and a normalizer, and without.
FULL = {"bias": 0.37, "mean": -1.6, "var": 2.9}
NORMALIZED = {"mean": 0.4, "var": 0.3}
PLAIN: dict[str, float] = {}


def safe_rlhf_model(tokenizer: Path, folder: Path, score_type: str, numbers: dict[str, float], **config: Any) -> Path:
    """A score model in the format of Safe RLHF, its weights written by hand, on a tokenizer without chat template."""
    torch.manual_seed(len(folder.name))
    own = AutoTokenizer.from_pretrained(tokenizer)
    own.chat_template = None
    own.save_pretrained(folder)
    trunk = LlamaModel(LlamaConfig(vocab_size=len(own), **SIZES))
    weights = {f"model.{name}": value.clone() for name, value in trunk.state_dict().items()}
    weights["score_head.weight"] = torch.randn(1, SIZES["hidden_size"])
    if "bias" in numbers:
        weights["score_head.bias"] = torch.tensor([numbers["bias"]])
    weights |= {f"normalizer.{name}": torch.tensor([numbers.get(name, default)]) for name, default in
                (("mean", 0.0), ("var", 1.0))}  # fmt: skip
    weights["normalizer.count"] = torch.tensor([7])
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    described = trunk.config.to_dict() | {
        "architectures": ["LlamaForScore" if "bias" in numbers else "LlamaModelForScore"], "score_dim": 1,
        "score_bias" if "bias" in numbers else "bias": "bias" in numbers, "score_type": score_type,
        "do_normalize": "mean" in numbers, "normalizer_type": "ExponentialMovingAverage", "momentum": 0.9,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(described | config))
    return folder


def direct_score(folder: Path, kind: str, numbers: dict[str, float], text: str, drop_last: bool) -> float:
    """The objective's value of one text, computed with transformers' trunk and plain torch."""
    weights, config = load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text())
    trunk = LlamaModel(LlamaConfig(**{k: v for k, v in config.items() if k != "architectures"})).eval()
    trunk.load_state_dict({n.removeprefix("model."): v for n, v in weights.items() if n.startswith("model.")})
    ids = AutoTokenizer.from_pretrained(folder)(text, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        hidden = trunk(torch.tensor([ids[:-1] if drop_last else ids])).last_hidden_state[0, -1].double()
    score = (hidden @ weights["score_head.weight"][0].double()).item() + numbers.get("bias", 0.0)
    shift = numbers.get("mean", 0.0) if kind == "reward" else 0.0
    scale = math.sqrt(numbers["var"]) if "var" in numbers else 1.0
    return (1 if kind == "reward" else -1) * (score - shift) / scale


def conversation(messages: list[dict[str, str]], response: str, tokenizer: Any) -> str:
    """Safe RLHF's template, by hand, after BOS as text; there is no space before the first word of these tokenizers."""
    texts = [turn["content"] for turn in [*messages, {"content": response}]]
    turns = [
        f"USER: {text} ASSISTANT:" if index % 2 == 0 else text + tokenizer.eos_token for index, text in enumerate(texts)
    ]
    return tokenizer.bos_token + "BEGINNING OF CONVERSATION: " + "".join(turns)


def sample(policy_tokenizer: Any) -> Sampled:
    """What a rollout hands to the scorers."""
    prompts = [Encoded(Prompt(tuple(m), f"here:{i}"), encode_prompt(policy_tokenizer, m), ()) for i, m in
               enumerate(MESSAGES)]  # fmt: skip
    replies = [encode_response(policy_tokenizer, m, r) for m, r in zip(MESSAGES, RESPONSES, strict=True)]
    replies = [ids if ended else ids[:-1] for ids, ended in zip(replies, FINISHED, strict=True)]
    left, width = max(len(p.prompt) for p in prompts), max(map(len, replies))
    ids = torch.full((2, left + width), policy_tokenizer.pad_token_id)
    attention = torch.zeros(2, left + width, dtype=torch.int64)
    for row, (prompt, reply) in enumerate(zip(prompts, replies, strict=True)):
        start, end = left - len(prompt.prompt), left + len(reply)
        ids[row, start:end] = torch.tensor(prompt.prompt + reply)
        attention[row, start:end] = 1
    return Sampled(prompts, RESPONSES, ids, attention, attention[:, left:].float(), torch.tensor(FINISHED).float())


def write_responses(path: Path) -> Path:
    rows = [
        {"prompt": m[-1]["content"], "messages": m, "source": f"here:{i}", "response": r, "length": 3, "finished": f,
         "kl": 0.0} for i, (m, r, f) in enumerate(zip(MESSAGES, RESPONSES, FINISHED, strict=True))
    ]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def score_in_step3(policy: str, objectives: list[Objective], result: str) -> None:
    """Every objective's values of `sample` and shares of truncated dialogues, as json in `result`; in a process."""
    init_distributed(60.0)
    tokenizer, found = load_tokenizer(policy, "--actor_model"), {}
    scorers = make_scorers(objectives, ARGS, tokenizer, with_critics=[])
    assert not any(scorer.starts_critics for scorer in scorers)
    for name, scored in score_responses(scorers, sample(tokenizer), ARGS).items():
        assert scored.judged.tolist() == [1.0, 1.0]
        found[name] = {"values": scored.values.tolist(), "truncated": scored.truncated.tolist()}
    Path(result).write_text(json.dumps(found))


def step3_scores(workshop: Workshop, objectives: list[Objective], folder: Path) -> dict[str, dict[str, list[float]]]:
    result = run_function(score_in_step3, str(workshop.base), objectives, str(folder / "scores.json"))
    assert result.code == 0, result.stderr
    return json.loads((folder / "scores.json").read_text())


def score_file(folder: Path, **arguments: Any) -> tuple[dict[str, list[float]], str]:
    """{objective: its values} by eval/score.py, and what it printed."""
    responses = write_responses(folder / "run.jsonl")
    result = run_script("eval/score.py", flags(responses=responses, output_dir=folder / "eval", **arguments))
    assert result.code == 0, result.stderr
    rows = json.loads((folder / "eval/run.json").read_text())["rows"]
    return {name: [row["scores"][name] for row in rows] for name in rows[0]["scores"]}, result.stdout


def test_safe_rlhf_models_score_as_in_their_own_code(workshop: Workshop, tmp_path: Path) -> None:
    """Both kinds, with a tokenizer other than the policy's, in step 3 and in the evaluation."""
    cases = {
        "full": ("reward", FULL),
        "plain": ("reward", PLAIN),
        "cost": ("cost", FULL),
        "cheap": ("cost", NORMALIZED),
    }
    objectives, expected = [], {}
    for name, (kind, numbers) in cases.items():
        folder = safe_rlhf_model(workshop.foreign, tmp_path / name, kind, numbers)
        own = AutoTokenizer.from_pretrained(folder)
        assert own.chat_template is None
        objectives.append(Objective(name, kind, str(folder)))
        expected[name] = [
            direct_score(folder, kind, numbers, conversation(m, r, own), not f)
            for m, r, f in zip(MESSAGES, RESPONSES, FINISHED, strict=True)
        ]
        assert abs(expected[name][0] - expected[name][1]) > 0.1  # a score of something
    in_step3 = step3_scores(workshop, objectives, tmp_path)
    paths = {kind: tuple(f"{o.name}={o.path}" for o in objectives if o.kind == kind) for kind in ("reward", "cost")}
    in_eval, _ = score_file(tmp_path, reward_model=paths["reward"], cost_model=paths["cost"])
    for name in cases:
        assert in_step3[name]["values"] == pytest.approx(expected[name], abs=1e-5), name
        assert in_eval[name] == pytest.approx(expected[name], abs=1e-5), name
        assert in_step3[name]["truncated"] == [0.0, 0.0]


def test_no_spread_normalizes_nothing(workshop: Workshop, tmp_path: Path) -> None:
    folder = safe_rlhf_model(workshop.foreign, tmp_path / "model", "reward", NORMALIZED | {"var": 0.0})
    with pytest.raises(UserError, match=r"--reward_model flat .*normalizer\.var 0\.0"):
        Objective("flat", "reward", str(folder)).load_model()


def test_long_dialogues_lose_their_beginning(workshop: Workshop, tmp_path: Path) -> None:
    """Of a dialogue beyond a model's positions the last tokens are scored, and it is counted."""
    folder = safe_rlhf_model(workshop.foreign, tmp_path / "short", "reward", PLAIN)
    own = AutoTokenizer.from_pretrained(folder)
    texts = [conversation(m, r, own) for m, r in zip(MESSAGES, RESPONSES, strict=True)]
    lengths = [
        len(own(text, add_special_tokens=False)["input_ids"]) - (not f) for text, f in zip(texts, FINISHED, strict=True)
    ]
    positions = max(lengths) - 1
    assert min(lengths) <= positions
    config = json.loads((folder / "config.json").read_text()) | {"max_position_embeddings": positions}
    (folder / "config.json").write_text(json.dumps(config))
    in_step3 = step3_scores(workshop, [Objective("short", "reward", str(folder))], tmp_path)["short"]
    in_eval, said = score_file(tmp_path, reward_model=f"short={folder}")
    again, said_again = score_file(tmp_path, reward_model=f"short={folder}")
    assert again == in_eval and "1 of 1 runs have scores" in said_again
    assert in_step3["truncated"] == [float(length > positions) for length in lengths]
    assert all("truncated 1 of 2 dialogues of run" in text for text in (said, said_again))
    assert json.loads((tmp_path / "eval/run.json").read_text())["scored"]["truncated"] == {"short": 1}
    assert in_eval["short"] == pytest.approx(in_step3["values"], abs=1e-5)
    row = lengths.index(max(lengths))
    ids = own(texts[row], add_special_tokens=False)["input_ids"]
    shortened = own.decode(ids[1:])  # the BOS token is what does not fit
    assert own(shortened, add_special_tokens=False)["input_ids"] == ids[1:]
    expected = direct_score(folder, "reward", PLAIN, shortened, not FINISHED[row])
    assert in_eval["short"][row] == pytest.approx(expected, abs=1e-5)


def classifier(workshop: Workshop, folder: Path, labels: list[str]) -> Path:
    """A decoder with several labels, not of this project, on a tokenizer of its own."""
    torch.manual_seed(3)
    tokenizer = AutoTokenizer.from_pretrained(workshop.foreign)
    config = LlamaConfig(vocab_size=len(tokenizer), **SIZES, pad_token_id=tokenizer.pad_token_id,
                         id2label=dict(enumerate(labels)), label2id={n: i for i, n in enumerate(labels)})  # fmt: skip
    LlamaForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def encoder(folder: Path, **sizes: int) -> Path:
    """A BERT with two labels, which gives a text one score; as on the hub, without EOS and chat template."""
    torch.manual_seed(4)
    letters = sorted(set("".join(RESPONSES + [turn["content"] for turns in MESSAGES for turn in turns])) - {" "})
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    tokenizer = BertTokenizer(vocab={piece: index for index, piece in enumerate(pieces)}, do_lower_case=False)
    config = BertConfig(vocab_size=len(pieces), **SIZES | sizes, pad_token_id=0, id2label={0: "bad", 1: "good"})
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    assert tokenizer.eos_token_id is None and tokenizer.chat_template is None
    return folder


def template_file(path: Path, before: str = "", after: str = "") -> Path:
    """A chat template: turns with [SEP] in between, and what is to come around them."""
    turns = "{% for turn in messages %}{{ turn['content'] + ('' if loop.last else '[SEP]') }}{% endfor %}"
    path.write_text(before + turns + after)
    return path


def texts_of_encoder() -> list[str]:
    return ["[SEP]".join([*(turn["content"] for turn in m), r]) for m, r in zip(MESSAGES, RESPONSES, strict=True)]


def test_a_chosen_label_is_the_score(workshop: Workshop, tmp_path: Path) -> None:
    """transformers' own logits of a label by name and of one by number, of a decoder and of an encoder."""
    decoder, whole = classifier(workshop, tmp_path / "decoder", ["rude", "kind", "true"]), encoder(tmp_path / "encoder")
    template = template_file(tmp_path / "turns.jinja")
    expected: dict[str, list[float]] = {"kindness": [], "truth": [], "good": []}
    own, reader = AutoTokenizer.from_pretrained(decoder), AutoTokenizer.from_pretrained(whole)
    model = LlamaForSequenceClassification.from_pretrained(decoder).eval()
    pooled = BertForSequenceClassification.from_pretrained(whole).eval()
    for messages, response, finished in zip(MESSAGES, RESPONSES, FINISHED, strict=True):
        dialogue = [*messages, {"role": "assistant", "content": response}]
        text = own.apply_chat_template(dialogue, tokenize=False)
        text = text if finished else text[: text.rindex(response) + len(response)]
        ids = own(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            logits = model(ids, attention_mask=torch.ones_like(ids)).logits[0]
        expected["kindness"].append(logits[1].item())
        expected["truth"].append(-logits[2].item())
    with torch.no_grad():
        expected["good"] = [pooled(**reader(t, return_tensors="pt")).logits[0, 1].item() for t in texts_of_encoder()]
    assert abs(expected["good"][0] - expected["good"][1]) > 0.01
    objectives = [
        Objective("kindness", "reward", str(decoder), "kind"), Objective("truth", "cost", str(decoder), "2"),
        Objective("good", "reward", str(whole), "good", str(template)),
    ]  # fmt: skip
    in_step3 = step3_scores(workshop, objectives, tmp_path)
    in_eval, _ = score_file(
        tmp_path, reward_model=(f"kindness={decoder}", f"good={whole}"), cost_model=f"truth={decoder}",
        score_label=("kindness=kind", "truth=2", "good=good"), score_template=f"good={template}",
    )  # fmt: skip
    for name, values in expected.items():
        assert in_eval[name] == pytest.approx(values, abs=1e-5), name
        assert in_step3[name]["values"] == pytest.approx(values, abs=1e-5), name


def counting() -> Counter:
    """From now on, how many models this process has loaded ('loads') and how often one has read ('passes')."""
    counts = Counter()

    def count(name: str, place: Any, attribute: str) -> None:
        original = getattr(place, attribute)
        setattr(place, attribute, lambda *args, **more: counts.update([name]) or original(*args, **more))

    count("loads", score_models, "load_model")
    for head in (TokenHead, PooledHead):
        count("passes", head, "forward")
    return counts


def score_together_and_apart(policy: str, objectives: list[Objective], result: str) -> None:
    """In step 3, in a process: values and counts of objectives of one model together, then of each by itself."""
    init_distributed(60.0)
    tokenizer, found, counts = load_tokenizer(policy, "--actor_model"), [], counting()
    for groups in ([objectives], [[objective] for objective in objectives]):
        values = {}
        counts.clear()
        for group in groups:
            (scorer,) = make_scorers(group, ARGS, tokenizer, with_critics=[])
            scored = score_responses([scorer], sample(tokenizer), ARGS)
            values |= {name: part.values.tolist() for name, part in scored.items()}
        found.append([values, dict(counts)])
    Path(result).write_text(json.dumps(found))


def score_counted(arguments: list[str], result: str) -> None:
    """eval/score.py in a process, and its counts."""
    counts = counting()
    sys.argv = ["eval/score.py", *arguments]
    score.main()
    Path(result).write_text(json.dumps(counts))


@pytest.mark.parametrize("kind", ["decoder", "encoder"])
def test_objectives_share_a_model(workshop: Workshop, tmp_path: Path, kind: str) -> None:
    """One load and one pass for all its labels, as a reward and as a cost; values are those of two, to the bit."""
    template = None
    if kind == "decoder":
        folder = classifier(workshop, tmp_path / kind, ["rude", "kind"])
    else:
        folder, template = encoder(tmp_path / kind), str(template_file(tmp_path / "turns.jinja"))
    objectives = [
        Objective("a", "reward", str(folder), "1", template),
        Objective("b", "cost", f"{folder}/", "0", template),
    ]
    done = run_function(score_together_and_apart, str(workshop.base), objectives, str(tmp_path / "found.json"))
    assert done.code == 0, done.stderr
    (together, counts), (apart, more) = json.loads((tmp_path / "found.json").read_text())
    assert together == apart and together["a"] != together["b"]
    assert counts == {"loads": 1, "passes": 2}  # of one response each
    assert more == {"loads": 2, "passes": 4}

    found = {}
    for name, chosen in (("both", objectives), ("first", objectives[:1]), ("first", objectives), ("b", objectives[1:])):
        responses = write_responses(tmp_path / "run.jsonl")
        models = {o.kind: f"{o.name}={o.path}" for o in chosen}
        templates = tuple(f"{o.name}={template}" for o in chosen if template) or None
        done = run_function(score_counted, flags(
            responses=responses, output_dir=tmp_path / name, reward_model=models.get("reward"),
            cost_model=models.get("cost"), score_label=tuple(f"{o.name}={o.label}" for o in chosen),
            score_template=templates,
        ), str(tmp_path / "counts.json"))  # fmt: skip
        assert done.code == 0, done.stderr
        assert json.loads((tmp_path / "counts.json").read_text()) == {"loads": 1, "passes": 1}
        assert ("score a: 1 of 1 runs have scores" in done.stdout) == (name in found)
        rows = json.loads((tmp_path / name / "run.json").read_text())["rows"]
        found[name] = {o.name: [row["scores"][o.name] for row in rows] for o in chosen}
    assert found["both"] == found["first"] == {"a": found["first"]["a"]} | found["b"]


def test_an_encoder_reads_between_its_special_tokens(tmp_path: Path) -> None:
    """CLS and SEP are the tokenizer's, once, whoever writes them; a long text loses what follows CLS."""
    templates = (
        template_file(tmp_path / "plain.jinja"),
        template_file(tmp_path / "own.jinja", "{{ cls_token }}", "{{ sep_token }}"),
    )
    folder = encoder(tmp_path / "encoder")
    expected = [AutoTokenizer.from_pretrained(folder)(text)["input_ids"] for text in texts_of_encoder()]
    short = encoder(tmp_path / "short", max_position_embeddings=len(expected[0]) - 2)
    for template in templates:
        objectives = [Objective("good", "reward", str(path), "good", str(template)) for path in (folder, short)]
        for objective in objectives:
            objective.check()
        model, cut = (objective.load_model() for objective in objectives)
        assert not model.scores_tokens and model.tokenizer.cls_token_id == expected[0][0] == expected[1][0]
        for messages, response, finished, ids in zip(MESSAGES, RESPONSES, FINISHED, expected, strict=True):
            assert model.encode(messages, response, finished) == (ids, False)
        assert cut.encode(MESSAGES[0], RESPONSES[0], finished=True) == (expected[0][:1] + expected[0][3:], True)
    before = objectives[0].facts()
    template.write_text(templates[0].read_text())
    assert objectives[0].facts() != before  # what a run goes on with, and what eval/score.py keeps scores of


@pytest.mark.parametrize("options", [{"add_bos_token": True}, {"legacy": False}, {"legacy": True}, {}], ids=str)
def test_safe_rlhf_dialogues_are_tokenized_as_there(tmp_path: Path, options: dict[str, bool]) -> None:
    """By LLaMA's tokenizer: the ids of sentencepiece itself between BOS and EOS."""
    source, lines = tmp_path / "llama", ["BEGINNING OF CONVERSATION: USER: how do they ASSISTANT: bake bread"] * 9
    source.mkdir()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_prefix=str(source / "tokenizer"), vocab_size=330, model_type="bpe",
        byte_fallback=True, hard_vocab_limit=False, minloglevel=5,
    )  # fmt: skip
    described = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (source / "tokenizer_config.json").write_text(json.dumps(described | options))
    folder = safe_rlhf_model(source, tmp_path / "model", "reward", PLAIN)
    for file in folder.glob("*token*"):
        file.unlink()
    for name in ("tokenizer.model", "tokenizer_config.json"):
        (folder / name).write_bytes((source / name).read_bytes())
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(source / "tokenizer.model"))
    text = f"BEGINNING OF CONVERSATION: USER: {MESSAGES[0][0]['content']} ASSISTANT:{RESPONSES[0]}"
    expected = [pieces.bos_id(), *pieces.encode(text), pieces.eos_id()]
    assert pieces.id_to_piece(expected[1]).startswith("\u2581")
    objective = Objective("useful", "reward", str(folder))
    objective.check()
    model = objective.load_model()
    assert model.encode(MESSAGES[0], RESPONSES[0], finished=True) == (expected, False)
    assert model.encode(MESSAGES[0], RESPONSES[0], finished=False) == (expected[:-1], False)


def test_a_critic_starts_with_the_values_of_a_safe_rlhf_model(workshop: Workshop, tmp_path: Path) -> None:
    """Normalization, bias, sign and scale are all in the critic's head."""
    folder = safe_rlhf_model(workshop.base, tmp_path / "model", "reward", FULL)
    objective = Objective("full", "reward", str(folder), scale=3.0)
    model = objective.load_model()
    critic = critic_from_scores(objective.load_model(), objective.scale, torch.float32)
    ids = torch.arange(5, 25).reshape(2, 10)
    with torch.no_grad():
        scores = model.module.eval()(ids, torch.ones_like(ids))
        values = critic.eval()(ids, torch.ones_like(ids))
    assert values.std() > 0.1
    torch.testing.assert_close(values[..., 0], 3.0 * model.values(scores), atol=1e-5, rtol=0)


@pytest.mark.parametrize("form", [lambda value: value, lambda value: [value]], ids=["numbers", "lists"])
def test_safe_rlhf_on_projected_features(workshop: Workshop, tmp_path: Path, form: Callable[[float], Any]) -> None:
    """OPT-350m's trunk gives fewer features than `hidden_size`; statistics that the weights lack are in config.json."""
    row = next(a for a in ARCHITECTURES if a.name == "opt_projected")
    trunk = random_model(AutoModel, row.config())
    weights = {f"model.{name}": value.clone() for name, value in trunk.state_dict().items()}
    weights["score_head.weight"] = torch.randn(1, 16, generator=torch.Generator().manual_seed(3))
    folder, numbers = tmp_path / "score", {"mean": 0.7, "var": 4.0}
    byte_tokenizer().save_pretrained(folder)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    described = trunk.config.to_dict() | {"architectures": ["OPTForScore"], "score_dim": 1, "score_bias": False,
                                          "score_type": "reward", "do_normalize": True}  # fmt: skip
    described |= {name: form(value) for name, value in numbers.items()}
    (folder / "config.json").write_text(json.dumps(described))
    objective = Objective("useful", "reward", str(folder))
    objective.check()
    model, own = objective.load_model(), AutoTokenizer.from_pretrained(folder)
    text = own.apply_chat_template([*MESSAGES[0], {"role": "assistant", "content": RESPONSES[0]}], tokenize=False)
    ids = own(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        hidden = trunk.eval()(ids).last_hidden_state[0, -1]
    expected = ((hidden @ weights["score_head.weight"][0]).item() - numbers["mean"]) / 2.0
    in_eval, _ = score_file(tmp_path, reward_model=f"useful={folder}")
    assert in_eval["useful"][0] == pytest.approx(expected, abs=1e-5) and abs(expected) > 0.01
    critic = critic_from_scores(model, objective.scale, torch.float32)
    with torch.no_grad():
        values = critic.eval()(ids, torch.ones_like(ids))[0, :, 0]
    torch.testing.assert_close(values[-1].item(), expected, atol=1e-5, rtol=0)
    assert model.encode(MESSAGES[0], RESPONSES[0], finished=True)[0] == ids[0].tolist()
