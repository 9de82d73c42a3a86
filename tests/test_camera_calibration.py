"""Promises of the camera's calibration: lens and place within tolerances, or a refusal that says why."""

from __future__ import annotations

import re
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.random import Generator
from PIL import Image as Pictures
from rich.console import Console

from calibration.board import Board, BoardConfig, CalibrationError, Place, Sighting
from calibration.camera import CameraCalibration, View, calibrate, locate, merged, solve
from calibration.camera_report import publish, settings
from calibration.capture import SETUP, Photographs, Setup, read_folder
from calibration.coverage import Cell, Coverage, at_rest, leans
from configs.document import Layer
from configs.loader import load
from configs.run import HwConfig
from robot.camera import CameraConfig, Lens, deliver, delivered_projection
from robot.types import Floats
from tests.photographs import Camera, Faults, Paper, around, facing, nominal_place, sighted, spoil

BOARD = Board(BoardConfig())
TRUTH = nominal_place()  # base frame to camera
SOLID = Camera()


def errors(found: CameraCalibration, camera: Camera) -> tuple[float, float, float]:
    """Relative error of the focal length, m and deg by which the camera's place is wrong."""
    focal = np.abs(np.array(found.intrinsics.lens.focal) / camera.focal - 1).max()
    apart = np.linalg.norm(found.position - (-TRUTH[:3, :3].T @ TRUTH[:3, 3]))
    turned = np.linalg.norm(cv2.Rodrigues(found.base_to_camera[:3, :3] @ TRUTH[:3, :3].T)[0])
    return float(focal), float(apart), float(np.degrees(turned))


def require_good(found: CameraCalibration, camera: Camera) -> None:
    focal, apart, turned = errors(found, camera)
    assert focal < 0.005
    assert apart < 0.002
    assert turned < 0.3
    assert found.intrinsics.error <= 0.3
    assert found.base.error <= 0.3


def photographed(camera: Camera, paper: Paper, faults: Faults, rng: Generator, count: int = 11) -> list[View]:
    """Views of photographs, the last one of the board on the base."""
    poses = [*around(paper.board, count, rng), TRUTH @ paper.board.in_base]
    images = [spoil(paper.photograph(camera, pose), faults, rng) for pose in poses]
    sightings = [paper.board.find(image) for image in images]
    assert sightings[-1]
    return [View(f"view-{number}", seen) for number, seen in enumerate(sightings) if seen]


def computed(
    seed: int, count: int = 14, camera: Camera = SOLID, noise: float = 0.08
) -> tuple[list[View], list[View]]:
    """Views of the board held freely and on the base, as photographs would give them."""
    rng = np.random.default_rng(seed)
    free = [sighted(camera, BOARD, pose, rng, noise) for pose in around(BOARD, count, rng)]
    base = [sighted(camera, BOARD, TRUTH @ BOARD.in_base, rng, noise) for _ in range(3)]
    return (
        [View(f"view-{number:03d}", seen) for number, seen in enumerate(free)],
        [View(f"base-{number}", seen) for number, seen in enumerate(base)],
    )


def shifted(view: View, by: Floats) -> View:
    """A view whose corners (N, 2) were seen elsewhere."""
    return View(view.name, replace(view.sighting, pixels=view.sighting.pixels + by))


