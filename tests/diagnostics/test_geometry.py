"""The plane of three templates, and the numbers of clusters, against closed forms."""

import math

import pytest
import torch

from composer_ls.diagnostics.geometry import (
    class_means,
    neural_collapse,
    project,
    relative_spread,
    simplex_deviation,
    template_distances,
    template_plane,
)
from composer_ls.errors import DiagnosticsError


@pytest.fixture
def layer():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(6, 20, generator=generator), torch.randn(6, generator=generator)


@pytest.fixture
def clusters():
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(300) % 3
    return 10 * torch.eye(20)[labels] + torch.randn(300, 20, generator=generator), labels


def rotation(size, seed=2):
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(size, size, dtype=torch.float64, generator=generator)).Q


@pytest.mark.parametrize("with_bias", [True, False])
def test_the_templates_fall_on_a_triangle_with_their_own_side_lengths(layer, with_bias):
    weight, bias = layer
    rows = torch.cat([weight, bias.unsqueeze(1)], 1) if with_bias else weight
    plane = template_plane(weight, bias if with_bias else None, (4, 0, 3))
    corners = project(rows[[4, 0, 3]], plane)
    torch.testing.assert_close(torch.pdist(corners), torch.pdist(rows[[4, 0, 3]].double()), rtol=1e-12, atol=0)
    torch.testing.assert_close(corners, plane.corners)
    torch.testing.assert_close(corners.mean(0), torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-12)


def test_the_basis_is_orthonormal(layer):
    basis = template_plane(*layer, (0, 1, 2)).basis
    torch.testing.assert_close(basis @ basis.T, torch.eye(2, dtype=torch.float64))


def test_the_projection_is_the_nearest_point_of_the_plane(layer):
    plane = template_plane(*layer, (0, 1, 2))
    x = torch.randn(5, 20, generator=torch.Generator().manual_seed(3)).double()
    full = torch.cat([x, torch.ones(5, 1)], 1)
    nearest = plane.origin + project(x, plane) @ plane.basis
    assert ((full - nearest) @ plane.basis.T).abs().max() < 1e-12


def test_a_rotation_of_the_feature_space_changes_nothing(layer, clusters):
    (weight, bias), (features, labels), turn = layer, clusters, rotation(20)
    before = project(features, template_plane(weight, bias, (1, 2, 5)))
    turned = features.double() @ turn
    after = project(turned, template_plane(weight.double() @ turn, bias, (1, 2, 5)))
    torch.testing.assert_close(before, after)
    assert relative_spread(turned, labels) == pytest.approx(relative_spread(features, labels))
    assert neural_collapse(turned, labels) == pytest.approx(neural_collapse(features, labels))


def test_degenerate_triples_are_refused():
    on_a_line = torch.tensor([[0.0, 1.0], [0.0, 2.0], [0.0, 3.0]])
    for weight in (on_a_line, torch.ones(3, 2), torch.zeros(3, 2)):
        with pytest.raises(DiagnosticsError, match="templates of the classes 0, 1 and 2 lie on one line"):
            template_plane(weight, None, (0, 1, 2))


@pytest.mark.parametrize("classes", [(0, 1), (0, 1, 1), (0, 1, 6), (-1, 0, 1), (0, 1, 2, 3)])
def test_three_different_classes_are_asked_for(layer, classes):
    with pytest.raises(DiagnosticsError, match="three different ones from 0 to 5"):
        template_plane(*layer, classes)


def test_fewer_than_three_classes_have_no_plane():
    with pytest.raises(
        DiagnosticsError, match="templates of 3 classes, or of 2 with features, but the last layer has 2"
    ):
        template_plane(torch.randn(2, 5), None, (0, 1, 2))


def test_two_classes_have_a_plane_along_their_line_and_what_varies_most_across_it():
    weight = torch.eye(4)[:2]
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(1000, 4, generator=generator) * torch.tensor([1, 1, 9, 3])
    plane = template_plane(weight, torch.zeros(2), (0, 1), features)
    assert plane.corners.tolist() == [pytest.approx([-(0.5**0.5), 0]), pytest.approx([0.5**0.5, 0])]
    assert plane.basis[1].abs().argmax() == 2
    assert plane.basis @ plane.basis.T == pytest.approx(torch.eye(2).double(), abs=1e-9)
    assert project(features, plane).std(0)[1].item() == pytest.approx(9, rel=0.05)
    three = template_plane(torch.eye(4), None, (0, 1, 2))
    assert torch.equal(template_plane(torch.eye(4), None, (0, 1, 2), features).basis, three.basis)
    with pytest.raises(DiagnosticsError, match="do not vary across the line"):
        template_plane(weight, None, (0, 1), torch.ones(5, 4))
    with pytest.raises(DiagnosticsError, match=r"features have shape \(5, 3\), but must be \(N, 4\)"):
        template_plane(weight, None, (0, 1), torch.ones(5, 3))


def test_features_of_the_wrong_width_are_refused(layer):
    plane = template_plane(*layer, (0, 1, 2))
    with pytest.raises(DiagnosticsError, match=r"features have shape \(4, 19\), but the last layer takes \(N, 20\)"):
        project(torch.zeros(4, 19), plane)
    no_bias = template_plane(layer[0], None, (0, 1, 2))
    with pytest.raises(DiagnosticsError, match=r"\(4, 21\)"):
        project(torch.zeros(4, 21), no_bias)


