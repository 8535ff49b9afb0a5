import json

from kd_mm.analysis.run_log import read_log, top1_curves


def write(work_dir, start, lines):
    folder = work_dir / start / 'vis_data'
    folder.mkdir(parents=True)
    (folder / 'scalars.json').write_text('\n'.join(lines))


def test_later_start_counts_where_two_overlap(tmp_path):
    first = [
        {'loss': 3.0, 'epoch': 1, 'iter': 5, 'step': 5},
        {'accuracy/top1': 10.0, 'step': 1},
        {'loss': 2.0, 'epoch': 2, 'iter': 10, 'step': 10},
        {'accuracy/top1': 20.0, 'step': 2},
    ]
    second = [
        {'loss': 2.5, 'epoch': 2, 'iter': 10, 'step': 10},
        {'accuracy/top1': 25.0, 'step': 2},
        {'accuracy/top1': 30.0, 'step': 3},
    ]
    write(tmp_path, '20260101_000000', [*map(json.dumps, first), '{"loss": 1.'])
    write(tmp_path, '20260101_000100', map(json.dumps, second))
    train, val = read_log(tmp_path)
    assert [entry['loss'] for entry in train] == [3.0, 2.5]
    assert top1_curves(val) == {'network': [10.0, 25.0, 30.0]}


def test_a_shorter_run_in_the_same_folder_stands_alone(tmp_path):
    long = [{'loss': 3.0, 'iter': 5, 'step': 5}, {'accuracy/top1': 10.0, 'step': 1}]
    long += [{'loss': 2.0, 'iter': 10, 'step': 10}, {'accuracy/top1': 46.0, 'step': 2}]
    short = [{'loss': 2.5, 'iter': 5, 'step': 5}, {'accuracy/top1': 9.0, 'step': 1}]
    write(tmp_path, '20260101_000000', map(json.dumps, long))
    write(tmp_path, '20260101_000100', [*map(json.dumps, short), '{"a": 1}', '1', 'nan'])
    train, val = read_log(tmp_path)
    assert [entry['loss'] for entry in train] == [2.5]
    assert top1_curves(val) == {'network': [9.0]}


def test_nothing_logged_yet(tmp_path):
    assert read_log(tmp_path) == ([], [])
