"""Reading a network, once: its layers and costs, its graph, its weights as matrices, statistics of data passing through."""
