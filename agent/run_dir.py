"""The run directory: all that actor and learner share, and all that is needed to go on after a crash.

    config.yaml         what the run was started with     episodes/000001.mcap   what happened
    episodes.jsonl      one line per episode              evaluation/            greedy episodes
    policy.safetensors  the newest weights                checkpoints/           the learner's two newest
    beats/ROLE.json     signs of life                     stop                   there when it shall end

Every file appears whole or not at all, so that a kill -9 at any moment leaves a run that can be resumed.
"""

from __future__ import annotations

import fcntl
import hashlib
import itertools
import json
import os
import pickle
import re
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from agent.episodes import EpisodeSummary, IndexCorrupt, episode_number
from agent.files import append_row, read_rows, to_json, write_atomic

if TYPE_CHECKING:
    from torch import Tensor

LONGEST_HEADER = 100_000_000  # bytes, of a safetensors file; a damaged one may claim anything
KEEP_CHECKPOINTS = 2  # the newest, and the one before in case the newest is damaged


class RunError(Exception):
    """A run directory cannot be used as asked."""


class RunExists(RunError):
    """There is a run in this folder already."""


class RunMissing(RunError):
    """There is no run in this folder."""


class RunBusy(RunError):
    """Another process plays this role in the run."""


class CheckpointCorrupt(RunError):
    """No checkpoint of the run can be loaded."""


