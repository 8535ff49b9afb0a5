"""What the docs show is run: commands, configs, links.

Every command of a block of shell in a Markdown file goes through the tool that it names: the real
parser takes its flags, and each config loads, with types and options that exist. Shell scripts
run with stubs in the place of Python and srun, and what they would start goes the same way. The
commands of the tour are trained, tested and compared, in short. A command that nothing here knows
is an error.
"""

import ast
import importlib
import importlib.util
import itertools
import os
import pkgutil
import re
import shlex
import sys
from functools import cache
from pathlib import Path
from unittest import mock

import mmpretrain
import pytest
import torch
from mmengine.config import Config
from packaging.requirements import Requirement
from torch.distributed.run import get_args_parser

import kd_mm
from kd_mm.analysis import reproduction
from kd_mm.config import read_config
from kd_mm.run import preflight
from kd_mm.run.preflight import check_types
from tests.conftest import REPO, run, write_image_folder
from tests.forked import run_tool

PAGES = sorted(
    path
    for pattern in ('*.md', 'docs/**/*.md', 'configs/*/README.md', 'demo/**/*.md')
    for path in REPO.glob(pattern)
    if '_build' not in path.parts
)
INLINE = re.compile(
    r'`((?:python tools/|tools/\w+\.sh |pytest |pip install |sphinx-build )[^`]*)`'
)
BLOCK = re.compile(r'^( *)```(\w+)\n(.*?)^ *```', re.S | re.M)
# What the docs leave to the reader.
PLACEHOLDERS = {
    'CONFIG': 'configs/bake/resnet20_1xb64_digits.py',
    'CHECKPOINT': 'work_dirs/resnet20_1xb64_digits/epoch_20.pth',
    'DIR': 'work_dirs/resnet20_1xb64_digits/deploy',
    'TARGET': 'minlogit',
    'key=value': 'model.head.omega=0.4',
    'my_photos.py': 'configs/bake/resnet20_1xb64_digits.py',
}
BASE = str(REPO / PLACEHOLDERS['CONFIG'])
# Steps that no tool of ours takes part in.
OTHERS = {'python3 -m venv .venv', '. .venv/bin/activate', 'pre-commit install'}
STOCK = Path(mmpretrain.__file__).parent / '.mim'
SCRIPT = """#!/usr/bin/env bash
printf '%s\\0' "$@" >"$RECORD"
"""


def blocks(path, *languages):
    """Return the fenced blocks of a page."""
    return [text for _, language, text in BLOCK.findall(path.read_text()) if language in languages]


def commands(path, inline=True):
    """Return the command lines of a page, alternatives of a synopsis one by one.

    Those of blocks, and ``inline`` those in the text of our tools and of programs of the tests.
    """
    lines = []
    text = BLOCK.sub('', path.read_text()).replace('\\|', '|')
    inside = INLINE.findall(text) if inline else []
    for block in (*blocks(path, 'bash', 'shell', 'sh', 'console'), *inside):
        for line in block.replace('\\\n', ' ').splitlines():
            for variant in variants(line):
                words = shlex.split(variant, comments=True)
                pieces = itertools.groupby(words, lambda word: word == '&&')
                lines += [shlex.join(piece) for joint, piece in pieces if not joint]
    return list(dict.fromkeys(lines))


def variants(line):
    """Return the readings of a synopsis: ``[--a X]`` with it, ``--a | --b`` and ``a|b`` each."""
    optional = re.search(r' \[(--[^]]*)\]', line)
    if optional:
        head, tail = line[: optional.start()], line[optional.end() :]
        choices = optional[1].replace(' ...', '').split(' | ')
        return [text for choice in choices for text in variants(f'{head} {choice}{tail}')]
    choices = re.search(r'(?<= )(\w+(?:\|\w+)+)', line)
    if choices:
        return [line.replace(choices[1], choice) for choice in choices[1].split('|')]
    return [line]


def filled(word):
    """Return a word of a command without placeholders."""
    for placeholder, value in PLACEHOLDERS.items():
        pattern = rf'(?<![A-Za-z]){re.escape(placeholder)}(?![A-Za-z])'
        word = re.sub(pattern, lambda _, value=value: value, word)
    return word


@cache
def load_tool(name):
    spec = importlib.util.spec_from_file_location(f'docs_{Path(name).stem}', REPO / name)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    return tool


