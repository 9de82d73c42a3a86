"""Promises about the camera's place: a bump is refused with its measure, and light and fingers are none."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.random import Generator
from rich.console import Console

from calibration.board import CalibrationError
from calibration.scene import calibrate_scene, settings
from configs.document import Layer
from configs.loader import load
from configs.run import HwConfig
from robot import registers as reg
from robot.camera import CameraConfig
from robot.doctor import Options, inspect
from robot.place import Place
from robot.randomise import Draw, RandomiseConfig
from robot.rig import RigConfig, build
from robot.scene import (
    AVERAGED,
    ENOUGH,
    Drift,
    SceneCheckConfig,
    SceneEye,
    Untold,
    View,
    averaged,
    check_scene,
    require_resolution,
)
from robot.sim import RESET_POSE, SimConfig, SimPlant
from robot.types import CameraFault, CameraMoved, Floats
from robot.world import CameraPose

SIZE = (640, 480)
LIGHT = ("light", "ambient", "exposure", "white_balance", "colour_noise")
LOOKS = ("floor_colour", "floor_texture", "finger_colour", "mount_colour", "valve_colour")
SIM2REAL = RandomiseConfig.model_validate("sim2real")
LIMITS = SceneCheckConfig()
CAMERA = CameraConfig(projection=CameraPose().projection(*SIZE).tolist())
Values = dict[str, tuple[float, ...]]

# Names as in `Draw`. A camera's angles turn it about what it looks at: 2 degrees are 15 mm, too.
BUMPS: dict[str, Values] = {
    "azimuth": {"camera_azimuth": (2.0,)},
    "elevation": {"camera_elevation": (-2.0,)},
    "along x": {"camera_shift": (0.005, 0.0, 0.0)},
    "along y": {"camera_shift": (0.0, -0.005, 0.0)},
    "upwards": {"camera_shift": (0.0, 0.0, 0.005)},
    "away": {"camera_distance": (0.005,)},
    "nearer": {"camera_distance": (-0.005,)},
}
NUDGES: dict[str, Values] = {
    "nothing": {},
    "azimuth": {"camera_azimuth": (0.1,)},
    "elevation": {"camera_elevation": (0.1,)},
}


@dataclass
class Bench:
    """A simulated bench of which photographs are taken, whatever its camera, light and robot do."""

    plant: SimPlant
    rng: Generator

    def photograph(self, values: Values, joints: Floats, valve: float) -> View:
        draw = Draw(values)
        self.plant.vary(draw)
        self.plant.teleport(joints, valve)
        image, sensor = self.plant.render(*SIZE), draw.sensor()
        sensor = replace(sensor, luck=self.rng) if sensor else None  # the draw's own noise repeats itself
        pictures = [sensor.develop(image) if sensor else image for _ in range(AVERAGED)]
        return View(averaged(pictures), joints, valve)

    def reference(self, values: Values) -> View:
        return self.photograph(values, np.array(RESET_POSE), 0.0)

    def later(self, values: Values) -> View:
        """Under another light, the fingers and the valve anywhere."""
        light = {name: SIM2REAL.draw(self.rng).values[name] for name in LIGHT}
        joints = np.tile([0.4, 0.9, 1.2], 3) * self.rng.uniform(-1, 1, 9)
        return self.photograph({**values, **light}, joints, self.rng.uniform(-3, 3))


@pytest.fixture(scope="module")
def plant() -> Iterator[SimPlant]:
    with closing(SimPlant(SimConfig(floor_texture=0.3))) as plant:
        yield plant


@pytest.fixture
def bench(plant: SimPlant) -> Bench:
    return Bench(plant, np.random.default_rng(0))


def turned(view: View, about: Floats) -> View:
    """What a camera sees that turns where it stands, about its axes (3,) rad."""
    matrix = Place.of(np.array(CAMERA.projection)).matrix
    warp = matrix @ cv2.Rodrigues(-about)[0] @ np.linalg.inv(matrix)
    image = cv2.warpPerspective(view.image, warp, SIZE, borderMode=cv2.BORDER_REPLICATE)
    return replace(view, image=np.asarray(image, np.uint8))


# --- What is seen


@pytest.mark.parametrize("sign", [1.0, -2.5])
def test_a_projection_is_taken_apart_whatever_its_scale(sign: float) -> None:
    pose = CameraPose(azimuth=75.0, elevation=-50.0)
    place = Place.of(sign * pose.projection(*SIZE))
    focal = 240 / math.tan(math.radians(22.5))
    np.testing.assert_allclose(place.matrix, [[focal, 0, 319.5], [0, focal, 239.5], [0, 0, 1]], atol=1e-9)
    np.testing.assert_allclose(place.rotation @ place.rotation.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(place.rotation) == pytest.approx(1)
    towards = np.array(pose.lookat) - place.position
    assert np.linalg.norm(towards) == pytest.approx(pose.distance)
    np.testing.assert_allclose(place.rotation[2], towards / pose.distance, atol=1e-12)


def test_lines_of_sight_end_on_the_table_or_far_away() -> None:
    place = Place.of(np.array(CAMERA.projection))
    there = np.array([[0.05, -0.02, 0.0]]) @ place.rotation.T + place.translation
    np.testing.assert_allclose(place.on_the_table(place.pixels(there)), there, atol=1e-12)
    sky = place.on_the_table(np.array([[319.5, -2000.0]]))
    assert sky[0, 2] == 2.0


@pytest.mark.parametrize("bump", BUMPS)
def test_a_bumped_camera_is_refused_under_any_light_with_fingers_anywhere(bench: Bench, bump: str) -> None:
    reference = bench.reference({})
    with pytest.raises(CameraMoved, match=r"was moved since .* turned by \d.* moved by \d.* mm at the valve"):
        check_scene(CAMERA, LIMITS, reference, bench.later(BUMPS[bump]))


@pytest.mark.parametrize("nudge", NUDGES)
def test_a_tenth_of_a_degree_passes(bench: Bench, nudge: str) -> None:
    reference = bench.reference({})
    found = check_scene(CAMERA, LIMITS, reference, bench.later(NUDGES[nudge]))
    assert isinstance(found, Drift)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_turn_about_each_axis_is_measured(bench: Bench, axis: int) -> None:
    reference, about = bench.reference({}), np.zeros(3)
    for degrees in (-2.0, 0.1):
        about[axis] = math.radians(degrees)
        found = SceneEye(CAMERA).compare(reference, turned(reference, about))
        assert isinstance(found, Drift)
        np.testing.assert_allclose(np.degrees(found.turn), np.degrees(about), atol=0.05)
        assert found.metres < 0.0007
        assert found.exceeds(LIMITS) == (degrees == -2.0)


def test_a_way_is_measured_in_size_and_direction(bench: Bench) -> None:
    reference = bench.reference({})
    found = SceneEye(CAMERA).compare(reference, bench.reference({"camera_distance": (0.005,)}))
    assert isinstance(found, Drift)
    np.testing.assert_allclose(found.shift, [0, 0, -0.005], atol=0.0007)
    assert found.degrees < 0.1


def test_jpeg_and_things_put_down_are_no_bump(bench: Bench) -> None:
    reference = bench.reference({})
    now = reference.image.copy()
    now[350:470, 40:200] = (200, 30, 30)
    jpeg = cv2.imencode(".jpg", now, [cv2.IMWRITE_JPEG_QUALITY, 60])[1]
    seen = replace(reference, image=np.asarray(cv2.imdecode(jpeg, cv2.IMREAD_COLOR), np.uint8))
    found = check_scene(CAMERA, LIMITS, reference, seen)
    assert isinstance(found, Drift)
    assert found.degrees < 0.05


def test_a_rearranged_bench_is_told_from_a_small_bump(bench: Bench) -> None:
    reference = bench.reference({})
    other = bench.reference({"floor_texture": (0.3,), "luck": (5.0,)})
    with pytest.raises(CameraMoved, match=r"not found again: \d+ of \d+ places"):
        check_scene(CAMERA, LIMITS, reference, other)


def test_too_little_in_view_is_said_and_not_guessed(bench: Bench) -> None:
    reference = bench.reference({})
    plain = reference.image.copy()
    plain[:, :570] = plain.mean(axis=(0, 1))
    found = check_scene(CAMERA, LIMITS, replace(reference, image=plain), reference)
    assert isinstance(found, Untold)
    assert "places that stand still" in found.reason


@pytest.mark.parametrize("level", [0, 6, 255])
def test_a_camera_that_shows_nothing_is_refused(level: int) -> None:
    nothing = np.full((480, 640, 3), level, np.uint8)
    with pytest.raises(CameraFault, match=r"shows nothing: brightness \d+ of 255.*lens cap"):
        averaged([nothing] * 2)


def test_only_what_stands_still_is_looked_at(bench: Bench) -> None:
    """The fingers and the valve have the strongest corners of all, and none of them counts."""
    other: Values = {
        "finger_colour": (0.1, 0.1, 0.9),
        "valve_colour": (0.9, 0.9, 0.9),
        "pointer_shade": (0.5,),
    }
    for joints, valve in ((RESET_POSE, 0.0), ((0.3, -0.2, 0.4) * 3, 0.5), ((-0.3, 0.2, -0.4) * 3, 2.0)):
        view = bench.photograph({}, np.array(joints), valve)
        painted = bench.photograph(other, np.array(joints), valve)
        robot = np.abs(view.image.astype(int) - painted.image).max(axis=2) > 5
        patches = SceneEye(CAMERA).patches(view)
        assert robot.mean() > 0.05
        assert len(patches) >= ENOUGH
        assert not robot[patches[:, 1], patches[:, 0]].any()


@pytest.mark.slow
def test_of_drawn_benches_none_is_misjudged(capsys: pytest.CaptureFixture[str]) -> None:
    """Tables, colours and lights of sim2real; those with too plain a table are refused as references."""
    plant = SimPlant(SimConfig(randomise=SIM2REAL))
    counts = dict.fromkeys(("references", "plain", "bumps", "misses", "nudges", "alarms", "untold"), 0)
    for seed in range(12):
        bench = Bench(plant, np.random.default_rng(seed))
        drawn = SIM2REAL.draw(bench.rng).values
        looks = {name: drawn[name] for name in (*LOOKS, *LIGHT, "luck")}
        reference = bench.reference(looks)
        counts["references"] += 1
        if len(SceneEye(CAMERA).patches(reference)) < ENOUGH:
            counts["plain"] += 1
            continue
        for moves, kind, wrong in ((BUMPS, "bumps", "misses"), (NUDGES, "nudges", "alarms")):
            for move in moves.values():
                counts[kind] += 1
                moved = judged(reference, bench.later({**looks, **move}))
                counts["untold"] += moved is None
                counts[wrong] += moved is (kind == "nudges")
    plant.close()
    with capsys.disabled():
        print(counts)
    assert counts["misses"] == counts["alarms"] == 0
    assert counts["untold"] <= 0.02 * (counts["bumps"] + counts["nudges"])
    assert counts["plain"] <= 8


def judged(reference: View, now: View) -> bool | None:
    """Whether the camera counts as moved; None where nobody can tell."""
    try:
        found = check_scene(CAMERA, LIMITS, reference, now)
    except CameraMoved:
        return True
    return None if isinstance(found, Untold) else False


# --- From taking the reference to the start that it prevents


def rig_config(**sim: object) -> RigConfig:
    return RigConfig.model_validate({"kind": "sim", "sim": {"floor_texture": 0.3, **sim}})


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The settings that `calibrate scene` wrote."""
    path = tmp_path_factory.mktemp("cameras") / "sim-scene.yaml"
    with build(rig_config()) as rig:
        calibrate_scene(rig, "sim", path, "today", Console(quiet=True))
    return path


