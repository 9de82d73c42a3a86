"""The learner: each episode once, never more updates than earned, and what a crash or a divergence leaves."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from agent.episodes import EpisodeCorrupt, read_episode
from agent.files import DiskError
from agent.learner import (
    CheckpointMismatch,
    Counters,
    Learner,
    TooLittleMemory,
    TrainingDivergedError,
    locked,
    main,
    serve,
)
from agent.metrics import MetricsLog, read_metrics
from agent.replay import Batch, ReplayTooSmall
from agent.run_dir import RunBusy, RunDir
from tests.learning import PIXELS, SAC, SLAC, STORED, add_episode, make_run, reconfigure, same


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return make_run(tmp_path / "run")


def filled(run: RunDir, episodes: int = 4, **options: Any) -> RunDir:
    for index in range(1, episodes + 1):
        add_episode(run, index, **options)
    return run


def worked(learner: Learner) -> Learner:
    while learner.work(chunk=3):
        pass
    return learner


def state_of(learner: Learner) -> dict[str, Any]:
    """All that the learner's next update depends on."""
    batch = learner.replay.sample(64, learner.agent.window, np.random.default_rng(0))
    # Stored features apart: after a checkpoint they are renewed before they are used again.
    drawn = {part.name: getattr(batch, part.name) for part in fields(batch) if part.name != "features"}
    counters = {name: value for name, value in vars(learner.counters).items() if name != "version"}
    return {
        "agent": learner.agent.state_dict(),
        "rng": learner.rng.bit_generator.state,
        "replay": {"size": len(learner.replay), **drawn},
        "counters": counters,
    }


def published(run: RunDir) -> dict[str, torch.Tensor]:
    newest = run.latest_weights(after=0)
    assert newest is not None
    return newest[1]


# --- episodes in


def test_each_episode_is_taken_in_once(run: RunDir) -> None:
    learner = Learner(run)
    filled(run, 2)
    assert (learner.ingest(), learner.ingest()) == (10, 0)
    add_episode(run, 3, steps=2)
    assert learner.ingest() == 2
    assert (learner.counters.episodes, learner.counters.steps) == (3, 12)
    assert len(learner.replay) == 12 + 3  # an observation more than steps in each


def test_episodes_without_steps_count_as_seen(run: RunDir) -> None:
    learner = Learner(run)
    add_episode(run, 1, steps=0, fault="camera")
    add_episode(run, 2)
    assert learner.ingest() == 5
    assert learner.counters.episodes == 2
    assert len(learner.replay) == 6


def test_unfinished_episodes_are_left_alone(run: RunDir) -> None:
    filled(run, 2)
    (run.path / "episodes" / "000002.mcap").rename(run.path / "episodes" / "000002.mcap.part")
    learner = Learner(run)
    assert learner.ingest() == 5
    assert learner.counters.episodes == 1


def test_a_damaged_episode_is_named_and_those_before_it_count(run: RunDir) -> None:
    filled(run, 3)
    path = run.path / "episodes" / "000002.mcap"
    path.write_bytes(path.read_bytes()[:-20])
    learner = Learner(run)
    with pytest.raises(EpisodeCorrupt, match="000002"):
        learner.ingest()
    assert (learner.counters.episodes, learner.counters.steps) == (1, 5)
    path.rename(path.with_suffix(".mcap.bad"))  # as the message says
    assert learner.ingest() == 5
    assert learner.counters.episodes == 3


# --- the schedule


@settings(max_examples=15, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=6),
    ratio=st.sampled_from([0.3, 1.0, 2.5]),
    chunk=st.integers(1, 7),
)
def test_updates_never_exceed_what_the_data_has_earned(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], ratio: float, chunk: int
) -> None:
    run = make_run(tmp_path_factory.mktemp("run"), updates_per_step=ratio, random_steps=5)
    learner = Learner(run)
    for index, steps in enumerate(lengths, 1):
        add_episode(run, index, steps=steps)
        while learner.work(chunk):
            earned = ratio * max(0, learner.counters.steps - 5)
            assert learner.counters.updates <= earned
    assert learner.counters.updates == int(ratio * max(0, sum(lengths) - 5))


def test_no_update_before_the_random_steps_are_done(run: RunDir) -> None:
    learner = Learner(run)
    add_episode(run, 1)  # 5 of 6 steps
    assert not learner.work(chunk=10)
    assert (learner.phase, learner.counters.done) == ("collecting", 0)
    assert run.latest_weights(after=0) is None


