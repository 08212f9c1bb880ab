"""The mathematics of PURE (arXiv 2605.25765): knows torch, numpy, safetensors and PIL, and nothing of a host."""
