"""A point that fails as it is told to, for fleets; light, because every worker process imports it."""

from __future__ import annotations

import os
import signal
from typing import Any

import gymnasium
import numpy as np
from gymnasium.error import ResetNeeded

from robot.types import ServoSilent
from tasks.simulated import Boxed


class Point(gymnasium.Env[dict[str, Any], np.ndarray]):
    """A point that fails as its seed says: 1 at reset, 2 in its second step, 3 by a kill -9; 4 is short."""

    observation_space = gymnasium.spaces.Dict({"state": gymnasium.spaces.Box(-9, 9, (1,), np.float32)})
    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.kind, self.steps = (seed or 0) % 10, 0
        if self.kind == 1:
            raise ServoSilent("servo 12 did not answer", [12])
        assert seed is not None, "an episode that nobody asked for"
        facts = {"telemetry": {"time": 0.0}, "success": False, "measures": {}}
        return {"state": np.zeros(1, np.float32)}, {"parameters": {}, **facts}

    def step(self, action: np.ndarray) -> Any:
        if self.kind == 1:
            raise ResetNeeded("the reset before it failed")
        self.steps += 1
        state = {"state": np.full(1, self.steps, np.float32)}
        if self.kind == 2 and self.steps == 2:
            return state, 0.0, False, True, {"fault": "servo-silent", "fault_message": "servo 12 is silent"}
        if self.kind == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        facts = {"telemetry": {"time": 0.1 * self.steps}, "success": True, "measures": {}, "terms": {}}
        return state, -1.0, False, self.steps == (2 if self.kind == 4 else 4), facts


def point() -> Boxed:
    return Boxed(Point())
