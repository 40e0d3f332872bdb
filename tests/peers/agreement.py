# /// script
# requires-python = ">=3.11"
# dependencies = ["numpy<2", "scipy<1.16", "pandas<3", "pyyaml", "platformdirs", "torch", "monai==1.6.0",
# "torchmetrics==1.9.0", "pycocotools", "surface-distance==0.1", "panoptica==2.1.7",
#                 "medpy==0.5.2", "SimpleITK==2.5.7", "scikit-image<0.26"]
# ///
"""The same masks through this kit and through other tools, in an environment of its own:
`uv run tests/peers/agreement.py`.

Writes reports/peers/agreement/cases.csv.xz, one row a pair of masks, metric and call, and versions.json. Ends with code
1 if a difference has no stated reason."""
import contextlib
import importlib.metadata
import io
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import pandas as pd
import panoptica
import SimpleITK as sitk
import skimage.measure
import skimage.metrics
import surface_distance
import torch
from medpy.metric import binary as medpy
from monai import metrics as monai
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from panoptica import InputType, Metric, NaiveThresholdMatching, Panoptica_Evaluator
from torchmetrics.functional import classification, segmentation
from torchmetrics.functional.detection import panoptic_quality

from medseg_nb.study.metrics import Pair, numbers_agree, compute_kit_metrics, list_agreement_pairs
from medseg_nb.kit.core import folder, to_json, write
from medseg_nb.evaluation.surface_distances import outline_indices
from medseg_nb.evaluation.matching import instance_masks
from medseg_nb.evaluation.metrics import CALIBRATION_BINS, TOLERANCE
from medseg_nb.kit.report import write_rows

PACKAGES = ("monai", "torchmetrics", "pycocotools",
            "surface-distance", "panoptica", "medpy", "SimpleITK", "scikit-image", "torch", "numpy", "scipy")
Calls = Iterator[tuple[str, str, Callable]]  # our metric, what is called there, the call


def one_hot(mask: np.ndarray) -> torch.Tensor: return torch.from_numpy(np.stack([~mask, mask])[None].astype(np.int64))


def from_monai(pair: Pair) -> Calls:
    if pair.kind == "instances":
        p, t = (torch.from_numpy(x) for x in (pair.pred, pair.truth))
        for m in ("pq", "sq", "rq"):
            yield m, "compute_panoptic_quality", lambda m=m: monai.compute_panoptic_quality(p, t, metric_name=m)
    if pair.kind == "probabilities" and pair.pred.ndim == 2:
        yield "calibration_error", "calibration_binning", lambda: monai_calibration(pair)
    if pair.kind != "mask": return
    p, t, s = one_hot(pair.pred), one_hot(pair.truth), pair.spacing
    yield "dice", "compute_dice", lambda: monai.compute_dice(p, t, include_background=False)
    yield "dice", "compute_dice(ignore_empty=False)", lambda: monai.compute_dice(
        p, t, include_background=False, ignore_empty=False)
    yield "iou", "compute_iou", lambda: monai.compute_iou(p, t, include_background=False)
    for m in ("accuracy", "sensitivity", "specificity", "precision"):
        yield m, "compute_confusion_matrix_metric", lambda m=m: monai.compute_confusion_matrix_metric(
            m, monai.get_confusion_matrix(p, t, include_background=False))
    yield "hausdorff", "compute_hausdorff_distance", lambda: monai.compute_hausdorff_distance(p, t, spacing=s)
    yield "hd95", "compute_hausdorff_distance(percentile=95)", lambda: monai.compute_hausdorff_distance(
        p, t, percentile=95, spacing=s)
    yield "assd", "compute_average_surface_distance(symmetric=True)", lambda: monai.compute_average_surface_distance(
        p, t, symmetric=True, spacing=s)
    yield "nsd", "compute_surface_dice", lambda: monai.compute_surface_dice(
        p, t, class_thresholds=[TOLERANCE], spacing=s)
    yield "nsd_surfel", "compute_surface_dice(use_subvoxels=True)", lambda: monai.compute_surface_dice(
        p, t, class_thresholds=[TOLERANCE], spacing=s, use_subvoxels=True)


def monai_calibration(pair: Pair) -> float:
    p, t, n = (x[0, 0] for x in monai.calibration_binning(torch.from_numpy(pair.pred)[None, None],
                                                          torch.from_numpy(pair.truth)[None, None].double(),
                                                          num_bins=CALIBRATION_BINS))
    return float(torch.nansum(n * (p - t).abs()) / n.sum())


