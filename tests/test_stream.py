"Streams: what smoothing brings, what is dropped, and what each fault of a source leaves behind."
import json
import subprocess
import sys
import threading
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pandas as pd
import pytest
from PIL import Image as Picture
from scipy import ndimage

from conftest import REPO

from medseg_nb.data.videos import measure_flicker, simulate_video
from medseg_nb.deployment.segmenter import Segmenter
from medseg_nb.deployment.stream import Frame, FrameQueue, Smoother, Source, open_source, stream_frames
from medseg_nb.images.files import Image

av = pytest.importorskip("av", reason="the extra `stream` is not installed")


def two_classes(p): return np.concatenate([1 - p, p], 1)


def darkness(images):
    "Dark tissue, but not the black outside of the sector"
    z = ndimage.gaussian_filter(images, (0, 0, 1.5, 1.5))
    return two_classes((z > -1.5) / (1 + np.exp((z + .15) / .25)))


def redness(images): return two_classes(1 / (1 + np.exp((images[:, 1:2] + .9) / .3)))


MODELS = {kind: Segmenter(kind, channels, (96, 96), "zscore", {1: "lesion"}, False, None, call)
          for kind, channels, call in (("ultrasound", ["grey"], darkness), ("endoscopy", list("rgb"), redness))}


def as_image(frame): return Image(frame, None, channels=3 if frame.ndim == 3 else 0)


def answers(kind, frames, smooth):
    "Masks of frames at 25 a second"
    inputs = [MODELS[kind].prepare_input(as_image(f), kind) for f in frames]
    return np.stack([smooth(MODELS[kind].probabilities(x)[0], x[0], k / 25).argmax(0) > 0
                     for k, x in enumerate(inputs)])


def mean_dice(masks, truths):
    return float(np.mean([2 * (a & b).sum() / (a.sum() + b.sum()) for a, b in zip(masks, truths)]))


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("seed", range(3))
def test_smoothing_lowers_flicker_and_not_dice(kind, seed):
    video = simulate_video(kind, 30, 96, seed)
    raw, smooth = (answers(kind, video.frames, Smoother(s)) for s in (0, .1))
    assert measure_flicker(smooth, video.masks) < .85 * measure_flicker(raw, video.masks)
    assert mean_dice(smooth, video.masks) > mean_dice(raw, video.masks) - .01


def test_following_the_motion_keeps_dice_where_the_scene_moves_fast():
    "Four times the speed and a long memory: an answer that stays behind loses its outline"
    videos = [simulate_video("endoscopy", 96, 96, seed) for seed in range(3)]
    def score(follows): return np.mean([mean_dice(answers("endoscopy", v.frames[::4], Smoother(.4, follows)),
                                                  v.masks[::4]) for v in videos])
    assert score(True) > score(False) + .01


def test_oldest_frames_are_dropped_where_the_model_is_slow(tmp_path):
    is_read = threading.Event()
    def frames():
        for k in range(20): yield Frame(k, k / 25, as_image(np.full((96, 96), k, np.uint8)))
        is_read.set()
    def slow(images): is_read.wait(); return darkness(images)
    model = Segmenter("slow", ["grey"], (96, 96), "zscore", {1: "lesion"}, False, None, slow)
    summary = stream_frames(model, Source("fast", 25., frames()), tmp_path / "out", rate=1e6)
    table = pd.read_csv(tmp_path / "out" / "stream.csv")
    assert list(table.frame)[-2:] == [18, 19] and len(table) <= 3
    assert summary["dropped"] == 20 - len(table) and table.latency_ms.min() > 0


def test_nothing_is_dropped_at_rate_zero(tmp_path):
    frames = [Frame(k, k / 25, as_image(np.full((96, 96), k, np.uint8))) for k in range(20)]
    summary = stream_frames(MODELS["ultrasound"], Source("x", 25., iter(frames)), tmp_path / "out", rate=0)
    assert (summary["answers"], summary["dropped"]) == (20, 0)


def test_a_reader_that_nobody_hears_ends():
    queue = FrameQueue(1, drops=False)
    frames = iter([Frame(k, 0., as_image(np.zeros((4, 4), np.uint8))) for k in range(9)])
    reader = threading.Thread(target=lambda: [queue.put(f) for f in frames])
    reader.start()
    queue.close()
    reader.join(10)
    assert not reader.is_alive()


