"""One run from the first random step to the last evaluation, with the learner beside or inside the actor."""

from __future__ import annotations

import math
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from agent.actor import EVALUATION_SEEDS, Actor, Closed
from agent.display import Display, chosen_losses, update_times
from agent.episodes import EpisodeSummary, read_index
from agent.files import DiskError
from agent.learner import CHUNK, Learner
from agent.metrics import MetricsLog, render_summary, summarize, write_summary
from agent.policy import Policy
from agent.report import CurvePoint, learning_curve, training_points, video
from agent.run_dir import RunDir, RunError
from agent.schedule import TrainConfig

POLL = 0.2  # s between two looks at a learner that is not ready yet
STOP_TIMEOUT = 120.0  # s for the last update and the checkpoint; an official-size checkpoint takes seconds


class LearnerDiedError(RuntimeError):
    """The learner's process is gone; the robot was stopped after its episode."""


# What saving and reporting may raise after something else has gone wrong already.
TROUBLES = (DiskError, RunError, LearnerDiedError)


class LearnerLink(Protocol):
    """What the actor needs of a learner, wherever it runs."""

    def prepare(self, display: Display) -> None:
        """Returns once there is a first policy, or once the learner says that it needs more episodes."""
        ...

    def advance(self) -> None:
        """Called after each episode: lets the learner earn its updates, notices its death."""
        ...

    def catch_up(self, display: Display, limit: float) -> None:
        """Lets the learner do the updates that are still due, for `limit` s at most; the robot is at rest."""
        ...

    def status(self) -> Mapping[str, Any]:
        """What `Learner.status` says, for the display and the summary."""
        ...

    def finish(self) -> None:
        """Last weights published, checkpoint on disk, learner stopped; the second time nothing."""
        ...


class LocalLearner:
    """The learner in the actor's process: same seed, same numbers, bit for bit."""

    def __init__(self, run: RunDir, metrics: MetricsLog) -> None:
        """Goes on from the run's newest checkpoint, if there is one. Raises CheckpointCorrupt."""
        self.learner = Learner(run, metrics)
        self.learner.restore()
        self._finished = False

    def prepare(self, display: Display) -> None:
        """Pretrains the model here and now."""
        learner = self.learner
        learner.ingest()
        while learner.phase == "pretraining":
            learner.work(chunk=CHUNK)
            display.pretraining(learner.status())
        learner.work(chunk=0)

    def advance(self) -> None:
        """Does every update that the new episode has earned."""
        learner = self.learner
        learner.ingest()
        while learner.due:  # more than once after a roll-back
            learner.train(learner.due)
            learner.publish()
            learner.log()
        learner.look_if_due()
        learner.save_if_due()

    def catch_up(self, display: Display, limit: float) -> None:
        """Nothing: no update is ever owed."""

    def status(self) -> Mapping[str, Any]:
        """The learner's own."""
        return self.learner.status()

    def finish(self) -> None:
        """Saves the learner. Raises DiskError."""
        if not self._finished:
            self._finished = True
            self.learner.save()


