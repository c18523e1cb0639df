"""Functions of the user's that a recipe names."""

import sys
import textwrap

import pytest

from composer_ls.errors import RecipeError
from composer_ls.lab.tasks.target import call_target


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Writes a module into the current folder, which is not on the path at first."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place not in ("", str(tmp_path))])
    loaded = set(sys.modules)

    def write(name, text):
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(text))
        return name

    yield write
    for name in set(sys.modules) - loaded:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def test_a_function_of_the_current_folder_gets_what_it_asks_for(own):
    own("mine_a", "def make(num_classes, width=2): return num_classes, width")
    offered = {"num_classes": 10, "image_shape": (1, 8, 8)}
    assert call_target("model.target", "mine_a:make", {}, offered) == (10, 2)
    assert call_target("model.target", "mine_a:make", {"num_classes": 3, "width": 5}, offered) == (3, 5)


def test_a_method_of_a_class_is_a_function_too(own):
    own("mine_b", "class Nets:\n    @staticmethod\n    def make(): return 7")
    assert call_target("model.target", "mine_b:Nets.make", {}) == 7


@pytest.mark.parametrize(
    ("text", "target", "arguments", "message"),
    [
        (
            None,
            "nowhere.nets:make",
            {},
            "there is no module nowhere, neither among the installed packages nor in the cur",
        ),
        (None, "json.nets:make", {}, "there is no module json.nets"),
        ("def make(): pass", "{}:mak", {}, "there is no mak in .*py: did you mean make\\? it has make"),
        ("make = 3", "{}:make", {}, "is int, but must be a function"),
        ("def make(a): pass", "{}:make", {"b": 1}, "cannot be called with the arguments b .*: it is make\\(a\\)"),
        ("def make(a): pass", "{}:make", {}, "the arguments that it is given: none .*missing a required argument: 'a'"),
    ],
)
def test_what_cannot_be_called_is_named_with_what_is_there(own, text, target, arguments, message, request):
    name = f"mine_{abs(hash(request.node.name))}"
    if text is not None:
        own(name, text)
    with pytest.raises(RecipeError, match=message):
        call_target("model.target", target.format(name), arguments)


@pytest.mark.parametrize(
    ("text", "name", "happened"),
    [
        ("def make():\n    return helper()\ndef helper():\n    return 1 / 0\n", "mine_c", "failed: ZeroDivisionError"),
        ("import torch\nhalf = 1 / 0\n", "mine_d", "cannot be imported: ZeroDivisionError"),
        ("import package_that_is_not_there\n", "mine_e", "cannot be imported: ModuleNotFoundError"),
        ("def make(:\n", "mine_f", "cannot be imported: SyntaxError"),
    ],
)
def test_an_error_inside_is_shown_with_its_own_traceback_and_without_ours(own, text, name, happened):
    own(name, text)
    with pytest.raises(RecipeError) as raised:
        call_target("model.target", f"{name}:make", {})
    message = str(raised.value)
    assert message.startswith(f"model.target={name}:make {happened}")
    assert f"{name}.py" in message
    assert "composer_ls/lab" not in message
    assert "importlib" not in message
    if name == "mine_c":
        assert "in make\n" in message
        assert "in helper\n" in message


def test_text_for_an_argument_that_is_true_or_false_is_refused():
    with pytest.raises(
        RecipeError, match="model.arguments.sort_keys is 'no', but must be true or false, as its default False is"
    ):
        call_target("model.target", "json:dumps", {"obj": 1, "sort_keys": "no"})
