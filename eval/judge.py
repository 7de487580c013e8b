"""Pairwise comparison of policies with a baseline, by a language model or by gold scores.

    python eval/judge.py --policy gapo_p1=output/tiny/eval/responses/gapo_p1.jsonl \
        --baseline sft=output/tiny/eval/responses/sft.jsonl --objective helpfulness harmlessness \
        --base_url https://api.openai.com/v1 --model gpt-4o --output_dir output/tiny/eval/judge

A language model sees each pair of responses twice, once in either order, and scores both (judging/criteria.py). A
policy wins a comparison if its scores in both orders are higher in sum; it is a tie if they are equal, or if the two
orders disagree about who is better. Answers that cannot be read even after a reminder make a comparison unusable; it
is counted and enters no number. With --gold the gold scores are the judge, and there is no network.

Any OpenAI-compatible server will do. Answers are kept in <output_dir>/answers.jsonl and never asked for again, so a
run that was stopped goes on where it was. The key is read from an environment variable and written nowhere.
"""

import argparse
import math
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from eval.judging.client import AnswerCache, ChatClient, Endpoint, Refused
from eval.judging.criteria import BUILT_IN, Criteria, question, read_criteria, read_reasons, read_scores, reminder
from eval.judging.responses import Source, check_answered, get_responses, open_source, read_prompts, select_prompts
from eval.results.answers import add_sampling_arguments
from eval.results.grading import Gold, grade, load_gold, mean_and_interval, score_gold
from eval.results.rows import Row
from utils.cli.arguments import Parser, add_data_arguments, add_loading_arguments, check_output_file
from utils.cli.types import named_value, non_negative_float, non_negative_int, positive_int, positive_seconds, safe_name
from utils.data.records import Message
from utils.models.configs import allow
from utils.output.files import check_writable, write_json
from utils.output.metrics import Progress
from utils.process.errors import UserError, run_main

OUTCOMES = ("win", "tie", "lose")
INTERRUPTED = 130  # exit code, as of a shell


@dataclass(frozen=True)
class Pair:
    """Two responses to one prompt, compared on one objective."""

    policy: str
    objective: str
    response: Row
    baseline: Row


@dataclass(frozen=True)
class Verdict:
    """What a judge said of a pair: scores in either order of presentation, None where its answer was unusable."""

    policy_scores: tuple[float | None, float | None]
    baseline_scores: tuple[float | None, float | None]
    outcome: str
    reasons: tuple[str, ...] = ()


def parse_args() -> argparse.Namespace:
    parser = Parser(description="Compare policies with a baseline, pair by pair")
    source = "a file of responses (jsonl, of eval/generate.py), or a model folder that answers --data"
    parser.add_argument(
        "--policy",
        type=named_value,
        nargs="+",
        action="extend",
        required=True,
        metavar="NAME=PATH",
        help=f"{source}; several are compared with the baseline one by one",
    )
    parser.add_argument("--baseline", type=named_value, required=True, metavar="NAME=PATH", help=source)
    parser.add_argument("--objective", type=safe_name, nargs="+", required=True, metavar="NAME", help="what is judged")
    parser.add_argument("--output_dir", required=True, help="results go to <output_dir>/<policy>_vs_<baseline>.json")
    parser.add_argument("--limit", type=positive_int, help="compare on the first prompts only, for each objective")
    add_data_arguments(parser, "prompts to compare on, without it those that the baseline answered", required=False)
    parser.add_argument(
        "--prompts",
        type=named_value,
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME=FILE",
        help="an objective and the prompts that it is judged on; without it, all",
    )
    add_judge_arguments(parser)
    add_sampling_arguments(parser)
    add_loading_arguments(parser)
    args = parser.parse_args()
    allow(args)
    return args


def add_judge_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("judge: gold scores")
    group.add_argument("--gold", metavar="MODULE:FUNCTION", help="(prompts, responses) -> {objective: values}")
    group.add_argument(
        "--gold_margin", type=non_negative_float, default=0.05, help="gold scores closer than this are a tie"
    )
    group = parser.add_argument_group("judge: a language model")
    group.add_argument("--base_url", help="of an OpenAI-compatible server; else the variable OPENAI_BASE_URL")
    group.add_argument("--model", help="name of the model there; else the variable JUDGE_MODEL")
    group.add_argument(
        "--api_key_variable", metavar="VARIABLE", help="variable that holds the key; else OPENAI_API_KEY if it is set"
    )
    group.add_argument(
        "--criteria",
        type=named_value,
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME=FILE",
        help="an objective and its criteria in a text file, whose first line is the scale, such as 1-10"
        f" (there are criteria of {' and '.join(BUILT_IN)})",
    )
    group.add_argument("--concurrency", type=positive_int, default=8, help="requests at once")
    group.add_argument(
        "--timeout", type=positive_seconds, default=60.0, help="seconds of silence after which a request has failed"
    )
    group.add_argument("--max_retries", type=non_negative_int, default=6, help="of a request that fails")
    group.add_argument("--backoff", type=positive_seconds, default=1.0, help="seconds before a retry, then doubled")
    group.add_argument("--max_tokens", type=positive_int, default=512, help="length of an answer of the judge")