def from_torchmetrics(pair: Pair) -> Calls:
    p, t = torch.from_numpy(pair.pred.copy()), torch.from_numpy(pair.truth.copy())
    if pair.kind == "instances":
        def panoptic(k):
            both = [torch.stack([(x > 0).int(), x], -1)[None] for x in (p, t)]
            return panoptic_quality(*both, things={1}, stuffs={0}, return_sq_and_rq=True, return_per_class=True)[0, k]
        for k, m in enumerate(("pq", "sq", "rq")): yield m, "panoptic_quality", lambda k=k: panoptic(k)
    if pair.kind == "probabilities" and pair.pred.ndim == 2:
        yield "calibration_error", "binary_calibration_error", lambda: classification.binary_calibration_error(
            p, t.int(), n_bins=CALIBRATION_BINS)
    if pair.kind == "probabilities" and pair.pred.ndim == 3:
        yield "calibration_error", "multiclass_calibration_error", lambda: classification.multiclass_calibration_error(
            p[None], t[None], num_classes=3, n_bins=CALIBRATION_BINS)
    if pair.kind != "mask": return
    x, y = p.int(), t.int()
    for m, f in [("dice", "binary_f1_score"), ("iou", "binary_jaccard_index"), ("accuracy", "binary_accuracy"),
                 ("sensitivity", "binary_recall"), ("specificity", "binary_specificity"),
                 ("precision", "binary_precision")]: yield m, f, lambda f=f: getattr(classification, f)(x, y)
    yield "dice", "dice_score", lambda: segmentation.dice_score(
        one_hot(pair.pred), one_hot(pair.truth), num_classes=2, include_background=False)
    yield "iou", "mean_iou", lambda: segmentation.mean_iou(one_hot(pair.pred),
                                                           one_hot(pair.truth), num_classes=2, include_background=False)
    yield "hausdorff", "hausdorff_distance", lambda: segmentation.hausdorff_distance(
        one_hot(pair.pred), one_hot(pair.truth), num_classes=2, spacing=list(pair.spacing))


def from_pycocotools(pair: Pair) -> Calls:
    if pair.kind != "instances": return
    def found(labels):
        return [dict(id=k, image_id=1, category_id=1, iscrowd=0, area=float(m.sum()), score=1.,
                     segmentation=rle.encode(np.asfortranarray(m, np.uint8)))
                for k, m in enumerate(instance_masks(labels), 1)]
    def precision():
        truth, guess = COCO(), COCO()
        for c, labels in ((truth, pair.truth), (guess, pair.pred)):
            c.dataset = dict(images=[dict(id=1, height=labels.shape[0], width=labels.shape[1])],
                             categories=[dict(id=1)], annotations=found(labels)); c.createIndex()
        run = COCOeval(truth, guess, "segm")
        run.params.iouThrs, run.params.maxDets = np.array([.5]), [1000]
        run.evaluate(); run.accumulate()
        return run.eval["precision"][0, :, 0, 0, 0].mean()
    yield "average_precision", "COCOeval(segm)", precision


def from_surface_distance(pair: Pair) -> Calls:
    if pair.kind != "mask": return
    def distances(): return surface_distance.compute_surface_distances(pair.truth, pair.pred, pair.spacing)
    def mean():
        d = distances()
        return (sum((d[f"distances_{a}"] * d[f"surfel_areas_{b}"]).sum()
                    for a, b in (("gt_to_pred", "gt"), ("pred_to_gt", "pred")))
                / sum(d[f"surfel_areas_{b}"].sum() for b in ("gt", "pred")))
    for m in ("hd95_surfel", "hd95"):
        yield m, "compute_robust_hausdorff(95)", lambda: surface_distance.compute_robust_hausdorff(distances(), 95)
    yield "hausdorff", "compute_robust_hausdorff(100)", lambda: surface_distance.compute_robust_hausdorff(
        distances(), 100)
    for m in ("assd_surfel", "assd"): yield m, "both averages of compute_surface_distances, by area", mean
    for m in ("nsd_surfel", "nsd"):
        yield m, "compute_surface_dice_at_tolerance", lambda: surface_distance.compute_surface_dice_at_tolerance(
            distances(), TOLERANCE)
    yield "dice", "compute_dice_coefficient", lambda: surface_distance.compute_dice_coefficient(pair.truth, pair.pred)


