"""A miniature text-to-image checkpoint in Stable Diffusion 1's layout: see README.md in this folder."""
