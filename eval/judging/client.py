"""Chat completions from an OpenAI-compatible endpoint: retries with backoff, an answer on disk is never asked again.

The key of the endpoint is sent to it and goes nowhere else: answers and errors are cleared of it before anyone sees
them.
"""

import hashlib
import json
import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, TypeVar

import httpx2

from utils.data.records import Message
from utils.process.errors import UserError
from utils.process.plain_text import printable

TRANSIENT = {408, 409, 425, 429}  # and 500 to 599: the same request may succeed later
REFUSED = {400, 413, 422}  # this request is not answered, others may be
MANY_REFUSED = 50  # refused without an answer to any other: the settings are wrong, not the requests
LONGEST_PAUSE = 60.0  # seconds of backoff; a server that asks for more gets more
LONGEST_RETRY_AFTER = 86400.0
WORTH_SAYING = 5.0  # seconds of a pause from which on it is announced

Item, Answer = TypeVar("Item"), TypeVar("Answer")


class Refused(Exception):
    """The endpoint will not answer this request, such as one that its filter of contents stops."""


class Transient(Exception):
    """A failure that may pass; `pause` is how many seconds the server asked to be left alone."""

    def __init__(self, reason: str, pause: float = 0.0):
        super().__init__(reason)
        self.pause = pause


@dataclass(frozen=True)
class Endpoint:
    """Where and how to ask.

    Attributes:
        key: None for servers that want none.
        timeout: seconds of silence after which a try has failed.
        backoff: seconds before the first retry; they double with each.
        max_tokens: length of an answer.
    """

    base_url: str
    model: str
    key: str | None = field(repr=False)
    timeout: float = 60.0
    max_retries: int = 6
    backoff: float = 1.0
    max_tokens: int = 512

    def __post_init__(self):
        """Raises: UserError: an address or key that no request can carry."""
        try:
            url = httpx2.URL(self.base_url)
        except httpx2.InvalidURL as error:
            raise UserError(f"--base_url: not an address ({error})") from None
        if url.scheme not in ("http", "https") or not url.host:
            raise UserError("--base_url: not an address that begins with http:// or https://")
        if self.key is not None and not (self.key.isascii() and self.key.isprintable() and " " not in self.key):
            raise UserError("--api_key_variable: the key has characters that no key can have")

    @property
    def host(self) -> str:
        """Host and port, without anything else that the address may carry."""
        url = httpx2.URL(self.base_url)
        return f"{url.host}:{url.port}" if url.port else url.host


class AnswerCache:
    """Answers by request, one JSON line each, appended as they come; what a killed run left is read and kept."""

    def __init__(self, path: Path):
        self.path, self.lock = path, threading.Lock()
        self.answers: dict[str, str] = {}
        text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
        for line in text.split("\n"):
            try:
                entry = json.loads(line)
                self.answers[entry["key"]] = "" + entry["answer"]  # text
            except (ValueError, KeyError, TypeError):
                continue  # the last line of a run that was killed as it wrote; its request is made again
        self.torn = not text.endswith("\n") and bool(text)

    def get(self, key: str) -> str | None:
        with self.lock:
            return self.answers.get(key)

    def put(self, key: str, answer: str) -> None:
        line = json.dumps({"key": key, "answer": answer}) + "\n"
        with self.lock, self.path.open("a", encoding="utf-8") as file:
            file.write("\n" + line if self.torn else line)
            self.torn = False
            self.answers[key] = answer


