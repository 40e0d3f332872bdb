"Packaging from settings.ini: the one place that holds name, version and requirements."
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

cfg = ConfigParser(delimiters=["="])
cfg.read(Path(__file__).parent / "settings.ini", encoding="utf-8")
cfg = cfg["DEFAULT"]
extras = {name: cfg[f"{name}_requirements"].split()
          for name in ("study", "deploy", "hospital", "app", "cluster", "dev")}

setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=(Path(__file__).parent / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=cfg["author"],
    license="Apache-2.0",
    packages=find_packages(include=["medseg_nb", "medseg_nb.*"]),
    python_requires=f">={cfg['min_python']}",
    install_requires=cfg["requirements"].split(),
    extras_require={**extras, "all": sum(extras.values(), [])},
    entry_points={"console_scripts": ["medseg = medseg_nb.cli:main"]},
    zip_safe=False,
)
