"""What a calibration of the joints found, for a person and for the next program: table and settings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.table import Table

from calibration.joints import Measured, known, limits
from robot.calibrated import CalibratedServo, JointsRecord, fingerprint
from robot.registers import MODEL_NAMES, RAD_PER_TICK, servo_name
from robot.settings import DynamixelConfig


def calibrated(
    config: DynamixelConfig,
    measured: Measured,
    servos: Sequence[CalibratedServo],
    error: float,
    when: str,
) -> DynamixelConfig:
    """The configuration with what was measured in it, and the record of it.

    error: deg, the largest residual; when: date and time. Raises ValidationError for joints that cannot be.
    """
    ranged = tuple(
        servo.model_copy(update={"range": stops}) for servo, stops in zip(servos, measured.stops, strict=True)
    )
    sha256 = fingerprint(measured.zeros, measured.signs, ranged)
    lower, upper = zip(*limits(config, measured), strict=True)
    found = {
        "offsets": tuple(
            -sign * zero * RAD_PER_TICK for zero, sign in zip(measured.zeros, measured.signs, strict=True)
        ),
        "signs": measured.signs,
        "safety": {**config.safety.model_dump(), "lower": lower, "upper": upper},
        "calibration": JointsRecord(date=when, servos=ranged, error=round(error, 2), sha256=sha256),
    }
    return DynamixelConfig.model_validate({**config.model_dump(), **found})


def table(before: DynamixelConfig, after: DynamixelConfig, residuals: dict[int, float]) -> Table:
    """Each joint with its numbers, and what they were."""
    rows = Table("servo", "straight at", "was", "sign", "was", "stops, deg", "residual, deg")
    old, new = known(before), known(after)
    for row, servo in enumerate(after.joint_ids):
        ends = new.stop_degrees(row)
        rows.add_row(
            servo_name(servo),
            *(f"{measured.zeros[row]}" for measured in (new, old)),
            *(f"{measured.signs[row]:+d}" for measured in (new, old)),
            f"{ends[0]:+.0f} to {ends[1]:+.0f}" if ends else "not measured",
            f"{residuals[row]:+.1f}" if row in residuals else "-",
        )
    return rows


def settings(config: DynamixelConfig, name: str) -> str:
    """A file for --config: zeros, directions and limits of the joints, and which servos they are of."""
    return "\n".join(_lines(config, name)) + "\n"


def _lines(config: DynamixelConfig, name: str) -> Iterator[str]:
    record, measured = config.calibration, known(config)
    assert record is not None
    yield f"# The joints of --hw {name}, calibrated on {record.date}."
    yield f"# Verified: straight again, or sent to a pose, all joints were within {record.error:g} deg."
    yield "hw:"
    yield "  dclaw:"
    yield f"    joint_ids: {_listed(config.joint_ids)}"
    yield f"    # angle = sign * servo + offset, in rad; straight is at {_listed(measured.zeros)} ticks"
    yield f"    offsets: {_listed([f'{offset:.7f}' for offset in config.offsets])}"
    yield f"    signs: {_listed(config.signs)}"
    yield "    safety:  # narrower than it was only where a stop is"
    yield f"      lower: {_listed([f'{angle:.4f}' for angle in config.safety.lower])}  # rad"
    yield f"      upper: {_listed([f'{angle:.4f}' for angle in config.safety.upper])}  # rad"
    yield "    calibration:  # of these servos; others are refused"
    yield f"      date: '{record.date}'"
    yield f"      error: {record.error:g}  # deg, the largest residual"
    yield "      servos:  # range: ticks between the stops; homing_offset: of register 20"
    for servo in record.servos:
        span = _listed(servo.range) if servo.range else "null"
        model = MODEL_NAMES.get(servo.model, "unknown")
        yield (
            f"        - {{id: {servo.id}, model: {servo.model}, firmware: {servo.firmware}, "
            f"homing_offset: {servo.homing_offset}, range: {span}}}  # {model}"
        )
    yield f"      sha256: '{record.sha256}'  # of zeros, signs and servos"


def _listed(values: Sequence[object]) -> str:
    return f"[{', '.join(map(str, values))}]"
