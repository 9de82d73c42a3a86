"""What an update of SLAC costs: against slac.pytorch, by phase, and against the floor that this machine sets.

Every contender is a process of its own that makes one update when told to, so that rounds interleave and each
can have its own allocator; printed are the median, the 5th to 95th percentile, and as ratio the median of the
ratios within rounds. The peer (github.com/toshikwa/slac.pytorch, a clone given as --peer) runs what it does
after each environment step, unchanged: its latent and its SAC update, on batches of their own.

On a busy machine two threads wait for each other: use --threads 1 and read the ratio in CPU time.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

IMAGE = (64, 64, 3)
ACTIONS = 6
EPISODE = 100  # steps
EPISODES = 30
FRAMES = EPISODES * (EPISODE + 1)
THREADS = 2
# glibc keeps what is freed: no fresh pages for each activation. Ours sets as much itself; the peer does not.
TUNED = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(16 << 30),
    "MALLOC_TOP_PAD_": str(64 << 20),
}
ALLOCATORS = {"as shipped": {}, "tuned": TUNED}
SIZES: dict[str, dict[str, Any]] = {
    "official": {},
    "laptop": {
        "model_batch": 16,
        "sac": {"batch_size": 64},
        "model": {"base_depth": 8, "features": 128, "z2": 128},
    },
    "tiny": {
        "model_batch": 4,
        "sac": {"batch_size": 8, "hidden": [32, 32]},
        "model": {"base_depth": 4, "features": 16, "z1": 8, "z2": 16, "hidden": 16},
    },
}
# Claims for the official size on two cores.
FASTER = {"as shipped": 2.2, "tuned": 1.3}  # than the peer, in fp32
SAMPLE = 4e-3  # s, 256 windows
ACT = 5e-3  # s, one core
GPU_RATE = 500  # updates/s on an H200
RESTART = 50e-3  # s, from the weights to the first action
REPLAY = 1.30e9  # bytes, 1e5 frames
FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16")


def kept(ok: bool, what: str) -> str:
    """A claim and whether it is kept, as a note in the table."""
    return f"claim: {what}: {'kept' if ok else 'NOT KEPT (is the machine busy?)'}"


def show(name: str, seconds: list[float], note: str = "") -> None:
    """One line of the table."""
    low, median, high = np.percentile(seconds, [5, 50, 95]) * 1e3
    print(f"{name:<38}{median:9.2f} ms   {f'({low:.2f} - {high:.2f})':<22}n={len(seconds):<4}{note}".rstrip())


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def episode(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Random images (EPISODE + 1, H, W, 3), actions and rewards."""
    images = rng.integers(0, 256, (EPISODE + 1, *IMAGE), np.uint8)
    actions = rng.uniform(-1, 1, (EPISODE, ACTIONS)).astype(np.float32)
    return images, actions, rng.uniform(size=EPISODE).astype(np.float32)


def synchronize(device: str) -> None:
    """Waits until the device has done everything."""
    import torch

    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def our_replay(rng: np.random.Generator, device: Any) -> Any:
    """A ring that EPISODES fill, on the device that learns."""
    import torch

    from agent.replay import SequenceReplay

    replay = SequenceReplay(FRAMES, IMAGE, None, ACTIONS, device=torch.device(device))
    for _ in range(EPISODES):
        images, actions, rewards = episode(rng)
        replay.add_episode(images, None, actions, rewards, terminated=False)
    return replay


def fill_peer(buffer: Any, rng: np.random.Generator) -> None:
    """The same for the peer's buffer."""
    for _ in range(EPISODES):
        images, actions, rewards = episode(rng)
        # A copy of each frame, as an environment returns it: a view would keep the whole episode.
        frames = [frame.transpose(2, 0, 1).copy() for frame in images]
        buffer.reset_episode(frames[0])
        for t in range(EPISODE):
            buffer.append(actions[t], float(rewards[t]), False, frames[t + 1], t == EPISODE - 1)


