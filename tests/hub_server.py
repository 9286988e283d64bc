"""
A Hub on 127.0.0.1 for the real huggingface_hub client: repositories with commits, branches and large
files, permissions, and accidents.

Large files, which the client sends to the real Hub through Xet, are sent as LFS (HF_HUB_DISABLE_XET).
"""

import base64
import contextlib
import hashlib
import json
import threading
import time
from pathlib import Path
from urllib.parse import parse_qs

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response


WRITER = "hf_writer"
READER = "hf_reader"
ANSWER_LOST = "answer lost"  # an accident after the request has been served
LARGE = 100_000  # files of at least so many bytes go to the large file storage


def make_failure(status, code, message):
    return JSONResponse({"error": message}, status, {"X-Error-Code": code, "X-Error-Message": message})


class Repository:
    """Commits, each with all of its files, and branches."""

    def __init__(self, private=False):
        self.private = private
        self.commits = {}
        self.branches = {}
        self.commit("main", {})

    def commit(self, branch, changes):
        parent = self.branches.get(branch, self.branches.get("main"))
        files = {**self.commits.get(parent, {}), **changes}
        files = {path: content for path, content in files.items() if content is not None}
        sha = hashlib.sha1(f"{parent}{len(self.commits)}".encode()).hexdigest()
        self.commits[sha] = files
        self.branches[branch] = sha
        return sha

    def find(self, revision):
        return self.branches.get(revision, revision if revision in self.commits else None)


class Hub:
    """The state of the server: tests read `files` and `requests`, and add `accidents`."""

    def __init__(self):
        self.repositories = {}
        self.large = {}
        self.requests = []
        self.accidents = []  # (method, part of the path, status or ANSWER_LOST): the next such request fails
        self.lock = threading.Lock()
        self.endpoint = None

    def add(self, folder, repo_id, kind="models", branch="main"):
        """Commit the files of a folder to a branch of a repository."""
        files = {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in Path(folder).rglob("*")
            if path.is_file()
        }
        repository = self.repositories.setdefault((kind, repo_id), Repository())
        for content in files.values():
            if len(content) >= LARGE:
                self.large[hashlib.sha256(content).hexdigest()] = content
        return repository.commit(branch, files)

    def remove(self, repo_id, kind="models"):
        del self.repositories[kind, repo_id]

    def files(self, repo_id, kind="models", branch="main"):
        repository = self.repositories[kind, repo_id]
        return repository.commits[repository.branches[branch]]


class MissingError(Exception):
    """Something that is not there, with the Hub's code for it and a sentence."""


