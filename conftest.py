"""What holds for every test, of units, docstrings and notebooks."""

import os

if "PYTEST_XDIST_WORKER" in os.environ:  # the cores are taken by the workers; notebooks' kernels inherit it
    os.environ["OMP_NUM_THREADS"] = "1"


def pytest_collectstart(collector):
    """Let nbval pass over what a cell writes to stderr: progress bars and warnings differ from machine to machine."""
    if getattr(collector, "skip_compare", None) is not None:
        collector.skip_compare += ("stderr",)


def pytest_itemcollected(item):
    """Mark the cells of notebooks; let nbval compare numbers within the tolerance that a cell's metadata states."""
    if hasattr(item, "cell"):
        item.add_marker("notebook")
    if "tolerance" in getattr(getattr(item, "cell", None), "metadata", {}):
        from lowrank_utils.workbook import checked  # not above: the setting of threads must come first

        checked.attach(item)
