# SPDX-License-Identifier: Apache-2.0
"""The shipped model: tokenizer, training forward, labels, and one real answer of the weights."""

import random

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("mujoco")

from PIL import Image  # noqa: E402
from transformers import Qwen2_5_VLForConditionalGeneration  # noqa: E402

from robobrain_ros.engines import create_engine  # noqa: E402
from robobrain_ros.engines.base import GenerationRequest, generate  # noqa: E402
from robobrain_ros.families import FAMILIES, TaskKind  # noqa: E402
from robobrain_ros.forms import answer_form  # noqa: E402
from robobrain_ros.nano import evaluate, questions, views  # noqa: E402
from robobrain_ros.nano.architecture import (  # noqa: E402
    MODEL_DIRECTORY,
    SENT_HEIGHT,
    SENT_WIDTH,
    build_config,
    build_image_processor,
)
from robobrain_ros.nano.batches import (  # noqa: E402
    COLUMNS,
    IGNORED,
    IMAGE_TOKENS,
    ROWS,
    Layout,
    patches_of,
    token_targets,
)
from robobrain_ros.nano.dataset import NAMES, ObjectInfo, Scene, SceneInfo  # noqa: E402
from robobrain_ros.nano.fast_forward import FastForward, window_order  # noqa: E402
from robobrain_ros.nano.tokenizer import build_tokenizer, prompt_phrases  # noqa: E402
from robobrain_ros.nano.train import attention_bias, learning_rate  # noqa: E402
from robobrain_ros.nano.validation import normalise  # noqa: E402
from robobrain_ros.sim.tabletop import COLOURS, KINDS  # noqa: E402
from robobrain_ros.sim.truth import box_iou, mask_box  # noqa: E402
from robobrain_ros.tasks import build_prompt, parse_answer  # noqa: E402

FAMILY = FAMILIES["robobrain2_3b"]


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(questions.vocabulary_texts(NAMES, KINDS))


def synthetic_scene(width=400, height=300):
    """A red mug's rectangle, an overlapping cube's, and a speck that is too small to ask about."""
    labels = np.zeros((height, width), np.uint8)
    labels[60:120, 80:160] = 1
    labels[100:160, 140:200] = 2
    labels[200:204, 300:304] = 3
    rgb = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    objects = tuple(ObjectInfo(f"red {kind}", kind, "red") for kind in ("mug", "cube", "ball"))
    return Scene(rgb, labels, SceneInfo(0, objects, (200.0, 30.0)))


class TestTokenizer:
    def test_each_digit_is_one_token(self, tokenizer):
        tokens = tokenizer.tokenize("[(123, 45), (6, 7)]")
        assert [token for token in tokens if token.isdigit()] == list("1234567")

    def test_prompts_survive_encoding(self, tokenizer):
        for kind in TaskKind:
            prompt = build_prompt(kind, "pick up the red mug", FAMILY)
            assert tokenizer.decode(tokenizer(prompt)["input_ids"]) == prompt

    def test_fixed_sentences_are_single_tokens(self, tokenizer):
        assert all(len(tokenizer.tokenize(phrase)) == 1 for phrase in prompt_phrases())
        prompt = build_prompt(TaskKind.POINT, "Point to the red mug", FAMILY)
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

    def test_training_prefix_is_the_chat_format(self, tokenizer):
        layout = Layout(tokenizer)
        image = "<|image_pad|>" * IMAGE_TOKENS
        content = [{"type": "image"}, {"type": "text", "text": "the red mug"}]
        chat = tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        whole = tokenizer(chat.replace("<|image_pad|>", image))["input_ids"]
        assert [*layout.prefix, *layout.prompt("the red mug")] == whole


class TestFastForward:
    def test_window_order_needs_whole_windows(self):
        with pytest.raises(ValueError, match="windows"):
            window_order(9, 10, 3)

    def test_equals_the_library(self, tokenizer):
        torch.manual_seed(0)
        config = build_config(tokenizer, vision_layers=2, text_layers=2)
        model = Qwen2_5_VLForConditionalGeneration(config).eval()
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.data.add_(torch.randn_like(parameter), alpha=0.1)
        layout = Layout(tokenizer)
        rgb = np.random.default_rng(0).integers(
            0, 255, (SENT_HEIGHT, SENT_WIDTH, 3), dtype=np.uint8
        )
        ids = torch.tensor([[*layout.prefix, *layout.prompt("the red mug")]])
        length, start = ids.shape[1], layout.image_start
        image = build_image_processor()(images=[Image.fromarray(rgb)], return_tensors="pt")
        forward = FastForward(model, ROWS, COLUMNS)
        after = layout.next_position + np.arange(length - len(layout.prefix))
        positions = np.concatenate([layout.prefix_positions, np.tile(after, (3, 1))], 1)
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
            x = torch.cat([x[:, :start], tokens, x[:, start + IMAGE_TOKENS :]], 1)
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


