"""Thin setup.py: every fact comes from settings.ini; data/samples travels inside the wheel."""
import shutil
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

here = Path(__file__).resolve().parent
parser = ConfigParser(delimiters=["="])
parser.read(here / "settings.ini", encoding="utf-8")
cfg = parser["DEFAULT"]
lib = cfg["lib_path"]
readme = here / "README.md"
samples = here / "data" / "samples"


class build_with_samples(build_py):
    "Copy data/samples into the package as `_samples`; an editable install reads the folder itself."

    def run(self):
        super().run()
        if not getattr(self, "editable_mode", False) and samples.is_dir():
            shutil.copytree(samples, Path(self.build_lib) / lib / "_samples", dirs_exist_ok=True)


setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=readme.read_text(encoding="utf-8") if readme.exists() else cfg["description"],
    long_description_content_type="text/markdown",
    author=cfg["author"],
    author_email=cfg["author_email"],
    url=cfg["git_url"],
    license="Apache-2.0",
    keywords=cfg["keywords"].split(),
    python_requires=f">={cfg['min_python']}",
    packages=find_packages(include=[lib, f"{lib}.*"]),
    package_data={lib: ["weights/*.safetensors", "weights/*.json", "demo/js/*", "data/*.npz"]},
    install_requires=cfg["requirements"].split(),
    extras_require={extra: cfg[f"{extra}_requirements"].split() for extra in ("dev", "gpu", "tts", "wan", "demo", "export", "serve", "talk", "voices", "pipecat", "livekit", "ray", "compose")},
    entry_points={
        "console_scripts": [f"liveavatar-nb={lib}.cli:main"],
        "nbdev": [f"{lib}={lib}._modidx:d"],
    },
    cmdclass={"build_py": build_with_samples},
    zip_safe=False,
)
