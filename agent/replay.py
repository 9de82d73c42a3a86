"""The training store: a ring of single steps, from which windows of consecutive steps are drawn."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

CPU = torch.device("cpu")
ENCODED_AT_ONCE = 4096  # frames: as many are copied out of the ring for it


class ReplayTooSmall(ValueError):
    """Not enough steps are stored for a single window."""


@dataclass(frozen=True, slots=True)
class Batch:
    """B windows of T steps with the observation after the last one; t runs over T+1 observations."""

    image: Tensor | None  # (B, T+1, 3, H, W) uint8, channels last in memory
    state: Tensor | None  # (B, T+1, N) float32
    action: Tensor  # (B, T, A) float32 in [-1, 1]
    reward: Tensor  # (B, T) float32, received after the action
    discount: Tensor  # (B, T) float32, 0 where the step ended in a true failure, else 1
    is_first: Tensor  # (B, T+1) bool: an episode starts here
    is_last: Tensor  # (B, T+1) bool: an episode ends here; its action leads nowhere
    angle: Tensor | None = None  # (B, T+1) float32 rad, what a probe should find; nan where nobody knows
    features: Tensor | None = None  # (B, T+1, F) float32, as the replay's store of them has it

    def __len__(self) -> int:
        return len(self.action)

    def to(self, device: torch.device) -> Batch:
        """The batch on a device."""
        return self._map(lambda x: x.to(device, non_blocking=True))

    def split(self, count: int) -> tuple[Batch, Batch]:
        """The first `count` windows, and the rest."""
        return self._map(lambda x: x[:count]), self._map(lambda x: x[count:])

    def select(self, rows: Tensor) -> Batch:
        """The windows where rows (B,) is True, or with these numbers."""
        return self._map(lambda x: x[rows])

    def join(self, other: Batch) -> Batch:
        """The windows of both, which hold the same kinds of observation."""
        parts = self.parts()
        return replace(
            self, **{name: torch.cat((part, getattr(other, name))) for name, part in parts.items()}
        )

    def _map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        return replace(self, **{name: change(part) for name, part in self.parts().items()})

    def without_observations(self) -> Batch:
        """Actions, rewards and flags alone."""
        return replace(self, image=None, state=None, angle=None, features=None)

    def clone(self) -> Batch:
        """A copy with tensors of its own."""
        return self._map(torch.clone)

    def parts(self) -> dict[str, Tensor]:
        """What there is, by name."""
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: part for name, part in parts.items() if part is not None}


class SequenceReplay:
    """Keeps the newest `capacity` steps and draws windows, also across the ends of episodes.

    An episode of L steps takes L+1 entries: its last observation has no action. Images and features lie on
    `device`, and that is where windows of them come; all else is small. Images are uint8 (H, W, 3), on a CPU
    in memory or, with `path`, in a file for which the folder must be writable; OSError when it is full.
    """

    def __init__(
        self,
        capacity: int,
        image_shape: tuple[int, int, int] | None,
        state_size: int | None,
        action_size: int,
        path: Path | None = None,
        feature_size: int | None = None,
        device: torch.device = CPU,
    ) -> None:
        self.capacity = capacity
        self._features = None if feature_size is None else torch.zeros(capacity, feature_size, device=device)
        self._unencoded: list[NDArray[np.int64]] = []  # entries whose features are not known
        self._image = None if image_shape is None else _frames(path, (capacity, *image_shape), device)
        self._state = None if state_size is None else np.zeros((capacity, state_size), np.float32)
        self._action = np.zeros((capacity, action_size), np.float32)
        self._reward = np.zeros(capacity, np.float32)
        self._discount = np.ones(capacity, np.float32)
        self._is_first = np.zeros(capacity, np.bool_)
        self._is_last = np.zeros(capacity, np.bool_)
        self._angle = np.full(capacity, np.nan, np.float32)
        self._head = 0  # where the next entry goes
        self._size = 0
        self.largest_reward = 0.0  # absolute, of the stored steps: every update asks for it
        self._starts: dict[int, NDArray[np.int64]] = {}  # by window length; emptied when steps are added

    def __len__(self) -> int:
        return self._size

    @property
    def state_size(self) -> int:
        """Numbers per state; 0 when none are stored."""
        return 0 if self._state is None else self._state.shape[1]

    def add_episode(
        self,
        images: NDArray[np.uint8] | None,
        states: NDArray[np.float32] | None,
        actions: NDArray[np.float32],
        rewards: NDArray[np.float32],
        terminated: bool,
        angles: NDArray[np.float32] | None = None,
    ) -> None:
        """Appends an episode of L steps, over the oldest entries once the ring is full.

        images: (L+1, H, W, 3) uint8 or None. states: (L+1, N) or None. actions: (L, A). rewards: (L,).
        terminated: whether the last step was a true failure, which cuts the value; a time limit is not.
        angles: (L+1,) rad, which no agent sees but a probe looks for. Raises ValueError when the lengths do
        not fit together or to the ring, or when something is no number.
        """
        steps = len(actions)
        self._check(actions, images, states, rewards)
        _require_finite(states=states, actions=actions, rewards=rewards)
        at = (self._head + np.arange(steps + 1)) % self.capacity
        self._put_observations(at, images, states)
        self._action[at[:-1]], self._action[at[-1]] = actions, 0.0
        self._reward[at[:-1]], self._reward[at[-1]] = rewards, 0.0
        self.largest_reward = max(float(self._reward.max()), -float(self._reward.min()))
        self._angle[at] = np.nan if angles is None else angles
        self._discount[at] = 1.0
        self._discount[at[-2]] = 0.0 if terminated else 1.0
        self._is_first[at], self._is_last[at] = False, False
        self._is_first[at[0]], self._is_last[at[-1]] = True, True
        if self._features is not None:
            self._unencoded.append(at)
        self._head = int((at[-1] + 1) % self.capacity)
        self._size = min(self._size + steps + 1, self.capacity)
        self._starts.clear()

    def encode(self, encoder: Callable[[Tensor], Tensor], *, anew: bool) -> None:
        """Fills the store of features: of all entries, or, unless `anew`, of those that have none.

        encoder: (N, H, W, 3) uint8 -> (N, F), both on the replay's device.
        """
        assert self._image is not None
        assert self._features is not None
        every = self._ring(np.arange(self._size))
        pieces = [every[i : i + ENCODED_AT_ONCE] for i in range(0, len(every), ENCODED_AT_ONCE)]
        for at in pieces if anew else self._unencoded:
            self._features[_index(self._features, at)] = encoder(_gather(self._image, at))
        self._unencoded.clear()

    def sample(
        self,
        batch: int,
        length: int,
        rng: np.random.Generator,
        span: tuple[float, float] = (0.0, 1.0),
        *,
        images: bool = True,
    ) -> Batch:
        """Draws `batch` windows of `length` steps, uniformly over their starts.

        The last step of a window is never the false one from an episode's end to the next one's start;
        earlier steps may be, and is_first says where. span: the share of all windows to draw from, oldest
        first. `images` False leaves the images out. Raises ReplayTooSmall.
        """
        starts = self._valid_starts(length)
        low, high = (round(share * len(starts)) for share in span)
        low = min(low, len(starts) - 1)
        begin = starts[rng.integers(low, max(high, low + 1), size=batch)]
        at = (begin[:, None] + np.arange(length + 1)) % self.capacity  # (B, T+1)
        return self._windows(at, images=images)

    def newest_episodes(self, count: int, length: int) -> Iterator[Batch]:
        """All windows of `length` steps within each of the newest `count` episodes that have one."""
        ends, starts = self._oldest_first(self._is_last), self._oldest_first(self._is_first)
        for end in ends[::-1]:
            start = max(starts[starts < end], default=None)
            if count == 0 or start is None:
                break
            entries = np.arange(start, end - length + 1)[:, None] + np.arange(length + 1)
            if len(entries):
                count -= 1
                yield self._windows(self._ring(entries), images=True)

    def _oldest_first(self, flags: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Where flags hold, counted from the oldest entry."""
        return np.flatnonzero(flags[self._ring(np.arange(self._size))])

    def _ring(self, number: NDArray[np.int64]) -> NDArray[np.int64]:
        """The places of entries that are counted from the oldest."""
        return (self._head - self._size + number) % self.capacity

    def _windows(self, at: NDArray[np.int64], *, images: bool) -> Batch:
        """The windows at places (B, T+1) of the ring."""
        steps, seen = at[:, :-1], self._image if images else None
        return Batch(
            image=None if seen is None else _gather(seen, at).permute(0, 1, 4, 2, 3),
            state=None if self._state is None else torch.from_numpy(self._state[at]),
            action=torch.from_numpy(self._action[steps]),
            reward=torch.from_numpy(self._reward[steps]),
            discount=torch.from_numpy(self._discount[steps]),
            is_first=torch.from_numpy(self._is_first[at]),
            is_last=torch.from_numpy(self._is_last[at]),
            angle=torch.from_numpy(self._angle[at]),
            features=None if self._features is None else _gather(self._features, at),
        )

    def _valid_starts(self, length: int) -> NDArray[np.int64]:
        if length not in self._starts:
            begin = self._ring(np.arange(self._size - length))
            self._starts[length] = begin[~self._is_last[(begin + length - 1) % self.capacity]]
        if len(self._starts[length]) == 0:
            raise ReplayTooSmall(
                f"{self._size} steps are stored, which holds no window of {length} steps and one more "
                "observation; collect more episodes first"
            )
        return self._starts[length]

    def _check(
        self,
        actions: NDArray[np.float32],
        images: NDArray[np.uint8] | None,
        states: NDArray[np.float32] | None,
        rewards: NDArray[np.float32],
    ) -> None:
        steps = len(actions)
        if steps < 1 or steps + 1 > self.capacity:
            raise ValueError(f"An episode of {steps} steps does not fit a ring of {self.capacity} entries")
        if actions.shape != (steps, self._action.shape[1]):
            raise ValueError(
                f"actions have shape {actions.shape}; {(steps, self._action.shape[1])} is expected"
            )
        if len(rewards) != steps:
            raise ValueError(f"{steps} actions came with {len(rewards)} rewards; expected one for each")
        stores: tuple[tuple[str, Any, Any], ...] = (
            ("images", self._image, images),
            ("states", self._state, states),
        )
        for name, store, given in stores:
            expected = None if store is None else (steps + 1, *store.shape[1:])
            seen = None if given is None else given.shape
            if expected is not None and seen != expected:
                raise ValueError(f"{name} have shape {seen}; {steps} steps need {expected}")

    def _put_observations(
        self, at: NDArray[np.int64], images: NDArray[np.uint8] | None, states: NDArray[np.float32] | None
    ) -> None:
        if self._image is not None and images is not None:
            self._image[_index(self._image, at)] = torch.from_numpy(images).to(self._image.device)
        if self._state is not None and states is not None:
            self._state[at] = states


