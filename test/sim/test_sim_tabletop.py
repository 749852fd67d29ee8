# SPDX-License-Identifier: Apache-2.0
"""The simulated tabletop: its ground truth agrees with its images."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from robobrain_ros.sim import assets, meshes
from robobrain_ros.sim.layout import NoLayout
from robobrain_ros.sim.tabletop import (
    ARM_CODE,
    COLORS,
    FAR,
    KINDS,
    PART_BIT,
    SHIFTED,
    TABLE_CODE,
    TRAINING,
    Tabletop,
    labels_of,
)

WIDTH, HEIGHT = 160, 120
SEEDS = tuple(range(2_000_100, 2_000_112))
# 60 pixels of a 640x480 image.
LEAST_PIXELS = 60 * WIDTH * HEIGHT // (640 * 480)


@pytest.fixture(scope="module")
def table():
    tabletop = Tabletop(WIDTH, HEIGHT)
    yield tabletop
    tabletop.close()


@pytest.fixture(params=SEEDS[:6])
def scene(request, table):
    """The tabletop with one scene, and its frame."""
    table.reset(request.param)
    return table, table.render()


def surface(table, depth):
    """Points (H, W, 3) in the table's frame, straight from the pinhole model."""
    v, u = np.indices(depth.shape)
    focal, centre_u, centre_v = table.K[0, 0], table.K[0, 2], table.K[1, 2]
    rays = np.stack([(u - centre_u) / focal, (v - centre_v) / focal, np.ones(depth.shape)], -1)
    pose = table.world_from_optical
    return depth[..., None] * rays @ pose[:3, :3].T + pose[:3, 3]


def snapshot(table):
    frame = table.render()
    names = [(item.name, *item.position) for item in table.objects]
    return names, table.world_from_optical, table.gripper, frame.rgb, frame.depth, frame.labels


def test_a_seed_is_one_scene_whatever_was_shown_before(table):
    table.reset(SEEDS[0])
    first = snapshot(table)
    table.reset(SEEDS[1])
    other = snapshot(table)
    table.reset(SEEDS[0])
    again = snapshot(table)
    assert first[0] == again[0] != other[0]
    for before, after in zip(first[1:], again[1:], strict=True):
        np.testing.assert_array_equal(before, after)
    assert (first[3] != other[3]).any()


def test_a_seed_is_one_scene_at_any_size(table):
    larger = Tabletop(2 * WIDTH, 2 * HEIGHT)
    larger.reset(SEEDS[2])
    table.reset(SEEDS[2])
    assert [item.name for item in larger.objects] == [item.name for item in table.objects]
    np.testing.assert_array_equal(larger.world_from_optical, table.world_from_optical)
    # A pixel's middle at this size is the corner between four pixels at the other.
    pixels = table.project(np.array([item.position for item in table.objects]))
    larger_pixels = larger.project(np.array([item.position for item in table.objects]))
    np.testing.assert_allclose(2 * (pixels + 0.5), larger_pixels + 0.5)
    larger.close()


def test_an_image_too_narrow_for_the_scene_is_refused():
    with pytest.raises(NoLayout, match="wider"):
        Tabletop(20, 120)


def test_names_are_unique_and_say_color_and_kind(table):
    sizes = set()
    for seed in range(2_000_000, 2_000_080):
        table.reset(seed)
        names = [item.name for item in table.objects]
        assert len(set(names)) == len(names)
        sizes.add(len(names))
        for item in table.objects:
            assert item.kind in KINDS
            assert item.color is None or item.color in COLORS
            assert item.name == (f"{item.color} {item.kind}" if item.color else item.kind)
    assert sizes == {4, 5, 6, 7, 8}


def test_many_scenes_have_distractors(table):
    same_kind = same_color = 0
    for seed in range(2_000_000, 2_000_040):
        table.reset(seed)
        kinds = [item.kind for item in table.objects]
        colors = [item.color for item in table.objects if item.color]
        same_kind += len(set(kinds)) < len(kinds)
        same_color += len(set(colors)) < len(colors)
    assert same_kind >= 15
    assert same_color > 20


