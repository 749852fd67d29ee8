# SPDX-License-Identifier: Apache-2.0
"""The local engine: Qwen-VL models (RoboBrain 2.0 and 2.5, nano) on transformers."""

import time
from collections.abc import Callable

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
from robobrain_ros.engines.encoding import Encoded, Encoder
from robobrain_ros.engines.loading import (
    Placement,
    choose_placement,
    first_line,
    free_caches,
    is_out_of_memory,
    load_failure,
    load_model,
)
from robobrain_ros.families import Think

_WARM_UP_SIDE = 112  # pixels


def load_transformers_engine(
    model: str,
    *,
    quantization: str,
    device: str,
    max_pixels: int,
    family: str,
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
    engine = TransformersEngine(checkpoint, placement, encoder, load_model(checkpoint, placement))
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
        self, checkpoint: Checkpoint, placement: Placement, encoder: Encoder, model: PreTrainedModel
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
        self._end_ids = _end_ids(model, encoder)
        self._max_tokens = int(model.config.text_config.max_position_embeddings)

    def warm_up(self) -> None:
        """Answer a grey image with two tokens: what can't run fails now. Raises EngineError."""
        image = np.full((_WARM_UP_SIDE, _WARM_UP_SIDE, 3), 128, np.uint8)
        opening = self.family.openings[Think.DEFAULT]
        self.generate(GenerationRequest(image, "the cup", opening, max_new_tokens=2))

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
        free_caches()
        raise EngineOutOfMemory(
            f"This request needs more memory than {self._device} has left: lower max_pixels, "
            "choose a stronger quantization, or free memory."
        )

    def close(self) -> None:
        """Free the model; see `base.Engine.close`."""
        self._model = None
        free_caches()

    def _generate(self, request: GenerationRequest) -> Generation:
        model = self._model
        if model is None:
            raise EngineUnavailable("The model has been unloaded: configure the node again.")
        started = time.monotonic()
        inputs = self._encoder.encode(request)
        self._check_length(inputs, request)
        positions, next_position = _positions(model, inputs)
        encoded = time.monotonic()
        tokens: list[int] = []
        finish = FinishReason.STOPPED
        prefilled = encoded
        if not request.stop():
            cache = DynamicCache()
            tokens.append(self._prefill(model, inputs, positions, cache))
            prefilled = time.monotonic()
            finish = self._decode(model, tokens, next_position, cache, request)
        return Generation(
            text=self._encoder.decode(tokens),
            finish=finish,
            sent_size=inputs.sent_size,
            tokens_in=inputs.input_ids.shape[1],
            tokens_out=len(tokens),
            cached_tokens=0,
            preprocess_s=encoded - started,
            prefill_s=prefilled - encoded,
            decode_s=time.monotonic() - prefilled,
        )

    def _check_length(self, inputs: Encoded, request: GenerationRequest) -> None:
        tokens_in = inputs.input_ids.shape[1]
        if tokens_in + request.max_new_tokens > self._max_tokens:
            raise EngineError(
                f"The request is {tokens_in} tokens long and asks for up to "
                f"{request.max_new_tokens} more, and the model can hold {self._max_tokens}: "
                "shorten the text, lower max_pixels or max_new_tokens."
            )

    def _prefill(
        self,
        model: PreTrainedModel,
        inputs: Encoded,
        positions: torch.Tensor,
        cache: DynamicCache,
    ) -> int:
        """Read the prompt and return the first token of the answer."""
        image = {}
        if inputs.pixel_values is not None and inputs.image_grid_thw is not None:
            image = {
                "pixel_values": inputs.pixel_values.to(self._device),
                "image_grid_thw": inputs.image_grid_thw.to(self._device),
            }
        output = model(
            input_ids=inputs.input_ids.to(self._device),
            position_ids=positions.to(self._device),
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


def _positions(model: PreTrainedModel, inputs: Encoded) -> tuple[torch.Tensor, int]:
    """Rotary positions (3, 1, T) of the prompt (time, row, column) and the answer's first position.

    They are passed to the model each time, because left alone it keeps the offset of the last image
    and applies it to prompts without one.
    """
    if inputs.image_grid_thw is None:
        length = inputs.input_ids.shape[1]
        return torch.arange(length).expand(3, 1, length), length
    positions, offset = model.model.get_rope_index(
        inputs.input_ids,
        mm_token_type_ids=inputs.is_image,
        image_grid_thw=inputs.image_grid_thw,
    )
    return positions, inputs.input_ids.shape[1] + int(offset)


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
