"""`generate` of accelerated decoders: a static cache, of which one engine computes each step.

transformers keeps its own loop, its processors and its criteria. The length of the cache is rounded up, so that another
number of new tokens builds no other engine.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.nn import functional

from torchtrt_bridge.capture.transformers_classes import (
    has_encoder,
    has_read_encoder,
    is_static_cache,
    lengthen_caches,
    parts_of_cache,
)
from torchtrt_bridge.entry.decoding import Decoder
from torchtrt_bridge.entry.instance_method import InstanceMethod
from torchtrt_bridge.entry.torch_compile import Backend

GENERATE = "generate"

# The models whose tokens are tested to be the same with a static cache as without (config.model_type).
TESTED = frozenset(
    [
        *("gpt2", "gpt_neox", "llama", "mistral", "qwen2", "qwen3", "gemma", "phi", "opt", "bloom", "gptj"),
        *("t5", "bart", "whisper"),
    ],
)

# The shortest cache; longer ones have the next power of two.
LEAST_LENGTH = 256

# The shortest text of an encoder; longer ones are padded to the next power of two.
LEAST_SOURCE = 64

# Settings that read the text of an encoder, and those that return what it makes of it.
_OF_THE_SOURCE = ("encoder_repetition_penalty", "encoder_no_repeat_ngram_size")
_OUTPUTS = ("output_attentions", "output_hidden_states", "return_dict_in_generate")

# Arguments of `generate` that choose another cache, or a way of decoding with needs of its own.
_CHOICES = (
    *("cache", "past_key_values", "cache_implementation", "assistant_model", "custom_generate"),
    *("compile_config", "prompt_lookup_num_tokens", "penalty_alpha", "dola_layers", "constraints", "force_words_ids"),
)


def has_static_steps(model: Any) -> bool:
    """Return whether `generate` of a model may use a static cache."""
    return getattr(getattr(model, "config", None), "model_type", None) in TESTED and hasattr(type(model), "generate")


class Generate(InstanceMethod):
    """`generate` of one model, which uses a static cache where the caller leaves the choice."""

    def __init__(self, model: Any, backend: Backend) -> None:
        super().__init__(model, GENERATE)
        self.decoder = Decoder(backend)
        self._names = list(inspect.signature(type(model).generate).parameters)[1:]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._may_choose(kwargs):
            args, kwargs = (), {**dict(zip(self._names, args, strict=False)), **kwargs}
            if has_encoder(self.model):
                kwargs |= self._longer_source(kwargs)
            self._lengthen(kwargs)
            kwargs |= {"cache_implementation": "static", "disable_compile": True}
            reason = _why_no_loop(kwargs)
            if reason is None:
                # transformers hands a loop of one's own what it prepares, and no streamer.
                kwargs["custom_generate"] = functools.partial(self.decoder, streamer=kwargs.get("streamer"))
            else:
                self.decoder.note(reason)
        return self.of_class(*args, **kwargs)

    def _may_choose(self, kwargs: Mapping[str, Any]) -> bool:
        """Return whether the caller asks for no cache of another kind, nor for a way of decoding with other needs."""
        if any(kwargs.get(name) is not None for name in _CHOICES):
            return False
        if self._setting(kwargs, "cache_implementation") is not None or self._setting(kwargs, "use_cache") is False:
            return False
        return (self._setting(kwargs, "num_beam_groups") or 1) == 1

    def _setting(self, kwargs: Mapping[str, Any], name: str) -> Any:
        """Return a setting of a call: its argument, else what its or the model's configuration has."""
        if kwargs.get(name) is not None:
            return kwargs[name]
        configs = (kwargs.get("generation_config"), self.model.generation_config)
        values = (getattr(config, name, None) for config in configs)
        return next((value for value in values if value is not None), None)

    def _longer_source(self, kwargs: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """Return the text that an encoder reads and its mask, padded at the end to a power of two.

        The cache of what a decoder reads of it is as long, and each length of a cache is another engine.
        """
        name = "inputs" if kwargs.get("inputs") is not None else "input_ids"
        ids, mask, pad = kwargs.get(name), kwargs.get("attention_mask"), self._setting(kwargs, "pad_token_id")
        if not isinstance(ids, torch.Tensor) or not isinstance(mask, torch.Tensor) or not isinstance(pad, int):
            return {}
        reads = any(self._setting(kwargs, setting) not in (None, False, 0, 1.0) for setting in _OF_THE_SOURCE)
        if reads or any(self._setting(kwargs, setting) for setting in _OUTPUTS) or ids.dim() != 2:
            return {}
        wanted = _power_of_two(max(ids.shape[1], LEAST_SOURCE))
        longest = getattr(self.model.config, "max_position_embeddings", wanted)
        more = max(0, min(longest, wanted) - ids.shape[1])
        return {name: functional.pad(ids, (0, more), value=pad), "attention_mask": functional.pad(mask, (0, more))}

    def _lengthen(self, kwargs: Mapping[str, Any]) -> None:
        """Have transformers make its next static cache as long as a power of two."""
        given = next((v for v in kwargs.values() if isinstance(v, torch.Tensor) and v.dim() >= 2), None)
        prompt = 0 if given is None or has_encoder(self.model) else given.shape[1]
        new = self._setting(kwargs, "max_new_tokens")
        needed = (self._setting(kwargs, "max_length") or 20) if new is None else prompt + new
        lengthen_caches(self.model, max(LEAST_LENGTH, _power_of_two(int(needed))))


def _power_of_two(number: int) -> int:
    """Return the least one that is not below `number`."""
    return 1 << (number - 1).bit_length()


def _why_no_loop(kwargs: Mapping[str, Any]) -> str | None:
    """Return why `generate` cannot be given a loop; None if it can."""
    given = [name for name in ("tokenizer", "assistant_tokenizer", "synced_gpus") if kwargs.get(name) is not None]
    if given:
        return f"{', '.join(given)} are given"
    is_distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return "processes generate together" if is_distributed else None


def install(model: Any, backend: Backend) -> None:
    """Let `generate` of a model use a static cache, and the steps that `backend` compiles."""
    Generate(model, backend).install()


def uninstall(model: Any) -> None:
    """Undo `install`."""
    Generate.uninstall(model, GENERATE)


def by_cache(
    call: Callable[..., Any], new_step: Callable[[], Callable[..., Any]], plain: Callable[..., Any]
) -> Callable[..., Any]:
    """Return the call of a decoder: a step for one token and a static cache, `plain` for a prompt and one, else `call`.

    With a static cache, a prompt is computed once, and each length of it would be another engine.
    new_step: makes the call of a step. Each size of a cache has one, as PyTorch compiles a call for few sizes only.
    """
    steps: dict[tuple[int, ...], Callable[..., Any]] = {}

    def choose(*args: Any, **kwargs: Any) -> Any:
        caches = list(filter(is_static_cache, kwargs.values()))
        if not caches:
            return call(*args, **kwargs)
        ids: Any = kwargs.get("decoder_input_ids", kwargs.get("input_ids"))
        is_step = isinstance(ids, torch.Tensor) and ids.dim() == 2 and ids.shape[1] == 1
        if not is_step or not has_read_encoder(caches[0]):
            return plain(*args, **kwargs)
        size = ids.shape[0], *(layer.max_cache_len for part in parts_of_cache(caches[0]) for layer in part.layers)
        if size not in steps:
            steps[size] = new_step()
        return steps[size](*args, **kwargs)

    return choose