def test_every_object_is_seen(table):
    for seed in SEEDS:
        table.reset(seed)
        _, labels = table.render_rgb_labels()
        seen = np.bincount(labels.ravel(), minlength=len(table.objects) + 1)
        assert len(seen) == len(table.objects) + 1
        assert (seen[1:] >= LEAST_PIXELS).all(), (seed, seen)


def test_objects_stand_apart_on_the_table(table):
    for seed in SEEDS:
        table.reset(seed)
        standing = [item for item in table.objects if item.kind != "tray"]
        feet = np.array([item.foot for item in standing])
        radii = np.array([item.radius for item in standing])
        gaps = np.linalg.norm(feet[:, None, :2] - feet[None, :, :2], axis=-1)
        clear = gaps - radii[:, None] - radii
        assert clear[np.triu_indices(len(feet), 1)].min() > 0.01
        heights = np.array([item.position[2] for item in standing])
        assert (heights > 0.015).all() and (heights < 0.14).all()


def test_some_objects_stand_on_the_tray(table):
    on_it = 0
    for seed in range(2_000_000, 2_000_060):
        table.reset(seed)
        trays = [item for item in table.objects if item.kind == "tray"]
        raised = [item for item in table.objects if item.foot[2] > 0]
        assert len(trays) <= 1 and (trays or not raised)
        for item in raised:
            assert np.linalg.norm(item.foot[:2] - trays[0].foot[:2]) + item.radius < trays[0].radius
            on_it += 1
    assert on_it > 8


def test_both_renderings_agree(scene):
    table, frame = scene
    rgb, labels = table.render_rgb_labels()
    np.testing.assert_array_equal(rgb, frame.rgb)
    np.testing.assert_array_equal(labels, frame.labels)


def test_the_table_top_is_at_height_zero(scene):
    table, frame = scene
    points = surface(table, frame.depth)
    over_table = (np.abs(points[..., :2]) < (0.6, 0.5)).all(-1) & (frame.depth < FAR)
    heights = points[..., 2][over_table & (frame.labels == 0)]
    assert heights.min() > -0.002
    # The rest is the arm.
    assert np.mean(np.abs(heights) < 0.002) > 0.6


def test_an_objects_pixels_lie_within_its_size(scene):
    table, frame = scene
    points = surface(table, frame.depth)
    for label, item in enumerate(table.objects, start=1):
        surface_points = points[frame.labels == label]
        assert np.hypot(*(surface_points - item.position)[:, :2].T).max() < item.radius + 0.003
        assert surface_points[:, 2].min() > -0.003
        assert surface_points[:, 2].max() < 2 * item.position[2] + 0.003
        # The camera is above: it sees points near the top.
        assert surface_points[:, 2].max() > item.position[2]


def test_a_projected_object_is_where_its_label_is(scene):
    table, frame = scene
    for label, item in enumerate(table.objects, start=1):
        rows, columns = np.nonzero(frame.labels == label)
        u, v = table.project(item.position[None])[0]
        assert columns.min() - 6 <= u <= columns.max() + 6
        assert rows.min() - 6 <= v <= rows.max() + 6


def test_labels_follow_the_colors(table):
    """Red, green and blue objects are mostly of that color where their label is."""
    checked = 0
    for seed in SEEDS:
        table.reset(seed)
        rgb, labels = table.render_rgb_labels()
        for label, item in enumerate(table.objects, start=1):
            # Cans and bottles have parts of another color.
            if item.color in ("red", "green", "blue") and item.kind in ("cube", "ball", "bowl"):
                strongest = rgb[labels == label].mean(0).argmax()
                assert ("red", "green", "blue")[strongest] == item.color
                checked += 1
    assert checked > 3