def check_tool(name, arguments):
    """Let a tool's own parser take its flags, and load its configs."""
    assert (REPO / name).is_file(), f'{name} does not exist'
    tool = load_tool(name)
    parse = next(function for key, function in vars(tool).items() if key.startswith('parse_'))
    with mock.patch.object(sys, 'argv', [name, *arguments]), mock.patch.dict(os.environ):
        args = vars(parse())
    options = tuple((args.get('cfg_options') or {}).items())
    for value in args.values():
        for word in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(word, str) and word.endswith('.py') and not word.startswith('work_dirs'):
                check_config(word, options)
    if name == 'tools/reproduce.py':
        rows = reproduction.load_table(args['table'], REPO / 'configs')
        tool.choose(rows, args['rows'])


@cache
def check_config(path, options=()):
    """Check that a config is there, and that its types, and the options given, exist."""
    check_types(read_config(REPO / path, dict(options)).to_dict())


def check_script(name, arguments, env, folder):
    """Run a shell script with stubs, and check what it would start."""
    for stub in ('python', 'srun'):
        (folder / stub).write_text(SCRIPT)
        (folder / stub).chmod(0o755)
    record = folder / 'record'
    run(
        ['bash', REPO / name, *arguments],
        PATH=f'{folder}:/usr/bin:/bin',
        RECORD=str(record),
        **env,
    )
    words = record.read_text().split('\0')[:-1]
    (at,) = [i for i, word in enumerate(words) if word.endswith(('/train.py', '/test.py'))]
    if words[:2] == ['-m', 'torch.distributed.run']:
        launched = get_args_parser().parse_args(words[2:])
        assert int(launched.nproc_per_node) > 0
        assert int(launched.node_rank) < int(launched.nnodes)
    else:
        assert words[at - 2 : at] == ['python', '-u']
        assert '' not in words
        assert not [word for word in words if word.endswith('=')]
    check_tool(f'tools/{Path(words[at]).name}', words[at + 1 :])


def check_pip(arguments):
    extras = (REPO / 'setup.py').read_text()
    for word in (word for word in arguments if word != '-e'):
        requirement = Requirement(word.replace('.[', 'kd_mm[') if word.startswith('.') else word)
        for extra in requirement.extras if word.startswith('.') else ():
            assert f"'{extra}': requirements(" in extras, f'there is no extra {extra}'


def check_command(line, folder):
    """Raise AssertionError, SystemExit or an error of the config unless a command would run."""
    if line in OTHERS:
        return
    words = [filled(word) for word in shlex.split(line)]
    env = {}
    while re.match(r'[A-Z_]+=', words[0]):
        key, _, env[key] = words.pop(0).partition('=')
    program, *arguments = words
    if program == 'python' and arguments[0].startswith(('tools/', 'demo/')):
        check_tool(arguments[0], arguments[1:])
    elif re.fullmatch(r'tools/\w+\.sh', program):
        check_script(program, arguments, env, folder)
    elif words[:2] == ['pip', 'install']:
        check_pip(arguments[1:] if arguments[1:] != ['-e', '.'] else [])
    elif program == 'pytest':
        paths = [word for word in arguments if '/' in word or word.startswith('tests')]
        assert all((REPO / path).exists() for path in paths)
    elif program == 'sphinx-build':  # which CI runs; its package is not among the tests'
        ci = (REPO / '.ci/run').read_text()
        assert set(arguments) <= set(re.search(r'sphinx-build (.*)\' "', ci)[1].split())
    elif words[:3] == ['mim', 'test', 'mmpretrain']:
        assert words[3].startswith('work_dirs') or (STOCK / 'configs' / words[3]).is_file()
        assert words[4] == '--checkpoint'
    else:
        raise AssertionError(f'no test runs {line!r}')


COMMANDS = [
    pytest.param(line, id=f'{path.relative_to(REPO)}: {line}')
    for path in PAGES
    for line in commands(path)
]


def test_pages_have_commands():
    assert len(COMMANDS) > 40
    assert {path.name for path in PAGES} >= {'README.md', 'CONTRIBUTING.md', 'tour.md', 'bake.md'}


@pytest.mark.parametrize('line', COMMANDS)
def test_command_runs(line, tmp_path):
    check_command(line, tmp_path)


