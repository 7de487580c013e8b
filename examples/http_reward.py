"""An objective whose values a server computes: a large model, a verifier in a sandbox, anything of another machine.

    python examples/http_reward.py --serve 8008 &
    REWARD_URL=http://127.0.0.1:8008 python step3_gapo/main.py --reward_function brevity=examples.http_reward:ask ...

The server gets {"prompts": [...], "responses": [...]} by POST and answers {"values": [...]}. Whatever goes wrong raises
here, and the run asks again after a while (`--reward_retries`, `--reward_retry_wait`): a server may be started again.
"""

import json
import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx2

URL = os.environ.get("REWARD_URL", "http://127.0.0.1:8008")
SECONDS = 60.0  # of silence after which a request has failed


def ask(prompts: list[str], responses: list[str]) -> list[float]:
    """The server's value of every response. Raises whatever a request may."""
    answer = httpx2.post(URL, json={"prompts": prompts, "responses": responses}, timeout=SECONDS)
    answer.raise_for_status()
    return answer.json()["values"]


# --- a server


def grade(prompt: str, response: str) -> float:
    """What a response is worth: here the shorter the more. Yours asks a model."""
    return 1 / (1 + len(response) / 100)


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        values = [grade(*pair) for pair in zip(asked["prompts"], asked["responses"], strict=True)]
        content = json.dumps({"values": values}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


if __name__ == "__main__":
    if sys.argv[1:2] != ["--serve"] or len(sys.argv) != 3:
        sys.exit("usage: python examples/http_reward.py --serve PORT")
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[2])), Handler).serve_forever()
