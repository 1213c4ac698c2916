"""Models and pipelines of transformers, and models of sentence-transformers.

They are recognised without importing either package: if there is such an object, its package is loaded.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from torchtrt_bridge.graph.torch_internals import forward_hooks

CACHES = "transformers.cache_utils"
_MARK = "_output_capturing_hooks_installed"


def is_model(target: Any) -> bool:
    """Return whether an object is a `transformers.PreTrainedModel`."""
    return is_a(target, "transformers.modeling_utils", "PreTrainedModel")


def is_for_pipelines(target: Any) -> bool:
    """Return whether pipelines of transformers take an object: one of its models, or a quantized one."""
    return is_model(target) or (hasattr(type(target), "can_generate") and hasattr(target, "config"))


def is_pipeline(target: Any) -> bool:
    """Return whether an object is a `transformers.Pipeline`."""
    return is_a(target, "transformers.pipelines.base", "Pipeline")


def is_sentence_model(target: Any) -> bool:
    """Return whether an object is a `SentenceTransformer` or a `CrossEncoder`: tokenizer, model and pooling in one."""
    return any(is_a(target, "sentence_transformers", name) for name in ("SentenceTransformer", "CrossEncoder"))


def version_of_sentence_models() -> str:
    """Return the version of sentence-transformers, which is loaded."""
    return str(sys.modules["sentence_transformers"].__version__)


def has_encoder(model: Any) -> bool:
    """Return whether a model of transformers is an encoder-decoder."""
    return bool(getattr(model.config, "is_encoder_decoder", False))


def generates(target: Any) -> bool:
    """Return whether an object is a model of transformers with a `generate` of its own."""
    return is_model(target) and bool(target.can_generate())


def is_conv1d(target: Any) -> bool:
    """Return whether an object is the linear layer of GPT-2 and its kind, whose weight is [inputs, outputs]."""
    return is_a(target, "transformers.pytorch_utils", "Conv1D")


def is_static_cache(target: Any) -> bool:
    """Return whether an object is a cache of keys and values of a fixed length."""
    return bool(parts_of_cache(target))


def parts_of_cache(target: Any) -> list[Any]:
    """Return the `transformers.StaticCache` that a cache is; nothing for one of another kind.

    For an encoder-decoder there are two: of the decoder's own tokens, and of what it reads of the encoder's.
    """
    if is_a(target, CACHES, "EncoderDecoderCache"):
        parts = [target.self_attention_cache, target.cross_attention_cache]
        return parts if all(is_a(part, CACHES, "StaticCache") for part in parts) else []
    return [target] if is_a(target, CACHES, "StaticCache") else []


def has_read_encoder(cache: Any) -> bool:
    """Return whether a cache has all that a decoder reads of an encoder, or belongs to a decoder without one."""
    layers: Any = getattr(cache, "is_updated", None)
    return layers is None or (len(layers) > 0 and all(layers.values()))


# What a decoding loop needs of transformers' own, which has no public name.


def plain_loop(model: Any, config: Any) -> Callable[..., Any]:
    """Return transformers' loop for greedy decoding, sampling or beam search; it takes the model first."""
    loop: Callable[..., Any] = type(model)._beam_search if (config.num_beams or 1) > 1 else type(model)._sample
    return loop


def move_beams_in_place(cache: Any) -> None:
    """Let a static cache give each beam the keys and values of another in its own memory, where engines look for them.

    transformers would make a new tensor of each after every token.
    """
    if is_static_cache(cache):
        cache.reorder_cache = functools.partial(_move_beams, cache)


def _move_beams(cache: Any, beams: torch.Tensor) -> None:
    for layer in (layer for part in parts_of_cache(cache) for layer in part.layers):
        for value in (layer.keys, layer.values):
            value.copy_(value.index_select(0, beams.to(value.device)))


def prefill(model: Any, ids: torch.Tensor, config: Any, settings: dict[str, Any]) -> Any:
    """Return what a model gives for a prompt; settings: its other arguments, among them the cache to fill."""
    return model._prefill(ids, config, settings)


def pad_token(config: Any) -> torch.Tensor | None:
    """Return the token that follows a text that has ended, of a configuration that transformers has prepared."""
    token: torch.Tensor | None = config._pad_token_tensor
    return token


def lengthen_caches(model: Any, least: int) -> None:
    """Have the static caches that transformers makes for a model hold so many tokens, or more if earlier ones did."""
    model._previous_max_cache_length = max(getattr(model, "_previous_max_cache_length", -1), least)


def install_hooks(model: Any) -> None:
    """Let transformers install its hooks for hidden states and attentions, as it does at a model's first call.

    It marks the model, while the hooks are in its submodules: a copy of an unmarked model would get them twice. So
    would a model within it that had a call of its own, as transformers installs the hooks of a model and of all models
    in it at once, and looks at the mark of the outermost alone.
    """
    if not is_model(model):
        return
    try:
        from transformers.utils.output_capturing import maybe_install_capturing_hooks
    except ImportError:  # versions without such hooks
        return
    marked = [part for part in model.modules() if part is not model and getattr(part, _MARK, False)]
    hooks = [forward_hooks(module) for part in marked for module in part.modules()]
    before = [tuple(each) for each in hooks]
    maybe_install_capturing_hooks(model)
    for each, known in zip(hooks, before, strict=True):
        for key in [key for key in each if key not in known]:
            del each[key]


@contextlib.contextmanager
def without_cache(model: nn.Module) -> Iterator[bool]:
    """Let the models of transformers within `model` return no cache of keys and values; yield whether one would."""
    configs: list[Any] = [module.config for module in model.modules() if is_model(module)]
    changed = [config for config in configs if getattr(config, "use_cache", False)]
    try:
        for config in changed:
            config.use_cache = False
        yield bool(changed)
    finally:
        for config in changed:
            config.use_cache = True


def is_a(target: Any, module: str, name: str) -> bool:
    """Return whether an object is of a class that a module has, without importing the module."""
    kind = getattr(sys.modules.get(module), name, None)  # another thread may be importing the module
    return isinstance(kind, type) and isinstance(target, kind)
