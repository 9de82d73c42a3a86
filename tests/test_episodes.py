from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mcap.reader import make_reader
from mcap_protobuf.decoder import DecoderFactory

from agent import episodes
from agent.actor import report
from agent.episodes import (
    Episode,
    EpisodeCorrupt,
    EpisodeError,
    EpisodeTooNew,
    EpisodeWriteError,
    EpisodeWriter,
    read_episode,
    read_index,
)
from agent.files import DiskError, append_row, read_rows
from agent.mcap_codec import CodecError
from agent.recovery import read_summary, recover

HEADER = {
    "task": "valve_random",
    "hw": "sim",
    "seed": 7,
    "index": 12,
    "parameters": {"goal": 0.25, "start": -1.5},
    "config": "task:\n  kind: valve\n",
    "rig": {"offsets": [0.5, -0.5], "lower": np.array([-1.0, -2.0])},
}


def observation(rng: np.random.Generator, images: bool = True) -> dict[str, Any]:
    state = {"state": rng.normal(size=32).astype(np.float32)}
    return state | ({"image": rng.integers(0, 256, (64, 64, 3)).astype(np.uint8)} if images else {})


def telemetry(rng: np.random.Generator, number: int) -> dict[str, Any]:
    return {
        "time": 100.0 + 0.1 * number,
        "joint_position": rng.normal(size=9),
        "joint_current": rng.normal(size=9),
        "object_position": rng.normal(size=1),
        "frame_time": 99.98 + 0.1 * number,
        "frame_sequence": 40 + number,
        "frame_age": 0.02,
    }


def step_info(rng: np.random.Generator, number: int) -> dict[str, Any]:
    moved = {
        "requested": rng.normal(size=9),
        "applied": rng.normal(size=9),
        "reasons": ("velocity", "range") if number % 2 else (),
        "overrun": 0.02 if number == 3 else 0.0,
    }
    return {
        "terms": {"distance": -float(rng.random()), "bonus": 0.125},
        "success": number % 2 == 0,
        "measures": {"error": 0.05 * number, "success_20deg": 1.0},
        "telemetry": telemetry(rng, number) | moved,
    }


def write(path: Path, steps: int = 6, *, images: bool = True, seed: int = 0) -> dict[str, list[Any]]:
    """A closed episode, and everything that was said to its writer."""
    rng = np.random.default_rng(seed)
    said: dict[str, list[Any]] = {"observation": [], "telemetry": [], "action": [], "reward": [], "info": []}
    with EpisodeWriter(path, HEADER) as writer:
        said["observation"].append(observation(rng, images))
        said["telemetry"].append(telemetry(rng, 0))
        writer.begin(said["observation"][0], said["telemetry"][0])
        for number in range(1, steps + 1):
            said["observation"].append(observation(rng, images))
            said["action"].append(rng.uniform(-1, 1, 9).astype(np.float32))
            said["reward"].append(-float(rng.random()))
            said["info"].append(step_info(rng, number))
            writer.step(said["observation"][-1], said["action"][-1], said["reward"][-1], said["info"][-1])
        writer.done(terminated=False, truncated=True)
    return said


def test_reads_back_exactly_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "episodes" / "000012.mcap"
    said = write(path)
    episode = read_episode(path)
    for name, got in (("image", episode.images), ("state", episode.states)):
        assert got is not None
        assert np.array_equal(got, [item[name] for item in said["observation"]])
    assert episode.states is not None
    assert episode.states.dtype == np.float32
    assert np.array_equal(episode.actions, said["action"])
    assert episode.rewards.tolist() == said["reward"]
    assert episode.success.tolist() == [info["success"] for info in said["info"]]
    assert episode.terms["distance"].tolist() == [info["terms"]["distance"] for info in said["info"]]
    assert episode.measures["error"].tolist() == [info["measures"]["error"] for info in said["info"]]
    readings = [*said["telemetry"], *(info["telemetry"] for info in said["info"])]
    for name in ("time", "joint_position", "frame_time", "frame_sequence"):
        assert np.array_equal(episode.telemetry[name], [reading[name] for reading in readings])
    assert (episode.terminated, episode.truncated, episode.fault) == (False, True, None)


