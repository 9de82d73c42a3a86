"""When a run collects, learns, measures and saves. A file of its own, so that reading it needs no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

from agent.config import Config

Folder = Annotated[Path, AfterValidator(Path.absolute)]  # the learner's process works elsewhere


class TrainConfig(Config):
    """The schedule of a run, counted in control steps (10 per second on the valve)."""

    steps: int = Field(100_000, ge=1, description="control steps in all, random ones included")
    seed: int = Field(0, ge=0, lt=2**32)
    sync: bool | None = Field(
        None, description="actor and learner in one process; default: only in simulation"
    )
    random_steps: int = Field(10_000, ge=1, description="uniformly random actions first")
    pretrain_updates: int = Field(100_000, ge=0, description="model-only updates before the first policy")
    # The paper's schedule is a count alone. A latent that does not see the valve yet lets learning wander.
    pretrain_until: float | None = Field(
        None, gt=0, lt=90, description="degrees: pretraining ends early once the probe errs less"
    )
    probe_every: int = Field(500, ge=1, description="updates between two looks at what the latents know")
    envs: int = Field(1, ge=1, le=256, description="simulated robots side by side; more than 1: only in sim")
    updates_per_step: float = Field(1.0, gt=0, le=32, description="upper bound of updates per control step")
    replay_capacity: int = Field(100_000, ge=1000, description="control steps kept for training")
    # A list of runs, or of folders with episodes. Paths are those of the command's own folder.
    prior: tuple[Folder, ...] = Field(
        (),
        description="runs whose episodes train as well: demonstrations, another task's, an earlier robot's",
    )
    prior_share: float = Field(0.5, gt=0, lt=1, description="of each batch that comes from them")
    # Memory is taken as the replay fills, 1.2 GB for 100,000 images of 64x64; the file at once.
    replay_on_disk: bool = Field(False, description="the replay's images in a file of the run, not in memory")
    evaluate_every: int = Field(10_000, ge=1, description="control steps between evaluations")
    evaluation_episodes: int = Field(10, ge=1, description="greedy episodes per evaluation")
    final_episodes: int = Field(20, ge=1, description="greedy episodes at the end of the run")
    checkpoint_every: int = Field(5_000, ge=1, description="control steps between checkpoints")
    publish_every: int = Field(50, ge=1, description="updates between two publications of weights")
    catch_up: float = Field(
        600.0, ge=0, description="s for updates that are still due when the robot is done"
    )
    # One is never much slower and sometimes ten times faster: where another program takes a core away, two
    # threads wait for each other at every layer (measured 1560 against 148 ms for one small SLAC update).
    learner_threads: int = Field(1, ge=1, description="CPU threads of the learner")
    max_faults_in_a_row: int = Field(3, ge=1, description="faulted episodes before the run stops")

    def scaled(self) -> TrainConfig:
        """A schedule that fits a short run: at most half of it random, one model update per random step."""
        random_steps = min(self.random_steps, max(1, self.steps // 2))
        if random_steps == self.random_steps:
            return self
        pretrain = min(self.pretrain_updates, random_steps)
        return self.model_copy(update={"random_steps": random_steps, "pretrain_updates": pretrain})
