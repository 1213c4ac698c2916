"""Hugging Face pipelines, models and sentence transformers on TensorRT, in place; those of diffusers by `diffusion`."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, TypeVar

from torch import nn

from torchtrt_bridge.capture.diffusers_classes import is_diffusion
from torchtrt_bridge.capture.transformers_classes import (
    has_encoder,
    is_for_pipelines,
    is_model,
    is_pipeline,
    is_sentence_model,
)
from torchtrt_bridge.entry.diffusion import accelerate_modules, restore_modules
from torchtrt_bridge.entry.generation import by_cache, has_static_steps, install, uninstall
from torchtrt_bridge.entry.option_signature import shows_options
from torchtrt_bridge.entry.torch_compile import (
    Backend,
    backend_of_calls,
    check_sentence_model,
    compile_calls,
    compiled_anew,
    set_call,
    uncompile_calls,
)
from torchtrt_bridge.errors import OptionsError
from torchtrt_bridge.graph.torch_internals import compiled_call, uncompiled_call
from torchtrt_bridge.options import KeywordOptions, Options

if TYPE_CHECKING:
    from typing_extensions import Unpack

T = TypeVar("T")


@shows_options(KeywordOptions)
def accelerate(
    target: T, *, dynamic: bool | None = None, fullgraph: bool = False, **options: Unpack[KeywordOptions]
) -> T:
    """Let a Hugging Face pipeline, model, SentenceTransformer or CrossEncoder compute on TensorRT, in place.

    Every call of the model runs the engines: `model(...)`, `generate`, `encode`, `predict`, the pipeline. Its class,
    its weights and its attributes stay. The encoder of an encoder-decoder model is compiled too, as `generate` calls it
    by itself. Of a pipeline of diffusers these are the denoiser, the text encoders, the autoencoder and ControlNets.
    dynamic, fullgraph: as in `torch.compile`; but without `dynamic` a model that reads token ids, or one of diffusers,
        is compiled for all sizes at once. PyTorch still compiles a batch of one by itself.
    options: the fields of `Options`, checked at once.
    Returns `target`. `restore` undoes it.
    Raises OptionsError for any other object, and for a model that is compiled already.
    """
    if is_diffusion(target):
        accelerate_modules(target, dynamic, fullgraph, options)
        return target
    model = _model_of(target, "accelerate")
    backend = Backend(Options.from_mapping(options), model)
    check_sentence_model(model)
    for part in _parts(model):
        if compiled_call(part) is not None:
            raise OptionsError(
                f"This {type(part).__name__} is compiled already"
                + (
                    " by torchtrt_bridge; restore() undoes that."
                    if backend_of_calls(part)
                    else " by its own compile()."
                )
            )
    if dynamic is None and (is_sentence_model(model) or getattr(model, "main_input_name", None) == "input_ids"):
        dynamic = True
    for part in _parts(model):
        compile_calls(part, backend, dynamic, fullgraph)
    if has_static_steps(model):
        _compile_steps(model, backend, fullgraph)
    return target


def _compile_steps(model: nn.Module, backend: Backend, fullgraph: bool) -> None:
    """Let `generate` use a static cache, and compile its steps apart from other calls."""
    new_step = functools.partial(compiled_anew, model, backend, dynamic=None, fullgraph=fullgraph)
    set_call(model, by_cache(compiled_call(model), new_step, uncompiled_call(model)), backend)
    install(model, backend)


def restore(target: T) -> T:
    """Undo `accelerate`: PyTorch runs the pipeline or model again. Returns `target`.

    Raises OptionsError if it is not accelerated.
    """
    if is_diffusion(target):
        name, is_undone = type(target).__name__, restore_modules(target)
    else:
        model = _model_of(target, "restore")
        name, is_undone = type(model).__name__, _restore_model(model)
    if not is_undone:
        raise OptionsError(f"This {name} is not accelerated.")
    return target


def _restore_model(model: nn.Module) -> bool:
    """Undo what `accelerate` did to a model; return False if there was nothing to undo."""
    undone = [uncompile_calls(part) for part in _parts(model)]
    uninstall(model)
    return any(undone)


def _model_of(target: Any, verb: str) -> nn.Module:
    """Return the model of a pipeline, or the model itself; OptionsError says what to give instead."""
    model = target.model if is_pipeline(target) else target
    if is_for_pipelines(model) or is_sentence_model(model):
        found: nn.Module = model
        return found
    if isinstance(getattr(model, "_orig_mod", None), nn.Module):
        raise OptionsError(f"{verb}() takes the model itself, and this is the result of torch.compile(model).")
    raise OptionsError(f"{verb}() takes a Hugging Face pipeline or model, not {type(model).__name__}.{_instead(model)}")


def _instead(target: Any) -> str:
    if not isinstance(target, nn.Module):
        return ""
    inside = next((name for name, part in target.named_modules() if is_model(part)), None)
    if inside is not None:
        return f" It holds one: give it .get_submodule({inside!r})."
    return " compile() takes any module."


def _parts(model: Any) -> list[nn.Module]:
    """Return the modules that are called from outside: the model, and the encoder that `generate` calls before it."""
    if is_sentence_model(model) or not has_encoder(model):
        return [model]
    encoder = model.get_encoder()
    return [model] if encoder is model else [model, encoder]
