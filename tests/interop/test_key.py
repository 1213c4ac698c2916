"""Key of an engine with nodes that torch_tensorrt's converters write."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.engine.keys import TARGETS, Called
from tests.interop import fake
from tests.interop.fake import CUBE, Support
from torchtrt_bridge.capture.export import export_program, graph_from_program
from torchtrt_bridge.engine.engine_key import engine_key
from torchtrt_bridge.interop import provider_for
from torchtrt_bridge.options import Options
from torchtrt_bridge.partition import extract_subgraphs, propose
from torchtrt_bridge.passes import normalize
from torchtrt_bridge.trt import library as library

OPTIONS = Options(engine="tensorrt_rtx", targets=TARGETS)


def key_of(call: Callable[..., Any], with_provider: bool = True) -> str:
    captured = graph_from_program(export_program(Called(call), (torch.ones(3, 4),)))
    module = normalize(captured.module, OPTIONS)
    provider = provider_for(OPTIONS) if with_provider else None
    (subgraph,) = extract_subgraphs(module, propose(module, OPTIONS, provider).subgraphs).values()
    return engine_key(subgraph, library.load("tensorrt_rtx"), OPTIONS, {}, provider)


def cubed(x: torch.Tensor) -> torch.Tensor:
    return fake.cube(x.sin())


def write_cube_in_another_way(ctx: Any, target: Any, args: Any, kwargs: Any, name: str) -> Any:
    return fake.product(ctx, args[0], fake.product(ctx, args[0], args[0]))


def test_the_same_converters_give_the_same_key(offer: Callable[..., None]) -> None:
    offer({CUBE: [Support(fake.write_cube)]})
    assert key_of(cubed) == key_of(cubed)


def test_another_version_gives_another_key(offer: Callable[..., None]) -> None:
    offer({CUBE: [Support(fake.write_cube)]}, version="2.11.0")
    before = key_of(cubed)
    offer({CUBE: [Support(fake.write_cube)]}, version="2.12.0")
    assert key_of(cubed) != before


def test_another_converter_gives_another_key(offer: Callable[..., None]) -> None:
    offer({CUBE: [Support(fake.write_cube)]})
    before = key_of(cubed)
    offer({CUBE: [Support(write_cube_in_another_way)]})
    assert key_of(cubed) != before


def converter_in(path: Path, code: str) -> Any:
    path.write_text(f"from tests.interop import fake\n\n\ndef write(ctx, target, args, kwargs, name):\n    {code}\n")
    spec = importlib.util.spec_from_file_location("users_converters", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.write


def test_a_users_converter_that_is_edited_gives_another_key(offer: Callable[..., None], tmp_path: Path) -> None:
    offer(
        {CUBE: [Support(converter_in(tmp_path / "one.py", "return fake.write_cube(ctx, target, args, kwargs, name)"))]}
    )
    before = key_of(cubed)
    offer({CUBE: [Support(converter_in(tmp_path / "two.py", "return fake.product(ctx, args[0], args[0])"))]})
    assert key_of(cubed) != before


def test_other_engines_keep_their_keys(offer: Callable[..., None]) -> None:
    offer({CUBE: [Support(fake.write_cube)]})
    assert key_of(torch.sin) == key_of(torch.sin, with_provider=False)
