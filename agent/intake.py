"""From episode files into a replay: a run's own, and those of other runs that train beside them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from agent.episodes import Episode, EpisodeCorrupt, EpisodeError, read_episode
from agent.replay import Batch, SequenceReplay


class PriorDataError(RuntimeError):
    """What train.prior names cannot be trained on."""


def take(replay: SequenceReplay, path: Path, keys: Sequence[str]) -> int:
    """Puts the episode in a file into the replay, with the observations `keys`; returns its steps.

    Raises EpisodeCorrupt, also for images of another size and for what is no number, and EpisodeTooNew.
    """
    episode = read_episode(path, images="image" in keys)
    thing = episode.telemetry.get("object_position")
    if len(episode.actions):
        try:
            replay.add_episode(
                images=episode.images if "image" in keys else None,
                states=_states(episode, replay, keys),
                actions=episode.actions,
                rewards=episode.rewards.astype(np.float32),
                terminated=episode.terminated,
                angles=None if thing is None else thing[:, 0],
            )
        except ValueError as error:  # images of another size, numbers that are none
            raise EpisodeCorrupt(path, str(error), episode) from error
    return len(episode.actions)


def _states(episode: Episode, replay: SequenceReplay, keys: Sequence[str]) -> NDArray[np.float32] | None:
    """The state, or for "joints" as many of its first numbers as the replay stores: the robot's own."""
    if "joints" in keys and episode.states is not None:
        return episode.states[:, : replay.state_size]
    return episode.states if "state" in keys else None


def prior_files(folders: Sequence[Path]) -> list[Path]:
    """The episodes of runs, or in folders of them. Raises PriorDataError naming a folder without any."""
    files = []
    for folder in folders:
        found = sorted(folder.glob("episodes/*.mcap")) or sorted(folder.glob("*.mcap"))
        if not found:
            raise PriorDataError(
                f"train.prior: {folder} holds no episodes/*.mcap; `ls -d runs/*` shows what runs there are"
            )
        files += found
    return files


def fill_with_prior(replay: SequenceReplay, folders: Sequence[Path], keys: Sequence[str]) -> None:
    """Puts all episodes of other runs into their own ring; the newest ones stay when it is too small.

    Raises PriorDataError.
    """
    for path in prior_files(folders):
        try:
            take(replay, path, keys)
        except EpisodeError as error:
            raise PriorDataError(f"train.prior: {error}") from error


def mixed(own: Batch, prior: Batch) -> Batch:
    """The windows of both, evenly interleaved, so that any first part of them is mixed as the whole is."""
    order = np.argsort(np.concatenate([(np.arange(len(part)) + 0.5) / len(part) for part in (own, prior)]))
    return own.join(prior).select(torch.from_numpy(order))