class RemoteLearner:
    """The learner in its own niced process, so that no gradient shares a process with a servo."""

    def __init__(self, run: RunDir) -> None:
        """Starts the learner of `run`."""
        self.run = run
        run.clear_stop()
        (run.path / "beats" / "learner.json").unlink(missing_ok=True)  # of an earlier session
        self._log_path = run.path / "learner.log"
        self._log = self._log_path.open("ab")
        self._log_start = self._log.tell()  # what stands before is from earlier sessions
        self._finished = False
        command = [sys.executable, "-m", "agent.learner", str(run.path.absolute()), "--actor", str(run.pid)]
        # In a session of its own: Ctrl-C in the terminal is for the actor, which stops the learner in order.
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            cwd=Path(__file__).parents[1],
            start_new_session=True,
        )

    def prepare(self, display: Display) -> None:
        """Waits for the first weights while the learner pretrains."""
        while self.run.latest_weights(after=0) is None:
            self.advance()
            status = self.status()
            if self._needs_more(status):
                return
            display.pretraining(status)
            time.sleep(POLL)

    def _needs_more(self, status: Mapping[str, Any]) -> bool:
        """Whether the learner has seen every episode and still waits: some were moved away as damaged."""
        waits = status.get("phase") == "collecting"
        return waits and not self.run.episodes(after=status["episodes"])

    def advance(self) -> None:
        """Raises LearnerDiedError when the process is gone."""
        code = self.process.poll()
        if code is not None and not self._finished:
            self._finished = True
            raise self._death(code)

    def _death(self, code: int) -> LearnerDiedError:
        with self._log_path.open("rb") as log:
            log.seek(self._log_start)
            last = log.read().decode(errors="replace").strip().splitlines()[-1:]
        how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
        return LearnerDiedError(
            f"the learner {how}{': ' + last[0] if last else ''}. The robot stopped after its episode; "
            f"all episodes are kept, {self._log_path} says more. "
            f"Go on with the same command and `--resume --run {self.run.path}`."
        )

    def catch_up(self, display: Display, limit: float) -> None:
        """Waits while the learner works off what the last episodes have earned."""
        deadline = time.monotonic() + limit
        while (status := self.status()).get("due") or self.run.episodes(after=status.get("episodes", 0)):
            self.advance()
            if time.monotonic() > deadline:
                display.note(f"The last updates are left undone: train.catch_up is {limit:g} s.")
                return
            display.catching_up(status)
            time.sleep(POLL)

    def status(self) -> Mapping[str, Any]:
        """What the learner last wrote of itself."""
        return self.run.last_beat("learner") or {}

    def finish(self) -> None:
        """Asks the learner to save and stop; ends it when it does not within two minutes.

        Raises LearnerDiedError when it could not save.
        """
        if self._finished:
            return
        self._finished = True
        self.run.request_stop()
        try:
            code = self.process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        self.run.clear_stop()
        self._log.close()
        if code:
            raise self._death(code)


class Collector(Protocol):
    """One robot or several, on which training episodes happen."""

    def round(
        self, policy: Policy, folder: Path, first: int, wanted: int, closed: Closed
    ) -> list[str | None]:
        """Episodes from number `first` on, at most `wanted`: for each what failed on the rig."""
        ...


