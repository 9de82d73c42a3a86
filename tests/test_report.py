from __future__ import annotations

from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from agent.episodes import EpisodeSummary
from agent.report import CurvePoint, Image, learning_curve, strip, training_points, video


def episodes(count: int, successes: int = 0, fault: str | None = None) -> list[EpisodeSummary]:
    return [
        EpisodeSummary(
            index=number,
            file=f"episodes/{number:06d}.mcap",
            sha256="",
            steps=50,
            return_=float(-number),
            success=number < successes,
            measures={"success_20deg": 1.0},
            terminated=False,
            truncated=True,
            fault=fault,
            fault_message="",
            seed=0,
            robot_seconds=5.4,
            late=0,
        )
        for number in range(count)
    ]


def picture(path: Path) -> Image:
    return np.asarray(cv2.imread(str(path)), np.uint8)


def frames(count: int, height: int = 64, width: int = 64) -> list[Image]:
    rng = np.random.default_rng(0)
    return list(rng.integers(0, 256, (count, height, width, 3)).astype(np.uint8))


def test_point_counts_successes_and_leaves_faulted_episodes_out() -> None:
    point = CurvePoint.of(500, 0.25, episodes(4, successes=3) + episodes(2, fault="late"))
    assert (point.episodes, point.successes) == (4, {"success": 3, "success_20deg": 4})
    assert point.returns == (0.0, -1.0, -2.0, -3.0)


def test_training_points_add_up_steps_and_hours() -> None:
    points = training_points(episodes(45), group=20)
    assert [(point.step, point.episodes) for point in points] == [(1000, 20), (2000, 20), (2250, 5)]
    assert points[-1].robot_hours == pytest.approx(45 * 5.4 / 3600)


@pytest.mark.parametrize(("evaluations", "trainings"), [(0, 0), (0, 30), (1, 0), (6, 200)])
def test_learning_curve_is_drawn_from_the_first_point_on(
    tmp_path: Path, evaluations: int, trainings: int
) -> None:
    points = [CurvePoint.of(k * 1000, k * 0.03, episodes(20, 3 * k)) for k in range(1, evaluations + 1)]
    path = tmp_path / "curve.png"
    learning_curve(path, points, training_points(episodes(trainings)), title="valve, slac, sim")
    image = picture(path)
    assert image.shape[1] == 960
    colours = len(np.unique(image.reshape(-1, 3), axis=0))
    assert colours > (2 if evaluations + trainings else 1)


def test_equal_numbers_give_equal_pictures(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        learning_curve(tmp_path / name, [CurvePoint.of(100, 0.1, episodes(3))], title="same")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize(
    ("shape", "captions", "size"),
    [((64, 64), True, (448, 476)), ((64, 64), False, (448, 448)), ((481, 333), False, (334, 482))],
)
def test_video_plays_anywhere(
    tmp_path: Path, shape: tuple[int, int], captions: bool, size: tuple[int, int]
) -> None:
    path = tmp_path / "episode.mp4"
    video(path, frames(12, *shape), 10, [f"step {number}" for number in range(12)] if captions else None)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
        assert (stream.width, stream.height) == size
        assert (stream.frames, stream.average_rate) == (12, 10)
    assert [entry.name for entry in tmp_path.iterdir()] == ["episode.mp4"]


def test_video_shows_the_pixels_of_the_agent(tmp_path: Path) -> None:
    path = tmp_path / "episode.mp4"
    frame = np.zeros((64, 64, 3), np.uint8)
    frame[:32, :, 0] = 200
    video(path, [frame] * 3, 10)
    with av.open(str(path)) as container:
        shown = next(container.decode(video=0)).to_ndarray(format="rgb24")
    assert np.abs(shown[100, 100].astype(int) - [200, 0, 0]).max() < 12
    assert shown[400, 100].max() < 12


def test_video_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one frame"):
        video(tmp_path / "v.mp4", [], 10)
    with pytest.raises(ValueError, match="1 captions for 2 frames"):
        video(tmp_path / "v.mp4", frames(2), 10, ["one"])


def test_strip_shows_every_row(tmp_path: Path) -> None:
    path = tmp_path / "strip.png"
    red = np.zeros((64, 64, 3), np.uint8)
    red[:] = (255, 0, 0)
    blue = red[:, :, ::-1].copy()
    strip(path, {"truth": [red] * 9, "posterior": [blue] * 4}, title="what the model sees", period=0.1)
    image = picture(path)
    red_pixels = np.all(image == (0, 0, 255), axis=2).sum()
    blue_pixels = np.all(image == (255, 0, 0), axis=2).sum()
    assert red_pixels / blue_pixels == pytest.approx(9 / 4, rel=0.05)


def test_strip_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one image"):
        strip(tmp_path / "s.png", {"truth": []}, title="nothing")