def check_names(args: argparse.Namespace) -> None:
    """Raises: UserError: a policy or an objective given twice, or criteria and prompts of another one."""
    names = [args.baseline[0], *(name for name, _ in args.policy)]
    for flag, given in (("--policy", names), ("--objective", args.objective)):
        if twice := [name for name in given if given.count(name) > 1]:
            raise UserError(f"{flag} {twice[0]}: given twice")
    for flag, named in (("--prompts", args.prompts), ("--criteria", args.criteria)):
        for name, path in named:
            if name not in args.objective:
                raise UserError(f"{flag} {name}={path}: --objective does not name it")


def make_endpoint(args: argparse.Namespace) -> Endpoint:
    """The judge's address, name and key, from flags or the environment.

    Raises:
        UserError: one that is needed is missing.
    """
    base_url, model = args.base_url or os.environ.get("OPENAI_BASE_URL"), args.model or os.environ.get("JUDGE_MODEL")
    if not base_url:
        raise UserError("--base_url: needed, or OPENAI_BASE_URL, or --gold")
    if not model:
        raise UserError("--model: needed, or JUDGE_MODEL")
    key = os.environ.get(args.api_key_variable or "OPENAI_API_KEY", "").strip()
    if args.api_key_variable and not key:
        raise UserError(f"--api_key_variable {args.api_key_variable}: this variable is not set")
    limits = {name: getattr(args, name) for name in ("timeout", "max_retries", "backoff", "max_tokens")}
    return Endpoint(base_url, model, key or None, **limits)


def find_criteria(args: argparse.Namespace) -> dict[str, Criteria]:
    """Criteria of every objective. Raises: UserError: an objective has none."""
    criteria = BUILT_IN | {name: read_criteria(name, path) for name, path in args.criteria}
    for name in args.objective:
        if name not in criteria:
            raise UserError(f"--objective {name}: there are no criteria for it (--criteria {name}=FILE)")
    return criteria


def sources_of(args: argparse.Namespace) -> dict[str, tuple[str, str]]:
    """{name of a policy or the baseline: (path, flag)}."""
    sources = {name: (path, f"--policy {name}") for name, path in args.policy}
    return sources | {args.baseline[0]: (args.baseline[1], f"--baseline {args.baseline[0]}")}


def collect_pairs(args: argparse.Namespace, sources: dict[str, Source], selected: dict[str, list[tuple]]) -> list[Pair]:
    """Everything to compare, policy by policy and objective by objective; responses are generated if need be."""
    responses = {name: get_responses(source, args) for name, source in sources.items()}
    baseline = responses[args.baseline[0]]
    return [
        Pair(name, objective, responses[name][key], baseline[key])
        for name, _ in args.policy
        for objective, conversations in selected.items()
        for key in conversations
    ]


def select_conversations(args: argparse.Namespace, sources: dict[str, Source]) -> dict[str, list[tuple]]:
    """{objective: the conversations it is judged on}, in the order of the baseline's responses.

    Raises:
        UserError: prompts that cannot be read, or to which the baseline or a policy has no response.
    """
    baseline = sources[args.baseline[0]].places()
    data = read_prompts(args.data) if args.data else set(baseline)
    prompts = {name: read_prompts(path) for name, path in args.prompts}
    every = select_prompts(data, f"--data {args.data}", baseline)
    own = {name: select_prompts(prompts[name], f"--prompts {name}={path}", baseline) for name, path in args.prompts}
    selected = {}
    for objective in args.objective:
        wanted = every & own.get(objective, every)
        selected[objective] = [key for key in baseline if key in wanted][: args.limit]
        if not selected[objective]:
            raise UserError(f"--prompts {objective}: none of its prompts is in --data {args.data}")
        for name, _ in args.policy:
            check_answered(selected[objective], sources[name].places(), baseline, f"--policy {name}")
    return selected


def check_gold(gold: Gold, args: argparse.Namespace, example: Row) -> None:
    """Raises: UserError: the function cannot grade a response, or not one of the objectives."""
    graded = grade(gold, args.gold, [example])
    for objective in args.objective:
        if objective not in graded:
            raise UserError(f"--gold {args.gold}: grades no objective {objective}")


