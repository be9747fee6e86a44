"""The language-model backend against a small server on this machine that answers as it is told."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from ctgrounding.errors import ConfigError, ReportError
from ctgrounding.reports.language_model import LanguageModel

REPORT = "Fatty liver. The spleen is normal."


class Server(HTTPServer):
    """Replies with each of ``replies`` in turn: a status, or content for a chat completion."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.replies: list = []
        self.asked: list[dict] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self):
        self.server.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        reply = self.server.replies.pop(0)
        body = json.dumps({"choices": [{"message": {"content": reply}}]}).encode() if isinstance(reply, str) else b"{}"
        self.send_response(reply if isinstance(reply, int) else 200)
        if reply == 307:
            self.send_header("Location", self.server.url + "/elsewhere")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def model(server, **kwargs) -> LanguageModel:
    return LanguageModel("m", url=server.url, wait_s=0.0, **kwargs)


def test_organ_texts_and_answers(server):
    server.replies = [
        '{"liver": ["Fatty liver."], "spleen": []}',
        '```json\n{"steatosis?": "yes", "stone?": "unknown"}\n```',
    ]
    assert model(server).organ_texts(REPORT, ["liver", "spleen"]) == {"liver": ("Fatty liver.",)}
    assert model(server).answers(REPORT, ["steatosis?", "stone?"]) == {"steatosis?": 1, "stone?": None}
    assert server.asked[0]["temperature"] == 0


@pytest.mark.parametrize(
    "bad", ["no json", "[]", '{"liver": "Fatty liver."}', '{"heart": []}', '{"liver": ["Cirrhosis."]}', 503]
)
def test_an_answer_that_does_not_fit_is_asked_again(server, bad):
    server.replies = [bad, '{"liver": ["Fatty liver."]}']
    assert model(server).organ_texts(REPORT, ["liver"]) == {"liver": ("Fatty liver.",)}
    assert len(server.asked) == 2


def test_gives_up_with_the_reason(server):
    server.replies = ['{"a?": "maybe"}'] * 2
    with pytest.raises(ReportError, match=r"2 attempts: every answer must be yes, no or unknown"):
        model(server, attempts=2).answers(REPORT, ["a?"])


def test_a_refusal_is_not_repeated(server):
    server.replies = [404, "{}"]
    with pytest.raises(ReportError, match="status 404"):
        model(server).answers(REPORT, ["a?"])
    assert len(server.asked) == 1


def test_no_redirect_is_followed(server):
    server.replies = [307]
    with pytest.raises(ReportError, match="status 307"):
        model(server).answers(REPORT, ["a?"])
    assert len(server.asked) == 1


def test_answers_are_kept_and_a_broken_line_is_passed_over(server, tmp_path):
    cache = tmp_path / "answers.jsonl"
    server.replies = ['{"a?": "no"}', '{"b?": "yes"}']
    assert model(server, cache=cache).answers(REPORT, ["a?"]) == {"a?": 0}
    cache.write_text(cache.read_text(encoding="utf-8") + '{"key": "cut sho', encoding="utf-8")
    again = model(server, cache=cache)
    assert again.answers(REPORT, ["a?"]) == {"a?": 0}
    assert again.answers(REPORT, ["b?"]) == {"b?": 1}
    assert len(server.asked) == 2
    assert [json.loads(line)["answer"] for line in cache.read_text(encoding="utf-8").splitlines()] == [
        {"a?": "no"},
        {"b?": "yes"},
    ]


@pytest.mark.parametrize("url", ["http://10.0.0.5:8000/v1", "https://models.example.org/v1"])
def test_no_text_to_another_machine_unless_it_is_named(url):
    with pytest.raises(ConfigError, match="another machine"):
        LanguageModel("m", url=url)
    LanguageModel("m", url=url, remote_host=url.split("/")[2].split(":")[0])


def test_address_must_be_http():
    with pytest.raises(ConfigError, match="no http address"):
        LanguageModel("m", url="file:///etc/passwd")