class RunDir:
    """One run on disk."""

    def __init__(self, path: Path | str, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        """Names a run; `create` and `open` say whether it must exist.

        `monotonic` is a clock that all processes of the machine share, s.
        """
        self.path = Path(path)
        self._monotonic = monotonic

    @classmethod
    def vacant(cls, path: Path | str) -> RunDir:
        """A folder where a run can be created. Raises RunExists."""
        run = cls(path)
        if run._config_path.exists():
            raise RunExists(
                f"{run.path} holds a run already. To go on with it: the same command with --resume; "
                f"to start a new one: choose another --run"
            )
        if run.path.exists() and (not run.path.is_dir() or run._foreign()):
            raise RunExists(f"{run.path} exists and is not a run. Choose another --run")
        return run

    @classmethod
    def create(cls, path: Path | str, config_text: str) -> RunDir:
        """A new run that remembers its configuration. Raises RunExists, DiskError, or RunError."""
        run = cls.vacant(path)
        try:
            for folder in ("episodes", "checkpoints", "beats"):
                (run.path / folder).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(
                f"--run {run.path}: no run can be made there ({error.strerror}); choose another folder"
            ) from error
        write_atomic(run._config_path, config_text)
        return run

    @classmethod
    def open(cls, path: Path | str) -> RunDir:
        """An existing run. Raises RunMissing, which lists the runs beside it."""
        run = cls(path)
        if not run._config_path.exists():
            runs = sorted(config.parent for config in run.path.parent.glob("*/config.yaml"))[-5:]
            beside = ", ".join(str(other) for other in runs) or "none"
            raise RunMissing(f"{run.path} holds no run (no config.yaml). Runs in {run.path.parent}: {beside}")
        return run

    @property
    def config_text(self) -> str:
        """The configuration that the run was started with, YAML."""
        return self._config_path.read_text()

    @property
    def pid(self) -> int:
        """The process id of the caller, for the learner to know its actor."""
        return os.getpid()

    @property
    def _config_path(self) -> Path:
        return self.path / "config.yaml"

    def _foreign(self) -> bool:
        """Whether the folder holds more than a `create` that was killed would leave."""
        ours = {"episodes", "checkpoints", "beats", ".config.yaml.tmp"}
        return any(entry.name not in ours for entry in self.path.iterdir())

    # Episodes

    @staticmethod
    def episode_index(path: Path) -> int:
        """12 of episodes/000012.mcap."""
        return episode_number(path)

    def episodes(self, after: int = 0) -> list[Path]:
        """The closed training episodes with a number above `after`, in order."""
        paths = (self.path / "episodes").glob("*.mcap")
        return sorted(path for path in paths if episode_number(path) > after)

    def next_episode(self) -> int:
        """A number above that of every file in episodes/, damaged and unfinished ones included."""
        return max(map(episode_number, (self.path / "episodes").iterdir()), default=0) + 1

    def append_index(self, name: str, summary: EpisodeSummary) -> None:
        """Adds a closed episode to NAME.jsonl, durably. Raises DiskError."""
        append_row(self.path / f"{name}.jsonl", summary.row())

    def index(self, name: str) -> list[dict[str, Any]]:
        """The rows of NAME.jsonl, one per episode; the index is derived, so a damaged line is left out."""
        rows: dict[str, dict[str, Any]] = {}
        for row in read_rows(self.path / f"{name}.jsonl"):
            rows.setdefault(str(row.get("file")), row)
        return list(rows.values())

    def fresh_folder(self, name: str) -> Path:
        """A folder of the run that nobody has written to: NAME, or NAME-2 and so on."""
        candidates = (self.path / (name if count == 1 else f"{name}-{count}") for count in itertools.count(1))
        return next(path for path in candidates if not path.exists())

    def append_evaluation(self, steps: int, hours: float, episodes: Sequence[EpisodeSummary]) -> None:
        """Adds an evaluation after `steps` control steps and `hours` of robot time. Raises DiskError."""
        rows = [episode.row() for episode in episodes]
        append_row(self.path / "evaluations.jsonl", {"steps": steps, "hours": hours, "episodes": rows})

    def evaluations(self) -> list[dict[str, Any]]:
        """All that are whole, in order: steps, hours, and episodes as EpisodeSummary."""
        found = []
        for row in read_rows(self.path / "evaluations.jsonl"):
            with suppress(KeyError, TypeError, ValueError, AttributeError, IndexCorrupt):
                episodes = [EpisodeSummary.from_row(episode) for episode in row["episodes"]]
                found.append({"steps": int(row["steps"]), "hours": float(row["hours"]), "episodes": episodes})
        return found

    # Weights

    def publish_weights(self, weights: Mapping[str, Tensor], version: int) -> None:
        """Offers the policy's weights to the actor; replaces the version before. Raises DiskError."""
        from safetensors.torch import save

        plain = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
        write_atomic(self.path / "policy.safetensors", save(plain, {"version": str(version)}))

    def latest_weights(self, after: int = 0) -> tuple[int, dict[str, Tensor]] | None:
        """(version, weights) when there is a version above `after`. Raises RunError when it is damaged."""
        from safetensors import SafetensorError
        from safetensors.torch import load

        path = self.path / "policy.safetensors"
        if not path.exists():
            return None
        try:
            # By Python: safetensors holds every thread of the program, also the one that keeps the servos
            # alive, for as long as a disk hangs.
            with path.open("rb") as file:
                version = _weights_version(file)
                if version <= after:
                    return None
                file.seek(0)
                return version, load(file.read())
        except (SafetensorError, ValueError, TypeError, KeyError) as error:
            raise RunError(
                f"{path} is damaged ({error}). The learner publishes it again: rm {path}, then --resume"
            ) from error

    # Checkpoints

    def save_checkpoint(self, state: Mapping[str, Any]) -> Path:
        """Saves the learner's state durably and keeps the one before.

        `state` is dicts, lists, numbers, words and tensors. Raises TypeError for anything else, because it
        could be saved but never loaded again, and DiskError.
        """
        import torch

        _check_plain(state, "state")
        number = max(map(_checkpoint_number, self._checkpoints()), default=0) + 1
        path = self.path / "checkpoints" / f"{number:06d}.pt"
        path.parent.mkdir(exist_ok=True)
        write_atomic(path, lambda file: torch.save(dict(state), file))
        write_atomic(_checksum_path(path), _checksum(path))  # only now it counts
        for old in self._checkpoints()[:-KEEP_CHECKPOINTS]:
            old.unlink()
            _checksum_path(old).unlink(missing_ok=True)
        return path

    def load_checkpoint(self) -> dict[str, Any] | None:
        """The newest good state, on the CPU; None when none was ever saved.

        Warns when a newer one is damaged. Raises CheckpointCorrupt when none is good.
        """
        troubles = []
        for path in reversed(self._checkpoints()):
            try:
                state = _load(path)
            except (ValueError, RuntimeError, OSError, EOFError, pickle.UnpicklingError) as error:
                troubles.append(f"{path}: {error}")
                continue
            for trouble in troubles:
                warnings.warn(f"{trouble}. Going on from the one before, {path}", stacklevel=2)
            return state
        if troubles:
            raise CheckpointCorrupt(
                f"no checkpoint of {self.path} can be loaded: {'; '.join(troubles)}. "
                f"The episodes are not touched. To learn anew from them: "
                f"rm -r {self.path / 'checkpoints'}, then the same command with --resume"
            )
        return None

    def _checkpoints(self) -> list[Path]:
        """Oldest first; one without its checksum was never finished unless it is all there is."""
        return sorted((self.path / "checkpoints").glob("*.pt"), key=_checkpoint_number)

    # Signs of life

    def beat(self, role: str, **status: Any) -> None:
        """Says that this process is alive, and how it does: numbers, words, dicts."""
        row = {"time": self._monotonic(), "pid": os.getpid(), **status}
        path = self.path / "beats" / f"{role}.json"
        path.parent.mkdir(exist_ok=True)
        write_atomic(path, to_json(row), durable=False)

    def last_beat(self, role: str) -> dict[str, Any] | None:
        """What a process last said of itself; None when it never did."""
        try:
            row = json.loads((self.path / "beats" / f"{role}.json").read_bytes())
        except (FileNotFoundError, ValueError):
            return None
        return row if isinstance(row, dict) else None

    def alive(self, role: str, timeout: float) -> bool:
        """Whether a process of this role exists and gave a sign of life in the last `timeout` seconds."""
        row = self.last_beat(role)
        if row is None or not _process_exists(int(row["pid"])):
            return False
        age = self._monotonic() - float(row["time"])
        return 0 <= age <= timeout  # the clock restarts with the machine

    @contextmanager
    def lock(self, role: str) -> Iterator[None]:
        """Makes this process the only one of its role in the run. Raises RunBusy."""
        path = self.path / f".{role}.lock"
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                owner = os.pread(handle, 32, 0).decode() or "unknown"
                raise RunBusy(
                    f"another {role} (process {owner}) works in {self.path}. "
                    f"Wait for it, stop it (kill -INT {owner}), or choose another --run"
                ) from None
            os.ftruncate(handle, 0)
            os.pwrite(handle, str(os.getpid()).encode(), 0)
            yield
        finally:
            os.close(handle)

    def request_stop(self) -> None:
        """Asks every process of the run to end in order."""
        (self.path / "stop").touch()

    def stop_requested(self) -> bool:
        """Whether someone asked."""
        return (self.path / "stop").exists()

    def clear_stop(self) -> None:
        """Forgets the request, at the start of a process that means to work."""
        (self.path / "stop").unlink(missing_ok=True)


def _weights_version(file: IO[bytes]) -> int:
    """From the header of a safetensors file: its length in 8 bytes, then JSON.

    Raises ValueError, TypeError or KeyError when it is none.
    """
    length = int.from_bytes(file.read(8), "little")
    header = json.loads(file.read(min(length, LONGEST_HEADER)))
    return int(header["__metadata__"]["version"])


def _checkpoint_number(path: Path) -> int:
    digits = re.match(r"\d+", path.name)
    return int(digits[0]) if digits else 0


def _checksum_path(path: Path) -> Path:
    return path.with_suffix(".sha256")


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _load(path: Path) -> dict[str, Any]:
    """Raises ValueError when the checksum is missing or wrong."""
    import torch

    sidecar = _checksum_path(path)
    if not sidecar.exists():
        raise ValueError("it was not written to its end")
    if _checksum(path) != sidecar.read_text().strip():
        raise ValueError("its checksum is wrong")
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def _check_plain(value: Any, where: str) -> None:
    """Raises TypeError for what torch.load(weights_only=True) refuses."""
    from torch import Tensor

    if isinstance(value, Mapping):
        for name, item in value.items():
            _check_plain(item, f"{where}[{name!r}]")
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            _check_plain(item, f"{where}[{number}]")
    elif not isinstance(value, Tensor) and type(value) not in (bool, int, float, str, bytes, type(None)):
        raise TypeError(f"{where} is {type(value).__name__}; a checkpoint holds numbers, words and tensors")


def _process_exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