def test_lens_and_place_are_found_from_photographs_with_faults() -> None:
    views = photographed(SOLID, Paper(BOARD), Faults(hand=0.3), np.random.default_rng(5))
    found = calibrate(BOARD, views[:-1], views[-1:])
    require_good(found, SOLID)
    assert not found.intrinsics.rejected


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "distortion",
    [(0, 0, 0, 0, 0), (-0.32, 0.12, 0.001, -0.001, 0), (0.12, -0.05, 0, 0.001, 0), (-0.3, 0.15, 0, 0, -0.05)],
    ids=["none", "barrel", "cushion", "of six powers"],
)
def test_all_kinds_of_lenses_are_found_through_noise_and_blur(
    distortion: tuple[float, float, float, float, float], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    focal = rng.uniform(480, 700)
    camera = Camera((focal, focal * rng.uniform(0.98, 1.02)), (322 + rng.normal(0, 8), 236.0), distortion)
    faults = Faults(
        noise=rng.uniform(1, 6), blur=rng.uniform(0, 1.3), contrast=rng.uniform(0.4, 0.85), hand=0.4
    )
    views = photographed(camera, Paper(BOARD), faults, rng, 18)
    require_good(calibrate(BOARD, views[:-1], views[-1:]), camera)


@pytest.mark.parametrize("seed", range(5))
def test_the_standard_error_of_the_focal_length_is_an_honest_one(seed: int) -> None:
    views, base = computed(seed)
    lens = solve(BOARD, [*views, merged(base)])
    for found, error, true in zip(lens.lens.focal, lens.focal_error, SOLID.focal, strict=True):
        assert abs(found - true) < 4 * error
        assert error < 0.002 * true


def test_the_board_may_lie_elsewhere_on_the_base() -> None:
    board = Board(BoardConfig(place=Place(centre=(0.03, 0.02, 0.004), turn=-35)))
    rng, (views, _) = np.random.default_rng(0), computed(0)
    base = View("base-1", sighted(SOLID, board, TRUTH @ board.in_base, rng))
    found = calibrate(board, views, [base])
    require_good(found, SOLID)
    elsewhere = calibrate(BOARD, views, [base])  # who believes it to lie in the middle is wrong by that much
    assert errors(elsewhere, SOLID)[1] > 0.03
    assert elsewhere.sha256 != found.sha256  # the board's place is a part of what was measured


def test_the_same_photographs_give_the_same_calibration_under_the_same_name() -> None:
    one, same, other = (calibrate(BOARD, *computed(seed)) for seed in (1, 1, 2))
    np.testing.assert_allclose(one.projection, same.projection, rtol=1e-6)
    assert one.sha256 == same.sha256 != other.sha256
    assert re.fullmatch("[0-9a-f]{64}", one.sha256)


def test_another_photograph_of_the_base_makes_it_another_measurement() -> None:
    views, base = computed(1)
    assert calibrate(BOARD, views, base[:1]).sha256 != calibrate(BOARD, views, base[1:2]).sha256


def test_photographs_of_the_base_are_averaged() -> None:
    rng, pose = np.random.default_rng(0), TRUTH @ BOARD.in_base
    exact = sighted(SOLID, BOARD, pose, rng, 0.0).pixels
    noisy = [View(f"base-{number}", sighted(SOLID, BOARD, pose, rng, 0.2)) for number in range(25)]
    assert np.abs(merged(noisy[:1]).sighting.pixels - exact).max() > 0.3
    assert np.abs(merged(noisy).sighting.pixels - exact).max() < 0.15


def test_a_bent_board_or_a_blurred_view_is_left_out() -> None:
    views, base = computed(3, 16)
    for number in (4, 9):
        u, v = views[number].sighting.pixels.T
        views[number] = shifted(views[number], np.stack([3 * np.sin(u / 60), 2 * np.cos(v / 50)], axis=1))
    found = calibrate(BOARD, views, base)
    assert {fit.view.name for fit in found.intrinsics.rejected} == {"view-004", "view-009"}
    assert all(fit.error > 1 for fit in found.intrinsics.rejected)
    require_good(found, SOLID)


def test_a_third_radial_term_is_taken_only_where_the_views_tell_it() -> None:
    plain = solve(BOARD, computed(0)[0])
    assert plain.lens.distortion[4] == 0
    strong = Camera(distortion=(-0.3, 0.3, 0.0, 0.0, -0.35))
    told = solve(BOARD, computed(0, 24, strong, 0.03)[0])
    assert told.lens.distortion[4] == pytest.approx(-0.35, abs=0.1)


# --- What is refused


def test_too_few_views_are_refused() -> None:
    views, base = computed(0, 4)
    with pytest.raises(CalibrationError, match="5 of 5 views can be used, expected at least 6"):
        calibrate(BOARD, views, base)


def test_views_with_too_few_corners_do_not_count() -> None:
    views, base = computed(0, 14)
    poor = [
        View(view.name, replace(view.sighting, ids=view.sighting.ids[:7], pixels=view.sighting.pixels[:7]))
        for view in views[:10]
    ]
    with pytest.raises(CalibrationError, match=r"5 of 15 views can be used.*8 corners"):
        calibrate(BOARD, [*poor, *views[10:]], base)


@pytest.mark.parametrize("tilt", [0.0, 0.1, 0.5])
def test_parallel_views_are_refused(tilt: float) -> None:
    """However many they are: twice the focal length explains them as well, without an error to see."""
    rng = np.random.default_rng(0)
    poses = [facing(BOARD, (tilt, -tilt / 2), 0.1, (0.01 * x, 0.0, 0.4 + 0.01 * x)) for x in range(-4, 5)]
    views = [View(f"view-{n}", sighted(SOLID, BOARD, pose, rng)) for n, pose in enumerate(poses)]
    with pytest.raises(CalibrationError, match=r"too much alike: the board was held in \d clearly different"):
        solve(BOARD, views)


def test_views_from_afar_leave_the_focal_length_uncertain_and_are_refused() -> None:
    rng = np.random.default_rng(0)
    tilts = [(0.0, 0.0), (0.3, 0.0), (-0.3, 0.0), (0.0, 0.3), (0.0, -0.3), (0.3, 0.3)]
    poses = [facing(BOARD, tilt, 0.0, (0.0, 0.0, 1.2)) for tilt in tilts]
    views = [View(f"view-{n}", sighted(SOLID, BOARD, pose, rng, 0.3)) for n, pose in enumerate(poses)]
    with pytest.raises(CalibrationError, match=r"focal length is uncertain by \d+\.\d %, allowed are 0\.5 %"):
        solve(BOARD, views)


def test_a_camera_or_board_that_was_touched_is_noticed() -> None:
    views, base = computed(0)
    with pytest.raises(CalibrationError, match=r"between base-0 and base-1 the board's corners moved by \d"):
        calibrate(BOARD, views, [base[0], shifted(base[1], np.array([2.0, 1.0]))])


def test_without_the_board_on_the_base_there_is_no_place() -> None:
    with pytest.raises(CalibrationError, match="no photograph of the board on the base"):
        calibrate(BOARD, computed(0)[0], [])


def test_a_covered_board_on_the_base_is_refused() -> None:
    views, base = computed(0)
    seen = base[0].sighting
    covered = View("base-1", replace(seen, ids=seen.ids[:11], pixels=seen.pixels[:11]))
    with pytest.raises(CalibrationError, match=r"base-1 shows 11 corners.*expected at least 12"):
        calibrate(BOARD, views, [covered])


def test_a_board_that_was_not_flat_on_the_base_is_refused() -> None:
    views, base = computed(0)
    u = base[0].sighting.pixels[:, 0]
    bent = shifted(base[0], np.stack([5 * np.sin(u / 30), 5 * np.cos(u / 30)], axis=1))
    with pytest.raises(CalibrationError, match="photograph of the board on the base does not fit"):
        calibrate(BOARD, views, [bent])


def test_when_most_views_are_bad_none_is_believed() -> None:
    views, base = computed(0, 15)
    rng = np.random.default_rng(0)
    spoilt = [
        shifted(view, rng.normal(0, 2.0 + 3 * number, (len(view.sighting.ids), 2))) if number < 8 else view
        for number, view in enumerate(views)
    ]
    with pytest.raises(CalibrationError, match=r"\d of 16 views do not fit to the others"):
        calibrate(BOARD, spoilt, base)


def test_corners_that_no_lens_explains_are_refused() -> None:
    views, base = computed(0, 20, noise=1.2)[0], computed(0)[1]
    with pytest.raises(CalibrationError, match=r"corners lie 1\.\d px from where the best lens has them"):
        calibrate(BOARD, views, base)


def test_a_board_too_small_in_the_image_is_refused_for_the_place() -> None:
    """From afar it looks the same leaning this way and that way."""
    lens = Lens(
        resolution=SOLID.resolution, focal=SOLID.focal, centre=SOLID.centre, distortion=SOLID.distortion
    )
    far = facing(BOARD, (0.4, 0.1), 0.0, (0.1, 0.0, 6.0))
    view = View("base", sighted(SOLID, BOARD, far, np.random.default_rng(0), 0.2))
    with pytest.raises(CalibrationError, match=r"two places of the camera, \d+ degrees apart"):
        locate(BOARD, view, lens)


# --- What is missing


def test_coverage_knows_what_is_missing_and_when_it_is_enough() -> None:
    coverage, rng = Coverage(BOARD), np.random.default_rng(0)
    assert len(coverage.missing()) == 24
    assert coverage.share == 0
    middle = sighted(SOLID, BOARD, facing(BOARD, (0.0, 0.0), 0.0, (0.0, 0.0, 0.45)), rng)
    assert coverage.adds(middle)
    assert not coverage.adds(replace(middle, ids=middle.ids[:7], pixels=middle.pixels[:7]))
    coverage = coverage.with_view(middle)
    assert not coverage.adds(middle)
    assert Cell(2, 1) not in coverage.missing()
    assert str(Cell(0, 3)) == "bottom, far left"
    assert {"left edge nearer", "lower edge nearer"} < set(map(str, coverage.missing()))
    for pose in around(BOARD, 40, rng):
        if coverage.adds(seen := sighted(SOLID, BOARD, pose, rng)):
            coverage = coverage.with_view(seen)
    assert coverage.complete
    assert coverage.share == 1
    assert len(coverage.views) < 25


def test_all_corners_and_tilts_in_a_few_views_are_not_enough() -> None:
    """A board that fills the image has been everywhere at once; a lens takes more views than that."""
    rng, coverage = np.random.default_rng(0), Coverage(BOARD)
    for lean, x, y in ((0.4, -0.02, -0.012), (-0.4, 0.02, 0.012), (0.4, 0.02, -0.012), (-0.4, -0.02, 0.012)):
        pose = facing(BOARD, (lean, lean), 0.0, (x, y, 0.22))
        coverage = coverage.with_view(sighted(SOLID, BOARD, pose, rng))
    assert not coverage.missing()
    assert not coverage.complete
    assert coverage.share == pytest.approx(0.4)


def test_a_tilt_counts_twice_only_in_two_places() -> None:
    rng = np.random.default_rng(0)
    tilted, same, elsewhere, otherwise = (
        sighted(SOLID, BOARD, facing(BOARD, tilt, 0.0, (x, 0.0, 0.42)), rng)
        for tilt, x in (((0.0, 0.5), 0.0), ((0.0, 0.5), 0.0), ((0.0, 0.5), 0.08), ((0.0, -0.5), 0.0))
    )
    coverage = Coverage(BOARD).with_view(tilted)
    assert "right edge nearer" in coverage.missing()  # one is not enough
    assert not coverage.adds(same)
    assert coverage.adds(elsewhere)
    assert coverage.adds(otherwise)
    assert "right edge nearer" not in coverage.with_view(elsewhere).missing()


@pytest.mark.parametrize("resolution", [(640, 480), (1920, 1080)])
def test_rest_is_the_same_at_every_resolution(resolution: tuple[int, int]) -> None:
    pixels = np.array([[0.1, 0.1], [0.5, 0.5]]) * resolution
    before = Sighting(np.arange(2), pixels, resolution)
    trembling, moving = (
        replace(before, pixels=pixels + np.array([share * resolution[0], 0.0])) for share in (5e-4, 3e-3)
    )
    assert at_rest(before, trembling)
    assert not at_rest(before, moving)
    turning = replace(before, pixels=pixels + np.array([[0.0, 0.0], [6e-3 * resolution[0], 0.0]]))
    assert not at_rest(before, turning)  # about a corner that stays
    assert not at_rest(before, replace(trembling, ids=np.arange(2, 4)))  # of other corners nothing is known


@pytest.mark.parametrize(
    ("tilt", "way"),
    [
        ((0.0, 0.5), "right edge nearer"),
        ((0.0, -0.5), "left edge nearer"),
        ((0.5, 0.0), "upper edge nearer"),
        ((-0.5, 0.0), "lower edge nearer"),
    ],
)
def test_a_tilt_is_called_by_where_the_board_leans(tilt: tuple[float, float], way: str) -> None:
    pose = facing(BOARD, tilt, 0.0, (0.0, 0.0, 0.42))
    assert leans(BOARD, sighted(SOLID, BOARD, pose, np.random.default_rng(0))) == [way]
    top, bottom, left, right = (
        (pose @ [x, y, 0, 1])[2] for x, y in ((0.12, 0), (0.12, 0.17), (0, 0.09), (0.24, 0.09))
    )
    nearest = {
        "left edge nearer": left,
        "right edge nearer": right,
        "lower edge nearer": bottom,
        "upper edge nearer": top,
    }
    assert min(nearest, key=lambda name: nearest[name]) == way


# --- Photographs in a folder


def setup(**camera: object) -> Setup:
    values = {"source": "http://127.0.0.1:9/cam.mjpg", **camera}
    config = CameraConfig.model_validate(values)
    return Setup(name="dclaw", kind="real", identity="cam A", camera=config, board=BOARD.config)


@pytest.fixture(scope="module")
def pictures() -> dict[str, np.ndarray]:
    """(H, W) uint8: photographs as a session leaves them."""
    rng, paper = np.random.default_rng(8), Paper(BOARD)
    poses = {f"view-{number:03d}": pose for number, pose in enumerate(around(BOARD, 9, rng), 1)}
    poses["base-1"] = TRUTH @ BOARD.in_base
    return {name: spoil(paper.photograph(SOLID, pose), Faults(), rng) for name, pose in poses.items()}


@pytest.fixture
def folder(tmp_path: Path, pictures: dict[str, np.ndarray]) -> Path:
    """Photographs with their setup; tests spoil what they like."""
    for name, picture in pictures.items():
        Pictures.fromarray(picture).save(tmp_path / f"{name}.png")
    (tmp_path / SETUP).write_text(setup().model_dump_json())
    return tmp_path


@pytest.fixture(scope="module")
def found(pictures: dict[str, np.ndarray]) -> CameraCalibration:
    """What the photographs tell."""
    sightings = {name: BOARD.find(picture) for name, picture in pictures.items()}
    *views, base = [View(name, seen) for name, seen in sightings.items() if seen]
    return calibrate(BOARD, views, [base])


def found_in(folder: Path) -> tuple[CameraCalibration, Photographs]:
    photographs = read_folder(folder)
    return calibrate(BOARD, photographs.views, photographs.base), photographs


def dot(where: Floats) -> np.ndarray:
    """(480, 640, 3) uint8: a white disc of 12 mm on the table, at (3,) m of the base frame."""
    origin = TRUTH[:3, :3] @ where + TRUTH[:3, 3]
    flat = np.column_stack([TRUTH[:3, 0], TRUTH[:3, 1], origin])
    across = SOLID.rays @ np.linalg.inv(flat).T
    inside = (across[..., :2] / across[..., 2:]).__pow__(2).sum(axis=-1) < 0.012**2
    grey = cv2.resize(255.0 * inside, SOLID.resolution, interpolation=cv2.INTER_AREA).astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, axis=2)


