"""What the docs show is run: commands, configs, links.

The real parser of the tool takes the flags of each command, and each config loads, with types and
options that exist. Shell scripts run with stubs of Python and srun; the tour is run, in short.
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

import pytest
from mmengine.config import Config

import kd_mm
from kd_mm.analysis import reproduction
from kd_mm.config import read_config
from kd_mm.run.check_types import check_types
from tests.conftest import REPO, run
from tests.forked import run_tool

PATTERNS = ('*.md', 'docs/**/*.md', 'configs/*/README.md', 'demo/**/*.md')
PAGES = sorted(p for pattern in PATTERNS for p in REPO.glob(pattern) if '_build' not in p.parts)
INLINE = re.compile(r'`((?:python tools/|tools/\w+\.sh )[^`]*)`')
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
# Steps that no tool of ours takes part in.
OTHERS = (
    'python3 -m venv ',
    '. .venv/',
    'pip ',
    'pytest',
    'pre-commit ',
    'sphinx-build ',
    'mim ',
)
SCRIPT = '#!/usr/bin/env bash\nprintf \'%s\\0\' "$@" >"$RECORD"\n'


def blocks(path, *languages):
    """Return the fenced blocks of a page."""
    return [text for _, language, text in BLOCK.findall(path.read_text()) if language in languages]


def commands(path, inline=True):
    """Return the commands of a page's blocks and text; of a synopsis, each of its readings."""
    text = BLOCK.sub('', path.read_text()).replace('\\|', '|')
    shell = '\n'.join(blocks(path, 'bash', 'shell')).replace('\\\n', ' ').splitlines()
    lines = []
    for line in shell + (INLINE.findall(text) if inline else []):
        for variant in variants(line):
            words = shlex.split(variant, comments=True)
            pieces = itertools.groupby(words, lambda word: word == '&&')
            lines += [shlex.join(piece) for joint, piece in pieces if not joint]
    return list(dict.fromkeys(lines))


def variants(line):
    """Return the readings of a synopsis: ``[--a X]`` with it, ``--a | --b`` and ``a|b`` each."""
    if optional := re.search(r' \[(--[^]]*)\]', line):
        head, tail = line[: optional.start()], line[optional.end() :]
        choices = optional[1].replace(' ...', '').split(' | ')
        return [text for choice in choices for text in variants(f'{head} {choice}{tail}')]
    choices = re.search(r'(?<= )(\w+(?:\|\w+)+)', line)
    return [line.replace(choices[1], c) for c in choices[1].split('|')] if choices else [line]


def filled(line):
    """Return a command without placeholders."""
    names = '|'.join(map(re.escape, PLACEHOLDERS))
    pattern = rf'(?<![A-Za-z])({names})(?![A-Za-z])'
    return re.sub(pattern, lambda match: PLACEHOLDERS[match[1]], line)


@cache
def parser_of(name):
    """Return the function of a tool that parses its arguments."""
    spec = importlib.util.spec_from_file_location(f'docs_{Path(name).stem}', REPO / name)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    return next(function for key, function in vars(tool).items() if key.startswith('parse_'))


def check_tool(name, arguments):
    """Let a tool's own parser take its flags, and load its configs."""
    parse = parser_of(name)
    with mock.patch.object(sys, 'argv', [name, *arguments]), mock.patch.dict(os.environ):
        args = vars(parse())
    options = tuple((args.get('cfg_options') or {}).items())
    for value in args.values():
        for word in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(word, str) and word.endswith('.py') and not word.startswith('work_dirs'):
                check_config(word, options)
    if name == 'tools/reproduce.py':
        names = {row.name for row in reproduction.load_table(args['table'], REPO / 'configs')}
        assert set(args['rows'] or ()) <= names


@cache
def check_config(path, options):
    """Check that a config is there, and that its types, and the options given, exist."""
    check_types(read_config(REPO / path, dict(options)).to_dict())


def check_script(name, arguments, env, folder):
    """Run a shell script with stubs, and check the tool that it would start."""
    for stub in ('python', 'srun'):
        (folder / stub).write_text(SCRIPT)
        (folder / stub).chmod(0o755)
    env |= {'PATH': f'{folder}:/usr/bin:/bin', 'RECORD': str(folder / 'record')}
    run(['bash', REPO / name, *arguments], **env)
    words = (folder / 'record').read_text().split('\0')[:-1]
    assert '' not in words
    (at,) = [i for i, word in enumerate(words) if word.endswith(('/train.py', '/test.py'))]
    check_tool(f'tools/{Path(words[at]).name}', words[at + 1 :])