class ChatClient:
    """Answers to messages, from the cache or from the endpoint; for use by several threads."""

    def __init__(self, endpoint: Endpoint, cache: AnswerCache):
        self.endpoint, self.cache = endpoint, cache
        headers = {"Content-Type": "application/json"}
        if endpoint.key:
            headers["Authorization"] = f"Bearer {endpoint.key}"
        self.http = httpx2.Client(headers=headers, timeout=endpoint.timeout)
        self.url = endpoint.base_url.rstrip("/") + "/chat/completions"
        self.lock, self.stopped = threading.Lock(), threading.Event()
        self.asked = self.retried = self.answered = self.refused = 0

    def complete(self, messages: list[Message]) -> str:
        """The text of the answer.

        Raises:
            Refused: the endpoint does not answer this request.
            UserError: it answers none, or failed at each of the tries.
        """
        key = self.key_of(messages)
        answer = self.cache.get(key)
        if answer is None:
            answer = self.redact(self.try_often(messages))
            self.cache.put(key, answer)
        self.count(answered=1)
        return answer

    def key_of(self, messages: list[Message]) -> str:
        """What an answer is kept under: sha256 of all that decides it."""
        asked = [self.endpoint.base_url, self.endpoint.model, self.endpoint.max_tokens, messages]
        return hashlib.sha256(json.dumps(asked).encode()).hexdigest()

    def try_often(self, messages: list[Message]) -> str:
        for attempt in range(self.endpoint.max_retries + 1):
            try:
                self.count(asked=1, retried=int(attempt > 0))
                return self.request(messages)
            except Transient as error:
                failure = error
            if attempt < self.endpoint.max_retries:
                self.pause(attempt, failure)
        raise UserError(
            f"--base_url: {self.endpoint.host} failed {self.endpoint.max_retries + 1} times in a row, at last with:"
            f" {failure}; the answers so far are kept, the same command goes on from there"
        )

    def pause(self, attempt: int, failure: Transient) -> None:
        """Wait before try `attempt` + 1: as long as the server asked, or twice as long each time, with jitter."""
        seconds = min(LONGEST_PAUSE, self.endpoint.backoff * 2 ** min(attempt, 30)) * random.uniform(0.5, 1.5)
        if failure.pause:
            seconds = failure.pause + self.endpoint.backoff * random.random()
        if seconds >= WORTH_SAYING:
            print(f"{self.endpoint.host}: {failure}; next try in {seconds:.0f} s", flush=True)
        if self.stopped.wait(seconds):
            raise UserError("--base_url: stopped before an answer came")

    def request(self, messages: list[Message]) -> str:
        """One try. Raises `Transient`, `Refused` or, where no try can succeed, `UserError`."""
        body = {
            "model": self.endpoint.model,
            "messages": messages,
            "temperature": 0,
            "max_tokens": self.endpoint.max_tokens,
        }
        try:
            response = self.http.post(self.url, content=json.dumps(body))
        except httpx2.TimeoutException:
            raise Transient(f"no answer within {self.endpoint.timeout:g} s") from None
        except httpx2.HTTPError as error:
            raise Transient(
                f"the connection failed ({self.redact(printable(str(error))) or type(error).__name__})"
            ) from None
        if response.status_code == 200:
            return read_completion(response)
        problem = f"HTTP {response.status_code} {self.redact(read_problem(response))[:200]}".strip()
        if response.status_code in TRANSIENT or response.status_code >= 500:
            raise Transient(problem, read_retry_after(response.headers.get("Retry-After", "")))
        if response.status_code in REFUSED:
            self.count(refused=1)
            if self.refused >= MANY_REFUSED and not self.answered:
                raise UserError(f"--base_url: {self.endpoint.host} refuses every request: {problem}")
            raise Refused(problem)
        hint = {401: "; is the key right?", 403: "; is the key right?", 404: "; are --base_url and --model right?"}
        raise UserError(f"--base_url: {self.endpoint.host} answers {problem}{hint.get(response.status_code, '')}")

    def redact(self, text: str) -> str:
        return text.replace(self.endpoint.key, "[key]") if self.endpoint.key else text

    def count(self, **events: int) -> None:
        with self.lock:
            for name, number in events.items():
                setattr(self, name, getattr(self, name) + number)

    def map(
        self, function: Callable[[Item], Answer], items: list[Item], concurrency: int, report: Callable[[int], None]
    ) -> list[Answer]:
        """`function` of every item, `concurrency` at once; the first error ends them all. `report(number done)`."""
        failures: list[Exception] = []

        def attempt(item: Item) -> Answer | None:
            if self.stopped.is_set():
                return None
            try:
                return function(item)
            except Exception as error:
                failures.append(error)
                self.stopped.set()
                return None

        pool = ThreadPoolExecutor(concurrency)
        try:
            futures = [pool.submit(attempt, item) for item in items]
            for done, _ in enumerate(as_completed(futures), start=1):
                if failures:
                    raise failures[0]
                report(done)
        except BaseException:
            self.stopped.set()
            raise
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # an interrupt does not wait for requests under way
        return [future.result() for future in futures]


def read_completion(response: httpx2.Response) -> str:
    """The text of a chat completion. Raises `Transient`: the body is not one."""
    try:
        content = response.json()["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError):
        raise Transient("an answer that is no chat completion") from None
    if content is not None and not isinstance(content, str):
        raise Transient("a chat completion that is no text")
    return (content or "").encode("utf-8", "replace").decode()  # JSON may hold half of a character


def read_problem(response: httpx2.Response) -> str:
    """What a failed response says about itself, on one line."""
    try:
        text: Any = response.json()["error"]["message"]
    except (ValueError, KeyError, TypeError):
        text = response.text
    return printable(" ".join(str(text).split()))


def read_retry_after(value: str) -> float:
    """Seconds of a Retry-After header, a day at most; it holds seconds or a date; 0 if there is none to be read."""
    if value.strip().isdigit():
        return min(float(value), LONGEST_RETRY_AFTER)
    try:
        seconds = (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds()
        return min(max(0.0, seconds), LONGEST_RETRY_AFTER)
    except (ValueError, TypeError, OverflowError):
        return 0.0
