"""PyTorch weights in and out: FLUX.2 checkpoints to ours, our runs to diffusers folders."""
