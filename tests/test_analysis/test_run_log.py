import json

from kd_mm.analysis.run_log import read_log, top1_curves


def entries(steps, top1):
    losses = [{'loss': loss, 'iter': step, 'step': step} for step, loss in steps.items()]
    return [*losses, *({'accuracy/top1': value, 'step': step} for step, value in top1.items())]


def write(work_dir, start, lines):
    folder = work_dir / start / 'vis_data'
    folder.mkdir(parents=True)
    (folder / 'scalars.json').write_text('\n'.join(map(json.dumps, lines)) + '\n{"loss": 1.')


def test_later_start_counts_where_two_overlap(tmp_path):
    assert read_log(tmp_path) == ([], [])
    write(tmp_path, '20260101_000000', entries({5: 3.0, 10: 2.0}, {1: 10.0, 2: 20.0}))
    write(tmp_path, '20260101_000100', entries({10: 2.5}, {2: 25.0, 3: 30.0}))
    train, val = read_log(tmp_path)
    assert [entry['loss'] for entry in train] == [3.0, 2.5]
    assert top1_curves(val) == {'network': [10.0, 25.0, 30.0]}


def test_a_new_start_in_the_same_folder_counts_alone(tmp_path):
    write(tmp_path, '20260101_000000', entries({5: 3.0, 10: 2.0}, {1: 10.0, 2: 46.0}))
    write(tmp_path, '20260101_000100', entries({5: 2.5}, {1: 9.0}))
    train, val = read_log(tmp_path)
    assert [entry['loss'] for entry in train] == [2.5]
    assert top1_curves(val) == {'network': [9.0]}
