"""Episodes on disk: one MCAP file each, written while they happen, whole after a kill -9, readable by anyone.

A file is `NUMBER.mcap.part` while its writer lives and `NUMBER.mcap` once closed. `/reset` holds observation
0, `/step` the action, reward and observation of steps 1 to L, `/observation/NAME` the images exactly as the
agent saw them, `/event` what else happened.
"""

from __future__ import annotations

import json
import struct
import threading
import time
import zlib
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
from google.protobuf.message import Error as ProtobufError
from mcap import records as mcap_records
from mcap.exceptions import McapError
from mcap.opcode import Opcode
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from agent.files import DiskError, GrowingFile, disk_errors, numbered_rows
from agent.mcap_codec import (
    LOG_LEVELS,
    MAGIC,
    SCHEMA_VERSION,
    CodecError,
    Container,
    Decoder,
    Foxglove,
    Image,
    Record,
    Signature,
    column,
    compressed_image,
    decode_png,
    freeze,
    log_message,
    records,
)

LATE = 0.01  # s: a step that overruns its deadline by more counts as late, as in the control loop's ticker
QUEUE_STEPS = 64  # 6 s at 10 Hz: a disk that stalls longer has failed
# s for an episode's end to be on disk: twice what is too long in its midst. The robot holds its pose
# meanwhile, and while films of two cameras end; after the 20 s of hw.dclaw.keep_alive it would be let go
# without a word about the disk.
END_PATIENCE = 13.0
WRITE_INTERVAL = 0.02  # s between two looks of the writer thread: a step is on its way to disk by then
SYNC_INTERVAL = 1.0  # s of steps that a power cut, unlike a kill -9, may take


class EpisodeError(Exception):
    """An episode cannot be written or read."""


class EpisodeWriteError(EpisodeError, DiskError):
    """The disk did not take a step; those before it are safe, in the .part file until `recover` closes it."""

    def __init__(self, path: Path, reason: OSError | str) -> None:
        if isinstance(reason, OSError):
            DiskError.__init__(self, path, reason)
        else:
            Exception.__init__(self, f"{path}: {reason}")


class NotReplayable(EpisodeError):
    """A path leads to no episode, or to one that nothing can be replayed of."""


class EpisodeTooNew(EpisodeError):
    """The file was written by a later version of this program."""


class EpisodeCorrupt(EpisodeError):
    """A closed file is damaged; `readable` is what is good of it, `steps` its number of steps."""

    def __init__(self, path: Path, reason: str, readable: Episode | None = None) -> None:
        self.path, self.readable = path, readable
        self.steps = len(readable.actions) if readable is not None else 0
        super().__init__(
            f"{path}: {reason}. {self.steps} steps are readable. "
            f"Its run goes on without it after: mv {path} {path}.bad, and the run's own command with --resume"
        )


class IndexCorrupt(EpisodeError):
    """A line of an index is not what this program writes."""


@dataclass(frozen=True)
class Event:
    """Something that happened besides the steps: a fault, a warning, a note."""

    time: float  # s of the run's clock
    name: str
    text: str
    level: str = "info"

    def tells(self, outcome: Outcome) -> bool:
        """Whether it is the fault that ended the episode, which is counted as such."""
        return (self.name, self.text) == (outcome.fault, outcome.fault_message)


class RigEvent(Protocol):
    """Something that happened on the rig besides its readings, as an episode logs it."""

    @property
    def time(self) -> float:
        """s of the run's clock."""
        ...

    @property
    def name(self) -> str:
        """The word that logs and summaries use."""
        ...

    @property
    def text(self) -> str:
        """For a person."""
        ...

    @property
    def level(self) -> str:
        """info, warning or error."""
        ...


