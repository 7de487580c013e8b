"""Imported last by the server that the tests' processes are forked from: what each of them would do first, done once.

Nothing here may start a thread: a forked process would be without it.
"""

import gc

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot
from transformers.conversion_mapping import get_checkpoint_conversion_mapping


def draw() -> None:
    """A figure like that of a run's path: fonts are found and read."""
    figure, axes = pyplot.subplots(figsize=(2, 2))
    figure.colorbar(axes.scatter([0, 1], [0, 1], c=[0, 1]), label="step")
    axes.set_xlabel("objective")
    figure.tight_layout()
    figure.canvas.draw()
    pyplot.close(figure)


draw()
get_checkpoint_conversion_mapping("mistral")  # the table of all models' weights is made at the first look-up
gc.collect()
gc.freeze()  # collections of the processes leave all this alone, and so its pages shared
