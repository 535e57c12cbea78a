"""Chat completions of any OpenAI-compatible server, over the standard library: no package to install for one kind of request.

What may pass by itself (no answer in time, a broken connection or body, 429, 5xx) is tried again after a growing, jittered pause; any other
refusal ends the call with one line. The key is sent as a header and nowhere else.
"""

from __future__ import annotations

import base64
import email.utils
import http.client
import ipaddress
import json
import random
import re
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from apex.errors import UserError

LONGEST_PAUSE = 60.0  # seconds, of our own; a server's Retry-After may ask for more
LONGEST_WAIT = 600.0  # seconds that a server may ask for
LARGEST_BODY = 10 << 20  # bytes


class Transient(Exception):
    """A failure that may pass by itself. `after`: seconds that the server asked to wait."""

    def __init__(self, what: str, after: float = 0.0) -> None:
        super().__init__(what)
        self.after = after


@dataclass(frozen=True)
class Reply:
    """An answer: its text or refusal, why it ended, the name that the server gives the model, tokens in and out."""

    text: str
    end: str
    model: str
    tokens: tuple[int, int]


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the key to another host: it is an error instead."""

    def redirect_request(self, *_: Any) -> None:
        return None


class Endpoint:
    """A server's `/chat/completions`. Threads may share it.

    Args:
        url: its base, as in https://api.openai.com/v1.
        key: sent as a bearer token; "" sends none.
        timeout: seconds from a request to the end of its answer.
        tries: how often a request is made at most.
        seed: of the pauses' jitter.
        pause: seconds before the second try; doubled each time, and drawn between half of it and all of it.

    Raises:
        UserError: the URL is none, or holds a password, or would send the key unencrypted to another machine.
    """

    def __init__(self, url: str, key: str, timeout: float, tries: int, seed: int = 0, pause: float = 1.0) -> None:
        if fault := url_fault(url):
            raise UserError(f"--endpoint: {fault}")
        parts = urlsplit(url)
        if not re.fullmatch(r"[!-~]*", key):  # the library would name it in its own error
            raise UserError("the key that --key-variable names holds blanks or characters that no header can carry")
        self.host, self.local = parts.hostname, is_local(url)
        if key and parts.scheme == "http" and not self.local:
            raise UserError(f"--endpoint http://{self.host}: the key would travel unencrypted; give an https URL")
        self._url, self._key = url.rstrip("/") + "/chat/completions", key
        self._timeout, self._tries, self._seed, self._pause = timeout, tries, seed, pause
        proxies = [urllib.request.ProxyHandler({})] if self.local else []
        self._opener = urllib.request.build_opener(_NoRedirect, *proxies)
        self._stopped = threading.Event()
        self.wait: Callable[[float], Any] = self._stopped.wait

    def stop(self) -> None:
        """Ends the pauses of all threads; each then gives up."""
        self._stopped.set()

    def chat(self, body: Mapping[str, Any], name: str) -> Reply:
        """Makes one request until it is answered. `name` seeds its pauses.

        Raises:
            UserError: the server refuses it, or does not answer it after all tries.
        """
        draw = random.Random(f"{self._seed} {name}")
        for number in range(1, self._tries + 1):
            if self._stopped.is_set():
                raise UserError(f"{self.host}: stopped")
            try:
                return self._within_time(json.dumps(body).encode())
            except Transient as failure:
                if number == self._tries:
                    raise UserError(
                        f"{self.host}: no answer after {self._tries} tries, the last one: {failure}; what was answered is kept, run again"
                    ) from None
                if failure.after > LONGEST_WAIT:
                    raise UserError(
                        f"{self.host}: {failure}: found Retry-After of {failure.after:.3g} s, expected at most {LONGEST_WAIT:g} s; "
                        "what was answered is kept, run again later"
                    ) from None
                pause = min(LONGEST_PAUSE, self._pause * 2 ** (number - 1)) * draw.uniform(0.5, 1)
                pause = max(pause, failure.after)
                print(f"{self.host}: {failure}; waits {pause:.1f} s, then try {number + 1} of {self._tries}", file=sys.stderr, flush=True)
                self.wait(pause)
        raise AssertionError("unreachable")

    def _within_time(self, body: bytes) -> Reply:
        """One try, bounded as a whole: a socket's own time-out begins again with every byte that comes."""
        found: list[Reply | BaseException] = []
        ended = threading.Event()

        def ask() -> None:
            try:
                found.append(self._once(body))
            except BaseException as error:
                found.append(error)
            ended.set()

        threading.Thread(target=ask, daemon=True).start()  # one that a server keeps busy does not hold up the exit
        deadline = time.monotonic() + self._timeout
        while not ended.wait(min(0.2, max(0.0, deadline - time.monotonic()))):
            if self._stopped.is_set():
                raise UserError(f"{self.host}: stopped")
            if time.monotonic() >= deadline:
                raise Transient(f"no whole answer within {self._timeout:g} s (timed out)")
        if isinstance(found[0], BaseException):
            raise found[0]
        return found[0]

    def _once(self, body: bytes) -> Reply:
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self._key}"} if self._key else {})
        request = urllib.request.Request(self._url, data=body, headers=headers, method="POST")
        try:
            with self._opener.open(request, timeout=self._timeout) as answer:
                content = answer.read(LARGEST_BODY + 1)
                if len(content) > LARGEST_BODY:
                    raise UserError(
                        f"{self.host}: found an answer of more than {LARGEST_BODY >> 20} MiB, expected a chat completion; check --endpoint"
                    )
                if self._key:  # a server may send back what it was sent
                    content = content.replace(self._key.encode(), b"[key]")
        except urllib.error.HTTPError as error:
            self._refused(error)
        except (OSError, http.client.HTTPException) as error:  # URLError, time-outs, closed connections, bodies cut short
            raise Transient(self._clean(str(error) or type(error).__name__)) from None
        try:
            return _reply(json.loads(content))
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, RecursionError):
            raise Transient(f"not a chat completion: {self._clean(content[:80].decode(errors='replace'))!r}") from None

    def _refused(self, error: urllib.error.HTTPError) -> None:
        after = retry_after(error.headers.get("Retry-After"))
        try:
            said = json.loads(error.read(LARGEST_BODY))["error"]["message"]
        except (OSError, ValueError, TypeError, KeyError, RecursionError, http.client.HTTPException):
            said = error.reason
        finally:
            error.close()
        if error.code == 429 or error.code >= 500:
            raise Transient(f"HTTP {error.code}", after) from None
        if error.code in (401, 403):  # servers repeat parts of the key here
            raise UserError(f"{self.host}: HTTP {error.code}, the key is missing, wrong, or not allowed to use this model") from None
        raise UserError(f"{self.host}: HTTP {error.code}: {self._clean(str(said))}") from None

    def _clean(self, text: str) -> str:
        """One short line without the key."""
        line = " ".join(text.split())
        return (line.replace(self._key, "[key]") if self._key else line)[:200]


