# SPDX-License-Identifier: Apache-2.0
"""The shipped model: tokenizer, training forward, labels, and one real answer of the weights."""

import json
import random
from dataclasses import asdict

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("mujoco")

from PIL import Image  # noqa: E402
from support import requests  # noqa: E402
from transformers import Qwen2_5_VLForConditionalGeneration  # noqa: E402

from robobrain_ros.core.answer_formats import answer_format  # noqa: E402
from robobrain_ros.core.tasks import TaskKind, Think  # noqa: E402
from robobrain_ros.engines.config import EngineConfig  # noqa: E402
from robobrain_ros.engines.local.engine import load_local_engine  # noqa: E402
from robobrain_ros.engines.local.stepwise import generate  # noqa: E402
from robobrain_ros.nano import (  # noqa: E402
    augmentation,
    batches,
    evaluate,
    questions,
    scoring,
    views,
    vocabulary,
)
from robobrain_ros.nano.architecture import (  # noqa: E402
    MODEL_DIRECTORY,
    SENT_SIZES,
    TOKEN_PIXELS,
    build_config,
    build_image_processor,
)
from robobrain_ros.nano.batches import Layout, TrainingBatches, Words, patches_of  # noqa: E402
from robobrain_ros.nano.dataset import render_scene  # noqa: E402
from robobrain_ros.nano.fast_forward import FastForward, normalise  # noqa: E402
from robobrain_ros.nano.questions import Question, Topic  # noqa: E402
from robobrain_ros.nano.talk import ABSENT  # noqa: E402
from robobrain_ros.nano.targets import (  # noqa: E402
    CLASSES,
    IGNORED,
    TABLE,
    dominant,
    meant_tokens,
    token_targets,
)
from robobrain_ros.nano.tokenizer import FAMILY, build_tokenizer, prompt_phrases  # noqa: E402
from robobrain_ros.nano.train import attention_bias, learning_rate  # noqa: E402
from robobrain_ros.sim.tabletop import TABLE_CODE, Tabletop  # noqa: E402

TURN = "the red mug<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(vocabulary.vocabulary_texts())


@pytest.fixture(scope="module")
def scene():
    tabletop = Tabletop(400, 300)
    yield render_scene(tabletop, 2_000_103)
    tabletop.close()


class TestTokenizer:
    def test_each_digit_is_one_token(self, tokenizer):
        tokens = tokenizer.tokenize("[(123, 45), (6, 7)]")
        assert [token for token in tokens if token.isdigit()] == list("1234567")

    def test_prompts_survive_encoding(self, tokenizer):
        for kind in TaskKind:
            prompt = FAMILY.build_prompt(kind, text="pick up the red mug")
            assert tokenizer.decode(tokenizer(prompt)["input_ids"]) == prompt

    def test_fixed_sentences_are_single_tokens(self, tokenizer):
        assert all(len(tokenizer.tokenize(phrase)) == 1 for phrase in prompt_phrases())
        prompt = FAMILY.build_prompt(TaskKind.POINT, text="Point to the red mug")
        assert len(tokenizer.tokenize(prompt)) == 6

    def test_unknown_text_is_spelt_in_bytes(self, tokenizer):
        text = "zwölf Äpfel → 日本"
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text

    def test_chat_format_is_qwens(self, tokenizer):
        content = [{"type": "image"}, {"type": "text", "text": "the red mug"}]
        chat = tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        assert chat == (
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
            "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>the red mug<|im_end|>\n"
            "<|im_start|>assistant\n"
        )

    def test_training_turns_are_the_chat_format(self, tokenizer):
        words = Words(tokenizer)
        layout = Layout(words, SENT_SIZES[0])
        image = "<|image_pad|>" * layout.image_tokens
        question = Question(Topic.POINT, TaskKind.POINT, "the red mug", "[(1, 2)]", "It is there.")
        content = [
            {"type": "image"},
            {"type": "text", "text": FAMILY.build_prompt(TaskKind.POINT, text="the red mug")},
        ]
        chat = tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        ).replace("<|image_pad|>", image)
        for think, answer in (
            (False, "<think></think><answer>[(1, 2)]</answer>"),
            (True, "<think>It is there.</think><answer>[(1, 2)]</answer>"),
        ):
            prompt, said = words.example(question, think)
            assert chat.endswith("assistant\n")
            whole = tokenizer(f"{chat}{answer}<|im_end|>")["input_ids"]
            assert [*layout.prefix, *prompt, *said] == whole


