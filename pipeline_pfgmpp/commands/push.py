"""
Upload a pipeline folder or a Space to the Hub.

Of a pipeline, this sends weights, configurations, card and code in one commit, and nothing else; of a
Space, also the package and its local models.
"""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """
    Add the arguments of `pfgmpp push`.

    Args:
        parser (`argparse.ArgumentParser`): The parser of the command.
    """
    parser.add_argument("folder", help="the pipeline folder, or the folder of the Space")
    parser.add_argument(
        "repo_id", help="the repository, organisation/name; it is created if it does not exist"
    )
    parser.add_argument(
        "--repo-type",
        choices=["model", "space"],
        default="model",
        help="what the folder holds (default: %(default)s)",
    )
    parser.add_argument("--private", action="store_true", default=None, help="make a new repository private")
    parser.add_argument("--revision", help="branch to commit to (default: main)")
    parser.add_argument("--create-pr", action="store_true", help="open a pull request instead of committing")
    parser.add_argument("--dry-run", action="store_true", help="list what would be sent, without sending it")


def run(args: argparse.Namespace) -> None:
    """
    List the files to send, and send them.

    Args:
        args (`argparse.Namespace`): Arguments of [`add_arguments`].
    """
    from ..hub import describe_files, list_files, upload_files

    files = list_files(args.folder, args.repo_type)
    print(describe_files(files), flush=True)
    if args.dry_run:
        return
    address = upload_files(files, args.repo_id, args.private, args.revision, args.create_pr, args.repo_type)
    print(f"Pushed {args.folder}: {address}")
