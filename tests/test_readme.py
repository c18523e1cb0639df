"""README's Python examples run, and its commands are the ones that exist."""

import re
from pathlib import Path

import pytest

from composer_ls.training.recipe import load_recipe, recipe_path

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", README, re.S))
def test_example_runs_and_prints_what_it_says(code, capsys):
    exec(compile(code, "README.md", "exec"), {})
    for shown in re.findall(r"print\(.*\)  # (.*)", code):
        assert shown in capsys.readouterr().out


def test_every_command_names_a_recipe_and_keys_that_exist():
    commands = re.findall(r"composer_?-?ls train (\S+)((?: [a-z_.]+=\S+(?: \d.\d}')?)*)", README)
    assert len(commands) >= 4
    for name, overrides in commands:
        if name != "mine.yaml":
            assert recipe_path(name).is_file()
            assert (
                load_recipe(name, overrides.replace("'", "").replace(": 0", ":0").split())
                if ":" not in overrides
                else True
            )
