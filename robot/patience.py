"""How long a run waits for its rig to be well again, and how it notices: cooled, back, freed by hand."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field

from robot.events import Level
from robot.registers import CURABLE, servo_name
from robot.types import (
    BusFault,
    CameraFault,
    Config,
    Fault,
    FilmOver,
    Floats,
    MotionFault,
    RobotState,
    ServoAlert,
    ServoHot,
    TorqueLost,
    WatchdogTripped,
)

if TYPE_CHECKING:
    from robot.rig import Rig

NOISE = 0.02  # rad between two looks, 13 ticks: what moves less is at rest, or creeps under its own weight


class PatienceConfig(Config):
    """How a run waits for a rig that is not well, its robot relaxed. All times are s of the rig's clock."""

    total: float = Field(0.0, ge=0)  # from a fault to the next reset that succeeds; 0: faults end the run
    look: float = Field(1.0, gt=0)  # between the first looks whether it is well again, ...
    look_at_most: float = Field(5.0, gt=0)  # ... and between later ones
    tell: float = Field(60.0, gt=0)  # between two lines that say what is still missing
    touch: float = Field(0.1, gt=NOISE)  # rad from look to look; nothing but a hand moves limp joints so fast
    still: float = Field(5.0, gt=0)  # for which nothing moves once the hand is gone
    # Until a blocked robot tries again although nobody came; doubles with each try, because each presses
    # against what blocks it.
    retry: float = Field(60.0, gt=0)
    retry_at_most: float = Field(600.0, gt=0)
    # Restarts and lost torque are overcome at once, but only so many times within a window: the driver
    # restarts a servo 3 times in 300 s and must find room for the next one.
    restarts: int = Field(3, ge=1)
    window: float = Field(305.0, gt=0)


class Hand:
    """Feels by the encoders of a relaxed robot whether somebody has freed it."""

    def __init__(self, touch: float, still: float) -> None:
        """touch: rad between two readings that only a hand moves; still: s of rest that mean it is gone."""
        self._touch, self._still = touch, still
        self._last: Floats | None = None  # rad, joints and object
        self._since = 0.0  # s, when something last moved
        self._rested = False  # before that, fingers sink by themselves
        self._touched = False
        self.gone = False  # whether nothing moves: nobody's fingers are between the robot's

    def freed(self, state: RobotState) -> bool:
        """Whether, by this reading, a hand has moved something and is gone again."""
        pose = np.concatenate([state.joints.position, state.object.position])
        moved = 0.0 if self._last is None else _apart(pose, self._last)
        if self._last is None or moved > NOISE:
            self._since = state.time
        self._touched |= self._rested and moved > self._touch
        self.gone = state.time - self._since >= self._still
        self._rested |= self.gone
        self._last = pose
        return self.gone and self._touched

    def lose_sight(self) -> None:
        """To be told of a reading that failed: who knows what moved meanwhile."""
        self._last, self.gone = None, False


