# SPDX-License-Identifier: Apache-2.0
"""The local engine: Qwen-VL models (RoboBrain 2.0 and 2.5, nano) with batched decoding."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from transformers import PreTrainedModel

from robobrain_ros.core.answer_formats import answer_format
from robobrain_ros.core.requests import (
    FinishReason,
    GenerationOptions,
    GenerationRequest,
    Stage,
    user_message,
)
from robobrain_ros.core.tasks import TaskKind, Think
from robobrain_ros.engines.base import (
    Capabilities,
    EngineError,
    EngineOutOfMemory,
    EngineUnavailable,
    Memory,
    Progress,
    silent,
)
from robobrain_ros.engines.config import EngineConfig
from robobrain_ros.engines.local.checkpoint import (
    Checkpoint,
    check_checkpoint,
    check_local_support,
    find_checkpoint,
)
from robobrain_ros.engines.local.constrained_decoding import Grammar
from robobrain_ros.engines.local.decode import StepInput
from robobrain_ros.engines.local.loading import (
    Placement,
    choose_placement,
    end_token_ids,
    free_caches,
    load_model,
    load_processor,
    try_out,
    typed_failure,
)
from robobrain_ros.engines.local.memory_estimate import USABLE, free_bytes, stored_bytes
from robobrain_ros.engines.local.model_runner import ModelRunner
from robobrain_ros.engines.local.prefill import PreparedPrompt
from robobrain_ros.engines.local.prefix_cache import PrefixCache
from robobrain_ros.engines.local.processor import Processor
from robobrain_ros.engines.local.sequence import Sequence, constrain
from robobrain_ros.engines.local.speculative import Speculation, TrajectoryDrafter
from robobrain_ros.engines.local.stepwise import Outcome, check_length

FEW_NEW_TOKENS = 24
"""Prompts of up to this many tokens after their cached prefix are computed in the next decode step,
padded to their length: that costs less than a forward pass of their own."""

_WARM_UP_SIDE = 112  # pixels
_WARM_UP_PAIRS = (1, 2)  # pairs of sequences at a time
# Tokens of all sequences up to which a step takes about as long as with one. bitsandbytes' kernel
# for packed weights takes up to four on every GPU; beyond, on a Jetson, it unpacks them first.
_STEP_TOKENS, _STEP_TOKENS_PACKED = 16, 4


def load_local_engine(config: EngineConfig, progress: Progress = silent) -> LocalEngine:
    """Find, check, load and try a model, on the thread that will use it.

    progress: called with a line per step, and with what doesn't work as it should. Raises
    LoadError, and UnsupportedArchitecture for a model that needs the reference engine.
    """
    directory = find_checkpoint(config.model, progress)
    checkpoint = check_checkpoint(directory, config.model, config.family, progress)
    check_local_support(checkpoint)
    placement = choose_placement(checkpoint, config, progress)
    processor = load_processor(checkpoint, config.max_pixels)
    progress(f"loading {checkpoint.weight_bytes / 1e6:.1f} MB of weights as {placement}")
    model = load_model(checkpoint, placement)
    engine = LocalEngine(checkpoint, placement, processor, model, config, progress)
    progress("warming up")
    try_out(engine, checkpoint, engine.warm_up)
    return engine


class LocalEngine:
    """A model and its processor, with continuous batching. See `stepwise.StepwiseEngine`.

    runner: runs the model, None after `close`. speculation: may be changed between requests.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        placement: Placement,
        processor: Processor,
        model: PreTrainedModel,
        config: EngineConfig,
        progress: Progress,
    ) -> None:
        self.capabilities = Capabilities(
            family=checkpoint.family,
            images_per_request=1,
            videos=False,
            streaming=True,
            constrained_decoding=config.grammar,
            sampling=True,
        )
        self.memory_bytes = stored_bytes(model)
        self.description = checkpoint.described(placement, self.memory_bytes)
        self.steps = 0
        self.processor = processor
        self.prefixes = PrefixCache(config.cache_bytes)
        self._device = placement.device
        self._end_ids = end_token_ids(model, processor.tokenizer)
        self._max_tokens = int(model.config.text_config.max_position_embeddings)
        self._grammar: Grammar | None = None
        drafter = None
        if config.grammar:
            vocabulary = int(model.config.text_config.vocab_size)
            self._grammar = Grammar(processor.tokenizer, vocabulary, self._end_ids)
            drafter = TrajectoryDrafter.of(processor.tokenizer)
        packed = placement.quantization == "nf4" or checkpoint.quantized_as is not None
        on_cuda = placement.device.type == "cuda"
        step_tokens = _STEP_TOKENS_PACKED if packed and on_cuda else _STEP_TOKENS
        self.speculation = Speculation(drafter, step_tokens)
        self.runner: ModelRunner | None = ModelRunner.of(model, processor, self.prefixes, progress)
        self._running: list[Sequence] = []  # each at the index of its row
        self._finished: list[Sequence] = []

    def warm_up(self) -> None:
        """Answer questions about a gray image, alone and in a batch. Raises EngineError.

        A model that can't run fails now, and what is slow the first time is not slow later.
        """
        image = np.full((_WARM_UP_SIDE, _WARM_UP_SIDE, 3), 128, np.uint8)
        messages = (user_message("the cup", image),)
        family = self.capabilities.family
        opening = family.openings[Think.DEFAULT]
        constrained = GenerationRequest(
            messages=messages,
            opening=opening,
            answer_format=answer_format(TaskKind.POINT, family, 1),
            options=GenerationOptions(max_new_tokens=8),
        )
        free = GenerationRequest(
            messages=messages, opening=opening, options=GenerationOptions(max_new_tokens=2)
        )
        for pairs in _WARM_UP_PAIRS:
            for request in (constrained, free) * pairs:
                self.start(request)
            while self._running or self._finished:
                for _, outcome in self.step():
                    if isinstance(outcome, EngineError):
                        raise outcome
        self.clear_cache()
        self.steps = 0

    def start(self, request: GenerationRequest) -> Sequence:
        """Prefill a request; see `StepwiseEngine.start`."""
        error: EngineError
        try:
            with torch.inference_mode():
                return self._start(request)
        except (RuntimeError, MemoryError) as failure:
            error = typed_failure(failure, self._device)
        # Outside the handler: within it, the failure's frames hold the tensors to be freed.
        if isinstance(error, EngineOutOfMemory):
            self.prefixes.clear()
            free_caches()
        raise error

    def step(self) -> list[Outcome]:
        """Advance all sequences; see `StepwiseEngine.step`."""
        outcomes: list[Outcome] = []
        error: EngineError | None = None
        try:
            with torch.inference_mode():
                self._advance()
        # Whatever it is: it ends the running requests, and the next ones are served.
        except Exception as failure:  # noqa: BLE001
            error = typed_failure(failure, self._device)
        if error is not None:
            outcomes += [(sequence, error) for sequence in self._running]
            self._running.clear()
            self.clear_cache()
            free_caches()
        outcomes += [(one, one.failure or one.generation()) for one in self._finished]
        self._finished.clear()
        return outcomes

    def memory(self) -> Memory:
        """Measure the memory usage; see `StepwiseEngine.memory`."""
        answers = 0 if self.runner is None else self.runner.cache.nbytes
        return Memory(self.memory_bytes, self.prefixes.nbytes, answers, free_bytes(self._device))

    def clear_cache(self) -> None:
        """Drop the prefix cache, and the KV cache while nothing runs."""
        self.prefixes.clear()
        if self.runner is not None and not self._running:
            self.runner.cache.free()

    def close(self) -> None:
        """Free the model; see `StepwiseEngine.close`."""
        self._running.clear()
        self._finished.clear()
        self.runner = None
        self.clear_cache()
        free_caches()

    def _start(self, request: GenerationRequest) -> Sequence:
        runner = self.runner
        if runner is None:
            raise EngineUnavailable("The model has been unloaded: configure the node again.")
        self.capabilities.check(request)
        started = time.monotonic()
        if request.report is not None:
            request.report(Stage.PREPROCESSING, "", 0)
        prompt = runner.prefiller.prepare(request)
        check_length(prompt.length, request, self._max_tokens)
        self._check_memory(runner, prompt, request)
        constraint = constrain(self._grammar, request, prompt.sent_sizes)
        speculation = self.speculation if self._can_draft(request) else None
        sequence = Sequence(
            request, prompt, constraint, self.processor, self._end_ids, started, speculation
        )
        if request.stop():
            sequence.finish = FinishReason.STOPPED
            self._finished.append(sequence)
        else:
            self._prefill(runner, sequence)
        return sequence

    def _prefill(self, runner: ModelRunner, sequence: Sequence) -> None:
        """Give a new sequence a row, prefill it and choose its first token.

        Few tokens after a cached prefix are computed in the next decode step, with the others'.
        """
        sequence.report(Stage.PREFILL)
        prompt, forced = sequence.prompt, sequence.start_prefill()
        prefix = prompt.prefix
        length = prompt.length + len(forced)
        row = runner.cache.add(None if prefix is None else prefix.keys_values, length)
        if prefix is not None and length - prompt.cached <= FEW_NEW_TOKENS:
            sequence.defer_prefill(prefix, forced)
            self._running.append(sequence)
            return
        try:
            logits, offset = runner.prefiller.prefill(prompt, forced, runner.cache, row)
        except BaseException:
            runner.cache.remove(row)
            raise
        sequence.finish_prefill(offset)
        self._running.append(sequence)
        try:
            self._choose([sequence], logits[None])
        except BaseException:
            self._running.pop()
            runner.cache.remove(row)
            raise
        self._retire(runner)

    def _advance(self) -> None:
        """Feed every sequence's new tokens to the model and choose the next ones."""
        runner = self.runner
        for sequence in self._running:
            if sequence.request.stop():
                sequence.finish = FinishReason.STOPPED
        if runner is None or not self._retire(runner):
            return
        running = self._running
        self._draft()
        tokens = [[*sequence.pending, *sequence.drafted] for sequence in running]
        computed = [sequence.computed for sequence in running]
        runner.cache.reserve(len(running), max(computed) + max(map(len, tokens)))
        offsets = [sequence.offset for sequence in running]
        wanted = [1 + len(sequence.drafted) for sequence in running]
        self._choose(running, runner.decode(StepInput.of(tokens, computed, offsets, wanted)))
        self.steps += 1
        self._retire(runner)

    def _can_draft(self, request: GenerationRequest) -> bool:
        drafter, answer_format = self.speculation.drafter, request.answer_format
        return drafter is not None and answer_format is not None and drafter.supports(answer_format)

    def _draft(self) -> None:
        """Draft tokens, as long as the step takes hardly longer for them."""
        widest = max(len(sequence.pending) for sequence in self._running)
        width = max(self.speculation.step_tokens // len(self._running), widest)
        for sequence in self._running:
            sequence.draft(width - len(sequence.pending))

    def _choose(self, sequences: list[Sequence], logits: torch.Tensor) -> None:
        """Advance each sequence by the tokens that it chooses; logits: (B, W, V).

        What one sequence makes fail, such as its `report`, is no failure of the others.
        """
        for sequence, of_one in zip(sequences, logits, strict=True):
            self._isolated(sequence, partial(sequence.restrict, of_one[0]))
        likeliest = logits[:, 0].argmax(-1).tolist()  # one synchronization with the device
        for sequence, best, of_one in zip(sequences, likeliest, logits, strict=True):
            if sequence.failure is None:
                self._isolated(sequence, partial(sequence.choose_and_advance, of_one, best))

    def _isolated(self, sequence: Sequence, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as failure:  # noqa: BLE001
            sequence.failure = typed_failure(failure, self._device)

    def _retire(self, runner: ModelRunner) -> int:
        """Release the rows of finished sequences; returns the number that go on."""
        for row in reversed(range(len(self._running))):
            if self._running[row].has_ended:
                runner.cache.remove(row)
                self._finished.append(self._running[row])
                self._running[row] = self._running[-1]
                self._running.pop()
        return len(self._running)

    def _check_memory(
        self, runner: ModelRunner, prompt: PreparedPrompt, request: GenerationRequest
    ) -> None:
        """Refuse a request that won't fit before it runs. Raises EngineOutOfMemory."""
        more = request.options.max_new_tokens
        most = max([prompt.length + more, *(sequence.max_slots for sequence in self._running)])
        rows, slots = runner.cache.shape_for(len(self._running) + 1, most)
        # Old and new cache are there together while it grows.
        grown = rows * slots * runner.language.slot_bytes
        need = grown if grown > runner.cache.nbytes else 0
        need += runner.prefiller.prefill_bytes(prompt)
        if need > USABLE * (free := free_bytes(self._device)):
            raise EngineOutOfMemory(
                f"This request ({prompt.length} tokens, up to {more} more) needs "
                f"about {need / 1e6:.0f} MB and {free / 1e6:.0f} MB are free: lower max_pixels, "
                "max_new_tokens or max_batch, choose a stronger quantization, or free memory."
            )
