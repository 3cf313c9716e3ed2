"""A contract is enforced at every load: what differs is refused with found, expected and remedy."""

from __future__ import annotations

import dataclasses

import pytest

from domains import contract as contracts
from domains.contract import Channel, Contract, ContractMismatch, adopt, enforce, to_agree_with
from domains.sample import Task


def bands(*names: str, **changes: object) -> Contract:
    channels = tuple(Channel(name, "reflectance x 10000", wavelength_nm=500.0 + i, mean=i, std=1 + i)
                     for i, name in enumerate(names))
    return dataclasses.replace(Contract("satellite", "multispectral", channels, "uint16", (32, 32), unknown=65535.0,
                                        spacing=(10.0, 10.0)), **changes)


def test_a_contract_survives_being_saved(tmp_path):
    contract = bands("B2", "B3", tasks={"water": Task("single_label", ("water",), ("no", "yes"), where={"a": "b"})})
    contracts.save(contract, tmp_path / "contract.json")
    assert contracts.load(tmp_path / "contract.json") == contract


def test_a_contract_of_other_keys_is_refused_in_a_sentence(tmp_path):
    raw = {**dataclasses.asdict(bands("B2")), "channels": [{"kind": "os.system"}]}
    with pytest.raises(ValueError, match=r"contract: found something else \(TypeError\), expected .* Remedy"):
        contracts.from_dict(raw)


def test_the_same_contract_passes_silently():
    assert enforce(bands("B2", "B3"), bands("B2", "B3")) == []


def test_bands_are_mapped_by_name_and_said():
    said = enforce(bands("B4", "B2"), bands("B2", "B3", "B4"), subset_of_channels=True)
    assert said == ["bands mapped by name: B4->2, B2->0; not in the data: B3"]


def test_data_is_normalised_with_the_statistics_of_the_weights():
    weights = bands("B2", "B3", "B4")
    own = adopt(bands("B4", "B2"), weights)
    assert own.names == ("B4", "B2") and own.channels == (weights.channels[2], weights.channels[0])


@pytest.mark.parametrize(("found", "said"), [
    (bands("B2", "B99"), "found B99, expected names among B2, B3"),
    (bands("B2"), "found B2, expected also B3"),
    (bands("B2", "B3", spacing=(30.0, 30.0)), r"found \(30.0, 30.0\), expected \(10.0, 10.0\)"),
    (bands("B2", "B3", spacing=None), "spacing: found None"),
    (bands("B2", "B3", orientation="RAS"), "orientation: found RAS, expected None"),
    (bands("B2", "B3", normalisation="unit_sphere"), "normalisation: found unit_sphere"),
    (bands("B2", "B3", kind="xray", domain="medical"), "found medical/xray, expected satellite/multispectral"),
])
def test_a_difference_is_refused_with_found_expected_and_remedy(found, said):
    with pytest.raises(ContractMismatch, match=said) as refused:
        enforce(found, bands("B2", "B3"))
    assert "emedy:" in str(refused.value)


def test_another_unit_is_refused():
    other = bands("B2")
    other = dataclasses.replace(other, channels=(dataclasses.replace(other.channels[0], unit="radiance"),))
    with pytest.raises(ContractMismatch, match="unit of B2: found radiance, expected reflectance x 10000"):
        enforce(other, bands("B2"))


def test_every_difference_is_said_at_once():
    with pytest.raises(ContractMismatch) as refused:
        enforce(bands("B9", spacing=(30.0, 30.0), orientation="RAS"), bands("B2"))
    assert len(str(refused.value).splitlines()) == 3


def test_a_contract_of_another_format_is_refused():
    with pytest.raises(ValueError, match="found version 99, expected 1"):
        contracts.from_dict({"format_version": 99})


def test_only_an_encoder_of_images_and_volumes_goes_on_with_the_other_of_the_two():
    films = Contract("medical", "xray", (Channel("grey", "grey 0-255"),), "uint8", (64, 64))
    volumes = Contract("medical", "ct", (Channel("HU", "HU"),), "int16", (32, 32, 32), spacing=(2.0, 2.0, 2.0))
    expected, said = to_agree_with(volumes, films, images_and_volumes=True)
    assert expected == volumes and "weights of xray go on with ct" in said[0]
    assert enforce(volumes, expected) == []
    assert to_agree_with(volumes, films) == (films, [])
    assert to_agree_with(dataclasses.replace(films, size=(32, 32)), films, images_and_volumes=True) == (films, [])
    assert to_agree_with(bands("B2"), volumes, images_and_volumes=True) == (volumes, [])