def test_a_reset_has_no_applied_target(tmp_path: Path) -> None:
    said = write(tmp_path / "000001.mcap")
    telemetry = read_episode(tmp_path / "000001.mcap").telemetry
    assert np.isnan(telemetry["applied"][0]).all()
    assert np.array_equal(telemetry["applied"][1:], [info["telemetry"]["applied"] for info in said["info"]])
    assert telemetry["reasons"].tolist()[:3] == [(), ("velocity", "range"), ()]


def test_header_carries_config_rig_and_parameters(tmp_path: Path) -> None:
    write(tmp_path / "000001.mcap")
    episode = read_episode(tmp_path / "000001.mcap")
    assert episode.header["config"] == HEADER["config"]
    assert episode.header["rig"] == {"offsets": [0.5, -0.5], "lower": [-1.0, -2.0]}
    assert episode.parameters == HEADER["parameters"]
    assert (episode.header["task"], episode.header["seed"]) == ("valve_random", 7)


def test_state_only_episode_has_no_images(tmp_path: Path) -> None:
    write(tmp_path / "000001.mcap", images=False)
    episode = read_episode(tmp_path / "000001.mcap")
    assert episode.images is None
    assert episode.states is not None
    assert episode.states.shape == (7, 32)


def test_images_can_be_left_on_disk(tmp_path: Path) -> None:
    write(tmp_path / "000001.mcap")
    assert read_episode(tmp_path / "000001.mcap", images=False).images is None


def test_summary_is_that_of_the_log(tmp_path: Path) -> None:
    path = tmp_path / "episodes" / "000012.mcap"
    rng = np.random.default_rng(0)
    with EpisodeWriter(path, HEADER) as writer:
        writer.begin(observation(rng), telemetry(rng, 0))
        for number in range(1, 5):
            writer.step(observation(rng), np.zeros(9, np.float32), -0.1 * number, step_info(rng, number))
        writer.done(terminated=True, truncated=False)
    summary = writer.summary
    assert summary == read_summary(path)
    assert (summary.index, summary.file, summary.steps) == (12, "episodes/000012.mcap", 4)
    assert summary.return_ == pytest.approx(-1.0)
    assert (summary.success, summary.late, summary.seed, summary.fault) == (True, 1, 7, None)
    assert summary.measures == {"error": 0.2, "success_20deg": 1.0}
    assert summary.robot_seconds == pytest.approx(0.4)
    assert episodes.EpisodeSummary.from_row(json.loads(json.dumps(summary.row()))) == summary


def test_equal_episodes_are_equal_files(tmp_path: Path) -> None:
    write(tmp_path / "a" / "000001.mcap")
    write(tmp_path / "b" / "000001.mcap")
    assert (tmp_path / "a" / "000001.mcap").read_bytes() == (tmp_path / "b" / "000001.mcap").read_bytes()


def test_other_programs_read_the_file(tmp_path: Path) -> None:
    write(tmp_path / "000001.mcap")
    with (tmp_path / "000001.mcap").open("rb") as file:
        reader = make_reader(file, validate_crcs=True, decoder_factories=[DecoderFactory()])
        summary = reader.get_summary()
        decoded = list(reader.iter_decoded_messages())
    assert summary is not None
    assert summary.statistics is not None
    assert summary.statistics.message_count == len(decoded) == 2 * 7
    topics = {channel.topic for channel in summary.channels.values()}
    assert topics == {"/reset", "/step", "/observation/image"}
    assert [index.name for index in summary.metadata_indexes] == ["header", "parameters", "outcome"]
    assert {index.name for index in summary.attachment_indexes} == {"config.yaml", "rig.json"}
    messages = {channel.topic: message for _, channel, _, message in decoded}
    assert messages["/observation/image"].format == "png"
    assert messages["/observation/image"].timestamp.ToNanoseconds() == 100_580_000_000
    assert len(messages["/step"].telemetry.applied) == 9
    assert messages["/step"].terms.bonus == 0.125