class Ours:
    """Our agent and replay, in the process that learns."""

    def __init__(
        self, size: str, device: str, threads: int, precision: str, allocator: str, graph: bool = False
    ) -> None:
        import torch

        from agent.build import build_agent, prepare_process
        from agent.config import SlacConfig

        how = {"device": device, "precision": precision, "cuda_graph": graph}
        self.config = SlacConfig.model_validate(SIZES[size] | how)
        if allocator == "as shipped":
            prepare_process(self.config, threads)
        torch.set_num_threads(threads)
        self.agent: Any = build_agent(
            self.config, image_shape=IMAGE, state_size=None, action_size=ACTIONS, seed=0
        )
        self.rng = np.random.default_rng(0)
        self.replay = our_replay(self.rng, self.agent.device)

    def sample(self) -> Any:
        """One batch for update()."""
        return self.replay.sample(self.agent.batch_size, self.agent.window, self.rng)

    def update(self) -> None:
        """What one update of the learner does."""
        self.agent.update(self.sample())

    def act(self) -> Callable[[], object]:
        """A step of the policy in the middle of an episode."""
        from agent.build import build_policy

        policy: Any = build_policy(
            self.config, image_shape=IMAGE, state_size=None, action_size=ACTIONS, seed=0
        )
        observation = {"image": np.zeros(IMAGE, np.uint8)}
        policy.load_weights(self.agent.policy_weights())
        carry, _ = policy.act(policy.initial(), observation, explore=True)
        return lambda: policy.act(carry, observation, explore=True)

    def phases(self) -> dict[str, float]:
        """Seconds of each phase of one update."""
        watch = Phases(self.config.device)
        with watch.watching(self.agent):
            watch.call("sample", self.sample, then=self.agent.update)
        return watch.seconds

    def flops(self) -> float:
        """Multiplications and additions of the products and convolutions of one update."""
        from torch.utils.flop_counter import FlopCounterMode

        with FlopCounterMode(display=False) as counter:
            self.update()
        return float(counter.get_total_flops())


class Phases:
    """Splits one update's time: each moment belongs to the innermost watched call."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.seconds: dict[str, float] = {}
        self._stack = ["rest"]
        self._since = 0.0

    def call(self, name: str, work: Callable[[], Any], then: Callable[[Any], Any]) -> None:
        """then(work()), with work() under `name`."""
        self._since = time.perf_counter()
        then(self._timed(lambda: name, work)())
        self._charge()

    @contextlib.contextmanager
    def watching(self, agent: Any) -> Iterator[None]:
        """While inside, the parts of a SlacAgent report here."""
        import torch

        def either(name: str) -> Callable[[], str]:
            return lambda: "model, forward and backward" if torch.is_grad_enabled() else name

        watched = (
            (agent.model, "encode", either("encode, no gradient")),
            (agent.model, "infer", either("posterior, no gradient")),
            (agent, "_descend_model", either("")),
            (agent.core, "update", lambda: "actor and critic"),
        )
        step = torch.optim.Adam.step
        torch.optim.Adam.step = self._timed(lambda: "optimisers", step)  # type: ignore[method-assign]
        for owner, method, name in watched:
            setattr(owner, method, self._timed(name, getattr(owner, method)))
        try:
            yield
        finally:
            torch.optim.Adam.step = step  # type: ignore[method-assign]
            for owner, method, _ in watched:
                delattr(owner, method)

    def _timed(self, name: Callable[[], str], work: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            self._charge()
            self._stack.append(name())
            try:
                return work(*args, **kwargs)
            finally:
                self._charge()
                self._stack.pop()

        return timed

    def _charge(self) -> None:
        synchronize(self.device)
        now = time.perf_counter()
        self.seconds[self._stack[-1]] = self.seconds.get(self._stack[-1], 0.0) + now - self._since
        self._since = now


class Peer:
    """slac.pytorch's algorithm and replay; of its modules only those that need nothing but PyTorch."""

    def __init__(self, folder: str, size: str, device: str, threads: int) -> None:
        sys.path.insert(0, folder)
        import torch
        from slac import buffer
        from slac.algo import SlacAlgorithm

        from agent.config import SlacConfig

        torch.set_num_threads(threads)
        # NumPy 2 asks for `copy` first and warns at each frame if that fails; spare the peer this.
        to_array = buffer.LazyFrames.__array__
        buffer.LazyFrames.__array__ = lambda frames, dtype=None, copy=None: to_array(frames, dtype)
        config = SlacConfig.model_validate(SIZES[size])
        self.algo: Any = SlacAlgorithm(
            (IMAGE[2], *IMAGE[:2]),
            (ACTIONS,),
            action_repeat=1,
            device=torch.device(device),
            seed=0,
            batch_size_sac=config.sac.batch_size,
            batch_size_latent=config.model_batch,
            feature_dim=config.model.features,
            z1_dim=config.model.z1,
            z2_dim=config.model.z2,
            hidden_units=config.sac.hidden,
        )
        fill_peer(self.algo.buffer, np.random.default_rng(0))

    def sample(self) -> None:
        """The batch of its SAC update."""
        self.algo.buffer.sample_sac(self.algo.batch_size_sac)

    def update(self) -> None:
        """What it does after one environment step; the writer is used at every 1000th only."""
        self.algo.update_latent(None)
        self.algo.update_sac(None)

    def act(self) -> Callable[[], object]:
        """Its explore() on eight frames."""
        frames = np.zeros((1, self.algo.num_sequences, IMAGE[2], *IMAGE[:2]), np.uint8)
        action = np.zeros((1, (self.algo.num_sequences - 1) * ACTIONS), np.float32)
        return lambda: self.algo.explore(SimpleNamespace(state=frames, action=action))


