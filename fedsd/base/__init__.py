"""The frozen model: loading it, adapting it, denoising with it."""
