"""Promises of a calibration's record: another robot, or one that was changed, is refused before it moves."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pydantic import ValidationError

from robot import doctor
from robot import registers as reg
from robot.calibrated import CalibratedServo, JointsRecord, fingerprint, roll
from robot.doctor import Options
from robot.dynamixel import DynamixelRobot
from robot.emulator import Emulator, EmulatorConfig
from robot.motors import Range
from robot.rig import RigConfig
from robot.settings import DynamixelConfig, zero_ticks
from robot.sim import SimConfig, SimPlant
from robot.types import NotCalibrated

IDS = DynamixelConfig().joint_ids
STOPS = (300, 3400)  # ticks
RANGES = dict.fromkeys(IDS, STOPS)


@pytest.fixture
def plant() -> Iterator[SimPlant]:
    plant = SimPlant(SimConfig())
    yield plant
    plant.close()


def calibrated(plant: SimPlant, **changes: object) -> DynamixelConfig:
    """The configuration of a robot whose joints were calibrated as they are."""
    servos = [servo.model_copy(update={"range": RANGES[servo.id]}) for servo in roll(plant, IDS)]
    return with_servos(servos, **changes)


def with_servos(servos: list[CalibratedServo], **changes: object) -> DynamixelConfig:
    config = DynamixelConfig()
    sha256 = fingerprint(zero_ticks(config).tolist(), config.signs, servos)
    record = JointsRecord(date="2026-11-21 23:30", servos=tuple(servos), error=0.4, sha256=sha256)
    return DynamixelConfig.model_validate({"calibration": record, **changes})


def refusal(plant: SimPlant, config: DynamixelConfig) -> str:
    """What an attempt to engage says; and that it has left everything limp and unwritten."""
    before = [plant.read(reg.MAX_POSITION_LIMIT, id) for id in IDS]
    with pytest.raises(NotCalibrated) as caught, DynamixelRobot(plant, config, plant):
        pass
    assert not any(servo.torque for servo in plant.servos.values())
    assert [plant.read(reg.MAX_POSITION_LIMIT, id) for id in IDS] == before
    return str(caught.value)


def test_the_calibrated_robot_engages_and_its_log_says_by_which_calibration(plant: SimPlant) -> None:
    config = calibrated(plant)
    with DynamixelRobot(plant, config, plant) as robot:
        logged = robot.describe()["calibration"]["calibration"]
    assert config.calibration is not None
    assert logged["sha256"] == config.calibration.sha256
    assert logged["servos"][0]["id"] == 10


@pytest.mark.parametrize(
    ("register", "value", "row"),
    [
        (reg.MODEL_NUMBER, 1050, "model XH430-W210 XH430-V210"),
        (reg.FIRMWARE_VERSION, 46, "firmware 45 46"),
        (reg.HOMING_OFFSET, 100, "homing offset 0 ticks 100 ticks"),
    ],
    ids=["model", "firmware", "homing offset"],
)
def test_another_servo_is_refused_with_the_difference(
    register: reg.Register, value: int, row: str, plant: SimPlant
) -> None:
    config = calibrated(plant)
    plant.servos[12].load(register, value)
    plant.refresh()
    text = refusal(plant, config)
    assert "calibration of 2026-11-21 23:30" in text
    assert f"servo 12 (finger 1, distal) {row}" in " ".join(text.split())
    assert "calibrate joints --hw" in text


def test_a_joint_beyond_its_stops_is_refused_one_at_its_stop_is_not(plant: SimPlant) -> None:
    """A horn that has slipped, or a finger of another robot."""
    plant.servos[22].load(reg.HOMING_OFFSET, STOPS[1] - 2048 + 50)  # the stop yields a little to a hand
    plant.teleport([0.0] * 9, 0.0)
    shifted = [
        servo.model_copy(update={"range": STOPS, "homing_offset": plant.read(reg.HOMING_OFFSET, servo.id)})
        for servo in roll(plant, IDS)
    ]
    with DynamixelRobot(plant, with_servos(shifted), plant):
        pass
    plant.teleport([0.0] * 5 + [0.1] + [0.0] * 3, 0.0)
    assert "servo 22 (finger 2, distal) position 300 to 3400 ticks 3515 ticks" in " ".join(
        refusal(plant, with_servos(shifted)).split()
    )


def test_a_joint_whose_stops_were_not_measured_may_be_anywhere(plant: SimPlant) -> None:
    config = with_servos(list(roll(plant, IDS)))
    plant.teleport([1.3] + [0.0] * 8, 0.0)
    with DynamixelRobot(plant, config, plant):
        pass


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"offsets": (0.0,) * 9, "limit_margin": 0}, "limits would be"),
        ({"offsets": (-1.6, -3.1416, -3.1416) * 3}, "offsets and signs are not those of the calibration"),
        ({"joint_ids": (11, 10, 12, 20, 21, 22, 30, 31, 32)}, r"calibration is of servos \(10, 11, 12"),
    ],
)
def test_a_calibration_with_other_numbers_than_its_own_is_refused(
    change: dict[str, object], words: str, plant: SimPlant
) -> None:
    with pytest.raises(ValidationError, match=words):
        calibrated(plant, **change)


def test_rounded_offsets_are_those_of_the_calibration(plant: SimPlant) -> None:
    calibrated(plant, offsets=(-1.5708, -3.1416, -3.1416) * 3)


def test_check_tells_whose_calibration_it_is_and_writes_nothing_into_other_servos() -> None:
    plant = SimPlant(SimConfig())
    config = calibrated(plant)
    with Emulator(EmulatorConfig(wire=False, return_delay_us=0), plant, camera=False) as emulator:
        rig = RigConfig.model_validate(
            {"kind": "real", "bus": {"port": emulator.port, "timeout_ms": 40}, "dclaw": config.model_dump()}
        )
        options = Options(fix=True, reads=5, where=Range(bauds=(57_600,), highest=50))
        plant.servos[12].load(reg.MODEL_NUMBER, 1050)
        results = {result.name: result for result in doctor.inspect(rig, options)}
        assert results["calibration"].status == "FAIL"
        assert results["calibration"].rows == (("model", "12", "XH430-V210", "XH430-W210"),)
        assert results["settings"].detail == "not compared with another robot's"
        plant.servos[12].load(reg.MODEL_NUMBER, 1010)
        results = {result.name: result for result in doctor.inspect(rig, options)}
        assert results["calibration"].detail == "of the joints on 2026-11-21 23:30, of these servos"
    plant.close()
