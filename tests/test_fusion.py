"Patient data beside the image: what helps on a phantom is what was planted there, and shuffled data are of no use."
import numpy as np
import pandas as pd
import pytest

from conftest import REPO
from medseg_nb.data.cues import INFORMATIVE_FIELDS
from medseg_nb.kit.report import read_rows
from medseg_nb.study import fusion


@pytest.fixture(scope="module")
def rows() -> pd.DataFrame:
    "Rows of the smoke profile, which the smoke paper trains anew: `medseg diff` tells where they come out otherwise"
    return read_rows(REPO / "reports" / "smoke" / "fusion").query("dataset == 'phantom_field'")


@pytest.mark.long
def test_shuffled_fields_do_not_help_and_true_ones_do(rows):
    gain = fusion.summarize_comparisons(rows).set_index(["variant", "against"])
    true, control = (gain.loc[(v, fusion.IMAGE_ONLY)] for v in ("film", "film, shuffled"))
    assert true.difference_low > .05 and control.difference_low <= 0 and control.difference < true.difference / 4
    assert gain.loc[("film", "film, shuffled")].difference_low > .05
    for v in ("token", "channels"): assert gain.loc[(v, fusion.IMAGE_ONLY)].difference_low > 0
    late = gain.loc[("logits", fusion.IMAGE_ONLY)]  # cannot say which of two blobs is the lesion
    assert late.difference < true.difference / 2


def test_importance_ranks_the_fields_as_planted(rows):
    table = fusion.summarize_importance(rows)
    table = table[~table.variant.isin(fusion.PLACELESS_NETWORKS)]
    for (v, method), part in [((v, m), p) for v, p in table.groupby("variant") for m in ("loss", "shapley")]:
        order = part.sort_values(method, ascending=False).field.tolist()
        assert order[:2] == list(INFORMATIVE_FIELDS), (v, method, order)
    assert (fusion.summarize_ranking(rows).query("method == 'loss'").difference_low > 0).all()


def test_shapley_values_are_those_of_the_package():
    import itertools

    import shap
    background, own, owner = np.random.default_rng(1).normal(size=(4, 3)), np.array([1., -2., .5]), np.arange(3)
    def value(x): return x[:, 0] * x[:, 1] + np.sin(x[:, 2]) + np.maximum(x[:, 0], x[:, 2])
    orders = np.array(list(itertools.permutations(range(3))))
    mine = fusion.compute_shapley_values(value, own, np.repeat(background, 6, 0), owner, np.tile(orders, (4, 1)))
    assert np.allclose(
        mine, shap.explainers.ExactExplainer(value, shap.maskers.Independent(background))(own[None]).values[0])


def test_committed_reports_say_so_too():
    """There are many shuffled variants, and one interval in forty lies above zero by chance: Holm's correction counts
    them"""
    for profile in ("smoke", "cpu"):
        place = REPO / "reports" / profile / "fusion" / "comparisons.csv"
        if not place.is_file(): continue
        table = pd.read_csv(place).query("dataset == 'phantom_field'").set_index(["variant", "against"])
        shuffled = [v for v, w in table.index if v.endswith(", shuffled") and w == fusion.IMAGE_ONLY]
        assert shuffled
        for v in (v for v in shuffled if v.removesuffix(", shuffled") not in fusion.PLACELESS_NETWORKS):
            true, control = (table.loc[(name, fusion.IMAGE_ONLY)] for name in (v.removesuffix(", shuffled"), v))
            assert (control.difference < true.difference / 4
                    and (control.difference_low <= 0 or control.trainings == 1 or control.p_holm > .05)), (profile, v)
            # an interval over two trainings is that of Student's distribution with one degree of freedom, which shows
            # next to nothing
            assert true.difference > .1 and (true.trainings < 3 or true.difference_low > 0 and true.p_holm < .05), (
                (profile, v))
