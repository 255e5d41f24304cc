"""Loading: weights of many origins, wrong ones named whole, code in files never run."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import featviz
from featviz.errors import UserError
from featviz.models import zoo
from featviz.models.alexnet import AlexNetMini
from featviz.models.units import parse_unit


@pytest.fixture(scope="module")
def mini_state() -> dict[str, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AlexNetMini(num_classes=5).state_dict()


@pytest.fixture(scope="module")
def mini_file(mini_state: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "mini.safetensors"
    save_file(mini_state, path)
    return path


def picture() -> Tensor:
    return torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(4))


def reference(state: dict[str, Tensor]) -> Tensor:
    net = AlexNetMini(num_classes=5).eval()
    net.load_state_dict(state)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (AlexNetMini.mean, AlexNetMini.std))
    with torch.no_grad():
        logits: Tensor = net((picture() - mean) / std)
    return logits


def test_a_loaded_model_is_the_net_behind_its_normalization(
    mini_file: Path, mini_state: dict[str, Tensor]
) -> None:
    model = featviz.load("alexnet-mini", weights=mini_file)
    assert len(model.classes) == 5
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    assert torch.allclose(model(picture()), reference(mini_state), atol=1e-6)


@pytest.mark.parametrize("wrapper", ["plain", "state_dict", "module.", "_orig_mod."])
def test_torch_files_are_read_also_when_wrapped(
    wrapper: str, mini_state: dict[str, Tensor], tmp_path: Path
) -> None:
    content: Any = mini_state
    if wrapper == "state_dict":
        content = {"epoch": 3, "state_dict": mini_state}
    elif wrapper != "plain":
        content = {wrapper + name: t for name, t in mini_state.items()}
    torch.save(content, tmp_path / "w.pth")
    model = featviz.load("alexnet-mini", weights=tmp_path / "w.pth")
    assert torch.allclose(model(picture()), reference(mini_state), atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_weights_compute_in_float32(
    dtype: torch.dtype, mini_state: dict[str, Tensor], tmp_path: Path
) -> None:
    halved = {name: t.to(dtype) for name, t in mini_state.items()}
    save_file(halved, tmp_path / "w.safetensors")
    model = featviz.load("alexnet-mini", weights=tmp_path / "w.safetensors")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    expected = reference({name: t.float() for name, t in halved.items()})
    assert torch.allclose(model(picture()), expected, atol=1e-6)


def test_sha256_is_that_of_the_weights_not_of_the_file(
    mini_file: Path, mini_state: dict[str, Tensor], tmp_path: Path
) -> None:
    torch.save(mini_state, tmp_path / "w.pth")
    one = featviz.load("alexnet-mini", weights=mini_file).sha256
    assert one == featviz.load("alexnet-mini", weights=tmp_path / "w.pth").sha256
    changed = {name: t.clone() for name, t in mini_state.items()}
    changed["features.0.bias"][3] += 1e-4
    save_file(changed, tmp_path / "c.safetensors")
    assert one != featviz.load("alexnet-mini", weights=tmp_path / "c.safetensors").sha256


def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(tmp_path: Path) -> None:
    trace = tmp_path / "it ran"

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, (f"touch '{trace}'",)

    torch.save({"features.0.weight": Evil()}, tmp_path / "zip.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Evil()))
    for name in ("zip.pth", "plain.pth"):
        with pytest.raises(UserError, match="is refused: reading it could run code that it holds"):
            featviz.load("alexnet-mini", weights=tmp_path / name)
    assert not trace.exists()
    # The file is what it claims to be: read without care it does run.
    pickle.loads((tmp_path / "plain.pth").read_bytes())
    assert trace.exists()


@pytest.mark.parametrize("keep", [0, 7, 40, 5000])
@pytest.mark.parametrize("kind", ["safetensors", "pth"])
def test_files_cut_short_are_named(
    kind: str, keep: int, mini_file: Path, mini_state: dict[str, Tensor], tmp_path: Path
) -> None:
    path = tmp_path / f"w.{kind}"
    if kind == "pth":
        torch.save(mini_state, path)
        path.write_bytes(path.read_bytes()[:keep])
    else:
        path.write_bytes(mini_file.read_bytes()[:keep])
    with pytest.raises(UserError, match=rf"w\.{kind} is .*(cut short|damaged|refused)"):
        featviz.load("alexnet-mini", weights=path)


def test_files_that_hold_no_weights_are_named(tmp_path: Path) -> None:
    (tmp_path / "notes.pth").write_text("dear diary")
    with pytest.raises(UserError, match=r"notes\.pth is"):
        featviz.load("alexnet-mini", weights=tmp_path / "notes.pth")
    torch.save([1, 2, 3], tmp_path / "list.pth")
    with pytest.raises(UserError, match=r"list\.pth holds no tensors by name; save a model's"):
        featviz.load("alexnet-mini", weights=tmp_path / "list.pth")
    with pytest.raises(UserError, match=r"absent\.pth: no such file; --weights takes"):
        featviz.load("alexnet-mini", weights=tmp_path / "absent.pth")


def test_every_mismatch_of_another_architecture_is_named(tmp_path: Path) -> None:
    state = {
        "features.0.weight": torch.zeros(64, 3, 9, 9),
        "features.0.bias": torch.zeros(63),
        "features.3.weight": torch.zeros(128, 64, 3, 3),
        "layer9.weight": torch.zeros(2),
    }
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(UserError) as caught:
        featviz.load("alexnet-mini", weights=tmp_path / "w.safetensors")
    text = str(caught.value)
    assert "\n" not in text
    assert "features.0.bias is 63, not 64" in text
    assert "features.3.weight is 128x64x3x3, not 128x64x5x5" in text
    assert "and " in text
    # 2 misshapen, 13 missing (of 16 tensors 3 are there), 1 unknown; 6 are written out.
    assert "and 10 more" in text
    assert "give weights of this architecture, or another --model" in text


def test_weights_that_are_no_numbers_are_refused(
    mini_state: dict[str, Tensor], tmp_path: Path
) -> None:
    broken = {name: t.clone() for name, t in mini_state.items()}
    broken["features.3.bias"][0] = float("nan")
    save_file(broken, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=r"NaN or infinite weights \(features\.3\.bias\)"):
        featviz.load("alexnet-mini", weights=tmp_path / "w.safetensors")


def test_caffes_model_is_given_blue_first_in_0_to_255_minus_its_mean() -> None:
    model = featviz.load("alexnet-2012")
    red = torch.zeros(1, 3, 227, 227)
    red[:, 0] = 1
    given = model.normalize(red)[0, :, 0, 0]
    assert given.tolist() == pytest.approx([0 - 104.007, 0 - 116.669, 255 - 122.679], abs=1e-3)


def test_a_trunk_without_a_head_has_features_and_says_so_of_logits(
    mini_state: dict[str, Tensor], tmp_path: Path
) -> None:
    trunk = {name: t for name, t in mini_state.items() if name.startswith("features.")}
    save_file(trunk, tmp_path / "trunk.safetensors")
    model = featviz.load("alexnet-mini", weights=tmp_path / "trunk.safetensors")
    complete = AlexNetMini(num_classes=5).eval()
    complete.load_state_dict(mini_state)
    found = featviz.activations(model, picture(), ["pool5"])["pool5"]
    assert torch.allclose(found, complete.features(model.normalize(picture())), atol=1e-6)
    line = "are a trunk without a head: it has features but no logits"
    with pytest.raises(UserError, match=line):
        model(picture())
    with pytest.raises(UserError, match=line):
        model.layer("logits")
    with pytest.raises(UserError, match=line):
        parse_unit(model, "logits:1")


def test_unknown_models_have_their_nearest_names() -> None:
    with pytest.raises(UserError, match=r"unknown model 'alexnet-miny'; did you mean alexnet-mini"):
        featviz.load("alexnet-miny")
    with pytest.raises(UserError, match=r"unknown model 'resnet19'; did you mean resnet1"):
        featviz.load("resnet19")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_without_cuda_is_one_line() -> None:
    with pytest.raises(UserError, match="--device cuda: torch sees no CUDA device here; use auto"):
        featviz.load("alexnet-mini", device="cuda")


def test_unknown_devices_are_one_line() -> None:
    with pytest.raises(UserError, match="unknown device 'gpu'; take auto, cpu or cuda"):
        featviz.load("alexnet-mini", device="gpu")
    with pytest.raises(UserError, match="--device meta is not supported"):
        featviz.load("alexnet-mini", device="meta")


def test_class_names_come_from_where_they_are_given(
    mini_state: dict[str, Tensor], tmp_path: Path
) -> None:
    path = tmp_path / "w.safetensors"
    save_file(mini_state, path)
    assert featviz.load("alexnet-mini", weights=path).classes[4] == "class 4"
    (tmp_path / "w.classes.txt").write_text("".join(f"n{i}\tbeside {i}\n" for i in range(5)))
    beside = featviz.load("alexnet-mini", weights=path)
    assert (beside.classes[1], beside.synsets[1]) == ("beside 1", "n1")
    names = json.dumps([[f"s{i}", f"inside {i}"] for i in range(5)])
    save_file(mini_state, path, metadata={"classes": names})
    assert featviz.load("alexnet-mini", weights=path).classes[2] == "inside 2"
    (tmp_path / "given.txt").write_text("a\nb\nc\nd, long name\ne\n")
    given = featviz.load("alexnet-mini", weights=path, classes=tmp_path / "given.txt")
    assert given.class_name(3) == "d"
    assert given.class_index("long name") == 3
    (tmp_path / "few.txt").write_text("a\nb\n")
    with pytest.raises(UserError, match="2 class names for a model of 5 classes; give --classes"):
        featviz.load("alexnet-mini", weights=path, classes=tmp_path / "few.txt")
    with pytest.raises(UserError, match="--classes takes a text file"):
        featviz.load("alexnet-mini", weights=path, classes=tmp_path / "absent.txt")


def test_random_weights_come_from_the_seed_and_leave_random_state_alone() -> None:
    state = torch.random.get_rng_state()
    one, same, other = (featviz.load("squeezenet1_1", seed=s) for s in (1, 1, 2))
    assert torch.equal(state, torch.random.get_rng_state())
    assert one.sha256 == same.sha256 != other.sha256


def test_our_alexnet_is_torchvisions_with_the_same_weights() -> None:
    model = featviz.load("alexnet", device="cpu")
    theirs = zoo.construct("alexnet").eval()
    how = zoo.preprocessing("alexnet", theirs)
    assert how == model.preprocessing
    assert (how.size, how.resize) == ((224, 224), 256)
    model.net.load_state_dict(theirs.state_dict())
    x = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (how.mean, how.std))
    with torch.no_grad():
        assert torch.equal(theirs((x - mean) / std), model(x))


def test_loading_imports_neither_torchs_compiler_nor_torchvision() -> None:
    code = """
