"""A run that stops keeps every answer that it had asked for, and asks for no other."""

import json
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from dstools_converters.errors import RESUME_HINT, DstoolsError
from dstools_distill import records
from dstools_distill.recipe.settings import Generate
from dstools_distill.recipe.stages import Inputs
from dstools_distill.store.stage import Work
from dstools_distill.teachers import endpoint
from dstools_distill.teachers.generate import generate
from dstools_distill.teachers.inflight import Gate

QUESTIONS = [f"What is {number} + 1?" for number in range(8)]
TOGETHER = 4  # requests that are in flight when the run stops
MESSAGE = {"role": "assistant", "content": "<think>\nadd\n</think>\n\n1"}
FINE = {"choices": [{"message": MESSAGE, "finish_reason": "stop"}]}


class Server(ThreadingHTTPServer):
    """Waits until TOGETHER requests came, and answers those of them that it holds at the end."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: list[str] = []
        self.first: dict[str, Any] = {}  # replies by question: status and headers, at once
        self.interrupts = 0  # Ctrl-C, once that many are in flight
        self.late = 200  # the status of the others
        self.trickles = False  # replies go on and on
        self.lock, self.full = threading.Lock(), threading.Barrier(TOGETHER)
        self.stopped, self.over = threading.Event(), threading.Event()

    @property
    def settings(self) -> Generate:
        url = f"http://127.0.0.1:{self.server_address[1]}/v1"
        how: dict[str, Any] = {"concurrency": TOGETHER, "timeout_seconds": 60.0, "retries": 2}
        return Generate(backend="openai", base_url=url, model="m", **how)


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        question = body["messages"][0]["content"]
        with server.lock:
            server.asked.append(question)
            count = len(server.asked)
        if count <= TOGETHER and not server.stopped.is_set():
            server.full.wait(60)
        if status := server.first.pop(question, 0):
            self.reply(status, {"error": {"message": "no"}}, {"Retry-After": "50"})
            return
        if count == TOGETHER and server.interrupts:
            os.kill(os.getpid(), signal.SIGINT)
        server.stopped.wait(60)
        if server.trickles:
            self.send_response(200)
            self.send_header("Content-Length", "100000")
            self.end_headers()
            while not server.over.wait(0.02):
                self.wfile.write(b" ")
                self.wfile.flush()
        elif count == TOGETHER and server.interrupts > 1:
            os.kill(os.getpid(), signal.SIGINT)
            server.over.wait(60)
        elif server.interrupts > 1:
            server.over.wait(60)
        else:
            self.reply(server.late, FINE, {"Retry-After": "50"})

    def reply(self, status: int, body: dict[str, Any], headers: dict[str, str]) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server that answers once the run has stopped."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    stop = Gate.stop
    with Server() as server:

        def told(gate: Gate, reason: BaseException) -> None:
            stop(gate, reason)
            server.stopped.set()

        monkeypatch.setattr(Gate, "stop", told)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server
        server.over.set()
        server.shutdown()
        thread.join()


def run(settings: Generate, folder: Path) -> Any:
    for name in ("prompts", "out"):
        (folder / name).mkdir(exist_ok=True)
    chats = [[{"role": "user", "content": question}] for question in QUESTIONS]
    rows = ({"id": records.prompt_id(chat, "here"), "messages": chat} for chat in chats)
    records.write(folder / "prompts" / "records.jsonl", rows)
    return generate(settings, Inputs(prompts=folder / "prompts"), Work(folder / "out"))


def logged(folder: Path) -> set[int]:
    return {row["number"] for row in records.read(folder / "out" / "samples.jsonl")}


@pytest.mark.parametrize("status", [401, 402, 404])
def test_answers_in_flight_are_kept_where_a_request_is_refused(
    status: int, server: Server, tmp_path: Path
) -> None:
    server.first[QUESTIONS[1]] = status
    with pytest.raises(DstoolsError, match=f"refuses: {status}"):
        run(server.settings, tmp_path)
    assert sorted(server.asked) == QUESTIONS[:TOGETHER]  # and no more
    assert logged(tmp_path) == {0, 2, 3}
    server.asked.clear()
    assert run(server.settings, tmp_path)["out"] == 8
    assert sorted(server.asked) == [QUESTIONS[1], *QUESTIONS[4:]]


def test_answers_in_flight_are_kept_where_none_came_before(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint, "REFUSALS", 2)
    server.first = dict.fromkeys(QUESTIONS[:2], 400)
    with pytest.raises(DstoolsError, match="none of the first 2 samples came"):
        run(replace(server.settings, concurrency=TOGETHER), tmp_path)
    assert {2, 3} <= logged(tmp_path)


def test_the_first_interrupt_waits_for_what_is_in_flight_and_the_next_run_asks_for_the_rest(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server.interrupts = 1
    with pytest.raises(KeyboardInterrupt) as error:
        run(server.settings, tmp_path)
    assert error.value.args == ()  # so the command says that nothing is lost
    assert "waiting up to 60 s for 4 requests in flight" in caplog.text
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert sorted(server.asked) == QUESTIONS[:TOGETHER]
    assert logged(tmp_path) == {0, 1, 2, 3}
    server.asked.clear()
    server.interrupts = 0
    assert run(server.settings, tmp_path)["out"] == 8
    assert sorted(server.asked) == QUESTIONS[TOGETHER:]


def test_the_second_interrupt_says_how_many_it_gave_up(server: Server, tmp_path: Path) -> None:
    server.interrupts = 2
    with pytest.raises(KeyboardInterrupt) as error:
        run(server.settings, tmp_path)
    assert error.value.args == (f"4 requests in flight given up; {RESUME_HINT}",)
    assert logged(tmp_path) == set()


def test_a_request_that_waits_for_its_retry_is_not_sent_again(
    server: Server, tmp_path: Path
) -> None:
    server.first = {QUESTIONS[0]: 429, QUESTIONS[1]: 401}  # the pause after 429 is 50 s
    with pytest.raises(DstoolsError, match="refuses: 401"):
        run(server.settings, tmp_path)
    assert sorted(server.asked) == QUESTIONS[:TOGETHER]
    assert logged(tmp_path) == {2, 3}


def test_a_request_that_fails_after_the_stop_waits_for_no_retry(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.first, server.late = {QUESTIONS[1]: 401}, 429
    pauses: list[float] = []

    async def pause(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr("anyio.sleep", pause)
    with pytest.raises(DstoolsError, match="refuses: 401"):
        run(server.settings, tmp_path)
    assert pauses == []
    assert sorted(server.asked) == QUESTIONS[:TOGETHER]


def test_replies_that_go_on_and_on_are_given_up(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server.first, server.trickles = {QUESTIONS[1]: 401}, True
    with pytest.raises(DstoolsError, match="refuses: 401"):
        run(replace(server.settings, timeout_seconds=0.5), tmp_path)
    assert "3 requests in flight given up" in caplog.text
    assert logged(tmp_path) == set()


def test_a_run_in_another_thread_or_under_another_handler_leaves_the_signal_alone(
    server: Server, tmp_path: Path
) -> None:
    server.stopped.set()
    thread = threading.Thread(target=run, args=(server.settings, tmp_path))
    thread.start()
    thread.join()
    assert {row["sample"] for row in records.read(tmp_path / "out" / "records.jsonl")} == {0}
    own = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        run(replace(server.settings, seed=1), tmp_path)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, own)
