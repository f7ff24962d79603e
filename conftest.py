"""Lets nbval pass over what a cell writes to stderr: progress bars and warnings differ from machine to machine."""


def pytest_collectstart(collector):
    if getattr(collector, "skip_compare", None) is not None:
        collector.skip_compare += ("stderr",)
