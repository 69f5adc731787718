"""The weights of the embedded base and its open_clip model; see MODEL_CARD.md."""
