"""A judge in miniature: answers the OpenAI chat protocol on the loopback address, well or badly, as a script says."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKENS = 7
"""What the server says that each reply cost."""
_SHOWN = re.compile(r"\[Answer A\]\n(.*)\n\n\[Answer B\]\n(.*)\n\n\[End\]", re.DOTALL)


def longer(first: str, second: str) -> str:
    """A judge without a bias of place."""
    return "C" if len(first) == len(second) else "AB"[len(first) < len(second)]


class Chat:
    """What the server was sent, and what it does: `says` gives the letter, `trouble` what goes wrong with a request.

    trouble: called with the number of times that this question was sent before; an integer is a status, "drop" closes
        the connection, "slow" sends byte by byte, "garbage" is no JSON, "nothing" JSON without a message, None is a
        reply in order.
    """

    def __init__(
        self, says: Callable[[str, str], str] = longer, trouble: Callable[[int], Any] = lambda _: None
    ) -> None:
        self.says, self.trouble = says, trouble
        self.lock, self.sent, self.headers = threading.Lock(), [], []
        self.url = ""

    @property
    def num_sent(self) -> int:
        return len(self.sent)


@contextmanager
def chat_server(chat: Chat) -> Iterator[str]:
    """Serve while it is entered; gives the address for `EndpointJudge`."""

    class Handler(_Handler):
        served = chat

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    served: Chat

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = body["messages"][0]["content"]
        with self.served.lock:
            before = self.served.sent.count(text)
            self.served.sent.append(text)
            self.served.headers.append(dict(self.headers))
        trouble = self.served.trouble(before)
        if trouble == "drop":
            self.close_connection = True
            return
        if self.path != "/v1/chat/completions":
            trouble = 404
        found = _SHOWN.search(text)
        assert found, text
        message = {"role": "assistant", "content": self.served.says(*found.groups())}
        reply: dict[str, Any] = {"choices": [{"index": 0, "message": message}], "usage": {"total_tokens": TOKENS}}
        data = {"garbage": b"<html>\xff", "nothing": b'{"choices": []}'}.get(trouble) or json.dumps(reply).encode()
        self.send_response(trouble if isinstance(trouble, int) else 200)
        if trouble == 429:
            self.send_header("Retry-After", "0")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if trouble != "slow":
            self.wfile.write(data)
            return
        for byte in data:
            try:
                self.wfile.write(bytes([byte]))
                self.wfile.flush()
            except OSError:  # nobody waits any longer
                return
            time.sleep(0.05)

    def log_message(self, *_: Any) -> None:
        """Nothing on the terminal."""