def test_the_gripper_is_in_the_image_and_on_the_arm(table):
    shown = 0
    for seed in SEEDS:
        table.reset(seed)
        frame = table.render()
        points = surface(table, frame.depth)
        distance = np.linalg.norm(points - table.gripper, axis=-1)
        # The fingers, at most 8 cm apart, are on both sides of the gripper's middle.
        on_arm = (frame.labels == 0) & (distance < 0.06) & (points[..., 2] > 0.02)
        if table.arm_shown:
            shown += 1
            u, v = table.project(table.gripper[None])[0]
            assert 0 <= u < WIDTH and 0 <= v < HEIGHT
            assert on_arm.any(), seed
        else:
            assert not on_arm.any(), seed
    assert 0 < shown < len(SEEDS)


def test_the_camera_frame_is_optical(scene):
    """z forward and down to the table, x nearly level, y down: REP-103."""
    table, _ = scene
    rotation = table.world_from_optical[:3, :3]
    np.testing.assert_allclose(rotation.T @ rotation, np.eye(3), atol=1e-9)
    assert np.linalg.det(rotation) > 0
    assert abs(rotation[2, 0]) < np.sin(np.radians(4.1))
    assert rotation[2, 1] < 0 and rotation[2, 2] < 0


def looking_at(target, azimuth, elevation, distance):
    """Pose (4, 4) of an optical frame whose z meets the target; x is level, y points down."""
    azimuth, elevation = np.radians([azimuth, elevation])
    outwards = np.array(
        [
            np.cos(elevation) * np.cos(azimuth),
            np.cos(elevation) * np.sin(azimuth),
            np.sin(elevation),
        ]
    )
    right = np.array([-np.sin(azimuth), np.cos(azimuth), 0])
    pose = np.eye(4)
    pose[:3, :3] = np.stack([right, np.cross(-outwards, right), -outwards], 1)
    pose[:3, 3] = target + distance * outwards
    return pose


def nudged(pose):
    """The pose moved by some centimetres and turned by some degrees, about all axes."""
    x, y, z = np.radians([3.0, -4.0, 5.0])
    about_x = [[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]]
    about_y = [[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]]
    about_z = [[np.cos(z), -np.sin(z), 0], [np.sin(z), np.cos(z), 0], [0, 0, 1]]
    moved = pose.copy()
    moved[:3, :3] = pose[:3, :3] @ about_x @ about_y @ about_z
    moved[:3, 3] += (0.05, -0.04, 0.06)
    return moved


def test_a_moved_camera_sees_the_same_surface(scene):
    table, frame = scene
    points = surface(table, frame.depth)
    pose = nudged(table.world_from_optical)
    table.look_from(pose)
    np.testing.assert_allclose(table.world_from_optical, pose, atol=1e-12)
    other = table.render()
    again = surface(table, other.depth)
    over_table = (np.abs(again[..., :2]) < (0.6, 0.5)).all(-1) & (other.labels == 0)
    # The rest is the arm.
    assert np.mean(np.abs(again[over_table][:, 2]) < 0.001) > 0.5
    # What was seen before, where the moved camera sees it.
    seen, labels = points[frame.labels > 0], frame.labels[frame.labels > 0]
    local = (seen - pose[:3, 3]) @ pose[:3, :3]
    u, v = np.rint(local @ table.K.T / local[:, 2:])[:, :2].astype(int).T
    inside = (u >= 0) & (u < WIDTH) & (v >= 0) & (v < HEIGHT)
    u, v = u[inside], v[inside]
    assert inside.mean() > 0.6
    assert np.mean(other.labels[v, u] == labels[inside]) > 0.85
    distance = np.linalg.norm(again[v, u] - seen[inside], axis=-1)
    # A pixel is 5 to 7 mm wide; the rest is hidden now.
    assert np.median(distance) < 0.006
    assert np.mean(distance < 0.015) > 0.85


