"""Tasks, one a file: what a net is trained for and judged by."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from easgd_cli.data.dataset import Dataset
    from easgd_cli.problems.tasks.base import Task


def by_data(data: Dataset) -> Task:
    """Returns the task that goes with the kind of the data set's targets: see docs/data.md."""
    from easgd_cli.problems.tasks.classification import Classification
    from easgd_cli.problems.tasks.multi_label import MultiLabel
    from easgd_cli.problems.tasks.next_token import NextToken
    from easgd_cli.problems.tasks.regression import Regression

    if data.targets == "labels":
        return Classification(data=data)
    return {"numbers": Regression, "several labels": MultiLabel, "tokens": NextToken}[data.targets]()
