"""What a run needs whatever it learns: checkpoints, signals, sharding, settings of transformers."""
