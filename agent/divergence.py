"""Tells from the losses of updates whether what was learned is being lost."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from itertools import islice

RECENT = 50  # updates whose mean is held against that of those before
BEFORE = 500  # updates of which that is the mean at most, and a fifth of it at least
LOST = 2.0  # dB: the squared error of the reconstructions grew by 60 % within those updates
BEYOND = 10.0  # times what rewards and entropy bonuses can add up to


class DivergenceWatch:
    """Hears every update's losses, and says what is wrong with them.

    A model that is being lost reconstructs images worse from one update to the next; a critic that is
    expects more than all rewards there are. Either may go on for long before anything is not a number.
    """

    def __init__(self, discount: float, most_bonus: float) -> None:
        """most_bonus: the largest entropy bonus of a step by the configuration, in units of reward."""
        self._discount, self._most_bonus = discount, most_bonus
        self._psnr: deque[float] = deque(maxlen=BEFORE + RECENT)  # dB

    def hears(self, losses: Mapping[str, float], largest_reward: float) -> str:
        """What has diverged, or nothing. largest_reward: the largest absolute value that is stored."""
        if bad := [name for name, value in losses.items() if not math.isfinite(value)]:
            return f"{', '.join(bad)} is not a number"
        return self._model(losses) or self._critic(losses, largest_reward)

    def forget(self) -> None:
        """Begins anew: the weights are others now."""
        self._psnr.clear()

    def _model(self, losses: Mapping[str, float]) -> str:
        if "psnr" not in losses:
            return ""
        self._psnr.append(losses["psnr"])
        older = len(self._psnr) - RECENT
        if older < BEFORE // 5:
            return ""
        before = math.fsum(islice(self._psnr, older)) / older
        now = math.fsum(islice(self._psnr, older, None)) / RECENT
        if now > before - LOST:
            return ""
        return f"reconstructions fell from {before:.1f} to {now:.1f} dB within {RECENT} updates"

    def _critic(self, losses: Mapping[str, float], largest_reward: float) -> str:
        if "target_q" not in losses or self._discount == 1:
            return ""
        bonus = max(self._most_bonus, losses.get("alpha", 0.0) * abs(losses.get("entropy", 0.0)))
        most = BEYOND * (largest_reward + bonus) / (1 - self._discount)
        if abs(losses["target_q"]) <= most:
            return ""
        return f"the critics expect {losses['target_q']:.3g}, beyond {most:.3g} that any rewards add up to"
