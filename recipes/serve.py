"""Serve a saved program over HTTP: what several clients ask for at once is computed as one batch.

    python recipes/serve.py model.pt2 --port 8000

Needs `pip install 'torchtrt_bridge[serve]'`. The file is one of `trtb.save`, whose batch size may vary from 1 on: it is
the first dimension of every input and of every result. A request holds each input by its name, in the format of
safetensors, and so does the answer:

    body = safetensors.torch.save({"input": torch.rand(1, 3, 32, 32)})
    answer = requests.post("http://127.0.0.1:8000/predict", data=body)
    scores = safetensors.torch.load(answer.content)["output"]

`/health` says whether the program computes, and what it takes; `/metrics` is for Prometheus. `--tiny` serves a small
network for a moment, sends it requests of its own, and says how they were answered.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import http.client
import itertools
import logging
import statistics
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import uvicorn
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.requests import ClientDisconnect
from torch import nn

import torchtrt_bridge as trtb

Tensors = dict[str, torch.Tensor]
SECONDS_TO_SEND = 30  # a body that takes longer is given up
SECONDS_TO_STOP = 30  # what is open then is given up
LOGGER = logging.getLogger("uvicorn.error")


class Model:
    """Program that takes and returns tensors by name, on the CPU, with rows in their first dimension."""

    def __init__(self, path: Path) -> None:
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.program = trtb.load(path, device=self.device)
        self.inputs = self.program.inputs
        rows = [spec.ranges[0] if spec.ranges else (0, 0) for spec in self.inputs.values()]
        self.most_rows = min(high for _, high in rows)
        if max(low for low, _ in rows) > 1 or not 1 < self.most_rows < 1 << 20:
            takes = ", ".join(map(str, self.inputs.values()))
            sys.exit(f"{path} takes {takes}. Export it with Dim('batch', min=1, max=...) as the first of each input.")

    @torch.inference_mode()
    def __call__(self, tensors: Tensors) -> Tensors:
        results = self.program(**{name: tensor.to(self.device) for name, tensor in tensors.items()})
        if isinstance(results, torch.Tensor):
            results = {"output": results}
        elif not isinstance(results, Mapping):
            results = {f"output_{number}": result for number, result in enumerate(results)}
        return {name: result.cpu() for name, result in results.items()}

    def warm_up(self) -> None:
        """Compute once: the first inputs decide whether the engines run, which takes longer than any later call."""
        tensors = {}
        for name, spec in self.inputs.items():
            sizes = [min(max(size, low), high) for size, (low, high) in zip(spec.example, spec.ranges, strict=True)]
            tensors[name] = torch.rand(self.most_rows, *sizes[1:]).to(spec.dtype)
        for name, result in self(tensors).items():
            if result.dim() == 0 or len(result) != self.most_rows:
                raise ValueError(f"{name} has sizes {list(result.shape)} for {self.most_rows} rows of each input.")

    def rows_of(self, tensors: Tensors) -> int:
        """Return how many rows a request has; refuse one that the program does not take."""
        if tensors.keys() != self.inputs.keys():
            raise HTTPException(422, f"The inputs are {sorted(self.inputs)}; this request has {sorted(tensors)}.")
        for name, tensor in tensors.items():
            if not self.inputs[name].accepts(tensor):
                found = f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"
                raise HTTPException(422, f"{name} is {found}; the program takes {self.inputs[name]}.")
        rows = {len(tensor) for tensor in tensors.values()}
        if len(rows) > 1:
            raise HTTPException(422, f"The inputs have different numbers of rows: {sorted(rows)}.")
        return rows.pop()


@dataclasses.dataclass(eq=False)
class Waiting:
    """Request that waits for its answer; cancelling the answer takes it out."""

    tensors: Tensors
    rows: int
    answer: asyncio.Future[Tensors]
    since: float = dataclasses.field(default_factory=time.monotonic)

    @property
    def kind(self) -> list[Any]:
        """What requests of one batch have in common: the sizes of a row."""
        return [tensor.shape[1:] for _, tensor in sorted(self.tensors.items())]


class Batcher:
    """Queue in front of a model: a batch leaves when it is full, or when its first request has waited `wait_s`."""

    def __init__(self, model: Model, wait_s: float, batch_rows: Histogram) -> None:
        self._model = model
        self._wait_s = wait_s
        self._batch_rows = batch_rows
        self._queue: deque[Waiting] = deque()
        self._news = asyncio.Event()
        self._thread = ThreadPoolExecutor(1)  # always the same thread, as engines keep CUDA graphs for each
        self.is_well = False

    def add(self, tensors: Tensors, rows: int) -> asyncio.Future[Tensors]:
        """Queue a request, and return its answer, which is an HTTPException where the program fails."""
        waiting = Waiting(tensors, rows, asyncio.get_running_loop().create_future())
        self._queue.append(waiting)
        self._news.set()
        return waiting.answer

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        await asyncio.get_running_loop().run_in_executor(self._thread, self._model.warm_up)
        task = asyncio.create_task(self._run())
        self.is_well = True
        yield
        task.cancel()
        self._thread.shutdown()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._until_due()
            batch = self._take()
            if not batch:
                continue
            self._batch_rows.observe(sum(waiting.rows for waiting in batch))
            answers = await loop.run_in_executor(self._thread, self._answers, batch)
            self.is_well = any(isinstance(answer, dict) or answer.status_code < 500 for answer in answers)
            for waiting, answer in zip(batch, answers, strict=True):
                if waiting.answer.cancelled():
                    continue
                if isinstance(answer, HTTPException):
                    waiting.answer.set_exception(answer)
                else:
                    waiting.answer.set_result(answer)

    async def _until_due(self) -> None:
        while not self._queue:
            self._news.clear()
            await self._news.wait()
        due = self._queue[0].since + self._wait_s
        while sum(waiting.rows for waiting in self._queue) < self._model.most_rows:
            self._news.clear()
            try:
                await asyncio.wait_for(self._news.wait(), max(0, due - time.monotonic()))
            except asyncio.TimeoutError:
                return

    def _take(self) -> list[Waiting]:
        """Take the oldest request and those that fit to it; whoever has hung up is taken out."""
        batch: list[Waiting] = []
        others: deque[Waiting] = deque()
        rows = 0
        for waiting in self._queue:
            if waiting.answer.cancelled():
                continue
            fits = rows + waiting.rows <= self._model.most_rows and (not batch or waiting.kind == batch[0].kind)
            (batch if fits else others).append(waiting)
            rows += waiting.rows if fits else 0
        self._queue = others
        return batch

    def _answers(self, batch: list[Waiting]) -> list[Tensors | HTTPException]:
        """Compute a batch; if that fails, each request alone, so that none fails by its neighbour."""
        try:
            joined = {name: torch.cat([waiting.tensors[name] for waiting in batch]) for name in batch[0].tensors}
            results = self._model(joined)
        except Exception as error:
            if len(batch) > 1:
                return [self._answers([waiting])[0] for waiting in batch]
            if isinstance(error, trtb.ShapeRangeError):
                return [HTTPException(422, str(error))]
            LOGGER.exception("The program failed.")
            return [HTTPException(500, "The program failed; the server's log has the reason.")]
        parts = {name: result.split([waiting.rows for waiting in batch]) for name, result in results.items()}
        return [{name: part[number].clone() for name, part in parts.items()} for number in range(len(batch))]


class Service:
    """Answers of the server. most_open: requests that may be open at once; most_bytes: of a request's body."""

    def __init__(self, model: Model, wait_s: float = 0.004, most_open: int = 256, most_bytes: int = 16 << 20) -> None:
        self.model = model
        self.registry = CollectorRegistry()
        self.answered = Counter("trtb_requests", "Answers", ["status"], registry=self.registry)
        self.seconds = Histogram("trtb_request_seconds", "Time to answer", registry=self.registry)
        sizes = [2**power for power in range(model.most_rows.bit_length())]
        rows = Histogram("trtb_batch_rows", "Rows of a batch", buckets=sizes, registry=self.registry)
        gauge = Gauge("trtb_open_requests", "Requests not answered yet", registry=self.registry)
        gauge.set_function(lambda: self.open)
        self.open = 0
        self.most_open, self.most_bytes = most_open, most_bytes
        self.batcher = Batcher(model, wait_s, rows)
        self.app = FastAPI(lifespan=lambda app: self.batcher.running())
        self.app.post("/predict")(self.predict)
        self.app.get("/health")(self.health)
        self.app.get("/metrics")(self.metrics)

    async def predict(self, request: Request) -> Response:
        started = time.perf_counter()
        self.open += 1
        try:
            results = await self.results_for(request)
            response = Response(safetensors.torch.save(results), media_type="application/octet-stream")
        except HTTPException as error:
            response = JSONResponse({"error": error.detail}, error.status_code, error.headers)
        finally:
            self.open -= 1
        self.answered.labels(response.status_code).inc()
        self.seconds.observe(time.perf_counter() - started)
        return response

    async def results_for(self, request: Request) -> Tensors:
        if self.open > self.most_open:
            raise HTTPException(503, f"{self.most_open} requests are open already.", {"Retry-After": "1"})
        try:
            body = await asyncio.wait_for(self.body_of(request), SECONDS_TO_SEND)
            tensors = safetensors.torch.load(body)
        except asyncio.TimeoutError:
            raise HTTPException(408, f"The body did not arrive within {SECONDS_TO_SEND} s.") from None
        except ClientDisconnect:
            raise HTTPException(499, "The client hung up.") from None
        except (safetensors.SafetensorError, KeyError, RuntimeError, ValueError) as error:
            raise HTTPException(400, f"The body is not in the format of safetensors: {error}") from error
        return await unless_hung_up(request, self.batcher.add(tensors, self.model.rows_of(tensors)))

    async def body_of(self, request: Request) -> bytes:
        """Return the body; refuse a large one before it is read, or as soon as it has become too large."""
        too_large = HTTPException(413, f"A body has at most {self.most_bytes} bytes.")
        if int(request.headers.get("content-length", 0)) > self.most_bytes:
            raise too_large
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > self.most_bytes:
                raise too_large
        return bytes(body)

    async def health(self) -> JSONResponse:
        inputs = {name: str(spec) for name, spec in self.model.inputs.items()}
        status = {"status": "ok" if self.batcher.is_well else "the last batch failed", "inputs": inputs}
        return JSONResponse(status, 200 if self.batcher.is_well else 503)

    async def metrics(self) -> Response:
        return Response(generate_latest(self.registry), media_type=CONTENT_TYPE_LATEST)


