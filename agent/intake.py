"""From episode files into a replay: a run's own, and those of other runs that train beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from agent.episodes import Episode, EpisodeCorrupt, EpisodeError, read_episode
from agent.replay import Batch, ReplayTooSmall, SequenceReplay


class PriorDataError(RuntimeError):
    """What train.prior names cannot be trained on."""


def take(replay: SequenceReplay, path: Path, keys: Sequence[str]) -> int:
    """Puts the episode in a file into the replay, with the observations `keys`; returns its steps.

    Raises EpisodeCorrupt, also for images of another size and for what is no number, and EpisodeTooNew.
    """
    episode = read_episode(path, images="image" in keys)
    try:
        store(replay, episode, keys)
    except ValueError as error:  # images of another size, numbers that are none
        raise EpisodeCorrupt(path, str(error), episode) from error
    return len(episode.actions)


def store(replay: SequenceReplay, episode: Episode, keys: Sequence[str]) -> None:
    """Puts an episode that has steps into the replay. Raises ValueError when it does not fit."""
    thing = episode.telemetry.get("object_position")
    if len(episode.actions):
        replay.add_episode(
            images=episode.images if "image" in keys else None,
            states=_states(episode, replay, keys),
            actions=episode.actions,
            rewards=episode.rewards.astype(np.float32),
            terminated=episode.terminated,
            angles=thing[:, 0] if thing is not None and thing.shape[1] == 1 else None,
        )


def _states(episode: Episode, replay: SequenceReplay, keys: Sequence[str]) -> NDArray[np.float32] | None:
    """The state, or for "joints" as many of its first numbers as the replay stores: the robot's own."""
    if "joints" in keys and episode.states is not None:
        return episode.states[:, : replay.state_size]
    return episode.states if "state" in keys else None


def prior_files(folder: Path) -> list[Path]:
    """The episodes of a run, or in a folder of them. Raises PriorDataError when there is none."""
    found = sorted(folder.glob("episodes/*.mcap")) or sorted(folder.glob("*.mcap"))
    if not found:
        raise PriorDataError(
            f"train.prior: {folder} holds no episodes/*.mcap; `ls -d runs/*` shows what runs there are"
        )
    return found


def make_replay(
    capacity: int, keys: Sequence[str], sizes: Mapping[str, Any], **options: Any
) -> SequenceReplay:
    """A replay of the observations `keys`, whose sizes are those of a run's spaces.json."""
    vectors = {"state": "state_size", "joints": "joint_size"}
    return SequenceReplay(
        capacity,
        image_shape=tuple(sizes["image_shape"]) if "image" in keys else None,
        state_size=next((sizes[name] for key, name in vectors.items() if key in keys), None),
        action_size=sizes["action_size"],
        **options,
    )


def check_prior(folders: Sequence[Path], keys: Sequence[str], sizes: Mapping[str, Any]) -> None:
    """Tries the first episode of each folder. Raises PriorDataError when one does not fit those sizes."""
    for folder in folders:
        _take_prior(make_replay(100_000, keys, sizes), prior_files(folder)[0], keys)


def fill_with_prior(
    replay: SequenceReplay, folders: Sequence[Path], keys: Sequence[str], window: int
) -> None:
    """Puts all episodes of other runs into their own ring; the newest ones stay when it is too small.

    Raises PriorDataError for what does not fit, and for too few steps for a single window.
    """
    for folder in folders:
        for path in prior_files(folder):
            _take_prior(replay, path, keys)
    try:
        replay.sample(1, window, np.random.default_rng(0), images=False)
    except ReplayTooSmall as error:
        raise PriorDataError(f"train.prior: {', '.join(map(str, folders))} are too short: {error}") from error


def _take_prior(replay: SequenceReplay, path: Path, keys: Sequence[str]) -> None:
    try:
        store(replay, read_episode(path, images="image" in keys), keys)
    except ValueError as error:
        raise PriorDataError(
            f"train.prior: {path} does not fit this run: {error}. Leave its run out"
        ) from error
    except EpisodeError as error:
        raise PriorDataError(
            f"train.prior: {path} cannot be read whole; to leave it out: mv {path} {path}.bad"
        ) from error


def mixed(own: Batch, prior: Batch) -> Batch:
    """The windows of both, evenly interleaved, so that any first part of them is mixed as the whole is."""
    places = np.concatenate([(np.arange(len(part)) + 0.5) / max(len(part), 1) for part in (own, prior)])
    return own.join(prior).select(torch.from_numpy(np.argsort(places, kind="stable")))
