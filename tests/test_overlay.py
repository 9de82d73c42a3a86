"""Promises about the model laid over the picture: any lens, the measured angles, on a page of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.request import urlopen

import cv2
import numpy as np
import pytest
from PIL import Image as Pictures
from rich.console import Console

from calibration.overlay import OUTLINE, Ghost, Overlay, laid_over, show
from robot.camera import CameraConfig, Lens
from robot.clock import ManualClock
from robot.kinematics import FingerPositions
from robot.place import Place
from robot.rig import Rig, RigConfig, build
from robot.sim import RESET_POSE, SimConfig, SimPlant
from robot.types import CameraFault
from robot.world import CameraPose, WorldConfig

SIZE = (320, 240)
POSE = np.array([0.2, -0.6, 0.8, -0.1, -0.9, 0.7, 0.0, -0.7, 1.0])


@pytest.fixture
def rig() -> Iterator[Rig]:
    config = RigConfig(camera=CameraConfig(width=SIZE[0], height=SIZE[1]))
    with closing(build(config)) as rig:
        yield rig


def ghost(place: Place) -> Ghost:
    return Ghost(place, SIZE, WorldConfig())


def test_the_ghost_lies_on_the_robot_to_the_pixel() -> None:
    """The same world drawn by its own camera and through its projection taken apart."""
    with (
        closing(SimPlant(SimConfig(), image_size=SIZE)) as plant,
        closing(ghost(Place.of(plant.config.camera.projection(*SIZE)))) as drawn,
    ):
        plant.teleport(POSE, 0.4)
        picture = plant.render(*SIZE).astype(int)
        _, filled = drawn.draw(POSE, 0.4)
    coloured = np.ptp(picture, axis=2) > 15  # the table and the valve's motor are grey
    assert 0.1 < filled.mean() < 0.6
    assert (coloured & ~filled).sum() <= 2
    assert (filled & ~coloured).sum() < 0.06 * filled.sum()


def test_a_lens_may_be_off_centre_and_its_pixels_not_square() -> None:
    """Each finger's tip, as far as it is in the image, is where the projection has it."""
    pose = CameraPose()
    straight = Place.of(pose.projection(*SIZE))
    lens = np.array([[260.0, 0.0, 190.0], [0.0, 330.0, 90.0], [0.0, 0.0, 1.0]])
    place = Place(lens, straight.rotation, straight.translation)
    tips = FingerPositions()(POSE)[:, 1]
    with closing(ghost(place)) as drawn:
        _, filled = drawn.draw(POSE, 0.4)
    pixels = place.pixels(tips @ place.rotation.T + place.translation)
    inside = ((pixels > 3) & (pixels < np.array(SIZE) - 4)).all(axis=1)
    assert inside.sum() >= 2
    distance = cv2.distanceTransform(1 - filled.astype(np.uint8), cv2.DIST_L2, 3)
    for u, v in pixels[inside]:
        assert distance[round(v), round(u)] <= 1
    valve = place.pixels((place.rotation @ [0, 0, 0.1021] + place.translation)[None])[0]
    assert filled[round(valve[1]), round(valve[0])]


def test_each_pixel_tells_which_finger_it_shows_and_how_far_it_is() -> None:
    place = Place.of(CameraPose().projection(*SIZE))
    tips = FingerPositions()(POSE)[:, 1] @ place.rotation.T + place.translation
    with closing(ghost(place)) as drawn:
        seen = drawn.fingers(POSE, 0.4)
    for finger, (u, v) in enumerate(place.pixels(tips)):
        if 0 <= u < SIZE[0] - 0.5 and 0 <= v < SIZE[1] - 0.5:
            assert seen.owner[round(v), round(u)] == finger + 1
            # Tips are on the fingers' axes, which are 9 to 15 mm thick: what is seen lies before them.
            assert 0.002 < tips[finger, 2] - seen.depth[round(v), round(u)] < 0.025
    assert not seen.owner[seen.depth > 1].any()


def test_a_joint_that_stands_elsewhere_is_seen() -> None:
    off = POSE.copy()
    off[1] += 0.1
    with closing(ghost(Place.of(CameraPose().projection(*SIZE)))) as drawn:
        before, after = drawn.draw(POSE, 0.4)[1], drawn.draw(off, 0.4)[1]
    assert (before != after).sum() > 100


def test_the_overlay_outlines_the_robot_and_leaves_the_rest(rig: Rig) -> None:
    with closing(Overlay(rig)) as overlay:
        shown = overlay.image()
        (picture,) = rig.pictures(1)
        assert overlay.state()["joints"] == pytest.approx(RESET_POSE, abs=0.01)
    assert (shown == OUTLINE).all(axis=2).sum() > 300
    assert (shown == picture).all(axis=2).mean() > 0.4


def test_the_picture_is_straightened_as_the_projection_is() -> None:
    lens = Lens(resolution=SIZE, focal=(280.0, 280.0), centre=(160.0, 120.0), distortion=(-0.3, 0.1, 0, 0, 0))
    camera = CameraConfig(width=SIZE[0], height=SIZE[1], lens=lens)
    picture = np.zeros((240, 320, 3), np.uint8)
    ray = np.array([[0.35, 0.2, 1.0]])
    at = cv2.projectPoints(ray, np.zeros(3), np.zeros(3), lens.matrix, np.array(lens.distortion))[0].ravel()
    cv2.circle(picture, (round(at[0]), round(at[1])), 2, (255, 255, 255), -1)
    shown = laid_over(picture, camera, picture, np.zeros((240, 320), bool))
    v, u = np.nonzero(shown[:, :, 0] > 128)
    np.testing.assert_allclose([u.mean(), v.mean()], [160 + 280 * 0.35, 120 + 280 * 0.2], atol=1.5)


def test_the_page_follows_the_robot_and_the_picture_is_kept(rig: Rig, tmp_path: Path) -> None:
    console, rounds, angles = Console(record=True, width=120), iter([True, True, False]), list[float]()
    path = tmp_path / "cameras/overlay.png"

    def go_on() -> bool:
        said = console.export_text(clear=False)
        url = said.partition("live")[2].split()[0]
        page = urlopen(url, timeout=5).read()
        assert b"/cam.mjpg" in page
        angles.append(json.load(urlopen(url + "/state", timeout=5))["valve"])
        assert isinstance(rig.clock, SimPlant)
        rig.clock.teleport(RESET_POSE, angles[-1] + 0.5)
        return next(rounds)

    with closing(Overlay(rig)) as overlay:
        show(overlay, path, ManualClock(), console, go_on)
    np.testing.assert_allclose(np.diff(angles), 0.5, atol=0.01)
    assert Pictures.open(path).size == SIZE


def test_without_a_projection_there_is_no_overlay(rig: Rig) -> None:
    camera = rig.config.camera.model_copy(update={"projection": None})
    rig.config = rig.config.model_copy(update={"camera": camera})
    with pytest.raises(CameraFault, match=r"no projection .* calibrate camera"):
        Overlay(rig)
