"""Low-rank compression of neural networks: which ranks, which factors, and one ledger to compare them by.

Three calls for a network of your own: `lowrank_utils.profile` reads it, `lowrank_utils.predict` says what each budget
will cost, `lowrank_utils.compress` makes it smaller.
The sub-packages, from the bottom floor up: ``network`` (reading a network), ``factors`` (the numbers in the thin
layers), ``ranks`` (which ranks), ``lab`` (data, models, scores), ``compression`` (the one call), ``workbook`` (what
runs and shows the notebooks). Importing the package itself loads nothing heavy.
"""

__version__ = "0.2.0"


def __getattr__(name):
    if name in ("compress", "predict"):
        from lowrank_utils import compression

        return getattr(compression, name)
    if name == "profile":
        from lowrank_utils.network.profile import profile

        return profile
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
