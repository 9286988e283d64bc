"""`python -m pipeline_pfgmpp` is `pfgmpp`."""

from .cli import main


main()
