"""The links to the other hosts of a run, as they are shown and recorded: what they carry, which share of their capacity
that is, and which hosts are silent.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from easgd_cli.launcher.journal.journal import Journal
from easgd_cli.launcher.journal.system_rows import SystemRows
from easgd_cli.training.snapshot import Moment

_SILENT_SECONDS = 2.0  # a host says something at least four times in this time
_SHOWN = 4  # links in the view


class Carries(NamedTuple):
    """Bytes a second that a link can carry: `up`, from the host to that of the master, and `down`."""

    up: float
    down: float


@dataclass
class HostLink:
    """The link between `host` and the first host; `workers`: those that have been on `host`. Or a link between two
    hosts that have joined, one with these workers and one with masters, which then stands for the first host.

    `up`, `down`: bytes of vectors that have come from the host and gone to it so far, and the seconds for which they
    were on their way, None where the system does not say; `carries`: measured when the host came, None where it left
    before that, and between two hosts that have joined; `silent`: seconds since the host was last heard of, None where
    it has left; `longest`: the longest silence so far.
    """

    host: str
    workers: list[int] = field(default_factory=list)
    up: tuple[int, float | None] = (0, None)
    down: tuple[int, float | None] = (0, None)
    carries: Carries | None = None
    silent: float | None = None
    longest: float = 0.0

    def facts(self) -> dict[str, Any]:
        """Returns what the summary says of the link."""
        found: dict[str, Any] = {"workers": self.workers}
        for way, (count, seconds) in (("up", self.up), ("down", self.down)):
            found |= {
                f"bytes_{way}": count, f"seconds_{way}": seconds,
                f"bytes_per_second_{way}": count / seconds if seconds else None,
                f"measured_{way}": None if self.carries is None else getattr(self.carries, way),
            }  # fmt: skip
        return {**found, "longest_silence": self.longest}


class Links:
    """Shows the links, and records them once a second, in a long run less often."""

    def __init__(self, journal: Journal):
        self._journal = journal
        self._rows = SystemRows(1.0, doubling=True)
        self._shown: dict[str, tuple[float, int, int]] = {}  # by host: second and bytes when last shown
        self._told: dict[str, tuple[float, int, int]] = {}  # the same when last recorded

    def look(self, links: list[HostLink], moment: Moment, last: bool = False) -> None:
        """Shows the links as they are at this moment, and records them if a row is due or this moment is the `last`."""
        lines: list[tuple[float, str]] = []
        for link in links:
            up, down = _shares(link, moment.seconds, self._shown)
            lines.append(_line(link, up, down))
        lines.sort(reverse=True)
        more = [f"and {len(lines) - _SHOWN} links more"] if len(lines) > _SHOWN else []
        self._journal.progress.links([*(line for _, line in lines[:_SHOWN]), *more])
        if self._rows.rate(moment.seconds, 0) is not None or last:
            for link in links:
                self._record(link, moment)

    def _record(self, link: HostLink, moment: Moment) -> None:
        up, down = _shares(link, moment.seconds, self._told)
        figures = {
            "link_bytes_up": link.up[0], "link_bytes_down": link.down[0],
            "link_seconds_up": link.up[1], "link_seconds_down": link.down[1],
            "link_share_up": up, "link_share_down": down, "link_silent": link.silent,
        }  # fmt: skip
        self._journal.system(moment, host=link.host, **{k: v for k, v in figures.items() if v is not None})


def _shares(
    link: HostLink, second: float, before: dict[str, tuple[float, int, int]]
) -> tuple[float | None, float | None]:
    """Returns which share of its capacity the link has carried since the last call with this `before`, in percent: up
    and down. None where the capacity is not known, or no time has passed.
    """
    since, up, down = before.get(link.host, (0.0, 0, 0))
    before[link.host] = (second, link.up[0], link.down[0])
    if link.carries is None or second <= since:
        return None, None
    seconds = second - since
    return (
        100 * (link.up[0] - up) / seconds / link.carries.up,
        100 * (link.down[0] - down) / seconds / link.carries.down,
    )


def _line(link: HostLink, up: float | None, down: float | None) -> tuple[float, str]:
    """Returns how much attention a link needs, and the line that shows it."""
    workers = f"{len(link.workers)} worker{'' if len(link.workers) == 1 else 's'}"
    if link.silent is None:
        return 1e9, f"{link.host}: has left"
    if link.silent > _SILENT_SECONDS:
        return 1e6 + link.silent, f"{link.host}: {workers}, nothing heard of it for {link.silent:.0f} s"
    ways = [
        f"{megabytes:,.1f} MB {way}" + ("" if share is None else f" ({share:.0f} % of the link)")
        for way, (count, _), share in (("up", link.up, up), ("down", link.down, down))
        for megabytes in [count / 1e6]
    ]
    return max(up or 0.0, down or 0.0), f"{link.host}: {workers}, {', '.join(ways)}"
