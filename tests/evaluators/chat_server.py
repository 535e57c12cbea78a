"""A small server of chat completions on this machine, which does what a test tells it."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager

from tests.servers import running

GOOD = "Consistency: 2\nRealism: 1\nAesthetic Quality: 1"


class Server(http.server.ThreadingHTTPServer):
    """Answers chat completions; `behave` decides about each request, by its number and the user's text."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.behave: Callable[[int, str], object] = lambda number, text: GOOD
        self.requests: list[dict] = []
        self.keys: list[str | None] = []
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request, client_address) -> None:
        pass  # connections that the tests break


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.requests.append(body)
            self.server.keys.append(self.headers.get("Authorization"))
            number = len(self.server.requests)
        act = self.server.behave(number, body["messages"][1]["content"][0]["text"])
        if callable(act):
            act(self)
        elif isinstance(act, bytes):
            self.give(200, act)
        else:
            self.give(200, completion(act))

    def give(self, status: int, content: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def completion(text: object, **more: object) -> bytes:
    message = {"role": "assistant", "content": text, **more}
    usage = {"prompt_tokens": 900, "completion_tokens": 20}
    return json.dumps({"model": "judge-2024", "choices": [{"message": message, "finish_reason": "stop"}], "usage": usage}).encode()


def serving() -> AbstractContextManager[Server]:
    """A server that runs until the block ends."""
    return running(Server())
