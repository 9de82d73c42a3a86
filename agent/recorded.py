"""A whole update as one CUDA graph: thousands of small kernels for the price of one launch."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch

from agent.replay import Batch
from agent.sac import Metrics

WARM_UP = 3  # calls that run as they are: libraries choose their kernels, optimisers make their state
Batches = tuple[Batch | None, ...]


class Recorded:
    """Calls a function of batches on a GPU, from the fourth time on by replaying its kernels.

    A recording holds addresses: a batch is copied to where the recorded one lies, and what replaces tensors
    instead of changing them, such as a checkpoint, must be followed by `forget`. Batches of other shapes run
    as they are. The function must not wait for the GPU, and draw from `generator` alone.
    """

    def __init__(self, compute: Callable[..., Metrics], generator: torch.Generator) -> None:
        self._compute, self._generator = compute, generator
        self.forget()

    def forget(self) -> None:
        """Records anew at the next chance."""
        self._calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._batches: Batches = ()
        self._metrics: Metrics = {}

    def __call__(self, *batches: Batch | None) -> Metrics:
        """What the function returns; its tensors hold until the next call."""
        with torch.cuda.device(self._generator.device):
            return self._called(batches)

    def _called(self, batches: Batches) -> Metrics:
        if self._graph is None:
            self._calls += 1
            if self._calls <= WARM_UP:
                return self._aside(batches)
            self._record(batches)
        elif _shapes(batches) != _shapes(self._batches):
            return self._compute(*batches)
        assert self._graph is not None
        for recorded, batch in zip(self._batches, batches, strict=True):
            if recorded is not None and batch is not None:
                _copy(recorded, batch)
        self._graph.replay()
        return self._metrics

    def _aside(self, batches: Batches) -> Metrics:
        """On a stream of its own, as PyTorch asks for before a recording."""
        here = torch.cuda.current_stream()
        aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(here)
        with torch.cuda.stream(aside), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # optimisers say that they are slower while nothing is recorded
            metrics = self._compute(*batches)
        here.wait_stream(aside)
        return metrics

    def _record(self, batches: Batches) -> None:
        """Records one call, which does not run.

        Raises RuntimeError for what a graph cannot hold, and OutOfMemoryError.
        """
        self._batches = tuple(None if batch is None else batch.clone() for batch in batches)
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(self._generator)
        try:
            with torch.cuda.graph(graph):
                self._metrics = self._compute(*self._batches)
        except RuntimeError as error:  # the end of a failed recording fails, too, and hides why
            cause = error.__context__
            raise cause if isinstance(cause, torch.OutOfMemoryError) else error from None
        self._graph = graph


def _shapes(batches: Batches) -> list[dict[str, torch.Size] | None]:
    parts = [None if batch is None else batch.parts() for batch in batches]
    return [None if one is None else {name: x.shape for name, x in one.items()} for one in parts]


def _copy(to: Batch, source: Batch) -> None:
    for name, part in to.parts().items():
        part.copy_(getattr(source, name), non_blocking=True)
