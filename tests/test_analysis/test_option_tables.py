import pytest

from kd_mm.analysis.option_tables import describe, fill_options, options_table
from kd_mm.methods import BAKE, FFSD, SigmoidRamp
from kd_mm.models.heads import BAKEHead


class Toy:
    """A toy.

    Args:
        weight (float): :math:`\\lambda` >= 0, of :class:`~kd_mm.Toy`, ``'a'`` | ``'b'``. Defaults
            to 0.5.
        mode (str, optional): How. Defaults to ``'a'``, the paper's.
        path: Where.
        **kwargs: Arguments of :class:`Base`.

    Raises:
        ValueError: Never.
    """

    def __init__(self, path, *args, weight=0.5, mode='a', **kwargs):
        pass


class Undescribed(Toy):
    """Another.

    Args:
        path: Where.
    """

    def __init__(self, path, speed=1):
        pass


def test_table_has_each_option_with_default_and_meaning():
    assert options_table(Toy).splitlines() == [
        '| option | default | meaning |',
        '| :-- | :-- | :-- |',
        "| `weight` | `0.5` | $\\lambda$ >= 0, of `kd_mm.Toy`, `'a'` \\| `'b'`. |",
        "| `mode` | `'a'` | How. Default: the paper's. |",
        '| `path` | required | Where. |',
        '| other options | | Arguments of `Base`. |',
    ]


def test_option_without_description_is_refused():
    with pytest.raises(ValueError, match=r'Undescribed must describe .* differ in speed'):
        options_table(Undescribed)


def test_keyword_only_and_inherited_options_are_known():
    assert list(describe(BAKEHead)) == [
        'omega', 'temperature', 'loss_weight', 'gather', 'group_size', '**kwargs'
    ]  # fmt: skip
    assert '| `omega` | `0.5` | Weight in [0, 1) ' in options_table(BAKE)
    assert '| `leader` |' in options_table(FFSD)
    table = options_table(SigmoidRamp)  # whose signature is that of its base
    assert '| `epochs` | required |' in table
    assert '| `value` | `1.0` |' in table


def test_table_replaces_what_stood_there():
    text = 'a\n<!-- options of kd_mm.methods.BAKE -->\nold\n<!-- end of options -->\nb'
    filled = fill_options(text)
    assert filled.startswith('a\n<!-- options of kd_mm.methods.BAKE -->\n\n| option |')
    assert filled.endswith('|\n\n<!-- end of options -->\nb')
    assert 'old' not in filled
    assert fill_options(filled) == filled