@pytest.mark.parametrize(
    'line',
    [
        'frobnicate --now',
        'python tools/nope.py',
        'python tools/train.py configs/bake/nope.py',
        'python tools/train.py CONFIG --no-such-flag',
        'python tools/train.py CONFIG --cfg-options model.head.omegaa=0.5',
        'python tools/train.py CONFIG --cfg-options train_cgf.max_epochs=1',
        'python tools/reproduce.py nope',
        'python tools/reproduce.py digits --rows nope',
        'python tools/model_converters/export_student.py CONFIG CHECKPOINT --format exe --out DIR',
        'tools/dist_train.sh configs/bake/nope.py 8',
        'tools/dist_train.sh CONFIG',
        'NNODES=2 NODE_RANK=2 tools/dist_train.sh CONFIG 8',
        'tools/slurm_train.sh PARTITION JOB CONFIG',
        'tools/slurm_train.sh PARTITION JOB CONFIG work_dirs/x --no-such-flag',
        'mim test mmpretrain nope.py --checkpoint x.pth',
        "pip install -e '.[nope]'",
        'pytest tests/nope.py',
    ],
)
def test_command_that_would_not_run_is_red(line, tmp_path):
    with pytest.raises((AssertionError, OSError, SystemExit, TypeError, ValueError)):
        check_command(line, tmp_path)


def test_synopses_are_read():
    line = 'tool CONFIG [--a X] [--b | --no-b] [--c one|two]'
    assert variants(line) == [
        'tool CONFIG --a X --b --c one',
        'tool CONFIG --a X --b --c two',
        'tool CONFIG --a X --no-b --c one',
        'tool CONFIG --a X --no-b --c two',
    ]


# The tour, in short

SHORT = [
    'train_cfg.max_epochs=1',
    'train_dataloader.dataset.indices=64',
    'val_dataloader.dataset.indices=64',
    'train_dataloader.batch_size=32',
]


def run_short(line, folder):
    """Run a command of ours in a process of its own, one epoch of 64 images long."""
    _, name, *arguments = [filled(word) for word in shlex.split(line)]
    arguments = [word.replace('epoch_20.pth', 'epoch_1.pth') for word in arguments]
    if name == 'tools/train.py':
        if '--cfg-options' not in arguments:
            arguments.append('--cfg-options')
        arguments += SHORT
    return run_tool(name.removeprefix('tools/'), *arguments, cwd=folder).stdout


@pytest.fixture(scope='module')
def tour(tmp_path_factory):
    """What each command of the tour printed, and the folder."""
    folder = tmp_path_factory.mktemp('tour')
    for name in ('configs', 'tools'):
        (folder / name).symlink_to(REPO / name)
    printed = {
        line: run_short(line, folder)
        for line in commands(REPO / 'docs/tour.md', inline=False)
        # The doctor's rehearsal has tests of its own.
        if line.startswith('python tools/') and 'doctor' not in line
    }
    return printed, folder


def test_the_tour_leads_where_it_says(tour):
    printed, folder = tour
    assert len(printed) == 7
    for name in ('epoch_1.pth', 'learning_curves.png', 'deploy/model.pth', 'deploy/config.py'):
        assert (folder / 'work_dirs/resnet20_1xb64_digits' / name).exists(), name
    tested = [text for line, text in printed.items() if 'tools/test.py' in line]
    accuracies = {re.search(r'accuracy/top1: ([\d.]+)', text)[1] for text in tested}
    assert len(tested) == 2
    assert len(accuracies) == 1  # the exported network answers the same
    assert (folder / 'report.html').stat().st_size > 10_000


def test_a_run_is_exported_and_resumed_as_the_docs_say(tour):
    _, folder = tour
    (line,) = [
        line
        for line in commands(REPO / 'docs/export.md')
        if 'CHECKPOINT' in line and '--no-ema' not in line and 'pth' in line
    ]
    line = re.sub(r' --(student NAME|ema)\b', '', line)
    assert 'model.pth' in run_short(line, folder)
    (line,) = [line for line in commands(REPO / 'docs/resume.md') if '--resume' in line]
    run_short(line, folder)


# Configs and programs. Those of README.md, configs/ and add_method.md are built by test_readme.py,
# test_configs.py and test_add_method.py.

