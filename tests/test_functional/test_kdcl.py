"""KDCL's targets by hand, against NumPy loops, and Linear against SciPy and duality."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import minimize

from kd_mm.functional import kdcl
from kd_mm.functional.kdcl import (
    check_soft_labels,
    general_target,
    generalization_weights,
    linear_target,
    min_logit_target,
    naive_target,
    second_moment,
    weights_from_second_moment,
)
from tests.references import kdcl as reference

LOGIT_TARGETS = [naive_target, linear_target, min_logit_target]


def draw(seed=0, m=3, num_images=6, num_classes=5, scale=3.0, soft=False, kind='independent'):
    """Logits (m, N, K) and labels as float64 arrays; the kinds are hard in different ways."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(m, num_images, num_classes))
    if kind == 'alike':
        logits = rng.normal(size=(num_images, num_classes)) + 0.3 * logits
    elif kind == 'heavy':
        logits = logits**3
    elif kind == 'unequal':
        logits *= np.logspace(-2, 0, m)[:, None, None]
    elif kind == 'permuted':
        logits = np.stack([np.roll(logits[0], i, axis=1) for i in range(m)])
    labels = rng.integers(num_classes, size=num_images)
    if kind == 'wrong':
        # The runner-up of the mean: every student is wrong, none of them far.
        labels = np.argsort(logits.mean(axis=0), axis=1)[:, -2]
    if soft:
        labels = rng.dirichlet(np.full(num_classes, 0.4), size=num_images)
        labels[0] = np.eye(num_classes)[1]
    return scale * logits, labels


def tensors(logits, labels, dtype=torch.float64):
    labels = torch.tensor(labels)
    return torch.tensor(logits, dtype=dtype), labels.to(dtype) if labels.ndim == 2 else labels


def cross_entropies(rows, labels):
    return np.array([reference.cross_entropy(row, y) for row, y in zip(rows, labels, strict=True)])


def best_student(logits, labels):
    return np.min([cross_entropies(rows, labels) for rows in logits], axis=0)


def scipy_minimum(rows, label):
    """The least CE over the simplex by SLSQP, the best of starts at the centre and the corners."""
    m, num_classes = rows.shape
    y = reference.distribution(label, num_classes)

    def value_and_slope(alpha):
        mixed = alpha @ rows
        return reference.cross_entropy(mixed, label), rows @ (reference.softmax(mixed) - y)

    starts = [np.full(m, 1 / m), *(0.9 * np.eye(m) + 0.1 / m)]
    problem = {
        'jac': True,
        'method': 'SLSQP',
        'bounds': [(0, 1)] * m,
        'constraints': {'type': 'eq', 'fun': lambda a: a.sum() - 1, 'jac': np.ones_like},
        'options': {'ftol': 1e-14, 'maxiter': 500},
    }
    found = [minimize(value_and_slope, start, **problem).x.clip(0, None) for start in starts]
    return min(value_and_slope(alpha / alpha.sum())[0] for alpha in found)


# --- Against NumPy loops ------------------------------------------------------------------------


@pytest.mark.parametrize('soft', [False, True], ids=['classes', 'soft labels'])
@pytest.mark.parametrize('m', [1, 2, 5])
def test_naive_and_min_logit_equal_the_numpy_loops(m, soft):
    logits, labels = draw(m=m, soft=soft, num_images=20)
    z, y = tensors(logits, labels)
    np.testing.assert_array_equal(naive_target(z, y), reference.naive_target(logits, labels))
    np.testing.assert_allclose(
        min_logit_target(z, y), reference.min_logit_target(logits, labels), rtol=0, atol=1e-13
    )


def test_general_equals_the_numpy_loop():
    logits, _ = draw(m=4)
    weights = np.array([0.1, 0.0, 0.6, 0.3])
    ours = general_target(torch.tensor(logits), torch.tensor(weights), 2.0)
    expected = reference.general_target(logits, weights, 2.0)
    np.testing.assert_allclose(ours, expected, rtol=1e-12)
    np.testing.assert_allclose(ours.sum(dim=1), 1, rtol=1e-12)


@pytest.mark.parametrize('m', [1, 2, 4])
def test_generalization_weights_equal_the_numpy_loop(m):
    """Rare errors hardly coincide, so that no weight is clipped."""
    true_class_probs = 1 - np.random.default_rng(0).uniform(size=(m, 400)) ** 8
    true_class_probs[0] = 0.5 + 0.5 * true_class_probs[0]
    ours = generalization_weights(torch.tensor(true_class_probs))
    expected = reference.generalization_weights(true_class_probs)
    assert (expected > 0).all()
    np.testing.assert_allclose(ours, expected, rtol=1e-5)


