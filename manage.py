#!/usr/bin/env python
"""Django's command line for Citadel; `bin/manage` runs it inside the virtual environment."""

import os
import sys

if __name__ == "__main__":
    if sys.argv[1:2] == ["agent"]:  # it runs on machines that have no Citadel: no settings, no database
        from apps.orchestration.agent import main

        sys.exit(main(sys.argv[2:]))

    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "citadel.settings")
    if sys.argv[1:2] == ["doctor"]:  # not one of Django's: it must tell what is wrong with Django's own settings too
        from citadel.doctor import rounds

        sys.exit(rounds.main(sys.argv[2:], sys.stdout))

    from django.core.exceptions import ImproperlyConfigured
    from django.core.management import execute_from_command_line

    try:
        execute_from_command_line(sys.argv)
    except ImproperlyConfigured as problem:
        sys.exit(str(problem))