def test_the_settings_put_points_where_agents_see_them(found: CameraCalibration) -> None:
    """From photographs to the 64x64 image, with lens, crop and size between: within a tenth of its pixels."""
    photographs = Photographs(Path("folder"), setup(), (), ())
    text = "hw: {camera: {crop: [0.125, 0.0, 0.75, 1.0]}}"
    layers = [
        Layer.from_text(text, "bench"),
        Layer.from_text(settings(found, photographs, "today"), "camera"),
    ]
    camera = load(HwConfig, layers).hw.camera
    assert camera.projection
    projection = delivered_projection(camera.projection, camera)
    for where in np.array([[0.0, 0.0, 0.0], [0.07, 0.05, 0.0], [-0.08, 0.04, 0.0], [0.03, -0.09, 0.02]]):
        seen = deliver(dot(where), camera)[:, :, 0].astype(float)
        v, u = np.mgrid[:64, :64]
        centre = np.array([(seen * u).sum(), (seen * v).sum()]) / seen.sum()
        x, y, w = projection @ [*where, 1.0]
        np.testing.assert_allclose(centre, [x / w, y / w], atol=0.1)


def test_the_settings_say_of_which_camera_and_measurement_they_are(found: CameraCalibration) -> None:
    bobs = Photographs(Path("folder"), setup().model_copy(update={"identity": "Bob's: cam"}), (), ())
    text = settings(found, bobs, "now")
    camera = load(HwConfig, [Layer.from_text(text, "camera")]).hw.camera
    assert camera.lens
    assert camera.calibration
    assert camera.lens.resolution == (640, 480)
    np.testing.assert_allclose(camera.lens.focal, found.intrinsics.lens.focal, rtol=1e-6)
    np.testing.assert_allclose(camera.projection, found.projection, rtol=1e-5, atol=1e-5)
    assert camera.calibration.sha256 == found.sha256
    assert camera.calibration.camera == "Bob's: cam"
    assert camera.calibration.date == "now"
    assert camera.calibration.views == len(found.intrinsics.fits)


