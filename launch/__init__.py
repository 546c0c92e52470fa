"""Starting runs: local processes, a TPU VM slice, GKE, Slurm; and sweeps over any of them."""