@dataclass(frozen=True)
class EpisodeSummary:
    """One line of the index: what a run, a plot and a report need to know without opening the file."""

    index: int
    file: str  # FOLDER/NUMBER.mcap
    sha256: str
    steps: int
    return_: float
    success: bool  # at the last step
    measures: dict[str, float]  # at the last step
    terminated: bool
    truncated: bool
    fault: str | None
    fault_message: str
    seed: int | None
    robot_seconds: float
    late: int
    events: dict[str, int] = field(default_factory=dict)  # how often what else happened

    def row(self) -> dict[str, Any]:
        """For the index."""
        row = asdict(self)
        return {("return" if name == "return_" else name): value for name, value in row.items()}

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> EpisodeSummary:
        """From a line of the index. Raises IndexCorrupt naming what is missing or of another kind."""
        values = {("return_" if name == "return" else name): value for name, value in row.items()}
        try:
            return _SUMMARY.validate_python(values)
        except ValidationError as error:
            troubles = (f"{'.'.join(map(str, e['loc']))}: {e['msg'].lower()}" for e in error.errors())
            raise IndexCorrupt(f"this is no episode of this program ({'; '.join(troubles)})") from error


_SUMMARY = TypeAdapter(EpisodeSummary)


def read_index(path: Path) -> list[EpisodeSummary]:
    """The episodes of an index, each once. Raises IndexCorrupt naming file and line."""
    summaries: dict[str, EpisodeSummary] = {}
    for number, row in numbered_rows(path).items():
        try:
            summary = EpisodeSummary.from_row(row)
        except IndexCorrupt as error:
            raise IndexCorrupt(
                f"{path}, line {number}: {error}. To have it made anew from the episode's file: "
                f"sed -i {number}d {path}, then the same command with --resume"
            ) from error
        summaries.setdefault(summary.file, summary)
    return list(summaries.values())


@dataclass(frozen=True)
class Episode:
    """What happened, as arrays: L steps, L+1 observations. Row 0 of telemetry is the reading at reset."""

    path: Path
    header: dict[str, Any]
    parameters: dict[str, Any]  # the task's: goal, start
    observations: dict[str, NDArray[Any]]  # each (L+1, ...); images uint8 RGB
    actions: NDArray[np.float32]  # (L, A)
    rewards: NDArray[np.float64]  # (L,)
    success: NDArray[np.bool_]  # (L,)
    terms: dict[str, NDArray[np.float64]]  # the reward's, each (L,)
    measures: dict[str, NDArray[np.float64]]  # each (L,)
    telemetry: dict[str, NDArray[Any]]  # each (L+1, ...); nan in row 0 of what a reset does not have
    events: list[Event]
    terminated: bool
    truncated: bool
    fault: str | None
    fault_message: str
    recovered: bool  # the writer died; the file was closed by `recover`

    @property
    def images(self) -> Image | None:
        """(L+1, H, W, 3) uint8 RGB, what the agent saw; None when it saw none or they were not read."""
        return self.observations.get("image")

    @property
    def states(self) -> NDArray[np.float32] | None:
        """(L+1, N) the state observation, if there is one."""
        return self.observations.get("state")

    def summary(self, sha256: str) -> EpisodeSummary:
        """The index line of this episode; sha256 is that of its file."""
        tally = _Tally(self.header, self.path)
        times = self.telemetry.get("time", np.zeros(1))
        overruns = self.telemetry.get("overrun", np.zeros(1))
        if len(times):
            tally.first_time, tally.last_time = float(times[0]), float(times[-1])
        tally.steps, tally.return_ = len(self.actions), float(sum(self.rewards.tolist()))
        tally.late = int(np.sum(overruns[1:] > LATE))
        if tally.steps:
            tally.success = bool(self.success[-1])
            tally.measures = {name: float(values[-1]) for name, values in self.measures.items()}
        outcome = Outcome(self.terminated, self.truncated, self.fault, self.fault_message, self.recovered)
        tally.events.update(event.name for event in self.events if not event.tells(outcome))
        return tally.summary(sha256, outcome)


