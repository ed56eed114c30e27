# Copyright 2026 The DenseVLM for transformers authors
# SPDX-License-Identifier: Apache-2.0
"""A server that answers as the Hub does for one user `me`: repositories, uploads in one commit, downloads of files."""

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import yaml


class FakeHub(ThreadingHTTPServer):
    """`repositories`: files by name, for each repository; `commits`: the names of each commit's files; `downloads`."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool | None] = {}
        self.commits: list[list[str]] = []
        self.downloads: list[str] = []

    @property
    def environment(self) -> dict[str, str]:
        """Variables with which huggingface_hub talks to this server."""
        address = f"http://127.0.0.1:{self.server_port}"
        return {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_of_me", "HF_HUB_DISABLE_XET": "1"}


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """Starts the server."""
    hub = FakeHub()
    Thread(target=hub.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: FakeHub

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/api/repos/create":
            return self._create(json.loads(body))
        if self.path == "/api/validate-yaml":
            return self._validate(json.loads(body)["content"])
        if self.path.endswith("/preupload/main"):
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            return self._answer({"files": files})
        if self.path.endswith("/commit/main"):
            return self._commit(self.path.removeprefix("/api/models/").removesuffix("/commit/main"), body)
        return self._answer({"error": self.path}, 404)

    def _create(self, request):
        if self.headers["Authorization"] != "Bearer hf_of_me":
            return self._answer({"error": "Invalid user token."}, 401)
        name = f"{request.get('organization') or 'me'}/{request['name']}"
        if not name.startswith("me/"):
            return self._answer({"error": f"You don't have the rights to create {name}"}, 403)
        self.server.repositories.setdefault(name, {})
        self.server.private.setdefault(name, request.get("private") or request.get("visibility") == "private")
        return self._answer({"url": f"{self.server.environment['HF_ENDPOINT']}/{name}", "name": name, "id": name})

    def _validate(self, content):
        metadata = yaml.safe_load(content.split("---")[1])
        index = metadata.get("model-index", [])
        errors = [{"message": f"{key} is missing"} for key in ("library_name", "pipeline_tag") if key not in metadata]
        if any(not model.get("name") or not model.get("results") for model in index):
            errors.append({"message": "model-index needs a name and results"})
        return self._answer({"errors": errors, "warnings": []}, 400 if errors else 200)

    def _commit(self, name, body):
        names = []
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                names.append(line["value"]["path"])
                self.server.repositories[name][names[-1]] = base64.b64decode(line["value"]["content"])
        self.server.commits.append(sorted(names))
        address = f"{self.server.environment['HF_ENDPOINT']}/{name}/commit/1"
        return self._answer({"commitUrl": address, "commitOid": "1" * 40, "success": True})

    def do_HEAD(self):
        self.do_GET(with_body=False)

    def do_GET(self, with_body=True):
        if self.path == "/api/whoami-v2":
            return self._answer({"name": "me", "type": "user", "orgs": []})
        name, _, rest = self.path.lstrip("/").partition("/resolve/")
        content = self.server.repositories.get(name, {}).get(rest.partition("/")[2])
        if content is None:
            code = "EntryNotFound" if name in self.server.repositories else "RepoNotFound"
            return self._answer({"error": code}, 404, {"X-Error-Code": code})
        self.send_response(200)
        self.send_header("ETag", f'"{hash(content) & 0xFFFFFFFF:x}"')
        self.send_header("X-Repo-Commit", "1" * 40)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if with_body:
            self.server.downloads.append(f"{name}/{rest.partition('/')[2]}")
            self.wfile.write(content)
        return None

    def _answer(self, content, status=200, headers=None):
        body = json.dumps(content).encode()
        self.send_response(status)
        for key, value in {
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            **(headers or {}),
        }.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *arguments):
        """Is silent."""
