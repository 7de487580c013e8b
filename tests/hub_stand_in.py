"""A local server with as much of the hub's API as an upload needs, which keeps what it is sent."""

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Hub:
    """What was sent: made repositories, files by path, and the first line of commits; `refuses` answers with 403."""

    url: str = ""
    refuses: bool = False
    repositories: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)  # of large files, by their sha256
    commits: list[str] = field(default_factory=list)


def handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def answer(self, value: Any, status: int = 200) -> None:
            content = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def body(self) -> bytes:
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))

        def do_PUT(self) -> None:
            hub.objects[self.path.rpartition("/")[2]] = self.body()
            self.answer({})

        def do_GET(self) -> None:
            self.answer({"id": "owner/model", "sha": "0" * 40, "siblings": []})

        def do_POST(self) -> None:
            content = self.body()
            if hub.refuses:
                self.answer({"error": "no"}, 403)
            elif self.path == "/api/repos/create":
                hub.repositories.append(json.loads(content))
                self.answer({"url": f"{hub.url}/owner/model", "name": "owner/model"})
            elif "/preupload/" in self.path:
                files = json.loads(content)["files"]
                mode = lambda path: "lfs" if path.endswith(".safetensors") else "regular"
                told = [{"path": f["path"], "uploadMode": mode(f["path"]), "shouldIgnore": False} for f in files]
                self.answer({"files": told})
            elif self.path.endswith("/info/lfs/objects/batch"):
                objects = json.loads(content)["objects"]
                upload = lambda o: {"upload": {"href": f"{hub.url}/objects/{o['oid']}"}}
                self.answer({"transfer": "basic", "objects": [{**o, "actions": upload(o)} for o in objects]})
            elif "/commit/" in self.path:
                self.commit([json.loads(line) for line in content.splitlines() if line])
            else:
                self.answer({})

        def commit(self, lines: list[dict[str, Any]]) -> None:
            for line in lines:
                value = line["value"]
                if line["key"] == "header":
                    hub.commits.append(value["summary"])
                elif line["key"] == "file":
                    hub.files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    hub.files[value["path"]] = hub.objects[value["oid"]]
            self.answer(
                {"commitUrl": f"{hub.url}/owner/model/commit/{'1' * 40}", "commitOid": "1" * 40, "success": True}
            )

    return Handler


@contextmanager
def running_hub() -> Iterator[Hub]:
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(hub))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
