"""Every way to run a trained network: plain, fused, compiled, CUDA graphs, exported engines."""