def test_a_camera_looks_along_z_with_x_to_the_right_and_y_down(table):
    table.reset(SEEDS[0])
    target = table.objects[0].position
    table.look_from(looking_at(target, azimuth=25, elevation=55, distance=0.4))
    centre = (WIDTH - 1) / 2, (HEIGHT - 1) / 2
    np.testing.assert_allclose(table.project(target[None])[0], centre, atol=1e-6)
    labels = table.render().labels
    rows, columns = np.nonzero(labels == 1)
    assert np.abs(np.array([columns.mean(), rows.mean()]) - centre).max() < 8
    up = table.project(target[None] + (0, 0, 0.05))[0] - centre
    assert up[1] < -5 and abs(up[0]) < 1e-6
    # Mirrored by nothing: a camera that turns to its right sees the object move to the left.
    turned = table.world_from_optical
    angle = np.radians(10)
    turn = [[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]]
    turned[:3, :3] = turned[:3, :3] @ turn
    table.look_from(turned)
    assert np.nonzero(table.render().labels == 1)[1].mean() < columns.mean() - 10


def test_looking_from_elsewhere_changes_nothing_else(table):
    table.reset(SEEDS[1])
    before = snapshot(table)
    pose = before[1]
    table.look_from(nudged(pose))
    moved = snapshot(table)
    assert moved[0] == before[0]
    np.testing.assert_array_equal(moved[2], before[2])
    assert (moved[4] != before[4]).mean() > 0.9
    table.look_from(pose)
    back = snapshot(table)
    np.testing.assert_allclose(back[4], before[4], atol=1e-4)
    assert (back[5] != before[5]).mean() < 1e-3
    assert np.abs(back[3].astype(int) - before[3]).mean() < 0.05
    table.look_from(nudged(pose))
    table.reset(SEEDS[1])
    for one, other in zip(before, snapshot(table), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda pose: pose[:3], "4x4"),
        (lambda pose: pose * np.array([1, 1, -1, 1]), "rigid"),
        (lambda pose: 2 * pose, "rigid"),
        (lambda pose: pose.T, "rigid"),
        (lambda pose: np.where(pose == 1, np.nan, pose), "rigid"),
    ],
)
def test_a_pose_that_is_not_rigid_is_refused(table, change, expected):
    pose = table.world_from_optical
    with pytest.raises(ValueError, match=expected):
        table.look_from(change(pose))
    np.testing.assert_array_equal(table.world_from_optical, pose)


def test_points_behind_the_camera_have_no_pixel(table):
    pose = table.world_from_optical
    behind = pose[:3, 3] - pose[:3, 2]
    assert np.isnan(table.project(behind[None])).all()


def test_shadows_darken_only(table):
    table.reset(SEEDS[3])
    lit = Tabletop(WIDTH, HEIGHT, shadows=False)
    lit.reset(SEEDS[3])
    with_shadows, without = table.render(), lit.render()
    np.testing.assert_array_equal(with_shadows.labels, without.labels)
    difference = without.rgb.astype(int) - with_shadows.rgb
    assert difference.max() > 30
    # Rounding and edges aside.
    assert (difference < -2).mean() < 0.001
    lit.close()


def volume(mesh):
    """Signed volume in cubic metres: positive for a closed mesh whose faces look outwards."""
    a, b, c = (mesh.vertices[mesh.faces[:, i]] for i in range(3))
    return np.einsum("ij,ij->", a, np.cross(b, c)) / 6


@pytest.mark.parametrize(
    "pieces",
    [
        (meshes.bowl, meshes.bowl_rim),
        (meshes.bottle, meshes.bottle_neck),
        (meshes.bottle_cap,),
        (meshes.cone, meshes.cone_tip),
        (meshes.tray_floor, meshes.tray_border),
    ],
)
def test_pieces_of_an_object_make_a_closed_mesh_that_stands(pieces):
    mesh = meshes.join(*(make() for make in pieces))
    assert volume(mesh) > 0
    assert mesh.vertices[:, 2].min() == 0 or pieces == (meshes.bottle_cap,)