def create_app(hub):
    app = FastAPI()

    def parse_kind(path_kind):
        return path_kind if path_kind in ("models", "datasets", "spaces") else None

    def describe_file(path, content):
        item = {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
        if len(content) >= LARGE:
            item["lfs"] = {
                "oid": hashlib.sha256(content).hexdigest(),
                "size": len(content),
                "pointerSize": 134,
            }
        return item

    def refuse_writing(request, repo_id=None):
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        if not token:
            return make_failure(401, "Unauthorized", "Invalid username or password.")
        if token != WRITER or (repo_id and not repo_id.startswith(("org/", "writer/"))):
            return make_failure(
                403, "Forbidden", "You don't have the rights to create or change this repository."
            )
        return None

    @app.middleware("http")
    async def accidents(request: Request, call_next):
        with hub.lock:
            hub.requests.append((request.method, request.url.path))
            for accident in hub.accidents:
                method, part, status = accident
                if request.method == method and part in request.url.path:
                    hub.accidents.remove(accident)
                    break
            else:
                status = None
        if isinstance(status, int):
            return JSONResponse({"error": "accident"}, status)
        answer = await call_next(request)
        return JSONResponse({"error": "accident"}, 504) if status == ANSWER_LOST else answer

    @app.post("/api/validate-yaml")
    def validate():
        return {"errors": [], "warnings": []}

    @app.get("/api/whoami-v2")
    def whoami(request: Request):
        refused = refuse_writing(request)
        if refused is not None and refused.status_code == 401:
            return refused
        return {
            "name": "writer",
            "type": "user",
            "orgs": [{"name": "org"}],
            "auth": {"accessToken": {"role": "write"}},
        }

    @app.post("/api/repos/create")
    async def create(request: Request):
        asked = await request.json()
        repo_id = f"{asked.get('organization') or 'writer'}/{asked['name']}"
        kind = f"{asked.get('type') or 'model'}s"
        if (refused := refuse_writing(request, repo_id)) is not None:
            return refused
        address = f"{hub.endpoint}/{'' if kind == 'models' else kind + '/'}{repo_id}"
        if (kind, repo_id) in hub.repositories:
            return JSONResponse({"error": "You already created this repo", "url": address}, 409)
        hub.repositories[kind, repo_id] = Repository(
            asked.get("private") or asked.get("visibility") == "private"
        )
        return {"url": address, "name": repo_id}

    @app.delete("/api/repos/delete")
    async def delete(request: Request):
        asked = await request.json()
        repo_id = f"{asked.get('organization') or 'writer'}/{asked['name']}"
        if (refused := refuse_writing(request, repo_id)) is not None:
            return refused
        if hub.repositories.pop((f"{asked.get('type') or 'model'}s", repo_id), None) is None:
            raise MissingError("RepoNotFound", "Repository not found")
        return {}

    @app.exception_handler(MissingError)
    def missing(request: Request, error: MissingError):
        return make_failure(404, *error.args)

    def find_commit(kind, repo_id, revision):
        """A repository, and the commit that a revision of it names."""
        found = hub.repositories.get((parse_kind(kind), repo_id))
        if found is None:
            raise MissingError("RepoNotFound", "Repository not found")
        sha = found.find(revision)
        if sha is None:
            raise MissingError("RevisionNotFound", f"Invalid rev id: {revision}")
        return found, sha

    @app.get("/api/{kind}/{org}/{name}")
    @app.get("/api/{kind}/{org}/{name}/revision/{revision:path}")
    def info(kind: str, org: str, name: str, revision: str = "main"):
        found, sha = find_commit(kind, f"{org}/{name}", revision)
        siblings = [{"rfilename": path} for path in sorted(found.commits[sha])]
        common = {
            "id": f"{org}/{name}",
            "sha": sha,
            "siblings": siblings,
            "tags": [],
            "private": found.private,
        }
        return {**common, "_id": name, "modelId": f"{org}/{name}", "downloads": 0, "likes": 0}

    @app.get("/api/{kind}/{org}/{name}/tree/{revision}")
    @app.get("/api/{kind}/{org}/{name}/tree/{revision}/{path:path}")
    def tree(kind: str, org: str, name: str, revision: str, path: str = "", recursive: bool = False):
        found, sha = find_commit(kind, f"{org}/{name}", revision)
        below = f"{path}/" if path else ""
        files = {file: content for file, content in found.commits[sha].items() if file.startswith(below)}
        if path and not files:
            return make_failure(404, "EntryNotFound", f"{path} does not exist")
        entries = [describe_file(file, content) for file, content in sorted(files.items())]
        return [each for each in entries if recursive or "/" not in each["path"][len(below) :]]

    @app.get("/api/{kind}/{org}/{name}/refs")
    def refs(kind: str, org: str, name: str):
        found, _ = find_commit(kind, f"{org}/{name}", "main")
        branches = []
        pull_requests = []
        for branch, sha in found.branches.items():
            is_pull_request = branch.startswith("refs/pr/")
            ref = branch if is_pull_request else f"refs/heads/{branch}"
            group = pull_requests if is_pull_request else branches
            group.append({"name": ref.rpartition("/")[2], "ref": ref, "targetCommit": sha})
        return {"branches": branches, "pullRequests": pull_requests, "tags": [], "converts": []}

    @app.post("/api/{kind}/{org}/{name}/paths-info/{revision:path}")
    async def paths_info(request: Request, kind: str, org: str, name: str, revision: str):
        found, sha = find_commit(kind, f"{org}/{name}", revision)
        wanted = parse_qs((await request.body()).decode())["paths"]
        return [
            describe_file(path, content) for path, content in found.commits[sha].items() if path in wanted
        ]

    @app.delete("/api/{kind}/{org}/{name}/branch/{branch:path}")
    def delete_branch(request: Request, kind: str, org: str, name: str, branch: str):
        if (refused := refuse_writing(request, f"{org}/{name}")) is not None:
            return refused
        found, _ = find_commit(kind, f"{org}/{name}", "main")
        del found.branches[branch]
        return {}

    @app.post("/api/{kind}/{org}/{name}/branch/{branch:path}")
    def branch(request: Request, kind: str, org: str, name: str, branch: str):
        if (refused := refuse_writing(request, f"{org}/{name}")) is not None:
            return refused
        found, _ = find_commit(kind, f"{org}/{name}", "main")
        if branch in found.branches:
            return JSONResponse({"error": "Reference already exists"}, 409)
        found.branches[branch] = found.branches["main"]
        return {}

    @app.post("/api/{kind}/{org}/{name}/preupload/{revision:path}")
    async def preupload(request: Request, kind: str, org: str, name: str, revision: str):
        if (refused := refuse_writing(request, f"{org}/{name}")) is not None:
            return refused
        files = (await request.json())["files"]
        answer = []
        for file in files:
            mode = "lfs" if file["size"] >= LARGE else "regular"
            answer.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False})
        return {"files": answer}

    @app.post("/{org}/{name}.git/info/lfs/objects/batch")
    @app.post("/{kind}/{org}/{name}.git/info/lfs/objects/batch")
    async def batch(request: Request, org: str, name: str, kind: str = "models"):
        objects = []
        for item in (await request.json())["objects"]:
            upload = {"upload": {"href": f"{hub.endpoint}/lfs/{item['oid']}", "header": {}}}
            objects.append(item if item["oid"] in hub.large else {**item, "actions": upload})
        return {"transfer": "basic", "objects": objects}

    @app.put("/lfs/{oid}")
    async def upload(request: Request, oid: str):
        content = await request.body()
        if hashlib.sha256(content).hexdigest() != oid:
            return JSONResponse({"error": "checksum"}, 400)
        hub.large[oid] = content
        return Response(status_code=200)

    @app.post("/api/{kind}/{org}/{name}/commit/{revision:path}")
    async def commit(request: Request, kind: str, org: str, name: str, revision: str):
        if (refused := refuse_writing(request, f"{org}/{name}")) is not None:
            return refused
        found, _ = find_commit(kind, f"{org}/{name}", "main")
        changes = {}
        for line in (await request.body()).splitlines():
            operation = json.loads(line)
            value = operation["value"]
            if operation["key"] == "file":
                changes[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                changes[value["path"]] = hub.large[value["oid"]]
            elif operation["key"] == "deletedFile":
                changes[value["path"]] = None
        is_pull_request = "create_pr" in request.query_params
        branch = f"refs/pr/{len(found.branches)}" if is_pull_request else revision
        sha = found.commit(branch, changes)
        address = f"{hub.endpoint}/{org}/{name}"
        answer = {"success": True, "commitOid": sha, "commitUrl": f"{address}/commit/{sha}", "hookOutput": ""}
        return {**answer, "pullRequestUrl": f"{address}/discussions/1"} if is_pull_request else answer

    @app.api_route("/{org}/{name}/resolve/{revision}/{path:path}", methods=["GET", "HEAD"])
    @app.api_route("/{kind}/{org}/{name}/resolve/{revision}/{path:path}", methods=["GET", "HEAD"])
    def resolve(request: Request, org: str, name: str, revision: str, path: str, kind: str = "models"):
        found, sha = find_commit(kind, f"{org}/{name}", revision)
        content = found.commits[sha].get(path)
        headers = {"X-Repo-Commit": sha, "Accept-Ranges": "bytes"}
        if content is None:
            missing = make_failure(404, "EntryNotFound", f"{path} does not exist")
            missing.headers.update(headers)
            return missing
        if len(content) >= LARGE:  # the pointer's tag, and what it points to
            headers["X-Linked-Etag"] = f'"{hashlib.sha256(content).hexdigest()}"'
            headers["X-Linked-Size"] = str(len(content))
        headers["ETag"] = f'"{hashlib.sha1(content).hexdigest()}"'
        status = 200
        wanted = request.headers.get("range")
        if wanted:
            start, _, end = wanted.removeprefix("bytes=").partition("-")
            first = int(start)
            last = int(end or len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            content = content[first : last + 1]
            status = 206
        if request.method == "HEAD":
            return Response(None, status, {**headers, "Content-Length": str(len(content))})
        return Response(content, status, headers, "application/octet-stream")

    return app


@contextlib.contextmanager
def serve_hub():
    """Serve a [`Hub`] at its `endpoint` until the block ends."""
    hub = Hub()
    config = uvicorn.Config(create_app(hub), host="127.0.0.1", port=0, log_level="error")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    hub.endpoint = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    try:
        yield hub
    finally:
        server.should_exit = True
        thread.join()
