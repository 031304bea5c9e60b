"""Maps on a small hub on this machine."""

import numpy as np
import pytest
from encoders.hub_server import hub as hub

import semalign_jax as sa
from semalign_jax.maps import diagnose, map_card, push_map

RNG = np.random.default_rng(0)
X, Y = (RNG.standard_normal((40, d)).astype(np.float32) for d in (6, 4))


@pytest.fixture
def path(tmp_path):
    diagnosis = diagnose(X, Y).summary()
    sa.save_map(
        sa.fit_affine(X, Y), tmp_path / "m.safetensors", method="affine", diagnosis=diagnosis
    )
    return tmp_path / "m.safetensors"


def test_a_map_goes_to_the_hub_and_comes_back(hub, path):
    address = push_map(path, "owner/map", license="mit", token="hf_test")
    assert "/owner/map/commit/" in address
    (files,) = [files for files in hub.commits["owner/map"].values() if files]
    assert sorted(files) == ["README.md", "map.safetensors"]
    found = sa.load_map("owner/map")
    for ours, theirs in zip(found, sa.load_map(path), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    commit = hub.branches["owner/map"]["main"]
    assert sa.load_map("owner/map", revision=commit).d_out == 4


def test_the_card_says_what_it_is_and_how_far_to_trust_it(path):
    card = map_card(path, license="mit")
    assert card.startswith('---\nlibrary_name: "semalign_jax"\n')
    assert 'license: "mit"' in card
    for part in ("An affine map from embeddings of 6 dimensions to embeddings of 4", "cosine"):
        assert part in card
    for line in diagnose(X, Y).summary()["advice"]:
        assert f"- {line}" in card


def test_a_map_without_a_diagnosis_has_a_card_too(tmp_path):
    sa.save_map(sa.fit_ortho(X, Y), tmp_path / "m.safetensors")
    assert "Nothing was measured" in map_card(tmp_path / "m.safetensors")


def test_what_cannot_be_is_told(hub, path, tmp_path):
    with pytest.raises(FileNotFoundError, match="no repository owner/other on the hub"):
        sa.load_map("owner/other")
    hub.add("owner/empty", {"config.json": b"{}"})
    with pytest.raises(FileNotFoundError, match="owner/empty on the hub has no map.safetensors"):
        sa.load_map("owner/empty")
    hub.add("owner/damaged", {"map.safetensors": b"no map"})
    with pytest.raises(ValueError, match="whole safetensors file"):
        sa.load_map("owner/damaged")
    hub.gated.add("owner/gated")
    with pytest.raises(PermissionError, match="owner/gated is gated"):
        sa.load_map("owner/gated")
    with pytest.raises(ValueError, match="repository must be like 'user/map'"):
        push_map(path, "map")
    with pytest.raises(FileNotFoundError):
        push_map(tmp_path / "no.safetensors", "owner/map")
    with pytest.raises(ValueError, match="revision must be None for a file"):
        sa.load_map(path, revision="main")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        with pytest.raises(ConnectionError, match="there is no file 'maps/typo' here, it is not"):
            sa.load_map("maps/typo")
    hub.locked = True
    with pytest.raises(PermissionError, match="you may not write to owner/map"):
        push_map(path, "owner/map", token="hf_test")


def test_a_file_of_that_name_comes_first(tmp_path, monkeypatch, path):
    (tmp_path / "owner").mkdir()
    (tmp_path / "owner" / "map").write_bytes(path.read_bytes())
    monkeypatch.chdir(tmp_path)
    assert sa.load_map("owner/map").d_in == 6
