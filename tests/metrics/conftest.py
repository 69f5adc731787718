import open_clip
import pytest
import torch

from fedsd.base.load import Clip

VISION = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 16}
TEXT = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}


@pytest.fixture(scope="session")
def clip() -> Clip:
    """A real open_clip model, small and untrained."""
    torch.manual_seed(0)
    model = open_clip.model.CLIP(embed_dim=24, vision_cfg=VISION, text_cfg=TEXT).eval().requires_grad_(False)
    tokenizer = open_clip.SimpleTokenizer(context_length=16)
    return Clip(model, tokenizer, 32, 24, (0.4, 0.5, 0.6), (0.2, 0.25, 0.5))


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
