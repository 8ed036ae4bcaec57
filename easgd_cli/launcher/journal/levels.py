"""The levels of `until`, at which a run ends."""

from __future__ import annotations

from collections.abc import Mapping

from easgd_cli.problems.metric import Metrics


class Levels:
    """The levels that were `asked` for, by the names under which they were given; `metrics`: all metrics of the run."""

    def __init__(self, asked: Mapping[str, float], metrics: Metrics):
        self._asked, self._metrics = asked, metrics

    def reached(self, figures: Mapping[str, float]) -> str | None:
        """Returns which level an evaluation with these figures has reached, in words; None: no level."""
        for given, level in self._asked.items():
            metric = self._metrics[name := self._metrics.named(given)]
            if metric.reached(figures.get(name), level):
                return (
                    f"{metric.title} {metric.shown(figures[name])} reached the level {metric.with_unit(f'{level:g}')}"
                )
        return None