def from_panoptica(pair: Pair) -> Calls:
    def evaluate(kind, **given):
        evaluator = Panoptica_Evaluator(expected_input=kind,
                                        instance_matcher=NaiveThresholdMatching(matching_threshold=.5),
                                        instance_metrics=[Metric.IOU], **given)
        return evaluator.evaluate(pair.pred.astype(np.int32),
                                  pair.truth.astype(np.int32), voxelspacing=pair.spacing, verbose=False)["ungrouped"]
    if pair.kind == "instances":
        for m in ("pq", "sq", "rq"):
            yield m, "Panoptica_Evaluator", lambda m=m: getattr(
                evaluate(InputType.UNMATCHED_INSTANCE, global_metrics=[]), m)
    if pair.kind != "mask": return
    for m, name in [("dice", "DSC"), ("iou", "IOU"), ("volume_difference", "RVD"),
                    ("hausdorff", "HD"), ("hd95_pooled", "HD95"), ("hd95", "HD95"), ("assd", "ASSD")]:
        yield m, f"global {name}", lambda name=name: getattr(
            evaluate(InputType.UNMATCHED_INSTANCE, global_metrics=[getattr(Metric, name)]),
            f"global_bin_{name.lower()}")


def from_medpy(pair: Pair) -> Calls:
    if pair.kind != "mask": return
    p, t, s = pair.pred, pair.truth, pair.spacing
    for m, f in [("dice", "dc"), ("iou", "jc"), ("precision", "precision"),
                 ("sensitivity", "recall"), ("specificity", "specificity"), ("volume_difference", "ravd")]:
        yield m, f, lambda f=f: getattr(medpy, f)(p, t)
    for m, f in [("hausdorff", "hd"), ("hd95_pooled", "hd95"), ("hd95", "hd95"), ("assd", "assd")]:
        yield m, f, lambda f=f: getattr(medpy, f)(p, t, voxelspacing=s)


def from_simpleitk(pair: Pair) -> Calls:
    if pair.kind != "mask": return
    def image(mask):
        i = sitk.GetImageFromArray(mask.astype(np.uint8)); i.SetSpacing(pair.spacing[::-1])
        return i
    def overlap(name):
        f = sitk.LabelOverlapMeasuresImageFilter(); f.Execute(image(pair.pred), image(pair.truth))
        return getattr(f, name)()
    def distance(name):
        f = sitk.HausdorffDistanceImageFilter(); f.Execute(image(pair.pred), image(pair.truth))
        return getattr(f, name)()
    yield "dice", "GetDiceCoefficient", lambda: overlap("GetDiceCoefficient")
    yield "iou", "GetJaccardCoefficient", lambda: overlap("GetJaccardCoefficient")
    yield "sensitivity", "1 - GetFalseNegativeError", lambda: 1 - overlap("GetFalseNegativeError")
    yield "precision", "1 - GetFalseDiscoveryRate", lambda: 1 - overlap("GetFalseDiscoveryRate")
    yield "volume_difference", "GetVolumeSimilarity", lambda: overlap("GetVolumeSimilarity")
    yield "hausdorff", "GetHausdorffDistance", lambda: distance("GetHausdorffDistance")
    yield "assd", "GetAverageHausdorffDistance", lambda: distance("GetAverageHausdorffDistance")


def from_skimage(pair: Pair) -> Calls:
    if pair.kind != "mask": return
    p, t = pair.pred, pair.truth
    def rims():
        return [np.isin(np.arange(m.size), np.ravel_multi_index(outline_indices(m).T, m.shape)).reshape(m.shape)
                for m in (p, t)]
    def touched(a, b):
        return [r.intensity_max > 0
                for r in skimage.measure.regionprops(skimage.measure.label(a, connectivity=a.ndim),
                                                     intensity_image=b.astype(np.uint8))]
    if len(set(pair.spacing)) == 1:
        yield "hausdorff", "hausdorff_distance of the outlines", lambda: skimage.metrics.hausdorff_distance(
            *rims()) * pair.spacing[0]
        yield "hausdorff", "hausdorff_distance of the masks", lambda: skimage.metrics.hausdorff_distance(
            p, t) * pair.spacing[0]
    yield "lesion_sensitivity", "label, regionprops", lambda: np.mean(touched(t, p)) if t.any() else np.nan
    yield "lesion_false_positives", "label, regionprops", lambda: len(touched(p, t)) - sum(touched(p, t))


PEERS = dict(monai=from_monai, torchmetrics=from_torchmetrics, pycocotools=from_pycocotools,
             surface_distance=from_surface_distance,
             panoptica=from_panoptica, medpy=from_medpy, simpleitk=from_simpleitk, skimage=from_skimage)


@dataclass(frozen=True)
class Reason:
    "Why a tool's number differs: a definition of its own, or what it does with empty masks"
    peer: str
    metrics: str            # our names, between blanks
    why: str
    edges: tuple[str, ...]  # where it holds


NORMAL, ANY, EMPTY = ("",), ("", "both empty", "missed", "false alarm"), ("both empty", "missed", "false alarm")

