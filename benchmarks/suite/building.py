"""Build: what `trtb.export` for one target costs on the CPU, without a GPU; seconds by stage, and memory."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

from torch import nn

from benchmarks.suite.job import Event, Job, Row, failure
from benchmarks.suite.memory import forget_host_peak, host_bytes, mib
from benchmarks.suite.models import SUITE, Inputs, build

TARGET = "sm_89"


def measure(job: Job) -> Iterator[Event]:
    """One row: of the stages, or of a whole export, by the job's part."""
    (name,) = job.contenders
    yield {"contender": name, "doing": "building the model"}
    original = build(SUITE[job.model])
    inputs = SUITE[job.model].inputs(job.batch)
    try:
        row = _stages(job, original, inputs) if job.part == "stages" else _export(job, original, inputs)
    except Exception as error:
        row = failure(error)
    yield {"contender": name, "row": row}


def _stages(job: Job, model: nn.Module, inputs: Inputs) -> Row:
    """Seconds of each stage in a fresh process, imports included; then once more with all imported.

    CPU seconds, of all threads, tell what other work on the machine does not.
    """
    started = time.process_time()
    first = _stage_seconds(job, model, inputs)
    cpu = time.process_time() - started
    again = _stage_seconds(job, model, inputs)
    row = {f"{stage}_s": seconds for stage, seconds in first.items()}
    row["without_build_s"] = sum(first.values()) - first["build"]
    row["without_build_again_s"] = sum(again.values()) - again["build"]
    return row | {"cpu_s": cpu}


def _stage_seconds(job: Job, model: nn.Module, inputs: Inputs) -> dict[str, float]:
    from torchtrt_bridge.capture.export import export_program, graph_from_program
    from torchtrt_bridge.engine.build import engine_from_network
    from torchtrt_bridge.lower.network import network_from_graph
    from torchtrt_bridge.options import Options
    from torchtrt_bridge.partition import extract_subgraphs, propose
    from torchtrt_bridge.passes import normalize
    from torchtrt_bridge.trt import library as libraries

    options = Options(**_options(job), targets=(TARGET,))
    seconds: dict[str, float] = {}
    with _timed(seconds, "capture"):
        captured = graph_from_program(export_program(model, (), inputs, None))
    with _timed(seconds, "normalize"):
        module = normalize(captured.module, options)
    with _timed(seconds, "partition"):
        subgraphs = extract_subgraphs(module, propose(module, options).subgraphs)
    library = libraries.choose(options.engine)
    with _timed(seconds, "lower"):
        networks = [network_from_graph(subgraph, library, {}) for subgraph in subgraphs.values()]
    with _timed(seconds, "build"):
        for network in networks:
            engine_from_network(network, library, options)
    return seconds


@contextlib.contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - started


def _export(job: Job, model: nn.Module, inputs: Inputs) -> Row:
    """Seconds of a whole export, and its memory above that of the loaded model, libraries included."""
    weights = sum(tensor.nbytes for tensor in model.state_dict().values())
    before = host_bytes("VmRSS") or 0
    forget_host_peak()
    started, started_cpu = time.perf_counter(), time.process_time()
    import torchtrt_bridge as trtb
    from torchtrt_bridge.trt import library as libraries

    libraries.choose(job.engine)
    libraries = (host_bytes("VmRSS") or 0) - before
    options = _options(job)
    program = trtb.export(model, (), kwargs=inputs, targets=(TARGET,), cache_dir=job.cache_dir, **options)
    seconds, cpu = time.perf_counter() - started, time.process_time() - started_cpu
    peak = (host_bytes("VmHWM") or 0) - before
    ready = [entry for entry in program.report.engines if entry.is_ready]
    return {
        "export_s": seconds,
        "cpu_s": cpu,
        "weights_mib": mib(weights),
        "libraries_mib": mib(libraries),
        "peak_mib": mib(peak),
        "peak_by_weights": round(peak / weights, 2),
        "engines": len(ready),
        "built": sum(not entry.from_cache for entry in ready),
        "torch_nodes": program.report.torch_nodes,
    }


def _options(job: Job) -> dict[str, Any]:
    """The model stays in fp32, and the export takes it to the precision, as one does with a trained model."""
    return {"precision": job.precision, "engine": job.engine}
