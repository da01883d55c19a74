"""docs/screenshots know which weights they show."""
import sys
from pathlib import Path

import pytest

root = Path(__file__).resolve().parents[1]
if not (root / "tools" / "screenshots.py").exists():
    pytest.skip("no sources here", allow_module_level=True)
sys.path.insert(0, str(root / "tools"))
import screenshots  # noqa: E402


def test_older_weights_are_named():
    now = screenshots.now()
    assert set(now) == set(screenshots.SHOWN) and len(set(now.values())) == 3
    assert screenshots.older(dict(weights=now), now) == []
    assert screenshots.older(dict(weights=now | dict(nano_vae="x")), now) == ["nano_vae"] and screenshots.older({}, now) == list(now)


def test_the_command_says_so(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["screenshots.py", "--check"])
    monkeypatch.setattr(screenshots, "now", lambda: {"nano_student": "other"})
    assert screenshots.main() == 1 and "older than nano_student: make screenshots" in capsys.readouterr().out
