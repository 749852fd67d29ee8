# SPDX-License-Identifier: Apache-2.0
"""The local engine: Qwen-VL models (RoboBrain 2.0 and 2.5, nano) on transformers."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from transformers import DynamicCache, PreTrainedModel

from robobrain_ros.engines.base import (
    EngineError,
    EngineOutOfMemory,
    EngineUnavailable,
    FinishReason,
    Generation,
    GenerationRequest,
    LoadError,
)
from robobrain_ros.engines.checkpoint import Checkpoint, check_checkpoint, find_checkpoint
from robobrain_ros.engines.encoding import EncodedImage, Encoder
from robobrain_ros.engines.loading import (
    Placement,
    choose_placement,
    first_line,
    free_caches,
    is_out_of_memory,
    load_failure,
    load_model,
)
from robobrain_ros.engines.prefixes import Prefix, PrefixCache, cut, digest
from robobrain_ros.families import Think

_WARM_UP_SIDE = 112  # pixels


def load_transformers_engine(
    model: str,
    *,
    quantization: str,
    device: str,
    max_pixels: int,
    family: str,
    cache_bytes: int,
    progress: Callable[[str], None],
) -> "TransformersEngine":
    """Find, check, load and try a model; see `engines.create_engine`. Raises LoadError."""
    directory = find_checkpoint(model, progress)
    checkpoint = check_checkpoint(directory, model, family, progress)
    placement = choose_placement(checkpoint, quantization, device)
    try:
        encoder = Encoder(directory, max_pixels)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise load_failure(checkpoint, error) from error
    if encoder.factor != checkpoint.family.patch_factor:
        raise LoadError(
            f"The image processor in {directory} makes tokens of {encoder.factor} pixels and a "
            f"{checkpoint.model_type} model needs {checkpoint.family.patch_factor}: get its "
            "preprocessor_config.json again."
        )
    progress(f"loading {checkpoint.weight_bytes / 1e6:.1f} MB of weights as {placement}")
    weights = load_model(checkpoint, placement)
    engine = TransformersEngine(checkpoint, placement, encoder, weights, cache_bytes)
    progress("warming up")
    try:
        engine.warm_up()
    except EngineError as error:
        engine.close()
        raise LoadError(
            f"The model in {directory} was loaded but can't answer (without quantization it may): "
            f"{error}"
        ) from error
    return engine


class TransformersEngine:
    """A model and its encoder, answering greedily one request at a time. See `base.Engine`."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        placement: Placement,
        encoder: Encoder,
        model: PreTrainedModel,
        cache_bytes: int,
    ) -> None:
        self.family = checkpoint.family
        self.memory_bytes = _stored_bytes(model)
        self.description = (
            f"{checkpoint.directory.name} ({checkpoint.parameters / 1e6:.1f} M parameters, family "
            f"{self.family.name}), {placement}, {self.memory_bytes / 1e6:.1f} MB"
        )
        self._encoder = encoder
        self._device = placement.device
        self._model: PreTrainedModel | None = model
        self._prefixes = PrefixCache(cache_bytes)
        self._end_ids = _end_ids(model, encoder)
        self._max_tokens = int(model.config.text_config.max_position_embeddings)

    def warm_up(self) -> None:
        """Answer a grey image with two tokens: what can't run fails now. Raises EngineError."""
        image = np.full((_WARM_UP_SIDE, _WARM_UP_SIDE, 3), 128, np.uint8)
        opening = self.family.openings[Think.DEFAULT]
        self.generate(GenerationRequest(image, "the cup", opening, max_new_tokens=2))
        self.forget()

    def generate(self, request: GenerationRequest) -> Generation:
        """Answer one request; see `base.Engine.generate`."""
        try:
            with torch.inference_mode():
                return self._generate(request)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise EngineUnavailable(
                    f"The model failed ({first_line(error)}): ask again, and configure the node "
                    "again if that does not help."
                ) from error
        # Outside the handler: until it ends, the error's frames hold the tensors to be freed.
        self.forget()
        free_caches()
        raise EngineOutOfMemory(
            f"This request needs more memory than {self._device} has left: lower max_pixels, "
            "choose a stronger quantization, or free memory."
        )

    def close(self) -> None:
        """Free the model; see `base.Engine.close`."""
        self._model = None
        self.forget()
        free_caches()

    def forget(self) -> None:
        """Let go of what is held of images; see `base.Engine.forget`."""
        self._prefixes.clear()

    def _generate(self, request: GenerationRequest) -> Generation:
        model = self._model
        if model is None:
            raise EngineUnavailable("The model has been unloaded: configure the node again.")
        started = time.monotonic()
        key = b"" if request.image is None else digest(request.image)
        prompt = self._prompt(request, self._prefixes.get(key))
        self._check_length(prompt, request)
        positions, next_position = self._positions(model, prompt)
        encoded = time.monotonic()
        tokens: list[int] = []
        finish = FinishReason.STOPPED
        prefilled = encoded
        if not request.stop():
            cache = DynamicCache() if prompt.prefix is None else prompt.prefix.cache()
            tokens.append(self._prefill(model, prompt, positions, cache))
            self._keep(key, prompt, cache)
            prefilled = time.monotonic()
            finish = self._decode(model, tokens, next_position, cache, request)
        return Generation(
            text=self._encoder.decode(tokens),
            finish=finish,
            sent_size=prompt.sent_size,
            tokens_in=prompt.ids.shape[1],
            tokens_out=len(tokens),
            cached_tokens=prompt.cached,
            preprocess_s=encoded - started,
            prefill_s=prefilled - encoded,
            decode_s=time.monotonic() - prefilled,
        )

    def _prompt(self, request: GenerationRequest, known: Prefix | None) -> "_Prompt":
        """Encode a request; of an image that is known, nothing but its number of tokens is needed.

        Raises EngineError for an image that the model can't take.
        """
        if request.image is None:
            return _Prompt(self._encoder.token_ids(request, 0))
        if known is not None:
            ids = self._encoder.token_ids(request, known.image_tokens)
            if known.begins(ids):
                return _Prompt(ids, None, known)
        image = self._encoder.image(request.image)
        return _Prompt(self._encoder.token_ids(request, image.tokens), image)

    def _keep(self, key: bytes, prompt: "_Prompt", cache: DynamicCache) -> None:
        """Hold what the model has read up to the end of a new image."""
        image = prompt.image
        if image is None:
            return
        end = int(self._encoder.is_image(prompt.ids)[0].nonzero()[-1]) + 1
        layers = cut(cache, end)
        self._prefixes.put(
            key, Prefix(prompt.ids[0, :end], image.tokens, image.grid, image.sent_size, layers)
        )

    def _positions(self, model: PreTrainedModel, prompt: "_Prompt") -> tuple[torch.Tensor, int]:
        """Rotary positions (3, 1, T) of the prompt (time, row, column), and the answer's first.

        They are passed to the model each time, because left alone it keeps the offset of the last
        image and applies it to prompts without one.
        """
        length = prompt.ids.shape[1]
        if prompt.grid is None:
            return torch.arange(length).expand(3, 1, length), length
        positions, offset = model.model.get_rope_index(
            prompt.ids,
            mm_token_type_ids=self._encoder.is_image(prompt.ids),
            image_grid_thw=prompt.grid,
        )
        return positions, length + int(offset)

    def _check_length(self, prompt: "_Prompt", request: GenerationRequest) -> None:
        tokens_in = prompt.ids.shape[1]
        if tokens_in + request.max_new_tokens > self._max_tokens:
            raise EngineError(
                f"The request is {tokens_in} tokens long and asks for up to "
                f"{request.max_new_tokens} more, and the model can hold {self._max_tokens}: "
                "shorten the text, lower max_pixels or max_new_tokens."
            )

    def _prefill(
        self,
        model: PreTrainedModel,
        prompt: "_Prompt",
        positions: torch.Tensor,
        cache: DynamicCache,
    ) -> int:
        """Read what is new in the prompt and return the first token of the answer."""
        image = {}
        if prompt.image is not None:
            image = {
                "pixel_values": prompt.image.pixel_values.to(self._device),
                "image_grid_thw": prompt.image.grid.to(self._device),
            }
        output = model(
            input_ids=prompt.ids[:, prompt.cached :].to(self._device),
            position_ids=positions[:, :, prompt.cached :].to(self._device),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
            **image,
        )
        return int(output.logits[0, -1].argmax())

    def _decode(
        self,
        model: PreTrainedModel,
        tokens: list[int],
        next_position: int,
        cache: DynamicCache,
        request: GenerationRequest,
    ) -> FinishReason:
        """Append the likeliest tokens to `tokens`, which holds the first, until the answer ends."""
        while tokens[-1] not in self._end_ids:
            if len(tokens) >= request.max_new_tokens:
                return FinishReason.LENGTH
            if request.stop():
                return FinishReason.STOPPED
            position = next_position + len(tokens) - 1
            output = model(
                input_ids=torch.tensor([tokens[-1:]], device=self._device),
                position_ids=torch.full((3, 1, 1), position, device=self._device),
                past_key_values=cache,
                use_cache=True,
            )
            tokens.append(int(output.logits[0, -1].argmax()))
        return FinishReason.EOS