@dataclass
class Training:
    """The loop of a run. Its counters come from the episode index, so that a resume just goes on.

    In simulation and with the learner in this process, a run depends on its seed alone. A resumed run is
    equivalent to one that was never interrupted, not identical: the learner goes on bit for bit, but the
    robot starts from its rest pose and exploration draws new numbers.
    """

    run: RunDir
    config: TrainConfig
    actor: Actor  # evaluates, and is what a person sees
    collector: Collector  # the same one, or a fleet
    link: LearnerLink
    policy: Policy
    random_policy: Policy
    metrics: MetricsLog
    display: Display
    statistics: Callable[[], Mapping[str, float]]  # the rig's counters
    picture: Callable[[], NDArray[np.uint8]] | None  # the scene for people, where there is one
    labels: Mapping[str, str]  # measures as people call them
    version: int = 0
    told: set[str] = field(default_factory=set)  # what the learner had to say to a person
    training: list[EpisodeSummary] = field(default_factory=list)
    evaluation: list[EpisodeSummary] = field(default_factory=list)  # the last round
    frames: list[NDArray[np.uint8]] = field(default_factory=list)  # of the last round's first episode

    def execute(self) -> None:
        """Collects and learns up to `config.steps` control steps, measures and reports.

        However it ends, the robot is relaxed, the learner is saved and the report is written, in this order;
        what ended it is raised after.
        """
        self.training = read_index(self.run.path / "episodes.jsonl")
        with self.metrics:
            try:
                with self.display:
                    self._learn()
                    self.actor.rest()  # learning and saving take longer than the servos' watchdog allows
                    self.link.catch_up(self.display, self.config.catch_up)
                    self.link.finish()
                    self.evaluate(self.config.final_episodes)
            except BaseException as error:
                self._stop_early(error)
                raise
            self.report()

    def _stop_early(self, error: BaseException) -> None:
        """Saves what there is. What goes wrong with that is raised only if a person ended the run."""
        self.actor.rest()
        self.display.stopping(error)
        interrupted = not isinstance(error, Exception)
        if interrupted:
            self.display.note("The robot is relaxed. Saving; Ctrl-C again does not wait for it.")
        for act in (self.link.finish, self.report):
            try:
                act()
            except TROUBLES as trouble:
                if interrupted:
                    raise
                self.display.note(f"also: {trouble}")

    @property
    def steps(self) -> int:
        """Control steps so far, those of earlier sessions included."""
        return sum(summary.steps for summary in self.training)

    def _learn(self) -> None:
        self.display.begin(self.steps, self.config)
        self.actor.warm_up(self.policy)
        index = self.run.next_episode()
        while (before := self.steps) < self.config.steps:
            policy, folder = self._choose(), self.run.path / "episodes"
            usual = self.training[-1].steps if self.training else 1
            wanted = math.ceil((self.config.steps - before) / max(usual, 1))
            for fault in self.collector.round(policy, folder, index, wanted, self._account):
                self._tell(f"episode {index}", fault)
                index += 1
            self._pass_on()
            self.link.advance()
            if self._evaluation_due(before):
                self.evaluate(self.config.evaluation_episodes)

    def _choose(self) -> Policy:
        """Random actions until the random steps are done and there are weights; then the newest ones."""
        if self.version == 0 and self.steps >= self.config.random_steps:
            self.actor.rest()
            self.link.prepare(self.display)
        self._load_newest()
        return self.policy if self.version else self.random_policy

    def _load_newest(self) -> None:
        newest = self.run.latest_weights(after=self.version)
        if newest is not None:
            self.version, weights = newest
            self.policy.load_weights(weights)

    def _account(self, summary: EpisodeSummary) -> None:
        self.training.append(summary)
        self.run.append_index("episodes", summary)
        if summary.fault is None:
            row = {"return": summary.return_, "success": float(summary.success), **summary.measures}
            self.metrics.write(self.steps, {f"episode/{name}": value for name, value in row.items()})
        self.display.episode(self.steps, summary, self.link.status())

    def _tell(self, what: str, fault: str | None) -> None:
        if fault is not None:
            self.display.note(f"{what}: {fault}")

    def _pass_on(self) -> None:
        """Shows what the learner's process has to say, such as that a checkpoint was damaged."""
        for text in self.link.status().get("notes", ()):
            if text not in self.told:
                self.told.add(text)
                self.display.note(f"learner: {text}")

    def _evaluation_due(self, before: int) -> bool:
        """Whether the last episode, which began at `before` steps, passed a multiple of `evaluate_every`."""
        passed = self.steps // self.config.evaluate_every != before // self.config.evaluate_every
        return bool(self.version) and passed and self.steps < self.config.steps

    def evaluate(self, episodes: int) -> None:
        """Greedy episodes from a fixed list of starts and goals, logged under evaluation/STEPS.

        Nothing before there is a policy.
        """
        self._load_newest()
        if not self.version:
            return
        self.evaluation, self.frames = [], []
        folder = self.run.fresh_folder(f"evaluation/{self.steps:08d}")
        for number in range(episodes):
            watch = self._film if number == 0 and self.picture else None
            index = EVALUATION_SEEDS + number
            fault = self.actor.episode(
                self.policy, folder, index, explore=False, closed=self.evaluation.append, watch=watch
            )
            self._tell(f"evaluation episode {number}", fault)
            self.display.evaluation(number + 1, episodes)
        self._keep_evaluation()

    def _film(self) -> None:
        assert self.picture is not None
        with suppress(*self.actor.faults):  # a picture for people is not worth an episode
            self.frames.append(self.picture())

    def _keep_evaluation(self) -> None:
        hours = sum(summary.robot_seconds for summary in self.training) / 3600
        self.run.append_evaluation(self.steps, hours, self.evaluation)
        row = evaluation_row(self.evaluation)
        self.metrics.write(self.steps, {f"evaluation/{name}": value for name, value in row.items()})
        if not row["episodes"]:
            self.display.note(f"evaluation at {self.steps} steps: no episode came to its end")
            return
        names = [name for name in self.labels if name.startswith("success") and name in row]
        rates = [f"{self.labels[name]} {row[name]:.0f}/{row['episodes']:.0f}" for name in names]
        self.display.note(f"evaluation at {self.steps} steps: {', '.join(rates)}, return {row['return']:.1f}")

    def report(self) -> None:
        """Writes and prints what the run came to. Raises DiskError."""
        conclude(
            self.run,
            training=self.training,
            evaluation=self.evaluation,
            labels=self.labels,
            counters={**self.statistics(), **self.actor.timing(), **self._learning()},
            frames=self.frames,
            header=self.actor.header,
            console=self.display.console,
        )

    def _learning(self) -> dict[str, float]:
        """The learner's part of the summary: updates, how long one takes, and the last losses."""
        status = self.link.status()
        updates = float(status.get("updates", 0))
        row = {"failed_resets": float(self.actor.failed_resets)} if self.actor.failed_resets else {}
        row |= {"updates": updates}
        earned = self.steps - (status.get("free_steps") or self.config.random_steps)
        row |= {"updates_per_step": updates / earned} if earned > 0 else {}
        row |= {"model_updates": float(pretrained)} if (pretrained := status.get("pretrained")) else {}
        row |= {"probe_degrees": status["probe"]} if status.get("probe") is not None else {}
        row |= {"rollbacks": float(count)} if (count := status.get("rollbacks")) else {}
        return row | chosen_losses(status) | update_times(status)


