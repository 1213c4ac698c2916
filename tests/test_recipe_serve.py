"""The recipe that serves a program: what is answered under load, to bad requests, and while it stops."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.export import Dim

import torchtrt_bridge as trtb

for package in ("fastapi", "uvicorn", "prometheus_client", "safetensors"):
    pytest.importorskip(package, reason="the extra serve brings it")

import safetensors.torch  # noqa: E402

pytestmark = pytest.mark.full

ROOT = Path(__file__).parent.parent
RECIPE = runpy.run_path(str(ROOT / "recipes" / "serve.py"))
MOST_ROWS = 8
Tensors = dict[str, torch.Tensor]


class Scaled(nn.Module):
    """Two inputs, of which one has a length that varies, and two results."""

    def forward(self, x: torch.Tensor, scale: torch.Tensor) -> Tensors:
        y = x * scale[:, None]
        return {"scaled": y, "sum": y.sum(1)}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("serve") / "scaled.pt2"
    batch = Dim("batch", min=1, max=MOST_ROWS)
    shapes = {"x": {0: batch, 1: Dim("length", min=2, max=64)}, "scale": {0: batch}}
    example = (torch.rand(2, 5), torch.rand(2))
    trtb.save(trtb.export(Scaled().eval(), example, dynamic_shapes=shapes, engine="reference"), path)
    return path


class Gate:
    """Model that computes while its gate is open; calls: the rows of each."""

    def __init__(self, path: Path) -> None:
        self.model = RECIPE["Model"](path)
        self.gate = threading.Event()
        self.gate.set()
        self.calls: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def __call__(self, tensors: Tensors) -> Tensors:
        self.calls.append(len(tensors["x"]))
        assert self.gate.wait(30)
        if tensors["x"].isnan().any():
            raise RuntimeError("not a number")
        return self.model(tensors)


class Client:
    """Connection to a served model."""

    def __init__(self, port: int) -> None:
        self.port = port

    def get(self, place: str) -> tuple[int, str]:
        with contextlib.closing(self._connection()) as connection:
            connection.request("GET", place)
            response = connection.getresponse()
            return response.status, response.read().decode()

    def post(self, body: Any) -> tuple[int, bytes, Any]:
        with contextlib.closing(self._connection()) as connection:
            connection.request("POST", "/predict", body)
            response = connection.getresponse()
            return response.status, response.read(), response.headers

    def results(self, tensors: Tensors) -> Tensors:
        status, body, _ = self.post(safetensors.torch.save(tensors))
        assert status == 200, body
        return safetensors.torch.load(body)

    def metric(self, name: str) -> float:
        found = re.search(rf"^{re.escape(name)} (.+)$", self.get("/metrics")[1], re.MULTILINE)
        return float(found[1]) if found else 0.0

    def until(self, name: str, value: float) -> None:
        """Wait until a metric has a value."""
        deadline = time.monotonic() + 20
        while self.metric(name) != value:
            assert time.monotonic() < deadline, f"{name} is {self.metric(name)}, not {value}"
            time.sleep(0.01)

    def raw(self, content: bytes) -> socket.socket:
        """Open a connection and send some bytes."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=20)
        connection.sendall(content)
        return connection

    def _connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)


@contextlib.contextmanager
def served(model: Any, **settings: Any) -> Iterator[Client]:
    with RECIPE["serving"](RECIPE["Service"](model, **settings).app) as port:
        yield Client(port)


@pytest.fixture
def model(path: Path) -> Iterator[Gate]:
    model = Gate(path)
    yield model
    model.gate.set()


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as threads:
        yield threads


def request(number: int = 0, rows: int = 1, length: int = 4) -> Tensors:
    """Return a request that no other number has."""
    x = torch.arange(rows * length, dtype=torch.float32).reshape(rows, length) + 100 * number
    return {"x": x, "scale": torch.arange(rows) + 1.0}


def assert_right(results: Tensors, tensors: Tensors) -> None:
    torch.testing.assert_close(results, Scaled()(**tensors))


def under_way(client: Client, model: Gate, threads: ThreadPoolExecutor, count: int) -> list[Future[Tensors]]:
    """Send requests, of which the first computes at a closed gate, and the others wait."""
    model.gate.clear()
    model.calls.clear()
    first = threads.submit(client.results, request(0))
    deadline = time.monotonic() + 20
    while not model.calls:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    others = [threads.submit(client.results, request(number)) for number in range(1, count)]
    client.until("trtb_open_requests", count)
    return [first, *others]


