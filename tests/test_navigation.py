"Navigation: what comes back over OpenIGTLink, and what one faulty message does to the service and to its log."
import socket
import struct
import threading
import time

import numpy as np
import pytest

from conftest import REPO

from medseg_nb.deployment.navigation import BrokenConnection, NavigationServer, receive_bytes
from medseg_nb.deployment.segmenter import load_segmenter
from medseg_nb.deployment.web import listen
from medseg_nb.kit.core import InputError

pyigtl = pytest.importorskip("pyigtl", reason="the extra `stream` is not installed")

MATRIX = np.array([[0, -2, 0, 5], [2, 0, 0, 6], [0, 0, 3, 7], [0, 0, 0, 1.]])
NAME = "DOE^JANE 1970"  # as a careless system might call its device


class Bright:
    "Calls bright pixels the lesion, and refuses pictures of several channels"
    def label_map(self, image, subject):
        if image.channels: raise InputError(subject, f"{image.channels} channels, the model takes 1", "choose another")
        return (image.array > 100).astype(np.uint8)


class Link:
    "A plain socket to a server, and every message that comes back, read by the protocol's page alone"
    def __init__(self, server):
        self.socket = socket.create_connection(server.listener.getsockname(), timeout=20)

    def send(self, *messages) -> None:
        for m in messages: self.socket.sendall(m if isinstance(m, bytes) else m.pack())

    def receive(self) -> tuple[str, str, int, bytes]:
        "Type, name, version and content"
        head = receive_bytes(self.socket, 58, False)
        version, kind, name = struct.unpack(">H12s20s", head[:34])
        body = receive_bytes(self.socket, struct.unpack(">Q", head[42:50])[0], True)
        if version > 1:  # an extended header comes first, and metadata last
            length, *metadata = struct.unpack(">HHI", body[:8])
            body = body[length:len(body) - sum(metadata)]
        return kind.rstrip(b"\0").decode(), name.rstrip(b"\0").decode(), version, body


@pytest.fixture
def server():
    "A running service; `log` has its lines"
    log = []
    running = NavigationServer(Bright(), listen(), log.append)
    running.log = log
    thread = threading.Thread(target=running.serve)
    thread.start()
    yield running
    running.stopping.set()
    thread.join(10)
    assert not thread.is_alive()


def picture(seed=0, shape=(1, 12, 20), **more):
    pixels = np.random.default_rng(seed).integers(0, 200, shape, np.uint8)
    return pyigtl.ImageMessage(pixels, MATRIX, device_name=NAME, **more)


def decode_image(body: bytes) -> tuple[np.ndarray, np.ndarray]:
    "Pixels (k, j, i) and the matrix, of which the protocol sends the center"
    _, _, kind, _, _, *size = struct.unpack(">HBBBBHHH", body[:12])
    columns = np.frombuffer(body[12:60], ">f4").reshape(4, 3).T.astype(float)
    origin = columns[:, 3] - columns[:, :3] @ ((np.array(size) - 1) / 2)
    return (np.frombuffer(body[72:], {3: "u1", 5: "<u2"}[kind]).reshape(size[::-1]),
            np.vstack([np.column_stack([columns[:, :3], origin]), [0, 0, 0, 1]]))