@dataclass(frozen=True, eq=False)
class _Prompt:
    """A request as tokens (1, T), with its image when the model must look at it, or with what is
    known of it.
    """

    ids: torch.Tensor
    image: EncodedImage | None = None
    prefix: Prefix | None = None

    @property
    def cached(self) -> int:
        """Tokens that need not be computed again."""
        return 0 if self.prefix is None else len(self.prefix.ids)

    @property
    def grid(self) -> torch.Tensor | None:
        """The image in patches, (1, 3)."""
        source = self.prefix or self.image
        return None if source is None else source.grid

    @property
    def sent_size(self) -> tuple[int, int]:
        """Width and height of the image as sent, (0, 0) without one."""
        source = self.prefix or self.image
        return (0, 0) if source is None else source.sent_size


def _stored_bytes(model: PreTrainedModel) -> int:
    """Bytes of parameters and buffers, with the block scales that nf4 keeps beside its weights."""
    tensors = [*model.parameters(), *model.buffers()]
    states = [getattr(parameter, "quant_state", None) for parameter in model.parameters()]
    tensors += [state.absmax for state in states if state is not None]
    return sum(tensor.nbytes for tensor in tensors)


def _end_ids(model: PreTrainedModel, encoder: Encoder) -> frozenset[int]:
    """Token ids that end an answer, by the generation config and the tokenizer.

    The rest of a checkpoint's generation config (sampling, a repetition penalty that shifts digits)
    is for chat and does not apply here.
    """
    configured = model.generation_config.eos_token_id
    ids = configured if isinstance(configured, list) else [configured]
    return frozenset(i for i in (*ids, encoder.tokenizer.eos_token_id) if i is not None)