# Load ----------------------------------------------------------------------------------------------------------------


def test_every_request_of_many_clients_gets_its_answer(model: Gate, threads: ThreadPoolExecutor) -> None:
    requests = [request(number, 1 + number % 3, 4 + number % 2) for number in range(120)]
    with served(model) as client:
        for results, tensors in zip(threads.map(client.results, requests), requests, strict=True):
            assert_right(results, tensors)
        assert client.metric('trtb_requests_total{status="200"}') == len(requests)
        assert client.metric("trtb_batch_rows_sum") == sum(len(tensors["x"]) for tensors in requests)
        assert client.metric("trtb_batch_rows_count") < len(requests)
        assert client.metric("trtb_open_requests") == 0


def test_requests_that_wait_become_batches(model: Gate, threads: ThreadPoolExecutor) -> None:
    with served(model) as client:
        answers = under_way(client, model, threads, 12)
        model.gate.set()
        for number, answer in enumerate(answers):
            assert_right(answer.result(30), request(number))
    assert model.calls == [1, MOST_ROWS, 3]


def test_requests_of_other_sizes_are_other_batches(model: Gate, threads: ThreadPoolExecutor) -> None:
    with served(model) as client:
        answers = under_way(client, model, threads, 4)
        longer = [threads.submit(client.results, request(9, 2, length=7)) for _ in range(2)]
        client.until("trtb_open_requests", 6)
        model.gate.set()
        for number, answer in enumerate(answers):
            assert_right(answer.result(30), request(number))
        for answer in longer:
            assert_right(answer.result(30), request(9, 2, length=7))
    assert model.calls == [1, 3, 4]


def test_a_full_batch_does_not_wait(model: Gate) -> None:
    with served(model, wait_s=600) as client:
        assert_right(client.results(request(1, MOST_ROWS)), request(1, MOST_ROWS))


# Bad requests --------------------------------------------------------------------------------------------------------


def changed(**tensors: torch.Tensor) -> bytes:
    return safetensors.torch.save({**request(), **tensors})


BAD: dict[str, tuple[bytes, int, str]] = {
    "words": (b"not safetensors", 400, "not in the format of safetensors"),
    "nothing": (b"", 400, "not in the format of safetensors"),
    "cut off": (changed()[:-3], 400, "not in the format of safetensors"),
    "dtype": (
        changed(x=torch.ones(1, 4, dtype=torch.float64)),
        422,
        r"x is float64\[1, 4\]; .* float32\[1..8, 2..64\]",
    ),
    "dimensions": (changed(x=torch.ones(4)), 422, r"x is float32\[4\]"),
    "size": (changed(x=torch.ones(1, 65)), 422, r"x is float32\[1, 65\]"),
    "no rows": (changed(x=torch.ones(0, 4)), 422, r"x is float32\[0, 4\]"),
    "too many rows": (changed(x=torch.ones(9, 4)), 422, r"x is float32\[9, 4\]"),
    "other rows": (changed(scale=torch.ones(3)), 422, r"different numbers of rows: \[1, 3\]"),
    "names": (changed(y=torch.ones(1)), 422, r"\['scale', 'x'\]; this request has \['scale', 'x', 'y'\]"),
    "too large": (bytes(3 << 20), 413, "at most 1048576 bytes"),
}


@pytest.fixture(scope="module")
def strict(path: Path) -> Iterator[Client]:
    with served(RECIPE["Model"](path), most_bytes=1 << 20) as client:
        yield client


@pytest.mark.parametrize("name", BAD)
def test_a_bad_request_is_told_why(name: str, strict: Client) -> None:
    body, expected, words = BAD[name]
    status, answer, _ = strict.post(body)
    assert status == expected
    assert re.search(words, json.loads(answer)["error"])
    assert_right(strict.results(request()), request())


def test_a_body_without_a_length_is_refused_once_it_is_too_large(strict: Client) -> None:
    status, _, _ = strict.post(iter([bytes(1 << 18)] * 8))
    assert status == 413


def test_a_large_body_is_refused_before_it_is_sent(path: Path) -> None:
    with served(RECIPE["Model"](path)) as client:
        head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: {100 << 20}\r\n\r\n".encode()
        with client.raw(head) as connection:
            assert connection.recv(1 << 16).startswith(b"HTTP/1.1 413 ")
        assert_right(client.results(request()), request())


