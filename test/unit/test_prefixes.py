# SPDX-License-Identifier: Apache-2.0
"""The prefix cache spares the prefill of known images and changes no answer."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from support import requests  # noqa: E402

from robobrain_ros.core.requests import (  # noqa: E402
    GenerationOptions,
    GenerationRequest,
    Message,
    Role,
    Text,
    user_message,
)
from robobrain_ros.engines.config import EngineConfig  # noqa: E402
from robobrain_ros.engines.local.engine import load_local_engine  # noqa: E402
from robobrain_ros.engines.local.prefix_cache import Prefix, PrefixCache, digest  # noqa: E402
from robobrain_ros.engines.local.stepwise import generate  # noqa: E402

pytestmark = pytest.mark.slow  # runs models

RNG = np.random.default_rng(1)
FRAMES = RNG.integers(0, 255, (3, 120, 160, 3), dtype=np.uint8)
PROMPTS = ("point to the {red} cup", "point to the red can", "box of the mug", "why?", "reach it")


@pytest.fixture(scope="module")
def engines(checkpoint):
    """The engine, and one without a prefix cache."""
    pair = (
        load_local_engine(EngineConfig(str(checkpoint), device="cpu")),
        load_local_engine(EngineConfig(str(checkpoint), device="cpu", cache_bytes=0)),
    )
    yield pair
    for engine in pair:
        engine.close()


def ask(image, prompt, **options):
    return requests.ask(prompt, image, max_new_tokens=16, **options)


def test_answers_are_those_without_a_prefix_cache(engines):
    engine, uncached = engines
    engine.clear_cache()
    for prompt in PROMPTS:
        for index in (0, 1, 0):
            answer = generate(engine, ask(FRAMES[index], prompt))
            fresh = generate(uncached, ask(FRAMES[index], prompt))
            assert fresh.cached_tokens == 0
            assert answer.text == fresh.text and answer.finish == fresh.finish
            assert (answer.tokens_in, answer.sent_sizes) == (fresh.tokens_in, fresh.sent_sizes)


def test_the_first_question_about_an_image_encodes_it_and_the_next_does_not(engines, monkeypatch):
    engine, _ = engines
    engine.clear_cache()
    encoded = []
    vision = engine.runner.prefiller.vision
    encode = lambda *image: encoded.append(True) or vision(*image)  # noqa: E731
    monkeypatch.setattr(engine.runner.prefiller, "vision", encode)
    first, second = (generate(engine, ask(FRAMES[0], prompt)) for prompt in PROMPTS[:2])
    other = generate(engine, ask(FRAMES[1], PROMPTS[0]))
    assert (first.cached_tokens, other.cached_tokens) == (0, 0)
    assert len(encoded) == 2
    image_tokens = engine.processor.image(FRAMES[0]).tokens
    assert image_tokens < second.cached_tokens < second.tokens_in


def test_openings_share_the_image_too(engines):
    engine, uncached = engines
    engine.clear_cache()
    for opening in ("", "<think></think><answer>", "<think>"):
        request = ask(FRAMES[2], PROMPTS[0], opening=opening)
        answer = generate(engine, request)
        assert answer.text == generate(uncached, request).text
        assert bool(answer.cached_tokens) == bool(opening)


def test_a_conversation_before_the_question_is_part_of_the_prefix(engines):
    """The same image after other words is another prefix; words after the image are none of it."""
    engine, uncached = engines
    engine.clear_cache()
    question = user_message(PROMPTS[0], FRAMES[0])
    follow_up = (Message(Role.ASSISTANT, (Text("[(1, 2)]"),)), user_message("and the mug?"))
    conversations = (
        ((question,), False),
        ((question, *follow_up), True),
        ((Message(Role.SYSTEM, (Text("Be brief."),)), question), False),
        ((Message(Role.SYSTEM, (Text("Be brief."),)), question, *follow_up), True),
    )
    for messages, cached in conversations:
        options = GenerationOptions(max_new_tokens=16)
        request = GenerationRequest(messages=messages, options=options)
        answer, fresh = generate(engine, request), generate(uncached, request)
        assert answer.text == fresh.text and answer.sent_sizes == fresh.sent_sizes
        assert bool(answer.cached_tokens) == cached


def test_a_prompt_without_an_image_uses_nothing(engines):
    engine, uncached = engines
    generate(engine, ask(FRAMES[0], PROMPTS[0]))
    answer = generate(engine, ask(None, PROMPTS[0]))
    assert answer.cached_tokens == 0
    assert answer.text == generate(uncached, ask(None, PROMPTS[0])).text


def test_clearing_the_cache_frees_everything(engines):
    engine, _ = engines
    generate(engine, ask(FRAMES[0], PROMPTS[0]))
    assert engine.memory().images == engine.prefixes.nbytes > 0
    engine.clear_cache()
    assert engine.memory().images == engine.prefixes.nbytes == 0
    assert generate(engine, ask(FRAMES[0], PROMPTS[0])).cached_tokens == 0


def prefix(tokens: int) -> Prefix:
    keys_values = torch.zeros(1, 2, 2, tokens, 4)
    return Prefix(torch.arange(tokens), (tokens,), 0, ((28, 28),), keys_values)


def test_memory_is_bounded_and_what_was_used_last_is_kept():
    one = prefix(10).nbytes
    cache = PrefixCache(2 * one)
    cache.put((b"a",), prefix(10))
    cache.put((b"b",), prefix(10))
    assert cache.get((b"a",)) is not None
    cache.put((b"c",), prefix(10))
    assert cache.get((b"b",)) is None
    assert cache.get((b"a",)) is not None and cache.get((b"c",)) is not None
    assert cache.nbytes == 2 * one
    cache.put((b"d",), prefix(21))
    assert cache.nbytes == 0  # larger than all that may be held
    PrefixCache(0).put((b"a",), prefix(1))


def test_a_digest_is_of_content_and_size():
    image = FRAMES[0]
    assert digest(image) == digest(image.copy()) == digest(image[:, ::-1][:, ::-1])
    other = image.copy()
    other[-1, -1, 2] ^= 1
    assert len({digest(image), digest(other), digest(image.reshape(160, 120, 3))}) == 3


def test_a_prefix_begins_only_prompts_that_go_on():
    kept = prefix(3)
    assert kept.begins(torch.tensor([[0, 1, 2, 9]]))
    assert not kept.begins(torch.tensor([[0, 1, 2]]))
    assert not kept.begins(torch.tensor([[0, 1, 7, 9]]))
