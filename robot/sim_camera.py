"""The camera of a simulated rig: which moment it shows, from where and through which sensor."""

from __future__ import annotations

from collections import deque
from dataclasses import replace

from robot.randomise import DROPS, Draw
from robot.sim_config import SimConfig
from robot.sim_motors import Physics
from robot.types import Floats, Frame, Image, StaleFrame
from robot.world import Painter

CAPTURE_PERIOD = 0.0325  # s, of a camera that drops frames: 30 Hz in whole steps of 2.5 ms


class SimCamera:
    """Pictures of the present, of a while ago, or of before if frames are dropped; all from one thread."""

    def __init__(self, physics: Physics, config: SimConfig, size: tuple[int, int]) -> None:
        """size: (width, height) px of its frames."""
        self._physics, self._config, self._size = physics, config, size
        self._capture_steps = physics.steps_at(CAPTURE_PERIOD)
        self._history: deque[tuple[int, Floats]] = deque()  # step and positions, oldest = what is seen now
        self._painter: Painter | None = None
        self._sequence = 0
        self.vary(Draw())

    def vary(self, draw: Draw) -> None:
        """Becomes the camera of a draw, as configured where that says nothing."""
        self._delay = self._physics.steps_at(draw.number("frame_delay", self._config.frame_delay))
        self._drops, self._dropping = draw.number("frame_drops", 0.0), draw.luck(DROPS)
        self._pose, self._sensor = draw.pose(self._config.camera), draw.sensor()
        self._other_sensor = draw.sensor()  # the same one, with luck of its own, for `view`
        self._shown: Frame | None = None  # the latest one, of a camera that drops some
        self._repaint = True  # the painter has yet to see the latest draw

    @property
    def lags(self) -> bool:
        """Whether it shows something else than the present, and has to watch every step."""
        return bool(self._delay or self._drops)

    def watch(self) -> None:
        """Keeps the positions that it still has to show, after each step, if it lags."""
        if not self.lags:
            return
        step = self._physics.step
        if not self._drops or (step % self._capture_steps == 0 and self._frame_arrives()):
            self._history.append((step, self._physics.data.qpos.copy()))
        while len(self._history) > 1 and self._history[1][0] <= step - self._delay:
            self._history.popleft()

    def forget(self) -> None:
        """What it shows begins with the present."""
        self._history.clear()
        if self.lags:
            self._history.append((self._physics.step, self._physics.data.qpos.copy()))

    def projection(self, size: tuple[int, int]) -> Floats:
        """(3, 4): base-frame metres to homogeneous pixels of a picture of a size (width, height) px."""
        return self._pose.projection(*size)

    def latest(self, max_age: float) -> Frame:
        """The newest frame. Raises StaleFrame, MissingPart."""
        time, qpos = self._fresh(max_age)
        if not self._drops:
            return self._photograph(time, qpos)
        if self._shown is None or self._shown.time != time:  # otherwise that one is still the newest
            self._shown = self._photograph(time, qpos)
        return replace(self._shown, image=self._shown.image.copy())

    def view(self, size: tuple[int, int], max_age: float) -> Frame:
        """The newest frame in another size; it changes nothing about those to come. Raises as `latest`."""
        time, qpos = self._fresh(max_age)
        image = self._paint(qpos, *size)
        return Frame(time, self._other_sensor.develop(image) if self._other_sensor else image, self._sequence)

    def render(self, width: int, height: int) -> Image:
        """The present, (height, width, 3) uint8 RGB, as no sensor sees it. Raises MissingPart."""
        with self._physics.lock:
            qpos = self._physics.data.qpos.copy()
        return self._paint(qpos, width, height)

    def close(self) -> None:
        """Frees the graphics. Never raises."""
        if self._painter is not None:
            self._painter.close()
            self._painter = None

    def _fresh(self, max_age: float) -> tuple[float, Floats]:
        """When the newest picture was taken, s, and of which joint positions."""
        physics = self._physics
        with physics.lock:
            step, qpos = self._history[0] if self._history else (physics.step, physics.data.qpos.copy())
        time = step * physics.timestep
        if physics.now() - time > max_age + 1e-9:
            raise StaleFrame(
                f"the simulated frame is {physics.now() - time:.3f} s old, at most {max_age:.3f} s are "
                "allowed; lower frame_delay or frame_drops in hw.sim or hw.sim.randomise, or raise the "
                "allowed age"
            )
        return time, qpos

    def _photograph(self, time: float, qpos: Floats) -> Frame:
        """A new frame of joint positions of a time (s), by the camera's sensor."""
        self._sequence += 1
        image = self._paint(qpos, *self._size)
        return Frame(time, self._sensor.develop(image) if self._sensor else image, self._sequence)

    def _paint(self, qpos: Floats, width: int, height: int) -> Image:
        if self._painter is None:
            config = self._config
            self._painter = Painter(self._physics.model, self._pose, config.geoms, config.shadows)
        elif self._repaint:
            self._painter.aim(self._pose)
            self._painter.look_again()
        self._repaint = False
        return self._painter.draw(qpos, width, height)

    def _frame_arrives(self) -> bool:
        return bool(self._dropping.random() >= self._drops)