def test_second_moment_equals_the_numpy_loop_whole_or_in_batches():
    true_class_probs = np.random.default_rng(0).uniform(size=(3, 10))
    probs = torch.tensor(true_class_probs)
    expected = reference.second_moment(true_class_probs)
    np.testing.assert_allclose(second_moment(probs), expected, rtol=1e-12)
    batches = 0.7 * second_moment(probs[:, :7]) + 0.3 * second_moment(probs[:, 7:])
    np.testing.assert_allclose(batches, expected, rtol=1e-12)
    before = batches.clone()
    weights_from_second_moment(batches)
    assert torch.equal(batches, before)


# --- By hand ------------------------------------------------------------------------------------


def test_naive_takes_the_first_of_equal_students():
    """The same margins on other levels: equal CE, and only the level says who was taken."""
    logits = torch.tensor([[[0.0, 2.0]], [[5.0, 5.0]], [[7.0, 7.0]]])
    assert naive_target(logits, torch.tensor([0])).tolist() == [[5.0, 5.0]]


def test_naive_by_soft_label_differs_from_naive_by_its_largest_class():
    """CE with (.6, .4): log(1 + e^4) - 2.4 = 1.62 and log 2 = 0.69; with class 0: 0.02, 0.69."""
    logits = torch.tensor([[[4.0, 0.0]], [[0.0, 0.0]]])
    assert naive_target(logits, torch.tensor([[0.6, 0.4]])).tolist() == [[0.0, 0.0]]
    assert naive_target(logits, torch.tensor([0])).tolist() == [[4.0, 0.0]]


def test_linear_with_an_inner_optimum_by_hand():
    """s1 - s2 = (0, 1, -2) and e^t = (1, 2, 1) make the slope 1 * 2 - 2 * 1 = 0: CE = log 4."""
    t = np.array([0, np.log(2), 0])
    difference = np.array([0, 1, -2])
    logits = torch.tensor(np.stack([t + 0.75 * difference, t - 0.25 * difference]))[:, None]
    target = linear_target(logits + 3, torch.tensor([0]))
    np.testing.assert_allclose(target[0] - target[0, 0], t, atol=1e-4)
    np.testing.assert_allclose(reference.cross_entropy(target[0].numpy(), 0), np.log(4), rtol=1e-9)


@pytest.mark.parametrize('m', [2, 3, 4, 6])
def test_weights_are_the_minimum_over_the_simplex(m):
    """Against SciPy's solver, on cohorts of which most have a negative weight in the formula."""
    random, clipped = np.random.RandomState(m), 0
    for _ in range(25):
        shared = random.rand(30)  # errors that all students make
        errors = random.rand(m, 1) * random.rand(m, 30) + 2 * random.rand(m, 1) * shared
        moment = errors @ errors.T / 30 / errors.max() ** 2
        closed = np.linalg.solve(moment, np.ones(m))
        clipped += (closed < 0).any()
        solved = minimize(
            lambda w, c=moment: w @ c @ w,
            np.full(m, 1 / m),
            jac=lambda w, c=moment: 2 * c @ w,
            bounds=[(0, 1)] * m,
            constraints={'type': 'eq', 'fun': lambda w: w.sum() - 1, 'jac': np.ones_like},
            method='SLSQP',
            options={'ftol': 1e-14, 'maxiter': 1000},
        )
        weights = weights_from_second_moment(torch.tensor(moment)).numpy()
        assert weights.min() >= 0
        assert weights.sum() == pytest.approx(1, abs=1e-12)
        assert weights @ moment @ weights <= solved.fun * (1 + 1e-5)
        # No student alone is better, which clipping the formula does not keep.
        assert weights @ moment @ weights <= moment.diagonal().min() * (1 + 1e-5)
    assert clipped >= 10


def test_too_many_students_for_general_weights_are_refused():
    with pytest.raises(ValueError, match='at most 16 students, but got 17'):
        weights_from_second_moment(torch.eye(17))
    assert weights_from_second_moment(torch.eye(12)).tolist() == pytest.approx([1 / 12] * 12)


def test_generalization_weights_set_a_negative_weight_to_zero():
    """C = (.01, .035; .035, .125) gives C^-1 1 ~ (.09, -.025)."""
    true_class_probs = torch.tensor([[0.9, 0.9], [0.6, 0.7]])
    assert generalization_weights(true_class_probs).tolist() == [1.0, 0.0]