class TestFastForward:
    @pytest.mark.parametrize("size", SENT_SIZES)
    def test_equals_the_library(self, tokenizer, size):
        torch.manual_seed(0)
        config = build_config(tokenizer, vision_layers=2, text_layers=2)
        model = Qwen2_5_VLForConditionalGeneration(config).eval()
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.data.add_(torch.randn_like(parameter), alpha=0.1)
        words = Words(tokenizer)
        layout = Layout(words, size)
        shape = (size[1], size[0], 3)
        rgb = np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8)
        ids = torch.tensor([[*layout.prefix, *words.prompt(TURN)]])
        length, start = ids.shape[1], layout.image_start
        image = build_image_processor()(images=[Image.fromarray(rgb)], return_tensors="pt")
        forward = FastForward(model, layout.rows, layout.columns)
        after = layout.next_position + np.arange(length - len(layout.prefix))
        positions = np.concatenate([layout.positions, np.tile(after, (3, 1))], 1)
        segment = torch.zeros(1, length, dtype=torch.long)
        segment[:, len(layout.prefix) :] = 1
        with torch.no_grad():
            expected = model(
                input_ids=ids,
                mm_token_type_ids=(ids == config.image_token_id).int(),
                **image,
            ).logits
            patches = torch.from_numpy(patches_of(rgb))[None]
            tokens = forward.image_tokens(normalise(patches, torch.float32))
            x = model.model.language_model.embed_tokens(ids)
            x = torch.cat([x[:, :start], tokens, x[:, start + layout.image_tokens :]], 1)
            cos, sin = forward.rotary(torch.from_numpy(positions)[:, None])
            bias = attention_bias(segment, torch.float32)
            x = forward.language_layers(x, cos, sin, bias, 0, None)
            actual = model.lm_head(forward.final_norm(x))
        assert torch.allclose(actual, expected, atol=1e-4)

    def test_questions_do_not_see_each_other(self):
        bias = attention_bias(torch.tensor([[0, 0, 1, 1, 2, -1]]), torch.float32)[0, 0]
        seen = (bias == 0).tolist()
        assert seen[3] == [True, True, True, True, False, False]
        assert seen[4] == [True, True, False, False, True, False]


def save_scene(scene, directory):
    """Write a shard of one scene."""
    np.save(directory / "train_0_rgb.npy", scene.rgb[None])
    np.save(directory / "train_0_codes.npy", scene.codes[None])
    (directory / "train_0.json").write_text(json.dumps([asdict(scene.info)]))


