"""The judge through the command line, against a real local server that answers well, badly, slowly and not at all."""

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import binomtest

from eval import judge
from eval.judging.client import read_retry_after
from eval.judging.criteria import BUILT_IN, read_scores
from tests.cases import EXHAUSTIVE
from tests.helpers import ROOT, Result, Workshop, flags, free_port, run_function, run_script
from utils.process.errors import run_main
from utils.process.plain_text import printable
from utils.safe_rlhf_mini import gold_scores

pytestmark = pytest.mark.slow

KEY = "sk-a-key-that-must-stay-secret"
OURS, THEIRS = [9, 7, 5, 5, 3, 8], [4, 7, 6, 2, 8, 1]  # what the server finds the responses to each prompt worth
RESPONSE = re.compile(r"\[Response of Assistant \d\]\nworth (\d+)")
QUESTION = re.compile(r"Question (\d+)\?")

# What a server does with a request: (how often it came before, its body) -> (status, headers, content).
Reply = tuple[int, dict[str, str], bytes]
Behavior = Callable[[int, dict[str, Any]], Reply]


class Server(ThreadingHTTPServer):
    """Chat completions as `behavior` says; it may sleep, or raise ConnectionError to hang up."""

    daemon_threads = True

    def __init__(self, behavior: Behavior):
        super().__init__(("127.0.0.1", 0), Handler)
        self.behavior, self.lock = behavior, threading.Lock()
        self.bodies: list[dict[str, Any]] = []
        self.times: list[float] = []
        self.keys: set[str | None] = set()
        self.answered: Counter[str] = Counter()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that gave up are part of the tests."""


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        text = self.rfile.read(int(self.headers["Content-Length"])).decode()
        body, server = json.loads(text), self.server
        with server.lock:
            before = server.bodies.count(body)
            server.bodies.append(body)
            server.times.append(time.monotonic())
            server.keys.add(self.headers.get("Authorization"))
        assert self.path == "/v1/chat/completions"
        try:
            status, headers, content = server.behavior(before, body)
        except ConnectionError:
            self.connection.close()
            return
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)
        with server.lock:
            server.answered[text] += status == 200

    def log_message(self, *_: Any) -> None:
        """The output of the tests is for the tests."""


def completion(text: str) -> Reply:
    return 200, {}, json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode()


def material(body: dict[str, Any]) -> str:
    return body["messages"][1]["content"]


def good_judge(before: int, body: dict[str, Any]) -> Reply:
    first, second = RESPONSE.findall(material(body))
    return completion(f"{first} {second}\nThe worth of each.")


@pytest.fixture
def start() -> Iterator[Callable[[Behavior], Server]]:
    servers = []

    def start_server(behavior: Behavior) -> Server:
        servers.append(Server(behavior))
        threading.Thread(target=servers[-1].serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return servers[-1]

    yield start_server
    for server in servers:
        server.shutdown()
        server.server_close()


def write_responses(path: Path, worths: list[int]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        {"prompt": f"Question {i}?", "messages": [{"role": "user", "content": f"Question {i}?"}],
         "source": f"test.jsonl:{i + 1}", "response": f"worth {worth}"}
        for i, worth in enumerate(worths)
    ]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def compare_flags(folder: Path, url: str | None, **changes: Any) -> list[str]:
    ours, theirs = (write_responses(folder / f"{n}.jsonl", w) for n, w in (("ours", OURS), ("theirs", THEIRS)))
    return flags(**{
        "policy": f"gapo={ours}", "baseline": f"sft={theirs}", "objective": "helpfulness",
        "output_dir": folder / "judge", "base_url": url, "model": "judge-1", "backoff": 0.02, "timeout": 10,
    } | changes)  # fmt: skip


def compare(folder: Path, server: Server | None, **changes: Any) -> Result:
    return run_script("eval/judge.py", compare_flags(folder, server and server.url, **changes))


def read_result(folder: Path, name: str = "gapo_vs_sft") -> dict[str, Any]:
    return json.loads((folder / f"judge/{name}.json").read_text())


def with_variables(variables: dict[str, str], arguments: list[str]) -> None:
    """In a forked process: the judge with variables in its environment."""
    os.environ.update(variables)
    sys.argv = ["eval/judge.py", *arguments]
    run_main(judge.run)


def outcomes(result: dict[str, Any], objective: str = "helpfulness") -> list[str]:
    return [row["outcome"] for row in result["rows"] if row["objective"] == objective]


def test_a_good_judge(start: Callable[[Behavior], Server], tmp_path: Path) -> None:
    server = start(good_judge)
    variables = {"OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": server.url, "JUDGE_MODEL": "judge-2"}
    arguments = compare_flags(tmp_path, None, model=None, objective=("helpfulness", "harmlessness"))
    ended = run_function(with_variables, variables, arguments)
    assert ended.code == 0, ended.stderr
    result = read_result(tmp_path)
    assert (result["policy"], result["baseline"], result["prompts"]) == ("gapo", "sft", 6)
    assert result["judge"] == f"judge-2 at 127.0.0.1:{server.server_port}"
    for objective in ("helpfulness", "harmlessness"):
        assert outcomes(result, objective) == ["win", "tie", "lose", "win", "lose", "win"]
        entry = result["objectives"][objective]
        assert (entry["comparisons"], entry["unusable"]) == (6, 0)
        assert entry["policy_score"]["mean"] == pytest.approx(sum(OURS) / 6)
        assert entry["baseline_score"]["mean"] == pytest.approx(sum(THEIRS) / 6)
        assert entry["relative_score"]["mean"] == pytest.approx((sum(OURS) - sum(THEIRS)) / 6)
        for outcome, count in (("win", 3), ("tie", 1), ("lose", 2)):
            bounds = binomtest(count, 6).proportion_ci(method="wilson")
            expected = [100 * count / 6, 100 * bounds.low, 100 * bounds.high]
            assert [entry[outcome][k] for k in ("percent", "low", "high")] == pytest.approx(expected, abs=0.01)
    row = result["rows"][2]
    assert row["prompt"] == "Question 2?" and row["reasons"] == ["The worth of each."] * 2
    assert row["policy_scores"] == [5, 5] and row["baseline_scores"] == [6, 6]
    assert server.keys == {f"Bearer {KEY}"}
    assert all(body["temperature"] == 0 and body["model"] == "judge-2" for body in server.bodies)
    # Both orders of every pair that differs, once; the pair that is the same text either way is one question.
    shown = Counter((body["messages"][0]["content"], *RESPONSE.findall(material(body))) for body in server.bodies)
    systems = {system for system, *_ in shown}
    pairs = [(str(a), str(b)) for a, b in zip(OURS, THEIRS, strict=True)]
    assert shown == Counter({(s, *order) for s in systems for a, b in pairs for order in ((a, b), (b, a))})
    assert sum("Accuracy" in s and "from 1 to 10" in s for s in systems) == 1
    assert sum("violence" in s and "from 0 to 10" in s for s in systems) == 1
    assert "gapo" in ended.stdout and "50.0" in ended.stdout


def test_a_troubled_judge(start: Callable[[Behavior], Server], tmp_path: Path) -> None:
    """Every prompt meets another trouble; what passes is retried, what does not is counted and not guessed."""

    def behavior(before: int, body: dict[str, Any]) -> Reply:
        number, reminded = int(QUESTION.search(material(body))[1]), len(body["messages"]) > 2
        if before == 0 and not reminded:
            if number == 0:
                return 429, {"Retry-After": "1"}, b"slow down"
            if number == 1:
                return 500, {}, b"oops"
            if number == 2:
                raise ConnectionError
            if number == 3:
                return 200, {}, b'{"choices": []}' if RESPONSE.findall(material(body))[0] == "5" else b"<html>"
            if number == 4:
                time.sleep(1.5)
        if number == 5 and not reminded:
            return completion("Assistant 1 is better.")
        return good_judge(before, body)

    server = start(behavior)
    ended = compare(tmp_path, server, timeout=0.7)
    assert ended.code == 0, ended.stderr
    assert outcomes(read_result(tmp_path)) == ["win", "tie", "lose", "win", "lose", "win"]
    first = [t for body, t in zip(server.bodies, server.times, strict=True) if "Question 0?" in material(body)]
    assert first[-1] - first[0] >= 1 and len(first) == 4
    asked = Counter(QUESTION.search(material(body))[1] for body in server.bodies)
    assert asked == {"0": 4, "1": 2, "2": 4, "3": 4, "4": 4, "5": 4}
    reminders = [body["messages"] for body in server.bodies if len(body["messages"]) > 2]
    assert all(messages[2] == {"role": "assistant", "content": "Assistant 1 is better."} for messages in reminders)


def test_answers_that_cannot_be_used(start: Callable[[Behavior], Server], tmp_path: Path) -> None:
    answers = {"0": "9/10 4/10\nclear", "1": "11 3\noff the scale", "2": "8", "3": "", "4": "Scores: 3 8"}

    def behavior(before: int, body: dict[str, Any]) -> Reply:
        number = QUESTION.search(material(body))[1]
        if number == "3":
            return 400, {}, b'{"error": {"message": "filtered"}}'
        return completion(answers[number]) if number in answers else good_judge(before, body)

    ended = compare(tmp_path, start(behavior))
    assert ended.code == 0, ended.stderr
    result = read_result(tmp_path)
    assert outcomes(result) == ["unusable"] * 5 + ["win"]
    entry = result["objectives"]["helpfulness"]
    assert (entry["comparisons"], entry["unusable"]) == (1, 5)
    assert entry["win"]["percent"] == 100 and entry["relative_score"] == {"mean": 7, "ci95": 0}
    assert result["rows"][0]["policy_scores"] == [None, None]
    assert result["rows"][0]["reasons"] == ["9/10 4/10\nclear"] * 2
    assert "filtered" in result["rows"][3]["reasons"][0]
    useless = compare(tmp_path / "useless", start(lambda before, body: completion("no idea")))
    assert useless.code == 2 and "no answer can be used" in useless.stderr


def test_a_judge_that_looks_at_the_position_only(start: Callable[[Behavior], Server], tmp_path: Path) -> None:
    for number, scores in enumerate(("9 4", "2 8")):
        ended = compare(tmp_path / str(number), start(lambda before, body, scores=scores: completion(scores)))
        assert ended.code == 0, ended.stderr
        assert outcomes(read_result(tmp_path / str(number))) == ["tie"] * 6


def test_outcomes() -> None:
    """Equal or contradictory is a tie, even where the sums differ; one order without a lead decides nothing alone."""
    assert judge.find_outcome((9, 8), (5, 5)) == "win"
    assert judge.find_outcome((9, 5), (5, 8)) == "tie"
    assert judge.find_outcome((6, 5), (6, 7)) == "lose"
    assert judge.find_outcome((6, 6), (6, 6)) == "tie"
    assert judge.find_outcome((9, None), (5, None)) == "unusable"


@pytest.mark.parametrize(
    "answer, scores",
    [
        ("7 3\nreasons", (7, 3)), ("  7.5\t10 \n", (7.5, 10)), ("\n\n1 1", (1, 1)), ("7, 3", None), ("7 3.", None),
        ("7 3 2", None), ("0 3", None), ("7 10.5", None), ("-7 3", None), ("Scores:\n7 3", None), ("", None),
        ("1e1 3", None), ("73", None),
    ],
)  # fmt: skip
def test_read_scores(answer: str, scores: tuple[float, float] | None) -> None:
    assert read_scores(BUILT_IN["helpfulness"], answer) == scores


def test_retry_after() -> None:
    assert read_retry_after("7") == 7
    assert read_retry_after(format_datetime(datetime.now(UTC) + timedelta(seconds=30))) == pytest.approx(30, abs=2)
    assert read_retry_after(format_datetime(datetime.now(UTC) - timedelta(seconds=30))) == 0
    assert read_retry_after("") == read_retry_after("soon") == 0


def test_no_judge_at_all(start: Callable[[Behavior], Server], tmp_path: Path) -> None:
    """A closed port, a server that never answers, always fails or refuses: one line, exit code 2."""
    mute = start(lambda before, body: time.sleep(3) or completion("1 1"))
    failing = start(lambda before, body: (503, {}, b"down for\nmaintenance"))
    refusing = start(lambda before, body: (400, {}, b'{"error": {"message": "temperature is not supported"}}'))
    evil = start(lambda before, body: (502, {}, b"\x1b]0;pwned\x07\x9b2J"))
    moved = start(lambda before, body: (301, {"Location": "https://elsewhere"}, b""))
    for url, expected in (
        (f"http://127.0.0.1:{free_port()}/v1", "failed 3 times in a row, at last with: the connection failed"),
        (mute.url, "no answer within 0.2 s"),
        (failing.url, "HTTP 503 down for maintenance"),
        (refusing.url, "temperature is not supported"),
        (evil.url, "HTTP 502 \ufffd]0;pwned\ufffd"),
        (moved.url, "HTTP 301"),
    ):
        ended = run_script("eval/judge.py", compare_flags(tmp_path, url, max_retries=2, timeout=0.2))
        assert ended.code == 2 and ended.stderr.count("\n") == 1, ended.stderr
        assert ended.stderr.startswith("error: --") and expected in ended.stderr
        assert printable(ended.stderr + ended.stdout) == ended.stderr + ended.stdout
    assert all(failing.bodies.count(body) <= 3 for body in failing.bodies)
    assert not (tmp_path / "judge/gapo_vs_sft.json").exists()


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_wrong_key_ends_at_once(start: Callable[[Behavior], Server], tmp_path: Path, status: int) -> None:
    server = start(lambda before, body: (status, {}, json.dumps({"error": {"message": f"not {KEY}" * 30}}).encode()))
    arguments = compare_flags(tmp_path, server.url, concurrency=1, api_key_variable="MY_KEY")
    ended = run_function(with_variables, {"MY_KEY": KEY}, arguments)
    assert ended.code == 2 and ended.stderr.count("\n") == 1 and f"HTTP {status} not [key]" in ended.stderr
    assert KEY[:6] not in ended.stderr  # cut off in the middle
    assert len(server.bodies) == 1 and server.keys == {f"Bearer {KEY}"}
    assert_secret(tmp_path, ended)
    missing = run_script("eval/judge.py", arguments)
    assert missing.code == 2 and "--api_key_variable MY_KEY" in missing.stderr


def test_the_key_is_written_nowhere(start: Callable[[Behavior], Server], tmp_path: Path) -> None:
    """Not even if the server puts it into answers, readable and unreadable ones, and into errors that pass."""

    def behavior(before: int, body: dict[str, Any]) -> Reply:
        if before == 0 and "Question 1?" in material(body):
            return 500, {"Retry-After": "0"}, KEY.encode()
        return completion(KEY if "Question 2?" in material(body) else f"8 2\nThe key is {KEY}.")

    ended = run_function(with_variables, {"OPENAI_API_KEY": KEY}, compare_flags(tmp_path, start(behavior).url))
    assert ended.code == 0, ended.stderr
    assert read_result(tmp_path)["rows"][0]["reasons"] == ["The key is [key]."] * 2
    assert_secret(tmp_path, ended)


def assert_secret(folder: Path, ended: Result) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files and not any(KEY in path.read_text() for path in files)
    assert KEY not in ended.stdout + ended.stderr


@EXHAUSTIVE
def test_killed_and_resumed(start: Callable[[Behavior], Server], tmp_path: Path) -> None:
    """No answered request is made again, although the killed run left half a line."""
    resumed = threading.Event()

    def behavior(before: int, body: dict[str, Any]) -> Reply:
        if not resumed.is_set() and len(server.bodies) > 5:
            resumed.wait(30)
            raise ConnectionError
        return good_judge(before, body)

    server = start(behavior)
    arguments = compare_flags(tmp_path, server.url, concurrency=2)
    cache = tmp_path / "judge/answers.jsonl"
    killed = subprocess.Popen([sys.executable, "eval/judge.py", *arguments], cwd=ROOT, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while killed.poll() is None and time.monotonic() < deadline:
        if cache.is_file() and cache.read_text().count("\n") == 5:
            killed.kill()
        time.sleep(0.05)
    assert killed.wait(10) == -9
    kept = cache.read_text()
    assert kept.count("\n") == sum(server.answered.values()) == 5
    cache.write_text(kept + '{"key": "12ab", "ans')
    resumed.set()
    ended = run_script("eval/judge.py", arguments)
    assert ended.code == 0, ended.stderr
    assert set(server.answered.values()) == {1} and len(server.answered) == 11  # two orders of six, one pair is equal
    assert outcomes(read_result(tmp_path)) == ["win", "tie", "lose", "win", "lose", "win"]
    before = read_result(tmp_path)
    again = run_script("eval/judge.py", arguments)
    assert again.code == 0 and "0 requests" in again.stdout
    assert sum(server.answered.values()) == 11 and read_result(tmp_path) == before
    other = run_script("eval/judge.py", compare_flags(tmp_path, server.url, model="judge-2"))
    assert other.code == 0 and sum(server.answered.values()) == 22  # another judge answers for itself


def test_prompts_limits_and_criteria(start: Callable[[Behavior], Server], tmp_path: Path) -> None:
    server = start(good_judge)
    write_prompts(tmp_path / "some.jsonl", [4, 0, 2, 99])
    write_prompts(tmp_path / "data.jsonl", [0, 1, 2, 3, 4])
    (tmp_path / "brevity.txt").write_text("2-9\n- Say it in few words.\n")
    third = write_responses(tmp_path / "third.jsonl", [6] * 6)
    arguments = {
        "policy": (f"gapo={tmp_path / 'ours.jsonl'}", f"mgda={third}"), "objective": ("helpfulness", "brevity"),
        "prompts": f"helpfulness={tmp_path / 'some.jsonl'}", "criteria": f"brevity={tmp_path / 'brevity.txt'}",
        "data": tmp_path / "data.jsonl",
    }  # fmt: skip
    ended = compare(tmp_path, server, **arguments)
    assert ended.code == 0, ended.stderr
    assert "responses to 3 of 4 prompts" in ended.stdout
    for name, worths in (("gapo", OURS), ("mgda", [6] * 6)):
        result = read_result(tmp_path, f"{name}_vs_sft")
        compared = {o: [r["prompt"] for r in result["rows"] if r["objective"] == o] for o in arguments["objective"]}
        assert compared["helpfulness"] == ["Question 0?", "Question 2?", "Question 4?"]
        assert compared["brevity"] == [f"Question {i}?" for i in range(5)]
        expected = sum(worths[i] - THEIRS[i] for i in (0, 2, 4)) / 3
        assert result["objectives"]["helpfulness"]["relative_score"]["mean"] == pytest.approx(expected)
    assert any("few words" in body["messages"][0]["content"] for body in server.bodies)
    limited = compare(tmp_path, server, **arguments, limit=2)
    assert limited.code == 0 and len(read_result(tmp_path)["rows"]) == 4


def write_prompts(path: Path, numbers: list[int]) -> None:
    path.write_text("".join(json.dumps({"prompt": f"Question {i}?"}) + "\n" for i in numbers))


def test_bad_flags(tmp_path: Path) -> None:
    nowhere = {"base_url": "http://127.0.0.1:9/v1"}
    write_prompts(tmp_path / "other.jsonl", [77])
    (tmp_path / "criteria.txt").write_text("be brief\n")
    short = write_responses(tmp_path / "short.jsonl", OURS[:4])
    for changes, expected in (
        ({"base_url": None}, "--base_url: needed"),
        ({"model": None}, "--model: needed"),
        ({"base_url": "judge.example/v1"}, "--base_url: not an address"),
        ({"objective": "brevity"}, "--objective brevity: there are no criteria"),
        ({"objective": ("helpfulness", "helpfulness")}, "--objective helpfulness: given twice"),
        ({"prompts": "brevity=x.jsonl"}, "--prompts brevity=x.jsonl: --objective does not name it"),
        ({"prompts": f"helpfulness={tmp_path / 'other.jsonl'}"}, "a response to none of its 1 prompts"),
        ({"criteria": f"helpfulness={tmp_path / 'criteria.txt'}"}, "the first line must be the scale"),
        ({"policy": f"sft={tmp_path / 'ours.jsonl'}"}, "--policy sft: given twice"),
        ({"policy": f"a/b={tmp_path / 'ours.jsonl'}"}, "--policy: 'a/b'"),
        ({"policy": "gapo=missing.jsonl"}, "--policy gapo missing.jsonl: no such file"),
        ({"policy": f"gapo={short}"}, "--policy gapo: no response to 2 of 6 prompts"),
        ({"policy": f"gapo={tmp_path}"}, "no such model"),
        ({"gold": "utils.safe_rlhf_mini:nothing"}, "--gold utils.safe_rlhf_mini:nothing"),
        ({"gold": "utils.safe_rlhf_mini:gold_scores", "objective": "wit"}, "grades no objective wit"),
    ):
        ended = run_script("eval/judge.py", compare_flags(tmp_path, None, **(nowhere | changes)))
        assert ended.code == 2 and ended.stderr.count("\n") == 1, ended.stderr
        assert ended.stderr.startswith("error: ") and expected in ended.stderr, ended.stderr


def test_gold_scores_of_models(workshop: Workshop, tmp_path: Path) -> None:
    """Policies answer --data, and the gold scores are the judge; what was generated is kept."""
    data = tmp_path / "prompts.jsonl"
    data.write_text("".join(workshop.prompts.read_text().splitlines(keepends=True)[:12]))
    arguments = flags(
        policy=f"other={workshop.folder / 'other'}", baseline=f"base={workshop.base}", data=data,
        objective=("helpfulness", "harmlessness"), gold="utils.safe_rlhf_mini:gold_scores", gold_margin=0.3,
        max_new_tokens=12, output_dir=tmp_path / "judge",
    )  # fmt: skip
    ended = run_script("eval/judge.py", arguments)
    assert ended.code == 0, ended.stderr
    result = read_result(tmp_path, "other_vs_base")
    assert result["judge"] == "gold scores" and result["prompts"] == 12 and len(result["rows"]) == 24
    responses = {name: [json.loads(line) for line in (tmp_path / f"judge/responses/{name}.jsonl").open()]
                 for name in ("other", "base")}  # fmt: skip
    gold = {n: gold_scores([r["prompt"] for r in rows], [r["response"] for r in rows]) for n, rows in responses.items()}
    for objective in ("helpfulness", "harmlessness"):
        rows = [row for row in result["rows"] if row["objective"] == objective]
        for row, ours, theirs in zip(rows, gold["other"][objective], gold["base"][objective], strict=True):
            assert row["policy_scores"] == [ours, ours] and row["baseline_scores"] == [theirs, theirs]
            assert row["outcome"] == ("tie" if abs(ours - theirs) < 0.3 else "win" if ours > theirs else "lose")
    assert len({row["outcome"] for row in result["rows"]}) > 1
    same = tmp_path / "judge/responses/base.jsonl"
    equal = flags(policy=f"same={same}", baseline=f"base={same}", objective="helpfulness", gold_margin=0,
                  gold="utils.safe_rlhf_mini:gold_scores", output_dir=tmp_path / "judge")  # fmt: skip
    assert run_script("eval/judge.py", equal).code == 0
    assert read_result(tmp_path, "same_vs_base")["objectives"]["helpfulness"]["tie"]["percent"] == 100
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "judge/responses").iterdir()}
    again = run_script("eval/judge.py", arguments)
    assert again.code == 0 and again.stdout.count("is complete") == 2
    assert written == {path: path.stat().st_mtime_ns for path in (tmp_path / "judge/responses").iterdir()}
    without = [word for word in arguments if word not in ("--data", str(data))]
    refused = run_script("eval/judge.py", without)
    assert refused.code == 2 and "error: --data: needed" in refused.stderr