@pytest.mark.parametrize('size', [0.0, 1e-9])
def test_generalization_weights_of_identical_students_are_equal(size):
    """C is singular, and 0 where nobody errs."""
    true_class_probs = 1 - size * torch.ones(4, 7, dtype=torch.float64)
    np.testing.assert_allclose(generalization_weights(true_class_probs), 0.25, rtol=1e-9)


# --- Linear: optimality -------------------------------------------------------------------------

KINDS = ['independent', 'alike', 'heavy', 'unequal', 'wrong']
GAPS = {torch.float64: 1e-6, torch.float32: 1e-4}


@pytest.mark.parametrize('soft', [False, True], ids=['classes', 'soft labels'])
@pytest.mark.parametrize('m', [1, 2, 3, 6])
@pytest.mark.parametrize('num_classes', [3, 50])
def test_linear_reaches_the_minimum_that_scipy_finds(num_classes, m, soft):
    for kind in ['independent', 'alike', 'wrong']:
        logits, labels = draw(
            seed=m, m=m, num_images=3, num_classes=num_classes, soft=soft, kind=kind
        )
        minimum = [scipy_minimum(logits[:, n], label) for n, label in enumerate(labels)]
        for dtype, gap in GAPS.items():
            target = linear_target(*tensors(logits, labels, dtype)).double().numpy()
            np.testing.assert_allclose(
                cross_entropies(target, labels), minimum, rtol=0, atol=gap, err_msg=kind
            )


@pytest.mark.parametrize('dtype', GAPS)
@pytest.mark.parametrize('kind', [*KINDS, 'permuted'])
def test_linear_has_no_duality_gap(kind, dtype):
    """The certificate needs no solver: by weak duality the minimum cannot lie lower."""
    cases = [(8, 1000, 100), (4, 1000, 3), (5, 20, 10), (2, 9, 200), (3, 10, 1)]
    for m, num_classes, scale in cases:
        scale = scale / 10 if kind == 'heavy' else scale  # logits up to 1,000 apart
        logits, labels = draw(m=m, num_images=20, num_classes=num_classes, scale=scale, kind=kind)
        logits = logits.astype(np.float32).astype(np.float64)
        exact = linear_target(*tensors(logits, labels)).numpy()
        gaps = [
            reference.duality_gap(logits[:, n], label, exact[n]) for n, label in enumerate(labels)
        ]
        target = linear_target(*tensors(logits, labels, dtype)).double().numpy()
        gaps += cross_entropies(target, labels) - cross_entropies(exact, labels)
        assert max(gaps) <= GAPS[dtype], (m, num_classes, scale)


def test_linear_does_not_mind_copies_of_a_student():
    """Their weights are not unique, and at large logits the equations for them are singular."""
    logits, labels = draw(m=2, num_images=40, num_classes=100, scale=1, kind='heavy')
    logits = 1000 * logits.clip(-5, 5)[[0, 1, 0, 0]]
    target = linear_target(*tensors(logits, labels)).numpy()
    gaps = [reference.duality_gap(logits[:, n], y, target[n]) for n, y in enumerate(labels)]
    assert max(gaps) <= 1e-6


@pytest.mark.parametrize('soft', [False, True], ids=['classes', 'soft labels'])
@pytest.mark.parametrize('dtype', GAPS)
@pytest.mark.parametrize('scale', [1.0, 1000.0, 1e6])
def test_linear_is_never_worse_than_the_best_student(scale, dtype, soft):
    for kind in KINDS:
        logits, labels = draw(m=4, num_images=50, scale=scale, soft=soft, kind=kind)
        z, y = tensors(logits, labels, dtype)
        target = linear_target(z, y)
        assert target.isfinite().all()
        ours = cross_entropies(target.double().numpy(), y.double().numpy() if soft else labels)
        best = best_student(z.double().numpy(), y.double().numpy() if soft else labels)
        assert (ours <= best * (1 + 1e-14) + 1e-15 * scale).all()


@pytest.mark.parametrize('dtype', GAPS)
def test_linear_of_students_that_leave_nothing_to_solve(dtype):
    """Identical students, a student without error, students of constant logits."""
    same = torch.tensor([[1.0, -2.0, 0.5]], dtype=dtype)
    perfect = torch.tensor([[1000.0, 0.0, 0.0]], dtype=dtype)
    flat = torch.zeros(1, 3, dtype=dtype)
    label = torch.tensor([0])
    exact = {'rtol': 0, 'atol': 0}
    torch.testing.assert_close(linear_target(torch.stack([same] * 3), label), same, **exact)
    torch.testing.assert_close(linear_target(torch.stack([flat] * 3), label), flat, **exact)
    target = linear_target(torch.stack([same, perfect, flat]), label)
    assert F.cross_entropy(target, label).item() == 0
    assert target.isfinite().all()


