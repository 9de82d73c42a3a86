"""The joints' calibration at the bench: a person at a terminal, servos on a bus, the procedure in between."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

import numpy as np
from pydantic import ValidationError
from rich.console import Console

from calibration.joints import POSE, Look, Procedure
from calibration.joints_report import calibrated, settings, table
from calibration.publishing import publish_settings
from calibration.terminal import Terminal
from robot import registers as reg
from robot.bus import SerialBus
from robot.calibrated import CalibratedServo, mismatches, roll
from robot.clock import SystemClock
from robot.collision import FingerClearance
from robot.dynamixel import DynamixelRobot
from robot.registers import servo_name
from robot.rig import RigConfig, emulate
from robot.settings import DynamixelConfig, ServoSettings
from robot.types import Bus, BusFault, Clock, Fault, Floats

PERIOD = 0.05  # s between two looks
PAUSE = 0.5  # s between two attempts to reach servos that do not answer
SLOW = 0.5  # rad/s at which the robot moves to be verified
GENTLE = 0.5  # A with which it then presses at most
STEP = 0.1  # s between its commands
SETTLE = 1.0  # s until a joint that has arrived is at rest
JOINTS = 9  # of a whole D'Claw
AGREED_WITHIN = 60.0  # s for which it stands there for somebody to look at


class JointsError(Exception):
    """The joints cannot be calibrated here; says why and what to type."""


@dataclass
class Bench:
    """The joints' servos, as the procedure needs them."""

    bus: Bus
    config: DynamixelConfig
    clock: Clock
    servos: tuple[CalibratedServo, ...] = field(init=False)
    stands: bool = False  # under torque
    _standing: ExitStack = field(default_factory=ExitStack)  # of the robot that stands

    def __post_init__(self) -> None:
        """Finds out who is there. Raises BusFault."""
        everybody = ServoSettings(self.bus, self.config)
        everybody.identify()
        self.bus.sync_write(reg.STATUS_RETURN_LEVEL, dict.fromkeys(self.config.ids, 2))
        self.servos = roll(self.bus, self.config.joint_ids)
        record = self.config.calibration
        if record and mismatches(record, self.bus):  # of another robot: what it knows of stops is of no use
            self.config = self.config.model_copy(update={"calibration": None})

    def look(self) -> Look:
        """Where the joints are. Raises BusFault."""
        reading = self.bus.sync_read((reg.PRESENT_POSITION,), self.config.joint_ids)
        return Look(reading.time, reading.values[:, 0])

    def limp(self) -> None:
        """Torque off everywhere, and the encoders' direction as runs have it. Raises BusFault."""
        table = ServoSettings(self.bus, self.config).table
        table.write(reg.TORQUE_ENABLE, dict.fromkeys(self.config.ids, 0))
        table.write_eeprom(reg.DRIVE_MODE, dict.fromkeys(self.config.joint_ids, 0))

    def require_the_same(self) -> None:
        """To be called when servos answer again. Raises JointsError when they are others, BusFault."""
        now = roll(self.bus, self.config.joint_ids)
        for before, servo in zip(self.servos, now, strict=True):
            if before != servo:
                raise JointsError(
                    f"{servo_name(servo.id)} is another one than before: begin anew. Nothing was written."
                )

    def drive(self, config: DynamixelConfig, stopped: Callable[[], bool]) -> Floats:
        """Moves to POSE slowly and stays there; how far each joint missed it, (J,) deg. Raises Fault.

        config: with the calibration that is tried. Until `relax` torque stays on.
        """
        if len(config.joint_ids) != JOINTS:
            raise JointsError(
                f"A robot of {len(config.joint_ids)} joints is not moved: what keeps fingers apart knows all "
                f"{JOINTS}. Put each finger straight once more instead."
            )
        gentle = {"profile_velocity": SLOW, "goal_current": min(config.goal_current or GENTLE, GENTLE)}
        config = config.model_copy(update=gentle)
        robot = DynamixelRobot(self.bus, config, self.clock, clearance=FingerClearance())
        self._standing.enter_context(robot)
        self.stands = True
        start = robot.read().joints.position
        goal = np.resize(np.array(POSE), len(start))
        steps = int(np.ceil(max(1.0, np.abs(goal - start).max() / SLOW) / STEP))
        for share in [*np.linspace(0, 1, steps + 1)[1:], *[1.0] * round(SETTLE / STEP)]:
            if stopped():
                raise JointsError("Stopped: the robot is limp again.")
            robot.command(start + share * (goal - start), STEP)
            self.clock.sleep_until(self.clock.now() + STEP)
            position = robot.read().joints.position
        return np.rad2deg(position - goal)

    def relax(self) -> None:
        """Torque off, if it was on, whoever interrupts. Never raises a BusFault."""
        self.stands = False
        self._standing.close()


