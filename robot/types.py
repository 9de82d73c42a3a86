"""The records and protocols that every other module speaks. SI units; seconds of `Clock.now()`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from robot.registers import Register, servo_baud

Floats = NDArray[np.float64]
Image = NDArray[np.uint8]


Baud = Annotated[int, AfterValidator(servo_baud)]
ServoId = Annotated[int, Field(ge=0, le=252)]  # above are the broadcast and its like


class Config(BaseModel):
    """A frozen configuration section: unknown keys are errors, and so are numbers that are not finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


@dataclass(frozen=True, slots=True)
class JointState:
    """What a group of servos measured in one bus cycle, each array (J,) in joint order."""

    time: float
    position: Floats  # rad
    velocity: Floats  # rad/s
    current: Floats  # A


@dataclass(frozen=True, slots=True)
class Health:
    """How the servos were in one bus cycle, each array (N,) in the order of `ids`."""

    ids: tuple[int, ...]  # joints first, then the object's servo
    temperature: Floats  # deg C
    voltage: Floats  # V

    @property
    def hottest(self) -> tuple[int, float]:
        """The id of the warmest servo and its temperature, deg C."""
        row = int(self.temperature.argmax())
        return self.ids[row], float(self.temperature[row])


@dataclass(frozen=True, slots=True)
class RobotState:
    """One bus cycle: the robot's joints, the object that it manipulates (the valve, J=1), and the servos."""

    joints: JointState
    object: JointState
    health: Health | None = None  # None: a robot without servos of its own

    @property
    def time(self) -> float:
        """When the cycle was read, s."""
        return self.joints.time


Watch = Callable[[RobotState], bool]  # sees a motion's readings; whether it shall go on


@dataclass(frozen=True, slots=True)
class Frame:
    """One camera image, (H, W, 3) uint8 RGB, with the time of its capture."""

    time: float
    image: Image
    sequence: int


@dataclass(frozen=True, slots=True)
class Applied:
    """What was wished for and what was sent, both (J,) rad, and why they differ."""

    target: Floats
    requested: Floats
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ValveGeometry:
    """Where the valve's pointer points in the robot's base frame; the defaults are D'Claw's valve.

    The base frame has its origin under the valve's axis on the table, z up, angles counter-clockwise from x.
    """

    centre: tuple[float, float, float] = (0.0, 0.0, 0.1021)  # m, on the axis at the height of the arms
    radius: float = 0.094  # m, from the axis to the tips of the arms
    zero_angle: float = 0.0008  # rad, where the pointer points at valve angle 0 (pi/2 - 1.57 in the model)

    def rim(self, angle: float) -> Floats:
        """The point that the pointer's tip touches at a valve angle (rad): (3,) m in the base frame."""
        direction = angle + self.zero_angle
        x, y, z = self.centre
        return np.array([x + self.radius * np.cos(direction), y + self.radius * np.sin(direction), z])


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One tick's knowledge of the world."""

    time: float
    joints: JointState
    object: JointState
    frames: Mapping[str, Frame]
    health: Health | None = None  # None: not measured, as in episodes of earlier versions
    # Control steps since the reset. Goals that move go by it and not by `time`: it is exact in every log, and
    # what an agent thinks before its first step, or a late step, does not carry the goal away.
    step: int = 0


@dataclass(frozen=True, slots=True)
class Reading:
    """The answer to a group read: one row per id, one column per register, in the order asked."""

    time: float
    values: NDArray[np.int64]  # (ids, registers), decoded with sign, in register units
    alerts: NDArray[np.uint8]  # (ids,) Protocol 2.0 status error byte; bit 7 = hardware alert


class MissingPart(Exception):
    """This machine lacks something that the program needs: model files, OpenGL. Says what to install."""


class Fault(Exception):
    """Something on the rig is not as it must be. `name` is the word that logs and summaries use."""

    name = "fault"


class BusFault(Fault):
    """The serial bus or a servo on it did not answer as it must."""

    name = "bus"


class ServoSilent(BusFault):
    """Servos did not answer after all retries: `ids`. The others did: `answered`, with their `reading`."""

    name = "servo-silent"

    def __init__(
        self,
        message: str,
        ids: Sequence[int] = (),
        answered: Sequence[int] = (),
        reading: Reading | None = None,  # of a group read: one row for each of `answered`, as fresh as any
    ) -> None:
        super().__init__(message)
        self.ids, self.answered, self.reading = tuple(ids), tuple(answered), reading


class ServoAlert(BusFault):
    """A servo reports a hardware error: overload, overheating, voltage, encoder or electrical shock."""

    name = "servo-alert"

    def __init__(self, message: str, errors: Mapping[int, int] | None = None) -> None:
        super().__init__(message)
        self.errors = dict(errors or {})  # id -> register 70


class ServoHot(BusFault):
    """A servo is near the temperature at which it would stop by itself: it has to cool down first."""

    name = "servo-hot"


class SupplyFault(BusFault):
    """The supply voltage is outside what the servos allow."""

    name = "supply"


class TorqueLost(BusFault):
    """A servo forgot what it was told: it was restarted, or another program meddled."""

    name = "torque-lost"


class PortLost(BusFault):
    """The serial port vanished or cannot be opened."""

    name = "port-lost"