def judge_by_gold(pairs: list[Pair], gold: Gold, args: argparse.Namespace) -> list[Verdict]:
    """Gold scores know no order: both presentations have the same.

    Raises:
        UserError: see `score_gold`.
    """
    rows = {id(row): row for pair in pairs for row in (pair.response, pair.baseline)}
    score_gold(gold, args.gold, {"": list(rows.values())})
    verdicts = []
    for pair in pairs:
        ours, theirs = (row["gold"][pair.objective] for row in (pair.response, pair.baseline))
        outcome = (
            "tie" if ours == theirs or abs(ours - theirs) < args.gold_margin else "win" if ours > theirs else "lose"
        )
        verdicts.append(Verdict((ours, ours), (theirs, theirs), outcome))
    return verdicts


def judge_by_model(pairs: list[Pair], criteria: dict[str, Criteria], client: ChatClient, concurrency: int) -> list:
    """Ask about every pair in both orders; equal questions are asked once.

    Raises:
        UserError: the endpoint fails, or gives no usable answer to anything.
    """
    asked = [(criteria[pair.objective], messages) for pair in pairs for messages in both_orders(criteria, pair)]
    keys = [client.key_of(messages) for _, messages in asked]
    questions = dict(zip(keys, asked, strict=True))
    progress = Progress(len(questions), "judge", every=max(1, len(questions) // 20))
    answers = client.map(lambda item: ask(client, *item), list(questions.values()), concurrency, progress.update)
    by_key = dict(zip(questions, answers, strict=True))
    verdicts = [decide(by_key[first], by_key[second]) for first, second in zip(keys[::2], keys[1::2], strict=True)]
    if all(verdict.outcome == "unusable" for verdict in verdicts):
        raise UserError(
            f"--model {client.endpoint.model}: no answer can be used, the last is: {answers[-1][1][:200]!r}"
        )
    return verdicts


def both_orders(criteria: dict[str, Criteria], pair: Pair) -> Iterator[list[Message]]:
    """The questions with the policy first, then with the baseline first."""
    texts = pair.response["response"], pair.baseline["response"]
    for first, second in (texts, texts[::-1]):
        yield question(criteria[pair.objective], pair.response["messages"], first, second)


def ask(client: ChatClient, criteria: Criteria, messages: list[Message]) -> tuple[tuple[float, float] | None, str]:
    """The two scores of an answer and its reasons. Without scores: None and the answer or why there is none."""
    try:
        answer = client.complete(messages)
        if read_scores(criteria, answer) is None:
            answer = client.complete(reminder(criteria, messages, answer))
    except Refused as error:
        return None, f"refused: {error}"
    scores = read_scores(criteria, answer)
    return scores, answer if scores is None else read_reasons(answer)


def decide(first: tuple, second: tuple) -> Verdict:
    """The verdict of the answers in both orders; the second saw the baseline first."""
    (scores, reasons), (swapped, more_reasons) = first, second
    ours = scores and scores[0], swapped and swapped[1]
    theirs = scores and scores[1], swapped and swapped[0]
    return Verdict(ours, theirs, find_outcome(ours, theirs), (reasons, more_reasons))


def find_outcome(ours: tuple[float | None, ...], theirs: tuple[float | None, ...]) -> str:
    """'win', 'tie', 'lose' or 'unusable' of the scores in both orders."""
    if None in ours or None in theirs:
        return "unusable"
    leads = [a - b for a, b in zip(ours, theirs, strict=True)]
    if sum(leads) == 0 or leads[0] * leads[1] < 0:  # the orders contradict each other
        return "tie"
    return "win" if sum(leads) > 0 else "lose"


def summarize(verdicts: list[Verdict]) -> dict[str, Any]:
    """Scores, relative score and win, tie and lose with intervals, of one policy on one objective."""
    usable = [verdict for verdict in verdicts if verdict.outcome != "unusable"]
    ours, theirs = ([sum(scores) / 2 for scores in column] for column in (
        [verdict.policy_scores for verdict in usable], [verdict.baseline_scores for verdict in usable]
    ))  # fmt: skip
    relative = [a - b for a, b in zip(ours, theirs, strict=True)]
    columns = {"policy_score": ours, "baseline_score": theirs, "relative_score": relative}
    counts = {name: sum(verdict.outcome == name for verdict in usable) for name in OUTCOMES}
    return {
        **{name: mean_and_interval(column) if column else None for name, column in columns.items()},
        **{name: wilson_interval(count, len(usable)) for name, count in counts.items()},
        "comparisons": len(usable),
        "unusable": len(verdicts) - len(usable),
    }


def wilson_interval(count: int, total: int) -> dict[str, float] | None:
    """A share in percent with the bounds of its 95% Wilson interval; None of nothing."""
    if total == 0:
        return None
    z, share = 1.96, count / total
    center = (share + z * z / (2 * total)) / (1 + z * z / total)
    half_width = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total)) / (1 + z * z / total)
    low, high = max(0.0, center - half_width), min(1.0, center + half_width)
    return {"percent": 100 * share, "low": 100 * low, "high": 100 * high}


