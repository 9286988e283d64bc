"""Uploads in one commit, which either arrives or leaves nothing behind."""

import json
import os
from collections.abc import Mapping, Set
from pathlib import Path

from ..records.errors import get_first_line
from ..records.reports import REPORTS
from ..records.weights import group_by_variant
from .files import list_files
from .pipeline_files import CONFIGS
from .reading import escape_controls


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
    Upload a pipeline folder or a Space in one commit.

    Of a pipeline, this sends weights as safetensors, configurations, the card with its pictures, and the
    package's own source files; of a Space, the app, the package and the local models of its
    `models.yaml`. Nothing else in the folder is sent: [`list_files`] lists the files.

    Args:
        folder (`str` or `os.PathLike`): The folder.
        repo_id (`str`): The repository, `name` or `organisation/name`. It is created if it does not
            exist.
        private (`bool`, *optional*): Whether a new repository is private; by default the setting of the
            account decides.
        revision (`str`, *optional*): Branch to commit to, created if it does not exist; by default the
            main branch.
        create_pr (`bool`, defaults to `False`): Whether to open a pull request instead of committing.
        repo_type (`str`, defaults to `"model"`): What the folder holds, `"model"` or `"space"`.

    Returns:
        `str`: Address of the commit or pull request.

    Raises:
        ValueError: The folder cannot be uploaded, or the upload failed; the message says in what state
            the repository is.
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
    Upload files in one commit, which also deletes what they replace under other names.

    These are shards and indexes of weights whose variant is uploaded, from which diffusers would load the
    earlier weights, and reports about weights of which none remain.

    If the upload fails, a repository or branch that was created for it is deleted again.

    Args:
        files (`Mapping[str, Path]`): The files by their path in the repository.
        repo_id, private, revision, create_pr, repo_type: As for [`push_to_hub`].

    Returns:
        `str`: Address of the commit or pull request.

    Raises:
        ValueError: The upload failed; the message says in what state the repository is.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    repository = _Repository(repo_id, repo_type)
    try:
        # Unreadable files are found before anything is created.
        operations = [CommitOperationAdd(name, read_public(path)) for name, path in files.items()]
        repository.prepare(private, revision)
        outdated = _list_outdated(files.keys(), repository.list_files(revision))
        operations += [CommitOperationDelete(name) for name in outdated]
        commit = repository.api.create_commit(
            repository.repo_id,
            operations,
            repo_type=repo_type,
            revision=revision,
            create_pr=create_pr,
            commit_message=f"Upload a {'Space' if repo_type == 'space' else 'pipeline'}",
        )
    except BaseException as error:  # an interrupted upload is undone, too
        state = repository.undo()
        if not isinstance(error, Exception):
            raise
        raise ValueError(_explain(error, repository.repo_id, state)) from error
    return commit.pr_url or commit.commit_url


def _list_outdated(new: Set[str], present: Set[str]) -> list[str]:
    """List the files of a repository that belong to the weights which new files replace."""
    outdated: set[str] = set()
    remains = False  # whether there are weights that are not replaced
    for folder in {name.rpartition("/")[0] for name in new}:
        groups = [
            group_by_variant(name.rpartition("/")[2] for name in names if name.rpartition("/")[0] == folder)
            for names in (new, present)
        ]
        for variant, names in groups[1].items():
            if variant in groups[0]:
                outdated |= {f"{folder}/{name}" for name in names}
            else:
                remains = True
    if not remains:
        outdated |= {*REPORTS} & present
    return sorted(outdated - new)


def read_public(path: Path) -> Path | bytes:
    """
    Read what may be published of a file.

    diffusers writes into a configuration where it was loaded from; that entry is removed.

    Args:
        path (`Path`): The file.

    Returns:
        `Path` or `bytes`: The file itself, or its content without that entry.
    """
    if path.name not in ("model_index.json", *CONFIGS):
        return path
    entries = json.loads(path.read_text(encoding="utf-8"))
    if entries.pop("_name_or_path", None) is None:
        return path
    return (json.dumps(entries, indent=2, sort_keys=True) + "\n").encode()


