"""A Hub endpoint on 127.0.0.1 that serves folders, for the real huggingface_hub client to read from."""

import contextlib
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit


COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Handler(BaseHTTPRequestHandler):
    """Serves `root/models/org/name` and `root/datasets/org/name`, each as the one commit of its repository."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def answer(self, status, body=b"", **headers):
        self.send_response(status)
        for name, value in {"Content-Length": len(body), "X-Repo-Commit": COMMIT, **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def answer_json(self, value, status=200, **headers):
        self.answer(status, json.dumps(value).encode(), Content_Type="application/json", **headers)

    def not_found(self, code):
        self.answer_json({"error": code}, status=404, X_Error_Code=code, X_Error_Message=code)

    def repository(self, parts):
        """Splits a path's parts into the repository's folder and what follows, or None where there is no such repository."""
        kind = parts.pop(0) if parts[:1] in (["models"], ["datasets"], ["spaces"]) else "models"
        folder = self.server.root / kind / "/".join(parts[:2])
        return (folder, kind, parts[2:]) if len(parts) >= 2 and folder.is_dir() else None

    def entry(self, folder, path):
        content = path.read_bytes()
        oid = hashlib.sha1(content).hexdigest()
        return {"type": "file", "path": path.relative_to(folder).as_posix(), "size": len(content), "oid": oid}

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        if parts[0] == "api":
            found = self.repository(parts[1:])
            if found is None:
                return self.not_found("RepoNotFound")
            folder, kind, rest = found
            files = sorted(path for path in folder.rglob("*") if path.is_file())
            if rest[:1] == ["tree"]:
                below = folder / "/".join(rest[2:])
                if not below.exists():
                    return self.not_found("EntryNotFound")
                recursive = "true" in parse_qs(urlsplit(self.path).query).get("recursive", ["false"])[0].lower()
                entries = [self.entry(folder, path) for path in files if below in path.parents]
                if not recursive:
                    entries = [entry for entry in entries if (folder / entry["path"]).parent == below]
                return self.answer_json(entries)
            if rest[:1] in ([], ["revision"]):
                siblings = [{"rfilename": path.relative_to(folder).as_posix()} for path in files]
                name = "/".join(folder.parts[-2:])
                info = {
                    "id": name,
                    "sha": COMMIT,
                    "siblings": siblings,
                    "tags": [],
                    "private": False,
                    "downloads": 0,
                    "likes": 0,
                }
                return self.answer_json({**info, ("modelId" if kind == "models" else "_id"): name})
            return self.not_found("EntryNotFound")
        found = self.repository(parts)
        if found is None or found[2][:1] != ["resolve"]:
            return self.not_found("RepoNotFound")
        path = found[0] / "/".join(found[2][2:])
        if not path.is_file():
            return self.not_found("EntryNotFound")
        content = path.read_bytes()
        return self.answer(200, content, ETag=f'"{hashlib.sha1(content).hexdigest()}"')


@contextlib.contextmanager
def serve_hub(root: Path):
    """Serves `root` until the block ends; gives the endpoint's address, for HF_ENDPOINT."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.root, server.daemon_threads = Path(root), True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
