"""Pictures of a run for people: the learning curve, an episode as a film, what the model sees."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from agent.episodes import EpisodeSummary
from agent.files import disk_errors, write_atomic
from agent.metrics import Z95, wilson

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Image = NDArray[np.uint8]
Floats = NDArray[np.float64]

BLUE, GREEN, ORANGE, GREY = "#2f6db3", "#2a8f57", "#c8701a", "#8a8f98"
FILM_HEIGHT = 480  # px: what small frames are enlarged to
CAPTION_HEIGHT = 28  # px


@dataclass(frozen=True)
class CurvePoint:
    """What a group of episodes at one point of a run came to."""

    step: int  # control steps of training so far
    robot_hours: float  # time in training episodes so far, h
    returns: tuple[float, ...]
    successes: Mapping[str, int]  # by name: how many of the episodes
    episodes: int

    @classmethod
    def of(cls, step: int, robot_hours: float, episodes: Sequence[EpisodeSummary]) -> CurvePoint:
        """From the episodes of an evaluation; those that faulted are left out."""
        whole = [episode for episode in episodes if episode.fault is None]
        names = sorted(
            {name for episode in whole for name in episode.measures if name.startswith("success_")}
        )
        successes = {"success": sum(episode.success for episode in whole)}
        successes |= {name: sum(episode.measures.get(name, 0) > 0.5 for episode in whole) for name in names}
        return cls(step, robot_hours, tuple(episode.return_ for episode in whole), successes, len(whole))


def training_points(episodes: Sequence[EpisodeSummary], group: int = 20) -> list[CurvePoint]:
    """Training episodes in groups of `group`, in order; the last group may be smaller."""
    points, step, hours = [], 0, 0.0
    for start in range(0, len(episodes), group):
        part = episodes[start : start + group]
        step += sum(episode.steps for episode in part)
        hours += sum(episode.robot_seconds for episode in part) / 3600
        points.append(CurvePoint.of(step, hours, part))
    return [point for point in points if point.episodes]


def learning_curve(
    path: Path,
    evaluation: Sequence[CurvePoint],
    training: Sequence[CurvePoint] = (),
    *,
    title: str,
    labels: Mapping[str, str] | None = None,
) -> None:
    """Draws return and success over control steps and robot hours, with 95 % intervals, as a PNG.

    `labels` names the successes for people. Raises DiskError.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 7), dpi=120, layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True)
    figure.suptitle(title, fontsize=13, fontweight="bold")
    _draw_returns(top, evaluation, training)
    _draw_successes(bottom, evaluation, training, labels or {})
    bottom.set(xlabel="control steps of training", xlim=(0, _last_step([*training, *evaluation]) * 1.03))
    _hours_axis(top, [*training, *evaluation])
    for axes in (top, bottom):
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.spines[["right"]].set_visible(False)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(loc="best", fontsize=8.5, framealpha=0.9)
    _save(path, figure)


def _draw_returns(axes: Axes, evaluation: Sequence[CurvePoint], training: Sequence[CurvePoint]) -> None:
    axes.set_ylabel("return per episode")
    if training:
        means = [float(np.mean(point.returns)) for point in training]
        axes.plot(_steps(training), means, color=GREY, linewidth=1, label="training, mean of a group")
    if evaluation:
        middle, low, high = np.array([_mean_interval(point.returns) for point in evaluation]).T
        label = f"evaluation (n = {_counts(evaluation)}), mean and its 95 % interval"
        _band(axes, _steps(evaluation), (middle, low, high), BLUE, label)


def _draw_successes(
    axes: Axes, evaluation: Sequence[CurvePoint], training: Sequence[CurvePoint], labels: Mapping[str, str]
) -> None:
    axes.set(ylabel="success", ylim=(-0.03, 1.03))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    if training:
        rates = [point.successes["success"] / point.episodes for point in training]
        label = f"training, {labels.get('success', 'success')}"
        axes.plot(_steps(training), rates, color=GREY, linewidth=1, label=label)
    names = list(dict.fromkeys(chain.from_iterable(point.successes for point in evaluation)))
    for name, color in zip(names, (GREEN, ORANGE, BLUE), strict=False):
        counted = [point for point in evaluation if point.episodes]
        rates = [point.successes.get(name, 0) / point.episodes for point in counted]
        bounds = [wilson(point.successes.get(name, 0), point.episodes) for point in counted]
        low, high = np.array(bounds).reshape(-1, 2).T
        label = f"evaluation, {labels.get(name, name)}, 95 % Wilson interval"
        _band(axes, _steps(counted), (np.array(rates), low, high), color, label)


def _band(
    axes: Axes, steps: Sequence[int], curve: tuple[Floats, Floats, Floats], color: str, label: str
) -> None:
    """(middle, low, high) as a line in a band; with whiskers, because one point has no band."""
    middle, low, high = curve
    whiskers = np.maximum([middle - low, high - middle], 0)
    axes.errorbar(
        steps, middle, whiskers, fmt="o-", color=color, markersize=4, elinewidth=0.8, capsize=2, label=label
    )
    axes.fill_between(steps, low, high, color=color, alpha=0.13, linewidth=0)


