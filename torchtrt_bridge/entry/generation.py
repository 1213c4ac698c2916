"""`generate` of accelerated decoders: a static cache, of which one engine computes each step.

transformers keeps its own loop, its processors and its criteria. The length of the cache is rounded up, so that another
number of new tokens builds no other engine.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from torchtrt_bridge.capture.transformers_classes import is_static_cache
from torchtrt_bridge.entry.decoding import Decoder
from torchtrt_bridge.entry.torch_compile import Backend

# The decoders whose tokens are tested to be the same with a static cache as without (config.model_type).
TESTED = frozenset(
    ["gpt2", "gpt_neox", "llama", "mistral", "qwen2", "qwen3", "gemma", "phi", "opt", "bloom", "gptj"],
)

# The shortest cache; longer ones have the next power of two.
LEAST_LENGTH = 256

# Arguments of `generate` that choose another cache, or a way of decoding with needs of its own.
_CHOICES = (
    *("cache", "past_key_values", "cache_implementation", "assistant_model", "custom_generate"),
    *("compile_config", "prompt_lookup_num_tokens", "penalty_alpha", "dola_layers", "constraints"),
)


def has_static_steps(model: Any) -> bool:
    """Return whether `generate` of a model may use a static cache."""
    return getattr(getattr(model, "config", None), "model_type", None) in TESTED and hasattr(type(model), "generate")


# Arguments of `generate` by position that it takes as they are: the prompt and the configuration.
MOST_ARGUMENTS = 2


class Generate:
    """`generate` of one model, which uses a static cache where the caller leaves the choice.

    A copy or a pickle of the model has its class's own `generate`.
    """

    def __init__(self, model: Any, backend: Backend) -> None:
        self.model = model
        self.decoder = Decoder(backend)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._may_choose(kwargs):
            self._lengthen(args, kwargs)
            kwargs = {**kwargs, "cache_implementation": "static", "disable_compile": True}
            reason = _why_no_loop(args, kwargs)
            if reason is None:
                # transformers hands a loop of one's own what it prepares, and no streamer.
                kwargs["custom_generate"] = functools.partial(self.decoder, streamer=kwargs.get("streamer"))
            else:
                self.decoder.note(reason)
        return type(self.model).generate(self.model, *args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        copied = memo.get(id(self.model))
        return self if copied is None else type(copied).generate.__get__(copied)

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (self.model, "generate")

    def _may_choose(self, kwargs: Mapping[str, Any]) -> bool:
        """Return whether the caller asks for no cache of another kind, and for greedy decoding or sampling."""
        if any(kwargs.get(name) is not None for name in _CHOICES):
            return False
        return self._setting(kwargs, "cache_implementation") is None and (
            self._setting(kwargs, "use_cache") is not False and (self._setting(kwargs, "num_beams") or 1) == 1
        )

    def _setting(self, kwargs: Mapping[str, Any], name: str) -> Any:
        """Return a setting of a call: its argument, else what its or the model's configuration has."""
        if kwargs.get(name) is not None:
            return kwargs[name]
        configs = (kwargs.get("generation_config"), self.model.generation_config)
        values = (getattr(config, name, None) for config in configs)
        return next((value for value in values if value is not None), None)

    def _lengthen(self, args: Any, kwargs: Mapping[str, Any]) -> None:
        """Have transformers make its next static cache as long as a power of two, where it knows how.

        It makes none shorter than the last one of the model.
        """
        given = next((v for v in (*args, *kwargs.values()) if isinstance(v, torch.Tensor) and v.dim() >= 2), None)
        prompt = 0 if given is None else given.shape[1]
        new = self._setting(kwargs, "max_new_tokens")
        needed = (self._setting(kwargs, "max_length") or 20) if new is None else prompt + new
        last = getattr(self.model, "_previous_max_cache_length", -1)
        self.model._previous_max_cache_length = max(last, LEAST_LENGTH, 1 << (int(needed) - 1).bit_length())


def _why_no_loop(args: Sequence[Any], kwargs: Mapping[str, Any]) -> str | None:
    """Return why `generate` cannot be given a loop; None if it can."""
    if len(args) > MOST_ARGUMENTS:
        return "arguments are given by position"
    given = [name for name in ("tokenizer", "assistant_tokenizer", "synced_gpus") if kwargs.get(name) is not None]
    if given:
        return f"{', '.join(given)} are given"
    is_distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return "processes generate together" if is_distributed else None


def install(model: Any, backend: Backend) -> None:
    """Let `generate` of a model use a static cache, and the steps that `backend` compiles."""
    object.__setattr__(model, "generate", Generate(model, backend))


def uninstall(model: Any) -> None:
    """Undo `install`."""
    if isinstance(vars(model).get("generate"), Generate):
        object.__delattr__(model, "generate")


def by_cache(
    call: Callable[..., Any], new_step: Callable[[], Callable[..., Any]], plain: Callable[..., Any]
) -> Callable[..., Any]:
    """Return the call of a decoder: a step for one token and a static cache, `plain` for a prompt and one, else `call`.

    With a static cache, a prompt is computed once, and each length of it would be another engine.
    new_step: makes the call of a step. Each size of a cache has one, as PyTorch compiles a call for few sizes only.
    """
    steps: dict[tuple[int, ...], Callable[..., Any]] = {}

    def choose(*args: Any, **kwargs: Any) -> Any:
        if not any(map(is_static_cache, kwargs.values())):
            return call(*args, **kwargs)
        ids = kwargs.get("input_ids")
        if not isinstance(ids, torch.Tensor) or ids.dim() != 2 or ids.shape[1] != 1:
            return plain(*args, **kwargs)
        (cache,) = filter(is_static_cache, kwargs.values())
        size = ids.shape[0], *(layer.max_cache_len for layer in cache.layers)
        if size not in steps:
            steps[size] = new_step()
        return steps[size](*args, **kwargs)

    return choose
