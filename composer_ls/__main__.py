"""``python -m composer_ls``, which is also how Composer's launcher starts several processes."""

from composer_ls.lab.commands.cli import main

main()