def test_linear_of_broken_logits_is_a_student():
    """A step that overflows (the scaler skips it) must not stop training."""
    logits = torch.randn(2, 3, 4)
    logits[1] = float('nan')
    logits[:, 1] = float('inf')
    target = linear_target(logits, torch.tensor([0, 1, 2]))
    assert target.shape == (3, 4)
    z, y = tensors(*draw(m=2, num_images=4))
    broken = torch.cat([z, z], dim=1)
    broken[0, :4] = float('nan')
    target = linear_target(broken, torch.cat([y, y]))
    torch.testing.assert_close(target[4:], linear_target(z, y))


# --- Properties of all targets ------------------------------------------------------------------


def all_targets(z, y):
    """The four targets, as logits or probabilities."""
    weights = torch.linspace(1, 2, len(z), dtype=torch.float64)
    yield from (target(z, y) for target in LOGIT_TARGETS)
    yield general_target(z, weights / weights.sum(), 2.0)


@pytest.mark.parametrize('target', LOGIT_TARGETS)
def test_one_hot_soft_labels_equal_classes(target):
    z, y = tensors(*draw(num_images=20))
    one_hot = F.one_hot(y, z.shape[-1]).to(z.dtype)
    torch.testing.assert_close(target(z, one_hot), target(z, y), rtol=0, atol=1e-5)


def test_a_single_student_is_its_own_target():
    for soft in (False, True):
        z, y = tensors(*draw(m=1, soft=soft))
        exact = {'rtol': 0, 'atol': 0}
        torch.testing.assert_close(naive_target(z, y), z[0], **exact)
        torch.testing.assert_close(linear_target(z, y), z[0], **exact)
        margin = min_logit_target(z, y) - z[0]
        torch.testing.assert_close(margin, margin[:, :1].expand_as(margin))
        one = torch.ones(1, dtype=z.dtype)
        torch.testing.assert_close(general_target(z, one, 2.0), (z[0] / 2).softmax(dim=1))
    assert generalization_weights(torch.tensor([[0.3, 0.7]])).tolist() == [1.0]


@pytest.mark.parametrize('soft', [False, True], ids=['classes', 'soft labels'])
def test_a_constant_on_a_students_logits_does_not_change_min_logit(soft):
    z, y = tensors(*draw(soft=soft))
    constants = torch.tensor([4.0, -2.0, 9.0], dtype=z.dtype)[:, None, None]
    torch.testing.assert_close(min_logit_target(z + constants, y), min_logit_target(z, y))


def test_min_logit_is_never_above_any_student():
    logits, labels = draw(m=4, num_images=200)
    target = min_logit_target(*tensors(logits, labels)).numpy()
    ours, best = cross_entropies(target, labels), best_student(logits, labels)
    assert (ours <= best + 1e-12).all()
    assert ours.mean() < 0.8 * best.mean()


def test_min_logit_can_be_above_a_student_with_soft_labels():
    """z = (1, -1) and (0, 0) give (0, -1): CE = log(1 + e^-1) + .5 = 0.81, log 2 = 0.69."""
    logits = torch.tensor([[[1.0, -1.0]], [[0.0, 0.0]]])
    label = torch.tensor([[0.5, 0.5]])
    target = min_logit_target(logits, label)
    assert target.tolist() == [[0.0, -1.0]]
    expected = math.log1p(math.exp(-1)) + 0.5
    np.testing.assert_allclose(F.cross_entropy(target, label), expected, rtol=1e-6)


@pytest.mark.parametrize('soft', [False, True], ids=['classes', 'soft labels'])
def test_targets_carry_no_gradient_and_change_no_input(soft):
    z, y = tensors(*draw(soft=soft))
    z.requires_grad_()
    if soft:
        y.requires_grad_()
    weights = torch.full((3,), 1 / 3, dtype=z.dtype, requires_grad=True)
    before = z.detach().clone(), y.detach().clone()
    for target in (*all_targets(z, y), general_target(z, weights, 2.0)):
        assert not target.requires_grad
    probs = z[0].sigmoid()
    assert not second_moment(probs).requires_grad
    assert not weights_from_second_moment(probs[:, :3].T @ probs[:, :3]).requires_grad
    assert not generalization_weights(probs).requires_grad
    assert torch.equal(z, before[0])
    assert torch.equal(y, before[1])


