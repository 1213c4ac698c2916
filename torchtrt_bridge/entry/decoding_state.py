"""What the steps of a call of `generate` write to, and how the host sees it without having the GPU wait."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict, deque
from typing import Any

import torch

from torchtrt_bridge.entry.decoding_request import Request, capacity_of, layers_of
from torchtrt_bridge.runtime.cuda_graph import CudaGraphCall

# Replays that are compared with plain steps: a number that a graph had baked in would show at the second.
CHECKED_REPLAYS = 2


@dataclasses.dataclass
class StepGraph:
    """A CUDA graph of a step, and of which engines it is; checks: replays that are still to be compared."""

    graph: CudaGraphCall
    engines: Any
    checks: int = CHECKED_REPLAYS


class Texts:
    """The texts of one call of `generate`, and all else that its steps write to, in memory that later calls use again.

    ids [batch, length of the cache + 1]: prompts and chosen tokens; what comes behind repeats the prompt's last.
    token [batch, 1]: the last token; count [1]: how many ids there are.
    mask [batch, length of the cache]: 0 where a prompt has padding; for an encoder-decoder that of the encoder's text,
        [batch, its length]; positions [batch, 1]: those of the last tokens.
    unfinished [batch]: 1 for texts that have not ended; wanted []: tokens that were chosen while there was one.
    is_sound []: False once probabilities were negative or no numbers.
    logits, scores [batch, vocabulary]: of the last step, before and after the processors.
    """

    def __init__(self, key: Any, request: Request) -> None:
        self.key = key
        self.cache = request.cache
        ids, length = request.input_ids, capacity_of(request.cache)
        self.ids = ids.new_empty(ids.shape[0], length + 1)
        self.token = ids.new_empty(ids.shape[0], 1)
        self.count = torch.zeros(1, dtype=torch.int64, device=ids.device)
        self.unfinished = torch.ones(ids.shape[0], dtype=torch.int64, device=ids.device)
        self.wanted = torch.zeros((), dtype=torch.int64, device=ids.device)
        self.is_sound = torch.ones((), dtype=torch.bool, device=ids.device)
        mask = request.settings.get("attention_mask")
        if mask is None or request.has_encoder:
            self.mask = None if mask is None else mask.clone()
        else:
            self.mask = mask.new_ones(ids.shape[0], length)
        positions = request.settings.get("position_ids")
        self.positions = None if positions is None else positions[..., -1:].clone()
        self.logits: torch.Tensor | None = None
        self.scores: torch.Tensor | None = None
        self.graphs: OrderedDict[Any, StepGraph] = OrderedDict()
        self.without_graph: set[Any] = set()
        self._last = torch.cuda.Event() if ids.is_cuda else None

    def begin(self, request: Request) -> None:
        """Hold the prompts of a call, and an empty cache."""
        if self._last is not None:
            torch.cuda.current_stream(self.ids.device).wait_event(self._last)  # the last call may have had another
        if self.cache is not request.cache:
            self.cache.reset()
        ids = request.input_ids
        self.ids.copy_(ids[:, -1:].expand_as(self.ids))
        self.ids[:, : ids.shape[1]] = ids
        self.count.fill_(ids.shape[1])
        self.unfinished.fill_(1)
        self.wanted.zero_()
        self.is_sound.fill_(True)
        if self.mask is not None and request.has_encoder:
            self.mask.copy_(request.settings["attention_mask"])
        elif self.mask is not None:
            self.mask.fill_(1)
            self.mask[:, : ids.shape[1]] = request.settings["attention_mask"]
        if self.positions is not None:
            self.positions.copy_(request.settings["position_ids"][..., -1:])

    def end(self) -> None:
        """Note that all work of a call is queued."""
        if self._last is not None:
            self._last.record(torch.cuda.current_stream(self.ids.device))

    def keep(self, logits: torch.Tensor, scores: torch.Tensor) -> None:
        """Hold the numbers of a step where each step of the call writes them."""
        if self.logits is None or self.logits.shape != logits.shape:
            self.logits, self.scores = torch.empty_like(logits), torch.empty_like(scores)
            self.graphs.clear()
        assert self.scores is not None
        self.logits.copy_(logits)
        self.scores.copy_(scores)

    def changing(self) -> list[torch.Tensor]:
        """Return all that a step changes, and needs to be as it was for the step to give the same again."""
        counts = [layer.cumulative_length for layer in layers_of(self.cache)]
        own = [self.ids, self.token, self.count, self.unfinished, self.wanted, self.is_sound]
        return [*own, *counts] if self.positions is None else [*own, *counts, self.positions]


class Watch:
    """Looks at texts on the host, after the GPU has written them: a streamer's tokens, and whether all have ended."""

    def __init__(self, texts: Texts, streamer: Any) -> None:
        self.texts = texts
        self.streamer = streamer
        self.has_ended = False
        self._looks: deque[tuple[torch.Tensor, torch.cuda.Event | None]] = deque()

    def note(self) -> None:
        """Queue a copy of what there is to see of the last step."""
        texts = self.texts
        values = torch.cat([texts.unfinished.max()[None], texts.is_sound[None].long(), texts.token[:, 0]])
        if not values.is_cuda:
            self._looks.append((values, None))
            return
        seen = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
        seen.copy_(values, non_blocking=True)
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(values.device))
        self._looks.append((seen, event))

    def look(self, behind: int) -> bool:
        """Look at all that was noted, but for the last `behind`. Return whether all texts have ended."""
        while len(self._looks) > behind:
            seen, event = self._looks.popleft()
            if event is not None:
                event.synchronize()
            unfinished, is_sound, *tokens = seen.tolist()
            if not is_sound:
                raise RuntimeError("The probabilities of the next token hold inf, nan, or a number below 0.")
            if self.streamer is not None and not self.has_ended:
                self.streamer.put(torch.tensor(tokens))
            self.has_ended = self.has_ended or not unfinished
        return self.has_ended