class WatchdogTripped(BusFault):
    """The servos stopped by themselves because the host was silent for too long."""

    name = "watchdog"


class CameraFault(Fault):
    """The camera cannot be opened or delivers what it must not."""

    name = "camera"


class StaleFrame(CameraFault):
    """The newest frame is older than the caller allows."""

    name = "stale-frame"


class UnfitFrame(CameraFault):
    """The camera sends pictures that show nothing of the scene as it is now."""


class BlackFrame(UnfitFrame):
    """Nothing in the picture is lit."""

    name = "black-frame"


class OverexposedFrame(UnfitFrame):
    """Everything in the picture is white."""

    name = "overexposed-frame"


class FrozenFrame(UnfitFrame):
    """The same picture again, where noise would make each another one."""

    name = "frozen-frame"


class TornFrame(UnfitFrame):
    """The picture was damaged on its way: parts of it are missing."""

    name = "torn-frame"


class FrameSize(UnfitFrame):
    """The picture has another size than crop, lens and projection are for."""

    name = "frame-size"


class FilmOver(CameraFault):
    """The recorded film that stands in for a camera has come to its end."""

    name = "film-over"


class CameraMoved(CameraFault):
    """The camera is not where it was when its reference picture was taken."""

    name = "camera-moved"


class MotionFault(Fault):
    """A motion did not arrive: a finger is blocked, a valve is jammed."""

    name = "motion"


class NotCalibrated(Fault):
    """The servos are not those that were calibrated: angles would be wrong, so nothing may move."""

    name = "not-calibrated"


class Late(Fault):
    """The control loop missed its deadline too often in a row."""

    name = "late"


class InvalidCommand(Fault):
    """A commanded target or action is not finite or has the wrong shape."""

    name = "invalid-command"


class Clock(Protocol):
    """The one source of time: monotonic seconds."""

    def now(self) -> float:
        """The present, s."""
        ...

    def sleep_until(self, time: float) -> None:
        """Returns when `now()` >= time; at once if it already is. In simulation this advances physics."""
        ...


class Bus(Protocol):
    """Register access to a chain of servos."""

    def ping(self, ids: Sequence[int]) -> dict[int, int]:
        """The model number of each id that answers; silent ids are absent."""
        ...

    def read(self, register: Register, servo: int) -> int:
        """One register of one servo, in register units. Raises BusFault."""
        ...

    def write(self, register: Register, servo: int, value: int) -> None:
        """Writes one register and waits for the status. Raises BusFault when refused or unanswered."""
        ...

    def sync_read(self, registers: Sequence[Register], ids: Sequence[int]) -> Reading:
        """The same registers of several servos in one transaction, all fresh.

        Raises ServoSilent with what the others answered.
        """
        ...

    def gather(self, registers: Sequence[Register], ids: Sequence[int]) -> None:
        """Lets later `sync_read`s of exactly these registers of these servos travel as one packet.

        They need not be adjacent: the servos collect them by indirect addresses, which they forget when they
        restart. A bus without packets may do nothing. Raises BusFault.
        """
        ...

    def sync_write(self, register: Register, values: Mapping[int, int]) -> None:
        """One register of several servos in one packet without answers."""
        ...

    def reboot(self, servo: int) -> None:
        """Restarts one servo: torque off, all RAM registers forgotten, silent for about 0.3 s.

        Raises ServoSilent when it does not confirm.
        """
        ...

    def close(self) -> None:
        """Releases the port. Never raises."""
        ...


class Camera(Protocol):
    """A source of frames, cropped and resized to what the agent sees."""

    @property
    def projection(self) -> Floats:
        """(3, 4): base-frame metres (x, y, z, 1) to homogeneous pixels (u, v, w) of the delivered image.

        Whole numbers are pixel centres, as in OpenCV.
        """
        ...

    def latest(self, max_age: float) -> Frame:
        """The newest frame, at most max_age seconds old. Raises StaleFrame."""
        ...

    def close(self) -> None:
        """Stops the capture. Never raises."""
        ...


class Robot(Protocol):
    """Joints that can be read and commanded; entering it makes it ready, leaving it relaxes it."""

    @property
    def joints(self) -> int:
        """J, the number of commanded joints."""
        ...

    def read(self) -> RobotState:
        """A fresh reading of all joints and the object. Raises BusFault; never returns old data."""
        ...

    def command(self, target: Floats, dt: float) -> Applied:
        """The only way to move: target (J,) rad for the next dt seconds, after the safety filter."""
        ...

    def hold(self) -> None:
        """Stays where it is, under torque."""
        ...

    def relax(self) -> None:
        """Torque off everywhere. Safe to call at any time, any number of times."""
        ...

    def engage(self) -> None:
        """Torque on at the present pose, without a lunge."""
        ...

    def drive_object(
        self, angle: float, tolerance: float, timeout: float, watch: Watch | None = None
    ) -> float:
        """Turns the object by its own servo to angle (rad, mod 2 pi); returns the final angle, rad.

        `watch` sees every reading on the way; the object is let go when it says no. The object's torque is
        off again afterwards. Raises MotionFault when it does not arrive.
        """
        ...

    def point(self, angle: float) -> None:
        """Shows an object angle (rad) by the guide servo, where there is one. Raises BusFault."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: object) -> None: ...
