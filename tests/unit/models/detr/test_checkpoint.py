import argparse
import hashlib
import io
import pickle
import socket
import urllib.error
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from construction_panoptic.errors import CheckpointError
from construction_panoptic.models.detr import Detr, DetrPanoptic, build_detr, build_detr_panoptic
from construction_panoptic.models.detr import checkpoint as checkpoint_module
from construction_panoptic.models.detr.checkpoint import (
    PUBLISHED_WEIGHTS,
    fetch_weights,
    load_weights,
    panoptic_architecture,
)
from construction_panoptic.models.weights import read_weights

TINY: dict[str, Any] = {
    "backbone": "tiny",
    "norm": "frozen",
    "num_queries": 6,
    "hidden_dim": 32,
    "num_heads": 4,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "feedforward_dim": 48,
}
HEAD = ("class_embed.weight", "class_embed.bias")


def detr(num_classes: int = 5, **changes: Any) -> Detr:
    return build_detr(num_classes, **{**TINY, **changes})


def panoptic(num_classes: int = 5, **changes: Any) -> DetrPanoptic:
    return build_detr_panoptic(num_classes, **{**TINY, **changes})


def assert_same(model: torch.nn.Module, state: dict[str, Tensor], but: tuple[str, ...] = ()) -> None:
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key]) == (key not in but), key


# --- reading ---


@pytest.mark.parametrize("wrap", [lambda state: state, lambda state: {"model": state, "epoch": 3}])
def test_reads_a_state_dict_bare_or_as_model(wrap: Callable[[Any], Any], tmp_path: Path) -> None:
    state = detr().state_dict()
    torch.save(wrap(state), tmp_path / "weights.pth")

    read = read_weights(tmp_path / "weights.pth")

    assert list(read) == list(state)
    assert all(torch.equal(read[key], state[key]) for key in state)


def test_reads_a_training_checkpoint_with_its_command_line(tmp_path: Path) -> None:
    """The published training script stores an `argparse.Namespace`, which is plain data."""
    model = detr()
    checkpoint = {"model": model.state_dict(), "args": argparse.Namespace(lr=1e-4, masks=False), "epoch": 2}
    torch.save(checkpoint, tmp_path / "checkpoint.pth")
    assert set(read_weights(tmp_path / "checkpoint.pth")) == set(model.state_dict())


def test_reads_safetensors(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    state = detr().state_dict()
    safetensors.save_file(state, tmp_path / "weights.safetensors")

    read = read_weights(tmp_path / "weights.safetensors")

    assert set(read) == set(state)
    assert all(torch.equal(read[key], state[key]) for key in state)


class Malicious:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_never_unpickles_objects(tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    torch.save({"model": detr().state_dict(), "extra": Malicious(trap)}, tmp_path / "torch.pth")
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps(Malicious(trap)))

    for name in ("torch.pth", "plain.pkl"):
        with pytest.raises(CheckpointError, match=rf"{name}: cannot be read .* not unpickled for safety"):
            read_weights(tmp_path / name)
    assert not trap.exists()


def truncated() -> bytes:
    buffer = io.BytesIO()
    torch.save(detr().state_dict(), buffer)
    return buffer.getvalue()[:-2000]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a checkpoint",
        b"\x80\x04garbage",
        b"PK\x03\x04" + bytes(100),
        b"\xff\xd8\xff" * 50,
        truncated(),
    ],
    ids=["empty", "text", "pickle garbage", "zip garbage", "jpeg", "truncated"],
)
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_damaged_files_are_named(content: bytes, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"broken.{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"broken\.{suffix}: (cannot be read|is not a readable)"):
        read_weights(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "no state dict"),
        (torch.zeros(3), "no state dict"),
        ({"model": {"a": torch.zeros(1), "b": 2}}, "'b' has type int, not Tensor"),
        ({"optimizer": {"a": torch.zeros(1)}, "epoch": 3}, "'optimizer' has type dict, not Tensor"),
    ],
)
def test_files_without_a_state_dict_are_named(content: object, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=rf"other\.pth: .*{message}"):
        read_weights(tmp_path / "other.pth")


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere\.pth"):
        read_weights(tmp_path / "nowhere.pth")
    with pytest.raises(CheckpointError, match=r"no file .*detr-r5\b.*detr-r50, "):
        fetch_weights("detr-r5")


# --- loading ---


@pytest.mark.parametrize("build", [detr, panoptic])
def test_round_trip(build: Callable[[], Detr | DetrPanoptic], tmp_path: Path) -> None:
    saved, loaded = build(), build()
    torch.save({"model": saved.state_dict()}, tmp_path / "weights.pth")

    report = load_weights(loaded, tmp_path / "weights.pth", reset_heads=False)

    assert_same(loaded, saved.state_dict())
    assert report == f"{tmp_path / 'weights.pth'}: {len(saved.state_dict())} keys kept"