async def unless_hung_up(request: Request, answer: asyncio.Future[Tensors]) -> Tensors:
    """Wait for an answer; cancel it if nobody waits at the other end any more."""

    async def hang_up() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    gone = asyncio.create_task(hang_up())
    await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
    gone.cancel()
    if not answer.done():
        answer.cancel()
        raise HTTPException(499, "The client hung up.")
    return answer.result()


@contextlib.contextmanager
def serving(app: FastAPI) -> Iterator[int]:
    """Run a server in a thread, on a free port of this machine, and yield the port."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        if not thread.is_alive():
            raise RuntimeError("The server did not start.")
        time.sleep(0.01)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()


def answered(port: int, images: torch.Tensor) -> list[tuple[torch.Tensor, float]]:
    """Send each image as a request; return the scores and the seconds of each."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    answers = []
    for image in images:
        started = time.perf_counter()
        connection.request("POST", "/predict", safetensors.torch.save({"input": image[None]}))
        response = connection.getresponse()
        body = response.read()
        if response.status != 200:
            sys.exit(f"A request was answered {response.status}: {body!r}")
        answers.append((safetensors.torch.load(body)["output"], time.perf_counter() - started))
    return answers


def tiny(clients: int = 8) -> None:
    """Serve a small network, and send it 400 images."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 32, 3, 2), nn.ReLU(), nn.AvgPool2d(5), nn.Flatten(), nn.Linear(288, 10))
    images = torch.rand(400, 3, 32, 32)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tiny.pt2"
        batch = torch.export.Dim("batch", min=1, max=16)
        trtb.save(trtb.export(network.eval(), images[:2], dynamic_shapes=({0: batch},), precision="fp16"), path)
        service = Service(Model(path))
    with serving(service.app) as port, ThreadPoolExecutor(clients) as threads:
        started = time.perf_counter()
        answers = list(itertools.chain(*threads.map(lambda part: answered(port, part), images.chunk(clients))))
        duration = time.perf_counter() - started
    with torch.inference_mode():
        expected = network(images)
    scores = torch.cat([scores for scores, _ in answers])
    right = int(torch.isclose(scores, expected, rtol=1e-2, atol=1e-3).all(1).sum())  # fp16
    cuts = statistics.quantiles([seconds for _, seconds in answers], n=100)
    batches = service.registry.get_sample_value("trtb_batch_rows_count")
    print(f"{len(images)} requests by {clients} clients in {duration:.2f} s, {len(images) / duration:.0f} per second")
    print(f"p50 {cuts[49] * 1e3:.1f} ms, p99 {cuts[98] * 1e3:.1f} ms")
    print(f"{batches:.0f} batches, of {len(images) / batches:.1f} requests on average")
    print(f"{right} of {len(images)} answers are the network's")
    if right < len(images):
        sys.exit("The answers differ by more than fp16 explains.")


def main() -> None:
    arguments = parse()
    if arguments.tiny:
        tiny()
        return
    service = Service(Model(arguments.path), arguments.wait_ms / 1e3, arguments.most_open, arguments.most_mb << 20)
    # At SIGTERM uvicorn takes no further connections, and waits for what is open.
    settings = {"access_log": False, "timeout_graceful_shutdown": SECONDS_TO_STOP}
    uvicorn.run(service.app, host=arguments.host, port=arguments.port, **settings)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", type=Path, nargs="?", help="a file of trtb.save")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets other machines in")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--wait-ms", type=float, default=4, help="how long a request may wait for others")
    parser.add_argument("--most-open", type=int, default=256, help="requests at once; further ones are answered 503")
    parser.add_argument("--most-mb", type=int, default=16, help="size of a request")
    parser.add_argument("--tiny", action="store_true", help="serve a small network to a load test")
    arguments = parser.parse_args()
    if arguments.path is None and not arguments.tiny:
        parser.error("give a file of trtb.save, or --tiny")
    return arguments


if __name__ == "__main__":
    main()