CODES = [
    pytest.param(path, index, id=f'{path.relative_to(REPO)}-{index}')
    for path in PAGES
    if path.parts[len(REPO.parts)] not in ('README.md', 'configs') and path.name != 'add_method.md'
    for index in range(len(blocks(path, 'python')))
]


@pytest.mark.parametrize(('path', 'index'), CODES)
def test_python_of_the_docs_loads(path, index, tmp_path):
    """Configs with types and options that exist; programs with imports that work."""
    code = [re.sub('kd_mm::', f'{REPO}/configs/', text) for text in blocks(path, 'python')]
    tree = ast.parse(code[index])
    if all(isinstance(node, ast.Assign) for node in tree.body):
        (tmp_path / 'mine.py').write_text(code[0])  # what later ones on a page inherit
        base = '' if '_base_ =' in code[index] else f'_base_ = {BASE!r}\n'  # parts of a config
        (tmp_path / 'block.py').write_text(base + code[index])
        check_types(Config.fromfile(tmp_path / 'block.py').to_dict())
        return
    for node in (node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))):
        for name in node.names:
            module = getattr(node, 'module', None) or name.name
            if module.startswith('safetensors'):
                pytest.importorskip('safetensors', reason='an extra of the export')
            found = importlib.import_module(module)
            assert isinstance(node, ast.Import) or hasattr(found, name.name)


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    """A folder with a class in each of two folders, and the configs of the page for them."""
    folder = tmp_path_factory.mktemp('photos')
    write_image_folder(folder / 'data/photos', num_classes=2)
    bake, kdcl, _ = blocks(REPO / 'docs/own_images.md', 'python')
    for name, text in (('bake', bake), ('kdcl', kdcl)):
        (folder / f'{name}.py').write_text(text.replace('kd_mm::', f'{REPO}/configs/'))
    return folder


def test_own_images_train_and_are_named(photos):
    options = ['train_cfg.max_epochs=1', 'train_dataloader.batch_size=8']
    options += [f'{name}_dataloader.num_workers=0' for name in ('train', 'val', 'test')]
    run_tool('train.py', 'bake.py', '--work-dir', 'run', '--cfg-options', *options, cwd=photos)
    saved = torch.load(photos / 'run/deploy/model.pth', weights_only=True)
    assert saved['meta']['dataset_meta']['classes'] == ('n00000000', 'n00000001')
    assert saved['state_dict']['head.fc.weight'].shape == (2, 512)


def test_a_cohort_takes_own_images(photos, monkeypatch):
    monkeypatch.chdir(photos)
    cfg = read_config('kdcl.py', {'train_dataloader.batch_size': 4})
    preflight.check_config(cfg, ('train_dataloader', 'val_dataloader'))
    assert {s.head.num_classes for s in cfg.model.students.values()} == {2}


# Links and completeness


def anchors(path):
    """Return the anchors of a page's headings, as they are made where a repository is browsed."""
    headings = re.findall(r'^#+ (.+)$', path.read_text(), re.M)
    return {
        re.sub(r'[^\w\- ]', '', re.sub(r'\[(.*?)\]\(.*?\)', r'\1', text)).lower().replace(' ', '-')
        for text in headings
    }


@pytest.mark.parametrize('path', PAGES, ids=lambda path: str(path.relative_to(REPO)))
def test_links_lead_somewhere(path):
    text = re.sub(r'```.*?```', '', path.read_text(), flags=re.S)
    for target, anchor in re.findall(r'\]\(([^)#\s]*)(?:#([^)\s]+))?\)', text):
        if '://' in target:
            continue
        found = (path.parent / target).resolve() if target else path
        assert found.exists(), target
        assert not anchor or anchor in anchors(found), f'{target}#{anchor}'


def test_each_module_is_in_the_api_reference():
    text = ''.join(path.read_text() for path in (REPO / 'docs/api').glob('*.md'))
    shown = set(re.findall(r'automodule:: ([\w.]+)', text))
    packages = {name for name in shown if hasattr(importlib.import_module(name), '__all__')}
    missing = {
        info.name
        for info in pkgutil.walk_packages(kd_mm.__path__, 'kd_mm.')
        if not info.ispkg
        and info.name not in shown
        and not any(info.name.startswith(f'{package}.') for package in packages - {'kd_mm.utils'})
    }
    assert missing == {
        'kd_mm.version',
        'kd_mm.utils',  # both in kd_mm.utils
        'kd_mm.installation',
    }
