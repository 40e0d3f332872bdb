"""nnU-Net v2 (2D) on exported cases, in its own environment: `python nnunet.py FOLDER` (run.py calls it).

Reads given.npz and settings.json of FOLDER. Trains one run a level, resumably, epoch by epoch. Writes about.json, and
of each run steps<N>.npz: probabilities of the test cases, and CPU-seconds."""
import json
import os
import random
import resource
import sys
from importlib.metadata import version
from pathlib import Path

PLACE = Path(sys.argv[1]).resolve()
SETTINGS = json.loads((PLACE / "settings.json").read_text())
NAME = "Dataset501_peer"
os.environ |= ({f"nnUNet_{k}": str(PLACE / k) for k in ("raw", "preprocessed")}
               | dict(nnUNet_n_proc_DA="1", nnUNet_def_n_proc="1"))

import numpy as np
import torch
from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments, preprocess
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from skimage.io import imsave


def planned(given) -> tuple[dict, dict]:
    "nnU-Net's own plan for the training cases, which are prepared by it; all of them are trained on"
    raw, done = PLACE / "raw" / NAME, PLACE / "preprocessed" / NAME
    if not (PLACE / "planned").exists():
        for part in ("imagesTr", "labelsTr"): (raw / part).mkdir(parents=True, exist_ok=True)
        for k, (image, mask) in enumerate(zip(given["train_images"], given["train_masks"])):
            for c, channel in enumerate(image):
                imsave(raw / "imagesTr" / f"case{k:04}_{c:04}.tif",
                       255 * channel.astype(np.float32), check_contrast=False)
            imsave(raw / "labelsTr" / f"case{k:04}.tif", mask.astype(np.uint8), check_contrast=False)
        channels = {str(c): f"channel {c}" for c in range(given["train_images"].shape[1])}
        facts = dict(channel_names=channels, labels=SETTINGS["labels"], numTraining=len(given["train_images"]),
                     file_ending=".tif", overwrite_image_reader_writer="NaturalImage2DIO")
        (raw / "dataset.json").write_text(json.dumps(facts))
        extract_fingerprints([501], num_processes=1, show_progress_bar=False)
        plan_experiments([501])
        preprocess([501], configurations=["2d"], num_processes=[1], show_progress_bar=False)
        (PLACE / "planned").touch()
    return tuple(json.loads((done / name).read_text()) for name in ("nnUNetPlans.json", "dataset.json"))


def used() -> float:
    return sum(t.ru_utime + t.ru_stime
               for t in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))


class Shortened(nnUNetTrainer):
    """The default trainer with a schedule of so many steps, seeded by epoch, so that a continued run equals an
    uninterrupted one; nothing is validated, as all patients are trained on"""
    def __init__(self, plans, configuration, fold, dataset_json, device):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs, self.num_val_iterations_per_epoch, self.save_every = SETTINGS["epochs"], 0, 1
        self.logger.plot_progress_png = lambda *_: None
        self.spent, self.start = [], 0.  # CPU-seconds of each epoch

    def on_train_start(self):
        self.start = used()
        super().on_train_start()

    def on_train_epoch_start(self):
        for seed in (random.seed, np.random.seed, torch.manual_seed): seed(1000 * SETTINGS["seed"] + self.current_epoch)
        super().on_train_epoch_start()

    def on_validation_epoch_end(self, val_outputs):
        for name, value in dict(mean_fg_dice=0., dice_per_class_or_region=[0.], val_losses=0.).items():
            self.logger.log(name, value, self.current_epoch)

    def on_epoch_end(self):
        super().on_epoch_end()
        self.spent.append(used() - self.start)
        self.start = used()
        write_json(Path(self.output_folder_base) / "spent.json", self.spent)


def note_level(level: float, steps: int) -> None:
    "How many seconds so many steps are"
    path = PLACE / "levels.json"
    known = json.loads(path.read_text()) if path.exists() else []
    write_json(path, [v for v in known if v[1] != steps] + [[level, steps]])