def describe(pair: Pair, verdict: Verdict) -> dict[str, Any]:
    """A row of the result."""
    return {
        "prompt": pair.response["prompt"],
        "source": pair.response["source"],
        "objective": pair.objective,
        "policy_scores": verdict.policy_scores,
        "baseline_scores": verdict.baseline_scores,
        "outcome": verdict.outcome,
        "reasons": verdict.reasons,
    }


def make_result(policy: str, baseline: str, judge: str, judged: list[tuple[Pair, Verdict]]) -> dict[str, Any]:
    """The content of <policy>_vs_<baseline>.json; `judged` are the comparisons of this policy."""
    by_objective: dict[str, list[Verdict]] = {}
    for pair, verdict in judged:
        by_objective.setdefault(pair.objective, []).append(verdict)
    return {
        "policy": policy,
        "baseline": baseline,
        "judge": judge,
        "prompts": len({pair.response["source"] for pair, _ in judged}),
        "objectives": {name: summarize(verdicts) for name, verdicts in by_objective.items()},
        "rows": [describe(pair, verdict) for pair, verdict in judged],
    }


def result_file(args: argparse.Namespace, policy: str) -> Path:
    return Path(args.output_dir) / f"{policy}_vs_{args.baseline[0]}.json"


def print_table(results: list[dict[str, Any]]) -> None:
    width = max(len(result["policy"]) for result in results)
    print(f"\n{'':{width}}  objective       relative score   win %  tie %  lose %  comparisons  unusable")
    for result in results:
        for name, entry in result["objectives"].items():
            if not entry["comparisons"]:
                print(f"{result['policy']:{width}}  {name:14}  {'no usable answer':>52}  {entry['unusable']:8}")
                continue
            relative = f"{entry['relative_score']['mean']:+.2f} ± {entry['relative_score']['ci95']:.2f}"
            win, tie, lose = (entry[outcome]["percent"] for outcome in OUTCOMES)
            print(f"{result['policy']:{width}}  {name:14}  {relative:>14}  {win:6.1f} {tie:6.1f}  {lose:6.1f}"
                  f"  {entry['comparisons']:11}  {entry['unusable']:8}")  # fmt: skip


def main() -> None:
    args = parse_args()
    check_names(args)
    answers_file = Path(args.output_dir) / "answers.jsonl"
    for file in [answers_file, *(result_file(args, name) for name, _ in args.policy)]:
        check_output_file(file)
    gold = client = criteria = None
    if args.gold:
        gold = load_gold(args.gold)
    else:
        criteria, endpoint = find_criteria(args), make_endpoint(args)
        client = ChatClient(endpoint, AnswerCache(answers_file))
    sources = {name: open_source(name, *source, args) for name, source in sources_of(args).items()}
    selected = select_conversations(args, sources)
    if gold:
        check_gold(gold, args, sources[args.baseline[0]].example())
    check_writable(args.output_dir)
    pairs = collect_pairs(args, sources, selected)
    if client is None:
        verdicts, judge = judge_by_gold(pairs, gold, args), "gold scores"
    else:
        verdicts = judge_by_model(pairs, criteria, client, args.concurrency)
        judge = f"{client.endpoint.model} at {client.endpoint.host}"
        print(f"{judge}: {client.asked} requests, {client.retried} of them retries", flush=True)
    results = []
    for name, _ in args.policy:
        judged = [(pair, verdict) for pair, verdict in zip(pairs, verdicts, strict=True) if pair.policy == name]
        results.append(make_result(name, args.baseline[0], judge, judged))
        write_json(result_file(args, name), results[-1])
        print(f"{name} vs {args.baseline[0]}: {result_file(args, name)}", flush=True)
    print_table(results)


def run() -> None:
    """`main`, and a word about what is kept when it is interrupted."""
    try:
        main()
    except KeyboardInterrupt:
        print(
            "interrupted; the answers so far are kept, the same command goes on from there", file=sys.stderr, flush=True
        )
        os._exit(INTERRUPTED)  # without waiting for the requests under way


if __name__ == "__main__":
    run_main(run)
