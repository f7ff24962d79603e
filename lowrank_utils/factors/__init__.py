"""Which numbers go into the thin layers: plain, data-aware, sequential, convex; and a plan made into a network."""
