"""Settings: a wrong one refuses the start and is named."""

from pathlib import Path

import pytest

from service.settings import Settings, SettingsError, is_loopback, read_settings


def test_defaults_serve_the_embedded_artifacts_to_this_machine_only() -> None:
    settings = read_settings()
    assert settings.host == "127.0.0.1"
    assert settings.models[0].name == "artifacts"
    assert settings.max_request_rows >= 4096


def test_environment_sets_and_the_command_line_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOW_PORT", "9000")
    monkeypatch.setenv("GLOW_MODELS", "a.pt:b")
    assert read_settings().port == 9000
    assert read_settings().models == [Path("a.pt"), Path("b")]
    assert read_settings(port=9001).port == 9001


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("GLOW_PORT", "http", "GLOW_PORT: Input should be a valid integer"),
        ("GLOW_PORT", "70000", "GLOW_PORT: Input should be less than or equal to 65535, got '70000'"),
        ("GLOW_DEADLINE_S", "0", "GLOW_DEADLINE_S: Input should be greater than 0"),
        ("GLOW_DEVICE", "gpu", "GLOW_DEVICE: Input should be 'auto', 'cpu' or 'cuda', got 'gpu'"),
        ("GLOW_MODELS", "", "GLOW_MODELS: List should have at least 1 item"),
        ("GLOW_ALLOW_ANONYMOUS", "maybe", "GLOW_ALLOW_ANONYMOUS: Input should be a valid boolean"),
        ("GLOW_HOST", "0.0.0.0", "'0.0.0.0' is a public address: set GLOW_API_KEYS_FILE"),
        ("GLOW_MAX_QUEUE_ROWS", "100", "max_queue_rows (100) must be at least max_request_rows (4096)"),
        ("GLOW_PROT", "1", "GLOW_PROT: no such setting"),
    ],
)
def test_a_wrong_setting_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as raised:
        read_settings()
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_public_address_needs_consent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOW_ALLOW_ANONYMOUS", "true")
    assert read_settings(host="0.0.0.0").host == "0.0.0.0"


def test_loopback_addresses_are_told_from_public_ones() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.1.2.3", "::1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "10.0.0.1", "example.org")))


def test_every_setting_is_described_and_bounded() -> None:
    for name, field in Settings.model_fields.items():
        assert field.description, name
        if field.annotation in (int, float):
            assert field.metadata, f"{name} has no range"
