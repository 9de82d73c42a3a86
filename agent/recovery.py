"""A run made whole after a crash: unfinished episodes closed, the index completed."""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from mcap import records as mcap_records
from mcap.opcode import Opcode

from agent.episodes import (
    Contents,
    EpisodeError,
    EpisodeSummary,
    EpisodeTooNew,
    EpisodeWriteError,
    Outcome,
    parse,
    read_episode,
)
from agent.files import GrowingFile, append_row, claim, disk_errors, read_rows, sync_folder
from agent.mcap_codec import Container, Record


@dataclass(frozen=True)
class Recovery:
    """What `recover` found."""

    recovered: list[EpisodeSummary]  # closed now, up to their last whole step
    alive: list[Path]  # still being written by another process; left alone
    damaged: list[EpisodeError]  # closed files that cannot be indexed; left alone


def recover(run: Path) -> Recovery:
    """Closes what dead writers left in a run and completes its index; does nothing the second time.

    Raises DiskError when the disk is full; nothing is lost then.
    """
    result = Recovery([], [], [])
    for fresh in run.rglob("*.mcap.*.new"):
        with claim(fresh) as dead:
            if dead:
                fresh.unlink()
    for part in sorted(run.rglob("*.mcap.part")):
        with claim(part) as dead:
            if dead:
                _close(part, result)
            else:
                result.alive.append(part)
    _complete_index(run, result)
    return result


def _close(part: Path, result: Recovery) -> None:
    """Makes an .mcap of a .part; removes one that holds no observation."""
    try:
        contents = parse(part, part.read_bytes())
    except EpisodeTooNew as error:
        result.damaged.append(error)
        return
    target = part.with_name(part.name.removesuffix(".part"))
    if not contents.rows:
        part.unlink()
        return
    if contents.damage:
        _rewrite(part, contents, target)
    else:  # the writer died between its last byte and the renaming
        os.rename(part, target)
        sync_folder(target.parent)
    result.recovered.append(read_summary(target))


def _rewrite(part: Path, contents: Contents, target: Path) -> None:
    """Beside the .part and under its lock, so that a crash in the middle costs nothing."""
    outcome = contents.outcome or Outcome(False, True, "killed", "the process that wrote this episode died")
    with disk_errors(target, EpisodeWriteError):
        file = GrowingFile(target.with_name(target.name + ".recovering"))
        try:
            container = Container(file)
            for record in _whole_steps(contents):
                container.copy(record)
            container.finish(asdict(replace(outcome, recovered=True)))
            file.publish(target)
        finally:
            file.close()
    part.unlink()


def _whole_steps(contents: Contents) -> Iterator[Record]:
    """The records to keep: not the outcome, which is written anew, and no image without its step."""
    channels: dict[int, str] = {}
    for record in contents.data:
        if record.opcode == Opcode.CHANNEL:
            channel = mcap_records.Channel.read(record.stream())
            channels[channel.id] = channel.topic
        if record.opcode == Opcode.MESSAGE:
            channel_id, sequence = struct.unpack_from("<HI", record.payload)
            if channels[channel_id].startswith("/observation/") and sequence >= len(contents.rows):
                continue
        if record.opcode == Opcode.METADATA and mcap_records.Metadata.read(record.stream()).name == "outcome":
            continue
        yield record


def read_summary(path: Path) -> EpisodeSummary:
    """The index line of a closed file, from its contents. Raises EpisodeCorrupt, EpisodeTooNew."""
    return read_episode(path, images=False).summary(hashlib.sha256(path.read_bytes()).hexdigest())


def _complete_index(run: Path, result: Recovery) -> None:
    index = run / "episodes.jsonl"
    known = {row.get("file") for row in read_rows(index)}
    for path in sorted((run / "episodes").glob("*.mcap")):
        if f"episodes/{path.name}" in known:
            continue
        try:
            summary = read_summary(path)
        except EpisodeError as error:
            result.damaged.append(error)
        else:
            append_row(index, summary.row())
