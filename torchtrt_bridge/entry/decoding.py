"""The decoding loop of accelerated decoders: the model on one token and the choice of the next, in one CUDA graph.

transformers prepares each call of `generate`: cache, processors, criteria. Its own loop looks at each token before it
queues the next one; this one queues several, and looks at them while the GPU goes on.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any

import torch

from torchtrt_bridge.capture.transformers_classes import (
    move_beams_in_place,
    pad_token,
    parts_of_cache,
    plain_loop,
    prefill,
)
from torchtrt_bridge.entry.decoding_request import Request
from torchtrt_bridge.entry.decoding_state import StepGraph, Texts, Watch
from torchtrt_bridge.entry.torch_compile import Backend
from torchtrt_bridge.errors import BridgeError
from torchtrt_bridge.runtime.cuda_graph import CudaGraphCall
from torchtrt_bridge.runtime.tolerance import REPLAY_BOUND, compare
from torchtrt_bridge.runtime.write_back import write_back

# Tokens that are queued before the host looks whether all texts have ended.
STEPS_AT_ONCE = 8

# Calls of `generate` of which a model keeps the cache, and settings of each that keep their CUDA graphs.
MOST_CACHES, MOST_GRAPHS = 2, 4


class Decoder:
    """The decoding loop of one model, given to `generate` of transformers as ``custom_generate``.

    One call at a time has the cache and the graphs that it keeps; others, and calls that it cannot make, run in the
    loop of transformers, and the report says why.
    """

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self._lock = threading.Lock()
        self._texts: OrderedDict[Any, Texts] = OrderedDict()

    def __call__(
        self,
        model: Any,
        input_ids: torch.Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        streamer: Any = None,
        **settings: Any,
    ) -> Any:
        """Return what `generate` returns for greedy decoding, sampling or beam search."""
        request = Request(model, input_ids, logits_processor, stopping_criteria, generation_config, streamer, settings)
        reason = request.why_not()
        if reason is None and self._lock.acquire(blocking=False):
            try:
                with torch.inference_mode(False), torch.no_grad():
                    return self._generate(request)
            finally:
                self._lock.release()
        if reason is not None:
            self.note(reason)
        if streamer is not None:  # the loop for beams takes none
            settings["streamer"] = streamer
        move_beams_in_place(request.cache)
        return plain_loop(model, generation_config)(
            *(model, input_ids, logits_processor, stopping_criteria, generation_config), **settings
        )

    def note(self, reason: str) -> None:
        """Have the report say why a call runs in the loop of transformers."""
        self.backend.note(f"generate runs the loop of transformers: {reason}")

    def _generate(self, request: Request) -> Any:
        texts = self._texts_for(request)
        texts.begin(request)
        is_kept = request.config.return_dict_in_generate
        if is_kept:
            self._texts.pop(texts.key)  # the caller gets its cache
        return Loop(request, texts, self.backend).run()

    def _texts_for(self, request: Request) -> Texts:
        """Return the memory of a call of such sizes, of the last one that had them if there was one."""
        ids, mask, cache = request.input_ids, request.settings.get("attention_mask"), request.cache
        has_positions = request.settings.get("position_ids") is not None
        capacities = tuple(part.layers[0].max_cache_len for part in parts_of_cache(cache))
        key = (ids.shape[0], ids.device, capacities, request.model.dtype, mask is None, has_positions)
        texts = self._texts.pop(key, None)
        if texts is None:
            texts = Texts(key, request)
        self._texts[key] = texts
        if len(self._texts) > MOST_CACHES:
            self._texts.popitem(last=False)
        return texts


class Loop:
    """One call of `generate`: the prompt, and step by step the tokens behind it."""

    def __init__(self, request: Request, texts: Texts, backend: Backend) -> None:
        self.request = request
        self.texts = texts
        self.backend = backend
        config = request.config
        self._key = request.key
        self._others = request.other_criteria
        self._ends = request.end_tokens
        ends = any(hasattr(each, "eos_token_id") for each in request.criteria)
        self._padding = pad_token(config) if ends else None
        self._keeps_scores = config.return_dict_in_generate and config.output_scores
        self._keeps_logits = config.return_dict_in_generate and config.output_logits
        self._scores: list[torch.Tensor] = []
        self._logits: list[torch.Tensor] = []
        self._engines: Any = None
        self._may_replay = False
        self._settings = {**request.settings, request.cache_name: texts.cache}

    def run(self) -> Any:
        request, texts = self.request, self.texts
        generator = _generator(texts.ids)
        first = 0 if generator is None else generator.get_offset()
        outputs = prefill(request.model, request.input_ids, request.config, dict(self._settings))
        self._choose(_last_logits(outputs), texts.ids[:, : request.input_ids.shape[1]])
        for name, value in (("attention_mask", texts.mask), ("position_ids", texts.positions)):
            if value is not None:
                self._settings[name] = value
        try:
            steps = self._decode(request.length - request.input_ids.shape[1])
        finally:
            texts.end()
        wanted = int(texts.wanted)
        if generator is not None and wanted < steps:  # as if the tokens that nobody wanted had not been drawn
            drawn = generator.get_offset() - first
            generator.set_offset(first + drawn // steps * wanted)
        if request.streamer is not None:
            request.streamer.end()
        return self._result(texts.ids[:, : request.input_ids.shape[1] + wanted].clone())

    def _decode(self, most: int) -> int:
        """Choose up to `most` tokens of each text, the first of which there is. Return how many were chosen.

        The host looks at them while the GPU computes the next ones. Not so where the caller's criteria or results
        would see tokens that nobody wants, and on a CPU.
        """
        texts, streamer = self.texts, self.request.streamer
        looks_at_each = bool(self._others or self.request.config.return_dict_in_generate or not texts.ids.is_cuda)
        at_once, behind = (1, 0) if looks_at_each else (1 if streamer is not None else STEPS_AT_ONCE, 1)
        watch = Watch(texts, streamer)
        steps = 1
        self._after_step(steps)
        watch.note()
        while steps < most and not watch.look(behind):
            for _ in range(min(at_once, most - steps)):
                self._step()
                steps += 1
                self._after_step(steps)
            watch.note()
        watch.look(0)
        return steps

    # One step ------------------------------------------------------------------------------------------------------

    def _step(self) -> None:
        """Compute the next token of each text, from a CUDA graph once the engines are settled."""
        known = self.texts.graphs.get(self._key)
        if known is not None and self._may_replay:
            if known.checks == 0:
                known.graph.replay()
            else:
                self._compare(known)
            return
        before = self.backend.calls()
        self._plain_step()
        engines = self.backend.settled_engines(before)
        if known is not None and known.engines != engines:
            del self.texts.graphs[self._key]
            known = None
        if known is None and engines is not None and engines == self._engines:
            known = self._captured(engines)
        self._engines = engines
        self._may_replay = known is not None

    def _plain_step(self) -> None:
        request, texts = self.request, self.texts
        inputs = request.model.prepare_inputs_for_generation(
            texts.token, next_sequence_length=1, is_first_iteration=False, **self._settings
        )
        self._choose(_last_logits(request.model(**inputs, return_dict=True)), texts.ids)

    def _choose(self, logits: torch.Tensor, ids: torch.Tensor) -> None:
        """Choose the next token of each text from the model's numbers, as transformers does.

        ids: for the processors; behind the prompt, its last token again or chosen ones.
        """
        request, texts = self.request, self.texts
        scores = request.processors(ids, logits)  # type: ignore[operator]
        texts.keep(logits, scores)
        if request.config.do_sample:
            # As torch.multinomial draws one sample, which waits for the GPU to look at the probabilities.
            weights = torch.nn.functional.softmax(scores, dim=-1)
            texts.is_sound.logical_and_((weights >= 0).all())
            tokens = (weights / torch.empty_like(weights).exponential_(1)).argmax(-1)
        else:
            tokens = scores.argmax(-1)
        if self._padding is not None:
            tokens = tokens * texts.unfinished + self._padding * (1 - texts.unfinished)
        texts.wanted += texts.unfinished.max()
        texts.token.copy_(tokens[:, None])
        texts.ids.index_copy_(1, texts.count, texts.token)
        texts.count += 1
        if texts.positions is not None:
            texts.positions += 1
        if self._ends is not None:
            texts.unfinished *= ~(texts.token == self._ends).any(1)

    def _after_step(self, steps: int) -> None:
        """Keep the numbers of a step that the caller wants, and ask the criteria that the caller gave."""
        texts, length = self.texts, self.request.input_ids.shape[1] + steps
        assert texts.scores is not None
        assert texts.logits is not None
        if self._keeps_scores:
            self._scores.append(texts.scores.clone())
        if self._keeps_logits:
            self._logits.append(texts.logits.clone())
        scores = tuple(self._scores) if self._keeps_scores else None
        for criterion in self._others:
            texts.unfinished *= ~criterion(texts.ids[:, :length], scores).to(texts.unfinished.device)

    # CUDA graphs ---------------------------------------------------------------------------------------------------

    def _captured(self, engines: Any) -> StepGraph | None:
        """Capture a step, where that is possible."""
        texts, device = self.texts, self.texts.ids.device
        is_wanted = device.type == "cuda" and self.backend.options.cuda_graphs == "auto"
        if not is_wanted or self._key in texts.without_graph:
            return None
        try:
            with torch.cuda.device(device):
                graph = CudaGraphCall(self._captured_step, [])
        except (RuntimeError, BridgeError) as error:
            self._give_up(f"capture failed: {error}")
            return None
        graph.resources = engines, self.request.processors, self.request.config, self._ends
        found = texts.graphs[self._key] = StepGraph(graph, engines)
        if len(texts.graphs) > MOST_GRAPHS:
            texts.graphs.popitem(last=False)
        return found

    def _captured_step(self) -> tuple[()]:
        self._plain_step()
        return ()

    def _compare(self, known: StepGraph) -> None:
        """Have a step by the graph, unless a plain one gives other numbers."""
        texts, generator = self.texts, _generator(self.texts.ids)
        assert texts.logits is not None
        assert texts.scores is not None
        assert generator is not None
        before, drawn = [value.clone() for value in texts.changing()], generator.get_offset()
        self._plain_step()
        after, (logits, scores) = [v.clone() for v in texts.changing()], (texts.logits.clone(), texts.scores.clone())
        write_back(texts.changing(), before)
        generator.set_offset(drawn)
        known.graph.replay()
        problem = compare([texts.logits], [logits], REPLAY_BOUND).problem
        if problem is None:
            known.checks -= 1
            return
        write_back(texts.changing(), after)
        texts.keep(logits, scores)
        self._give_up(f"a replay differs: {problem}")

    def _give_up(self, why: str) -> None:
        self.texts.graphs.pop(self._key, None)
        self.texts.without_graph.add(self._key)
        self._may_replay = False
        self.backend.note(f"generate queues its steps call by call: {why}")

    def _result(self, ids: torch.Tensor) -> Any:
        request = self.request
        config = request.config
        if not config.return_dict_in_generate:
            return ids
        from transformers.generation.utils import GenerateDecoderOnlyOutput

        kept: dict[str, Any] = {"sequences": ids, request.cache_name: self.texts.cache}
        kept["scores"] = tuple(self._scores) if config.output_scores else None
        kept["logits"] = tuple(self._logits) if config.output_logits else None
        return GenerateDecoderOnlyOutput(**kept)


def _last_logits(outputs: Any) -> torch.Tensor:
    logits: torch.Tensor = outputs.logits[:, -1].to(torch.float32, copy=True)
    return logits


def _generator(value: torch.Tensor) -> torch.Generator | None:
    """Return the generator of random numbers of a tensor's GPU; None on a CPU."""
    return torch.cuda.default_generators[value.device.index] if value.is_cuda else None
