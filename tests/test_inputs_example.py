"""The example of the input audit finds in real architectures what their code shows."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from pathlib import Path
from types import ModuleType

import pytest

transformers = pytest.importorskip("transformers")

PROGRAM = Path(__file__).parents[1] / "examples" / "inputs.py"


@pytest.fixture(scope="module")
def program() -> ModuleType:
    specification = importlib.util.spec_from_file_location("inputs_example", PROGRAM)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module
    specification.loader.exec_module(module)
    return module


def test_what_is_found_is_what_the_code_shows(program: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    found = {name: {(f.module_class, f.argument): f for f in findings} for name, findings in program.main([]).items()}
    assert set(found["swin"]) == {("Swinv2SelfOutput", "input_tensor")}
    assert set(found["whisper"]) == {("WhisperModel", "attention_mask"), ("WhisperPositionalEmbedding", "input_ids")}
    assert set(found["llama"]) == {("LlamaRotaryEmbedding", "x"), ("LlamaAttention", "kwargs['position_ids']")}
    assert all(finding.confirmed for findings in found.values() for finding in findings.values())
    printed = capsys.readouterr().out
    assert "'swinv2.encoder.layers.0.blocks.0.attention.output' (Swinv2SelfOutput)" in printed
    assert "The same in 3 more of its class" in printed
    assert found["whisper"]["WhisperModel", "attention_mask"].message in printed

    from transformers.models.swinv2 import modeling_swinv2

    code = inspect.getsource(modeling_swinv2.Swinv2SelfOutput.forward)
    assert code.count("input_tensor") == 1, "the argument stands in the signature alone"
    file, line = found["swin"]["Swinv2SelfOutput", "input_tensor"].source
    assert file == modeling_swinv2.__file__
    assert "def forward" in Path(file).read_text(encoding="utf-8").splitlines()[line - 1]


def test_an_unknown_model_is_refused(program: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        program.main(["bert"])
    assert "'bert' is no model of this example. Known: swin, whisper, llama." in capsys.readouterr().err
