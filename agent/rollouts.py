"""Episodes without a learner: collected with a fixed policy, or run to measure a learned one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from agent.actor import EVALUATION_SEEDS, Actor
from agent.display import Display
from agent.episodes import EpisodeSummary, read_index
from agent.metrics import render_summary, summarize, write_summary
from agent.policy import Policy
from agent.run_dir import RunDir
from agent.train import Collector, conclude


class Collection:
    """The episodes of a run, those of earlier sessions included."""

    def __init__(self, run: RunDir, display: Display) -> None:
        """Raises EpisodeError for an index that cannot be read."""
        self.run, self.display = run, display
        self.done = read_index(run.path / "episodes.jsonl")

    def fill(
        self, actor: Actor, collector: Collector, policy: Policy, wanted: int, labels: Mapping[str, str]
    ) -> None:
        """Runs episodes until there are so many, then reports; the robot is relaxed however it ends.

        Raises what the actor raises, after the report.
        """
        index = self.run.next_episode()
        try:
            with self.display:
                while len(self.done) < wanted:
                    folder, left = self.run.path / "episodes", wanted - len(self.done)
                    index += len(collector.round(policy, folder, index, left, self._add))
        except BaseException as error:
            actor.rest()
            self.display.stopping(error)
            raise
        finally:
            actor.rest()
            conclude(
                self.run,
                training=self.done,
                evaluation=[],
                labels=labels,
                console=self.display.console,
                header=actor.header,
            )

    def _add(self, summary: EpisodeSummary) -> None:
        self.done.append(summary)
        self.run.append_index("episodes", summary)
        self.display.episode(sum(one.steps for one in self.done), summary, {"phase": "collecting"})


def evaluate(
    actor: Actor, policy: Policy, folder: Path, wanted: int, labels: Mapping[str, str], display: Display
) -> None:
    """Measures a policy on a fixed list of starts and goals, logs it in `folder` and reports.

    The robot is relaxed however it ends. Raises what the actor raises, after the report.
    """
    done: list[EpisodeSummary] = []
    actor.warm_up(policy)
    try:
        for number in range(wanted):
            index = EVALUATION_SEEDS + number
            actor.episode(policy, folder, index, explore=False, closed=done.append)
            display.evaluation(number + 1, wanted)
    except BaseException as error:
        actor.rest()
        display.stopping(error)
        raise
    finally:
        actor.rest()
        summary = summarize([], done, labels=labels, log=folder, anchors=actor.header.get("anchors"))
        if done:
            write_summary(folder / "summary.json", summary)
            render_summary(summary, display.console)
