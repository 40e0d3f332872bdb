"Policies of augmentation: what they do to label maps can be undone, and what is left out is not called."
import math
from dataclasses import replace

import pytest
import torch

from medseg_nb.kit.core import InputError
from medseg_nb.kit.keys import closure, registered_names, resolve
from medseg_nb.study.augmentation import POLICIES, list_base_runs
from medseg_nb.training import augment

MODULE = "medseg_nb.training.augment"
SIX = [getattr(augment, name) for name in POLICIES]
MOVES = ("flips", "flip", "rotation", "scaling", "translation", "elastic", "standard", "strong", "mild", "all",
         *(f"all-{name}" for name in POLICIES))


def seeded(seed: int = 0) -> torch.Generator: return torch.Generator().manual_seed(seed)


def policy(name: str): return resolve(MODULE, name, "augmentation policy")


def numbered(n: int = 16, size: int = 24, depth: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    "Images of noise, and masks in which each pixel has an id of its own, up to what a float holds exactly"
    shape = (n, size, size, *([depth] if depth else []))
    count = math.prod(shape)
    ids = (torch.randperm(count, generator=seeded(1)) + 1).reshape(shape) * (2**24 // count)
    return torch.rand((n, 2, *shape[1:]), generator=seeded(2)), ids


def symmetries(x: torch.Tensor, axis: int) -> list[torch.Tensor]:
    "The eight symmetries of a square, over `axis` and the next"
    turned = [torch.rot90(x, k, (axis, axis + 1)) for k in range(4)]
    return turned + [t.flip(axis + 1) for t in turned]


# What can be wrong, each as a list of faults

def not_undone(change, depth: int | None = None) -> list[str]:
    "Images and masks that no symmetry, the same for both, brings back exactly"
    (x0, m0), faults = numbered(depth=depth), []
    x, m = change(x0, m0, seeded())
    for i in range(len(m)):
        backs = zip(symmetries(x[i], 1), symmetries(m[i], 0))
        if not any(torch.equal(a, x0[i]) and torch.equal(b, m0[i]) for a, b in backs): faults.append(f"image {i}")
    return faults


def invented(change, depth: int | None = None) -> list[int]:
    "Ids that were not there"
    x0, m0 = numbered(depth=depth)
    return sorted(set(change(x0, m0, seeded())[1].flatten().tolist()) - {0, *m0.flatten().tolist()})


def not_in_turn(change) -> list[str]:
    "Where a policy differs from the six in turn with an equal generator"
    (x0, m0), generator = numbered(), seeded(5)
    x, m = x0, m0
    for part in SIX: x, m = part(x, m, generator)
    found = change(x0, m0, seeded(5))
    return [name for name, a, b in (("images", found[0], x), ("masks", found[1], m)) if not torch.equal(a, b)]


@pytest.fixture
def spoil(monkeypatch):
    "Lets a policy of the module fail, or do something else"
    def call_it(*_): raise AssertionError("was called")
    return lambda name, by=call_it: monkeypatch.setattr(augment, name, by)


@pytest.mark.parametrize("depth", [None, 3])
@pytest.mark.parametrize("name", ["flip", "flips"])
def test_a_symmetry_undoes_flips(name, depth): assert not_undone(policy(name), depth) == []


def test_flips_that_cannot_be_undone_are_seen():
    assert len(not_undone(policy("rotation"))) == 16
    assert len(not_undone(lambda x, m, g: (x.flip(2), m))) == 16, "the mask stayed behind"


@pytest.mark.parametrize("quarter", range(4))
def test_a_turn_back_undoes_quarter_turns(quarter):
    x0, m0 = numbered()
    def turn(x, m, angle):
        zeros = torch.zeros(len(m))
        return augment.warp_pair(x, m, augment.affine_grid(zeros + angle, zeros + 1, zeros, zeros, m.shape[1:]))
    there = turn(x0, m0, quarter * math.pi / 2)
    assert torch.equal(there[1], torch.rot90(m0, quarter, (1, 2)))
    x, m = turn(*there, -quarter * math.pi / 2)
    assert torch.equal(m, m0) and torch.allclose(x, x0, atol=1e-4)


@pytest.mark.parametrize("rows, columns", [(0, 0), (3, 0), (-2, 5), (7, -4)])
def test_a_shift_back_undoes_shifts_by_whole_pixels(rows, columns):
    x0, m0 = numbered()
    def shift(x, m, down, right):
        zeros, size = torch.zeros(len(m)), m.shape[1]
        grid = augment.affine_grid(zeros, zeros + 1, zeros - 2 * right / size, zeros - 2 * down / size, m.shape[1:])
        return augment.warp_pair(x, m, grid)
    there = shift(x0, m0, rows, columns)
    x, m = shift(*there, -rows, -columns)
    kept = [slice(max(0, -n), 24 - max(0, n)) for n in (rows, columns)]
    inside = torch.zeros_like(m0, dtype=torch.bool)
    inside[:, kept[0], kept[1]] = True
    assert torch.equal(m, torch.where(inside, m0, 0)), "what was moved out is background, and all else is back"
    assert torch.allclose(x[:, :, kept[0], kept[1]], x0[:, :, kept[0], kept[1]], atol=1e-4)


@pytest.mark.parametrize("depth", [None, 3])
@pytest.mark.parametrize("name", MOVES)
def test_no_id_is_invented(name, depth): assert invented(policy(name), depth) == []


def test_invented_ids_are_seen():
    def blend(x, m, g):
        grid = augment.affine_grid(*(torch.full((len(m),), v) for v in (.3, 1., 0., 0.)), m.shape[1:])
        return x, augment.warp(m[:, None].float(), grid, "bilinear", "zeros")[:, 0].long()
    assert len(invented(blend)) > 100


@pytest.mark.parametrize("name", [*augment.ARTIFACTS, "intensity"])
def test_artefacts_leave_masks_and_repeat(name):
    x0, m0 = numbered()
    (x, m), again = policy(name)(x0, m0, seeded()), policy(name)(x0, m0, seeded())
    assert torch.equal(m, m0) and torch.equal(x, again[0]) and x.isfinite().all() and x.dtype == x0.dtype
    assert not torch.equal(x, policy(name)(x0, m0, seeded(9))[0]), "another generator, another artefact"


@pytest.mark.parametrize("name", ["hair", "ruler"])
def test_volumes_have_no_hair(name):
    with pytest.raises(InputError, match=f"{name}: is made for pictures; choose another policy") as e:
        policy(name)(*numbered(depth=2), seeded())
    assert "\n" not in str(e.value)


def test_all_is_the_six_in_turn(): assert not_in_turn(policy("all")) == []


def test_another_order_or_number_is_seen():
    assert "images" in not_in_turn(lambda *a: augment.apply_in_turn(tuple(SIX[::-1]), *a))
    assert all(not_in_turn(policy(f"all-{name}")) for name in POLICIES)


@pytest.mark.parametrize("name", POLICIES)
def test_what_is_left_out_is_not_called(name, spoil):
    whole = policy(f"all-{name}")(*numbered(), seeded())
    spoil(name)
    again = policy(f"all-{name}")(*numbered(), seeded())
    assert torch.equal(whole[0], again[0]) and torch.equal(whole[1], again[1])
    for other in {"all", *(f"all-{p}" for p in POLICIES)} - {f"all-{name}"}:
        with pytest.raises(AssertionError, match="was called"): policy(other)(*numbered(), seeded())


@pytest.mark.parametrize("name", POLICIES)
def test_a_key_follows_the_policies_that_are_applied(name):
    def reached(registered): return set(closure([(MODULE, registered_names(MODULE)[registered])]).code)
    assert f"{MODULE}.{name}" not in reached(f"all-{name}")
    for other in set(POLICIES) - {name}:
        assert f"{MODULE}.{other}" in reached(f"all-{name}") & reached("all")


@pytest.mark.parametrize("name", ["all-rotate", "rotate", "all-all", "ALL", "all-hair"])
def test_unknown_policies_are_refused_in_one_line(name):
    config = replace(list_base_runs("smoke", "phantom_skin")[0], augment=name)
    with pytest.raises(InputError, match=f"{name}: unknown augmentation policy; choose one of: none, ") as e: config.key
    assert "\n" not in str(e.value)
