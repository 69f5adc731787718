from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from fedsd.base.load import Clip
from fedsd.metrics.features import INCEPTION_FILE, extract, load_extractor


class ChannelMeans(nn.Module):
    def forward(self, pixels: Tensor) -> Tensor:
        return pixels.float().mean((2, 3))


def test_embedded_is_the_image_tower_after_the_models_own_normalisation(clip: Clip, pixels: Tensor) -> None:
    mean, std = torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1), torch.tensor([0.2, 0.25, 0.5]).view(3, 1, 1)
    wanted = clip.model.encode_image((pixels.float() / 255 - mean) / std, normalize=True)
    features = load_extractor("embedded", clip)(pixels)
    torch.testing.assert_close(features, wanted * 24**0.5)
    torch.testing.assert_close(features.square().sum(1), torch.full((5,), 24.0))


def test_embedded_resizes_other_sizes_and_stays_in_evaluation_mode(clip: Clip) -> None:
    extractor = load_extractor("embedded", clip)
    plain = torch.full((2, 3, 48, 80), 90, dtype=torch.uint8)
    torch.testing.assert_close(extractor(plain), extractor(plain[:, :, :32, :32]))
    assert not extractor.training and not any(p.requires_grad for p in extractor.parameters())


@pytest.mark.filterwarnings("ignore:Metric `Kernel Inception")
def test_embedded_serves_torchmetrics_as_a_feature_module(clip: Clip, pixels: Tensor) -> None:
    extractor = load_extractor("embedded", clip)
    kid = KernelInceptionDistance(feature=extractor, subsets=1, subset_size=5)
    fid = FrechetInceptionDistance(feature=extractor)
    for metric in (kid, fid):
        metric.update(pixels, real=True)
        metric.update(255 - pixels, real=False)
    assert fid.compute() > 0 and kid.compute()[0].isfinite()
    assert fid.real_features_sum.shape == (24,)


def test_embedded_without_a_model_is_refused() -> None:
    with pytest.raises(ValueError, match=r'"embedded" needs the open_clip model: load_extractor\("emb'):
        load_extractor("embedded")


def test_inception_missing_names_the_file_and_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    where = tmp_path / "hub" / "checkpoints" / INCEPTION_FILE
    with pytest.raises(ValueError, match=f"{where} are missing; download https://.*{INCEPTION_FILE} to that place"):
        load_extractor("inception")
    with pytest.raises(ValueError, match=r"weights /nowhere/w\.pth are missing"):
        load_extractor("/nowhere/w.pth")


def test_inception_weights_are_found_in_the_hub_cache_and_by_path(
    tmp_path: Path, pixels: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    fidelity = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    where = tmp_path / "hub" / "checkpoints" / INCEPTION_FILE
    where.parent.mkdir(parents=True)
    torch.save({}, where)
    torch.manual_seed(0)
    with monkeypatch.context() as patch:  # the class has no other way to be built without the weights that FID uses
        patch.setattr(fidelity.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        untrained = fidelity.FeatureExtractorInceptionV3("untrained", ["2048"], str(where))
    torch.save(untrained.state_dict(), where)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    features = load_extractor("inception")(pixels[:1])
    assert features.shape == (1, 2048)
    torch.testing.assert_close(features, load_extractor(where)(pixels[:1]))


def test_torchscript_file_is_loaded(tmp_path: Path, pixels: Tensor) -> None:
    torch.jit.save(torch.jit.script(ChannelMeans()), tmp_path / "means.pt")
    extractor = load_extractor(tmp_path / "means.pt")
    torch.testing.assert_close(extractor(pixels), pixels.float().mean((2, 3)))


def test_a_file_that_is_no_torchscript_or_not_there_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.pt").write_text("not a model")
    with pytest.raises(ValueError, match=r"notes\.pt is no TorchScript file"):
        load_extractor(tmp_path / "notes.pt")
    with pytest.raises(ValueError, match=r"extractor 'resnet' is neither \"embedded\", \"inception\" nor a file"):
        load_extractor("resnet")


def test_extract_goes_in_batches_and_gives_float64(pixels: Tensor) -> None:
    features = extract(ChannelMeans(), pixels, batch_size=2)
    assert features.dtype == torch.float64
    torch.testing.assert_close(features, pixels.double().mean((2, 3)), rtol=1e-6, atol=0)


def test_extract_refuses_an_empty_batch_and_an_extractor_of_the_wrong_shape(pixels: Tensor) -> None:
    with pytest.raises(ValueError, match="no pictures to extract features from"):
        extract(ChannelMeans(), pixels[:0])
    with pytest.raises(ValueError, match=r"turned \(5, 3, 32, 32\) into \(15360,\); it must return one row"):
        extract(nn.Flatten(0), pixels)
