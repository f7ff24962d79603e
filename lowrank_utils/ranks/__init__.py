"""Which ranks: rules on spectra, entropy pruning, network-wide search with a certificate."""
