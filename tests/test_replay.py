"""The training store: what goes in comes out, in order, and never as a transition that did not happen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from agent.replay import Batch, ReplayTooSmall, SequenceReplay

SHAPE = (4, 6, 3)


def add(replay: SequenceReplay, number: int, steps: int, *, terminated: bool = False) -> None:
    """An episode in which every entry says where it came from: image = state = episode * 20 + t."""
    code = number * 20 + np.arange(steps + 1)
    images = np.broadcast_to(code[:, None, None, None], (steps + 1, *SHAPE)).astype(np.uint8)
    states = np.stack((code, -code), 1).astype(np.float32)
    actions = code[:-1, None].astype(np.float32) / 1000
    replay.add_episode(images, states, actions, code[:-1].astype(np.float32), terminated)


def filled(
    episodes: int = 5, steps: int = 6, capacity: int = 1000, path: Path | None = None
) -> SequenceReplay:
    replay = SequenceReplay(capacity, SHAPE, 2, 1, path)
    for number in range(episodes):
        add(replay, number, steps)
    return replay


def draw(replay: SequenceReplay, length: int = 3, count: int = 200, seed: int = 0) -> Batch:
    return replay.sample(count, length, np.random.default_rng(seed))


def codes(batch: Batch) -> np.ndarray:
    assert batch.state is not None
    return batch.state[..., 0].numpy()


def test_windows_are_consecutive_entries_with_everything_of_the_same_step() -> None:
    batch = draw(filled())
    assert batch.image is not None
    code = codes(batch)
    assert batch.image.shape == (200, 4, 3, 4, 6)
    assert batch.image.dtype == torch.uint8
    np.testing.assert_array_equal(batch.image[:, :, 0, 0, 0].numpy(), code)
    real = ~batch.is_last[:, :-1].numpy()
    np.testing.assert_allclose(batch.action[..., 0].numpy()[real], code[:, :-1][real] / 1000)
    np.testing.assert_allclose(batch.reward.numpy()[real], code[:, :-1][real])
    within = real.all(1)
    assert within.any()
    assert (np.diff(code[within], axis=1) == 1).all()


def test_a_span_holds_the_oldest_or_the_newest_windows() -> None:
    replay = filled(episodes=4, steps=6)
    old = codes(replay.sample(100, 3, np.random.default_rng(0), (0.0, 0.75)))
    new = codes(replay.sample(100, 3, np.random.default_rng(0), (0.75, 1.0)))
    assert set(old[:, 0]) | set(new[:, 0]) <= {*codes(draw(replay))[:, 0]}
    assert old[:, 0].max() < new[:, 0].min()
    assert len(codes(filled(episodes=1, steps=3).sample(2, 3, np.random.default_rng(0), (0.75, 1.0)))) == 2


def test_angles_come_with_their_steps_and_are_nan_where_nobody_knows() -> None:
    replay = SequenceReplay(12, None, 1, 1)
    for number in range(3):  # the third one overwrites the first
        angles = np.arange(5, dtype=np.float32) + 10 * number if number != 1 else None
        columns = (np.zeros((5, 1), np.float32), np.zeros((4, 1), np.float32), np.zeros(4, np.float32))
        replay.add_episode(None, *columns, terminated=False, angles=angles)
    batch = draw(replay, length=1)
    assert batch.angle is not None
    known = batch.angle[~batch.angle.isnan()].tolist()
    assert set(known) <= {*range(3, 5), *range(20, 25)}
    assert len(known) < batch.angle.numel()
    kept = batch.select(torch.arange(200) < 3).angle
    assert kept is not None
    assert len(kept) == 3


def test_what_is_no_number_is_refused_and_changes_nothing() -> None:
    replay = filled()
    columns = (np.zeros((3, *SHAPE), np.uint8), np.zeros((3, 2), np.float32))
    with pytest.raises(ValueError, match=r"actions of step 1 are no numbers: \[inf\]"):
        replay.add_episode(*columns, np.array([[0], [np.inf]], np.float32), np.zeros(2, np.float32), False)
    assert len(replay) == 35


def test_episode_of_l_steps_takes_l_plus_one_entries() -> None:
    assert len(filled(episodes=5, steps=6)) == 35


def test_last_step_of_a_window_is_never_the_jump_between_episodes() -> None:
    for length in (1, 2, 8):
        batch = draw(filled(), length)
        assert not batch.is_last[:, -2].any()
        assert not batch.is_first[:, -1].any()


def test_windows_cross_episode_ends_and_flags_say_where() -> None:
    batch = draw(filled())
    crossing = batch.is_first[:, 1:].any(1)
    assert crossing.any()
    assert torch.equal(batch.is_first[:, 1:], batch.is_last[:, :-1])
    np.testing.assert_array_equal(batch.is_first.numpy(), codes(batch) % 20 == 0)


def test_every_valid_start_is_drawn_equally_often() -> None:
    batch = draw(filled(episodes=3, steps=4), length=2, count=20_000)
    starts, counts = np.unique(codes(batch)[:, 0], return_counts=True)
    # 15 entries hold 13 windows; the two whose second entry is LAST are out (the third LAST ends the ring).
    assert len(starts) == 11
    assert counts.min() > 0.85 * 20_000 / 11


def test_only_true_failure_cuts_the_value() -> None:
    replay = SequenceReplay(100, SHAPE, 2, 1)
    add(replay, 0, 5, terminated=True)
    add(replay, 1, 5, terminated=False)
    batch = draw(replay, length=1)
    failed = codes(batch)[:, 0] == 4
    assert failed.any()
    np.testing.assert_array_equal(batch.discount[:, 0].numpy(), np.where(failed, 0.0, 1.0))


def test_full_ring_keeps_the_newest_steps_and_never_joins_newest_to_oldest() -> None:
    replay = filled(episodes=9, steps=6, capacity=30)
    assert len(replay) == 30
    code = codes(draw(replay, length=3, count=500))
    order = [number * 20 + t for number in range(9) for t in range(7)][-30:]
    position = {value: index for index, value in enumerate(order)}
    places = np.vectorize(position.__getitem__)(code.astype(int))
    assert (np.diff(places, axis=1) == 1).all()


def test_overwritten_flags_do_not_linger() -> None:
    replay = SequenceReplay(12, SHAPE, 2, 1)
    for number, steps in enumerate((3, 3, 3, 10)):
        add(replay, number, steps, terminated=number < 3)
    batch = draw(replay, length=4)
    code = codes(batch)
    recent = code[:, 0] >= 60
    np.testing.assert_array_equal(batch.is_first[recent].numpy(), code[recent] % 20 == 0)
    assert (batch.discount[recent] == 1).all()


def test_same_generator_state_draws_the_same_windows() -> None:
    replay = filled()
    np.testing.assert_array_equal(codes(draw(replay, seed=3)), codes(draw(replay, seed=3)))
    assert (codes(draw(replay, seed=3)) != codes(draw(replay, seed=4))).any()


def test_samples_are_copies_that_later_episodes_do_not_touch() -> None:
    replay = filled(episodes=5, steps=6, capacity=35)
    batch = draw(replay)
    before = codes(batch).copy(), batch.image.clone() if batch.image is not None else None
    add(replay, 6, 20)
    np.testing.assert_array_equal(codes(batch), before[0])
    assert torch.equal(batch.image, before[1])


def test_ring_in_a_file_gives_what_the_ring_in_memory_gives(tmp_path: Path) -> None:
    on_disk, in_memory = draw(filled(path=tmp_path / "frames")), draw(filled())
    assert on_disk.image is not None
    assert torch.equal(on_disk.image, in_memory.image)
    assert not list(tmp_path.iterdir()), "a killed learner would leave it behind"


def test_a_file_for_which_there_is_no_room_is_an_error_at_once(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"space|large"):
        SequenceReplay(10**12, SHAPE, None, 1, tmp_path / "frames")
    assert not list(tmp_path.iterdir())


def test_images_are_channels_last_in_memory_as_convolutions_want_them() -> None:
    image = draw(filled()).image
    assert image is not None
    assert image.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)


def test_state_only_ring_has_no_images_and_the_other_way_round() -> None:
    states = SequenceReplay(50, None, 2, 1)
    states.add_episode(None, np.zeros((4, 2), np.float32), np.zeros((3, 1)), np.zeros(3), False)
    assert draw(states, length=1).image is None
    images = SequenceReplay(50, SHAPE, None, 1)
    images.add_episode(np.zeros((4, *SHAPE), np.uint8), None, np.zeros((3, 1)), np.zeros(3), False)
    assert draw(images, length=1).state is None


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_too_few_steps_for_a_window_is_a_readable_error(steps: int) -> None:
    replay = SequenceReplay(50, SHAPE, 2, 1)
    if steps:
        add(replay, 0, steps)
    with pytest.raises(ReplayTooSmall, match="collect more"):
        draw(replay, length=8)


def test_mismatched_episode_is_refused_and_nothing_stored() -> None:
    replay = SequenceReplay(50, SHAPE, 2, 1)
    images, states = np.zeros((4, *SHAPE), np.uint8), np.zeros((4, 2), np.float32)
    with pytest.raises(ValueError, match="states have shape"):
        replay.add_episode(images, states[:3], np.zeros((3, 1)), np.zeros(3), False)
    with pytest.raises(ValueError, match="images have shape None"):
        replay.add_episode(None, states, np.zeros((3, 1)), np.zeros(3), False)
    with pytest.raises(ValueError, match="rewards"):
        replay.add_episode(images, states, np.zeros((3, 1)), np.zeros(2), False)
    with pytest.raises(ValueError, match="does not fit"):
        SequenceReplay(3, SHAPE, 2, 1).add_episode(images, states, np.zeros((3, 1)), np.zeros(3), False)
    assert len(replay) == 0


def test_batch_splits_into_its_first_windows_and_the_rest() -> None:
    batch = draw(filled(), count=10)
    first, rest = batch.split(4)
    assert (len(first), len(rest)) == (4, 6)
    np.testing.assert_array_equal(np.concatenate((codes(first), codes(rest))), codes(batch))


def test_features_are_stored_for_all_entries_or_for_the_new_ones() -> None:
    replay = SequenceReplay(20, SHAPE, 2, 1, feature_size=1)
    asked: list[int] = []

    def encoder(frames: torch.Tensor) -> torch.Tensor:
        asked.append(len(frames))
        return frames[:, 0, 0, :1].float() + 0.5

    for number, anew in ((0, False), (1, False), (2, True), (3, False)):
        add(replay, number, 6)
        replay.encode(encoder, anew=anew)
        batch = draw(replay)
        assert batch.features is not None
        np.testing.assert_array_equal(batch.features[..., 0].numpy(), codes(batch) + 0.5)
    assert asked == [7, 7, 20, 7]  # the ring wrapped


def test_a_large_store_is_encoded_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.replay.ENCODED_AT_ONCE", 5)
    replay = SequenceReplay(100, SHAPE, 2, 1, feature_size=1)
    add(replay, 0, 6)
    add(replay, 1, 6)
    asked: list[int] = []

    def encoder(frames: torch.Tensor) -> torch.Tensor:
        asked.append(len(frames))
        return torch.ones(len(frames), 1)

    replay.encode(encoder, anew=True)
    assert asked == [5, 5, 4]


def test_images_can_be_left_out() -> None:
    with_images, without = draw(filled()), filled().sample(200, 3, np.random.default_rng(0), images=False)
    assert with_images.image is not None
    assert without.image is None
    assert torch.equal(with_images.reward, without.reward)


def test_newest_episodes_come_as_all_their_windows() -> None:
    replay = filled(episodes=4, steps=6)
    add(replay, 4, 2)  # too short for a window of three steps
    last, before = replay.newest_episodes(2, 3)
    for batch in (last, before):
        assert len(batch) == 4
        expected = codes(batch)[0, 0] + np.arange(4)[:, None] + np.arange(4)
        np.testing.assert_array_equal(codes(batch), expected)
        assert batch.is_first[0, 0]
        assert batch.is_last[-1, -1]
        assert batch.is_first.sum() == batch.is_last.sum() == 1
    assert codes(last)[0, 0] > codes(before)[0, 0]


def test_an_episode_whose_beginning_was_overwritten_is_not_among_the_newest() -> None:
    replay = filled(episodes=5, steps=6, capacity=17)  # two episodes of 7 entries, and 3 of a third
    assert len(list(replay.newest_episodes(9, 3))) == 2
    assert next(replay.newest_episodes(9, 6)).is_last[0, -1]