def evaluation_row(episodes: Sequence[EpisodeSummary]) -> dict[str, float]:
    """One evaluation as numbers: counts for rates, means for the rest. Faulted episodes do not count."""
    whole = [episode for episode in episodes if episode.fault is None]
    row = {"episodes": float(len(whole)), "success": float(sum(e.success for e in whole))}
    row["return"] = float(np.mean([e.return_ for e in whole])) if whole else float("nan")
    for name in sorted({name for episode in whole for name in episode.measures}):
        values = [episode.measures[name] for episode in whole]
        row[name] = float(sum(values) if name.startswith("success") else np.mean(values))
    return row


def conclude(
    run: RunDir,
    *,
    training: Sequence[EpisodeSummary],
    evaluation: Sequence[EpisodeSummary],
    labels: Mapping[str, str],
    header: Mapping[str, Any],
    console: Console,
    counters: Mapping[str, float] | None = None,
    frames: Sequence[NDArray[np.uint8]] = (),
) -> None:
    """Writes summary.json, learning_curve.png, evaluation.mp4; prints the summary. Raises DiskError."""
    commands = [f"python run_robot.py evaluate --run {run.path} --episodes 100"] if evaluation else []
    robot = header.get("rig", {}).get("kind") != "dm_control"
    moved = [summary.file for summary in training if summary.steps and robot]
    commands += [f"python run_robot.py replay {run.path / moved[-1]} --hw sim"] if moved else []
    commands += [f"tensorboard --logdir {run.path}"]
    summary = summarize(
        training,
        evaluation,
        labels=labels,
        counters=counters,
        log=run.path,
        next_commands=commands,
        anchors=header.get("anchors"),
    )
    try:
        write_summary(run.path / "summary.json", summary)
        points = [CurvePoint.of(row["steps"], row["hours"], row["episodes"]) for row in run.evaluations()]
        if points or training:
            path, title = run.path / "learning_curve.png", run.path.name
            learning_curve(path, points, training_points(training), title=title, labels=labels)
        if frames:
            video(run.path / "evaluation.mp4", frames, fps=1 / float(header["period"]))
    finally:  # on a full disk, too
        render_summary(summary, console)