@pytest.mark.parametrize('soft', [False, True], ids=['classes', 'soft labels'])
@pytest.mark.parametrize('dtype', [torch.float16, torch.float32])
def test_half_precision_and_autocast_compute_in_float32(dtype, soft):
    z, y = tensors(*draw(m=3, num_images=40, num_classes=30, soft=soft), dtype)
    exact = list(all_targets(z.double(), y.double() if soft else y))
    with torch.autocast('cpu', dtype=torch.bfloat16):
        ours = list(all_targets(z, y))
    for target, expected in zip(ours, exact, strict=True):
        assert target.dtype == torch.float32
        torch.testing.assert_close(target.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('soft', [False, True], ids=['classes', 'soft labels'])
def test_nothing_waits_for_the_device(soft):
    """Tensors without values: reading one, or a shape that depends on one, would raise."""
    z = torch.empty(3, 4, 5, device='meta')
    y = torch.empty(4, 5, device='meta') if soft else torch.empty(4, device='meta').long()
    for target in LOGIT_TARGETS:
        assert target(z, y).shape == (4, 5)
    assert general_target(z, z[:, 0, 0], 2.0).shape == (4, 5)
    assert generalization_weights(z[0]).shape == (4,)
    with pytest.raises(RuntimeError, match='meta'):  # a function that does read values
        check_soft_labels(torch.empty(4, 5, device='meta'))


@pytest.mark.parametrize('scale', [1.0, 100.0])
def test_linear_is_the_same_with_all_steps(monkeypatch, scale):
    """A CPU stops when the slowest image is done; other devices take every step."""
    z, y = tensors(*draw(m=3, num_images=50, num_classes=40))
    stopped = linear_target(scale * z, y)
    monkeypatch.setattr(kdcl, '_may_stop', lambda gap: False)
    every_step = linear_target(scale * z, y)
    assert not torch.equal(stopped, every_step)
    ours, theirs = (F.cross_entropy(t, y, reduction='none') for t in (stopped, every_step))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-7)


# --- Bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize('target', LOGIT_TARGETS)
def test_refuses_shapes_that_do_not_fit(target):
    z, y = tensors(*draw())
    for logits, labels, message in (
        (z[0], y, r'logits must be \(students, images, classes\).*\(6, 5\)'),
        (z[:0], y, r'at least one student.*\(0, 6, 5\)'),
        (z, y[:5], r'class labels .* \(N,\) = \(6,\) .* got \(5,\)'),
        (z, F.one_hot(y, 5), r'class labels .* got \(6, 5\)'),
        (z, z[0, :, :4], r'soft labels .* \(N, K\) = \(6, 5\) .* got \(6, 4\)'),
        (z, y.double(), r'soft labels .* got \(6,\)'),
    ):
        with pytest.raises(ValueError, match=message):
            target(logits, labels)


def test_general_refuses_shapes_that_do_not_fit():
    z, _ = tensors(*draw())
    match = r'weights must hold one value per student, \(3,\).*\(2,\)'
    with pytest.raises(ValueError, match=match):
        general_target(z, torch.full((2,), 0.5), 2.0)
    with pytest.raises(ValueError, match=r'\(students, images, classes\)'):
        general_target(z[0], torch.full((6,), 1 / 6), 2.0)
    for shape in ((3,), (0, 4), (3, 0)):
        with pytest.raises(ValueError, match='students, held-out images'):
            generalization_weights(torch.ones(shape))


@pytest.mark.parametrize(
    ('labels', 'message'),
    [
        ([[0.5, 0.5], [0.5, 0.49]], r'row 1 sums to 0\.99 '),
        ([[0.5, 0.51], [0.5, 0.5]], r'row 0 sums to 1\.01 '),
        ([[0.5, 0.5], [1.5, -0.5]], r'row 1 sums to 1 with smallest value -0\.5'),
        ([[float('nan'), 1.0], [0.5, 0.5]], 'row 0 sums to nan'),
        ([0.5, 0.5], r'\(N, K\) of a floating-point type, but got \(2,\)'),
        ([[0, 1]], r'but got \(1, 2\) of torch\.int64'),
    ],
)
def test_check_soft_labels_names_the_row(labels, message):
    with pytest.raises(ValueError, match=message):
        check_soft_labels(torch.tensor(labels))


def test_check_soft_labels_lets_rounding_pass():
    labels = torch.tensor(draw(num_classes=100, soft=True)[1])
    for dtype in (torch.float64, torch.float32, torch.float16):
        check_soft_labels(labels.to(dtype))
