"""A call of `generate` as transformers has prepared it, and whether a loop of this package may make it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import torch

from torchtrt_bridge.capture.transformers_classes import has_encoder, is_static_cache, pad_token, parts_of_cache
from torchtrt_bridge.graph.torch_internals import is_any_autocast_enabled

# Processors of transformers that compute on the GPU from the scores alone, and the one that also reads the ids of a
# text in any order, some of them twice.
_OF_SCORES = (
    *("TemperatureLogitsWarper", "TopKLogitsWarper", "TopPLogitsWarper", "MinPLogitsWarper", "EpsilonLogitsWarper"),
    *("InfNanRemoveLogitsProcessor", "LogitNormalization", "SuppressTokensLogitsProcessor"),
)
_OF_IDS = ("RepetitionPenaltyLogitsProcessor",)

# Processors that change the scores of one token only, known by the length of the text before it (`begin_index`).
_OF_LENGTH = ("SuppressTokensAtBeginLogitsProcessor",)


@dataclasses.dataclass(frozen=True)
class Request:
    """What transformers has prepared for a call of `generate`; settings: the other arguments of the model."""

    model: Any
    input_ids: torch.Tensor
    processors: Sequence[Any]
    criteria: Sequence[Any]
    config: Any
    streamer: Any
    settings: dict[str, Any]

    @property
    def cache_name(self) -> str:
        """The name of the cache among the model's arguments, which differs between versions of transformers."""
        return "cache" if "cache" in self.settings else "past_key_values"

    @property
    def cache(self) -> Any:
        return self.settings.get(self.cache_name)

    @property
    def has_encoder(self) -> bool:
        """True for an encoder-decoder, whose mask is that of the text that the encoder reads."""
        return has_encoder(self.model)

    @property
    def length(self) -> int:
        """The most tokens that a text may have, with the prompt."""
        return min(int(c.max_length) for c in self.criteria if _kind(c) == "MaxLengthCriteria")

    @functools.cached_property
    def end_tokens(self) -> torch.Tensor | None:
        """The tokens that end a text."""
        found = [c.eos_token_id for c in self.criteria if _kind(c) == "EosTokenCriteria"]
        return torch.cat([each.to(self.input_ids.device).flatten() for each in found]) if found else None

    @property
    def other_criteria(self) -> list[Any]:
        return [c for c in self.criteria if _kind(c) not in ("MaxLengthCriteria", "EosTokenCriteria")]

    @property
    def key(self) -> tuple[Any, ...]:
        """All that the graph of a step depends on, beside the sizes."""
        config, ends = self.config, self.end_tokens
        processors = [(_kind(each), {k: _value(v) for k, v in vars(each).items()}) for each in self.processors]
        padding = pad_token(config)
        pad = None if padding is None else int(padding)
        unread = (self.cache_name, "encoder_outputs")  # the cache has what a step needs of them
        used = {name: _form(value) for name, value in self.settings.items() if name not in unread}
        return (
            *(config.do_sample, pad, None if ends is None else tuple(ends.tolist())),
            *(repr(processors), repr(sorted(used.items()))),
        )

    def _takes(self, processor: Any) -> bool:
        """Return whether a processor needs no more of the texts than the loop gives it in each step."""
        if _kind(processor) in _OF_LENGTH:
            return int(processor.begin_index) <= self.input_ids.shape[1]
        return _kind(processor) in (*_OF_SCORES, *_OF_IDS)

    def why_not(self) -> str | None:
        """Return why the loop of transformers is to run; None if this one may."""
        config, ids = self.config, self.input_ids
        if (config.num_beams or 1) > 1:
            return "beams are searched"
        others = {_kind(each) for each in self.processors if not self._takes(each)}
        if others:
            return f"{', '.join(sorted(others))} may read all tokens so far on the host"
        if any(_ignored(each) >= ids.shape[1] for each in self.processors):
            return "the repetition penalty leaves out the whole prompt"
        if config.output_attentions or config.output_hidden_states:
            return "attentions or hidden states are asked for"
        if self.has_encoder and config.return_dict_in_generate:
            return "the results of an encoder are asked for"
        unknown = {name for name, value in self.settings.items() if value is not None} - {
            *("attention_mask", "position_ids", "use_cache", "logits_to_keep", self.cache_name),
            *(["encoder_outputs"] if self.has_encoder else []),
        }
        if unknown:
            return f"the model takes {', '.join(sorted(unknown))}"
        if not any(_kind(each) == "MaxLengthCriteria" for each in self.criteria):
            return "no length is given"
        open_windows(self.cache, self.length)
        if not is_static_cache(self.cache) or any(layer.is_sliding for layer in layers_of(self.cache)):
            return "its cache is not a static one, or the texts fill a layer's sliding window"
        if not ids.shape[1] < self.length <= capacity_of(self.cache) + 1:
            return "the texts do not fit in the cache"
        most = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        if most is not None and self.length > most:
            return "the texts may be longer than what the model was made for"
        if ids.device != self.model.device or getattr(self.model, "hf_device_map", None):
            return "model and prompt are on several devices"
        return "autocast is on" if is_any_autocast_enabled() else None


def open_windows(cache: Any, length: int) -> None:
    """Give layers with a window, which texts of `length` tokens do not fill, the form of those without one.

    They count their tokens on the host, where no CUDA graph would.
    """
    layers = getattr(cache, "layers", [])
    windows = [layer for layer in layers if _kind(layer) == "StaticSlidingWindowLayer" and not layer.is_initialized]
    if not windows or any(length - 1 > layer.max_cache_len for layer in windows):
        return
    from transformers.cache_utils import StaticLayer

    longest = max(layer.max_cache_len for layer in layers)
    cache.layers = [StaticLayer(max_cache_len=longest) if layer in windows else layer for layer in layers]


def capacity_of(cache: Any) -> int:
    """Return how many tokens the layers of a static cache hold."""
    return int(layers_of(cache)[0].max_cache_len)


def layers_of(cache: Any) -> list[Any]:
    """Return the layers of a static cache that hold a decoder's own tokens."""
    return list(parts_of_cache(cache)[0].layers)


def _ignored(processor: Any) -> int:
    """Return how many first tokens of a text a processor does not read: those of the prompt, or of its padding."""
    ignored = getattr(processor, "prompt_ignore_length", None)
    return 0 if ignored is None else int(ignored.max()) if isinstance(ignored, torch.Tensor) else ignored


def _kind(value: Any) -> str:
    return type(value).__name__


def _value(value: Any) -> Any:
    return value.tolist() if isinstance(value, torch.Tensor) else value


def _form(value: Any) -> Any:
    return (value.dtype, value.dim()) if isinstance(value, torch.Tensor) else value
