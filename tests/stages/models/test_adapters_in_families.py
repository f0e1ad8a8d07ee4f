"""Adapters in every family: in its language model alone, of use to the forward pass, and merged without a trace."""

import pytest
import torch
from tests.stages.models.world import ALL, TURNS, folder_of, sample
from torch import nn

from betakd_stages.models.adapters import add_adapter, base_placement, merge_adapter
from betakd_stages.models.forward import answer_rows
from betakd_stages.models.loading import load_model
from betakd_stages.models.parts import freeze, parameters_by_part
from betakd_stages.settings.adapters import AdapterSettings


@pytest.mark.parametrize("kind", ["lora", "qlora"])
@pytest.mark.parametrize("family", ALL)
def test_adapters_change_what_the_language_model_says_and_stay_after_merging(family: str, kind: str) -> None:
    settings = AdapterSettings.model_validate({"kind": kind, "rank": 2})
    loaded = load_model(folder_of(family), placement=base_placement(settings, "fp32"))
    model, batch = loaded.model.eval(), loaded.encoder.collate([loaded.encoder.encode(sample(TURNS))])
    names = load_model(folder_of(family)).model.state_dict().keys()
    freeze(model, train_vision_tower=False, train_projector=True)
    before = {part: set(parameters) for part, parameters in parameters_by_part(model).items()}
    with torch.no_grad():
        plain = answer_rows(model, batch).hidden
        add_adapter(model, settings)
        unchanged = answer_rows(model, batch).hidden
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.1)
        adapted = answer_rows(model, batch).hidden
    parts = parameters_by_part(model)
    assert torch.equal(unchanged, plain)
    assert parts["projector"].keys() == before["projector"]
    assert parts["vision tower"].keys() == before["vision tower"]
    trained = {name for name, parameter in parts["language"].items() if parameter.requires_grad}
    assert trained == {name for name in parts["language"] if "lora_" in name}
    assert all(parameter.requires_grad for parameter in parts["projector"].values())
    merge_adapter(model)
    with torch.no_grad():
        merged = answer_rows(model, batch).hidden
    assert (adapted - plain).abs().max() > 1e-2
    assert (merged - adapted).abs().max() < 1e-4
    assert model.state_dict().keys() == names
