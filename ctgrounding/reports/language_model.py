"""A second backend: a language model behind an OpenAI-compatible address, for organ texts and yes/no questions.

Rules stay the default. Nothing is sent to another machine unless its host is named, no proxy is used and no redirect
followed. Every answer is checked against its schema and against the report, and kept in a file, so that a run that
broke off goes on where it stopped.
"""

import hashlib
import ipaddress
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, ProxyHandler, Request, build_opener

from ctgrounding import label_sets
from ctgrounding.errors import ConfigError, ReportError

PROMPT_VERSION = 1
RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
_ORGANS_TASK = (
    "Copy from the CT report below, for each organ of the list, the sentences about it, word for word. Leave out organs"
    ' that it does not speak of. Answer with JSON alone: {"organ": ["sentence", ...], ...}.'
)
_QUESTIONS_TASK = (
    "Answer each question about the CT report below with yes, no or unknown; unknown where the report does not settle"
    ' it. Answer with JSON alone: {"question": "yes", ...}, with every question.'
)
_ANSWERS = {"yes": 1, "no": 0, "unknown": None}
_T = TypeVar("_T")


class LanguageModel:
    """Asks a chat model about reports.

    Args:
        model: Name that the server knows it by.
        url: Address of the server, up to ``/v1``.
        remote_host: Must name the host of ``url`` where that is not this machine.
        cache: JSON-lines file of answers, made or gone on with; none by default.
        attempts: Times to ask until an answer fits its schema, at least 1.
        timeout_s: Seconds to wait for one answer.
        wait_s: Seconds before the second attempt, doubled each time.

    Raises:
        ConfigError: If the address is no http address, or is another machine that ``remote_host`` does not name.

    Examples:
        >>> LanguageModel("qwen", url="http://example.org/v1")
        Traceback (most recent call last):
        ...
        ctgrounding.errors.ConfigError: Report text would go to 'example.org', another machine. Set remote_host to \
'example.org' to allow that, or use a local server.
    """

    def __init__(
        self,
        model: str,
        url: str = "http://127.0.0.1:8000/v1",
        remote_host: str | None = None,
        cache: Path | None = None,
        attempts: int = 3,
        timeout_s: float = 120.0,
        wait_s: float = 1.0,
    ) -> None:
        address = urlsplit(url)
        if address.scheme not in ("http", "https") or not address.hostname:
            raise ConfigError(f"Model address '{url}' is no http address. Write http://127.0.0.1:8000/v1, for example.")
        if not _is_local(address.hostname) and address.hostname != remote_host:
            raise ConfigError(
                f"Report text would go to '{address.hostname}', another machine. Set remote_host to "
                f"'{address.hostname}' to allow that, or use a local server."
            )
        if attempts < 1:
            raise ConfigError(f"attempts is {attempts}. Give one or more.")
        self.model, self.url, self.cache = model, url.rstrip("/"), cache
        self.attempts, self.timeout_s, self.wait_s = attempts, timeout_s, wait_s
        self._opener = build_opener(ProxyHandler({}), _NoRedirect())
        self._known = _read_cache(cache)

    def organ_texts(self, report: str, organs: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """Sentences of a report about each organ, word for word.

        Args:
            report: Its text.
            organs: TotalSegmentator v2 classes or the coarser names of ``vocabulary/organs.yaml``.

        Raises:
            ReportError: If no answer fitted: an organ not asked for, or a sentence that the report does not hold.
        """
        known = set(label_sets.load("total_v2").values()) | _coarse_names()
        for organ in organs:
            if organ not in known:
                label_sets.label_of(organ)
        written = " ".join(report.split()).lower()

        def check(answer: Any) -> dict[str, tuple[str, ...]]:  # noqa: ANN401  JSON as it came
            if not isinstance(answer, dict) or not set(answer) <= set(organs):
                raise ValueError("it must be an object of the organs asked for")
            for sentences in answer.values():
                if not isinstance(sentences, list) or not all(isinstance(one, str) for one in sentences):
                    raise ValueError("every organ must have a list of sentences")
                if any(" ".join(one.split()).lower() not in written for one in sentences):
                    raise ValueError("every sentence must stand in the report, word for word")
            return {organ: tuple(sentences) for organ, sentences in answer.items() if sentences}

        return self._ask(_ORGANS_TASK, {"organs": list(organs), "report": report}, check)

    def answers(self, report: str, questions: Sequence[str]) -> dict[str, int | None]:
        """1, 0 or None for each yes/no question.

        Raises:
            ReportError: If no answer fitted.
        """

        def check(answer: Any) -> dict[str, int | None]:  # noqa: ANN401  JSON as it came
            if not isinstance(answer, dict) or set(answer) != set(questions):
                raise ValueError("it must be an object of exactly the questions asked")
            if not all(isinstance(value, str) and value in _ANSWERS for value in answer.values()):
                raise ValueError("every answer must be yes, no or unknown")
            return {question: _ANSWERS[answer[question]] for question in questions}

        return self._ask(_QUESTIONS_TASK, {"questions": list(questions), "report": report}, check)

    def _ask(self, task: str, values: Mapping[str, Any], check: Callable[[Any], _T]) -> _T:
        content = json.dumps(values, ensure_ascii=False)
        key = hashlib.sha256(f"{PROMPT_VERSION}\0{self.model}\0{task}\0{content}".encode()).hexdigest()
        if key in self._known:
            return check(self._known[key])
        fault = ""
        for attempt in range(self.attempts):
            if attempt:
                time.sleep(self.wait_s * 2 ** (attempt - 1))
            messages = [{"role": "system", "content": task + fault}, {"role": "user", "content": content}]
            try:
                answer = json.loads(_bare(self._chat(messages)))
                checked = check(answer)
            except ReportError:
                raise
            except (ValueError, _TryAgainError) as error:
                fault = f" The last answer did not fit: {error}." if isinstance(error, ValueError) else ""
                last = str(error)
                continue
            self._keep(key, answer)
            return checked
        raise ReportError(
            f"Model '{self.model}' at {self.url} gave no usable answer in {self.attempts} attempts: {last}."
        )

    def _chat(self, messages: Sequence[Mapping[str, str]]) -> str:
        body = {
            "model": self.model,
            "messages": messages,
            "temperature": 0,
            "response_format": {"type": "json_object"},
        }
        request = Request(
            f"{self.url}/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with self._opener.open(request, timeout=self.timeout_s) as response:
                return str(json.load(response)["choices"][0]["message"]["content"])
        except HTTPError as error:
            if error.code in RETRIED:
                raise _TryAgainError(f"status {error.code}") from None
            raise ReportError(
                f"Model server {self.url} refused: status {error.code}. Check model name and address."
            ) from None
        except (URLError, TimeoutError, ConnectionError) as error:
            raise _TryAgainError(str(getattr(error, "reason", error))) from None
        except (KeyError, IndexError, TypeError):
            raise _TryAgainError("the reply is no chat completion") from None

    def _keep(self, key: str, answer: Any) -> None:  # noqa: ANN401  JSON as it came
        self._known[key] = answer
        if self.cache is not None:
            self.cache.parent.mkdir(parents=True, exist_ok=True)
            with self.cache.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps({"key": key, "answer": answer}, ensure_ascii=False) + "\n")


class _TryAgainError(Exception):
    """The server may do better next time."""


class _NoRedirect(HTTPRedirectHandler):
    """A redirect could lead text to a host that nobody named."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401  as the parent declares
        return None


def _is_local(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _coarse_names() -> set[str]:
    from ctgrounding.reports.lexicon import lexicon

    return set(lexicon().places)


def _read_cache(path: Path | None) -> dict[str, Any]:
    """Answers of a cache file; a last line cut short by a crash is passed over."""
    known: dict[str, Any] = {}
    if path is None or not path.is_file():
        return known
    whole = path.read_text(encoding="utf-8")
    if whole and not whole.endswith("\n"):
        whole = whole[: whole.rfind("\n") + 1]
        path.write_text(whole, encoding="utf-8")
    for line in whole.splitlines():
        entry = json.loads(line)
        known[entry["key"]] = entry["answer"]
    return known


def _bare(content: str) -> str:
    """JSON without a fence or a thought around it."""
    content = content.rpartition("</think>")[2].strip()
    if content.startswith("```"):
        content = content.strip("`").removeprefix("json")
    return content.strip()