class Peaks:
    """The best rate of products and convolutions that this machine shows, in the network's own shapes."""

    def __init__(self, device: str, threads: int) -> None:
        import torch

        self.device = device
        torch.set_num_threads(threads)
        from agent.build import keep_freed_memory

        keep_freed_memory()

    def measure(self, precision: str) -> dict[str, float]:
        """GFLOP/s of the best product and of the best convolution."""
        import torch

        kind = {"device": self.device, "dtype": torch.bfloat16 if precision == "bf16" else torch.float32}
        n = 8192 if self.device.startswith("cuda") else 2048
        a, b = torch.randn(2, n, n, **kind)  # type: ignore[call-overload]
        best = {"product": self._rate(lambda: a @ b, 2 * n**3), "convolution": 0.0}
        frames = 2304 if self.device.startswith("cuda") else 64
        for inputs, side in ((32, 32), (64, 16), (128, 8)):
            x = torch.randn(frames, inputs, side, side, **kind)  # type: ignore[call-overload]
            x = x.contiguous(memory_format=torch.channels_last)
            for outputs, stride in ((2 * inputs, 2), (inputs, 1)):
                w = torch.randn(outputs, inputs, 3, 3, **kind)  # type: ignore[call-overload]
                flops = 2 * frames * outputs * inputs * 9 * (side // stride) ** 2
                rate = self._rate(lambda x=x, w=w, s=stride: torch.conv2d(x, w, None, s, 1), flops)
                best["convolution"] = max(best["convolution"], rate)
        return best

    def _rate(self, work: Callable[[], object], flops: float) -> float:
        laps = []
        for _ in range(12):
            synchronize(self.device)
            start = time.perf_counter()
            work()
            synchronize(self.device)
            laps.append(time.perf_counter() - start)
        return flops / min(laps[2:]) / 1e9


def restart(size: str, folder: str) -> float:
    """Seconds from the weights in `folder` to a first action, in a process that has its imports."""
    import torch
    from safetensors.torch import load_file

    from agent.build import build_policy
    from agent.config import SlacConfig

    torch.set_num_threads(1)
    config = SlacConfig.model_validate(SIZES[size])
    start = time.perf_counter()
    policy: Any = build_policy(config, image_shape=IMAGE, state_size=None, action_size=ACTIONS, seed=0)
    policy.load_weights(load_file(Path(folder) / "policy.safetensors"))
    policy.act(policy.initial(), {"image": np.zeros(IMAGE, np.uint8)}, explore=True)
    return time.perf_counter() - start


def frame_bytes(folder: str | None) -> float:
    """Resident bytes per frame of our replay, or of the peer's in `folder`, with nothing else around."""
    import torch

    rng = np.random.default_rng(0)
    if folder is None:
        our_replay(rng, "cpu")  # memory that comes and goes is there before it counts
        before = resident()
        keep = our_replay(rng, "cpu")
    else:
        sys.path.insert(0, folder)
        from slac.buffer import ReplayBuffer

        shape = (IMAGE[2], *IMAGE[:2])
        keep = ReplayBuffer(10**5, 8, shape, (ACTIONS,), torch.device("cpu"))
        episode(rng)
        before = resident()
        fill_peer(keep, rng)
    return (resident() - before) / FRAMES


def timed(work: Callable[[], object], device: str) -> dict[str, float]:
    """Wall time and CPU time of all threads, in seconds, of one call to its real end."""
    synchronize(device)
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    synchronize(device)
    return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


def serve(spec: dict[str, Any]) -> None:
    """Does what each line on standard input asks, answering with a line; what libraries print goes aside."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    kind, device = spec.pop("kind"), spec.get("device", "cpu")
    if kind in ("restart", "frame_bytes"):
        once = restart if kind == "restart" else frame_bytes
        print(json.dumps(once(**spec)), file=answers, flush=True)
        return
    worker: Any = {"ours": Ours, "peer": Peer, "peaks": Peaks}[kind](**spec)
    act = None
    for line in sys.stdin:
        ask, *arguments = json.loads(line)
        if ask in ("update", "sample"):
            answer: Any = timed(getattr(worker, ask), device)
        elif ask == "act":
            act = act or worker.act()
            answer = timed(act, device)
        elif ask == "peak":
            answer = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        elif ask == "save":
            from safetensors.torch import save_file

            save_file(worker.agent.policy_weights(), Path(arguments[0]) / "policy.safetensors")
            answer = None
        else:
            answer = getattr(worker, ask)(*arguments)
        print(json.dumps(answer), file=answers, flush=True)


class Worker:
    """A contender in a process of its own, with its own allocator's settings."""

    def __init__(self, allocator: str = "as shipped", **spec: Any) -> None:
        if spec["kind"] == "ours":
            spec["allocator"] = allocator
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--worker", json.dumps(spec)],
            env=environment | ALLOCATORS[allocator],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def answer(self) -> Any:
        """What it says next."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"A contender ended with exit code {self._process.wait()}; its error is above")
        return json.loads(line)

    def ask(self, *question: Any) -> Any:
        """Its answer to a question."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        return self.answer()

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


@contextlib.contextmanager
def workers(specs: dict[str, dict[str, Any]]) -> Iterator[dict[str, Worker]]:
    """Processes by name, alive inside."""
    alive = {name: Worker(**spec) for name, spec in specs.items()}
    try:
        yield alive
    finally:
        for worker in alive.values():
            worker.close()


def interleaved(
    contenders: dict[str, Worker], ask: str, rounds: int, warm_up: int = 2
) -> dict[str, dict[str, list[float]]]:
    """Wall and CPU seconds of `ask` by contender, in turns; the first rounds are thrown away."""
    laps: dict[str, dict[str, list[float]]] = {name: {"wall": [], "cpu": []} for name in contenders}
    for number in range(warm_up + rounds):
        for name, worker in contenders.items():
            lap = worker.ask(ask)
            if number >= warm_up:
                for clock in lap:
                    laps[name][clock].append(lap[clock])
    return laps


def ratio(slow: list[float], fast: list[float]) -> float:
    """How many times faster, in the median of the rounds."""
    return float(np.median(np.divide(slow, fast)))


def compare(laps: dict[str, dict[str, list[float]]], official: bool) -> None:
    """The table of updates: each of ours against the peer under the same allocator."""
    for name, lap in laps.items():
        allocator, who = name.split(": ")
        peer = laps.get(f"{allocator}: peer")
        note = ""
        if peer is not None and who != "peer":
            faster = ratio(peer["wall"], lap["wall"])
            spread = np.percentile(np.divide(peer["wall"], lap["wall"]), [5, 95])
            note = f"{faster:.2f} x peer ({spread[0]:.2f} - {spread[1]:.2f}), "
            note += f"{ratio(peer['cpu'], lap['cpu']):.2f} x in CPU time"
            if official and who == "fp32":
                note += "   " + kept(faster >= FASTER[allocator], f">= {FASTER[allocator]} x")
        show(f"update, {name}", lap["wall"], note)


def bench_updates(options: argparse.Namespace, precisions: list[str]) -> dict[str, dict[str, float]]:
    """Whole updates, their phases, sampling, memory; by precision our seconds by clock, and FLOP."""
    common = {"size": options.size, "device": options.device, "threads": options.threads}
    specs: dict[str, dict[str, Any]] = {}
    # What the allocator of the host does hardly matters where tensors live elsewhere.
    for allocator in ALLOCATORS if options.device == "cpu" else ["as shipped"]:
        for precision in precisions:
            ours = {"kind": "ours", "precision": precision, "allocator": allocator}
            specs[f"{allocator}: {precision}"] = common | ours
            if options.device != "cpu":
                specs[f"{allocator}: {precision}, one graph"] = common | ours | {"graph": True}
        if options.peer:
            specs[f"{allocator}: peer"] = common | {
                "kind": "peer",
                "folder": options.peer,
                "allocator": allocator,
            }
    with workers(specs) as alive:
        laps = interleaved(alive, "update", options.rounds)
        compare(laps, options.size == "official")
        if options.device != "cpu" and options.size == "official":
            best = 1 / min(float(np.median(lap["wall"])) for name, lap in laps.items() if "peer" not in name)
            print(f"{best:.0f} updates/s   {kept(best >= GPU_RATE, f'>= {GPU_RATE} on an H200')}")
        first = f"as shipped: {precisions[0]}"
        pair = {"ours": alive[first]}
        if options.peer:
            pair["peer"] = alive["as shipped: peer"]
        bench_sampling(pair, options)
        bench_phases(pair["ours"], options.rounds)
        bench_memory(pair, options)
        updates = {}
        for precision in precisions:
            name = f"as shipped: {precision}"
            medians = {clock: float(np.median(lap)) for clock, lap in laps[name].items()}
            updates[precision] = medians | {"flops": alive[name].ask("flops")}
    return updates


def bench_sampling(pair: dict[str, Worker], options: argparse.Namespace) -> None:
    """Drawing the windows of one update."""
    laps = interleaved(pair, "sample", max(20, options.rounds))
    ours = laps["ours"]["wall"]
    note = f"{np.median(laps['ours']['cpu']) * 1e3:.2f} ms CPU   "
    note += kept(np.median(ours) <= SAMPLE, "<= 4 ms") if options.size == "official" else ""
    show("sample one batch", ours, note)
    if "peer" in laps:
        peer = laps["peer"]["wall"]
        show("sample one batch, peer's SAC", peer, f"{ratio(peer, ours):.1f} x slower")


def bench_phases(worker: Worker, rounds: int) -> None:
    """Where the time of our update goes."""
    phases = [worker.ask("phases") for _ in range(1 + rounds)][1:]
    whole = np.median([sum(phase.values()) for phase in phases])
    for name in phases[0]:
        seconds = [phase[name] for phase in phases]
        show(f"  {name}", seconds, f"{np.median(seconds) / whole:5.1%}")


def bench_memory(pair: dict[str, Worker], options: argparse.Namespace) -> None:
    """Resident bytes per stored frame, and the most that each process took."""
    for name, worker in pair.items():
        alone = Worker(kind="frame_bytes", folder=None if name == "ours" else options.peer)
        size = alone.answer()
        alone.close()
        note = "   " + kept(size * 1e5 <= REPLAY, "1e5 frames <= 1.30 GB") if name == "ours" else ""
        print(f"{name}: {size:.0f} B per frame in replay, peak RSS {worker.ask('peak'):.0f} MiB{note}")


def bench_acting(options: argparse.Namespace) -> None:
    """One step of the policy on one core, and how soon a fresh one acts."""
    official = options.size == "official"
    common = {"size": options.size, "device": options.device, "threads": 1}
    specs: dict[str, dict[str, Any]] = {"ours": common | {"kind": "ours", "precision": "fp32"}}
    if options.peer:
        specs["peer"] = common | {"kind": "peer", "folder": options.peer}
    with workers(specs) as alive, tempfile.TemporaryDirectory() as folder:
        laps = interleaved(alive, "act", 200, warm_up=10)
        ours = laps["ours"]["wall"]
        note = f"{np.median(laps['ours']['cpu']) * 1e3:.2f} ms CPU   "
        show("act, one core", ours, note + (kept(np.median(ours) <= ACT, "<= 5 ms") if official else ""))
        if "peer" in laps:
            peer = laps["peer"]["wall"]
            show("act, one core, peer", peer, f"{ratio(peer, ours):.1f} x slower")
        alive["ours"].ask("save", folder)
        whole, after = [], []
        for _ in range(min(3, options.rounds)):
            start = time.perf_counter()
            fresh = Worker(kind="restart", size=options.size, folder=folder)
            after.append(fresh.answer())
            whole.append(time.perf_counter() - start)
            fresh.close()
    note = kept(np.median(after) <= RESTART, "<= 50 ms") if official else ""
    show("weights to first action", after, note)
    show("  with Python's start and imports", whole)


def bench_floor(options: argparse.Namespace, updates: dict[str, dict[str, float]]) -> None:
    """How far an update is from what the arithmetic alone would take at this machine's best rates."""
    spec = {"kind": "peaks", "device": options.device, "threads": options.threads}
    with workers({"peaks": spec}) as alive:
        for precision, update in updates.items():
            peaks = alive["peaks"].ask("measure", precision)
            floor = update["flops"] / max(peaks.values()) / 1e9
            shown = ", ".join(f"{name} {rate:.0f}" for name, rate in peaks.items())
            print(
                f"best rates, {precision}: {shown} GFLOP/s; an update takes {update['flops'] / 1e9:.2f} GFLOP"
            )
            share = f"{floor / update['wall']:.0%} of the update's {update['wall'] * 1e3:.1f} ms"
            if options.device == "cpu":
                share += f", {floor * options.threads / update['cpu']:.0%} of its CPU time"
            print(f"floor {floor * 1e3:.1f} ms, {share}")


def describe(options: argparse.Namespace) -> None:
    """The machine and what it was doing."""
    import torch

    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    lines = dict(line.split(":", 1) for line in info.splitlines() if ":" in line)
    lines = {key.strip(): value.strip() for key, value in lines.items()}
    have = lines.get("flags", "").split()
    flags = " ".join(f"{flag} {'yes' if flag in have else 'no'}" for flag in FLAGS)
    name = lines.get("model name", platform.processor())
    print(f"{name}, family {lines.get('cpu family', '?')}, {os.cpu_count()} CPUs; {flags}")
    load = "{:.1f} {:.1f} {:.1f}".format(*os.getloadavg())
    print(f"torch {torch.__version__}, NumPy {np.__version__}, {options.threads} threads, load before {load}")
    if options.device.startswith("cuda"):
        exact = "TF32" if torch.backends.cudnn.allow_tf32 else "fp32"
        print(f"{torch.cuda.get_device_name(options.device)}; fp32 convolutions run in {exact}")
    if options.size != "official" and options.peer:
        print("The peer's convolutions have one width only: ratios at this size compare different networks")


def native_bf16(device: str) -> bool:
    """Whether the device multiplies bfloat16 itself."""
    import torch

    if device.startswith("cuda"):
        return torch.cuda.is_bf16_supported(including_emulation=False)
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    return "avx512_bf16" in info or "amx_bf16" in info


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer", help="a clone of toshikwa/slac.pytorch")
    parser.add_argument("--size", choices=SIZES, default="official")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=THREADS)
    parser.add_argument("--precision", nargs="+", choices=("fp32", "bf16"), default=["fp32", "bf16"])
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        serve(json.loads(options.worker))
        return
    describe(options)
    precisions = list(options.precision)
    if "bf16" in precisions and not native_bf16(options.device):
        print("bf16 is not native here: not measured")
        precisions.remove("bf16")
    if precisions:
        bench_floor(options, bench_updates(options, precisions))
    bench_acting(options)


if __name__ == "__main__":
    main()