def with_scene(config: RigConfig, written: Path, **scene: object) -> RigConfig:
    settings = Layer.from_file(written)
    rig = Layer.from_text(f"hw: {config.model_dump_json()}", "rig")
    loaded = load(HwConfig, [rig, settings]).hw
    assert loaded.camera.scene
    changed = loaded.camera.scene.model_copy(update=scene)
    return loaded.model_copy(update={"camera": loaded.camera.model_copy(update={"scene": changed})})


def torque(config: RigConfig) -> list[int]:
    """Of each finger servo after a start that must not succeed."""
    rig = build(config)
    plant = rig.clock
    assert isinstance(plant, SimPlant)
    with pytest.raises(CameraMoved), rig:
        pass
    return [servo.value(reg.TORQUE_ENABLE) for servo in plant.servos.values()]


def test_a_start_holds_the_camera_against_its_reference(written: Path) -> None:
    with build(with_scene(rig_config(), written)) as rig:
        assert not rig.events.drain()


def test_a_start_with_a_bumped_camera_is_refused_before_anything_has_torque(written: Path) -> None:
    assert torque(with_scene(rig_config(camera={"azimuth": 62.0}), written)) == [0] * 10


def test_a_start_that_cannot_tell_says_so(written: Path) -> None:
    """Limits that no picture of this camera could be held against: an event, and no guess."""
    strict = with_scene(rig_config(), written).model_copy(
        update={"scene_check": SceneCheckConfig(turn=0.001, shift=0.00001)}
    )
    with build(strict) as rig:
        events = rig.events.drain()
    assert [event.name for event in events] == ["scene-unseen"]
    assert "cannot be told" in events[0].text


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"path": "/nowhere/scene.png"}, r"/nowhere/scene\.png .*cannot be read: No such file.*scene=null"),
        ({"sha256": "0" * 64}, r"is not the picture that was taken on today: its SHA-256 is another"),
        ({"camera": "Bob's"}, r"""of today is of "Bob's", but here is 'sim'"""),
        ({"resolution": (1280, 720)}, r"has 1280x720 px, the camera captures 640x480: set hw\.camera\.width"),
    ],
)
def test_a_reference_that_is_not_the_cameras_is_refused(
    written: Path, change: dict[str, object], reason: str
) -> None:
    with pytest.raises(CameraFault, match=reason), build(with_scene(rig_config(), written, **change)):
        pass


