"""What classification measures: errors in percent, and the cross-entropy."""

from __future__ import annotations

from typing import Any

from easgd_cli.problems.metric import Metric, Metrics

METRICS = Metrics(
    [
        Metric(
            "test_error", "test error", unit="%", format=".2f", primary=True,
            description="Test samples that the center gets wrong, in percent.",
        ),
        Metric(
            "test_error_top5", "top-5 error", "top-5", unit="%", format=".2f",
            description="Test samples whose label is not among the five largest outputs of the center, in percent.",
        ),
        Metric(
            "validation_error", "held-out error", "held-out", unit="%", format=".2f",
            description="Training samples held out by dataset.validation that the center gets wrong, in percent.",
        ),
        Metric(
            "validation_error_top5", "held-out top-5", "held-out top-5", unit="%", format=".2f",
            description="Held-out training samples whose label is not among the five largest outputs of the center, in "
            "percent.",
        ),
        Metric("test_loss", description="Cross-entropy of the center on the test samples, without the l2 term."),
        Metric("validation_loss", "held-out loss", description="Cross-entropy of the center on the training "
        "samples held out by dataset.validation."),
    ]
)  # fmt: skip


def metrics_of(declares: Any) -> Metrics:
    """Returns the metrics that a problem, or its maker, declares; those of classification where it declares none."""
    declared = getattr(declares, "metrics", None)
    return METRICS if declared is None else Metrics(declared)
