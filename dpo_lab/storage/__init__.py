"""What survives a kill: files written whole and lines of JSON (`files`), `checkpoints`, the store of log-probs
(`logp_store`), token ids on a disk (`token_files`); and where the embedded models and data lie (`embedded`)."""
