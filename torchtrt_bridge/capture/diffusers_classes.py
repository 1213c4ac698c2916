"""Pipelines and models of diffusers, and the modules that they call.

They are recognised without importing the package: if there is such an object, it is loaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from torchtrt_bridge.capture.transformers_classes import is_a
from torchtrt_bridge.capture.transformers_classes import is_model as is_transformers_model

# What `encode` and `decode` of an autoencoder call.
_OF_AUTOENCODERS = ("encoder", "quant_conv", "post_quant_conv", "decoder")

# Components that compute with NumPy, which no graph holds.
_LEFT_OUT = ("safety_checker",)


def is_pipeline(target: Any) -> bool:
    """Return whether an object is a `diffusers.DiffusionPipeline`."""
    return is_a(target, "diffusers.pipelines.pipeline_utils", "DiffusionPipeline")


def is_model(target: Any) -> bool:
    """Return whether an object is a `diffusers.ModelMixin`: a UNet, a transformer, an autoencoder, a ControlNet."""
    return is_a(target, "diffusers.models.modeling_utils", "ModelMixin")


def is_diffusion(target: Any) -> bool:
    """Return whether an object is a pipeline or a model of diffusers."""
    return is_pipeline(target) or is_model(target)


def called_modules(target: Any) -> dict[str, nn.Module]:
    """Return the modules that a pipeline calls, or those that a model is called by, as {"vae.decoder": ...}.

    Of a pipeline they are within its models of diffusers and transformers, each once. `encode` and `decode` of an
    autoencoder call modules within it, and several ControlNets are called one by one. The name of a model that is
    called itself is empty.
    """
    if not is_pipeline(target):
        return dict(_within(target))
    found: dict[str, nn.Module] = {}
    for name, component in target.components.items():
        if name in _LEFT_OUT or not (is_model(component) or is_transformers_model(component)):
            continue
        for inner, module in _within(component):
            if all(module is not known for known in found.values()):
                found[f"{name}.{inner}" if inner else name] = module
    return found


def _within(model: Any) -> Iterator[tuple[str, nn.Module]]:
    if is_model(model) and (hasattr(model, "decode") or hasattr(model, "encode")):
        for name in _OF_AUTOENCODERS:
            if isinstance(part := getattr(model, name, None), nn.Module):
                yield name, part
    elif is_model(model) and isinstance(nets := getattr(model, "nets", None), nn.ModuleList):
        for name, part in nets.named_children():
            yield f"nets.{name}", part
    else:
        yield "", model


def owner_of(target: Any, name: str) -> Any:
    """Return the model that a module of `called_modules` is within, or is."""
    return getattr(target, name.partition(".")[0]) if is_pipeline(target) else target


def models_with_adapters(target: Any) -> list[Any]:
    """Return the models of diffusers in a pipeline, or a model itself, into which a LoRA can be fused."""
    models = target.components.values() if is_pipeline(target) else [target]
    return [model for model in models if is_model(model) and hasattr(type(model), "fuse_lora")]


def why_left_out(pipeline: Any, name: str) -> str | None:
    """Return why a module that a pipeline calls is not worth engines; None if it is."""
    vae: Any = getattr(pipeline, "vae", None)
    if not name.startswith("vae.") or not hasattr(type(pipeline), "upcast_vae") or not is_model(vae):
        return None
    if vae.dtype != torch.float16 or not getattr(vae.config, "force_upcast", False):
        return None
    return "the pipeline casts it to fp32 for each image and back, so that its weights are new each time"


def why_in_torch(model: nn.Module) -> str | None:
    """Return why PyTorch must run what is called of a model: something moves or edits its weights; else None."""
    own = vars(model)
    if "_hf_hook" in own:
        return "hooks of accelerate move its weights or its inputs, as for offloading"
    if (hooks := own.get("_diffusers_hook")) is not None and hooks.hooks:
        return f"hooks of diffusers run around it: {', '.join(hooks.hooks)}"
    if is_transformers_model(model) and "_hf_peft_config_loaded" in own:
        return "a LoRA was loaded into it, which can be fused into its weights without a trace"
    return None


def arguments_of_one_graph(
    module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[list[Any], dict[str, Any]]:
    """Return the arguments of a call in the form in which those of all calls have one graph.

    Latents that an encoder made may have other strides than random ones. The strength of a ControlNet becomes a tensor:
    as a number it would be a constant of an engine, and pipelines change it from step to step.
    """
    found = {name: _contiguous(value) for name, value in kwargs.items()}
    if isinstance(scale := found.get("conditioning_scale"), float):
        weight = next(module.parameters())
        found["conditioning_scale"] = torch.full((), scale, dtype=weight.dtype, device=weight.device)
    return [_contiguous(value) for value in args], found


def _contiguous(value: Any) -> Any:
    return value.contiguous() if isinstance(value, torch.Tensor) else value