def _require_finite(**values: NDArray[np.float32] | None) -> None:
    for name, rows in values.items():
        if rows is not None and not np.isfinite(rows).all():
            step = int(np.argwhere(~np.isfinite(rows))[0][0])
            raise ValueError(f"{name} of step {step} are no numbers: {rows[step]}")


def _frames(path: Path | None, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Zeros on a device, or in a file without a name, which is gone with the process.

    The file's blocks are the process's own from the start: a full disk is an error here, not a SIGBUS hours
    later. Raises OSError.
    """
    if path is None and device.type == "cpu":
        return torch.from_numpy(np.zeros(shape, np.uint8))  # untouched, it takes no memory
    if path is None:
        return torch.zeros(shape, dtype=torch.uint8, device=device)
    with path.open("w+b") as file:
        path.unlink()
        os.posix_fallocate(file.fileno(), 0, math.prod(shape))
        return torch.from_numpy(np.memmap(file, np.uint8, "r+", shape=shape))


def _index(store: Tensor, at: NDArray[np.int64]) -> Tensor:
    return torch.from_numpy(at).to(store.device)


def _gather(store: Tensor, at: NDArray[np.int64]) -> Tensor:
    """The rows (*at.shape, ...) of a store (N, ...), where it lies."""
    rows = store.flatten(1).index_select(0, _index(store, at.ravel()))
    return rows.view(*at.shape, *store.shape[1:])