def test_the_model_is_pretrained_before_the_first_policy(tmp_path: Path) -> None:
    run = filled(make_run(tmp_path / "run", SLAC), 2, images=True)
    learner = Learner(run)
    assert learner.work(chunk=3)
    assert (learner.counters.pretrained, learner.phase) == (3, "pretraining")
    assert run.latest_weights(after=0) is None
    assert learner.work(chunk=3)
    assert (learner.counters.pretrained, learner.phase) == (4, "training")
    assert run.latest_weights(after=0) is not None


def test_an_agent_without_a_model_is_not_pretrained(run: RunDir) -> None:
    assert Learner(filled(run)).config.pretrain_updates == 0


def test_a_short_run_is_half_random_and_asks_no_more_of_the_model(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", SLAC, steps=9, random_steps=1000, pretrain_updates=5000)
    config = Learner(run).config
    assert (config.random_steps, config.pretrain_updates) == (4, 4)
    assert config.scaled() == config


def test_a_run_resumed_with_more_steps_goes_on_learning_at_once(run: RunDir) -> None:
    learner = worked(Learner(filled(run, 2)))
    assert learner.counters.updates == 4
    learner.save()
    reconfigure(run, random_steps=50)
    resumed = Learner(run)
    resumed.restore()
    add_episode(run, 3)
    worked(resumed)
    assert (resumed.phase, resumed.counters.updates) == ("training", 9)


def test_too_few_steps_for_a_window_are_told(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", SLAC | {"window": 8}, random_steps=3)
    add_episode(run, 1, steps=4, images=True)
    with pytest.raises(ReplayTooSmall, match="window of 8"):
        Learner(run).work(chunk=1)


# --- what comes out


def test_losses_and_update_times_are_in_metrics_and_status(tmp_path: Path) -> None:
    run = filled(make_run(tmp_path / "run", SLAC, pretrain_updates=5), 3, images=True)
    with MetricsLog(run.path) as metrics:
        learner = worked(Learner(run, metrics))
    model, everything = read_metrics(run.path)[0], read_metrics(run.path)[-1]
    assert model["step"] == 5  # model-only updates: no control step happens meanwhile
    assert {"pretraining/kl", "pretraining/image_nll"} <= model.keys()
    assert model["wall"]["pretraining_p50_ms"] > 0
    assert everything["step"] == 15
    assert {"loss/critic_loss", "loss/kl", "updates"} <= everything.keys()
    status = learner.status()
    assert status["times"]["update_p50_ms"] > 0
    assert status["losses"].keys() >= {"critic_loss", "actor_loss", "alpha", "kl"}


def test_waiting_writes_no_metrics(run: RunDir) -> None:
    with MetricsLog(filled(run).path) as metrics:
        learner = worked(Learner(run, metrics))
        rows = len(read_metrics(run.path))
        for _ in range(5):
            assert not learner.work(chunk=10)
        assert len(read_metrics(run.path)) == rows > 0


def test_what_the_model_sees_is_drawn_after_pretraining_and_at_the_end(tmp_path: Path) -> None:
    run = filled(make_run(tmp_path / "run", SLAC), 3, images=True)
    picture = run.path / "reconstruction.png"
    learner = Learner(run)
    learner.work(chunk=4)
    assert learner.counters.pretrained == 4
    with Image.open(picture) as image:
        assert image.width > 4 * 60  # window + 1 columns
    picture.unlink()
    before = state_of(learner)
    learner.save()
    assert picture.exists()
    assert same(before, state_of(learner))  # drawing leaves training's randomness alone


def test_nothing_is_drawn_without_a_model_or_before_it_learned(tmp_path: Path) -> None:
    for name, agent in (("a", SAC), ("b", SLAC)):
        run = filled(make_run(tmp_path / name, agent), 1, images=True)
        learner = worked(Learner(run))
        assert learner.counters.pretrained == 0
        learner.save()
        assert not (run.path / "reconstruction.png").exists()


# --- the replay's images in a file


def test_a_learner_with_its_replay_on_disk_learns_the_same(tmp_path: Path) -> None:
    ends = []
    for on_disk in (False, True):
        run = filled(make_run(tmp_path / str(on_disk), SLAC, replay_on_disk=on_disk), 3, images=True)
        ends.append(state_of(worked(Learner(run))))
        assert not (run.path / "replay").exists()
    assert same(*ends)


def test_no_room_for_the_replay_is_told(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", SLAC, replay_on_disk=True, replay_capacity=10**12)
    with pytest.raises(DiskError, match=r"run/replay could not be written: .*(space|large)"):
        Learner(run)


# --- expectations of the critics


def judged(learner: Learner, monkeypatch: pytest.MonkeyPatch, value: float) -> dict[str, float]:
    """The audit of a learner whose critics expect `value` of everything."""
    monkeypatch.setattr(
        learner.agent, "judge", lambda windows: np.full(len(windows), value, np.float32), raising=True
    )
    return learner.audit()


@pytest.mark.parametrize("agent", [SAC, PIXELS, SLAC], ids=["sac_state", "sac_pixels", "slac"])
def test_expectations_are_compared_with_what_came(
    agent: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By hand: gamma 0.99, five steps to an episode, the critics' own word about the last step."""
    run = filled(make_run(tmp_path / "run", agent, random_steps=5), 6, images=agent is not SAC)
    learner = worked(Learner(run))
    bonus = float(learner.agent.core.temperature.alpha) * learner.losses["entropy"]
    window = learner.agent.window
    received = []
    for index in (3, 4, 5, 6):
        rewards = read_episode(run.path / f"episodes/{index:06d}.mcap").rewards
        totals = [7.0]
        for reward in rewards[-2 : window - 2 : -1] if window > 1 else rewards[-2::-1]:
            totals.insert(0, reward + 0.99 * (totals[0] + bonus))
        received += totals[: (len(totals) + 1) // 2]
    found = judged(learner, monkeypatch, 7.0)
    assert found["expected"] == 7.0
    assert found["received"] == pytest.approx(np.mean(received), rel=1e-5)


def test_after_a_true_failure_nothing_more_is_expected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = worked(Learner(filled(make_run(tmp_path / "run", SAC, random_steps=5), 3)))
    images, states = None, np.zeros((3, 5), np.float32)
    learner.replay.add_episode(
        images, states, np.zeros((2, 2), np.float32), np.array([-1, -2], np.float32), terminated=True
    )
    monkeypatch.setattr("agent.learner.AUDITED", 1)
    bonus = float(learner.agent.core.temperature.alpha) * learner.losses["entropy"]
    found = judged(learner, monkeypatch, 7.0)
    assert found["received"] == pytest.approx(-1 + 0.99 * (-2 + bonus), rel=1e-5)


def test_expectations_stand_in_the_metrics_and_leave_training_alone(tmp_path: Path) -> None:
    ends = []
    for name, every in (("often", 1), ("never", 10_000)):
        run = filled(make_run(tmp_path / name, SLAC, probe_every=every), 3, images=True)
        with MetricsLog(run.path) as metrics:
            learner = worked(Learner(run, metrics))
        rows = [row for row in read_metrics(run.path) if "value/expected" in row]
        assert bool(rows) == (name == "often")
        assert all(np.isfinite(row["value/received"]) for row in rows)
        ends.append(state_of(learner))
    assert same(*ends)


# --- stored features


def test_stored_features_are_renewed_as_often_as_set_and_new_frames_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = filled(make_run(tmp_path / "run", STORED), 2, images=True)
    learner, encoded = worked(Learner(run)), []
    encode_frames = learner.agent.encode_frames  # type: ignore[attr-defined]

    def count(frames: torch.Tensor) -> torch.Tensor:
        encoded.append(len(frames))
        features: torch.Tensor = encode_frames(frames)
        return features

    monkeypatch.setattr(learner.agent, "encode_frames", count)
    learner.checkpoint()
    learner.train(1)
    assert encoded == [12], "all of them: what a learner does that goes on from the checkpoint"
    add_episode(run, 3, images=True)
    learner.ingest()
    learner.train(1)
    assert encoded == [12, 6], "an episode that came since"
    learner.train(1)
    assert encoded == [12, 6]
    learner.train(1)
    assert encoded == [12, 6, 18], "three updates later all of them"


def test_stored_features_are_those_of_the_present_encoder_when_renewed(tmp_path: Path) -> None:
    learner = worked(Learner(filled(make_run(tmp_path / "run", STORED), 2, images=True)))
    learner._encoded = -np.inf
    learner._encode(learner.agent)  # type: ignore[arg-type]
    batch = learner.replay.sample(16, learner.agent.window, np.random.default_rng(0))
    assert batch.image is not None
    assert batch.features is not None
    frames = batch.image[:, -1].permute(0, 2, 3, 1)
    expected = learner.agent.encode_frames(frames)  # type: ignore[attr-defined]
    torch.testing.assert_close(batch.features[:, -1], expected, atol=1e-6, rtol=0)


def test_a_roll_back_renews_the_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = worked(Learner(filled(make_run(tmp_path / "run", STORED), 3, images=True)))
    learner.checkpoint()
    own = learner.agent.update
    monkeypatch.setattr(learner.agent, "update", lambda *windows: {"critic_loss": float("nan")})
    add_episode(learner.run, 4, images=True)
    learner.ingest()
    learner.train(1)
    assert learner.counters.rollbacks == 1
    learner.replay._features[:] = np.nan  # type: ignore[index]
    monkeypatch.setattr(learner.agent, "update", own)
    learner.train(1)
    assert np.isfinite(learner.losses["critic_loss"])


# --- checkpoints


@pytest.mark.parametrize(
    "agent",
    [SAC, PIXELS, SLAC, STORED, STORED | {"proprioception": True}],
    ids=["sac_state", "sac_pixels", "slac", "slac with stored features", "slac that also feels"],
)
def test_a_restored_learner_goes_on_bit_for_bit(agent: dict[str, Any], tmp_path: Path) -> None:
    run = filled(make_run(tmp_path / "run", agent), 3, images=agent is not SAC)
    first = worked(Learner(run))
    first.save()
    second = Learner(run)
    assert second.restore()
    assert same(state_of(first), state_of(second))
    add_episode(run, 4, images=agent is not SAC)
    assert same(state_of(worked(first)), state_of(worked(second)))
    assert first.counters.updates == 20 - 6


def test_the_ring_of_a_restored_learner_is_the_same_after_it_wrapped(tmp_path: Path) -> None:
    run = filled(make_run(tmp_path / "run", random_steps=50_000), 5, steps=300)
    first = Learner(run)
    first.ingest()
    first.checkpoint()
    second = Learner(run)
    second.restore()
    assert len(first.replay) == first.replay.capacity == 1000
    assert same(state_of(first), state_of(second))


def test_episodes_that_came_after_the_checkpoint_are_taken_in_later(run: RunDir) -> None:
    worked(Learner(filled(run, 2))).save()
    add_episode(run, 3)
    resumed = Learner(run)
    resumed.restore()
    assert (resumed.counters.steps, len(resumed.replay)) == (10, 12)
    assert resumed.ingest() == 5


def test_a_run_without_a_checkpoint_begins_anew(run: RunDir) -> None:
    learner = Learner(filled(run, 2))
    assert not learner.restore()
    assert learner.counters == Counters()


def test_checkpoints_come_with_steps_and_with_model_updates(tmp_path: Path) -> None:
    run = filled(make_run(tmp_path / "run", SLAC, pretrain_updates=9, checkpoint_every=4), 2, images=True)

    learner, at = Learner(run), []
    for turn in range(1, 14):
        before = set((run.path / "checkpoints").glob("*.pt"))
        learner.work(chunk=1)
        at += [turn] if set((run.path / "checkpoints").glob("*.pt")) - before else []
    # At once for 10 new steps; after 4 more model updates; at the end of pretraining; after 4 updates.
    assert at == [1, 5, 9, 13]


def test_weights_published_after_the_checkpoint_do_not_outrank_what_comes(run: RunDir) -> None:
    learner = worked(Learner(filled(run, 2)))
    learner.checkpoint()
    saved = learner.agent.policy_weights()
    add_episode(run, 3)
    worked(learner)
    for _ in range(3):
        learner.publish()
    later = learner.counters.version  # and now a kill -9

    resumed = Learner(run)
    resumed.restore()
    newest = run.latest_weights(after=later)
    assert newest is not None, "the actor, which knows version `later`, would never load these"
    assert same(newest[1], saved)


def test_weights_of_a_run_without_checkpoint_do_not_outrank_what_comes(run: RunDir) -> None:
    learner = Learner(filled(run))
    for _ in range(7):
        learner.publish()
    fresh = Learner(run)
    fresh.restore()
    fresh.publish()
    assert run.latest_weights(after=7) is not None


# --- divergence


def poison(learner: Learner, monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """The next updates spoil the weights and say so, as a real divergence does."""
    real, left = learner.agent.update, iter(range(times))

    def update(batch: Batch) -> dict[str, float]:
        losses = real(batch)
        if next(left, None) is None:
            return losses
        spoiled = learner.agent.state_dict()
        for weights in spoiled["core"]["policy"].values():
            weights.fill_(float("nan"))
        learner.agent.load_state_dict(spoiled)
        return losses | {"critic_loss": float("nan")}

    monkeypatch.setattr(learner.agent, "update", update)


def test_a_loss_that_is_no_number_leads_back_to_the_checkpoint(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = worked(Learner(filled(run, 2)))
    learner.save()
    rng = learner.rng.bit_generator.state
    poison(learner, monkeypatch, times=1)
    add_episode(run, 3)
    learner.work(chunk=3)
    assert learner.counters.updates == 4, "those of the checkpoint"
    assert learner.rng.bit_generator.state != rng, "the same batches would diverge again"
    assert "critic_loss is not a number after 4 updates" in learner.status()["notes"][0]
    assert all(torch.isfinite(weights).all() for weights in published(run).values())
    worked(learner)
    assert (learner.counters.updates, learner.counters.steps) == (9, 15), "what was lost is made up for"
    learner.save()
    assert all(torch.isfinite(weights).all() for weights in published(run).values())


def test_a_model_that_is_being_lost_leads_back_to_the_checkpoint(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", SLAC)
    learner = worked(Learner(filled(run, 2, images=True)))
    learner.save()
    saved = learner.counters.done
    for _ in range(300):
        learner.watch.hears({"psnr": 90.0}, 1.0)  # far better than what comes
    add_episode(run, 3, images=True)
    worked(learner)
    assert learner.counters.rollbacks == 1
    note = learner.status()["notes"][0]
    assert "reconstructions fell from " in note
    assert note.endswith(f"back to the checkpoint after {saved}.")
    assert learner.counters.done == saved
    assert worked(learner).counters.done > saved, "it goes on from there"


def test_what_diverges_again_and_again_stops_and_leaves_the_checkpoint(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = worked(Learner(filled(run, 2)))
    learner.save()
    good, files = learner.agent.state_dict(), sorted((run.path / "checkpoints").iterdir())
    poison(learner, monkeypatch, times=100)
    add_episode(run, 3)
    for _ in range(3):
        learner.work(chunk=3)
    assert learner.counters.rollbacks == 3
    with pytest.raises(TrainingDivergedError, match=r"critic_loss.*and 3 times before.*learning rates"):
        learner.work(chunk=3)
    learner.save()
    assert sorted((run.path / "checkpoints").iterdir()) == files
    resumed = Learner(run)
    assert resumed.restore()
    assert same(resumed.agent.state_dict(), good)


def test_a_divergence_before_the_first_checkpoint_stops(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = Learner(filled(run, 2))
    poison(learner, monkeypatch, times=1)
    with pytest.raises(TrainingDivergedError, match="0 times before"):
        learner.work(chunk=3)


def test_an_episode_with_what_is_no_number_is_named(run: RunDir) -> None:
    add_episode(run, 1)
    add_episode(run, 2, reward=np.nan)
    learner = Learner(run)
    with pytest.raises(EpisodeCorrupt, match=r"000002.mcap: rewards of step 0 are no numbers: nan.*mv "):
        learner.ingest()
    assert (len(learner.replay), learner.counters.steps) == (6, 5)


def test_images_of_another_size_are_named(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", SLAC)
    add_episode(run, 1, images=True, size=32)
    with pytest.raises(EpisodeCorrupt, match=r"000001.mcap: images have shape \(6, 32, 32, 3\)"):
        Learner(run).ingest()


def test_a_checkpoint_of_other_layers_is_told(run: RunDir) -> None:
    worked(Learner(filled(run, 2))).save()
    sections = yaml.safe_load(run.config_text)
    sections["agent"]["sac"]["hidden"] = [16]
    (run.path / "config.yaml").write_text(yaml.safe_dump(sections))
    with pytest.raises(CheckpointMismatch, match=r"other layers.*\[.*config.yaml"):
        Learner(run).restore()


def test_a_full_gpu_names_the_settings_to_lower(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = Learner(filled(run, 2))

    def update(batch: Batch) -> dict[str, float]:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(learner.agent, "update", update)
    with pytest.raises(TooLittleMemory, match=r"4 windows.*batch_size"):
        learner.work(chunk=1)


# --- the probe


def seen(path: Path, **train: Any) -> RunDir:
    """A run with images and known angles, which have nothing to do with each other."""
    return filled(make_run(path, SLAC, **train), 12, images=True, angles=True)


def test_the_probe_is_logged_and_leaves_training_as_it_is(tmp_path: Path) -> None:
    run = seen(tmp_path / "run", pretrain_updates=8, probe_every=4)
    with MetricsLog(run.path) as metrics:
        learner = Learner(run, metrics)
        learner.work(chunk=3)
        assert learner.probed is None
        learner.work(chunk=1)
        probed, before = learner.probed, state_of(learner)
        assert probed is not None
        assert learner.look()["latents"] == probed
        assert same(before, state_of(learner))
        worked(learner)
    rows = [row for row in read_metrics(run.path) if "pretraining/probe_latents" in row]
    assert [row["step"] for row in rows] == [4, 8]
    assert rows[0]["pretraining/probe_latents"] == probed
    assert any({"loss/probe_latents", "loss/probe_features"} <= row.keys() for row in read_metrics(run.path))
    assert learner.status()["probe"] == learner.probed


def test_a_model_that_sees_nothing_is_told(tmp_path: Path) -> None:
    learner = Learner(seen(tmp_path / "run", probe_every=2))
    learner.work(chunk=4)
    assert learner.phase == "training"
    assert learner.probed is not None
    assert learner.probed > 45  # random pictures
    assert "does not see the object" in learner.status()["notes"][0]


def test_pretraining_ends_once_the_model_sees(tmp_path: Path) -> None:
    run = seen(tmp_path / "run", pretrain_updates=1000, probe_every=4, pretrain_until=89.9)
    learner = Learner(run)
    looks = iter([95.0, 89.9])  # what probes say of random pictures is a matter of luck
    learner.look = lambda: {"latents": next(looks)}  # type: ignore[method-assign]
    learner.work(chunk=4)
    assert learner.phase == "pretraining"
    learner.work(chunk=4)
    assert (learner.phase, learner.counters.pretrained) == ("training", 8)
    learner.checkpoint()
    resumed = Learner(run)
    resumed.restore()
    assert resumed.phase == "training"


def test_without_known_angles_or_images_nothing_is_probed(tmp_path: Path) -> None:
    for name, agent in (("state", SAC), ("images", SLAC)):
        learner = Learner(filled(make_run(tmp_path / name, agent, probe_every=1), 3, images=True))
        learner.work(chunk=2)
        assert learner.look() == {}
        assert learner.probed is None


# --- the process


def test_a_learner_that_is_asked_to_stop_saves_first(run: RunDir) -> None:
    filled(run, 3)
    threading.Timer(0.5, run.request_stop).start()
    serve(run, os.getppid())
    status = run.last_beat("learner")
    assert status is not None
    assert (status["phase"], status["updates"], status["episodes"]) == ("stopped", 9, 3)
    resumed = Learner(run)
    assert resumed.restore()
    assert resumed.counters.updates == 9


def test_a_damaged_checkpoint_is_told_to_the_actor(run: RunDir) -> None:
    learner = worked(Learner(filled(run, 2)))
    learner.checkpoint()
    learner.checkpoint()
    newest = max((run.path / "checkpoints").glob("*.pt"))
    newest.write_bytes(newest.read_bytes()[:-9])
    threading.Timer(0.5, run.request_stop).start()
    serve(run, os.getppid())
    status = run.last_beat("learner")
    assert status is not None
    assert newest.name in status["notes"][0]


def test_a_learner_whose_actor_is_gone_saves_and_ends(run: RunDir) -> None:
    serve(filled(run), actor_pid=os.getpid())  # this process is not its own parent
    assert Learner(run).restore()


def test_a_learner_waits_for_the_one_of_a_killed_actor_to_leave(run: RunDir) -> None:
    held, release = threading.Event(), threading.Event()

    def old() -> None:
        with run.lock("learner"):
            held.set()
            release.wait(5)

    thread = threading.Thread(target=old)
    thread.start()
    assert held.wait(5)
    threading.Timer(0.2, release.set).start()
    began = time.monotonic()
    with locked(run, patience=5):
        assert release.is_set()
    assert time.monotonic() - began < 2
    thread.join()


def test_two_learners_never_share_a_run(run: RunDir) -> None:
    with run.lock("learner"), pytest.raises(RunBusy, match="learner"), locked(run, patience=0.1):
        pass


def test_the_last_words_of_a_failed_learner_are_readable(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    filled(run)
    path = run.path / "episodes" / "000002.mcap"
    path.write_bytes(path.read_bytes()[:-20])
    monkeypatch.setattr(os, "nice", lambda increment: 0)  # would slow down every test after this one
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        assert main([str(run.path), "--actor", str(os.getppid())]) == 1
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert "000002.mcap" in last
    assert "mv " in last