def test_other_classes_and_queries_are_reset_and_reported() -> None:
    saved, loaded = detr(5).state_dict(), detr(9, num_queries=4)
    before = {key: value.clone() for key, value in loaded.state_dict().items()}

    report = load_weights(loaded, saved)

    reset = (*HEAD, "query_embed.weight")
    assert_same(loaded, {**saved, **{key: before[key] for key in reset}})
    told = f"{len(saved) - 3} keys kept, 3 reset (class_embed.weight, class_embed.bias, query_embed.weight)"
    assert report == f"the given state dict: {told}"


def test_anchors_are_reset_with_the_queries() -> None:
    saved = detr(5, anchors=True).state_dict()

    report = load_weights(detr(5, anchors=True, num_queries=4), saved)

    assert report.endswith("2 reset (query_embed.weight, anchors.logits)")


def test_weights_without_anchors_do_not_fit_a_model_with_them() -> None:
    with pytest.raises(CheckpointError, match=r"anchors\.logits"):
        load_weights(detr(5, anchors=True), detr(5).state_dict())


def test_heads_are_not_reset_when_they_must_fit() -> None:
    with pytest.raises(CheckpointError, match=r"class_embed\.weight is \[6, 32\] there and \[10, 32\] here"):
        load_weights(detr(9), detr(5).state_dict(), reset_heads=False)


def test_detector_checkpoint_into_a_panoptic_model() -> None:
    saved, loaded = detr(5).state_dict(), panoptic(9)
    before = {key: value.clone() for key, value in loaded.state_dict().items()}

    report = load_weights(loaded, saved)

    reset = {f"detr.{key}" for key in HEAD}
    missing = {key for key in before if not key.startswith("detr.")}
    assert (
        f"2 reset (detr.class_embed.weight, detr.class_embed.bias), {len(missing)} missing (bbox_attention." in report
    )
    own = reset | missing
    assert_same(loaded, {**{f"detr.{k}": v for k, v in saved.items()}, **{key: before[key] for key in own}})


def test_panoptic_checkpoint_into_a_detector() -> None:
    saved, loaded = panoptic().state_dict(), detr()

    report = load_weights(loaded, saved)

    assert_same(loaded, {k.removeprefix("detr."): v for k, v in saved.items()})
    unexpected = {key for key in saved if not key.startswith("detr.")}
    assert report.startswith(f"the given state dict: {len(saved) - len(unexpected)} keys kept, {len(unexpected)} unexp")


def test_batch_counters_are_dropped_for_frozen_norm_and_kept_zero_for_batch_norm() -> None:
    frozen, batch = detr(norm="frozen"), detr(norm="batch")

    into_frozen = load_weights(frozen, batch.state_dict())
    into_batch = load_weights(detr(norm="batch"), frozen.state_dict())

    counters = sum(key.endswith("num_batches_tracked") for key in batch.state_dict())
    kept = f"the given state dict: {len(frozen.state_dict())} keys kept"
    assert into_frozen.startswith(f"{kept}, {counters} unexpected (backbone.")
    assert into_batch.startswith(f"{kept}, {counters} missing (backbone.")


def test_half_precision_weights_are_loaded_as_float32() -> None:
    saved, loaded = {key: value.half() for key, value in detr().state_dict().items()}, detr()
    load_weights(loaded, saved)
    assert_same(loaded, {key: value.float() for key, value in saved.items()})
    assert {value.dtype for value in loaded.state_dict().values()} == {torch.float32}


@pytest.mark.parametrize(
    ("checkpoint", "message"),
    [
        (
            lambda: detr(feedforward_dim=40).state_dict(),
            r"6 of its keys have another shape: "
            r"transformer\.encoder\.layers\.0\.linear1\.weight is \[40, 32\] there and \[48, 32\] here, "
            r"transformer\.encoder\.layers\.0\.linear1\.bias is \[40\] there and \[48\] here, .*, …\. Build",
        ),
        (
            lambda: detr(hidden_dim=48).state_dict(),
            r"39 of its keys have another shape: .* is \[48, 48\] there and \[48, 32\] here",
        ),
        (
            lambda: detr(decoder_layers=2).state_dict(),
            r"it has unknown 18 keys: transformer\.decoder\.layers\.1\.",
        ),
        (lambda: detr(encoder_layers=0).state_dict(), r"it lacks 12 keys: transformer\.encoder\.layers\.0\."),
        (
            lambda: {"layer1.0.weight": torch.zeros(1)},
            r"it lacks \d+ keys: transformer\S+, .*; it has unknown 1 keys: layer1\.0\.weight\.",
        ),
    ],
    ids=["feed-forward", "width", "more layers", "fewer layers", "not DETR"],
)
def test_a_checkpoint_of_another_shape_is_one_clear_message(
    checkpoint: Callable[[], dict[str, Tensor]], message: str, tmp_path: Path
) -> None:
    model = detr()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    torch.save(checkpoint(), tmp_path / "wrong.pth")

    with pytest.raises(CheckpointError, match=rf"wrong\.pth does not fit the model: .*{message}") as error:
        load_weights(model, tmp_path / "wrong.pth")

    assert "\n" not in str(error.value)
    assert_same(model, before)


