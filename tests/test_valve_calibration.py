"""Promises about the valve's zero: planted ones are found again by looking, and doubtful ones refused."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TextIO

import numpy as np
import pytest
from rich.console import Console

from calibration.board import CalibrationError
from calibration.terminal import Keys
from calibration.valve import ANGLES, ValveSighting, ValveWatch, by_hand, by_servo, fit, publish
from configs.document import Layer
from configs.loader import load
from configs.run import HwConfig
from robot import registers as reg
from robot.rig import Rig, RigConfig, build
from robot.sim import RESET_POSE, SimPlant
from robot.types import CameraFault, MotionFault
from robot.valve_vision import NotVisible

AROUND = np.linspace(-math.pi, math.pi, ANGLES, endpoint=False)


def config(offset: float, sign: int) -> RigConfig:
    return RigConfig.model_validate(
        {"dclaw": {"object_offset": offset, "object_sign": sign, "object_velocity": 1.0}}
    )


def plant_of(rig: Rig) -> SimPlant:
    assert isinstance(rig.clock, SimPlant)
    return rig.clock


@pytest.mark.parametrize(("offset", "sign"), [(-math.pi, 1), (-2.0, 1), (0.7, -1)])
def test_a_planted_zero_and_sign_are_found_by_turning_the_valve(offset: float, sign: int) -> None:
    with build(config(offset, sign)) as rig:
        found = fit(by_servo(rig, lambda news: None), offset)
    assert found.sign == 1
    assert math.remainder(found.offset + math.pi, math.tau) == pytest.approx(0, abs=math.radians(0.5))
    assert abs(found.offset - offset) <= math.pi
    assert np.abs(found.residuals).max() < math.radians(2)
    assert len(found.sightings) >= 8


@pytest.fixture
def nobody() -> Iterator[TextIO]:
    """A terminal at which no key is pressed."""
    out, into = os.pipe()
    with os.fdopen(out) as terminal:
        yield terminal
    os.close(into)


def test_hands_can_turn_the_valve_of_a_limp_robot(nobody: TextIO) -> None:
    rig, turned = build(config(0.3, 1)), iter(np.arange(1, 4 * ANGLES) * 0.55)

    def hand(news: str) -> None:
        plant_of(rig).teleport(RESET_POSE, float(next(turned)))

    found = fit(by_hand(rig, Keys(nobody), hand), 0.3)
    rig.close()
    assert (found.sign, len(found.sightings)) == (1, ANGLES)
    assert math.remainder(found.offset + math.pi, math.tau) == pytest.approx(0, abs=math.radians(0.5))


@pytest.mark.parametrize(
    ("register", "words"),
    [
        (reg.TORQUE_ENABLE, r"servo 50 .* is under torque, which another program left on"),
        (reg.DRIVE_MODE, r"servo 50 .* is set to count otherwise .* check --hw \.\.\. --fix"),
    ],
)
def test_hands_are_not_asked_to_turn_what_stands_or_counts_backwards(
    register: reg.Register, words: str, nobody: TextIO
) -> None:
    with closing(build(RigConfig())) as rig:
        plant_of(rig).servos[50].load(register, 1)
        with pytest.raises(MotionFault, match=words):
            by_hand(rig, Keys(nobody), lambda news: None)


def test_a_valve_in_motion_is_not_sighted() -> None:
    with build(RigConfig()) as rig:
        watch, plant = ValveWatch(rig), plant_of(rig)
        plant._physics.data.qvel[plant._motors.qvel[-1]] = 30.0
        look = watch.look()
    assert isinstance(look, NotVisible)


def sightings(offset: float, sign: int, angles: np.ndarray) -> list[ValveSighting]:
    return [ValveSighting(sign * (float(a) - offset), math.remainder(float(a), math.tau)) for a in angles]


@pytest.mark.parametrize("sign", [1, -1])
def test_offset_and_sign_follow_from_sightings_alone(sign: int) -> None:
    found = fit(sightings(2.5, sign, AROUND), near=2.5 + math.tau)
    assert found.sign == sign
    assert found.offset == pytest.approx(2.5 + math.tau)


def test_a_horn_that_slips_or_a_camera_that_lies_is_refused() -> None:
    wrong = sightings(0.0, 1, AROUND)
    wrong[3] = ValveSighting(wrong[3].servo, wrong[3].seen + math.radians(5))
    with pytest.raises(
        CalibrationError, match=r"with the valve at -85 deg, .* by \+4\.6 deg .* 2 are allowed"
    ):
        fit(wrong, 0.0)


def test_too_few_sightings_are_refused() -> None:
    with pytest.raises(CalibrationError, match=r"seen at 5 angles, expected at least 6"):
        fit(sightings(0.0, 1, AROUND[:5]), 0.0)


def test_half_a_circle_is_refused() -> None:
    with pytest.raises(CalibrationError, match=r"nowhere in 210 deg of the circle, at most 150 may"):
        fit(sightings(0.0, 1, AROUND[:6]), 0.0)


def test_a_camera_that_shows_the_valve_too_small_is_refused() -> None:
    far = RigConfig.model_validate({"sim": {"camera": {"distance": 60.0}}})
    rig = build(far)
    with pytest.raises(CameraFault, match="too small"):
        ValveWatch(rig)
    rig.close()


def test_the_settings_are_those_that_a_rig_takes(tmp_path: Path) -> None:
    found, path = fit(sightings(-3.0, -1, AROUND), -3.0), tmp_path / "valve.yaml"
    console = Console(record=True, width=100)
    publish(found, "dclaw", path, "today", console)
    layers = [Layer.from_text("hw: {}", "rig"), Layer.from_file(path)]
    dclaw = load(HwConfig, layers).hw.dclaw
    assert (dclaw.object_sign, dclaw.object_offset) == (-1, pytest.approx(-3.0))
    assert f"check --hw dclaw --config {path}" in console.export_text()
