"""The links to the other hosts of a run, as they are shown and recorded: what they carry, how much of what they could,
and who is silent.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from easgd_cli.launcher.journal.journal import Journal
from easgd_cli.launcher.journal.system_rows import SystemRows
from easgd_cli.training.snapshot import Moment

_SILENT_SECONDS = 2.0  # a host says something four times as often at least
_SHOWN = 4  # links in the view


class Carries(NamedTuple):
    """Bytes a second: up, from the host to the master's, and down."""

    up: float
    down: float


@dataclass
class HostLink:
    """Of one host, `workers` having been there; or from a host that has joined, with these `workers`, to another one
    with masters, which has then the place of the first host. `up` and `down`: bytes of vectors that have come from it
    and gone to it so far, and the seconds in which they were on their way, None where the system does not say;
    `carries`: as measured when the host came, None where it has gone before, or joined as both ends did; `silent`:
    seconds since anything was heard of it, None where it has left; `longest`: the most of those so far.
    """

    host: str
    workers: list[int] = field(default_factory=list)
    up: tuple[int, float | None] = (0, None)
    down: tuple[int, float | None] = (0, None)
    carries: Carries | None = None
    silent: float | None = None
    longest: float = 0.0

    def facts(self) -> dict[str, Any]:
        """What the summary says of it."""
        found: dict[str, Any] = {"workers": self.workers}
        for way, (count, seconds) in (("up", self.up), ("down", self.down)):
            found |= {
                f"bytes_{way}": count, f"seconds_{way}": seconds,
                f"bytes_per_second_{way}": count / seconds if seconds else None,
                f"measured_{way}": None if self.carries is None else getattr(self.carries, way),
            }  # fmt: skip
        return {**found, "longest_silence": self.longest}


class Links:
    """Tells of them, once a second."""

    def __init__(self, journal: Journal):
        self._journal = journal
        self._rows = SystemRows(1.0, doubling=True)
        self._shown: dict[str, tuple[float, int, int]] = {}  # second and bytes when they were last looked at
        self._told: dict[str, tuple[float, int, int]] = {}  # and recorded

    def look(self, links: list[HostLink], moment: Moment, last: bool = False) -> None:
        """So they stand at this moment, the `last` that is recorded."""
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
    """Of what it carries, in percent since the last call with this `before`: up and down."""
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
    """How much it is to be looked at, and what is said of it."""
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