def test_the_relative_spread_is_the_known_one(clusters):
    features, labels = clusters
    within = math.sqrt(20)  # of 20 normal coordinates
    assert relative_spread(features, labels) == pytest.approx(within / (10 * math.sqrt(2)), rel=0.02)
    assert relative_spread(1000 * features, labels) == pytest.approx(relative_spread(features, labels))


def test_collapsed_classes_have_no_spread_and_are_a_regular_simplex():
    labels = torch.arange(50) % 5
    features = 3 * torch.eye(5, 8)[labels] + 7
    assert relative_spread(features, labels) < 1e-12
    assert neural_collapse(features, labels) < 1e-20
    assert simplex_deviation(class_means(features, labels)) < 1e-12


def test_nc1_equals_the_trace_of_the_textbook(clusters):
    features, labels = clusters
    x = features.double()
    means = torch.stack([x[labels == c].mean(0) for c in range(3)])
    within = sum(torch.cov(x[labels == c].T, correction=0) for c in range(3)) / 3
    centred = means - means.mean(0)
    between = centred.T @ centred / 3
    expected = torch.trace(within @ torch.linalg.pinv(between, rtol=1e-9, hermitian=True)) / 3
    assert neural_collapse(features, labels) == pytest.approx(expected.item())


def test_distances_to_templates_follow_the_formula(layer, clusters):
    (weight, bias), (features, labels) = layer, clusters
    distances = template_distances(features, labels, weight, bias)
    x = torch.cat([features, torch.ones(300, 1)], 1).double()
    rows = torch.cat([weight, bias.unsqueeze(1)], 1).double()
    squares = (x * x).sum(1, keepdim=True) - 2 * x @ rows.T + (rows * rows).sum(1)
    own = squares.sqrt()[torch.arange(300), labels]
    assert distances.own == pytest.approx(own.mean().item())
    assert distances.others == pytest.approx((squares.sqrt().sum(1) - own).mean().item() / 5)


def test_a_regular_triangle_has_no_deviation_and_an_arc_has_one():
    angle = torch.tensor([0, 2 * math.pi / 3, 4 * math.pi / 3], dtype=torch.float64)
    assert simplex_deviation(torch.stack([angle.cos(), angle.sin()], 1)) < 1e-12
    angle = torch.tensor([0, 0.2, math.pi]).double()
    assert simplex_deviation(torch.stack([angle.cos(), angle.sin()], 1)) > 0.3


@pytest.mark.parametrize("function", [relative_spread, neural_collapse])
def test_a_single_class_has_no_distance_between_classes(function):
    with pytest.raises(DiagnosticsError, match=r"at least 2 classes, but the labels contain 1: \[3\]"):
        function(torch.randn(4, 5), torch.full((4,), 3))


@pytest.mark.parametrize("function", [relative_spread, neural_collapse])
def test_means_that_coincide_are_refused(function):
    with pytest.raises(DiagnosticsError, match="means of all classes coincide"):
        function(torch.tensor([[1.0], [-1.0], [1.0], [-1.0]]), torch.tensor([0, 0, 1, 1]))


def test_nan_features_and_labels_that_do_not_fit_are_refused(layer):
    with pytest.raises(DiagnosticsError, match="1 of the 8 features are NaN"):
        relative_spread(torch.tensor([[torch.nan, 1.0]] + [[0.0, 1.0]] * 3), torch.arange(4) % 2)
    with pytest.raises(
        DiagnosticsError, match=r"features must be \(N, width\) and labels \(N,\), but are \(4, 2\) and \(3,\)"
    ):
        neural_collapse(torch.zeros(4, 2), torch.zeros(3).long())
    with pytest.raises(DiagnosticsError, match="labels are outside the layer's 6 classes"):
        template_distances(torch.zeros(2, 20), torch.tensor([0, 6]), *layer)
    with pytest.raises(DiagnosticsError, match="labels must be integers"):
        neural_collapse(torch.zeros(4, 2), torch.zeros(4))
    with pytest.raises(DiagnosticsError, match="no features"):
        class_means(torch.zeros(0, 2), torch.zeros(0).long())


def test_nc1_of_features_in_few_dimensions_is_not_of_their_rounding():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(200) % 10
    narrow = torch.randn(10, 2, generator=generator)[labels] + 0.05 * torch.randn(200, 2, generator=generator)
    wide = narrow @ torch.randn(2, 128, generator=generator)
    expected = neural_collapse(narrow.double() @ torch.randn(2, 3, generator=generator).double(), labels)
    assert neural_collapse(wide, labels) == pytest.approx(expected, rel=1e-3)  # NC1 does not depend on the projection
    assert neural_collapse(wide.double(), labels) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("measure", [relative_spread, neural_collapse, class_means])
def test_a_mark_for_unlabelled_examples_is_no_class(measure):
    with pytest.raises(DiagnosticsError, match="labels must be classes, from 0 on, but the smallest is -1"):
        measure(torch.randn(5, 2), torch.tensor([0, 0, 1, 1, -1]))
    found = measure(torch.arange(10.0).view(5, 2), torch.tensor([0, 0, 1, 1, -1]), ignore_index=-1)
    torch.testing.assert_close(found, measure(torch.arange(8.0).view(4, 2), torch.tensor([0, 0, 1, 1])))