import sys, featviz
model = featviz.load('alexnet')
assert model.layer('conv5').receptive_field.size == (163, 163)
print([m for m in ('torch._dynamo', 'torchvision', 'matplotlib') if m in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[]\n"


WRONG = {
    "one number": (torch.tensor(1.0), r"features\.3\.bias is a number, not 128"),
    "meta": (torch.zeros(128, device="meta"), r"no weights: features\.3\.bias has no values"),
    "sparse": (torch.zeros(128).to_sparse(), r"features\.3\.bias is sparse \(float32\)"),
    "float8": (torch.zeros(128).to(torch.float8_e5m2), r"is float8_e5m2, not a floating point"),
    "complex": (torch.zeros(128, dtype=torch.complex64), r"is complex64, not a floating point"),
    "integer": (torch.zeros(128, dtype=torch.int64), r"is int64, not a floating point number"),
    "bool": (torch.zeros(128, dtype=torch.bool), r"is bool, not a floating point number"),
    "too large": (torch.full((128,), 1e300, dtype=torch.float64), "NaN or infinite weights"),
}


@pytest.mark.parametrize("kind", WRONG)
@pytest.mark.filterwarnings("ignore:.*sparse:UserWarning")
def test_tensors_that_are_no_weights_are_refused(
    kind: str, mini_state: dict[str, Tensor], tmp_path: Path
) -> None:
    tensor, line = WRONG[kind]
    torch.save(mini_state | {"features.3.bias": tensor}, tmp_path / "w.pth")
    with pytest.raises(UserError, match=line) as caught:
        featviz.load("alexnet-mini", weights=tmp_path / "w.pth")
    assert str(caught.value).isprintable()


def test_finite_weights_without_finite_logits_are_refused(
    mini_state: dict[str, Tensor], tmp_path: Path
) -> None:
    save_file({n: t * 1e30 for n, t in mini_state.items()}, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=r"gives NaN or infinite logits .* too large for float32"):
        featviz.load("alexnet-mini", weights=tmp_path / "w.safetensors")


def test_quantized_weights_are_refused(mini_state: dict[str, Tensor], tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rounded = torch.quantize_per_tensor(torch.zeros(128), 0.1, 0, torch.qint8)
    torch.save(mini_state | {"features.3.bias": rounded}, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"features\.3\.bias is quantized \(qint8\)|is refused"):
        featviz.load("alexnet-mini", weights=tmp_path / "w.pth")


def test_counters_are_whole_numbers_of_any_type(tmp_path: Path) -> None:
    net = zoo.construct("resnet18", num_classes=4)
    state = net.state_dict()
    torch.save(state | {"bn1.num_batches_tracked": torch.tensor(7.0)}, tmp_path / "w.pth")
    model = featviz.load("resnet18", weights=tmp_path / "w.pth", device="cpu")
    assert int(model.net.state_dict()["bn1.num_batches_tracked"]) == 7
    for odd, line in ((torch.tensor(7.5), "no whole number"), (torch.tensor(True), "is bool")):
        torch.save(state | {"bn1.num_batches_tracked": odd}, tmp_path / "w.pth")
        with pytest.raises(UserError, match=line):
            featviz.load("resnet18", weights=tmp_path / "w.pth")


def test_preprocessing_of_another_head_is_assumed_but_for_our_own_architectures(
    tmp_path: Path,
) -> None:
    fields = ("size", "resize", "mean", "std")
    torch.save(AlexNetMini(num_classes=5).state_dict(), tmp_path / "mini.pth")
    torch.save(zoo.construct("resnet18", num_classes=4).state_dict(), tmp_path / "resnet.pth")
    for name, file, assumed in (
        ("alexnet-mini", "mini.pth", ()),
        ("resnet18", "resnet.pth", fields),
    ):
        model = featviz.load(name, weights=tmp_path / file, device="cpu")
        assert model.preprocessing.assumed == assumed
        assert bool(model.notes) == bool(assumed)


@pytest.mark.parametrize(
    ("metadata", "line"),
    [
        ("{}", 'metadata "classes" is .*, no JSON list of names'),
        ("[1, 2, 3, 4, 5]", "no JSON list of names"),
        ('[["a"]]', "no JSON list of names"),
        ("not json", "no JSON list of names"),
        ("[" * 50_000, "no JSON list of names"),
        ('["a", "b"]', "2 class names for a model of 5 classes"),
    ],
)
def test_odd_class_names_in_metadata_are_one_line(
    metadata: str, line: str, mini_state: dict[str, Tensor], tmp_path: Path
) -> None:
    save_file(mini_state, tmp_path / "w.safetensors", {"classes": metadata})
    with pytest.raises(UserError, match=line) as caught:
        featviz.load("alexnet-mini", weights=tmp_path / "w.safetensors")
    assert len(str(caught.value)) < 500


CUT = {
    "alexnet": ("classifier.6", "fc7", "relu7"),
    "alexnet-2012": ("classifier.6", "fc7", "relu7"),
    "alexnet-mini": ("classifier.6", "fc7", "relu7"),
    "resnet18": ("fc", "avgpool", "avgpool"),
    "squeezenet1_1": ("classifier.1", "features", "classifier.0"),
}


@pytest.mark.parametrize("name", CUT)
def test_only_the_layers_whose_weights_are_absent_are_absent(name: str, tmp_path: Path) -> None:
    last, kept, end = CUT[name]
    whole = featviz.load(name, device="cpu", seed=1)
    state = {f"model.{n}": t for n, t in whole.net.state_dict().items()}
    save_file(
        {n: t for n, t in state.items() if not n.startswith(f"model.{last}.")},
        tmp_path / "w.safetensors",
    )
    trunk = featviz.load(name, weights=tmp_path / "w.safetensors", device="cpu")
    assert trunk.headless
    assert list(trunk.layers)[-1] == end
    assert "logits" not in trunk.aliases
    x = torch.rand(1, 3, *whole.input_size)
    for layer in (kept, end):
        ours, theirs = (featviz.activations(m, x, [layer])[layer] for m in (trunk, whole))
        assert torch.equal(ours, theirs)
    assert trunk.notes == (
        "the names in w.safetensors are read without model",
        f"w.safetensors has no weights of {last}: there are no logits",
    )


def test_weights_missing_in_the_middle_are_named(
    mini_state: dict[str, Tensor], tmp_path: Path
) -> None:
    some = {n: t for n, t in mini_state.items() if not n.startswith("classifier.1.")}
    save_file(some, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=r"it has no weights of classifier\.1; give"):
        featviz.load("alexnet-mini", weights=tmp_path / "w.safetensors")
    some = {n: t for n, t in mini_state.items() if not n.startswith("classifier.4.")}
    save_file(some, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=r"of classifier\.4, but of classifier\.6 behind it"):
        featviz.load("alexnet-mini", weights=tmp_path / "w.safetensors")
    some = {n: t for n, t in mini_state.items() if n != "classifier.6.bias"}
    save_file(some, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=r"classifier\.6\.bias is missing"):
        featviz.load("alexnet-mini", weights=tmp_path / "w.safetensors")


def test_one_of_several_sets_is_named_and_another_can_be_taken(
    mini_state: dict[str, Tensor], tmp_path: Path
) -> None:
    mean = {n: t / 2 for n, t in mini_state.items()}
    torch.save({"state_dict": mini_state, "state_dict_ema": mean}, tmp_path / "w.pth")
    model = featviz.load("alexnet-mini", weights=tmp_path / "w.pth")
    assert torch.equal(model.net.state_dict()["features.3.bias"], mini_state["features.3.bias"])
    assert model.notes[0] == (
        "w.pth holds several sets of weights; that of 'state_dict' is taken "
        "(--weights w.pth#state_dict_ema takes another)"
    )
    other = featviz.load("alexnet-mini", weights=f"{tmp_path}/w.pth#state_dict_ema")
    assert torch.equal(other.net.state_dict()["features.3.bias"], mean["features.3.bias"])
    assert not any("several" in note for note in other.notes)
    with pytest.raises(UserError, match=r"no weights under 'ema'; it has state_dict, state_dict_e"):
        featviz.load("alexnet-mini", weights=f"{tmp_path}/w.pth#ema")