def test_a_shape_may_be_wider_at_its_top():
    mug = meshes.mug()
    wider = mug.shaped((1.1, 1.1, 0.9), taper=2.0)
    heights = wider.vertices[:, 2]
    np.testing.assert_allclose(heights, 0.9 * mug.vertices[:, 2])
    across = np.hypot(*wider.vertices[:, :2].T) / np.hypot(*mug.vertices[:, :2].T)
    np.testing.assert_allclose(across, 1.1 * (1 + 2 * (heights - 0.05)))


def test_known_volumes():
    assert volume(meshes.cuboid(0.1, 0.2, 0.3)) == pytest.approx(0.006)
    assert volume(meshes.ball()) == pytest.approx(4 / 3 * np.pi * 0.034**3, rel=0.03)
    # A cup's wall and its handle: nothing of it may face inwards.
    cup = np.pi * (0.039**2 * 0.093 - 0.0352**2 * 0.086)
    handle = np.pi**2 * 0.0265 * 0.0055**2
    assert volume(meshes.mug()) == pytest.approx(cup, rel=0.04)
    assert volume(meshes.mug_handle()) == pytest.approx(handle, rel=0.2)


def test_clustering_thins_a_mesh_out_and_keeps_its_shape():
    ball = meshes.ball()
    thin = meshes.clustered(ball, 0.012)
    assert len(thin.faces) < 0.6 * len(ball.faces)
    assert volume(thin) == pytest.approx(volume(ball), rel=0.1)
    np.testing.assert_allclose(thin.vertices.min(0), ball.vertices.min(0), atol=0.012)
    assert (np.diff(np.sort(thin.faces, 1), axis=1) > 0).all()


def test_missing_assets_say_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(assets.AssetsNotFound, match="pip install .*robosuite"):
        assets.robosuite_assets()


def test_incomplete_assets_say_what_to_install(monkeypatch, tmp_path):
    spec = importlib.util.spec_from_file_location("robosuite", tmp_path / "__init__.py")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(assets.AssetsNotFound, match="reinstall"):
        assets.robosuite_assets()


def test_codes_tell_what_each_pixel_shows(table):
    parts = set()
    for seed in SEEDS:
        table.reset(seed)
        _, codes = table.render_rgb_codes()
        labels = table.render_rgb_labels()[1]
        np.testing.assert_array_equal(labels_of(codes), labels)
        assert (codes == TABLE_CODE).mean() > 0.1
        assert (codes == ARM_CODE).any() == table.arm_shown
        for label, item in enumerate(table.objects, start=1):
            share = (codes == label | PART_BIT).sum() / (labels == label).sum()
            if item.kind in ("cube", "ball", "box", "lemon", "bread"):
                assert share == 1
            elif item.kind in ("mug", "bottle", "bowl", "cone"):
                assert share < 1
                parts |= {item.kind} if share > 0 else set()
    assert parts == {"mug", "bottle", "bowl", "cone"}


def test_the_shifted_world_has_other_objects_cameras_and_tables():
    seen, shifted = (_varieties(variety) for variety in (TRAINING, SHIFTED))
    for name in ("elevation", "fovy", "roll", "shapes"):
        assert not seen[name] & shifted[name], name


def _varieties(variety):
    """Rounded properties of a dozen scenes."""
    found = {name: set() for name in ("elevation", "fovy", "roll", "shapes")}
    table = Tabletop(WIDTH, HEIGHT, variety=variety)
    for seed in SEEDS:
        table.reset(seed)
        axes = table.world_from_optical[:3, :3]
        found["elevation"].add(round(float(np.degrees(np.arcsin(-axes[2, 2]))), 1))
        found["roll"].add(round(float(np.degrees(np.arcsin(axes[2, 0]))), 2))
        found["fovy"].add(round(float(np.degrees(2 * np.arctan(HEIGHT / 2 / table.K[1, 1]))), 1))
        found["shapes"] |= {
            (item.kind, round(item.radius, 4), round(item.height, 4)) for item in table.objects
        }
    table.close()
    return found