@dataclass
class Session:
    """Leads a person through the procedure, at a terminal."""

    bench: Bench
    terminal: Terminal
    console: Console
    name: str  # of --hw
    path: Path  # where the settings go
    when: str  # date and time
    written: bool = False
    _lost: bool = False
    _over: bool = False
    _agree_by: float = 0.0
    _said: str = ""

    def __post_init__(self) -> None:
        self.procedure = Procedure(self.bench.config)

    def run(self) -> bool:
        """True once the settings are written, False when the person quits; torque is off in any case.

        Raises JointsError, Fault, KeyboardInterrupt.
        """
        with self.terminal:
            try:
                while not self._over:
                    self._look()
                    self._listen()
                    self._show()
                    self._wait()
            finally:  # before the terminal, which may hang
                self.bench.relax()
        return self.written

    def _listen(self) -> None:
        """Keys that were pressed; none counts that was typed before a motion was announced, or seen."""
        for key in self.terminal.pressed():
            self.procedure.press(key)
            self._obey()
            if self.procedure.step.kind in ("confirm", "agree"):
                break

    def _look(self) -> None:
        """A reading, or that there is none: who comes back is limp and the same."""
        try:
            if self._lost:
                self.bench.require_the_same()
                if self.procedure.step.kind != "begin":  # until then nobody holds what may fall
                    self.bench.limp()
                self._let_go("It was let go when the servos did not answer.")
            self.procedure.see(self.bench.look())
            self._lost = False
        except BusFault as fault:
            self._lost = True
            self.procedure.lose_sight(str(fault))

    def _obey(self) -> None:
        """What the procedure makes of a key is shown and done before the next one counts."""
        for order in self.procedure.orders():
            self._say()
            match order:
                case "limp":
                    self._limp()
                case "move":
                    self._move()
                case "relax":
                    self._relax()
                case "write":
                    self._write()
                case "end":
                    self._over = True

    def _relax(self) -> None:
        """Torque off, and not only sent: hands come next."""
        self.bench.relax()
        self._limp()

    def _limp(self) -> None:
        try:
            self.bench.limp()
        except BusFault as fault:
            self._lost = True
            self.procedure.lose_sight(str(fault))

    def _move(self) -> None:
        self.terminal.show([("moving: a key stops it", "bold red")])
        try:
            missed = self.bench.drive(self._found(), lambda: bool(self.terminal.pressed()))
        except (Fault, JointsError, ValidationError) as error:
            self._relax()
            self.procedure.failed(_told(error))
            self._obey()
            return
        self._agree_by = self.bench.clock.now() + AGREED_WITHIN
        self.procedure.moved(missed)
        self._obey()

    def _let_go(self, why: str) -> None:
        """Ends standing under torque, if it does."""
        if self.bench.stands:
            self.procedure.failed(why)
            self._obey()

    def _write(self) -> None:
        """A disk that is full loses nothing: it can be tried again."""
        try:
            found = self._found()
            self.console.print(table(self.bench.config, found, self.procedure.residuals))
            publish_settings(settings(found, self.name), self.name, self.path, self.console)
        except ValidationError as error:
            self.procedure.failed(_told(error))
        except OSError as error:
            self.console.print(settings(found, self.name), highlight=False, soft_wrap=True, markup=False)
            why = f"{self.path} could not be written: {error.strerror}. Its text is above."
            self.procedure.failed(f"{why} Make room, then Enter tries again.")
        else:
            self.written = self._over = True

    def _found(self) -> DynamixelConfig:
        procedure = self.procedure
        return calibrated(
            self.bench.config, procedure.measured, self.bench.servos, procedure.worst, self.when
        )

    # --- The terminal --------------------------------------------------------------------------------------

    def _say(self) -> None:
        for line in self.procedure.told():
            self.terminal.print(line)

    def _show(self) -> None:
        procedure = self.procedure
        self._say()
        asked = f"[{procedure.place}] {procedure.ask()}"
        if asked != self._said:
            self._said = asked
            self.terminal.print(asked, "bold")
        self.terminal.show([(procedure.live(), ""), (procedure.keys, "dim")])

    def _wait(self) -> None:
        """Until the next look; a robot at which nobody looks does not stand there for ever."""
        clock = self.bench.clock
        if self.bench.stands and clock.now() > self._agree_by:
            self._let_go(f"Nobody answered for {AGREED_WITHIN:g} s: the robot is limp again.")
        clock.sleep_until(clock.now() + (PAUSE if self._lost else PERIOD))


def calibrate_joints(config: RigConfig, name: str, path: Path, when: str, keyboard: TextIO | None) -> bool:
    """Leads a person through the calibration of all joints; True once the settings are written.

    name: of --hw; path: where the settings go; when: date and time; keyboard: where keys come from. Raises
    NoTerminal, JointsError, Fault.
    """
    console, clock = Console(highlight=False), SystemClock()
    terminal = Terminal(keyboard, console)
    with ExitStack() as resources:
        if config.kind == "emulated":
            config = emulate(config, resources, cameras=False)
            url = str(config.camera.source).replace("/cam.mjpg", "/hands")
            console.print(f"no hands here: post angles (rad) by servo id to {url}", soft_wrap=True)
        bus = SerialBus(config.bus, clock)
        resources.callback(bus.close)
        return Session(Bench(bus, config.dclaw, clock), terminal, console, name, path, when).run()


def _told(error: Exception) -> str:
    if isinstance(error, ValidationError):
        return "; ".join(str(problem["msg"]).removeprefix("Value error, ") for problem in error.errors())
    return str(error)
