"""The metrics that are plotted, with one sentence each: shown by TensorBoard beside the curve and in docs/metrics.md.

A row may hold more; that is recorded in metrics.jsonl and, but for what a problem measures of the center, not plotted.
"""

from __future__ import annotations

from typing import Any

Row = dict[str, Any]  # {"seconds", "step", "exchanges", "party", then metrics by bare name: a number, None (not finite) or a text}
MOMENT = ("seconds", "step", "exchanges", "party")

# Of the center x~, and likewise of its average: one point at every evaluation of a snapshot, dropout off, center patches.
CENTER = {
    "train_loss": "Cross-entropy of the center on a fixed subset of the training images, or the problem's function, without the l2 term.",
    "test_loss": "Cross-entropy of the center on the test images, without the l2 term.",
    "test_error": "Test images that the center gets wrong, in percent.",
    "test_error_top5": "Test images whose label is not among the five largest outputs of the center, in percent.",
    "best_test_error": "The lowest test error of the center so far, in percent.",
    "seconds_to_best": "Training seconds after which the lowest test error so far was reached.",
    "validation_loss": "Cross-entropy of the center on the training images held out by dataset.validation.",
    "validation_error": "Held-out training images that the center gets wrong, in percent.",
    "validation_error_top5": "Held-out training images whose label is not among the five largest outputs of the center, in percent.",
    "distance_to_optimum": "Euclidean distance between the center and the nearest minimum of the problem's function.",
    "well": "Mean sign of the center's coordinates on a double well: 1 with all in the wells at +1, -1 with all in those at -1.",
}

# Of each worker, at fixed local steps.
WORKER = {
    "train_loss": "Mean loss of the worker's batches since the last point, at its own parameters, dropout, smoothing and noise on, without the l2 term.",
    "distance_to_center": "Euclidean distance between the worker's parameters and the center it was last told.",
    "staleness": "Updates of the center by others between two exchanges of the worker, the mean since the last point.",
    "eta": "Learning rate at the worker's clock.",
    "samples_per_second": "Samples that the worker has differentiated a second since the last point, all waiting included.",
    "seconds_compute": "Seconds of the worker's step loop spent on gradients, since the start.",
    "seconds_data": "Seconds of the worker's step loop spent on making batches, since the start.",
    "seconds_communication": "Seconds the worker's step loop itself spent sending, waiting and pulling, since the start.",
    "seconds_other": "The remaining seconds of the worker's step loop, since the start: its update, above all.",
}

# Of the run as a whole.
SYSTEM = {
    "workers_alive": "Workers that have not been lost.",
    "master_cpu_seconds": "CPU seconds the master has used since its start.",
    "exchanges_per_second": "Exchanges the master has served a second since the last point.",
    "queue_seconds": "Virtual seconds that messages waited for the master, the mean since the start (simulated).",
    "master_busy": "Share of the virtual time in which the master was serving, since the start, in percent (simulated).",
}

PARTIES = {"center": CENTER, "average": CENTER, "system": SYSTEM}  # everybody else is a worker

# Where a worker's or the system's curve begins, at step 0, nothing has been spent or done: 0. These begin with their first value.
BEGIN_WITH_THEIR_FIRST = {"train_loss", "eta"}


def measured(row: Row) -> list[str]:
    """The names of what was measured of the center, in the order of the problem's own telling."""
    return [name for name in row if name not in MOMENT]


def worker_name(number: int) -> str:
    """A worker's name in rows, tags and log files: two digits or more, so that names sort as numbers do."""
    return f"worker_{number:02d}"
