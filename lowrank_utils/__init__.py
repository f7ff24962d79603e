"""Low-rank compression of neural networks: which ranks, which factors, and one ledger to compare them by.

The rooms, from the bottom floor up: ``paths``, ``results``, ``data``, ``models``, ``training``, ``factors``,
``schemes``, ``sequential``, ``layers``, ``arsvd``, ``pruning``, ``ddlr``, ``ddlr_network``, ``allocation``,
``rank_search``, ``score``, ``shipping``, ``compression``, ``plots``, ``jobs``, ``runs``, ``report``. Import the room that you need; importing the
package itself loads nothing heavy. `lowrank_utils.compress` is the one call for a network of your own.
"""

__version__ = "0.1.0"


def __getattr__(name):
    if name == "compress":
        from .compression import compress

        return compress
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