class TestLabels:
    def test_whole_view_scales_boxes_exactly(self):
        view = views.make_view(synthetic_scene(), None)
        mug, cube = view.targets
        assert mug.box == (67, 50, 134, 101)
        assert cube.box == (118, 84, 168, 134)
        assert view.partly

    def test_point_is_well_inside_a_ring(self):
        rows, columns = np.mgrid[:100, :100]
        radius = np.hypot(rows - 50, columns - 50)
        x, y = views.inner_point((radius > 25) & (radius < 45))
        assert 29 < np.hypot(x - 50, y - 50) < 41

    @pytest.mark.parametrize("seed", range(20))
    def test_random_views_keep_labels_and_targets_together(self, seed):
        view = views.make_view(synthetic_scene(), random.Random(seed))
        assert view.rgb.shape == (SENT_HEIGHT, SENT_WIDTH, 3)
        for target in view.targets:
            x, y = target.point
            assert view.labels[y, x] == target.label
            assert target.box == mask_box(view.labels == target.label)

    def test_token_targets_mark_what_a_token_shows(self):
        view = views.make_view(synthetic_scene(), None)
        targets = token_targets(view, KINDS, tuple(COLOURS))
        mug = view.targets[0]
        token = mug.point[1] // 28 * COLUMNS + mug.point[0] // 28
        assert targets["kind"][token] == KINDS.index("mug")
        assert targets["numbers"][token].tolist() == [*mug.point, *mug.box]
        assert targets["kind"][0] == len(KINDS)
        assert (targets["numbers"][0] == IGNORED).all()

    def test_answers_parse_to_what_was_meant(self):
        view = views.make_view(synthetic_scene(), None)
        mug = view.targets[0]
        point = parse_answer(TaskKind.POINT, questions.format_point([mug.point]), FAMILY)
        box = parse_answer(TaskKind.GROUNDING, questions.format_box(mug.box), FAMILY)
        assert point.points.tolist() == [list(mug.point)]
        assert box.boxes.tolist() == [list(mug.box)]

    def test_reach_goes_from_gripper_to_goal_in_the_image(self):
        path = questions.reach_points((168.0, 10.0), (67, 75))
        assert path[0] == (168, 10)
        assert path[-1] == (67, 75)
        assert all(0 <= x < SENT_WIDTH and 0 <= y < SENT_HEIGHT for x, y in path)

    def test_box_iou(self):
        assert box_iou((0, 0, 10, 10), (5, 0, 15, 10)) == pytest.approx(1 / 3)
        assert box_iou((0, 0, 10, 10), (10, 0, 20, 10)) == 0


def test_learning_rate_warms_up_and_anneals():
    assert learning_rate(0, 0.0, 1.0, 0.5) == pytest.approx(0.01)
    assert learning_rate(500, 0.5, 1.0, 0.5) == pytest.approx(1.0)
    assert learning_rate(500, 1.0, 1.0, 0.5) == pytest.approx(0.01)


@pytest.mark.skipif(
    not (MODEL_DIRECTORY / "model.safetensors").exists(), reason="no trained weights here"
)
def test_shipped_weights_find_the_objects_of_a_new_scene():
    scene = next(evaluate.evaluation_scenes(1, first_seed=2_000_100))
    engine = create_engine("nano", device="cpu")
    scores = evaluate.evaluate(engine, [scene])
    engine.close()
    assert np.mean(scores["point"]) >= 0.8
    assert np.mean(scores["grounding"]) >= 0.6


@pytest.mark.skipif(
    not (MODEL_DIRECTORY / "model.safetensors").exists(), reason="no trained weights here"
)
def test_answers_that_fit_their_form_are_not_changed_by_it():
    """Held to the form, the model says what it says by itself, in fewer steps."""
    scene = next(evaluate.evaluation_scenes(1, first_seed=2_000_100))
    held, free = (create_engine("nano", device="cpu", grammar=grammar) for grammar in (True, False))
    kinds = set()
    for question in evaluate.questions_about(scene):
        form = answer_form(question.kind, FAMILY)
        prompt = build_prompt(question.kind, question.request, FAMILY)
        request = GenerationRequest(scene.rgb, prompt, "", 128, form)
        under_form, alone = generate(held, request), generate(free, request)
        assert under_form.text == alone.text
        # Its end need not be said.
        assert under_form.tokens_out == alone.tokens_out - bool(form)
        kinds.add(question.kind)
    assert kinds == set(TaskKind)
    held.close()
    free.close()