@dataclass(frozen=True)
class Outcome:
    """How an episode ended."""

    terminated: bool = False
    truncated: bool = False
    fault: str | None = None
    fault_message: str = ""
    recovered: bool = False


@dataclass
class _Tally:
    """The numbers of an episode while it grows."""

    header: Mapping[str, Any]
    path: Path
    steps: int = 0
    return_: float = 0.0
    success: bool = False
    late: int = 0
    first_time: float = 0.0
    last_time: float = 0.0
    measures: dict[str, float] = field(default_factory=dict)
    events: Counter[str] = field(default_factory=Counter)

    def add(self, reward: float, info: Mapping[str, Any]) -> None:
        self.steps += 1
        self.return_ += reward
        self.success = bool(info["success"])
        self.measures = {name: float(value) for name, value in info.get("measures", {}).items()}
        self.last_time = float(info["telemetry"]["time"])
        self.late += float(info["telemetry"].get("overrun", 0.0)) > LATE

    def summary(self, sha256: str, outcome: Outcome) -> EpisodeSummary:
        name = self.path.name.removesuffix(".part")
        index = self.header.get("index", episode_number(self.path))
        seed = self.header.get("seed")
        return EpisodeSummary(
            index=int(index),
            file=f"{self.path.parent.name}/{name}",
            sha256=sha256,
            steps=self.steps,
            return_=self.return_,
            success=self.success,
            measures=self.measures,
            terminated=outcome.terminated,
            truncated=outcome.truncated,
            fault=outcome.fault,
            fault_message=outcome.fault_message,
            seed=None if seed is None else int(seed),
            robot_seconds=self.last_time - self.first_time,
            late=self.late,
            events=dict(self.events),
        )


def episode_number(path: Path) -> int:
    """12 of episodes/000012.mcap; 0 when the name is not a number."""
    stem = path.name.split(".")[0]
    return int(stem) if stem.isdigit() else 0


