"""What survives a kill: checkpoints, the log-prob store, token ids on a disk, files written whole."""