class _Repository:
    """The repository that a push goes to, with a record of what the push has created."""

    def __init__(self, repo_id: str, repo_type: str):
        from huggingface_hub import HfApi

        self.api = HfApi()
        self.repo_id = repo_id
        self.repo_type = repo_type
        self.address = repo_id
        self.is_new = False
        self.new_branch: str | None = None
        self.heads: dict[str, str] | None = (
            None  # the commit of each branch and pull request before the upload
        )

    def prepare(self, private: bool | None, revision: str | None) -> None:
        """Create the repository and the branch if needed; refuse a repository of something else."""
        self._create(private)
        self.heads = self._read_heads()
        if private and not self.is_new and not self._is_private():
            raise ValueError("it is already public, but a private repository was requested")
        self._refuse_other_content()
        if revision and f"refs/heads/{revision}" not in self.heads:
            self.api.create_branch(self.repo_id, repo_type=self.repo_type, branch=revision)
            self.new_branch = revision
            self.heads = self._read_heads()

    def undo(self) -> str:
        """Delete what the push has created, unless something else was added; describe the result."""
        if self.heads is None and not self.is_new:
            return UNCHANGED
        try:
            if self._has_changed():
                return f"it has changed in the meantime, perhaps through this upload: check {self.address}"
            if self.is_new:
                self.api.delete_repo(self.repo_id, repo_type=self.repo_type)
            elif self.new_branch:
                self.api.delete_branch(self.repo_id, repo_type=self.repo_type, branch=self.new_branch)
        except Exception as error:  # must not hide why the upload failed
            return self._describe_remains(f"({escape_controls(get_first_line(error))})")
        return UNCHANGED

    def _create(self, private: bool | None) -> None:
        from huggingface_hub.errors import HfHubHTTPError

        options = {
            "repo_type": self.repo_type,
            "space_sdk": "gradio" if self.repo_type == "space" else None,
            "private": private,
        }
        try:
            url = self.api.create_repo(self.repo_id, **options)
            self.is_new = True
        except HfHubHTTPError as error:
            if error.response.status_code not in (403, 409):
                raise
            # It exists, or this account may not create it.
            url = self.api.create_repo(self.repo_id, exist_ok=True, **options)
        self.repo_id = url.repo_id
        self.address = str(url)

    def _is_private(self) -> bool:
        return self.api.repo_info(self.repo_id, repo_type=self.repo_type).private

    def _refuse_other_content(self) -> None:
        expected = "app.py" if self.repo_type == "space" else "model_index.json"
        files = self.list_files()
        if files and expected not in files:
            raise ValueError(f"it holds something else, such as {escape_controls(min(files))}")

    def _has_changed(self) -> bool:
        if self.heads is None:  # it is new, and its branches have not been read
            return bool(self.list_files())
        return self._read_heads() != self.heads

    def _describe_remains(self, reason: str) -> str:
        if self.is_new:
            settings = f"{self.address}/settings"
            return f"the repository created for it could not be deleted {reason}: delete it at {settings}"
        if self.new_branch:
            return f"the branch {self.new_branch} created for it could not be deleted {reason}"
        return f"it is unknown whether anything was changed {reason}"

    def list_files(self, revision: str | None = None) -> set[str]:
        """List the files of the repository, except those that the Hub puts into every new one."""
        files = set(self.api.list_repo_files(self.repo_id, repo_type=self.repo_type, revision=revision))
        return files - {".gitattributes", "README.md"}

    def _read_heads(self) -> dict[str, str]:
        refs = self.api.list_repo_refs(self.repo_id, repo_type=self.repo_type, include_pull_requests=True)
        return {ref.ref: ref.target_commit for ref in [*refs.branches, *(refs.pull_requests or [])]}


def _explain(error: Exception, repo_id: str, state: str) -> str:
    """Explain in one sentence why an upload failed, and in what state the repository is."""
    from huggingface_hub.errors import LocalTokenNotFoundError

    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, LocalTokenNotFoundError) or status == 401:
        return (
            f"You are not logged in to the Hub, and {state}: run `hf auth login`, or set HF_TOKEN to a token"
            " with write permission."
        )
    if status == 403:
        return (
            f"Your token may not write to {repo_id}, and {state}: use a token that may, or a repository of"
            " your own."
        )
    if status == 409:
        return f"{repo_id} was changed at the same time, and this upload was refused: try again."
    if status and status >= 500:
        return f"The Hub cannot answer ({status}), and {state}: try again, and only what is missing is sent."
    return f"The upload to {repo_id} failed, and {state}: {escape_controls(get_first_line(error))}"
