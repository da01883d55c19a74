"""Known holes in the pinned packages: pip-audit over constraints.txt. Without the network it says so and is content; a hole ends it with 1.

    python tools/audit.py [FILE]"""
import re
import subprocess
import sys
from pathlib import Path

root = Path(__file__).resolve().parents[1]
OFFLINE = re.compile(r"ConnectionError|Max retries|NameResolution|ProxyError|timed out|Temporary failure|ServiceError|Connection refused|HTTPError", re.I)


def audit(requirements, run=subprocess.run):
    "(exit code, what to print) of one audit; network trouble is no finding."
    command = [sys.executable, "-m", "pip_audit", "--no-deps", "--disable-pip", "--progress-spinner", "off", "--timeout", "15", "-r", str(requirements)]
    try:
        done = run(command, capture_output=True, text=True, timeout=300)
    except subprocess.TimeoutExpired:
        return 0, "not checked: no answer from the advisory service"
    said = (done.stdout + done.stderr).strip()
    if done.returncode == 0:
        return 0, said or "no known vulnerabilities found"
    if "No module named pip_audit" in said:
        return 2, "pip-audit isn't installed: python -m pip install pip-audit"
    if OFFLINE.search(said) and "Found" not in said:
        return 0, "not checked: the advisory service can't be reached (" + said.splitlines()[-1][:160] + ")"
    return 1, said


if __name__ == "__main__":
    code, said = audit(sys.argv[1] if len(sys.argv) > 1 else root / "constraints.txt")
    print(said)
    sys.exit(code)