class TestBatches:
    def test_token_targets_mark_what_a_token_shows(self, scene):
        view = views.resized_view(scene, SENT_SIZES[0])
        targets = token_targets(view, *dominant(view))
        columns = view.width // TOKEN_PIXELS
        assert len(targets["kind"]) == columns * view.height // TOKEN_PIXELS
        for one in view.seen:
            token = one.point[1] // TOKEN_PIXELS * columns + one.point[0] // TOKEN_PIXELS
            assert CLASSES[targets["kind"][token]] == one.info.kind
            assert targets["numbers"][token, :6].tolist() == [*one.point, *one.box]
            assert targets["middle"][token] == 1
            assert targets["measures"][token, 2] == pytest.approx(10 * one.info.height)
        empty = targets["kind"] == TABLE
        assert empty.any()
        assert (targets["numbers"][empty] == IGNORED).all()

    def test_what_a_question_is_about_is_marked(self, scene):
        view = views.resized_view(scene, SENT_SIZES[0])
        best, _ = dominant(view)
        one = view.seen[0]
        about = Question(Topic.POINT, TaskKind.POINT, "", "", "", label=one.label)
        np.testing.assert_array_equal(meant_tokens(view, best, about)[:-1], best == one.label)
        place = Question(Topic.FREE_SPACE, TaskKind.POINT, "", "", "", spot=(30, 60))
        assert meant_tokens(view, best, place).nonzero()[0].tolist() == [1 + 2 * 13]
        absent = Question(Topic.REFUSAL, TaskKind.POINT, "", "[]", "", label=ABSENT)
        assert meant_tokens(view, best, absent).nonzero()[0].tolist() == [len(best)]
        spoken = Question(Topic.COUNT, TaskKind.ASK, "", "3", "")
        assert not meant_tokens(view, best, spoken).any()

    def test_batches_teach_answers_only(self, tokenizer, scene, tmp_path):
        save_scene(scene, tmp_path)
        stream = TrainingBatches(tmp_path, tokenizer, 2, 200, seed=1, rank=0)
        other = TrainingBatches(tmp_path, tokenizer, 2, 200, seed=1, rank=1)
        for batch, twin, _ in zip(stream, other, range(4)):
            assert batch["size"] == twin["size"]
            assert not torch.equal(batch["patches"], twin["patches"])
            answered = batch["labels"] != IGNORED
            assert answered.any() and (batch["weights"][answered] > 0).all()
            assert (batch["weights"][~answered] == 0).all()
            # A label is the next token of the same question.
            row, at = answered.nonzero().T
            assert (batch["labels"][row, at] == batch["ids"][row, at + 1]).all()
            assert (batch["segment"][row, at] == batch["segment"][row, at + 1]).all()
            assert (batch["segment"][row, at] > 0).all()

    def test_paths_refused_though_their_goal_was_there(self, tokenizer):
        """Of a trajectory's tokens each weighs little: beside them, "[]" weighed fifteen times as
        much, and was learnt where it was wrong."""
        words = Words(tokenizer)
        path = questions.format_points([(10 * n, 120 + 20 * n) for n in range(5)])
        weights = {}
        for answer in (path, questions.NOTHING):
            question = Question(Topic.TRAJECTORY, TaskKind.TRAJECTORY, "reach it", answer, "")
            _, tokens = words.example(question, think=False)
            weights[answer] = batches.token_weight(question, len(tokens))
        assert weights[questions.NOTHING] == pytest.approx(weights[path], rel=0.15)

    def test_whether_there_is_a_path_is_taught_of_strayed_ones_too(
        self, tokenizer, scene, tmp_path, monkeypatch
    ):
        monkeypatch.setattr(batches, "_STRAYED_SHARE", 1.0)
        monkeypatch.setattr(batches, "_THINK_SHARE", 0.0)
        save_scene(scene, tmp_path)
        batch = next(iter(TrainingBatches(tmp_path, tokenizer, 6, 400, seed=1, rank=0)))
        opened = batch["ids"] == tokenizer.convert_tokens_to_ids("[(")
        assert opened.any()
        assert (batch["labels"][:, :-1][opened[:, 1:]] != IGNORED).all()

    def test_names_and_points_are_marked_in_the_text(self, tokenizer, scene, tmp_path):
        """Heads that read the text are taught at a name's last token and before a point's x."""
        save_scene(scene, tmp_path)
        batch = next(iter(TrainingBatches(tmp_path, tokenizer, 6, 300, seed=1, rank=0)))
        names = {one.name.split()[-1] for one in scene.info.objects}
        for row, ids in enumerate(batch["ids"]):
            named = batch["named"][row]
            assert batch["shown"][row][named > 0].any(-1).any()
            assert not batch["shown"][row][named == 0].any()
            for place in named[named > 0]:
                assert tokenizer.decode(ids[place]).strip().lower() in names
            for place, point in zip(batch["before_point"][row], batch["coming"][row].int()):
                if place > 0:
                    said = tokenizer.decode(ids[place : place + 12])
                    assert said.lstrip(" [").startswith(f"({point[0]}, {point[1]})")
                else:
                    assert (point == IGNORED).all()


class TestAugmentation:
    def test_another_table_leaves_everything_else(self, scene):
        for seed in range(5):
            other = augmentation.other_table(scene, random.Random(seed))
            changed = (other.rgb != scene.rgb).any(-1)
            assert not changed[scene.codes != TABLE_CODE].any()
            assert changed[scene.codes == TABLE_CODE].mean() > 0.5
            assert other.info is scene.info