class EpisodeWriter:
    """Logs an episode while it happens; every step is with the operating system within 100 ms.

    A step costs the caller a copy and a queue; encoding and writing happen on a thread of its own. Use as a
    context manager: leaving it closes the file, whatever the reason.
    """

    def __init__(
        self,
        path: Path,
        header: Mapping[str, Any],
        *,
        patience: float = 1.0,
        patience_at_end: float = END_PATIENCE,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Creates PATH.part, locked for as long as this writer lives.

        `header` takes anything that JSON takes; the entries of ATTACHED go into attachments and `wall_offset`
        (s, wall clock minus the run's clock) gives the file real dates. `patience` is how long a step waits
        for a full queue, `patience_at_end` how long `close` waits for the disk, s. Raises EpisodeWriteError.
        """
        self.path = Path(path)
        self._header, self._patience, self._monotonic = dict(header), patience, monotonic
        self._patience_at_end = patience_at_end
        self._end: Callable[[], object] = _nothing  # what the thread does last
        self._tally = _Tally(self._header, self.path)
        self._outcome: Outcome | None = None
        self._summary: EpisodeSummary | None = None
        self._error: Exception | None = None
        self._begun = False
        if self.path.exists():
            raise EpisodeWriteError(self.path, "it exists already. Choose another --run")
        with disk_errors(self.path, EpisodeWriteError):
            self._disk = GrowingFile(self.path.with_name(self.path.name + ".part"))
            self._container = Container(self._disk)
            self._container.header(self._header)
            self._disk.commit()
        self._jobs: deque[Callable[[], object]] = deque()
        self._wake, self._room, self._closing = threading.Event(), threading.Event(), False
        self._thread = threading.Thread(target=self._work, name=f"episode {self.path.name}", daemon=True)
        self._thread.start()

    def begin(
        self,
        observation: Mapping[str, Any],
        telemetry: Mapping[str, Any],
        parameters: Mapping[str, Any] | None = None,
    ) -> None:
        """Logs observation 0: images (H, W, 3) uint8 RGB and vectors by name, and the reading behind it.

        `telemetry["time"]` is the time of the reading, s; `parameters` are the task's goal and start, by
        default those in the header. Raises EpisodeWriteError.
        """
        parameters = self._header.get("parameters", {}) if parameters is None else parameters
        parameters = dict(parameters)
        self._tally.first_time = self._tally.last_time = float(telemetry["time"])
        self._put(lambda: self._container.parameters(parameters))
        self._append("/reset", observation, {"telemetry": telemetry})
        self._begun = True

    def step(
        self,
        observation: Mapping[str, Any],
        action: NDArray[np.floating[Any]],
        reward: float,
        info: Mapping[str, Any],
    ) -> None:
        """Logs one step: the action (A,), its reward and the observation after it.

        `info` holds terms and measures (numbers by name), success, and telemetry (numbers, words and vectors
        by name; `time` is required). Raises EpisodeWriteError when a step could not be written, at the next.
        """
        if not self._begun:
            raise EpisodeWriteError(self.path, "a step came before the first observation; call begin() first")
        values = {
            "action": np.asarray(action),
            "reward": float(reward),
            "success": bool(info["success"]),
            "terms": info.get("terms", {}),
            "measures": info.get("measures", {}),
            "telemetry": info["telemetry"],
        }
        self._append("/step", observation, values)
        self._tally.add(float(reward), info)

    def event(self, time: float, name: str, text: str, level: str = "info") -> None:
        """Logs that something happened at `time`, s of the run's clock. Raises EpisodeWriteError."""
        if level not in LOG_LEVELS:
            raise ValueError(f"level {level!r} is none of {', '.join(LOG_LEVELS)}")
        self._put(lambda: self._container.event(time, name, text, level))
        self._tally.events[name] += 1

    def done(self, *, terminated: bool, truncated: bool) -> None:
        """Says that the episode ended as it should: by the task, or by its time limit."""
        self._outcome = Outcome(terminated, truncated)

    def fault(self, name: str, message: str) -> None:
        """Says that the rig failed after the last logged step."""
        self._outcome = Outcome(False, True, name, message)
        time = self._tally.last_time
        self._put(lambda: self._container.event(time, name, message, "error"))

    def close(self) -> EpisodeSummary:
        """Makes the file whole and durable and gives it its final name; one without observations is removed.

        Raises EpisodeWriteError; what was written then stays in the .part file for `recover`.
        """
        if self._summary is None:
            outcome = self._outcome or Outcome(False, True, "aborted", "nobody said how it ended")
            self._end = partial(self._publish, outcome)
            self._stop_thread()
            self._disk.close()
            self._check()
            self._summary = self._tally.summary(self._disk.hash.hexdigest(), outcome)
        return self._summary

    def _publish(self, outcome: Outcome) -> None:
        if self._begun:
            self._container.finish(asdict(outcome))
            self._disk.publish(self.path)
        else:
            self._disk.discard()

    @property
    def kept(self) -> bool:
        """Whether the episode is closed and on disk: not without an observation, nor if the disk failed."""
        return self._begun and self._summary is not None

    @property
    def summary(self) -> EpisodeSummary:
        """The index line of the closed episode."""
        if self._summary is None:
            raise EpisodeWriteError(self.path, "the episode is not closed yet")
        return self._summary

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
            return
        if self._outcome is None:
            name = "interrupted" if isinstance(error, KeyboardInterrupt) else type(error).__name__
            self._outcome = Outcome(False, True, name, str(error))
        try:
            self.close()
        except EpisodeWriteError as trouble:
            if trouble is not error:
                error.add_note(f"and the log of the episode could not be closed: {trouble}")

    def _append(self, topic: str, observation: Mapping[str, Any], values: Mapping[str, Any]) -> None:
        """Copies everything and hands it to the thread."""
        images = {name: value.copy() for name, value in observation.items() if _is_image(value)}
        vectors = {name: value for name, value in observation.items() if name not in images}
        signature, payload = freeze({**values, "observation": vectors})
        sequence = self._tally.steps + (topic == "/step")
        self._put(lambda: self._record(topic, images, signature, payload, sequence))

    def _record(
        self,
        topic: str,
        images: Mapping[str, Image],
        signature: Signature,
        payload: Mapping[str, Any],
        sequence: int,
    ) -> None:
        """Images first: a step whose numbers are on disk is a whole step."""
        for name, image in images.items():
            self._container.image(name, image, payload["telemetry"], sequence)
        self._container.record(topic, signature, payload, sequence)

    def _put(self, job: Callable[[], object]) -> None:
        self._check()
        if len(self._jobs) >= QUEUE_STEPS:
            self._wait_for_room()
        self._jobs.append(job)

    def _wait_for_room(self) -> None:
        self._room.clear()
        self._wake.set()
        if len(self._jobs) >= QUEUE_STEPS and not self._room.wait(self._patience):
            reason = f"the disk has not kept up for {QUEUE_STEPS} steps. Choose a --run on a faster disk"
            raise EpisodeWriteError(self.path, reason)

    def _work(self) -> None:
        """The writer thread."""
        # It looks at intervals: to be woken for each step cost a simulated step 0.7 ms, this under 0.1 ms.
        synced, closing = self._monotonic(), False
        while not closing:
            self._wake.wait(WRITE_INTERVAL)
            self._wake.clear()
            closing = self._closing
            self._drain()
            if self._monotonic() - synced >= SYNC_INTERVAL:
                self._guard(self._disk.sync)
                synced = self._monotonic()
        self._guard(self._end)

    def _drain(self) -> None:
        """Never stops taking steps, so that nobody waits for a disk that has failed."""
        while self._jobs:
            job = self._jobs.popleft()
            self._guard(job)
            self._guard(self._disk.commit)
            self._room.set()

    def _guard(self, job: Callable[[], object]) -> None:
        if self._error is None:
            try:
                job()
            except Exception as error:  # raised again in the control thread, by its next call
                self._error = error

    def _stop_thread(self) -> None:
        """Returns when everything is written. Raises EpisodeWriteError when the disk takes too long."""
        self._closing = True
        self._wake.set()
        self._thread.join(self._patience_at_end)
        if self._thread.is_alive():  # it keeps the file: who closed it now would write into another one
            raise EpisodeWriteError(
                self.path,
                f"the disk hangs, it has not taken the episode's end within {self._patience_at_end:g} s. See "
                "what the system says of it (`dmesg | tail`), then go on with the same command and --resume; "
                "what was written before is safe",
            )

    def _check(self) -> None:
        if self._error is not None:
            reason = self._error if isinstance(self._error, OSError) else str(self._error)
            raise EpisodeWriteError(self.path, reason) from self._error


def _nothing() -> None:
    pass


def _is_image(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.ndim == 3 and value.dtype == np.uint8


@dataclass
class Contents:
    """What the records of a file say, as far as they are good."""

    damage: str = ""  # empty when the file is whole
    header: dict[str, Any] = field(default_factory=dict)
    parameters: dict[str, Any] = field(default_factory=dict)
    outcome: Outcome | None = None
    rows: list[dict[str, Any]] = field(default_factory=list)  # row 0 is the reset
    dtypes: dict[str, type[np.generic]] = field(default_factory=dict)
    images: dict[str, list[bytes]] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    data: list[Record] = field(default_factory=list)  # the good part of the data section

    def columns(self, prefix: str, first: int) -> dict[str, NDArray[Any]]:
        """The values of a section by name, from row `first` on."""
        rows = self.rows[first:]
        paths = [path for path in self.dtypes if path.startswith(prefix)]
        lists = {path: [row.get(path) for row in rows] for path in paths}
        return {
            path.removeprefix(prefix): column(values, self.dtypes[path]) for path, values in lists.items()
        }


class _Parser:
    """Takes in the data section record by record."""

    def __init__(self, contents: Contents) -> None:
        self.contents = contents
        self._schemas: dict[int, tuple[str, bytes]] = {}
        self._channels: dict[int, tuple[str, Decoder | Foxglove]] = {}
        self._take = {
            Opcode.SCHEMA: self._schema,
            Opcode.CHANNEL: self._channel,
            Opcode.MESSAGE: self._message,
            Opcode.METADATA: self._metadata,
            Opcode.ATTACHMENT: self._attachment,
        }

    def take(self, record: Record) -> None:
        """Raises one of DAMAGE when the record makes no sense."""
        if record.opcode in self._take:
            self._take[Opcode(record.opcode)](record)
        self.contents.data.append(record)

    def _schema(self, record: Record) -> None:
        schema = mcap_records.Schema.read(record.stream())
        self._schemas[schema.id] = (schema.name, schema.data)

    def _channel(self, record: Record) -> None:
        channel = mcap_records.Channel.read(record.stream())
        known = {"foxglove.CompressedImage": compressed_image, "foxglove.Log": log_message}
        name, data = self._schemas[channel.schema_id]
        reader = known[name]() if name in known else Decoder(name, data)
        self._channels[channel.id] = (channel.topic, reader)
        if isinstance(reader, Decoder):
            self.contents.dtypes.update(reader.dtypes)

    def _message(self, record: Record) -> None:
        channel, sequence, log_time = struct.unpack_from("<HIQ", record.payload)
        topic, reader = self._channels[channel]
        values: Any = reader.decode(record.payload[22:])
        if topic == "/event":
            self._event(log_time, values)
        elif topic.startswith("/observation/"):
            self._in_order(sequence, self.contents.images.setdefault(topic.split("/")[2], []), values.data)
        else:
            self._in_order(sequence, self.contents.rows, values)

    def _event(self, log_time: int, message: Any) -> None:
        time = log_time / 1e9 - float(self.contents.header.get("wall_offset", 0.0))
        self.contents.events.append(Event(time, message.name, message.message, LOG_LEVELS[message.level]))

    def _in_order(self, sequence: int, rows: list[Any], value: Any) -> None:
        if sequence != len(rows):
            raise CodecError(f"step {sequence} follows step {len(rows) - 1}")
        rows.append(value)

    def _metadata(self, record: Record) -> None:
        metadata = mcap_records.Metadata.read(record.stream())
        values = {name: json.loads(text) for name, text in metadata.metadata.items()}
        if metadata.name == "header":
            self.contents.header.update(values)
        elif metadata.name == "parameters":
            self.contents.parameters.update(values)
        elif metadata.name == "outcome":
            self.contents.outcome = Outcome(**values)

    def _attachment(self, record: Record) -> None:
        attachment = mcap_records.Attachment.read(record.stream())
        name, _, suffix = attachment.name.partition(".")
        text = attachment.data.decode()
        self.contents.header[name] = json.loads(text) if suffix == "json" else text


DAMAGE = (CodecError, ValueError, KeyError, IndexError, TypeError, struct.error, McapError, ProtobufError)


def parse(path: Path, data: bytes) -> Contents:
    """Everything of a file up to its first damage. Raises EpisodeTooNew."""
    found = list(records(data))
    contents = Contents(_damage(data, found))
    parser = _Parser(contents)
    for record in found:
        if record.opcode == Opcode.DATA_END:
            break
        try:
            parser.take(record)
        except DAMAGE as error:
            contents.damage = contents.damage or f"it makes no sense from byte {record.start} on ({error})"
            break
        version = contents.header.get("schema_version", SCHEMA_VERSION)
        if version > SCHEMA_VERSION:
            raise EpisodeTooNew(
                f"{path} has schema version {version}; this program reads up to {SCHEMA_VERSION}. "
                f"Update the program (git pull) or read it with the version that wrote it"
            )
    return contents


def _damage(data: bytes, found: Sequence[Record]) -> str:
    """Why the file is not whole; empty when it is."""
    if not data.startswith(MAGIC):
        return "it is not an MCAP file"
    end = next((record for record in found if record.opcode == Opcode.DATA_END), None)
    if end is None or found[-1].opcode != Opcode.FOOTER or not data.endswith(MAGIC):
        return f"it ends or is damaged at byte {found[-1].end if found else len(MAGIC)} of {len(data)}"
    (expected,) = struct.unpack("<I", end.payload)
    if expected not in (0, zlib.crc32(data[: end.start])):
        return "its checksum is wrong: some bytes have changed since it was written"
    return ""


def read_episode(path: Path, *, images: bool = True) -> Episode:
    """The episode in a closed file; without `images` they are not decoded and `Episode.images` is None.

    Raises EpisodeCorrupt with the readable part, EpisodeTooNew, or FileNotFoundError.
    """
    path = Path(path)
    contents = parse(path, path.read_bytes())
    pictures, damage = _decode(contents) if images else ({}, "")
    damage = contents.damage or damage
    if not contents.rows:
        raise EpisodeCorrupt(path, damage or "it has no first observation")
    episode = _assemble(path, contents, pictures)
    if damage:
        raise EpisodeCorrupt(path, damage, episode)
    return episode


def read_replayable(path: Path) -> Episode:
    """An episode with steps and settings, without its images. Raises NotReplayable, EpisodeError."""
    if not path.is_file():
        what = "is no file" if path.exists() else "does not exist"
        raise NotReplayable(f"{path} {what}; `ls runs/*/episodes` shows the episodes that there are")
    with open(path, "rb") as file:
        if file.read(len(MAGIC)) not in (MAGIC, b""):
            raise NotReplayable(
                f"{path} is no episode: expected an MCAP file, such as runs/*/episodes/*.mcap"
            )
    episode = read_episode(path, images=False)
    if "config" not in episode.header:
        raise NotReplayable(f"{path} says nothing of its settings: it is no episode of this program")
    if not len(episode.actions):
        raise NotReplayable(f"{path} holds no step: it was interrupted before the first; choose another")
    return episode


def _decode(contents: Contents) -> tuple[dict[str, Image], str]:
    """All images, each (L+1, H, W, 3); from a damaged or missing one on, the rows are dropped."""
    decoded: dict[str, list[Image]] = {}
    damage = ""
    for name, pictures in contents.images.items():
        decoded[name] = []
        for number, data in enumerate(pictures[: len(contents.rows)]):
            try:
                decoded[name].append(decode_png(data))
            except CodecError as error:
                damage = f"{name} of step {number}: {error}"
                break
        if len(decoded[name]) < len(contents.rows):
            damage = damage or f"{name} of step {len(decoded[name])} is missing"
            del contents.rows[len(decoded[name]) :]
    return {
        name: np.stack(frames[: len(contents.rows)]) for name, frames in decoded.items() if frames
    }, damage


def _assemble(path: Path, contents: Contents, pictures: Mapping[str, Image]) -> Episode:
    top = {name: values for name, values in contents.columns("", 1).items() if "/" not in name}
    outcome = contents.outcome or Outcome()
    return Episode(
        path=path,
        header=contents.header,
        parameters=contents.parameters,
        observations={**pictures, **contents.columns("observation/", 0)},
        actions=np.asarray(top.get("action", np.zeros((0, 0))), np.float32),
        rewards=np.asarray(top.get("reward", np.zeros(0)), np.float64),
        success=np.asarray(top.get("success", np.zeros(0)), np.bool_),
        terms=_floats(contents.columns("terms/", 1)),
        measures=_floats(contents.columns("measures/", 1)),
        telemetry=contents.columns("telemetry/", 0),
        events=contents.events,
        **asdict(outcome),
    )


def _floats(columns: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float64]]:
    return {name: values.astype(np.float64) for name, values in columns.items()}
