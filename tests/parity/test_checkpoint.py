"""The verdict on a checkpoint against a PyTorch model's answers."""

import gzip
import importlib.util
import json
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import save_file

from noah_jax.parity.__main__ import main
from noah_jax.parity.golden_files import read_salt
from noah_jax.pytorch.golden import golden_images, golden_state_dict
from tests.helpers import ROOT

NAME = "noah_deit_tiny_050_patch16_224"
SCRIPT = ROOT / "scripts" / "dump_torch_reference.py"


@pytest.fixture(scope="module")
def case(request, tmp_path_factory) -> tuple[str, dict[str, np.ndarray]]:
    """A checkpoint, and the original's float64 logits for two images."""
    golden = request.config.getoption("golden")
    with gzip.open(golden / "models.json.gz", "rt") as file:
        spec = json.load(file)[NAME]
    salt = read_salt(golden)
    path = tmp_path_factory.mktemp("case") / "model.safetensors"
    save_file(golden_state_dict(spec["state"], spec["gain"], salt), path)
    with np.load(golden / "logits.npz") as file:
        logits = file[NAME]
    logits_float32 = logits + spec["torch_float32_error"] * logits.std()
    return str(path), {
        "images": golden_images(224, 2, salt).transpose(0, 3, 1, 2),
        "logits": logits,
        "logits_float32": logits_float32.astype(np.float32),
    }


def _run(case, tmp_path, **changes) -> int:
    arrays = {k: v for k, v in {**case[1], **changes}.items() if v is not None}
    np.savez(tmp_path / "ref.npz", **arrays)
    return main(["--checkpoint", case[0], "--reference", str(tmp_path / "ref.npz")])


def test_agrees_and_not(case, tmp_path, capsys):
    assert _run(case, tmp_path) == 0
    said = capsys.readouterr().out
    assert "5 times PyTorch's + 2e-06" in said and "100.00 %" in said
    assert said.endswith("\nagrees\n")
    assert _run(case, tmp_path, logits_float32=None) == 0
    assert "limit                                   1.00e-04" in capsys.readouterr().out
    logits = case[1]["logits"]
    wrong = logits + 2e-4 * logits.std() * (np.arange(logits.size) == 7).reshape(logits.shape)
    assert _run(case, tmp_path, logits=wrong, logits_float32=None) == 1
    capsys.readouterr()
    assert _run(case, tmp_path, logits=-logits, logits_float32=-logits) == 1
    assert capsys.readouterr().out.endswith("DOES NOT AGREE\n")


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (dict(images=None), "lacks images, it has logits, logits_float32"),
        (dict(images=np.zeros((2, 224, 224, 3))), "expected [batch, 3, height, width]"),
        (dict(images=np.zeros((2, 3, 64, 64))), "224"),
        (dict(logits=np.zeros((3, 1000))), "logits has shape (3, 1000), expected [2, num_classes]"),
        (dict(logits_float32=np.zeros((2, 10))), "logits_float32 has shape (2, 10)"),
        (dict(logits=np.eye(2), logits_float32=None), "logits of 2 classes, noah_deit_tiny_050"),
        (dict(logits=np.full((2, 1000), np.nan)), "logits is not finite"),
        (dict(logits=np.zeros((2, 1000))), "all logits are equal"),
    ],
)
def test_references_that_do_not_fit(case, changes, problem, tmp_path, capsys):
    assert _run(case, tmp_path, **changes) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ") and problem in said and said.count("\n") == 1


def test_files_that_are_none(case, tmp_path, capsys):
    (tmp_path / "bad.npz").write_text("no")
    for checkpoint, reference, problem in (
        (case[0], tmp_path / "bad.npz", "is not an npz file of plain arrays"),
        (case[0], tmp_path / "none.npz", "is not a file; --reference must be an npz"),
    ):
        assert main(["--checkpoint", str(checkpoint), "--reference", str(reference)]) == 1
        assert problem in capsys.readouterr().err
    for arguments in ([], ["--checkpoint", "a"], ["--golden", "a", "--reference", "b"]):
        assert main(arguments) == 1
        assert "--golden" in capsys.readouterr().err


def test_the_helper_for_pytorch(tmp_path):
    torch = pytest.importorskip("torch")
    spec = importlib.util.spec_from_file_location("dump_torch_reference", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 12, 5))
    script.dump(model, tmp_path / "ref.npz", image_size=(8, 12), batch=3)
    with np.load(tmp_path / "ref.npz") as arrays:
        file = dict(arrays)
    assert file["images"].shape == (3, 3, 8, 12) and file["images"].dtype == np.float32
    assert (file["logits"].dtype, file["logits_float32"].dtype) == (np.float64, np.float32)
    weight, bias = (p.detach().double().numpy() for p in model[1].parameters())
    expected = file["images"].reshape(3, -1).astype(np.float64) @ weight.T + bias
    np.testing.assert_allclose(file["logits"], expected, rtol=1e-12)
    np.testing.assert_allclose(file["logits_float32"], expected, rtol=1e-4, atol=1e-5)
    assert model.training and model[1].weight.dtype == torch.float32
    with pytest.raises(ValueError, match="expected"):
        script.dump(torch.nn.Flatten(0), tmp_path / "ref.npz", image_size=8)


MODELS = """
class Net:  # as a torch.nn.Module, as far as this is looked at
    def eval(self): return self
    def to(self, dtype): return lambda images: (images, images)
    def cpu(self): return self
def make_net(): return Net()
def make_sized(size): return Net()
def make_nothing(): return None
not_callable = 3
"""


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("nets:make_nat", "nets has no function make_nat; did you mean make_net?"),
        ("nets:not_callable", "nets has no function not_callable"),
        ("nots:make_net", "there is no module nots here"),
        ("nets:make_sized", "nets:make_sized needs size; name one without"),
        ("nets:make_nothing", "returns a NoneType, expected a torch.nn.Module"),
        ("nets", "expected MODULE:FUNCTION, got 'nets'"),
    ],
)
def test_a_wrong_function_is_one_line(model, said, tmp_path):
    (tmp_path / "nets.py").write_text(MODELS)
    ran = subprocess.run(
        [sys.executable, str(SCRIPT), model, "ref.npz"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    last = ran.stderr.splitlines()[-1]
    assert ran.returncode in (1, 2) and said in last and "Traceback" not in ran.stderr
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".npz"] == []