def _hours_axis(axes: Axes, points: Sequence[CurvePoint]) -> None:
    """A second scale on top: what the steps cost in robot time."""
    known = {0: 0.0} | {point.step: point.robot_hours for point in points}
    steps = sorted(known)
    hours = np.maximum.accumulate([known[step] for step in steps])
    if len(steps) < 2 or hours[-1] <= 0 or np.any(np.diff(hours) <= 0):
        return
    slope = hours[-1] / steps[-1]

    def forward(step: ArrayLike) -> ArrayLike:
        beyond = np.maximum(np.subtract(step, steps[-1]), 0) + np.minimum(step, 0)
        return np.asarray(np.interp(np.asarray(step, np.float64), steps, hours) + beyond * slope)

    def backward(hour: ArrayLike) -> ArrayLike:
        beyond = np.maximum(np.subtract(hour, hours[-1]), 0) + np.minimum(hour, 0)
        return np.asarray(np.interp(np.asarray(hour, np.float64), hours, steps) + beyond / slope)

    top = axes.secondary_xaxis("top", functions=(forward, backward))
    top.set_xlabel("robot time in training episodes, h")


def _last_step(points: Sequence[CurvePoint]) -> int:
    return max((point.step for point in points), default=1)


def _steps(points: Iterable[CurvePoint]) -> list[int]:
    return [point.step for point in points]


def _counts(points: Sequence[CurvePoint]) -> str:
    counts = sorted({point.episodes for point in points})
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"


def _mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """(mean, low, high) by the normal approximation; the mean alone below two values."""
    if not values:
        return math.nan, math.nan, math.nan
    mean = float(np.mean(values))
    half = Z95 * float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return mean, mean - half, mean + half


def _save(path: Path, figure: Figure) -> None:
    """Without a creation date, so that the same numbers give the same file."""

    def save(file: IO[bytes]) -> None:
        figure.savefig(file, format="png", metadata={"Software": None})

    write_atomic(path, save)


def video(path: Path, frames: Sequence[Image], fps: float, captions: Sequence[str] | None = None) -> None:
    """An MP4 (H.264) that any player and browser shows.

    frames: each (H, W, 3) uint8 RGB; small ones are enlarged without smoothing, so that one sees what the
    agent sees. captions: one line for each frame, drawn below it. Raises ValueError for no frames, DiskError.
    """
    if not len(frames):
        raise ValueError(f"{path}: a video needs at least one frame")
    if captions is not None and len(captions) != len(frames):
        raise ValueError(f"{path}: {len(captions)} captions for {len(frames)} frames")
    texts = captions if captions is not None else [None] * len(frames)
    pictures = (_film_frame(frame, text) for frame, text in zip(frames, texts, strict=True))
    with disk_errors(path):
        partial = path.with_name(f".{path.name}.tmp")
        _encode(partial, pictures, fps)
        partial.replace(path)


def _encode(path: Path, pictures: Iterable[Image], fps: float) -> None:
    import av

    with av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000))
        stream.pix_fmt, stream.options = "yuv420p", {"crf": "18", "preset": "veryfast"}
        for number, picture in enumerate(pictures):
            if number == 0:
                stream.height, stream.width = picture.shape[:2]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def _film_frame(frame: Image, text: str | None) -> Image:
    """Enlarged by a whole factor, captioned, and of even size as H.264 wants it."""
    factor = max(1, FILM_HEIGHT // frame.shape[0])
    big = frame.repeat(factor, axis=0).repeat(factor, axis=1)
    if text is not None:
        big = np.concatenate([big, _caption(text, big.shape[1])])
    height, width = (size + size % 2 for size in big.shape[:2])
    return np.pad(big, ((0, height - big.shape[0]), (0, width - big.shape[1]), (0, 0)))


def _caption(text: str, width: int) -> Image:
    from PIL import Image as Pillow
    from PIL import ImageDraw, ImageFont

    bar = Pillow.new("RGB", (width, CAPTION_HEIGHT), "black")
    font = ImageFont.load_default(size=15)
    ImageDraw.Draw(bar).text((8, CAPTION_HEIGHT / 2), text, fill="white", font=font, anchor="lm")
    return np.asarray(bar, np.uint8)


def strip(
    path: Path, rows: Mapping[str, Sequence[Image]], *, title: str, period: float | None = None
) -> None:
    """Rows of images over time below each other, with their names, as a PNG.

    rows: name -> images (H, W, 3) uint8 RGB, of one size; a row may be shorter than the others. `period` is
    the time between two columns, s. Raises ValueError for no images, DiskError.
    """
    from matplotlib.figure import Figure

    columns = max((len(images) for images in rows.values()), default=0)
    if not columns:
        raise ValueError(f"{path}: a strip needs at least one image")
    figure = Figure(figsize=(1.6 + 1.05 * columns, 0.75 + 1.08 * len(rows)), dpi=120, layout="constrained")
    figure.suptitle(title, fontsize=12, fontweight="bold")
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for line, (name, images) in zip(grid, rows.items(), strict=True):
        line[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=10)
        for number, axes in enumerate(line):
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            if number < len(images):
                axes.imshow(images[number], interpolation="nearest")
    for number, axes in enumerate(grid[0]):
        time = f"{number}" if period is None else f"{number * period:.1f} s"
        axes.set_title(time, fontsize=9, color="#444444")
    _save(path, figure)
