"""Reading configs. What is wrong in them is tested in test_run/test_bad_input.py."""

import pytest
from mmengine.config.utils import MODULE2PACKAGE

from kd_mm.config import read_config


def test_a_package_must_be_installed_for_its_configs(tmp_path, monkeypatch):
    (tmp_path / 'strange_project').mkdir()
    (tmp_path / 'strange_project/__init__.py').touch()
    (tmp_path / 'mine.py').write_text("_base_ = 'strange_project::a/b.py'")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(MODULE2PACKAGE, 'strange_project', 'strange_project')
    with pytest.raises(FileNotFoundError, match='must be installed, by pip install -e'):
        read_config(tmp_path / 'mine.py')