def test_a_calibration_is_published_with_its_picture(folder: Path, tmp_path: Path) -> None:
    (folder / "view-099.png").write_bytes(b"no image")
    found, photographs = found_in(folder)
    console = Console(record=True, width=100)
    publish(found, photographs, tmp_path / "out/cam.yaml", "today", console)
    said = console.export_text()
    assert "focal length x" in said
    assert "view-099.png was left out: it cannot be read as an image" in said
    assert f"--hw dclaw --config {tmp_path / 'out/cam.yaml'}" in said
    assert Pictures.open(tmp_path / "out/cam.png").size[0] > 800
    assert "# Left out: view-099.png" in (tmp_path / "out/cam.yaml").read_text()


def test_names_are_shown_as_they_are_and_cannot_become_settings(
    found: CameraCalibration, tmp_path: Path
) -> None:
    """What stands in brackets is markup to the terminal, and a line break ends a comment."""
    odd = setup().model_copy(update={"identity": "cam [/b]"})
    unusable = (("x\nhw: {kind: sim}\n.png", "it is none"), ("[red]y.png", "it is none"))
    console = Console(record=True, width=100)
    publish(found, Photographs(Path("a [i] b"), odd, (), (), unusable), tmp_path / "cam.yaml", "now", console)
    said = console.export_text()
    assert all(part in said for part in ("cam [/b]", "photographs a [i] b", "[red]y.png was left out"))
    assert "calibrate camera --from 'a [i] b'" in (tmp_path / "cam.yaml").read_text()
    hw = load(HwConfig, [Layer.from_file(tmp_path / "cam.yaml")]).hw
    assert hw.camera.calibration
    assert hw.camera.calibration.camera == "cam [/b]"


