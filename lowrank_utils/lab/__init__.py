"""What experiments stand on: data sets, networks, checkpoints, training, scores, export."""
