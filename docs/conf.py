"""How the site is built, from the root of the repository and without network.

    sphinx-build -W --keep-going -n -c docs . docs/_build

The whole repository is the source, so that links between Markdown files are the same here and
where the repository is browsed.
"""

import sys
from pathlib import Path

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.util.logging import getLogger
from sphinx.writers.html5 import HTML5Translator

LOGGER = getLogger(__name__)
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from kd_mm import __version__  # noqa: E402

project = 'kd_mm'
author = 'kd_mm contributors'
copyright = 'kd_mm contributors, Apache 2.0 license'
version = release = __version__

root_doc = 'docs/index'
include_patterns = ['docs/**', 'configs/*/README.md', 'CONTRIBUTING.md', 'CHANGELOG.md']
exclude_patterns = [
    'docs/_build',
    'docs/_static',
    'docs/_extra',
    '**/.*',
    '.*',
    'data',
    'work_dirs',
]

extensions = [
    'myst_parser',
    'sphinx.ext.autodoc',
    'sphinx.ext.napoleon',
    'sphinx.ext.viewcode',
    'sphinx_copybutton',
]
myst_enable_extensions = ['dollarmath']
myst_heading_anchors = 4

autodoc_member_order = 'bysource'
autodoc_typehints = 'signature'
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

# Types of other packages, whose pages are on the network, and words where a type may stand.
nitpick_ignore_regex = [
    (r'py:.*', r'(torch|mmengine|mmpretrain)\..*'),
    (r'py:(class|obj|exc|data)', r'(?!kd_mm\.).*'),
]

html_theme = 'furo'
html_title = f'kd_mm {release}'
html_static_path = ['_static']
html_extra_path = ['_extra']  # the address of the site leads to its front page
html_css_files = ['kd_mm.css']
html_show_sphinx = False
html_math_renderer = 'mathml'


def mathml(node: nodes.Element, display: str) -> str:
    """Return a formula as MathML; commands that the converter does not know are a warning."""
    formula = convert(node.astext().replace(r'\arg', r'\operatorname{arg}'), display=display)
    if '\\' in formula:
        LOGGER.warning('unknown command in the formula %s', node.astext(), location=node)
    return formula


def visit_math(translator: HTML5Translator, node: nodes.math) -> None:
    """Write MathML, which browsers show without scripts."""
    translator.body.append(mathml(node, 'inline'))
    raise nodes.SkipNode


def visit_math_block(translator: HTML5Translator, node: nodes.math_block) -> None:
    """Write MathML on a line of its own."""
    translator.body.append(f'<div class="math">{mathml(node, "block")}</div>\n')
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    """Register how formulas are written."""
    app.add_html_math_renderer('mathml', (visit_math, None), (visit_math_block, None))