SMALL = cv2.imencode(".png", np.zeros((9, 9, 3), np.uint8))[1].tobytes()


@pytest.mark.parametrize("content", [b"", b"no picture", SMALL], ids=["nothing", "text", "small"])
def test_a_reference_that_is_no_picture_of_this_size_is_refused(
    written: Path, tmp_path: Path, content: bytes
) -> None:
    """A hand has put another file there, and its hash into the settings."""
    path, sha256 = tmp_path / "other.png", hashlib.sha256(content).hexdigest()
    path.write_bytes(content)
    config = with_scene(rig_config(), written, path=str(path), sha256=sha256)
    with pytest.raises(CameraFault, match=r"other.png .* is no picture of 640x480 px"), build(config):
        pass


def test_pictures_of_another_size_than_was_asked_for_are_refused() -> None:
    with pytest.raises(CameraFault, match="has 640x480 px, the camera captures 320x240"):
        require_resolution((640, 480), (320, 240), "today")


def test_check_tells_of_the_cameras_place(written: Path) -> None:
    def line(config: RigConfig) -> tuple[str, str]:
        (found,) = [result for result in inspect(config, Options()) if result.name == "scene"]
        return found.status, found.detail

    assert line(with_scene(rig_config(), written))[0] == "OK"
    status, detail = line(with_scene(rig_config(camera={"distance": 0.425}), written))
    assert status == "FAIL"
    assert "the camera was moved" in detail


def test_a_plain_table_is_no_reference(tmp_path: Path) -> None:
    path = tmp_path / "scene.yaml"
    with (
        build(RigConfig()) as rig,
        pytest.raises(CalibrationError, match=r"\d+ places .*expected at least 20.*a newspaper"),
    ):
        calibrate_scene(rig, "sim", path, "today", Console(quiet=True))
    assert not path.exists()


def test_without_a_projection_there_is_no_reference() -> None:
    with pytest.raises(CameraFault, match=r"has no projection.*calibrate camera"):
        SceneEye(CameraConfig())


def test_names_in_settings_cannot_end_their_quotes(written: Path) -> None:
    scene = with_scene(rig_config(), written, camera="Bob's: cam").camera.scene
    assert scene
    text = settings("sim", scene)
    again = load(HwConfig, [Layer.from_text("hw: {}", "rig"), Layer.from_text(text, "scene")]).hw.camera.scene
    assert again == scene
