"""Promises of the check: a loose or slipping valve is told once, with both angles; a sound one never."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from robot.events import RigEvent
from robot.faults import FaultConfig, FaultSchedule
from robot.randomise import Draw
from robot.rig import CAMERA, Rig, RigConfig, build
from robot.sim import RESET_POSE, SimPlant
from robot.types import CameraFault, Frame, JointState
from robot.valve_check import (
    UNSEEN,
    Disagreement,
    EncoderWitness,
    ValveCheck,
    ValveCheckConfig,
    sharp_enough,
)
from robot.valve_vision import Sighting, ValveEye
from tasks import RobotEnv, ValveConfig, make_task
from tasks.valve import AngleRange, AtStart

CONFIG = ValveCheckConfig()
NAMES = {"valve-offset", "valve-slips", "valve-unseen"}


def reading(angle: float, velocity: float = 0.0, time: float = 0.0) -> JointState:
    return JointState(time, np.array([angle]), np.array([velocity]), np.zeros(1))


def hear(witness: EncoderWitness, seen: float, encoder: float, times: int = 5) -> list[Disagreement]:
    told = [witness.hears(0.0, reading(encoder), Sighting(seen, 0.01, 1.0)) for _ in range(times)]
    return [one for one in told if one is not None]


def test_a_constant_difference_is_told_once_with_both_angles_and_the_correction() -> None:
    (told,) = hear(EncoderWitness(CONFIG), seen=math.radians(40), encoder=math.radians(10), times=50)
    assert told.name == "valve-offset"
    assert all(
        part in told.text for part in ("+40 deg", "+10 deg", "add +0.524 rad to hw.dclaw.object_offset")
    )


def test_a_growing_difference_is_told_as_slipping() -> None:
    witness = EncoderWitness(CONFIG)
    assert not hear(witness, 1.0, 1.0, times=10)
    (told,) = hear(witness, 1.3, 1.1, times=50)
    assert told.name == "valve-slips"
    assert told.apart == pytest.approx(0.2)
    assert "The valve slips on its horn" in told.text


def test_an_offset_that_grows_is_told_by_both_names() -> None:
    witness = EncoderWitness(CONFIG)
    told = [*hear(witness, 0.5, 0.0, 20), *hear(witness, 0.8, 0.0, 20), *hear(witness, 1.2, 0.0, 20)]
    assert [one.name for one in told] == ["valve-offset", "valve-slips"]


def test_less_than_the_limit_is_no_difference_and_two_wrong_looks_of_five_are_none() -> None:
    witness = EncoderWitness(CONFIG)
    for _ in range(20):
        assert not hear(witness, 0.09, 0.0, 3)
        assert not hear(witness, 2.0, 0.0, 2)


def test_angles_meet_across_the_turn() -> None:
    witness = EncoderWitness(CONFIG)
    assert not hear(witness, math.pi - 0.02, -math.pi + 0.02, 10)
    assert not hear(witness, -math.pi + 0.02, 3 * math.pi - 0.02, 10)


def test_a_moving_valve_is_compared_at_the_time_of_the_picture_and_a_fast_one_not_at_all() -> None:
    witness = EncoderWitness(CONFIG)
    slow = reading(1.0, velocity=0.4, time=10.0)
    for _ in range(10):  # the picture is 0.3 s older: the valve stood at 0.88 then
        assert witness.hears(9.7, slow, Sighting(0.88 - 0.09, 0.01, 1.0)) is None
        assert witness.hears(9.7, reading(1.0, velocity=3.0, time=10.0), Sighting(2.5, 0.01, 1.0)) is None


def test_settings_that_could_only_cry_wolf_are_refused() -> None:
    with pytest.raises(ValidationError):
        ValveCheckConfig(limit=0.03)


# --- on rigs


def checked(**changes: Any) -> Rig:
    check = {"mode": "on", "every": 2, **changes}
    return build(RigConfig.model_validate({"kind": "sim", "valve_check": check}))


@pytest.fixture
def rig() -> Iterator[Rig]:
    with checked() as rig:
        yield rig


def environment(rig: Rig, horizon: int = 12) -> RobotEnv:
    goal, start = AtStart(), AngleRange(low=-math.pi, high=math.pi)
    return RobotEnv(rig, make_task(ValveConfig(goal=goal, start=start, horizon=horizon)), seed=5)


def episodes(env: RobotEnv, count: int, spread: float = 0.0) -> list[RigEvent]:
    """What the rig told in so many episodes of fingers that fidget about their home."""
    rng = np.random.default_rng(3)
    for _ in range(count):
        env.reset()
        truncated = False
        while not truncated:
            action = np.clip(env.task.hold + rng.uniform(-spread, spread, 9), -1, 1).astype(np.float32)
            *_, truncated, info = env.step(action)
            assert "fault" not in info
    return [event for event in env.rig.events.drain() if event.name in NAMES]


def plant_of(rig: Rig) -> SimPlant:
    assert isinstance(rig.clock, SimPlant)
    return rig.clock


def test_a_slipping_valve_is_told_once_and_the_episodes_go_on(rig: Rig) -> None:
    env = environment(rig)
    assert not episodes(env, 1)
    plant_of(rig).inject(FaultSchedule([FaultConfig(kind="slipping-valve", value=0.3)]))
    (event,) = episodes(env, 4)
    assert event.name == "valve-slips"
    assert "fasten the horn's screws" in event.text


def test_a_valve_that_had_slipped_before_is_told_as_an_offset(rig: Rig) -> None:
    env, plant = environment(rig), plant_of(rig)
    plant.inject(FaultSchedule([FaultConfig(kind="slipping-valve", value=0.5)]))
    env.reset()
    plant.heal()
    apart = math.remainder(plant.truth["valve"] - float(rig.robot.read().object.position[0]), math.tau)
    assert abs(apart) > 0.2, "nothing has slipped: choose another seed"
    (event,) = episodes(env, 2)
    assert event.name == "valve-offset"
    (told,) = re.findall(r"([+-]\d+) deg apart", event.text)
    assert float(told) == pytest.approx(math.degrees(apart), abs=2.0)


def test_a_sound_valve_is_never_suspected_while_fingers_turn_it() -> None:
    config = {"kind": "sim", "sim": {"randomise": "sim2real"}, "valve_check": {"mode": "on", "every": 2}}
    with build(RigConfig.model_validate(config)) as rig:
        assert not episodes(environment(rig, horizon=30), 6, spread=1.0)
        assert isinstance(rig.check, ValveCheck)
        assert rig.check.looks > 80
        assert rig.check.sightings > 40


def test_a_pointer_that_is_never_seen_is_told_once(rig: Rig) -> None:
    plant, told = plant_of(rig), []
    check = ValveCheck(
        ValveCheckConfig(every=1), Colourless(plant), (128, 128), 0.1, lambda *w: told.append(w)
    )
    for _ in range(3 * UNSEEN):
        check(rig.snapshot_without_images())
    ((name, text),) = told
    assert name == "valve-unseen"
    assert "no red pointer shows" in text


class Colourless:
    """A camera that shows grey values only."""

    def __init__(self, plant: SimPlant) -> None:
        self.projection_at = plant.projection_at
        self._frame = plant.view((128, 128), 0.1)

    def view(self, size: tuple[int, int], max_age: float) -> Frame:
        grey = self._frame.image.mean(-1, keepdims=True).astype(np.uint8)
        return replace(self._frame, image=np.repeat(grey, 3, axis=-1))


def test_in_simulation_nobody_looks_unless_asked_to() -> None:
    for settings, looks in (({}, False), ({"mode": "on"}, True), ({"mode": "off"}, False)):
        rig = build(RigConfig.model_validate({"kind": "sim", "valve_check": settings}))
        assert isinstance(rig.check, ValveCheck) == looks
        rig.close()
    assert not isinstance(build(RigConfig(), cameras=False).check, ValveCheck)


def test_looking_changes_nothing_that_the_agent_sees() -> None:
    images = []
    for mode in ("on", "off"):
        config = {"sim": {"randomise": "sim2real"}, "valve_check": {"mode": mode, "every": 1}}
        with build(RigConfig.model_validate({"kind": "sim", **config})) as rig:
            env = environment(rig, horizon=3)
            seen = [env.reset()[0]["image"]]
            seen += [env.step(env.task.hold)[0]["image"] for _ in range(3)]
            images.append(np.stack(seen))
    assert (images[0] == images[1]).all()


def test_a_camera_without_a_fresh_picture_does_not_end_what_is_checked() -> None:
    class Blind:
        def view(self, size: tuple[int, int], max_age: float) -> Any:
            raise CameraFault("the cable is out")

        def projection_at(self, size: tuple[int, int]) -> Any:
            raise AssertionError("there is no picture to look at")

    with build(RigConfig()) as rig:
        check = ValveCheck(ValveCheckConfig(every=1), Blind(), (128, 128), 0.1, lambda name, text: None)
        check(rig.snapshot(0.1))


def test_the_picture_is_as_large_as_two_degrees_need_and_a_small_one_is_refused() -> None:
    plant = SimPlant(RigConfig().sim)
    assert sharp_enough(plant, (64, 64), (640, 480)) == (128, 128)
    assert sharp_enough(plant, (128, 128), (640, 480)) == (128, 128)
    with pytest.raises(CameraFault, match="100x100 px are not 3 mm"):
        sharp_enough(plant, (64, 64), (100, 100))


ASIDE = {"camera": {"lookat": [0.1, 0.0, 0.09]}}  # of hw.sim: the picture's edge cuts the valve


def test_a_camera_that_cuts_the_valve_checks_nothing_and_is_an_error_where_a_check_is_wanted() -> None:
    emulated = {"kind": "emulated", "sim": ASIDE, "emulator": {"wire": False}, "dclaw": {"watchdog": 2.0}}
    rig = build(RigConfig.model_validate(emulated))
    rig.close()
    assert not isinstance(rig.check, ValveCheck)
    with pytest.raises(CameraFault, match="the valve's circle is partly outside"):
        build(RigConfig.model_validate({"sim": ASIDE, "valve_check": {"mode": "on"}}))


def test_a_camera_that_is_moved_until_it_cuts_the_valve_ends_nothing_and_is_told(rig: Rig) -> None:
    plant, told = plant_of(rig), []
    check = ValveCheck(
        ValveCheckConfig(every=1), plant, (128, 128), 0.1, lambda *words: told.append(" ".join(words))
    )
    check(rig.snapshot_without_images())
    plant.vary(Draw({"camera_shift": (0.1, 0.0, 0.0)}))
    for _ in range(UNSEEN):
        check(rig.snapshot_without_images())
    assert len(told) == 1
    assert re.match("valve-unseen .* partly outside", told[0])


def test_an_emulated_valve_is_seen_through_its_camera_as_its_encoder_has_it() -> None:
    config = {"kind": "emulated", "emulator": {"wire": False, "linger": 0.5}, "dclaw": {"watchdog": 2.0}}
    rig = build(RigConfig.model_validate(config))
    try:
        assert isinstance(rig.check, ValveCheck)
        camera: Any = rig.cameras[CAMERA]
        found = ValveEye(camera.projection_at((128, 128)), (128, 128)).look(
            camera.view((128, 128), 5.0).image
        )
        assert isinstance(found, Sighting)
        assert found.angle == pytest.approx(float(rig.robot.read().object.position[0]), abs=math.radians(2))
        assert found.angle == pytest.approx(0.0, abs=0.1), RESET_POSE
    finally:
        rig.close()
