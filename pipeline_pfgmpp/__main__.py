"""`python -m pipeline_pfgmpp` is `pfgmpp`."""

from .commands import main


main()
