"""What an experimenter holds: runs, recipes, sweeps, labels, evaluation, panels, plots, the command `dpo-lab`."""
