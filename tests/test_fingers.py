"""Promises about `calibrate camera --from-fingers`: the place is found, or refused with a reason."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.random import Generator
from rich.console import Console

import run_robot
from calibration import fingers
from calibration.board import CalibrationError
from calibration.finger_fit import FingerFit, beginning, fit
from calibration.fingers import Series
from calibration.fingers_report import Report
from calibration.moving import OUT_OF_THE_WAY
from configs.document import Layer
from configs.loader import load
from configs.run import HwConfig
from robot.camera import CameraConfig, Lens
from robot.collision import FullTurnClearance
from robot.place import Place
from robot.randomise import RandomiseConfig
from robot.rig import RigConfig, build
from robot.safety import SafetyConfig
from robot.scene import View
from robot.sim import SimConfig, SimPlant
from robot.types import Floats
from robot.world import CameraPose, WorldConfig

SMALL, FULL = (320, 240), (640, 480)
POSE = CameraPose(azimuth=64.0, elevation=-38.0, distance=0.44)
LOOKS = (
    *("light", "ambient", "floor_colour", "floor_texture", "finger_colour", "mount_colour", "valve_colour"),
    *("pointer_shade", "exposure", "white_balance", "colour_noise", "encoder_noise", "servo_stiffness"),
)
SIM2REAL = RandomiseConfig.model_validate("sim2real")


def camera(size: tuple[int, int] = SMALL) -> CameraConfig:
    return CameraConfig(width=size[0], height=size[1])


def photographed(pose: CameraPose, size: tuple[int, int]) -> list[Series]:
    """The whole round as a simulated camera sees it; nothing is in between."""
    poses = fingers.plan(SafetyConfig())
    with closing(SimPlant(SimConfig(camera=pose))) as plant:

        def view(joints: Sequence[float] | Floats) -> View:
            plant.teleport(joints, 0.4)
            return View(plant.render(*size), np.array(joints), 0.4)

        here, found = view(OUT_OF_THE_WAY * 3), []
        for finger in range(3):
            views = [here, *(view(goal) for moved, goal in poses if moved == finger)]
            found.append(Series(finger, tuple(views)))
            here = views[-1]
    return found


def elsewhere(place: Place, rng: Generator, shift: float = 0.02, turn: float = 5.0) -> Place:
    """A place so many m and degrees from this one, in a direction that is drawn."""
    ways = rng.normal(size=(2, 3))
    ways /= np.linalg.norm(ways, axis=1, keepdims=True)
    return place.moved(np.concatenate([math.radians(turn) * ways[0], shift * ways[1]]))


def off(place: Place, truth: Place) -> tuple[float, float]:
    """mm and degrees between two places."""
    turned = cv2.Rodrigues(place.rotation.T @ truth.rotation)[0]
    away = float(np.linalg.norm(place.position - truth.position))
    return 1e3 * away, math.degrees(float(np.linalg.norm(turned)))


@pytest.fixture(scope="module")
def series() -> list[Series]:
    return photographed(POSE, SMALL)


@pytest.fixture(scope="module")
def truth() -> Place:
    return Place.of(POSE.projection(*SMALL))


@pytest.fixture(scope="module")
def found(series: list[Series], truth: Place) -> FingerFit:
    return fit(series, camera(), WorldConfig(), elsewhere(truth, np.random.default_rng(3)))


# --- What moves


def test_every_motion_of_the_fingers_stays_inside_the_box_and_clear_of_all_else() -> None:
    safety, clearance, here = SafetyConfig(), FullTurnClearance(), np.tile(OUT_OF_THE_WAY, 3)
    plan = fingers.plan(safety)
    assert len(plan) == 3 * len(fingers.ROUND)
    for finger, goal in plan:
        assert (goal >= np.array(safety.lower) - 1e-3).all()
        assert (goal <= np.array(safety.upper) + 1e-3).all()
        moved = np.abs(goal - here).reshape(3, 3).max(axis=1) > 0
        assert not np.delete(moved, finger).any()
        assert all(clearance.keeps(here + share * (goal - here), 0.01) for share in (0.25, 0.5, 0.75, 1.0))
        here = goal


def test_a_box_that_allows_too_few_poses_is_refused_before_anything_moves() -> None:
    narrow = SafetyConfig(lower=(-0.2, -1.1, -1.6) * 3, upper=(0.2, 1.1, 1.6) * 3)
    with pytest.raises(CalibrationError, match="finger 1 may go to 3 of 7 poses"):
        fingers.plan(narrow)


# --- What is found


def test_a_step_moves_pixels_as_its_slopes_say() -> None:
    place, points = Place.of(POSE.projection(*SMALL)), np.array([[0.05, -0.02, 0.4], [-0.1, 0.06, 0.5]])
    slopes = place.slopes(points, 7)
    for number in range(7):
        step = 1e-6 * np.eye(7)[number]
        ends = [place.moved(sign * step) for sign in (1, -1)]
        base = (points - place.translation) @ place.rotation  # in the base frame
        there, back = (end.pixels(base @ end.rotation.T + end.translation) for end in ends)
        np.testing.assert_allclose((there - back) / 2e-6, slopes[:, :, number], rtol=1e-4, atol=1e-3)


def test_the_place_is_found_from_20_mm_and_5_degrees_off(found: FingerFit, truth: Place) -> None:
    away, turned = off(found.place, truth)
    assert away < 1
    assert turned < 0.2
    assert found.error < 0.3
    assert found.found > 0.9
    assert found.shift_error < 1e-3
    assert found.widest.shift < 2e-3


def test_a_dark_room_is_refused(series: list[Series], truth: Place) -> None:
    dark = [
        replace(one, views=tuple(replace(view, image=view.image // 40) for view in one.views))
        for one in series
    ]
    with pytest.raises(CalibrationError, match="does not change when finger 1 or 2 or 3 moves"):
        fit(dark, camera(), WorldConfig(), truth)


@pytest.mark.slow
def test_a_search_that_begins_on_the_other_side_is_refused(series: list[Series], truth: Place) -> None:
    behind = Place.of(CameraPose(azimuth=240.0).projection(*SMALL))
    with pytest.raises(CalibrationError, match=r"set hw\.camera\.projection to about where it stands"):
        fit(series, camera(), WorldConfig(), behind)


def test_the_search_begins_where_the_projection_is_with_the_lens_that_is_known() -> None:
    stands = CameraPose(azimuth=70.0).projection(*SMALL).tolist()
    given = RigConfig(camera=camera().model_copy(update={"projection": stands}))
    drawn = CameraPose(fovy=30.0).projection(*SMALL).tolist()
    place, unknown = beginning(given, camera().model_copy(update={"projection": drawn}))
    assert off(place, Place.of(np.array(stands))) == pytest.approx((0, 0), abs=1e-6)
    assert place.matrix[0, 0] == pytest.approx(120 / math.tan(math.radians(15)))
    assert unknown == "place"
    real = given.model_copy(update={"kind": "real"})
    assert beginning(real, real.camera)[1] == "place and focal length"
    lens = Lens(resolution=SMALL, focal=(300.0, 301.0), centre=(160.0, 119.0))
    place, unknown = beginning(real, real.camera.model_copy(update={"lens": lens}))
    assert (place.matrix == lens.matrix).all()
    assert unknown == "place"


def test_settings_load_and_say_that_it_was_fingers(
    found: FingerFit, series: list[Series], tmp_path: Path
) -> None:
    path = tmp_path / "found.yaml"
    lens = Lens(resolution=SMALL, focal=(300.0, 301.0), centre=(160.0, 119.0))
    seen = camera().model_copy(update={"lens": lens})
    report = Report(found, series, seen, WorldConfig(), "dclaw", "a camera: [1]", "2026-01-02 03:04")
    report.publish(path, Console(quiet=True))
    path.write_text(path.read_text() + "    width: 320\n    height: 240\n")
    loaded = load(HwConfig, [Layer.from_file(path)]).hw.camera
    assert np.allclose(np.array(loaded.projection), found.place.projection, rtol=1e-5, atol=1e-5)
    assert loaded.lens == lens
    assert loaded.calibration == report.record
    assert report.record.target == "fingers"
    assert report.record.shift_error == round(found.shift_error, 6)
    assert path.with_suffix(".png").stat().st_size > 1000


# --- What is refused, and how good it is


@pytest.fixture(scope="module")
def sharp() -> list[Series]:
    return photographed(POSE, FULL)


def start_of(size: tuple[int, int], seed: int = 0) -> Place:
    return elsewhere(Place.of(POSE.projection(*size)), np.random.default_rng(seed))


@pytest.mark.slow
def test_a_lens_of_another_focal_length_is_refused_and_fitted_if_asked(sharp: list[Series]) -> None:
    start = start_of(FULL)
    longer = start.moved(np.array([0, 0, 0, 0, 0, 0, math.log(1.02)]))
    with pytest.raises(CalibrationError, match="ask for a focal length -"):
        fit(sharp, camera(FULL), WorldConfig(), longer)
    fitted = fit(sharp, camera(FULL), WorldConfig(), longer, "place and focal length")
    away, turned = off(fitted.place, Place.of(POSE.projection(*FULL)))
    assert away < 2
    assert turned < 0.3
    assert fitted.place.matrix[0, 0] == pytest.approx(start.matrix[0, 0], rel=0.005)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_joints_whose_zeros_are_a_degree_off_do_no_harm(sharp: list[Series], seed: int) -> None:
    wrong = np.random.default_rng(seed).normal(0, math.radians(1), 9)
    bent = [
        replace(one, views=tuple(replace(view, joints=view.joints - wrong) for view in one.views))
        for one in sharp
    ]
    found = fit(bent, camera(FULL), WorldConfig(), start_of(FULL))
    away, turned = off(found.place, Place.of(POSE.projection(*FULL)))
    assert away < 2
    assert turned < 0.3
    np.testing.assert_allclose(found.zeros, wrong, atol=math.radians(1))


def test_a_camera_that_was_bumped_meanwhile_is_refused(series: list[Series], truth: Place) -> None:
    bumped = POSE.model_copy(update={"azimuth": POSE.azimuth + 2})
    mixed = [*series[:2], photographed(bumped, SMALL)[2]]
    with pytest.raises(CalibrationError, match="was the camera bumped"):
        fit(mixed, camera(), WorldConfig(), truth)


def drawn_camera(rng: Generator) -> CameraPose:
    """About the nominal one, with any lens, all fingers in view."""
    low, high = (45, -47, 0.38, -0.02, -0.02, 0.07, 40), (75, -25, 0.56, 0.02, 0.02, 0.12, 53)
    azimuth, elevation, distance, *lookat, fovy = rng.uniform(low, high).tolist()
    return CameraPose(
        azimuth=azimuth, elevation=elevation, distance=distance, lookat=tuple(lookat), fovy=fovy
    )


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_drawn_cameras_are_found_by_the_fingers_alone(seed: int) -> None:
    """Every second one with drawn light, colours, noise and encoders; two of them with shadows."""
    rng = np.random.default_rng([7, seed])
    pose = drawn_camera(rng)
    looks = RandomiseConfig(**{name: SIM2REAL.ranges[name] for name in LOOKS}) if seed % 2 else "off"
    sim = SimConfig(camera=pose, randomise=looks, shadows=seed % 4 == 3)  # type: ignore[arg-type]
    config = RigConfig(sim=sim, camera=camera(FULL))
    poses, truth = fingers.plan(config.dclaw.safety), Place.of(pose.projection(*FULL))
    with build(config) as rig:
        rig.randomise(rng)
        taken = fingers.take(rig, poses, lambda what, share: None)
    found = fit(taken, camera(FULL), WorldConfig(), elsewhere(truth, rng))
    away, turned = off(found.place, truth)
    assert away < 2
    assert turned < 0.3


@pytest.mark.slow
def test_the_command_leads_from_motions_to_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    looks = "--set hw.camera.width=320 --set hw.camera.height=240 --set hw.sim.camera.azimuth=63"
    assert run_robot.main(f"calibrate camera --from-fingers --hw sim {looks}".split()) == 0
    (path,) = (tmp_path / "cameras").glob("*.yaml")
    written = path.read_text() + "    width: 320\n    height: 240\n"
    path.write_text(written)
    loaded = load(HwConfig, [Layer.from_file(path)]).hw.camera
    truth = Place.of(CameraPose(azimuth=63.0).projection(*SMALL))
    away, turned = off(Place.of(np.array(loaded.projection)), truth)
    assert away < 2
    assert turned < 0.3
