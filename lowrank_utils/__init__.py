"""Low-rank compression of neural networks: which ranks, which factors, and one ledger to compare them by.

The rooms, from the bottom floor up: ``paths``, ``results``, ``data``, ``models``, ``training``, ``factors``,
``sequential``, ``layers``, ``arsvd``, ``pruning``, ``ddlr``, ``ddlr_network``, ``score``, ``plots``, ``jobs``, ``runs``,
``report``. Import the room that you need; importing the package
itself loads nothing heavy.
"""

__version__ = "0.1.0"
