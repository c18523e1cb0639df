"""What ``composer-ls`` runs: recipes, training, comparisons and pages. It uses the method, and nothing of the method uses it.

Importing it tells recipes which tasks there are.
"""

from composer_ls.lab.tasks import registry as _registry  # noqa: F401