REASONS = [
    Reason(
        "monai", "dice iou",
        "by default a case without reference counts as undefined; with ignore_empty=False, empty against empty is 1",
        EMPTY), Reason("monai", "hd95", "interpolates between infinite distances, which gives nan", EMPTY),
    Reason("monai", "pq rq sq", "0 where undefined, by a small number in the denominator", EMPTY),
    Reason("torchmetrics", "dice iou sensitivity precision pq rq sq", "0 where undefined", EMPTY),
    Reason(
        "torchmetrics", "hausdorff",
        "planes only, and right for square ones only: pixels are addressed by the number of rows instead of columns",
        NORMAL), Reason("torchmetrics", "hausdorff", "stops with an error", EMPTY),
    Reason("pycocotools", "average_precision", "-1 where undefined", EMPTY),
    Reason(
        "surface_distance", "hd95 assd nsd hausdorff",
        "elements are pieces of surface between voxels, weighted by their area (our hd95_surfel, assd_surfel, "
        "nsd_surfel)", NORMAL),
    Reason("surface_distance", "hd95 hd95_surfel hausdorff", "infinite where both masks are empty", EMPTY),
    Reason(
        "panoptica", "hd95",
        "percentile over both directions together (our hd95_pooled); scores of the whole mask know no spacing", NORMAL),
    Reason(
        "panoptica", "hd95_pooled hausdorff",
        "scores of the whole mask know no spacing: in voxels; stops with an error where no instance is matched",
        NORMAL),
    Reason(
        "panoptica", "assd", "mean of the two directions' averages; scores of the whole mask know no spacing", NORMAL),
    Reason("panoptica", "volume_difference", "undefined where no instance is matched", ANY),
    Reason("panoptica", "hd95 hd95_pooled hausdorff", "stops with an error where no instance is matched", EMPTY),
    Reason("panoptica", "pq rq sq", "matches at an IoU of 0.5 too, and not only above", NORMAL),
    Reason("panoptica", "sq", "0 where nothing is matched", EMPTY),
    Reason("medpy", "hd95", "percentile over both directions together (our hd95_pooled)", NORMAL),
    Reason("medpy", "hd95 hd95_pooled hausdorff assd volume_difference", "stops with an error", EMPTY),
    Reason("medpy", "dice iou", "1 where both masks are empty", EMPTY),
    Reason("medpy", "sensitivity precision", "0 where undefined", EMPTY),
    Reason(
        "simpleitk", "volume_difference",
        "volume similarity: the difference is divided by the mean of both volumes and not by the reference", ANY),
    Reason("simpleitk", "hausdorff assd", "stops with an error", EMPTY),
    Reason(
        "simpleitk", "assd",
        "averages over all pixels of the masks, 0 for those inside the other, and not over the outlines; then the mean "
        "of both directions", NORMAL),
    Reason(
        "simpleitk", "dice iou sensitivity precision", "infinite or the largest number of the machine where undefined",
        EMPTY), Reason("skimage", "hausdorff", "0 where both masks are empty", EMPTY),]


def reason(peer: str, metric: str, edge: str) -> str:
    return next((r.why for r in REASONS if r.peer == peer and metric in r.metrics.split() and edge in r.edges), "")


def called(call: Callable) -> float:
    "A tool's number; nan where it stops with an error"
    try: return float(np.asarray(call()).squeeze())
    except Exception: return np.nan


def row(pair: Pair, mine: float, metric: str, peer: str, name: str, call: Callable) -> dict:
    theirs = called(call)
    why = reason(peer, metric, pair.edge)
    agrees = numbers_agree(mine, theirs) and not (np.isnan(theirs) and "error" in why)
    return dict(pair=pair.name, kind=pair.kind, edge=pair.edge, metric=metric,
                peer=peer, call=name, ours=mine, theirs=theirs, agrees=agrees, reason="" if agrees else why)


def main() -> int:
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    panoptica.disable_citation_reminder()
    with contextlib.redirect_stdout(io.StringIO()):
        rows = pd.DataFrame([row(pair, mine[metric], metric, peer, name, call)
                             for pair in list_agreement_pairs() for mine in [compute_kit_metrics(pair)]
                             for peer, calls in PEERS.items() for metric, name, call in calls(pair)])
    place = folder("reports") / "peers" / "agreement"
    write_rows(place, rows)
    write(place / "versions.json",
          to_json(dict(python=sys.version.split()[0]) | {p: importlib.metadata.version(p) for p in PACKAGES}))
    open_questions = rows[~rows.agrees & (rows.reason == "")]
    print(f"{len(rows)} numbers, {int(rows.agrees.sum())} agree, {len(open_questions)} differ without a reason")
    if len(open_questions): print(open_questions.to_string())
    return int(len(open_questions) > 0)


if __name__ == "__main__": sys.exit(main())
