"""How far the master knows the workers to be, and how lost workers begin again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from easgd_cli.training.gathering import Gathering
from easgd_cli.training.mean_clock import MeanClock
from easgd_cli.training.serving import Serving
from easgd_cli.transport.base import NEW, Mark, MasterEnd, Request


class Progress:
    """How far the workers are. `clocks`: at their last requests; `reached`: the clock up to which each one's work has
    reached a variable; `lost`: the lost workers; `step`: the mean clock of the others.
    """

    def __init__(self, clocks: Mapping[int, int], lost: Iterable[int], step: float):
        self.clocks, self.reached, self.lost = dict(clocks), dict(clocks), set(lost)
        self._mean = MeanClock([t for worker, t in self.clocks.items() if worker not in self.lost], step)

    @property
    def step(self) -> float:
        return self._mean.step

    def heard(self, worker: int, t: int) -> None:
        """Notes a request that the worker made at the clock t."""
        before, self.clocks[worker] = self.clocks[worker], t
        if worker not in self.lost:
            self._mean.advance(t - before)

    def lose(self, worker: int) -> None:
        """Counts the worker as lost."""
        if worker not in self.lost:
            self.lost.add(worker)
            self._mean.leave(self.clocks[worker])

    def take_in(self, worker: int, t: int) -> None:
        """Takes a lost worker back, or a live one that goes back to the center, at the clock t."""
        if worker in self.lost:
            self.lost.discard(worker)
            self._mean.join(t)
        else:
            self._mean.advance(t - self.clocks[worker])
        self.clocks[worker] = self.reached[worker] = t


class Returning:
    """Workers that have come back and wait for a variable to start from. `tell` reports each one as it goes on."""

    def __init__(
        self, serving: Serving, sessions: MasterEnd, gatherings: Sequence[Gathering], progress: Progress,
        tell: Callable[[dict[str, Any]], None],
    ):  # fmt: skip
        self._serving, self._sessions, self._gatherings = serving, sessions, gatherings
        self._progress, self._tell = progress, tell
        self._joining: dict[int, Request] = {}

    def ask(self, request: Request) -> None:
        """Notes that a worker asks for its variable as it is."""
        self._joining[request.worker] = request

    def lose(self, worker: int) -> None:
        """Drops the request of a worker that is lost again."""
        self._joining.pop(worker, None)

    def go_on(self) -> None:
        """Lets waiting workers go on where no round will do so; gives requests back where all updates are over."""
        if not self._joining:
            return
        for place in {request.to for request in self._joining.values()}:
            gathering = self._gatherings[place]
            if gathering.over:
                for request in self._joined(place):
                    self._serving.reply(request, Mark.WITHDRAWN)
            elif not gathering.awaited:
                clocks = self._progress.clocks.values()
                latest = max(*clocks, *(request.t for request in self._joining.values()))
                self._welcome(place, latest if self._in_rounds(place) else 0)

    def round_ended(self, place: int, t: int) -> None:
        """Lets workers that wait for a round of the variable at this place go on, at the clock t."""
        if self._joining and self._in_rounds(place):
            self._welcome(place, t)

    def _in_rounds(self, place: int) -> bool:
        return self._serving.centers[place].variable.in_rounds

    def _joined(self, place: int) -> list[Request]:
        """Removes and returns the requests for the variable at this place."""
        joined = [request for request in self._joining.values() if request.to == place]
        for request in joined:
            del self._joining[request.worker]
        return joined

    def _welcome(self, place: int, t: int) -> None:
        """Gives the workers that wait for the variable at this place its x as it is; this is no exchange. Their clock
        is `t` in rounds. Else it is the later of `t` and their own, or, of new workers, the mean of the others'.
        """
        serving, progress = self._serving, self._progress
        for request in self._joined(place):
            worker = request.worker
            _, reply = self._sessions.lent(request)
            serving.centers[place].pull(reply)
            died = max(request.t, progress.clocks[worker])
            lost = died - progress.reached[worker]
            # in rounds exactly t: with another clock a worker would wait for rounds that nobody else makes
            first = int(progress.step) if request.t == NEW else t
            back = t if self._in_rounds(place) else max(first, died)
            progress.take_in(worker, back)
            for gathering, of in zip(self._gatherings, serving.centers, strict=True):
                if of.variable.takes(worker):
                    gathering.join(worker)
            if serving.ledger is not None:
                serving.ledger.forget(worker)
            missed = back - died
            # first, so that a master that dies now leaves no worker that is back of which the record says nothing
            self._tell({"worker": worker, "t": back, "lost": max(0, lost), "missed": max(0, missed)})
            serving.reply(request, t=back)