def test_wall_offset_gives_the_file_real_dates(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    with EpisodeWriter(tmp_path / "000001.mcap", {"wall_offset": 1.7e9}) as writer:
        writer.begin(observation(rng), telemetry(rng, 0))
        writer.event(100.05, "note", "a person touched the valve", "warning")
        writer.done(terminated=False, truncated=True)
    with (tmp_path / "000001.mcap").open("rb") as file:
        times = [message.log_time for _, _, message in make_reader(file).iter_messages()]
    assert times[0] == 1_700_000_100_000_000_000
    (event,) = read_episode(tmp_path / "000001.mcap").events
    assert event.time == pytest.approx(100.05, abs=1e-6)
    assert (event.name, event.text, event.level) == ("note", "a person touched the valve", "warning")


def test_events_are_counted_in_the_summary_but_for_the_fault_that_ended_the_episode(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    path = tmp_path / "000001.mcap"
    with EpisodeWriter(path, {}) as writer:
        writer.begin(observation(rng), telemetry(rng, 0))
        for name in ("reboot", "reboot", "cooling", "servo-silent"):
            writer.event(99.0, name, "servo 12 again", "warning")
        writer.fault("servo-silent", "servo 12 did not answer")
    assert writer.summary.events == {"reboot": 2, "cooling": 1, "servo-silent": 1}
    assert writer.summary == read_summary(path)
    assert len(read_episode(path).events) == 5


def test_telemetry_takes_the_health_of_the_servos_and_older_episodes_do_without(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    health = {"servo_temperature": np.arange(30.0, 40.0), "servo_voltage": np.full(10, 11.9)}
    with EpisodeWriter(tmp_path / "000001.mcap", {}) as writer:
        writer.begin(observation(rng), telemetry(rng, 0) | health)
        writer.done(terminated=False, truncated=True)
    read = read_episode(tmp_path / "000001.mcap").telemetry
    for name, values in health.items():
        assert np.array_equal(read[name], [values])
    write(tmp_path / "000002.mcap")
    assert "servo_voltage" not in read_episode(tmp_path / "000002.mcap").telemetry


def test_index_of_older_episodes_has_no_events(tmp_path: Path) -> None:
    write(tmp_path / "episodes" / "000012.mcap")
    row = read_summary(tmp_path / "episodes" / "000012.mcap").row()
    del row["events"]
    append_row(tmp_path / "episodes.jsonl", row)
    (summary,) = read_index(tmp_path / "episodes.jsonl")
    assert summary.events == {}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda row: row.pop("steps"), "steps: field required"),
        (lambda row: row.update(steps="many"), "steps: input should be a valid integer"),
        (lambda row: row.update(measures=[1]), "measures: input should be a valid dictionary"),
        (lambda row: row.clear(), "file: field required"),
    ],
)
def test_index_line_of_another_shape_is_told_by_file_and_line_and_can_be_made_anew(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], words: str
) -> None:
    index = tmp_path / "episodes.jsonl"
    for number in (1, 2):
        path = tmp_path / "episodes" / f"{number:06d}.mcap"
        write(path, images=False)
        row = read_summary(path).row()
        if number == 2:
            change(row)
        append_row(index, row)
    with pytest.raises(EpisodeError, match=r"episodes\.jsonl, line 2: ") as caught:
        read_index(index)
    assert words in str(caught.value)
    subprocess.run(re.search(r"sed -i 2d \S+episodes.jsonl", str(caught.value))[0].split(), check=True)  # type: ignore[index]
    recover(tmp_path)
    assert [summary.index for summary in read_index(index)] == [12, 12]
    assert [summary.file for summary in read_index(index)] == ["episodes/000001.mcap", "episodes/000002.mcap"]