def write_json(path: Path, what: object) -> None:
    path.with_suffix(".part").write_text(json.dumps(what))
    path.with_suffix(".part").replace(path)


def trained(plans: dict, facts: dict, iterations: int, place: Path) -> Shortened:
    "A trained network; what an earlier call did of it is kept"
    # batches are made by the process that trains, so that its time is the whole cost; the planner does not take a 0
    os.environ |= dict(nnUNet_results=str(place), nnUNet_n_proc_DA="0")
    torch.manual_seed(1000 * SETTINGS["seed"])
    base = place / NAME / "Shortened__nnUNetPlans__2d"
    latest, over = (base / "fold_all" / f"checkpoint_{name}.pth" for name in ("latest", "final"))
    kept = next((p for p in (over, latest) if p.exists()), None)
    trainer = Shortened(plans | dict(continue_training=kept is not None), "2d", "all", facts, torch.device("cpu"))
    trainer.num_iterations_per_epoch = iterations
    trainer.initialize()
    if kept:
        trainer.load_checkpoint(str(kept))
        trainer.spent = json.loads((base / "spent.json").read_text())[:trainer.current_epoch]
    if kept != over: trainer.run_training()
    return trainer


def answers(trainer: Shortened, facts: dict, images: np.ndarray) -> np.ndarray:  # (case, class, row, column)
    "Probabilities by nnU-Net's own predictor: its preprocessing, windows and mirroring"
    trainer.set_deep_supervision_enabled(False)
    predictor = nnUNetPredictor(use_mirroring=True, perform_everything_on_device=False,
                                device=torch.device("cpu"), allow_tqdm=False)
    axes = trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()[-1]
    weights = {k: v.clone() for k, v in trainer.network.state_dict().items()}
    predictor.manual_initialization(trainer.network.eval(), trainer.plans_manager,
                                    trainer.configuration_manager, [weights], facts, "Shortened", axes)
    return np.stack(
        [predictor.predict_single_npy_array(255 * x[:, None].astype(np.float32),
                                            dict(spacing=(999, 1, 1)), None, None, True)[1][:, 0] for x in images])


def main() -> None:
    given = {k: v for k, v in np.load(PLACE / "given.npz", allow_pickle=False).items()}
    plans, facts = planned(given)
    plan = plans["configurations"]["2d"]
    torch.set_num_threads(SETTINGS["threads"])
    for level in SETTINGS["levels"]:
        iterations = max(
            1, round(level * SETTINGS["throughput"] / plan["batch_size"] / SETTINGS["epochs"]))
        steps = iterations * SETTINGS["epochs"]
        note_level(level, steps)
        done = PLACE / f"steps{steps}.npz"
        if done.exists(): continue
        trainer = trained(plans, facts, iterations, PLACE / f"steps{steps}")
        about = dict(parameters=sum(p.numel() for p in trainer.network.parameters()), batch=plan["batch_size"],
                     patch=plan["patch_size"], normalise=plan["normalization_schemes"],
                     network=plan["architecture"]["network_class_name"].split(".")[-1],
                     channels=plan["architecture"]["arch_kwargs"]["features_per_stage"], precision="fp32",
                     optimiser="SGD, Nesterov momentum 0.99, weight decay 3e-5, rate 0.01 falling towards zero by a "
                     "power of 0.9 from epoch to epoch",
                     validation="none: all training patients are trained on, the last weights are taken",
                     prediction="its own predictor, mirrored along both axes",
                     versions={p: version(p) for p in ("nnunetv2", "torch", "numpy", "batchgenerators",
                                                       "batchgeneratorsv2", "dynamic-network-architectures")})
        write_json(PLACE / "about.json", about)
        np.savez(done.with_suffix(".part.npz"), answers=answers(trainer, facts, given["test_images"]),
                 seconds=sum(trainer.spent))
        done.with_suffix(".part.npz").replace(done)


if __name__ == "__main__": main()
