"Packaging from settings.ini, the one place that holds name, version and requirements; a wheel carries notebooks and plans."
import shutil
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent
EXTRAS = ("study", "paper", "deploy", "serve", "hospital", "stream", "app", "site", "radiomics", "cluster", "dev")
SHIPPED = ("nbs/*.yaml", "nbs/study/*.ipynb", "nbs/claims/*", "nbs/paper/*", "nbs/course/images/*",
           "nbs/course/images/*/*", "data_manifests/*/*", "models/*/*",
           "reports/peers/agreement/cases.csv.xz")  # what the kit looks up outside of its modules

cfg = ConfigParser(delimiters=["="])
cfg.read(HERE / "settings.ini", encoding="utf-8")
cfg = cfg["DEFAULT"]
extras = {name: cfg[f"{name}_requirements"].split() for name in EXTRAS}
extras["paper"] = extras["study"] + extras["paper"]


class BuildWithTables(build_py):
    "Modules, and below medseg_nb/shipped/ the files that they read"
    def run(self):
        super().run()
        if self.editable_mode: return
        for path in (p for pattern in SHIPPED for p in HERE.glob(pattern) if p.is_file()):
            target = Path(self.build_lib) / "medseg_nb" / "shipped" / path.relative_to(HERE)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)


setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=cfg["author"],
    license="Apache-2.0",
    packages=find_packages(include=["medseg_nb", "medseg_nb.*"]),
    package_data={"medseg_nb.deployment": ["pages/*"]},
    cmdclass={"build_py": BuildWithTables},
    python_requires=f">={cfg['min_python']}",
    install_requires=cfg["requirements"].split(),
    extras_require={**extras, "all": sum(extras.values(), [])},
    entry_points={"console_scripts": ["medseg = medseg_nb.cli:main"]},
    zip_safe=False,
)
