"""Hybrid inference (section 3.3): one early denoising run on a server, many personal endings on devices."""