def test_a_request_that_fails_fails_alone(model: Gate, threads: ThreadPoolExecutor) -> None:
    wrong = safetensors.torch.save({"x": torch.full((1, 4), torch.nan), "scale": torch.ones(1)})
    with served(model) as client:
        answers = under_way(client, model, threads, 3)
        failed = threads.submit(client.post, wrong)
        client.until("trtb_open_requests", 4)
        model.gate.set()
        for number, answer in enumerate(answers):
            assert_right(answer.result(30), request(number))
        assert failed.result(30)[0] == 500
        assert client.get("/health")[0] == 200
        client.post(wrong)
        assert client.get("/health")[0] == 503
        client.results(request())
        assert client.get("/health")[0] == 200


# Overload, and clients that go ---------------------------------------------------------------------------------------


def test_what_is_too_much_is_refused_at_once(model: Gate, threads: ThreadPoolExecutor) -> None:
    with served(model, most_open=3) as client:
        answers = under_way(client, model, threads, 3)
        status, body, headers = client.post(changed())
        assert (status, headers["Retry-After"]) == (503, "1")
        assert "3 requests are open already" in json.loads(body)["error"]
        model.gate.set()
        for number, answer in enumerate(answers):
            assert_right(answer.result(30), request(number))
        assert_right(client.results(request()), request())


def test_what_nobody_waits_for_is_not_computed(model: Gate, threads: ThreadPoolExecutor) -> None:
    body = changed()
    head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with served(model) as client:
        answers = under_way(client, model, threads, 3)
        gone = [client.raw(head + body), client.raw(head + body[:20])]  # one hangs up while it sends
        client.until("trtb_open_requests", 5)
        for connection in gone:
            connection.close()
        client.until("trtb_open_requests", 3)
        model.gate.set()
        for number, answer in enumerate(answers):
            assert_right(answer.result(30), request(number))
        client.until('trtb_requests_total{status="499"}', 2)
    assert model.calls == [1, 2]


# Start and stop ------------------------------------------------------------------------------------------------------


def test_a_program_of_one_batch_size_is_not_served(tmp_path: Path) -> None:
    program = trtb.export(Scaled().eval(), (torch.rand(2, 5), torch.rand(2)), engine="reference")
    trtb.save(program, tmp_path / "fixed.pt2")
    with pytest.raises(SystemExit, match=r"takes float32\[2, 5\], float32\[2\]\. Export it with Dim"):
        RECIPE["Model"](tmp_path / "fixed.pt2")


def test_health_says_what_the_program_takes(strict: Client) -> None:
    status, body = strict.get("/health")
    assert status == 200
    assert json.loads(body) == {"status": "ok", "inputs": {"x": "float32[1..8, 2..64]", "scale": "float32[1..8]"}}


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while True:
        with contextlib.suppress(ConnectionError):
            if condition():
                return
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_server_that_is_told_to_stop_answers_what_is_open(path: Path, threads: ThreadPoolExecutor) -> None:
    client = Client(free_port())
    command = [sys.executable, str(ROOT / "recipes" / "serve.py"), str(path), f"--port={client.port}", "--wait-ms=4000"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        wait_for(lambda: client.get("/health")[0] == 200, process)
        answers = [threads.submit(client.results, request(number)) for number in range(4)]
        wait_for(lambda: client.metric("trtb_open_requests") == 4, process)
        process.send_signal(signal.SIGTERM)
        for number, answer in enumerate(answers):
            assert_right(answer.result(30), request(number))
        assert process.wait(30) in (0, -signal.SIGTERM)  # uvicorn raises the signal again when it is done
        with pytest.raises(ConnectionRefusedError):
            client.get("/health")
    finally:
        process.kill()
        process.communicate()


@pytest.mark.gpu
def test_engines_answer_on_a_gpu(tmp_path: Path, threads: ThreadPoolExecutor) -> None:
    network = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 3)).eval()
    shapes = ({0: Dim("batch", min=1, max=MOST_ROWS)},)
    trtb.save(trtb.export(network, torch.rand(2, 4), dynamic_shapes=shapes, precision="fp16"), tmp_path / "gpu.pt2")
    model = RECIPE["Model"](tmp_path / "gpu.pt2")
    requests = [{"input": torch.rand(1 + number % 3, 4)} for number in range(60)]
    with served(model) as client:
        for results, tensors in zip(threads.map(client.results, requests), requests, strict=True):
            with torch.inference_mode():
                torch.testing.assert_close(results["output"], network(tensors["input"]), rtol=1e-2, atol=1e-2)  # fp16
    (engine,) = model.program.report.engines
    assert engine.is_ready