def test_photographs_of_another_resolution_are_refused(folder: Path) -> None:
    with pytest.raises(CalibrationError, match=r"base-1\.png is 640x480 px, expected 1280x720"):
        read_folder(folder, setup(width=1280, height=720))


def test_mirrored_photographs_are_refused(folder: Path) -> None:
    for path in list(folder.glob("*.png"))[:]:
        mirrored = np.asarray(Pictures.open(path))[:, ::-1]
        Pictures.fromarray(np.ascontiguousarray(mirrored)).save(path)
    with pytest.raises(CalibrationError, match=r"base-1\.png does not show the board: the image is mirrored"):
        read_folder(folder)


def test_photographs_of_another_board_are_refused(folder: Path) -> None:
    for path in sorted(folder.glob("*.png"))[:-3]:
        path.unlink()
    board = BoardConfig(squares=(9, 6), square=0.028, marker=0.021)
    with pytest.raises(CalibrationError, match=r"shows the board. Of 3: its markers do not lie as on .* 9x6"):
        read_folder(folder, setup().model_copy(update={"board": board}))


def test_other_settings_do_not_make_it_another_camera(folder: Path) -> None:
    wider = BoardConfig(square=0.0355, marker=0.0264)
    given = setup().model_copy(update={"board": wider, "identity": "whatever is plugged in now"})
    photographs = read_folder(folder, given)
    assert photographs.setup.board == wider
    assert photographs.setup.identity == "cam A"