class Patience:
    """Waits with a relaxed robot until another attempt is worth it, and says what it waits for."""

    def __init__(self, rig: Rig, config: PatienceConfig) -> None:
        self._rig, self._config = rig, config
        self._limp = False  # whether all servos are known to have no torque
        self._began: float | None = None  # s, when the present trouble began
        self._attempts = 0  # since then
        self._retry = config.retry
        self._restarts: deque[float] = deque(maxlen=config.restarts)

    @property
    def lasts(self) -> bool:
        """Whether it waits at all."""
        return self._config.total > 0

    def await_fixed(self, fault: Fault) -> None:
        """Relaxes the robot and returns when another attempt is worth it.

        Raises the fault when waiting is hopeless or has lasted `total` since the last `relieved`.
        """
        self._rig.robot.relax()
        self._limp = False
        if not self.lasts or _hopeless(fault):
            raise fault
        self._began = self._rig.clock.now() if self._began is None else self._began
        self._attempts += 1
        match fault:
            case ServoHot():
                self._until(fault, "cooling", "is cool", self._warm)
            case MotionFault():
                self._until_freed(fault)
            case ServoAlert() | TorqueLost() | WatchdogTripped():
                self._seldom(fault)
            case CameraFault():
                self._until_back(fault, self._unseen)
            case _:
                self._until_back(fault, self._unheard)

    def relieved(self) -> None:
        """To be told that an attempt succeeded: from now on waiting begins anew."""
        if self._began is not None:
            self._emit("recovered", f"well again after {_span(self._rig.clock.now() - self._began)}", "info")
        self._began, self._attempts, self._retry = None, 0, self._config.retry

    # --- Ways to wait --------------------------------------------------------------------------------------

    def _until(self, fault: Fault, name: str, well: str, missing: Callable[[], str]) -> bool:
        """Looks, ever more seldom, until nothing is missing; returns whether something was."""
        config, pause, told = self._config, self._config.look, -math.inf
        while words := missing():
            now = self._rig.clock.now()
            if told == -math.inf:
                told = now
                pose = "The robot is relaxed" if self._limp else "What cannot be reached stands stiff"
                self._emit(name, f"{fault} {pose}; the run goes on by itself when it {well}.")
            elif now - told >= config.tell:
                told = now
                self._emit("waiting", words, "info")
            self._sleep(fault, pause)
            pause = min(2 * pause, config.look_at_most)
        return told > -math.inf

    def _until_back(self, fault: Fault, missing: Callable[[], str]) -> None:
        """As `_until`; an attempt that failed although nothing was missing is repeated ever more seldom."""
        if self._attempts > 1:
            pause = self._config.look * 2 ** min(self._attempts - 2, 30)
            self._sleep(fault, min(pause, self._config.retry))
        paused = self._until(fault, "pause", "is back", missing)
        self._emit("retry", "back: trying again" if paused else f"{fault} Trying again.", "info")

    def _until_freed(self, fault: MotionFault) -> None:
        """Until a hand has moved something and is gone again; or, without one, for ever longer."""
        config, clock = self._config, self._rig.clock
        due, hand = clock.now() + self._retry, Hand(config.touch, config.still)
        self._emit(
            "pause",
            f"{fault} The run goes on {config.still:g} s after something was moved by hand; if nobody comes, "
            f"it tries again in {_span(self._retry)}. Ctrl-C ends it.",
        )
        self._retry = min(2 * self._retry, config.retry_at_most)
        while True:
            freed = self._felt(hand)
            if freed:
                self._retry = config.retry
                return self._emit("retry", "somebody moved something and let go: trying again", "info")
            if hand.gone and clock.now() >= due:
                return self._emit("retry", "nobody came: trying again", "info")
            self._sleep(fault, config.look)

    def _felt(self, hand: Hand) -> bool:
        try:
            return hand.freed(self._look())
        except BusFault:
            hand.lose_sight()
            return False

    def _seldom(self, fault: Fault) -> None:
        """At once, as long as it does not happen too often."""
        config, clock = self._config, self._rig.clock
        full = len(self._restarts) == config.restarts
        free = self._restarts[0] + config.window if full else -math.inf
        if clock.now() < free:
            often = f"That was {config.restarts} times in {_span(config.window)}"
            wait = f"the robot is relaxed, the run goes on by itself in {_span(free - clock.now())}"
            self._emit("pause", f"{fault} {often}: {wait}.")
            while clock.now() < free:
                self._sleep(fault, free - clock.now())
        self._restarts.append(clock.now())
        self._emit("retry", f"{fault} Trying again.", "info")

    # --- What is missing, in words; nothing when all is well -----------------------------------------------

    def _look(self) -> RobotState:
        """A reading. Servos that were out of reach when the robot was relaxed are limp once they are back."""
        robot = self._rig.robot
        try:
            state = robot.read()
        except BusFault:
            robot.relax()
            self._limp = False
            raise
        if not self._limp:
            robot.relax()
            self._limp = True
        return state

    def _warm(self) -> str:
        cool = self._rig.config.dclaw.cool
        try:
            health = self._look().health
        except BusFault as fault:
            return _words(fault)
        assert health is not None, "only servos get hot"
        servo, temperature = health.hottest
        if temperature <= cool:
            return ""
        return f"cooling: {servo_name(servo)} at {temperature:.0f} deg C, goes on at {cool:g}"

    def _unheard(self) -> str:
        try:
            self._look()
        except BusFault as fault:
            return _words(fault)
        return ""

    def _unseen(self) -> str:
        try:
            self._look()
            self._rig.snapshot(self._rig.config.camera.max_age)
        except Fault as fault:
            return _words(fault)
        return ""

    # --- Time and words ------------------------------------------------------------------------------------

    def _sleep(self, fault: Fault, seconds: float) -> None:
        """Raises the fault when patience is at its end."""
        assert self._began is not None
        clock, end = self._rig.clock, self._began + self._config.total
        if clock.now() >= end:
            self._emit("gave-up", f"waited {_span(self._config.total)} in vain: {fault}", "error")
            raise fault
        clock.sleep_until(min(clock.now() + seconds, end))

    def _emit(self, name: str, text: str, level: Level = "warning") -> None:
        self._rig.events.emit(name, text, level)


def _hopeless(fault: Fault) -> bool:
    """Whether no waiting and no restart helps: damage, or a mistake of the program's."""
    if isinstance(fault, ServoAlert):
        return any(bits & ~CURABLE for bits in fault.errors.values())
    return isinstance(fault, FilmOver) or not isinstance(fault, BusFault | CameraFault | MotionFault)


def _apart(one: Floats, other: Floats) -> float:
    """rad by which the joint furthest off is, the short way: a servo that restarts forgets its turns."""
    return float(np.abs((one - other + math.pi) % (2 * math.pi) - math.pi).max())


def _words(fault: Fault) -> str:
    return str(fault) or fault.name


def _span(seconds: float) -> str:
    """A duration as people say it."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