def test_fault_ends_the_episode_with_its_name(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    with EpisodeWriter(tmp_path / "000001.mcap", {}) as writer:
        writer.begin(observation(rng), telemetry(rng, 0))
        writer.step(observation(rng), np.zeros(9), -1.0, step_info(rng, 1))
        writer.fault("servo-silent", "servo 12 did not answer")
    episode = read_episode(tmp_path / "000001.mcap")
    assert (episode.fault, episode.fault_message) == ("servo-silent", "servo 12 did not answer")
    assert episode.truncated
    assert not episode.terminated
    assert len(episode.actions) == 1
    assert [event.level for event in episode.events] == ["error"]
    assert writer.summary.fault == "servo-silent"


def test_fields_may_appear_and_vanish_within_an_episode(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    with EpisodeWriter(tmp_path / "000001.mcap", {}) as writer:
        writer.begin(observation(rng), telemetry(rng, 0))
        for number in range(1, 4):
            info = step_info(rng, number)
            if number == 2:
                info["telemetry"]["temperature"] = 41.5
            writer.step(observation(rng), np.zeros(9), -1.0, info)
        writer.done(terminated=False, truncated=True)
    values = read_episode(tmp_path / "000001.mcap").telemetry["temperature"]
    assert np.array_equal(values, [np.nan, np.nan, 41.5, np.nan], equal_nan=True)


def test_vectors_may_be_empty_or_change_their_length(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    with EpisodeWriter(tmp_path / "000001.mcap", {}) as writer:
        writer.begin(observation(rng), {"time": 0.0, "applied": np.zeros(0), "contacts": np.zeros(1)})
        moved = {"time": 0.1, "applied": np.ones(2), "contacts": np.zeros(3)}
        writer.step(observation(rng), np.zeros(9), -1.0, {"success": False, "telemetry": moved})
        writer.done(terminated=False, truncated=True)
    values = read_episode(tmp_path / "000001.mcap").telemetry
    assert np.array_equal(values["applied"], [[np.nan, np.nan], [1.0, 1.0]], equal_nan=True)
    assert values["contacts"].tolist() == [(0.0,), (0.0, 0.0, 0.0)]


def test_writer_copies_what_it_is_given(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    first, reading = observation(rng), telemetry(rng, 0)
    image = first["image"].copy()
    with EpisodeWriter(tmp_path / "000001.mcap", {}) as writer:
        writer.begin(first, reading)
        first["image"][:] = 0
        reading["joint_position"][:] = 0
        writer.done(terminated=False, truncated=True)
    episode = read_episode(tmp_path / "000001.mcap")
    assert episode.images is not None
    assert np.array_equal(episode.images[0], image)
    assert episode.telemetry["joint_position"].any()


def test_unloggable_value_is_named(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    with EpisodeWriter(tmp_path / "000001.mcap", {}) as writer:
        writer.begin(observation(rng), telemetry(rng, 0))
        info = step_info(rng, 1)
        for bad in (object(), np.zeros((3, 3)), np.zeros(2, complex)):
            info["telemetry"]["strange"] = bad
            with pytest.raises(CodecError, match=r"telemetry\.strange cannot be logged"):
                writer.step(observation(rng), np.zeros(9), 0.0, info)
        info["telemetry"] = {"time": 1.0, "two words": 1.0}
        with pytest.raises(CodecError, match="two words"):
            writer.step(observation(rng), np.zeros(9), 0.0, info)
        writer.done(terminated=False, truncated=True)
    assert len(read_episode(tmp_path / "000001.mcap").actions) == 0


def test_interruption_closes_the_episode(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)

    def interrupted() -> None:
        with EpisodeWriter(tmp_path / "000001.mcap", {}) as writer:
            writer.begin(observation(rng), telemetry(rng, 0))
            writer.step(observation(rng), np.zeros(9), -1.0, step_info(rng, 1))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    episode = read_episode(tmp_path / "000001.mcap")
    assert (episode.fault, episode.truncated, len(episode.actions)) == ("interrupted", True, 1)


def test_episode_without_observation_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), EpisodeWriter(tmp_path / "000001.mcap", {}):
        raise RuntimeError("the policy could not be loaded")
    assert list(tmp_path.iterdir()) == []


def test_existing_episode_is_never_overwritten(tmp_path: Path) -> None:
    write(tmp_path / "000001.mcap")
    with pytest.raises(EpisodeWriteError, match="exists already"):
        EpisodeWriter(tmp_path / "000001.mcap", {})


def test_every_step_is_with_the_system_within_100_ms(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    part = tmp_path / "000001.mcap.part"
    with EpisodeWriter(tmp_path / "000001.mcap", {}) as writer:
        writer.begin(observation(rng), telemetry(rng, 0))
        for number in range(1, 6):
            size = part.stat().st_size
            writer.step(observation(rng), np.zeros(9), -1.0, step_info(rng, number))
            deadline = time.monotonic() + 0.1
            while part.stat().st_size == size:
                assert time.monotonic() < deadline
        writer.done(terminated=False, truncated=True)


# Damage


def damaged(path: Path, change: Callable[[bytes], bytes]) -> EpisodeCorrupt:
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(EpisodeCorrupt) as caught:
        read_episode(path)
    return caught.value


def test_cut_file_says_what_is_readable_and_how_to_go_on(tmp_path: Path) -> None:
    path = tmp_path / "000001.mcap"
    said = write(path, steps=10)
    error = damaged(path, lambda data: data[: len(data) * 6 // 10])
    assert 0 < error.steps < 10
    assert isinstance(error.readable, Episode)
    assert error.readable.images is not None
    assert len(error.readable.images) == error.steps + 1
    assert np.array_equal(error.readable.actions, said["action"][: error.steps])
    for part in (str(path), f"{error.steps} steps are readable", f"mv {path} {path}.bad", "--resume"):
        assert part in str(error)


@pytest.mark.parametrize("place", [0.15, 0.35, 0.55, 0.75, 0.9])
def test_flipped_byte_is_noticed(tmp_path: Path, place: float) -> None:
    path = tmp_path / "000001.mcap"
    write(path, steps=4)

    def flip(data: bytes) -> bytes:
        at = int(len(data) * place)
        return data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]

    assert damaged(path, flip).steps <= 4


@pytest.mark.parametrize("data", [b"", b"not an episode", b"\x00" * 4096])
def test_foreign_file_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "000001.mcap"
    path.write_bytes(data)
    with pytest.raises(EpisodeCorrupt, match="0 steps are readable"):
        read_episode(path)


def test_later_schema_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.mcap_codec.SCHEMA_VERSION", 99)
    write(tmp_path / "episodes" / "000001.mcap")
    monkeypatch.undo()
    with pytest.raises(EpisodeTooNew, match=r"schema version 99; this program reads up to 1"):
        read_episode(tmp_path / "episodes" / "000001.mcap")
    assert isinstance(recover(tmp_path).damaged[0], EpisodeTooNew)


# Crashes

CRASHING_WRITER = """
import sys, time
from pathlib import Path
import numpy as np
from agent.episodes import EpisodeWriter

rng = np.random.default_rng(0)
image = rng.integers(0, 256, (64, 64, 3)).astype(np.uint8)
writer = EpisodeWriter(Path(sys.argv[1]), {"index": 3, "seed": 1})
writer.begin({"image": image}, {"time": time.monotonic()})
print("0", time.monotonic(), flush=True)
for number in range(1, 10_000):
    info = {"success": False, "telemetry": {"time": time.monotonic()}}
    writer.step({"image": image}, np.full(9, number, np.float32), -1.0, info)
    print(number, time.monotonic(), flush=True)
    time.sleep(0.005)
"""


def start_crashing(path: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CRASHING_WRITER, str(path)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1])


def crash(process: subprocess.Popen[str], after: float) -> tuple[int, int]:
    """Kills a writer some seconds after its first step; (steps older than 100 ms then, steps in all)."""
    assert process.stdout is not None
    lines = [process.stdout.readline()]
    time.sleep(after)
    killed = time.monotonic()
    os.kill(process.pid, signal.SIGKILL)
    lines += process.stdout.read().splitlines()
    process.wait()
    told = [(int(line.split()[0]), float(line.split()[1])) for line in lines if len(line.split()) == 2]
    return max(number for number, when in told if when <= killed - 0.1), told[-1][0]


def test_killed_writer_loses_at_most_100_ms(tmp_path: Path) -> None:
    paths = [tmp_path / f"run{number}" / "episodes" / "000003.mcap" for number in range(3)]
    delays = np.random.default_rng().uniform(0.15, 0.5, len(paths))  # another moment each time, on purpose
    for path, process, delay in zip(paths, [start_crashing(path) for path in paths], delays, strict=True):
        safe, last = crash(process, float(delay))
        (summary,) = recover(path.parents[1]).recovered
        assert safe <= summary.steps <= last + 1
        episode = read_episode(path)
        assert episode.actions[:, 0].tolist() == list(range(1, summary.steps + 1))
        assert episode.images is not None
        assert len(episode.images) == summary.steps + 1
        assert (episode.recovered, episode.truncated, episode.fault) == (True, True, "killed")


def leave_part(run: Path, cut: int = 0) -> Path:
    """What a writer leaves that died in the middle of step 5."""
    path = run / "episodes" / "000001.mcap"
    rng = np.random.default_rng(0)
    writer = EpisodeWriter(path, HEADER)
    writer.begin(observation(rng), telemetry(rng, 0))
    for number in range(1, 6):
        writer.step(observation(rng), np.zeros(9), -1.0, step_info(rng, number))
    writer._stop_thread()
    writer._disk.close()
    part = path.with_name(path.name + ".part")
    os.truncate(part, part.stat().st_size - cut)
    return part


@pytest.mark.parametrize(("cut", "steps"), [(0, 5), (1, 4), (5_000, 4), (14_000, 3)])
def test_recovery_keeps_every_whole_step(tmp_path: Path, cut: int, steps: int) -> None:
    leave_part(tmp_path, cut)
    (summary,) = recover(tmp_path).recovered
    episode = read_episode(tmp_path / "episodes" / "000001.mcap")
    assert summary.steps == len(episode.actions) == steps
    assert episode.images is not None
    assert len(episode.images) == steps + 1
    assert episode.parameters == HEADER["parameters"]
    with (tmp_path / "episodes" / "000001.mcap").open("rb") as file:
        known = make_reader(file, validate_crcs=True).get_summary()
    assert known is not None
    assert known.statistics is not None
    assert known.statistics.message_count == 2 * (steps + 1)


def test_block_of_zeros_at_the_end_is_cut_off(tmp_path: Path) -> None:
    part = leave_part(tmp_path)
    part.write_bytes(part.read_bytes() + b"\x00" * 4096)
    assert [summary.steps for summary in recover(tmp_path).recovered] == [5]


def test_recovery_happens_once(tmp_path: Path) -> None:
    leave_part(tmp_path)
    (summary,) = recover(tmp_path).recovered
    before = (tmp_path / "episodes" / "000001.mcap").read_bytes()
    again = recover(tmp_path)
    assert (again.recovered, again.damaged, again.alive) == ([], [], [])
    assert (tmp_path / "episodes" / "000001.mcap").read_bytes() == before
    assert read_rows(tmp_path / "episodes.jsonl") == [summary.row()]
    assert [path.name for path in (tmp_path / "episodes").iterdir()] == ["000001.mcap"]


def test_recovery_that_was_killed_itself_is_repeated(tmp_path: Path) -> None:
    part = leave_part(tmp_path)
    data = part.read_bytes()
    (summary,) = recover(tmp_path).recovered
    part.write_bytes(data)  # killed between the new file and the removal of the old one
    (tmp_path / "episodes" / "000001.mcap.recovering.new").write_bytes(b"begun")
    assert recover(tmp_path).recovered == [summary]
    assert read_rows(tmp_path / "episodes.jsonl") == [summary.row()]
    assert [path.name for path in (tmp_path / "episodes").iterdir()] == ["000001.mcap"]


def test_writer_killed_before_the_renaming_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "episodes" / "000001.mcap"
    write(path)
    path.rename(path.with_name(path.name + ".part"))
    (summary,) = recover(tmp_path).recovered
    assert (summary.steps, summary.fault, summary.truncated) == (6, None, True)


def test_living_writer_is_left_alone(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    with EpisodeWriter(tmp_path / "episodes" / "000001.mcap", {}) as writer:
        writer.begin(observation(rng), telemetry(rng, 0))
        result = recover(tmp_path)
        assert [path.name for path in result.alive] == ["000001.mcap.part"]
        assert result.recovered == []
        writer.step(observation(rng), np.zeros(9), -1.0, step_info(rng, 1))
        writer.done(terminated=False, truncated=True)
    assert len(read_episode(tmp_path / "episodes" / "000001.mcap").actions) == 1


def test_part_without_observation_is_removed(tmp_path: Path) -> None:
    writer = EpisodeWriter(tmp_path / "episodes" / "000001.mcap", HEADER)
    writer._stop_thread()
    writer._disk.close()
    assert recover(tmp_path).recovered == []
    assert list((tmp_path / "episodes").iterdir()) == []


def test_index_is_completed_from_the_files(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        write(tmp_path / "episodes" / f"{number:06d}.mcap", steps=number, images=False)
    (tmp_path / "episodes" / "000002.mcap").write_bytes(b"damaged")
    append_row(tmp_path / "episodes.jsonl", {"file": "episodes/000001.mcap", "steps": 1})
    with (tmp_path / "episodes.jsonl").open("ab") as file:
        file.write(b'{"file": "episodes/000003.m')
    result = recover(tmp_path)
    rows = read_rows(tmp_path / "episodes.jsonl")
    assert [(row["file"], row["steps"]) for row in rows] == [
        ("episodes/000001.mcap", 1),
        ("episodes/000003.mcap", 3),
    ]
    assert [type(error) for error in result.damaged] == [EpisodeCorrupt]


# Full disks

FULL_DISK = """
import resource, sys
from pathlib import Path
import numpy as np
from agent.episodes import EpisodeWriteError, EpisodeWriter

rng = np.random.default_rng(0)
frame = lambda: {"image": rng.integers(0, 256, (64, 64, 3)).astype(np.uint8)}
resource.setrlimit(resource.RLIMIT_FSIZE, (80_000, 80_000))
try:
    with EpisodeWriter(Path(sys.argv[1]), {"index": 1}) as writer:
        writer.begin(frame(), {"time": 0.0})
        for number in range(1, 1000):
            writer.step(frame(), np.zeros(9), -1.0, {"success": False, "telemetry": {"time": 0.1 * number}})
except EpisodeWriteError as error:
    print(error)
    sys.exit(1)
"""


def test_full_disk_is_reported_and_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "episodes" / "000001.mcap"
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(path)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    assert done.returncode == 1, done.stderr
    assert str(path) in done.stdout
    assert "MiB are free" in done.stdout
    assert "--resume" in done.stdout
    (summary,) = recover(tmp_path).recovered
    assert summary.steps == 5  # a noisy frame of 64x64 takes 12.4 kB


def test_recovery_on_a_full_disk_keeps_the_unfinished_file(tmp_path: Path) -> None:
    mount = ["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a small file system")
    try:
        part = leave_part(tmp_path)  # 75 kB: a second copy does not fit
        with pytest.raises(EpisodeWriteError, match=r"No space left on device. 0\.\d MiB are free"):
            recover(tmp_path)
        assert part.exists()
    finally:
        subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


def test_unwritable_folder_is_an_episode_error(tmp_path: Path) -> None:
    (tmp_path / "episodes").write_text("a file where the folder should be")
    with pytest.raises(EpisodeError, match="could not be written"):
        EpisodeWriter(tmp_path / "episodes" / "000001.mcap", {})


@pytest.mark.parametrize(
    ("number", "words", "absent"),
    [
        (errno.ENOSPC, "Free some space", "ls -ld"),
        (errno.EACCES, "ls -ld", "free"),
        (errno.EROFS, "change its rights", "Free"),
        (errno.EIO, "dmesg", "Free"),
    ],
)
def test_what_to_do_about_a_disk_depends_on_what_is_wrong_with_it(
    tmp_path: Path, number: int, words: str, absent: str
) -> None:
    text = str(DiskError(tmp_path / "summary.json", OSError(number, os.strerror(number))))
    assert os.strerror(number) in text
    assert words in text
    assert "--resume" in text
    assert absent not in text


def test_stalled_disk_stops_the_episode_instead_of_the_robot(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    writer = EpisodeWriter(tmp_path / "000001.mcap", {}, patience=0.01)
    writer.begin(observation(rng), telemetry(rng, 0))
    release = threading.Event()
    writer._put(release.wait)  # the disk hangs

    def fill() -> None:
        for number in range(1, 2 * episodes.QUEUE_STEPS):
            writer.step(observation(rng), np.zeros(9), -1.0, step_info(rng, number))

    with pytest.raises(EpisodeWriteError, match="has not kept up"):
        fill()
    release.set()
    writer.close()
    assert len(read_episode(tmp_path / "000001.mcap").actions) >= episodes.QUEUE_STEPS - 1


@pytest.fixture
def hanging_disk(tmp_path: Path) -> Iterator[Callable[[], None]]:
    """The episode's file is a pipe that somebody reads until this is called: from then on writes wait."""
    path = tmp_path / "000001.mcap.part.new"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDWR | os.O_NONBLOCK)

    def hang() -> None:
        with suppress(BlockingIOError):
            while True:
                os.write(reader, b"x")

    yield hang
    os.set_blocking(reader, True)
    threading.Thread(target=drained, args=(reader,), daemon=True).start()


def drained(pipe: int) -> None:
    while os.read(pipe, 2**16):
        pass


def test_a_disk_that_hangs_at_the_end_of_an_episode_is_named(
    tmp_path: Path, hanging_disk: Callable[[], None]
) -> None:
    rng = np.random.default_rng(0)
    writer = EpisodeWriter(tmp_path / "000001.mcap", {}, patience_at_end=0.2)
    writer.begin(observation(rng), telemetry(rng, 0))
    hanging_disk()
    writer.step(observation(rng), np.zeros(9), -1.0, step_info(rng, 1))
    writer.done(terminated=False, truncated=True)
    for _ in range(2):
        with pytest.raises(EpisodeWriteError, match=r"000001\.mcap.*the disk hangs.* 0\.2 s.*--resume"):
            writer.close()


def test_a_disk_that_hangs_behind_the_renaming_leaves_nothing_to_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng, gate, closed = np.random.default_rng(0), threading.Event(), list[episodes.EpisodeSummary]()
    monkeypatch.setattr("agent.files.sync_folder", lambda folder: gate.wait())
    writer = EpisodeWriter(tmp_path / "000001.mcap", {}, patience_at_end=0.2)
    writer.begin(observation(rng), telemetry(rng, 0))
    with pytest.raises(EpisodeWriteError, match="the disk hangs"):
        writer.close()
    assert writer.path.exists()
    report(writer, closed.append)  # as the actor does while that error is on its way
    assert not closed
    gate.set()


def test_failure_in_the_writer_thread_reaches_the_caller(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    writer = EpisodeWriter(tmp_path / "000001.mcap", {})
    writer.begin(observation(rng), telemetry(rng, 0))
    writer._put(lambda: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(EpisodeWriteError, match="No space left on device"):
        writer.close()
    assert (tmp_path / "000001.mcap.part").exists()