def decode_surface(body: bytes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    "Points, lines and polygons"
    n, _, n_vertices, _, n_lines, _, n_polygons, *_ = struct.unpack(">10I", body[:40])
    points = np.frombuffer(body[40:40 + 12 * n], ">f4").reshape(-1, 3)
    cells = np.frombuffer(body[40 + 12 * n + n_vertices:], ">u4")
    return points, cells[:n_lines // 4], cells[n_lines // 4:n_lines // 4 + n_polygons // 4]


@pytest.mark.parametrize("shape", [(1, 12, 20), (5, 12, 20)], ids=["picture", "volume"])
@pytest.mark.parametrize("version", [1, 2])
def test_loop_back(server, shape, version):
    "Pixels and geometry of the label map are the image's, and the transform comes back bit by bit"
    link, image = Link(server), picture(1, shape)
    pose = pyigtl.TransformMessage(MATRIX, device_name="Probe")
    image.header_version = pose.header_version = version
    link.send(pose, image)
    (kind, name, answered, body), surface, back = link.receive(), link.receive(), link.receive()
    pixels, matrix = decode_image(body)
    assert (kind, name, answered) == ("IMAGE", f"{NAME}_label", version)
    assert (pixels == (image.image > 100)).all() and np.allclose(matrix, MATRIX, atol=1e-4)
    assert surface[0] == "POLYDATA" and surface[1] == f"{NAME[:12]}_surface"
    assert back[:2] == ("TRANSFORM", "Probe") and back[3] == pose._pack_content()
    assert server.log == []


@pytest.mark.parametrize("shape", [(1, 16, 16), (16, 16, 16)], ids=["picture", "volume"])
def test_surface_lies_where_the_image_does(server, shape):
    "Of a box, in the image's coordinates: half a voxel around it"
    pixels = np.zeros(shape, np.uint8)
    pixels[..., 4:9, 3:11] = 200
    if shape[0] > 1: pixels[:5] = pixels[12:] = 0
    link = Link(server)
    link.send(pyigtl.ImageMessage(pixels, MATRIX, device_name="box"))
    link.receive()
    points, lines, polygons = decode_surface(link.receive()[3])
    ijk = (points - MATRIX[:3, 3]) @ np.linalg.inv(MATRIX[:3, :3]).T
    low, high = ([2.5, 3.5, 4.5], [10.5, 8.5, 11.5]) if shape[0] > 1 else ([2.5, 3.5, 0], [10.5, 8.5, 0])
    assert np.allclose(ijk.min(0), low, atol=1e-4) and np.allclose(ijk.max(0), high, atol=1e-4)
    cells = polygons if shape[0] > 1 else lines
    assert len(cells) and len(lines if shape[0] > 1 else polygons) == 0
    assert cells[0] == (3 if shape[0] > 1 else len(points)) and cells[1:].max() == len(points) - 1


def test_empty_mask_has_an_empty_surface(server):
    link = Link(server)
    link.send(pyigtl.ImageMessage(np.zeros((3, 8, 8), np.uint8), MATRIX, device_name="dark"))
    assert not decode_image(link.receive()[3])[0].any()
    assert link.receive()[3] == bytes(40)


def test_big_endian_volume_of_sixteen_bits(server):
    link, pixels = Link(server), np.random.default_rng(3).integers(0, 3000, (4, 6, 8)).astype("<u2")
    message = bytearray(pyigtl.ImageMessage(pixels, MATRIX, device_name="ct").pack())
    message[58 + 4], message[58 + 72:] = 1, pixels.byteswap().tobytes()
    message[50:58] = struct.pack(">Q", pyigtl.messages.CRC64(bytes(message[58:])))
    link.send(bytes(message))
    assert (decode_image(link.receive()[3])[0] == (pixels > 100)).all()


def wrong_version(m): return struct.pack(">H", 9) + m[2:]
def wrong_checksum(m): return m[:-1] + bytes([m[-1] ^ 1])
def wrong_length(m): return pyigtl.StringMessage("x", device_name=NAME).pack()
def wrong_text(m): return m[:14] + b"\xff" * 20 + m[34:]


def short_of_pixels(m):
    "A whole message whose image has fewer pixels than it says"
    from pyigtl.messages import CRC64
    body = m[58:-7]
    return m[:42] + struct.pack(">QQ", len(body), CRC64(body)) + body


@pytest.mark.parametrize("spoil, fault", [
    (wrong_version, "its version is 9, and 1 to 2 are read"), (wrong_checksum, "its checksum is wrong"),
    (wrong_length, "is neither IMAGE nor TRANSFORM"), (wrong_text, "cannot be read"),
    (short_of_pixels, "cannot be read")], ids=lambda x: getattr(x, "__name__", ""))
def test_message_that_is_passed_over(server, spoil, fault):
    "One line, without the name that came with it; the same connection goes on"
    link, image = Link(server), picture()
    link.send(spoil(image.pack()), image)
    assert (decode_image(link.receive()[3])[0] == (image.image > 100)).all()
    line, = server.log
    assert line.startswith("message 1: ") and fault in line and "DOE" not in line


@pytest.mark.parametrize("n", [10, 70, -1])
def test_message_that_is_cut_off(server, n):
    "The connection is lost, and the service is not"
    first = Link(server)
    first.send(picture().pack()[:n])
    first.socket.close()
    second, image = Link(server), picture(4)
    second.send(image)
    assert (decode_image(second.receive()[3])[0] == (image.image > 100)).all()
    deadline = time.monotonic() + 10
    while not server.log and time.monotonic() < deadline: time.sleep(.01)
    line, = server.log
    assert "ended within a message" in line and "DOE" not in line


def test_message_that_stalls_is_given_up():
    ours, theirs = socket.socketpair()
    theirs.settimeout(.05)
    ours.sendall(b"12345")
    with pytest.raises(BrokenConnection, match="stopped for"): receive_bytes(theirs, 58, False)


@pytest.mark.parametrize("image, fault", [
    (pyigtl.ImageMessage(np.zeros((1, 4, 4, 3), np.uint8), MATRIX, device_name=NAME), "3 channels, the model takes 1"),
    (pyigtl.ImageMessage(np.zeros((1, 4, 4), np.uint8), np.diag([1., 0, 1, 1]), device_name=NAME), "no place in space"),
    (pyigtl.ImageMessage(np.full((1, 4, 4), np.nan, np.float32), MATRIX, device_name=NAME), "no numbers")],
    ids=["channels", "matrix", "nan"])
def test_image_that_cannot_be_answered(server, image, fault):
    "The sender is told why, in words that name nobody"
    link = Link(server)
    link.send(image)
    kind, name, _, body = link.receive()
    assert kind == "STRING" and name == f"{NAME}_label" and fault in body.decode("ascii", "ignore")
    link.send(good := picture())
    assert (decode_image(link.receive()[3])[0] == (good.image > 100)).all()
    line, = server.log
    assert fault in line and "DOE" not in line


def test_fault_of_a_model_ends_nothing(server):
    class Broken:
        def label_map(self, image, subject): raise ValueError(NAME)
    server.model = Broken()
    link = Link(server)
    link.send(picture())
    assert link.receive()[0] == "STRING" and "ValueError" in server.log[0] and "DOE" not in server.log[0]


def test_newest_image_is_answered_where_the_model_is_slow(server):
    begun, go = threading.Event(), threading.Event()
    class Slow(Bright):
        def label_map(self, image, subject):
            begun.set()
            go.wait(20)
            return super().label_map(image, subject)
    server.model, link = Slow(), Link(server)
    link.send(picture(0))
    begun.wait(20)
    images = [picture(k) for k in range(1, 7)]
    link.send(*images, pyigtl.StringMessage("end", device_name="end"))
    while not server.log: time.sleep(.01)  # the text was read, and so was every image before it
    go.set()
    answers = [decode_image(body)[0] for kind, *_, body in (link.receive() for _ in range(6)) if kind == "IMAGE"]
    assert (answers[1] == (images[-2].image > 100)).all() and (answers[2] == (images[-1].image > 100)).all()


def test_command_answers_as_the_model_does(fresh):
    fresh.env["MEDSEG_MODELS"] = str(REPO / "models")
    process = fresh.start("serve", "navigation", "--model", "phantom", "--port", "0")
    try:
        line = process.stdout.readline()
        assert "this machine alone" in line and "research use only" in line
        client = pyigtl.OpenIGTLinkClient("127.0.0.1", int(line.partition(" (")[0].rpartition(":")[2]))
        pixels = np.random.default_rng(0).integers(0, 255, (1, 40, 50, 3), np.uint8)
        client.send_message(pyigtl.ImageMessage(pixels, MATRIX, device_name="scope"))
        answer = client.wait_for_message("scope_label", timeout=60)
        client.stop()
    finally:
        process.terminate()
        process.communicate(timeout=20)
    with fresh.inside():
        from medseg_nb.images.files import Image
        expected = load_segmenter("phantom").label_map(Image(pixels[0], (2., 2.), channels=3), "scope")
    assert (answer.image[0] == expected).all() and answer.image.shape == (1, 40, 50)


def test_address_that_others_reach_is_refused(fresh):
    fresh.env["MEDSEG_MODELS"] = str(REPO / "models")
    done = fresh.call("serve", "navigation", "--model", "phantom", "--bind", "0.0.0.0")
    assert done.returncode == 2 and "can be reached from other machines" in done.stderr
