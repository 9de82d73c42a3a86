"""The control step: a task on a rig as a gymnasium environment, the same for sim, emulated and real."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
from gymnasium.error import ResetNeeded
from gymnasium.utils import seeding

from robot.clock import Ticker
from robot.patience import Patience
from robot.types import Applied, Fault, Image, InvalidCommand, JointState, Late, ServoHot, Snapshot
from tasks.task import Action, Observation, Task

if TYPE_CHECKING:
    from robot.rig import Rig

LATE_IN_A_ROW = 3  # one late step is a hiccup; three are a machine that cannot keep up
ACTION_SLACK = 1e-6  # beyond +-1: float32 rounding of a tanh, not a mistake
Info = dict[str, Any]


@dataclass
class _Episode:
    """What lives from reset to the end of an episode."""

    snapshot: Snapshot
    last_action: Action
    observation: Observation
    drawn: Mapping[str, float]  # what is different about the rig in this episode
    step: int = 0
    over: bool = False


def _nothing() -> None:
    pass


class RobotEnv(gymnasium.Env[dict[str, Any], Action]):
    """One control step per `step`: command, absolute deadline, fresh reading, named reward terms.

    The rig is the caller's: enter it before, and close it after or by `release`. A fault ends the episode:
    `truncated` is True, `info["fault"]` names it, the robot is held, and observation and reward of that step
    are not measurements. A reset waits for the rig to be well again as long as the rig's patience lasts, then
    raises the fault, with the robot relaxed.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"]}  # noqa: RUF012 - gymnasium's declaration

    def __init__(
        self,
        rig: Rig,
        task: Task,
        *,
        images: bool = True,
        seed: int | None = None,
        render_mode: str | None = None,
        release: Callable[[], None] = _nothing,
    ) -> None:
        """`release` closes what is to be closed with the environment.

        Raises ValueError when task and robot differ in their joints or the camera is missing.
        """
        if rig.robot.joints != task.action_size:
            raise ValueError(
                f"The task moves {task.action_size} joints, the robot has {rig.robot.joints}: "
                "choose another --task or --hw."
            )
        if images and not rig.cameras:
            raise ValueError("Images are asked for, but the rig was built without a camera.")
        self.rig, self.task, self.images, self.render_mode = rig, task, images, render_mode
        self.action_space = gymnasium.spaces.Box(-1, 1, (task.action_size,), np.float32)
        self.observation_space = gymnasium.spaces.Dict(task.spaces(images=images))
        self.metadata = {**self.metadata, "render_fps": round(1 / task.period)}
        self.ticker = Ticker(rig.clock, task.period)
        self.patience = Patience(rig, rig.config.patience)
        self._release = release
        self._episode: _Episode | None = None
        self._hot: ServoHot | None = None  # what ended the last episode
        if seed is not None:
            self._np_random, self._np_random_seed = seeding.np_random(seed)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, Info]:
        """Draws an episode and moves the robot to its start; info has 'parameters' and the first reading.

        Raises MotionFault, BusFault or CameraFault when patience is at its end, with the robot relaxed.
        """
        if options:
            raise ValueError(f"reset() takes no options, got {sorted(options)}.")
        super().reset(seed=seed)
        self._episode = None
        self._cool_down()
        while self._episode is None:
            try:
                self._episode = self._begun()
            except Fault as fault:
                self.patience.await_fixed(fault)
        self.patience.relieved()
        snapshot, observation = self._episode.snapshot, self._episode.observation
        parameters = {**self.task.parameters, **self._episode.drawn}
        return observation, {"parameters": parameters, **self._facts(snapshot)}

    def step(self, action: Action) -> tuple[Observation, float, bool, bool, Info]:
        """Applies action (A,) in [-1, 1] for one period.

        Raises ResetNeeded after the end of an episode and InvalidCommand for an action that is not finite,
        not (A,) or not within [-1, 1]; nothing moves then.
        """
        episode = self._running()
        action = self._checked(action)
        try:
            applied, overrun = self._act(action, episode)
            snapshot = self._read(episode.step + 1)
            observation = self.task.observe(self.rig.perceived(snapshot), action)
        except Fault as fault:
            return self._broken_off(episode, fault)
        episode.snapshot, episode.last_action, episode.observation = snapshot, action, observation
        episode.step += 1
        return self._outcome(episode, applied, overrun)

    def render(self) -> Image | None:
        """The scene as (H, W, 3) uint8: larger than the agent's image where the rig is simulated."""
        return None if self.render_mode is None else self.rig.picture()

    def relax(self) -> None:
        """Torque off: while there is nothing to do, and after every error."""
        self.rig.robot.relax()

    def timing(self) -> dict[str, float]:
        """How well the steps kept their deadlines; nothing where no real time passes."""
        return self.ticker.statistics() if self.rig.realtime else {}

    def close(self) -> None:
        """Relaxes the robot; the rig stays open unless `release` closes it."""
        self._episode = None
        self.relax()
        self._release()

    def _cool_down(self) -> None:
        """What stopped for its heat has to cool further than to just below where it stopped."""
        hot, self._hot = self._hot, None
        if hot is not None and self.patience.lasts:
            self.patience.await_fixed(hot)

    def _begun(self) -> _Episode:
        """One attempt to get to the start; every attempt draws the same episode."""
        rng, rest = deepcopy(self.np_random), np.zeros(self.task.action_size, np.float32)
        drawn = self.rig.randomise(rng.spawn(1)[0])  # goals are then those of a rig that is not randomised
        self.task.reset(self.rig, rng)
        snapshot = self._read(step=0)
        observation = self.task.observe(self.rig.perceived(snapshot), rest)
        self._np_random = rng
        return _Episode(snapshot, rest, observation, drawn)

    def _running(self) -> _Episode:
        if self._episode is None or self._episode.over:
            raise ResetNeeded("The episode is over or none has begun: call reset() before step().")
        return self._episode

    def _checked(self, action: Action) -> Action:
        action = np.asarray(action, np.float32)
        if action.shape != (self.task.action_size,):
            raise InvalidCommand(f"An action has shape ({self.task.action_size},), got {action.shape}.")
        if not (np.abs(action) <= 1 + ACTION_SLACK).all():  # NaN compares false
            raise InvalidCommand(f"Every action must be finite and within [-1, 1], got {action.tolist()}.")
        return action.clip(-1, 1)

    def _act(self, action: Action, episode: _Episode) -> tuple[Applied, float]:
        if episode.step == 0:  # what the agent did between reset and its first action is not a late step
            self.ticker.start()
        target = self.task.target(action, episode.snapshot.joints)
        applied = self.rig.robot.command(target, self.task.period)
        overrun = self.ticker.wait()
        if self.ticker.late_in_a_row >= LATE_IN_A_ROW:
            raise Late(
                f"{LATE_IN_A_ROW} control steps in a row missed their deadline, the last by "
                f"{overrun * 1e3:.0f} ms of {self.task.period * 1e3:.0f} ms. Free the CPU."
            )
        return applied, overrun

    def _read(self, step: int) -> Snapshot:
        if self.images:  # a frame of before the last command shows nothing of what it did
            snapshot = self.rig.snapshot(min(self.task.period, self.rig.config.camera.max_age))
        else:
            snapshot = self.rig.snapshot_without_images()
        self.rig.check(snapshot)
        return replace(snapshot, step=step)

    def _outcome(
        self, episode: _Episode, applied: Applied, overrun: float
    ) -> tuple[Observation, float, bool, bool, Info]:
        snapshot = episode.snapshot
        terms = self.task.reward(snapshot, applied)
        terminated = self.task.failed(snapshot)
        truncated = not terminated and episode.step >= self.task.horizon
        episode.over = terminated or truncated
        info = {"terms": terms, **self._facts(snapshot)}
        info["telemetry"].update(
            requested=applied.requested, applied=applied.target, reasons=applied.reasons, overrun=overrun
        )
        return episode.observation, float(sum(terms.values())), terminated, truncated, info

    def _facts(self, snapshot: Snapshot) -> Info:
        return {
            "success": self.task.success(snapshot),
            "measures": self.task.measures(snapshot),
            "telemetry": telemetry(snapshot),
        }

    def _broken_off(self, episode: _Episode, fault: Fault) -> tuple[Observation, float, bool, bool, Info]:
        episode.over = True
        self._hot = fault if isinstance(fault, ServoHot) else None
        # The bus may be what failed: then the servos' own watchdog holds the robot.
        with contextlib.suppress(Fault):
            self.rig.robot.hold()
        info: Info = {"fault": fault.name, "fault_message": str(fault)}
        copies = {key: value.copy() for key, value in episode.observation.items()}
        return copies, 0.0, False, True, info


def telemetry(snapshot: Snapshot) -> Info:
    """One reading as plain arrays for the log; with a camera also when its frame was taken.

    servo_temperature and servo_voltage are (N,), deg C and V, in the order of `Health.ids`. frame_age is in s
    before the reading, 0 for a frame that came just after it; of further cameras it is NAME_frame_age.
    """
    joints, thing = snapshot.joints, snapshot.object
    entry = {"time": snapshot.time, **_group("joint", joints), **_group("object", thing)}
    if snapshot.health is not None:
        entry |= {"servo_temperature": snapshot.health.temperature, "servo_voltage": snapshot.health.voltage}
    for number, (name, frame) in enumerate(snapshot.frames.items()):
        prefix = f"{name}_" if number else ""
        entry |= {
            f"{prefix}frame_time": frame.time,
            f"{prefix}frame_sequence": frame.sequence,
            f"{prefix}frame_age": max(0.0, snapshot.time - frame.time),
        }
    return entry


def _group(name: str, state: JointState) -> Info:
    return {
        f"{name}_position": state.position,
        f"{name}_velocity": state.velocity,
        f"{name}_current": state.current,
    }