def test_interrupted_stream_leaves_its_report(tmp_path):
    calls = []
    def stopped(images):
        calls.append(1)
        if len(calls) == 4: raise KeyboardInterrupt
        return darkness(images)
    model = Segmenter("m", ["grey"], (96, 96), "zscore", {1: "lesion"}, False, None, stopped)
    frames = [Frame(k, k / 25, as_image(np.full((96, 96), k, np.uint8))) for k in range(20)]
    summary = stream_frames(model, Source("x", 25., iter(frames)), tmp_path / "out", rate=0)
    assert summary["fault"] == "interrupted" and summary["answers"] == 3
    assert json.loads((tmp_path / "out" / "stream.json").read_text())["answers"] == 3


# Videos on disk, through the command line

def write_video(path: Path, frames: np.ndarray, codec: str = "mpeg4", **options: str) -> Path:
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, 25)
        stream.width, stream.height = frames.shape[2], frames.shape[1]
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.bit_rate = 2_000_000
        for f in frames: container.mux(stream.encode(av.VideoFrame.from_ndarray(f, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def scope():
    "A small endoscopy-like video and its truth"
    return simulate_video("endoscopy", 20, 64, seed=1)


@pytest.fixture
def kit(fresh):
    fresh.env["MEDSEG_MODELS"] = str(REPO / "models")
    return fresh


def run(kit, source, *words): return kit.call("stream", source, "--model", "phantom", "--out", kit.root / "out",
                                              "--rate", "0", *words)


def report(kit) -> tuple[dict, pd.DataFrame]:
    return json.loads((kit.root / "out" / "stream.json").read_text()), pd.read_csv(kit.root / "out" / "stream.csv")


def error_line(done) -> str:
    "The last line; a warning about what a picture looks like may stand before it"
    errors = [x for x in done.stderr.splitlines() if not x.startswith("warning: ")]
    assert done.returncode == 2 and len(errors) == 1 and "Traceback" not in done.stderr, done.stderr
    assert errors[0].startswith("error: ") and len(errors[0].rpartition("; ")[2]) > 5
    return errors[0]


def test_video_to_masks_and_overlay(kit, scope):
    video = write_video(kit.root / "scope.mp4", scope.frames)
    done = run(kit, video, "--masks", "--video")
    assert done.returncode == 0 and "20 answers" in done.stdout and "p99" in done.stdout, done.stderr
    assert len(done.stdout.splitlines()) == 1 and done.stdout.rstrip().endswith("research use only")
    summary, table = report(kit)
    assert {"p50_ms", "p95_ms", "p99_ms", "jitter_ms", "dropped", "broken"} <= set(summary)
    assert list(table.frame) == [*range(20)] and table.jitter_ms[1:].ge(0).all() and not summary["fault"]
    masks = [np.asarray(Picture.open(p)) for p in sorted((kit.root / "out").glob("frame_*.png"))]
    assert len(masks) == 20 and masks[0].shape == (64, 64)
    assert np.isclose(table.foreground[7], (masks[7] > 0).mean())
    with av.open(str(kit.root / "out" / "overlay.mp4")) as overlay:
        assert overlay.metadata["comment"] == "research use only"
        assert len([*overlay.decode(video=0)]) == 20


def test_folder_without_smoothing_is_what_predict_says(kit, scope):
    (kit.root / "frames").mkdir()
    for k, f in enumerate(scope.frames[:4]): Picture.fromarray(f).save(kit.root / "frames" / f"f{k}.png")
    assert run(kit, kit.root / "frames", "--masks", "--smoothing", "0").returncode == 0
    assert kit.call("predict", "phantom", kit.root / "frames", "--out", kit.root / "masks").returncode == 0
    for k in range(4):
        ours, theirs = (np.asarray(Picture.open(kit.root / p))
                        for p in (f"out/frame_{k:06}.png", f"masks/f{k}.png"))
        assert (ours == theirs).mean() > .999 and ours.any()


def test_video_that_was_cut_off(kit, scope):
    "What came before the cut is answered and stays"
    video = write_video(kit.root / "scope.mp4", scope.frames, movflags="faststart")
    video.write_bytes(video.read_bytes()[:video.stat().st_size * 6 // 10])
    line = error_line(run(kit, video, "--masks"))
    summary, table = report(kit)
    assert "scope.mp4" in line and "of 20 frames" in line and 3 < len(table) < 20 and "of 20" in summary["fault"]
    assert len(list((kit.root / "out").glob("frame_*.png"))) == len(table)


def test_video_whose_size_changes(kit, scope):
    parts = [write_video(kit.root / f"{k}.mjpeg", f, "mjpeg") for k, f in enumerate(
        (scope.frames[:5], scope.frames[:5, :48, :32]))]
    (kit.root / "both.mjpeg").write_bytes(b"".join(p.read_bytes() for p in parts))
    line = error_line(run(kit, kit.root / "both.mjpeg"))
    assert "both.mjpeg" in line and "changes from 64 x 64 to 48 x 32" in line and len(report(kit)[1]) == 5


def test_frame_that_is_broken(kit, scope):
    "It is counted, the stream goes on, and the exit code says that something was rejected"
    video = write_video(kit.root / "scope.avi", scope.frames, "mjpeg")
    data = bytearray(video.read_bytes())
    starts = [k for k in range(len(data)) if data[k:k + 3] == b"\xff\xd8\xff"]
    assert len(starts) == 20
    data[starts[9]:starts[10] - 40] = bytes(starts[10] - 40 - starts[9])
    video.write_bytes(data)
    done = run(kit, video)
    assert done.returncode == 3 and "19 answers" in done.stdout and "1 broken" in done.stdout, done.stderr
    assert list(report(kit)[1].frame) == [k for k in range(20) if k != 9]


def sound(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", 8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


def without_frames(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", 25)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuvj420p"
        container.start_encoding()


FAULTS = {"no frame": ("none.avi", without_frames, "holds no"), "sound alone": ("s.wav", sound, "holds no video"),
          "no video": ("v.mp4", lambda p: p.write_bytes(b"\x00" * 99), "cannot be opened as a video"),
          "empty file": ("v.mp4", lambda p: p.write_bytes(b""), "cannot be opened as a video"),
          "missing file": ("v.mp4", lambda p: None, "does not exist"),
          "empty folder": ("frames", lambda p: p.mkdir(), "holds no image")}


@pytest.mark.parametrize("name", FAULTS)
def test_source_that_gives_nothing(kit, name):
    file, make, fault = FAULTS[name]
    make(kit.root / file)
    line = error_line(run(kit, kit.root / file))
    assert file in line and fault in line


@pytest.mark.parametrize("camera", ["97", "/dev/video97"])
def test_camera_that_is_not_there(kit, camera):
    line = error_line(run(kit, camera))
    assert camera in line and "there is no camera" in line and not (kit.root / "out").exists()


def test_folder_with_results_of_others_is_left_alone(kit, scope):
    (kit.root / "out").mkdir()
    (kit.root / "out" / "mine.txt").write_text("mine")
    video = write_video(kit.root / "scope.mp4", scope.frames)
    assert "is not empty" in error_line(run(kit, video)) and len(list((kit.root / "out").iterdir())) == 1


def test_missing_package_is_named(kit, scope):
    (kit.root / "v.mp4").write_bytes(b"x")
    with patch.dict(sys.modules, {"av": None}): done = run(kit, kit.root / "v.mp4")
    assert done.returncode == 4 and "medseg_nb[stream]" in done.stderr and done.stderr.startswith("error: av")


def test_a_playlist_opens_no_address(tmp_path):
    "A file that names an address is refused, and nothing is asked for over the network"
    (tmp_path / "list.m3u8").write_text("#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n")
    with pytest.raises(Exception, match="cannot be opened|holds no"):
        list(open_source(str(tmp_path / "list.m3u8"), 3).frames)


@pytest.mark.long
def test_benchmark_of_a_stream_on_one_core(kit, capsys):
    "256 x 256 pixels, decoding, network, smoothing and report, on one core: printed, and not judged by the clock"
    video = write_video(kit.root / "scope.mp4", simulate_video("endoscopy", 100, 256, seed=0).frames)
    assert kit.call("export", "phantom", "--to", "onnx", "--out", kit.root / "artefact").returncode == 0
    code = ("import os; hasattr(os, 'sched_setaffinity') and os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); "
            "from medseg_nb.cli import main; main()")
    done = subprocess.run([sys.executable, "-c", code, "stream", video, "--model", kit.root / "artefact", "--out",
                           kit.root / "speed", "--rate", "0"], env=kit.environment(), capture_output=True, text=True)
    assert done.returncode == 0 and "100 answers" in done.stdout and " 0 dropped" in done.stdout, done.stderr
    processor_ms = json.loads((kit.root / "speed" / "stream.json").read_text())["processor_ms"]
    with capsys.disabled():
        print(f"\n256 x 256 on one core, {processor_ms:.1f} ms of processor time a frame: {done.stdout.strip()}")
