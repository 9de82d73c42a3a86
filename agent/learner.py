"""The learner: episodes in, weights out, never more updates than the data has earned.

It runs inside the actor's process (`--sync`) or as its own process (`python -m agent.learner RUN`), where
the run directory is all that the two share.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from pydantic import TypeAdapter

from agent.build import Agent, build_agent, prepare_process
from agent.config import AgentConfig
from agent.divergence import DivergenceWatch
from agent.episodes import EpisodeError
from agent.files import DiskError, disk_errors
from agent.intake import PriorDataError, fill_with_prior, make_replay, mixed, take
from agent.latent import probe
from agent.metrics import MetricsLog, Stopwatch
from agent.replay import CPU, Batch, ReplayTooSmall, SequenceReplay
from agent.report import strip
from agent.run_dir import RunBusy, RunDir, RunError
from agent.schedule import TrainConfig
from agent.slac import SlacAgent

CHUNK = 10  # updates between two looks at the run directory: at most a few seconds at the official size
IDLE_SLEEP = 0.1  # s; episodes take seconds
LOCK_PATIENCE = 60.0  # s for the learner of a killed actor to save and leave
STRIP_WINDOWS = 64  # drawn for the reconstruction strip, of which the liveliest is shown
ROLLBACKS = 3  # of one run: what diverges more often needs a person
PROBE_WINDOWS = 400  # as many as the probe fits and tests its reading on
PROBE_CHUNK = 50  # windows that are encoded at once
PROBE_SPLIT = 0.75  # of the stored windows, oldest first: fitted on these, tested on the rest
AUDITED = 4  # episodes in which the critics' expectations are compared with what came
BLIND = 45.0  # degrees: a model that errs more does not see the object


class TrainingDivergedError(RuntimeError):
    """What was learned is being lost; the last checkpoint still has it."""


class TooLittleMemory(RuntimeError):
    """The device has no room for an update."""


class CheckpointMismatch(RuntimeError):
    """The checkpoint is of an agent of another architecture."""


@dataclass
class Counters:
    """How far the learner is; part of every checkpoint."""

    episodes: int = 0  # index of the last episode taken in
    steps: int = 0
    pretrained: int = 0
    updates: int = 0
    version: int = 0  # of the weights published last
    free_steps: int | None = None  # steps that earned no update; fixed by the first one, see `Learner.due`
    seeing: bool = False  # the probe has ended pretraining
    rollbacks: int = 0  # to an earlier checkpoint, because what was learned was being lost

    @property
    def done(self) -> int:
        """Updates of either kind."""
        return self.pretrained + self.updates


def load_sections(run: RunDir) -> tuple[TrainConfig, AgentConfig, dict[str, Any]]:
    """The schedule, the agent and the sizes of observation and action that a run works with."""
    sections = yaml.safe_load(run.config_text)
    train = TrainConfig.model_validate(sections["train"])
    agent: AgentConfig = TypeAdapter(AgentConfig).validate_python(sections["agent"])
    return train, agent, json.loads((run.path / "spaces.json").read_text())


# What a person can mend; the message says how.
LEARNER_ERRORS = (
    TrainingDivergedError,
    TooLittleMemory,
    CheckpointMismatch,
    ReplayTooSmall,
    EpisodeError,
    PriorDataError,
    DiskError,
    RunError,
)


class Learner:
    """Replay, agent and counters of one run.

    Training depends on the seed and on the episodes alone: an agent, its random generators and its replay
    come out of a checkpoint bit for bit as they went in.
    """

    def __init__(self, run: RunDir, metrics: MetricsLog | None = None) -> None:
        config, agent_config, spaces = load_sections(run)
        self.run, self.config, self.metrics = run, config.scaled(), metrics
        self.agent: Agent = build_agent(agent_config, seed=config.seed, **spaces)
        if not self.agent.pretrain_batch_size:  # no model to train ahead
            self.config = self.config.model_copy(update={"pretrain_updates": 0})
        agent, keys = self.agent, self.agent.observations
        self._storing = agent if isinstance(agent, SlacAgent) and agent.config.feature_age else None
        self._encoded = -math.inf  # updates by the last time that all stored frames were encoded
        options = {
            "feature_size": self._storing.config.model.features if self._storing else None,
            "device": self._home(spaces),
        }
        path, capacity = run.path / "replay", config.replay_capacity
        with disk_errors(path):
            on_disk = path if config.replay_on_disk else None
            self.replay = make_replay(capacity, keys, spaces, path=on_disk, **options)
        self.prior: SequenceReplay | None = None  # episodes of other runs
        if config.prior:
            self.prior = make_replay(capacity, keys, spaces, **options)
            fill_with_prior(self.prior, config.prior, keys, self.agent.window)
        self.rng = np.random.default_rng([config.seed, 1])
        self.counters = Counters()
        self.losses: dict[str, float] = {}
        self.probed: float | None = None  # degrees by which the last probe erred
        self.notes: list[str] = []  # for the person at the robot
        self.clock = Stopwatch(keep=1000)
        sac = agent_config.sac
        loosest = math.log(2) * int(spaces["action_size"])  # nats, of a policy to which all actions are alike
        self.watch = DivergenceWatch(sac.discount, sac.initial_temperature * loosest)
        self.diverged = False
        self._saved = Counters()  # as of the newest checkpoint
        self._logged = 0  # updates by the last row of metrics
        self._looked = 0  # updates by the last probe

    def _home(self, spaces: Mapping[str, Any]) -> torch.device:
        """Where all rings' images lie: on the GPU that learns if they take less than half of what is free."""
        device, rings = self.agent.device, 2 if self.config.prior else 1
        if device.type != "cuda" or "image" not in self.agent.observations or self.config.replay_on_disk:
            return CPU
        needed = rings * self.config.replay_capacity * math.prod(spaces["image_shape"])
        return device if needed < torch.cuda.mem_get_info(device)[0] / 2 else CPU

    def ingest(self) -> int:
        """Takes in every episode that was closed since the last call; returns the steps gained.

        Raises EpisodeError for a damaged one; those before it count.
        """
        before = self.counters.steps
        for path in self.run.episodes(after=self.counters.episodes):
            self.counters.steps += take(self.replay, path, self.agent.observations)
            self.counters.episodes = RunDir.episode_index(path)
        return self.counters.steps - before

    @property
    def phase(self) -> str:
        """What the learner does next: collecting, pretraining or training."""
        if self.counters.free_steps is not None:
            return "training"
        if self.counters.steps < self.config.random_steps:
            return "collecting"
        enough = self.counters.seeing or self.counters.pretrained >= self.config.pretrain_updates
        return "training" if enough else "pretraining"

    @property
    def due(self) -> int:
        """Updates that the data has earned and that are still to do.

        The random steps earn none. How many those are is settled by the first update: a run that is resumed
        with more steps, so with a longer random phase, goes on learning at once.
        """
        if self.phase != "training":
            return 0
        free = self.counters.free_steps
        earned = self.counters.steps - (self.config.random_steps if free is None else free)
        return max(0, math.floor(earned * self.config.updates_per_step) - self.counters.updates)

    def pretrain(self, count: int) -> None:
        """Does `count` model-only updates, fewer after a roll-back.

        Raises ReplayTooSmall, TrainingDivergedError, TooLittleMemory.
        """
        for _ in range(count):
            if not self._update("pretraining", self.agent.pretrain, self.agent.pretrain_batch_size):
                return
            self.counters.pretrained += 1

    def train(self, count: int) -> None:
        """Does `count` updates of everything, fewer after a roll-back. Raises what `pretrain` raises."""
        for _ in range(count):
            if not self._update("update", self._joint_update, self.agent.batch_size):
                return
            if self.counters.free_steps is None:
                self.counters.free_steps = self.config.random_steps
            self.counters.updates += 1

    def _update(self, kind: str, update: Callable[[Batch], dict[str, float]], batch_size: int) -> bool:
        """One update; False when it spoiled the weights and those of the last checkpoint are back."""
        batch = self._drawn(batch_size)
        try:
            with self.clock(kind):
                self.losses = update(batch)
        except torch.OutOfMemoryError as error:
            raise TooLittleMemory(
                f"the GPU has no room for an update of {batch_size} windows ({error}). Lower "
                "--set agent.sac.batch_size and agent.model_batch, or choose --set agent.device=cpu."
            ) from error
        rings = [ring for ring in (self.replay, self.prior) if ring is not None]
        bad = self.watch.hears(self.losses, max(ring.largest_reward for ring in rings))
        if bad:
            self._roll_back(bad)
        return not bad

    def _joint_update(self, batch: Batch) -> dict[str, float]:
        if self._storing is None:
            return self.agent.update(batch)
        self._encode(self._storing)
        return self._storing.update(batch, self._drawn(self._storing.encoded_batch_size, images=False))

    def _encode(self, agent: SlacAgent) -> None:
        """Brings the features of stored frames up to date: of all when they are due, else of new ones."""
        anew = self.counters.done - self._encoded >= agent.config.feature_age
        for ring in (self.replay, self.prior):
            if ring is not None:
                ring.encode(agent.encode_frames, anew=anew)
        if anew:
            self._encoded = self.counters.done

    def _drawn(self, batch_size: int, *, images: bool = True) -> Batch:
        """Windows of this run and, in the share that is set, of its prior data: RLPD's symmetric sampling."""
        window, rng = self.agent.window, self.rng
        if self.prior is None:
            return self.replay.sample(batch_size, window, rng, images=images)
        prior = min(max(1, round(self.config.prior_share * batch_size)), batch_size - 1)
        own = self.replay.sample(batch_size - prior, window, rng, images=images)
        return mixed(own, self.prior.sample(prior, window, rng, images=images))

    def _roll_back(self, bad: str) -> None:
        """The weights of the last checkpoint, and the updates since then once more, on other batches.

        The stream of random numbers goes on: from the checkpoint's own the same batches would diverge again.
        """
        self.diverged = True  # these weights must not become a checkpoint
        what = f"{bad} after {self.counters.done} updates"
        saved = self.run.load_checkpoint() if self.counters.rollbacks < ROLLBACKS else None
        if saved is None:
            raise TrainingDivergedError(
                f"{what}, and {self.counters.rollbacks} times before. Start a new run with lower learning "
                "rates (`--set agent.sac.critic_lr=1e-4`); the episodes of this one are kept."
            )
        self.agent.load_state_dict(saved["agent"])
        then = Counters(**saved["counters"])
        for name in ("pretrained", "updates", "free_steps", "seeing"):
            setattr(self.counters, name, getattr(then, name))
        self.counters.rollbacks += 1
        self._logged = self._looked = min(self._looked, self.counters.done)
        self._encoded = -math.inf
        self.watch.forget()
        self.diverged, self.losses = False, {}
        self.notes.append(f"{what}: back to the checkpoint after {self.counters.done}.")
        if self.counters.updates:
            self.publish()

    def look(self) -> dict[str, float]:
        """Degrees by which linear readings err about the object's angle, by what is read; 90 = blind.

        "latents" are what the critic sees, "features" what the encoder makes of the newest frame alone.
        Fitted on older windows, tested on newer ones; the model never learns from angles. Training's own
        random numbers stay as they are. Empty where no angle is known or nothing is encoded.
        """
        if "image" not in self.agent.observations:
            return {}
        aside = np.random.default_rng(self.config.seed)
        read: dict[str, list[NDArray[np.float32]]] = {"latents": [], "features": []}
        angles = []
        for share, span in ((PROBE_SPLIT, (0.0, PROBE_SPLIT)), (1 - PROBE_SPLIT, (PROBE_SPLIT, 1.0))):
            for _ in range(round(PROBE_WINDOWS * share) // PROBE_CHUNK):
                batch = self.replay.sample(PROBE_CHUNK, self.agent.window, aside, span)
                assert batch.angle is not None
                if batch.angle.isnan().any():
                    return {}
                read["latents"].append(self.agent.represent(batch))
                read["features"].append(self.agent.features(batch))
                angles.append(batch.angle[:, -1].numpy())
        angle = np.concatenate(angles)
        return {name: probe(np.concatenate(rows), angle) for name, rows in read.items()}

    def audit(self) -> dict[str, float]:
        """What the critics expect in the newest episodes, and what came, on average over their first halves.

        "expected" is Q(s, a); "received" adds up the discounted rewards up to the episode's end, the entropy
        bonuses at their present size, and where a time limit ended it what the critics expect of the last
        step. A gap says that the critics over- or underestimate. Empty before the first update.
        """
        if not self.counters.updates or "entropy" not in self.losses:
            return {}
        core, expected, received = self.agent.core, [], []
        bonus = float(core.temperature.alpha) * self.losses["entropy"]
        for windows in self.replay.newest_episodes(AUDITED, self.agent.window):
            values = self.agent.judge(windows)
            rewards, goes_on = windows.reward[:, -1].numpy(), windows.discount[:, -1].numpy()
            total = float(values[-1] if goes_on[-1] else rewards[-1])
            totals = [total]
            for reward in rewards[-2::-1]:
                total = float(reward) + core.config.discount * (total + bonus)
                totals.append(total)
            half = (len(values) + 1) // 2
            expected += values[:half].tolist()
            received += totals[::-1][:half]
        if not expected:
            return {}
        return {"expected": float(np.mean(expected)), "received": float(np.mean(received))}

    def look_if_due(self) -> None:
        """Probes latents and critics when the last time is `probe_every` updates ago.

        What the latents know may end pretraining.
        """
        if self.counters.done - self._looked < self.config.probe_every:
            return
        self._looked, seen = self.counters.done, self.look()
        if self.metrics is not None and (audited := self.audit()):
            row = {f"value/{name}": value for name, value in audited.items()}
            self.metrics.write(self.counters.steps, row)
        if not seen:
            return
        self.probed = seen["latents"]
        gate = self.config.pretrain_until
        if self.phase == "pretraining" and gate is not None and self.probed <= gate:
            self.counters.seeing = True
        if self.metrics is not None:
            kind = "loss" if self.counters.updates else "pretraining"
            step = self.counters.steps if self.counters.updates else self.counters.pretrained
            self.metrics.write(step, {f"{kind}/probe_{name}": error for name, error in seen.items()})

    def work(self, chunk: int) -> bool:
        """Takes in new episodes and does at most `chunk` updates; False when there was nothing to do.

        Publishes, logs and saves as often as the schedule says. Raises what `ingest` and `train` raise, and
        DiskError.
        """
        self.ingest()
        before, pretraining = self.counters.done, self.phase == "pretraining"
        if pretraining:
            self.pretrain(min(chunk, self.config.pretrain_updates - self.counters.pretrained))
        else:
            self.train(min(chunk, self.due))
        self.look_if_due()
        ready = self.phase == "training"
        if self.counters.done // self.config.publish_every > before // self.config.publish_every:
            self.log()
            if ready:
                self.publish()
        if ready and self.counters.version == 0:
            self.publish()  # the actor waits for a first policy
        if pretraining and ready:
            self._warn_if_blind()
            self.save()  # hours of work at the published size
        self.save_if_due()
        return self.counters.done != before

    def _warn_if_blind(self) -> None:
        if self.probed is not None and self.probed > BLIND:
            self.notes.append(
                f"after {self.counters.pretrained} updates the model does not see the object: its latents "
                f"tell the angle with an error of {self.probed:.0f} degrees (90 = not at all). Learning will "
                "wander until they do; reconstruction.png shows what they hold. Give it more --set "
                "train.pretrain_updates, or a quicker start by --set agent.model.initial_std=0.08."
            )

    def log(self) -> None:
        """Writes new losses to the metrics: over control steps, or over model updates while pretraining."""
        if self.metrics is None or self._logged == self.counters.done:
            return
        self._logged = self.counters.done
        timings = self.clock.row()
        if self.counters.updates:
            row = {f"loss/{name}": value for name, value in self.losses.items()}
            row["updates"] = float(self.counters.updates)
            self.metrics.write(self.counters.steps, row, timings)
        else:
            row = {f"pretraining/{name}": value for name, value in self.losses.items()}
            self.metrics.write(self.counters.pretrained, row, timings)

    def status(self) -> dict[str, Any]:
        """Phase, counters, losses and times of an update (ms): what displays and summaries show."""
        target = {"pretrain_updates": self.config.pretrain_updates}
        return {
            "phase": self.phase,
            **vars(self.counters),
            **target,
            "due": self.due,
            "probe": self.probed,
            "notes": self.notes,
            "losses": self.losses,
            "times": self.clock.row(),
        }

    def publish(self) -> None:
        """Offers the present policy to the actor. Raises DiskError."""
        self.counters.version += 1
        self.run.publish_weights(self.agent.policy_weights(), self.counters.version)

    def save_if_due(self) -> None:
        """Saves a checkpoint, and draws, when the last one is `checkpoint_every` steps or updates old."""
        steps = self.counters.steps - self._saved.steps
        updates = self.counters.done - self._saved.done
        if max(steps, updates) >= self.config.checkpoint_every:
            self.checkpoint()
            self.illustrate()

    def save(self) -> None:
        """Publishes what was learned, saves a checkpoint and draws what the model sees.

        After a divergence nothing: then the checkpoint before is the good one. Raises DiskError.
        """
        if self.diverged:
            return
        self.log()
        if self.counters.updates:
            self.publish()
        self.checkpoint()
        self.illustrate()

    def checkpoint(self) -> None:
        """Saves all that is needed to go on as if nothing had happened. Raises DiskError.

        After an interrupt in the middle of an update, a part of that one gradient step is in it.
        """
        self.run.save_checkpoint(
            {
                "agent": self.agent.state_dict(),
                "counters": vars(self.counters).copy(),
                "rng": json.dumps(self.rng.bit_generator.state),
            }
        )
        self._saved = Counters(**vars(self.counters))
        self._encoded = -math.inf  # what a learner that goes on from here will do first, this one does, too

    def restore(self) -> bool:
        """Continues from the newest good checkpoint and rebuilds the replay; False when there is none.

        The actor gets the weights of the checkpoint, even if later ones were published before a crash.
        Raises CheckpointCorrupt, EpisodeError, DiskError.
        """
        saved = self.run.load_checkpoint()
        if saved is not None:
            try:
                self.agent.load_state_dict(saved["agent"])
            except (RuntimeError, KeyError, ValueError) as error:
                first = str(error).strip().splitlines()[-1].strip()
                raise CheckpointMismatch(
                    f"the checkpoint of {self.run.path} is of an agent with other layers ({first}). Use the "
                    "agent settings of its config.yaml, or begin a new run with --run ANOTHER_FOLDER."
                ) from error
            self.rng.bit_generator.state = json.loads(saved["rng"])
            self.counters, self._saved = Counters(**saved["counters"]), Counters(**saved["counters"])
            self._logged = self._looked = self.counters.done
            for path in self.run.episodes(after=0):  # the replay as it was; later episodes come by `ingest`
                if RunDir.episode_index(path) <= self.counters.episodes:
                    take(self.replay, path, self.agent.observations)
        published = self.run.latest_weights(after=self.counters.version)
        if published is not None:  # the actor takes only what has a higher number
            self.counters.version = published[0]
        if self.counters.updates:
            self.publish()
        return saved is not None

    def illustrate(self) -> None:
        """Draws RUN/reconstruction.png: what the model sees and imagines. Nothing without a model.

        Of some windows the one is shown in which most happens. Raises DiskError.
        """
        if not self.agent.pretrain_batch_size or not self.counters.done:
            return
        aside = np.random.default_rng(self.config.seed)  # training's own numbers stay as they are
        rows = self.agent.reconstruct(self.replay.sample(STRIP_WINDOWS, self.agent.window, aside))
        if not len(rows["truth"]):  # every window crosses the end of an episode
            return
        liveliest = int(rows["truth"].std(1).sum((1, 2, 3)).argmax())
        trained = f"{self.counters.pretrained} + {self.counters.updates} updates"
        strip(
            self.run.path / "reconstruction.png",
            {name.replace("_", " "): list(frames[liveliest]) for name, frames in rows.items()},
            title=f"{self.run.path.name}: what the model sees and imagines after {trained}",
        )


def serve(run: RunDir, actor_pid: int, *, lock_patience: float = LOCK_PATIENCE) -> None:
    """The learner's process: works until it is asked to stop or the actor is gone, then saves."""
    config, agent_config, _ = load_sections(run)
    prepare_process(agent_config, config.learner_threads)
    with locked(run, lock_patience), MetricsLog(run.path, writer="learner") as metrics:
        learner = Learner(run, metrics)
        with warnings.catch_warnings(record=True) as caught:
            learner.restore()
        learner.notes += [str(warning.message) for warning in caught]  # a damaged checkpoint
        while not run.stop_requested() and os.getppid() == actor_pid:
            idle = not learner.work(chunk=CHUNK)
            run.beat("learner", **learner.status())
            if idle:
                time.sleep(IDLE_SLEEP)
        learner.save()
        run.beat("learner", **{**learner.status(), "phase": "stopped"})


@contextmanager
def locked(run: RunDir, patience: float) -> Iterator[None]:
    """The run as its only learner; the one of an actor that was killed gets time to save and leave.

    Raises RunBusy after `patience` seconds.
    """
    deadline = time.monotonic() + patience
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(run.lock("learner"))
                break
            except RunBusy:
                if time.monotonic() > deadline:
                    raise
            time.sleep(IDLE_SLEEP)
        yield


def main(argv: list[str] | None = None) -> int:
    """`python -m agent.learner RUN --actor PID`: started by the actor, which also stops it."""
    parser = argparse.ArgumentParser(prog="python -m agent.learner", description=__doc__)
    parser.add_argument("run")
    parser.add_argument(
        "--actor", type=int, required=True, help="process id of the actor; the learner ends with it"
    )
    args = parser.parse_args(argv)
    run = RunDir.open(args.run)
    for number in (signal.SIGINT, signal.SIGTERM):  # finishes its update and saves
        signal.signal(number, lambda *_: run.request_stop())
    os.nice(10)  # the control loop comes first
    try:
        serve(run, args.actor)
    except LEARNER_ERRORS as error:
        print(error)  # the actor repeats the last line
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
