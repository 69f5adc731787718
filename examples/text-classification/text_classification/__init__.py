"""A Flower app that teaches a small transformer to tell what a sentence is about, with LoRA."""