def url_fault(url: str) -> str:
    """What is wrong with a judge's URL; '' where nothing is. The URL itself, which may hold a key, is not shown."""
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number, half of an IPv6 address
        good = False
    if not good:
        return "found something else (not shown here), expected a URL such as https://api.openai.com/v1"
    if "@" in parts.netloc or parts.query or parts.fragment:
        return (
            "found a user, a query or a fragment in the URL (not shown here), and no password and no query belong into it; "
            "put the key into the environment variable that key_variable (--key-variable) names"
        )
    return ""


def variable_fault(name: str) -> str:
    """What is wrong with the name of the variable that holds the key; '' where nothing is. A key that is pasted here would be printed and
    stored: keys have small letters or signs, or many letters without a `_`."""
    if re.fullmatch(r"[A-Z_][A-Z0-9_]{0,47}", name) and (len(name) < 20 or "_" in name):
        return ""
    return (
        "found what may be the key itself (not shown here), expected the name of an environment variable in capitals, such as "
        "OPENAI_API_KEY; set that variable to the key: export OPENAI_API_KEY=..."
    )


def is_local(url: str) -> bool:
    """Whether a URL is of this machine."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def retry_after(value: str | None) -> float:
    """Seconds to wait by a Retry-After header, a number or a date; 0 without one."""
    if not value:
        return 0.0
    try:
        return max(0.0, float(value))  # "nan" is 0
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return 0.0


def _reply(body: Any) -> Reply:
    choice = body["choices"][0]
    message, usage = choice["message"], body.get("usage") or {}
    text, refusal = message.get("content"), message.get("refusal")
    if isinstance(text, list):  # some servers answer in parts
        text = "".join(part.get("text", "") for part in text)
    if text is not None and not isinstance(text, str):
        raise TypeError("content")
    end = "refused" if refusal else str(choice.get("finish_reason") or "")
    tokens = int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0)
    return Reply(text or str(refusal or ""), end, str(body.get("model") or ""), tokens)


def messages(system: str, user: str, png: bytes) -> list[dict[str, Any]]:
    """A chat with one image, as a data URL."""
    url = "data:image/png;base64," + base64.b64encode(png).decode()
    return [
        {"role": "system", "content": [{"type": "text", "text": system}]},
        {"role": "user", "content": [{"type": "text", "text": user}, {"type": "image_url", "image_url": {"url": url}}]},
    ]
