"""`make audit`: a hole is an error, no network is not."""
import subprocess
import sys
from pathlib import Path

import pytest

root = Path(__file__).resolve().parents[1]
if not (root / "tools" / "audit.py").exists():
    pytest.skip("no sources here", allow_module_level=True)
sys.path.insert(0, str(root / "tools"))
from audit import audit  # noqa: E402


def answering(code, out="", err=""):
    return lambda command, **_: subprocess.CompletedProcess(command, code, out, err)


@pytest.mark.parametrize("code, out, err, want, word", [
    (0, "", "No known vulnerabilities found", 0, "No known"),
    (1, "Found 1 known vulnerability in 1 package\npillow 9.0 PYSEC-1", "", 1, "pillow"),
    (1, "", "requests.exceptions.ConnectionError: HTTPSConnectionPool: Max retries exceeded", 0, "not checked"),
    (1, "Found 1 known vulnerability in 1 package", "ConnectionError on the way", 1, "Found"),
    (1, "", "No module named pip_audit", 2, "pip install pip-audit"),
])
def test_what_it_makes_of_an_answer(code, out, err, want, word):
    got, said = audit("constraints.txt", answering(code, out, err))
    assert got == want and word in said


def test_no_answer_at_all():
    def late(command, **_): raise subprocess.TimeoutExpired(command, 1)
    assert audit("constraints.txt", late)[0] == 0
