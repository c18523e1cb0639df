"""The code behind the ``composer-ls`` command: recipes, training, comparisons and reports.

The lab uses the method, and the method never uses the lab. Importing this package registers all tasks for recipes.
"""

from composer_ls.lab.tasks import registry as _registry  # noqa: F401
