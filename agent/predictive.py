"""Acting by foresight: try many courses of action in a model, do the first step of the best, plan anew."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor

from agent.config import Config
from agent.policy import Action, Observation

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Plan:
    """The best course of action so far."""

    step: int  # of the episode that it begins at
    actions: Floats  # (H, A)


class PredictiveConfig(Config):
    """How many courses of action are tried, how far they reach and how they differ from the plan so far.

    Measured with valve_random: 12 of 12 turned to their goals with 32 to 128 samples of 8 to 12 steps; their
    mean return was -11.8 with 32 of 8, -10.4 with 64 of 10, and no better with more of either.
    """

    samples: int = Field(64, ge=2)  # N
    horizon: int = Field(10, ge=2)  # H, control steps
    knots: int = Field(5, ge=2)  # actions that are drawn; those between lie on straight lines
    spread: float = Field(0.5, gt=0)  # standard deviation of what is added to the plan's knots
    fresh: float = Field(0.25, ge=0, lt=1)  # share of the samples that know nothing of the plan

    @model_validator(mode="after")
    def _knots_fit(self) -> Self:
        if self.knots > self.horizon:
            raise ValueError(f"{self.knots} knots do not fit into a horizon of {self.horizon} steps")
        return self


class PredictivePolicy:
    """Predictive sampling: of random variations of the last plan, the one that the model pays best.

    Noise is drawn at knots, so that a motion goes on for several steps; white noise goes nowhere. The plan is
    the carry: it moves on by a step with each action, and is itself among the candidates, so that it is only
    ever left for a better one.
    """

    def __init__(
        self,
        config: PredictiveConfig,
        rest: Action,
        returns: Callable[[Floats, int], Floats],
        rng: np.random.Generator,
        keeping: Callable[[int], Action | None] = lambda step: None,
    ) -> None:
        """rest: (A,), where plans begin. returns: (N, H, A) in [-1, 1] -> (N,), from the present state on.

        keeping: the action (A,) for when nothing is left to gain, None while there is; spares the search.
        Both are told how many steps the episode has had.
        """
        self._config, self._rest, self._rng = config, np.asarray(rest, np.float64), rng
        self._returns, self._keeping = returns, keeping
        self._lines = _lines(config.horizon, config.knots)

    def initial(self) -> Plan:
        """The plan to rest."""
        return self._resting(0, self._rest)

    def act(self, carry: Plan, observation: Observation, *, explore: bool) -> tuple[Plan, Action]:
        """The rest of the best plan and its first action; looks at the model, not at the observation."""
        kept = self._keeping(carry.step)
        if kept is not None:
            return self._resting(carry.step + 1, kept), np.array(kept, np.float32)
        candidates = self._candidates(carry.actions)
        best: Floats = candidates[int(np.argmax(self._returns(candidates, carry.step)))]
        return Plan(carry.step + 1, np.concatenate((best[1:], best[-1:]))), best[0].astype(np.float32)

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Has none."""

    def _resting(self, step: int, action: NDArray[Any]) -> Plan:
        return Plan(step, np.tile(np.asarray(action, np.float64), (self._config.horizon, 1)))

    def _candidates(self, plan: Floats) -> Floats:
        """(N, H, A) in [-1, 1]: the plan itself, variations of it, and fresh ones."""
        config = self._config
        fresh = int(config.fresh * config.samples)
        near = self._rng.normal(0, config.spread, (config.samples - 1 - fresh, config.knots, plan.shape[1]))
        # A little beyond the limits: full actions are then as likely as they are useful.
        far = self._rng.uniform(-1.3, 1.3, (fresh, config.knots, plan.shape[1]))
        varied = (plan, plan + self._lines @ near, self._lines @ far)
        candidates: Floats = np.concatenate([part.reshape(-1, *plan.shape) for part in varied])
        return candidates.clip(-1, 1)


def _lines(horizon: int, knots: int) -> Floats:
    """(H, K): how much each knot has in each step; straight lines from knot to knot."""
    steps, at = np.linspace(0, knots - 1, horizon), np.arange(knots)
    return np.asarray(np.clip(1 - np.abs(steps[:, None] - at), 0, 1))