def test_photographs_of_the_base_may_be_called_so_in_capitals(folder: Path) -> None:
    (folder / "base-1.png").rename(folder / "BASE-1.PNG")
    assert [view.name for view in read_folder(folder).base] == ["BASE-1"]


def png_of(width: int, height: int) -> bytes:
    """A PNG without pixels that says to be so large."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b""))
    parts = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


HUGE = png_of(1_000_000, 1_000_000)  # px; OpenCV raises where it returns nothing for other broken images


@pytest.mark.parametrize(
    ("spoil_it", "reason"),
    [
        (lambda folder: (folder / SETUP).unlink(), r"holds no setup\.json: add --hw"),
        (lambda folder: (folder / SETUP).write_text("{"), r"setup\.json cannot be used"),
        (lambda folder: [path.unlink() for path in folder.glob("*.png")], r"holds no image: expected \.png"),
        (lambda folder: (folder / "base-1.png").write_bytes(b""), r"base-1\.png does not show the board"),
        (lambda folder: (folder / "base-1.png").write_bytes(HUGE), r"base-1\.png does not show the board"),
    ],
)
def test_a_folder_that_is_not_whole_says_what_it_lacks(spoil_it: object, reason: str, folder: Path) -> None:
    for path in folder.glob("view-*.png"):
        path.unlink()
    spoil_it(folder)  # type: ignore[operator]
    with pytest.raises(CalibrationError, match=reason):
        read_folder(folder)


def test_what_is_no_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="is no folder; `ls cameras` shows"):
        read_folder(tmp_path / "nothing")
