"""Uploading in one commit that either arrives or leaves nothing behind."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

from .files import CONFIGS, list_files
from .reading import printable


UNCHANGED = "nothing was changed"


def push_to_hub(
    folder: str | os.PathLike,
    repo_id: str,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    repo_type: str = "model",
) -> str:
    """
    Uploads a pipeline folder in one commit: weights as safetensors, configurations, the card and
    the pictures that it shows, the package's own source files, and nothing else that lies there. Of
    a Space it uploads the app, with the package's source files and the local models of its
    `models.yaml` beside it, for the package is on no index. [`list_files`] lists them.

    Args:
        folder (`str` or `os.PathLike`): The folder.
        repo_id (`str`): Repository to upload to, `name` or `organisation/name`; it is made if it is
            not there.
        private (`bool`, *optional*): Whether a repository that is made is private; by default as
            the account has it.
        revision (`str`, *optional*): Branch to commit to, which is made if it is not there; by
            default the main one.
        create_pr (`bool`, defaults to `False`): Whether to propose the commit instead.
        repo_type (`str`, defaults to `"model"`): What the folder holds: `"model"` or `"space"`.

    Returns:
        `str`: Address of the commit, or of the proposal.

    Raises:
        ValueError: The folder holds no such thing, or it cannot be uploaded; the message says what
            is on the Hub then.
    """
    return upload_files(list_files(folder, repo_type), repo_id, private, revision, create_pr, repo_type)


def upload_files(
    files: Mapping[str, Path],
    repo_id: str,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    repo_type: str = "model",
) -> str:
    """
    Uploads files in one commit. If that fails, a repository or a branch that was made for it is
    deleted again.

    Args:
        files (`Mapping[str, Path]`): The files, by their path in the repository.
        repo_id, private, revision, create_pr, repo_type: As for [`push_to_hub`].

    Returns:
        `str`: Address of the commit, or of the proposal.

    Raises:
        ValueError: The upload failed; the message says what is on the Hub then.
    """
    from huggingface_hub import CommitOperationAdd

    repository = _Repository(repo_id, repo_type)
    try:
        operations = [
            CommitOperationAdd(name, read_public(path)) for name, path in files.items()
        ]  # before anything is made
        repository.prepare(private, revision)
        commit = repository.api.create_commit(
            repository.repo_id,
            operations,
            repo_type=repo_type,
            revision=revision,
            create_pr=create_pr,
            commit_message=f"Upload a {'Space' if repo_type == 'space' else 'pipeline'}",
        )
    except BaseException as error:  # an interruption takes back what was made, too
        state = repository.take_back()
        if not isinstance(error, Exception):
            raise
        raise ValueError(_explain(error, repository.repo_id, state)) from error
    return commit.pr_url or commit.commit_url


def read_public(path: Path) -> Path | bytes:
    """
    Reads what may be told of a file: of a configuration all but where it was loaded from, which
    diffusers writes into it.

    Args:
        path (`Path`): The file.

    Returns:
        `Path` or `bytes`: The file as it is, or what remains of it.
    """
    if path.name not in ("model_index.json", *CONFIGS):
        return path
    entries = json.loads(path.read_text(encoding="utf-8"))
    if entries.pop("_name_or_path", None) is None:
        return path
    return (json.dumps(entries, indent=2, sort_keys=True) + "\n").encode()


class _Repository:
    """A repository that a push goes to, which knows what the push has made there."""

    def __init__(self, repo_id, repo_type):
        from huggingface_hub import HfApi

        self.api = HfApi()
        self.repo_id = repo_id
        self.repo_type = repo_type
        self.address = repo_id
        self.is_new = False
        self.new_branch = None
        self.heads = None  # the commit of each branch and proposal, before the upload

    def prepare(self, private, revision):
        """
        Makes the repository and the branch where they are not there; raises where something else is
        there.
        """
        self._create(private)
        self.heads = self._read_heads()
        if (
            private
            and not self.is_new
            and not self.api.repo_info(self.repo_id, repo_type=self.repo_type).private
        ):
            raise ValueError("it is public already, though a private one is asked for")
        mark = (
            "app.py" if self.repo_type == "space" else "model_index.json"
        )  # what holds something else lacks it
        there = self._list_files()
        if there and mark not in there:
            raise ValueError(f"it is taken by something else, which holds {printable(min(there))}")
        if revision and f"refs/heads/{revision}" not in self.heads:
            self.api.create_branch(self.repo_id, repo_type=self.repo_type, branch=revision)
            self.new_branch = revision
            self.heads = self._read_heads()

    def take_back(self):
        """
        Deletes what the push has made, unless something else has come there; says what is there
        now.
        """
        if self.heads is None and not self.is_new:
            return UNCHANGED
        try:
            if self._list_files() if self.heads is None else self._read_heads() != self.heads:
                return f"it has changed meanwhile, perhaps by this upload: look at {self.address}"
            if self.is_new:
                self.api.delete_repo(self.repo_id, repo_type=self.repo_type)
            elif self.new_branch:
                self.api.delete_branch(self.repo_id, repo_type=self.repo_type, branch=self.new_branch)
        except Exception as error:  # nothing may hide why the upload failed
            reason = f"({printable(_first_line(error))})"
            if self.is_new:
                return f"the repository that was made for it is still there {reason}: delete it at {self.address}/settings"
            if self.new_branch:
                return f"the branch {self.new_branch} that was made for it is still there {reason}"
            return f"whether anything was changed is not known {reason}"
        return UNCHANGED

    def _create(self, private):
        from huggingface_hub.errors import HfHubHTTPError

        options = {
            "repo_type": self.repo_type,
            "space_sdk": "gradio" if self.repo_type == "space" else None,
            "private": private,
        }
        try:
            address = self.api.create_repo(self.repo_id, **options)
            self.is_new = True
        except HfHubHTTPError as error:
            if error.response.status_code not in (403, 409):
                raise
            address = self.api.create_repo(
                self.repo_id, exist_ok=True, **options
            )  # it is there, or may not be made
        self.repo_id = address.repo_id
        self.address = str(address)

    def _list_files(self):
        """The files there, but those that the Hub itself puts into a new repository."""
        return set(self.api.list_repo_files(self.repo_id, repo_type=self.repo_type)) - {
            ".gitattributes",
            "README.md",
        }

    def _read_heads(self):
        refs = self.api.list_repo_refs(self.repo_id, repo_type=self.repo_type, include_pull_requests=True)
        return {ref.ref: ref.target_commit for ref in [*refs.branches, *(refs.pull_requests or [])]}


def _explain(error, repo_id, state):
    """Why an upload failed, and what is on the Hub now, in one sentence."""
    from huggingface_hub.errors import LocalTokenNotFoundError

    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, LocalTokenNotFoundError) or status == 401:
        return f"You are not logged in to the Hub, and {state}: run `hf auth login`, or set HF_TOKEN to a token that may write."
    if status == 403:
        return f"Your token may not write to {repo_id}, and {state}: use one that may, or name a repository of your own."
    if status == 409:
        return f"{repo_id} was changed at the same time, and this upload was refused: try again."
    if status and status >= 500:
        return f"The Hub cannot answer ({status}); {state}, and a second try sends what is missing."
    return f"The upload to {repo_id} failed, and {state}: {printable(_first_line(error))}"


def _first_line(error):
    return next(iter(str(error).splitlines()), repr(error))
