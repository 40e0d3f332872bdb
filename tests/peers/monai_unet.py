"""A plain MONAI U-Net with residual units on exported cases, in its own environment: `python monai_unet.py FOLDER`
(run.py calls it).

Reads given.npz and settings.json of FOLDER. Trains one run a level. Writes about.json, and of each run steps<N>.npz:
probabilities of the test cases, and CPU-seconds."""
import json
import math
import resource
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from monai.data import DataLoader, Dataset
from monai.losses import DiceCELoss
from monai.networks.nets import UNet
from monai.transforms import Compose, RandAffined, RandFlipd, RandRotate90d
from monai.utils import set_determinism

PLACE = Path(sys.argv[1]).resolve()
SETTINGS = json.loads((PLACE / "settings.json").read_text())
BATCH, RATE, CHANNELS = 8, 1e-3, (16, 32, 64, 128, 256)
BOTH = ("image", "mask")


def batches(images: np.ndarray, masks: np.ndarray, steps: int):
    "Flips and quarter turns, and for half of the images a rotation, scaling and shift, as the kit's `standard`"
    shift = .1 * images.shape[-1]
    changes = Compose([*(RandFlipd(BOTH, prob=.5, spatial_axis=axis) for axis in (0, 1)),
                       RandRotate90d(BOTH, prob=.5, max_k=1),
                       RandAffined(BOTH, prob=.5, rotate_range=math.pi, scale_range=(-.22, .28), translate_range=shift,
                                   mode=("bilinear", "nearest"), padding_mode=("border", "zeros"))])
    data = Dataset([dict(image=x.astype(np.float32), mask=y[None].astype(np.float32)) for x, y in zip(images, masks)],
                   changes)
    order = torch.utils.data.RandomSampler(data, num_samples=steps * BATCH,
                                           generator=torch.Generator().manual_seed(SETTINGS["seed"]))
    return DataLoader(data, batch_size=BATCH, sampler=order, num_workers=0)


def used() -> float:
    return sum(t.ru_utime + t.ru_stime
               for t in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))


def trained(given, steps: int) -> tuple[UNet, float]:  # the network and the CPU-seconds of its training
    set_determinism(SETTINGS["seed"])
    net = UNet(2, given["train_images"].shape[1], len(SETTINGS["labels"]),
               CHANNELS, (2,) * (len(CHANNELS) - 1), num_res_units=2)
    loss_of = DiceCELoss(to_onehot_y=True, softmax=True)
    optimiser, warm = torch.optim.AdamW(net.parameters(), RATE), max(1, steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda s: (s + 1) / warm if s < warm
                                                 else .5 * (1 + math.cos(math.pi * (s - warm) / max(1, steps - warm))))
    loader, start = batches(given["train_images"], given["train_masks"], steps), used()
    for batch in loader:
        loss = loss_of(net(batch["image"]), batch["mask"])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step(); schedule.step()
    return net.eval(), used() - start


@torch.inference_mode()
def answers(net: UNet, images: np.ndarray) -> np.ndarray:  # (case, class, row, column)
    return torch.cat([net(torch.from_numpy(images[i:i+16].astype(np.float32))).softmax(1)
                      for i in range(0, len(images), 16)]).numpy()


def main() -> None:
    torch.set_num_threads(SETTINGS["threads"])
    given = {k: v for k, v in np.load(PLACE / "given.npz", allow_pickle=False).items()}
    for level in SETTINGS["levels"]:
        steps = max(1, round(level * SETTINGS["throughput"] / BATCH))
        path = PLACE / "levels.json"  # how many seconds so many steps are
        known = json.loads(path.read_text()) if path.exists() else []
        path.write_text(json.dumps([v for v in known if v[1] != steps] + [[level, steps]]))
        done = PLACE / f"steps{steps}.npz"
        if done.exists(): continue
        net, seconds = trained(given, steps)
        about = dict(parameters=sum(p.numel() for p in net.parameters()),
                     batch=BATCH, network="UNet, two residual units a level", channels=CHANNELS, precision="fp32",
                     optimiser=f"AdamW, rate {RATE}, warm-up over a twentieth of the steps, then a half cosine",
                     loss="DiceCELoss", prediction="without test-time augmentation",
                     validation="none: all training patients are trained on, the last weights are taken",
                     versions={p: version(p) for p in ("monai", "torch", "numpy")})
        (PLACE / "about.json").write_text(json.dumps(about))
        np.savez(done.with_suffix(".part.npz"), answers=answers(net, given["test_images"]), seconds=seconds)
        done.with_suffix(".part.npz").replace(done)


if __name__ == "__main__": main()
