"""`--format peft`: a folder that `peft.PeftModel.from_pretrained(base, FOLDER)` loads, as do vLLM, SGLang and TGI."""

from __future__ import annotations

import copy
from pathlib import Path

from safetensors.torch import save_file

from prlhf.export.person import Person


def write_peft(person: Person, folder: Path) -> None:
    """Write adapter_config.json and adapter_model.safetensors into the existing `folder`."""
    config = copy.copy(person.config)
    config.inference_mode = True
    config.save_pretrained(folder)
    tensors = {name: value.detach().cpu().contiguous() for name, value in person.weights.items()}
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