def check_command(line, folder):
    """Raise an error unless a command would run."""
    words, env = shlex.split(filled(line)), {}
    while re.match(r'[A-Z_]+=', words[0]):
        key, _, env[key] = words.pop(0).partition('=')
    program, *arguments = words
    if program == 'python' and arguments[0].startswith(('tools/', 'demo/')):
        check_tool(arguments[0], arguments[1:])
    elif re.fullmatch(r'tools/\w+\.sh', program):
        check_script(program, arguments, env, folder)
    else:
        assert line.startswith(OTHERS), f'no test runs {line!r}'


COMMANDS = {f'{p.relative_to(REPO)}: {line}': line for p in PAGES for line in commands(p)}


@pytest.mark.parametrize('line', COMMANDS.values(), ids=COMMANDS)
def test_command_runs(line, tmp_path):
    check_command(line, tmp_path)


def test_the_tour_leads_where_it_says(tmp_path):
    for name in ('configs', 'tools'):
        (tmp_path / name).symlink_to(REPO / name)
    short = ['train_cfg.max_epochs=1', 'train_dataloader.batch_size=32']
    short += [f'{loader}_dataloader.dataset.indices=64' for loader in ('train', 'val')]
    accuracies = []
    for line in commands(REPO / 'docs/tour.md', inline=False):
        _, name, *arguments = shlex.split(filled(line).replace('epoch_20.pth', 'epoch_1.pth'))
        if not name.startswith('tools/') or 'doctor' in name:
            continue
        if name == 'tools/train.py':
            arguments += ['--cfg-options'] * ('--cfg-options' not in arguments) + short
        printed = run_tool(name.removeprefix('tools/'), *arguments, cwd=tmp_path).stdout
        if name == 'tools/test.py':
            accuracies += re.findall(r'accuracy/top1: ([\d.]+)', printed)
    work_dir = tmp_path / 'work_dirs/resnet20_1xb64_digits'
    for name in ('epoch_1.pth', 'learning_curves.png', 'deploy/model.pth', 'deploy/config.py'):
        assert (work_dir / name).exists(), name
    assert len(accuracies) == 2
    assert accuracies[0] == accuracies[1]  # the exported network answers the same
    assert (tmp_path / 'report.html').stat().st_size > 10_000


# Those of README.md, configs/ and add_method.md are built by tests of their own.
CODES = [
    pytest.param(path, index, id=f'{path.relative_to(REPO)}-{index}')
    for path in PAGES
    if path.name not in ('README.md', 'add_method.md')
    for index in range(len(blocks(path, 'python')))
]


@pytest.mark.parametrize(('path', 'index'), CODES)
def test_python_of_the_docs_loads(path, index, tmp_path):
    """Configs with types and options that exist; programs with imports that work."""
    code = [text.replace('kd_mm::', f'{REPO}/configs/') for text in blocks(path, 'python')]
    tree = ast.parse(code[index])
    if all(isinstance(node, ast.Assign) for node in tree.body):
        (tmp_path / 'mine.py').write_text(code[0])  # what later ones on a page inherit
        base = f'_base_ = {str(REPO / PLACEHOLDERS["CONFIG"])!r}\n'  # of parts of a config
        text = code[index] if '_base_ =' in code[index] else base + code[index]
        (tmp_path / 'block.py').write_text(text)
        check_types(Config.fromfile(tmp_path / 'block.py').to_dict())
    for node in (node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))):
        for name in node.names:
            module = importlib.import_module(getattr(node, 'module', None) or name.name)
            assert isinstance(node, ast.Import) or hasattr(module, name.name)


# Links and completeness. Sphinx checks the anchors.


@pytest.mark.parametrize('path', PAGES, ids=lambda path: str(path.relative_to(REPO)))
def test_links_lead_somewhere(path):
    text = re.sub(r'```.*?```', '', path.read_text(), flags=re.S)
    targets = re.findall(r'\]\(([^)#\s]+)(?:#[^)\s]+)?\)', text)
    assert not [t for t in targets if '://' not in t and not (path.parent / t).exists()]


def test_each_module_is_in_the_api_reference():
    text = ''.join(path.read_text() for path in (REPO / 'docs/api').glob('*.md'))
    shown = set(re.findall(r'automodule:: ([\w.]+)', text))
    packages = {name for name in shown if hasattr(importlib.import_module(name), '__all__')}
    modules = {m.name for m in pkgutil.walk_packages(kd_mm.__path__, 'kd_mm.') if not m.ispkg}
    inside = {name for name in modules for package in packages if name.startswith(f'{package}.')}
    assert modules - shown - inside <= {'kd_mm.version', 'kd_mm.utils', 'kd_mm.installation'}