def test_learning_rate_warms_up_and_anneals():
    assert learning_rate(0, 0.0, 1.0, 0.5) == pytest.approx(0.01)
    assert learning_rate(500, 0.5, 1.0, 0.5) == pytest.approx(1.0)
    assert learning_rate(500, 1.0, 1.0, 0.5) == pytest.approx(0.01)


needs_weights = pytest.mark.skipif(
    not (MODEL_DIRECTORY / "model.safetensors").exists(), reason="no trained weights here"
)


@needs_weights
def test_shipped_weights_answer_about_new_scenes():
    asked = evaluate.questions_about(list(evaluate.evaluation_views(6, first_seed=2_000_100)))
    engine = load_local_engine(EngineConfig("nano", device="cpu"))
    scores = scoring.scores_of(engine, asked)
    engine.close()
    assert np.mean(scores[Topic.POINT][scoring.IN_MASK]) >= 0.93
    assert np.mean(scores[Topic.FREE_SPACE][scoring.IN_MASK]) >= 0.85
    assert np.mean(scores[Topic.RELATION][scoring.IN_MASK]) >= 0.85
    assert np.mean(scores[Topic.BOX][scoring.IOU]) >= 0.8
    assert np.mean(scores[Topic.AFFORDANCE][scoring.IOU]) >= 0.6
    assert np.mean(scores[Topic.TRAJECTORY][scoring.DFD]) <= 0.12
    assert np.mean(scores[Topic.TRAJECTORY][scoring.REACHES]) >= 0.8
    assert np.mean(scores[Topic.REFUSAL][scoring.REFUSED]) >= 0.85


@needs_weights
def test_thinking_is_short_and_leads_to_an_answer():
    view = next(evaluate.evaluation_views(1, first_seed=2_000_100))
    engine = load_local_engine(EngineConfig("nano", device="cpu"))
    for question in scoring.drawn_questions(view, {Topic.POINT: 3, Topic.COUNT: 2}, 0):
        _, generation = scoring.ask(engine, view, question, Think.ON)
        thought, found, answer = generation.text.partition("</think><answer>")
        assert found and len(thought) > 10
        assert answer
    engine.close()


@needs_weights
def test_answers_that_fit_their_format_are_not_changed_by_it():
    """Constrained, the model says what it says by itself, in fewer steps."""
    view = next(evaluate.evaluation_views(1, first_seed=2_000_100))
    held, free = (
        load_local_engine(EngineConfig("nano", device="cpu", grammar=grammar))
        for grammar in (True, False)
    )
    opening = FAMILY.openings[Think.DEFAULT]
    kinds = set()
    for _, question in evaluate.questions_about([view]):
        form = answer_format(question.task, FAMILY)
        prompt = FAMILY.build_prompt(question.task, text=question.text)
        request = requests.ask(
            prompt, view.rgb, max_new_tokens=160, opening=opening, answer_format=form
        )
        under_form, alone = generate(held, request), generate(free, request)
        assert under_form.text == alone.text.removesuffix("</answer>" if form else "")
        assert under_form.tokens_out <= alone.tokens_out
        kinds.add(question.task)
    assert kinds == set(TaskKind)
    held.close()
    free.close()


@needs_weights
def test_a_path_takes_fewer_steps_by_speculative_decoding(monkeypatch):
    view = next(evaluate.evaluation_views(1, first_seed=2_000_100))
    (question,) = scoring.drawn_questions(view, {Topic.TRAJECTORY: 1}, 0)
    engine = load_local_engine(EngineConfig("nano", device="cpu"))
    texts, steps = [], []
    for drafter in (engine.speculation.drafter, None):
        monkeypatch.setattr(engine.speculation, "drafter", drafter)
        before = engine.steps
        texts.append(scoring.ask(engine, view, question)[1].text)
        steps.append(engine.steps - before)
    engine.close()
    assert texts[0] == texts[1]
    assert steps[0] < 0.8 * steps[1]