def test_another_mask_branch_is_an_error() -> None:
    state = panoptic().state_dict()
    del state["mask_head.lay1.weight"]
    with pytest.raises(CheckpointError, match=r"it lacks 1 keys: mask_head\.lay1\.weight"):
        load_weights(panoptic(), state)
    state = {**panoptic().state_dict(), "mask_head.lay6.weight": torch.zeros(1)}
    with pytest.raises(CheckpointError, match=r"it has unknown 1 keys: mask_head\.lay6\.weight"):
        load_weights(panoptic(), state)


# --- published checkpoints ---


@pytest.mark.parametrize(
    "architecture",
    [
        {"num_classes": 250, "backbone": "resnet101"},
        {"num_classes": 6, "backbone": "resnet18", "num_queries": 7, "encoder_layers": 0, "pre_norm": True},
        {"num_classes": 3, **TINY},
        {"num_classes": 3, **TINY, "anchors": True},
    ],
)
def test_weights_say_how_their_model_is_built(architecture: dict[str, Any]) -> None:
    with torch.device("meta"):
        state = build_detr_panoptic(**architecture).state_dict()
        found = panoptic_architecture(state)
        again = build_detr_panoptic(**found).state_dict()
    assert found.items() >= {key: value for key, value in architecture.items() if key != "norm"}.items()
    assert {key: value.shape for key, value in again.items()} == {key: value.shape for key, value in state.items()}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    return tmp_path / "hub" / "checkpoints"


@pytest.fixture
def published_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A published checkpoint whose address is a file on this disk, with its true hash."""
    folder = tmp_path / "server"
    folder.mkdir()
    torch.save({"model": detr().state_dict()}, folder / "weights.pth")
    sha256 = hashlib.sha256((folder / "weights.pth").read_bytes()).hexdigest()
    path = (folder / "weights.pth").rename(folder / f"detr-r50-{sha256[:8]}.pth")
    monkeypatch.setattr(checkpoint_module, "_URL", folder.as_uri() + "/")
    monkeypatch.setitem(PUBLISHED_WEIGHTS, "detr-r50", sha256[:8])
    return path


def test_published_weights_are_downloaded_once_and_checked(published_here: Path, hub: Path) -> None:
    path = fetch_weights("detr-r50")
    assert path == hub / published_here.name
    assert path.read_bytes() == published_here.read_bytes()

    published_here.unlink()  # now only the cache has it
    assert fetch_weights("detr-r50") == path
    assert load_weights(detr(), "detr-r50").startswith(f"{path}: ")

    path.write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match=rf"{path.name}: its SHA-256 does not begin with .* Delete it"):
        fetch_weights("detr-r50")


@pytest.mark.usefixtures("published_here")
def test_a_server_that_never_answers_is_not_waited_for(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_module, "LONGEST_SILENCE", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(checkpoint_module, "_URL", f"http://127.0.0.1:{silent.getsockname()[1]}/")
        with pytest.raises(CheckpointError, match=r"cannot download http.*timed out.*put it at"):
            fetch_weights("detr-r50")
    assert socket.getdefaulttimeout() is None
    assert list(hub.iterdir()) == []


def test_a_download_with_another_hash_is_refused(published_here: Path, hub: Path) -> None:
    published_here.write_bytes(published_here.read_bytes() + b"x")
    with pytest.raises(CheckpointError, match=r"cannot download .* hash"):
        fetch_weights("detr-r50")
    assert list(hub.iterdir()) == []


def test_without_network_the_message_says_what_to_do(published_here: Path, hub: Path) -> None:
    published_here.unlink()
    with pytest.raises(CheckpointError) as error:
        fetch_weights("detr-r50")
    assert isinstance(error.value.__cause__, urllib.error.URLError)
    assert f"put it at {hub / published_here.name}" in str(error.value)
    assert "give the path of a weights file" in str(error.value)
