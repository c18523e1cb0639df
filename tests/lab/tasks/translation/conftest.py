"""A toy language and a run that has learnt it, which takes some seconds."""

import pytest
import toy_language

from composer_ls.lab.recipe.reading import load_recipe
from composer_ls.lab.run_folder.folder import RunFolder
from composer_ls.lab.training.train import train


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy")
    toy_language.write(folder)
    return folder


@pytest.fixture(scope="session")
def run(data):
    recipe = load_recipe(data / "toy.yaml")
    folder = RunFolder(data / "run", recipe)
    train(recipe, folder, progress=False)
    return folder.path
