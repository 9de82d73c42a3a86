"""Which servos a calibration of the joints is of, and whether these still are they."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from pydantic import NonNegativeFloat

from robot import registers as reg
from robot.registers import servo_name
from robot.types import Bus, Config, NotCalibrated, ServoId

# What is compared, in this order. X servos have no serial number: id, model and firmware must do.
IDENTITY = (reg.MODEL_NUMBER, reg.FIRMWARE_VERSION, reg.HOMING_OFFSET, reg.PRESENT_POSITION)
# ticks, 5 deg: a stop yields to a hand, and a hand that measured it did not press as hard as others do.
SLACK = 57
CALIBRATE = "`run_robot.py calibrate joints --hw ...` calibrates these"


class CalibratedServo(Config):
    """The servo of one joint as it was when the joint was calibrated."""

    id: ServoId
    model: int
    firmware: int
    homing_offset: int = 0  # ticks, register 20: it shifts what the servo shows
    range: tuple[int, int] | None = None  # ticks between the mechanical stops; None: they were not measured


class JointsRecord(Config):
    """Which calibration offsets, signs and limits are of; it stands in each episode's log with them."""

    date: str
    servos: tuple[CalibratedServo, ...]  # in joint order
    error: NonNegativeFloat  # deg, the largest residual when it was verified
    sha256: str  # of zeros, signs and servos, as `fingerprint` has it


class Mismatch(NamedTuple):
    """In what a servo is not the one that was calibrated, in words."""

    servo: int
    what: str
    calibrated: str
    found: str


def fingerprint(zeros: Sequence[int], signs: Sequence[int], servos: Sequence[CalibratedServo]) -> str:
    """The SHA-256 of a calibration: the same for the same zeros (ticks), signs and servos."""
    measured = [[*zeros], [*signs], [servo.model_dump(mode="json") for servo in servos]]
    return hashlib.sha256(json.dumps(measured, sort_keys=True).encode()).hexdigest()


def roll(bus: Bus, ids: Sequence[int]) -> tuple[CalibratedServo, ...]:
    """The servos of joints as they are now, without ranges. Raises BusFault."""
    rows = bus.sync_read(IDENTITY, ids).values.tolist()
    return tuple(
        CalibratedServo(id=id, model=model, firmware=firmware, homing_offset=offset)
        for id, (model, firmware, offset, _) in zip(ids, rows, strict=True)
    )


def mismatches(record: JointsRecord, bus: Bus) -> list[Mismatch]:
    """In what the servos on the bus differ from those that were calibrated. Raises BusFault."""
    rows = bus.sync_read(IDENTITY, [servo.id for servo in record.servos]).values.tolist()
    return [
        difference
        for servo, row in zip(record.servos, rows, strict=True)
        for difference in _differences(servo, *row)
    ]


def require_calibrated(record: JointsRecord, bus: Bus) -> None:
    """Refuses servos that are not those of the calibration, each difference told. Raises NotCalibrated."""
    different = mismatches(record, bus)
    if not different:
        return
    rows = [("servo", "", "calibrated", "found")]
    rows += [(servo_name(servo), what, wanted, found) for servo, what, wanted, found in different]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    table = ["  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)) for row in rows]
    raise NotCalibrated(
        f"These are not the servos of the joints' calibration of {record.date}, or something was changed:\n"
        + "\n".join(f"  {line.rstrip()}" for line in table)
        + f"\nNothing was moved. {CALIBRATE}; or give the --config file of this robot's own calibration."
    )


def _differences(
    servo: CalibratedServo, model: int, firmware: int, homing: int, position: int
) -> Iterator[Mismatch]:
    if model != servo.model:
        yield Mismatch(servo.id, "model", _model(servo.model), _model(model))
    if firmware != servo.firmware:
        yield Mismatch(servo.id, "firmware", str(servo.firmware), str(firmware))
    if homing != servo.homing_offset:
        yield Mismatch(servo.id, "homing offset", f"{servo.homing_offset} ticks", f"{homing} ticks")
    if servo.range and not servo.range[0] - SLACK <= position <= servo.range[1] + SLACK:
        low, high = servo.range
        yield Mismatch(servo.id, "position", f"{low} to {high} ticks", f"{position} ticks")


def _model(number: int) -> str:
    return reg.MODEL_NAMES.get(number, f"model {number}")
