"""Every registered method passes the same checks; see tests/contract.py."""

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from kd_mm.registry import METHODS
from tests import contract
from tests.contract import Row
from tests.references import bake, kdcl
from tests.test_methods import test_ffsd


def bake_terms(students, labels):
    terms = {}
    for name, seen in students.items():
        target = bake.ensemble_knowledge(seen['embedding'], seen['logits'], 4.0, 0.5)
        key = 'loss_bake' if name == 'student' else f'{name}/loss_bake'
        terms[key] = bake.soft_target_kl(seen['logits'], target, 4.0).mean()
    return terms


def dml_terms(students, labels):
    logits = {name: seen['logits'] for name, seen in students.items()}
    terms = {}
    for name, own in logits.items():
        targets = [np.stack([bake.softmax(r) for r in z]) for n, z in logits.items() if n != name]
        kls = [bake.soft_target_kl(own, target, 1.0).mean() for target in targets]
        terms[f'{name}/loss_dml'] = np.mean(kls)
    return terms


def linear_target(logits, labels):
    """Image by image, the best mixture of two students' logits."""
    rows = []
    for n, label in enumerate(labels):
        first, second = logits[:, n]

        def mixed(weight, first=first, second=second):
            return weight * first + (1 - weight) * second

        def loss(weight, label=label, mixed=mixed):
            return kdcl.cross_entropy(mixed(weight), label)

        inside = minimize_scalar(loss, bounds=(0, 1), method='bounded', options={'xatol': 1e-12})
        rows.append(mixed(min((0.0, 1.0, inside.x), key=loss)))
    return np.array(rows)


def kdcl_terms(target):
    targets = {
        'naive': kdcl.naive_target,
        'linear': linear_target,
        'min_logit': kdcl.min_logit_target,
    }

    def terms(students, labels):
        logits = np.stack([students[name]['logits'] for name in sorted(students)])
        if target == 'general':
            weights = np.full(len(logits), 1 / len(logits))
            probs = kdcl.general_target(logits, weights, 2.0)
        else:
            probs = np.stack([bake.softmax(r / 2.0) for r in targets[target](logits, labels)])
        return {
            f'{name}/loss_kdcl': bake.soft_target_kl(students[name]['logits'], probs, 2.0).mean()
            for name in students
        }

    return terms


def ffsd_golden():
    for path in test_ffsd.GOLDEN:
        test_ffsd.test_every_term_equals_the_released_code(path)


PIPELINE = [{'type': 'Resize', 'scale': contract.SIZE}, {'type': 'PackInputs'}]
DIGITS = {'type': 'kd_mm.Digits', 'pipeline': PIPELINE}
# The weights of the general target come from images that training leaves out.
HELD_OUT = {
    'train_dataloader': {
        'dataset': {'type': 'kd_mm.HoldOut', 'num_per_class': 2, 'dataset': DIGITS},
        'num_batch_per_epoch': 3,
    },
    'hook': {'held_out_pipeline': PIPELINE},
}
ROWS = {
    'BAKE': Row({'type': 'kd_mm.BAKE'}, bake_terms, students=('student',)),
    'BAKE of two students': Row({'type': 'kd_mm.BAKE'}, bake_terms),
    'DML': Row({'type': 'kd_mm.DML'}, dml_terms, students=('a', 'b', 'c')),
    **{
        f'KDCL {target}': Row(
            {'type': 'kd_mm.KDCL', 'target': target},
            kdcl_terms(target),
            **(HELD_OUT if target == 'general' else {}),
        )
        for target in ('naive', 'linear', 'min_logit', 'general')
    },
    'FFSD': Row(
        # Weights with which all terms are seen in the gradient.
        {
            'type': 'kd_mm.FFSD',
            'diversity_weight': 1.0,
            'fusion_weight': {'type': 'kd_mm.LinearRamp', 'epochs': 2, 'value': 10.0},
            'self_distillation_weight': 10.0,
        },
        golden=ffsd_golden,
        students=('leader', 'one', 'two'),
        backbone={'num_stages': 2, 'out_indices': (0, 1)},
        norms=('norm_cfg',),
    ),
}
all_rows = pytest.mark.parametrize('row', ROWS.values(), ids=ROWS)


def test_every_method_has_a_row():
    METHODS.import_from_location()
    own = {name for name, cls in METHODS.module_dict.items() if cls.__module__.startswith('kd_mm')}
    assert {row.model['type'].removeprefix('kd_mm.') for row in ROWS.values()} == own


@all_rows
@pytest.mark.parametrize('check', contract.CHECKS, ids=lambda check: check.__name__)
def test_contract(check, row):
    check(row)


@all_rows
@pytest.mark.parametrize('check', contract.CHECKS_OF_FILES, ids=lambda check: check.__name__)
def test_contract_of_files(check, row, tmp_path):
    check(row, tmp_path)


@pytest.fixture(scope='module')
def ranks(tmp_path_factory):
    return contract.on_two_ranks(ROWS, tmp_path_factory.mktemp('ranks'))


@pytest.mark.parametrize('name', ROWS)
def test_two_ranks_equal_one(name, ranks):
    contract.check_two_ranks(ROWS[name], [rank[name] for rank in ranks])
