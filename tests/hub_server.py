"""A Hub on the loopback, for the real client: repositories in memory, LFS, commits, and failures when asked for.

`failures` is a list of (method, part of the path, status or what happens): each is used once, in order.
"""

import base64
import hashlib
import json
import re
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "hf_loopbacktokenloopbacktoken"
READ_ONLY = "hf_readonlytokenreadonlytoken00"


class Hub:
    """The server and what it holds; a context manager."""

    def __init__(self):
        self.repositories = {}  # id → revision → path → bytes
        self.commits = {}  # hash → (id, files)
        self.lfs = {}  # sha256 → bytes
        self.messages = []  # of commits
        self.failures = []
        self.log = []  # (method, path, body of what is small)
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    def commit(self, repo, revision, files):
        """Makes a revision of files; returns its hash."""
        digest = hashlib.sha1(f"{repo}{revision}{sorted(files)}{len(self.commits)}".encode()).hexdigest()
        self.repositories[repo][revision] = digest
        self.commits[digest] = files
        return digest

    def files(self, repo, revision="main"):
        """The files of a revision: path → bytes."""
        return self.commits[self.repositories[repo].get(revision, revision)]


class Handler(BaseHTTPRequestHandler):
    """The endpoints that the client calls."""

    hub = None
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        """Silent."""

    def do_GET(self):
        self.answer("GET")

    def do_HEAD(self):
        self.answer("HEAD")

    def do_POST(self):
        self.answer("POST")

    def do_PUT(self):
        self.answer("PUT")

    def answer(self, method):
        """Finds the endpoint, unless a failure is due."""
        path = self.path.split("?")[0]
        self.hub.log.append((method, path))
        due = next((f for f in self.hub.failures if f[0] == method and f[1] in path), None)
        if due is not None:
            self.hub.failures.remove(due)
            if due[2] == "cut":
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            if due[2] == "slow":
                time.sleep(due[3])
            else:
                self.body()
                after = due[3] if len(due) > 3 else "0"
                headers = {"Retry-After": after} if due[2] in (429, 500, 409) else {}
                self.send(due[2], {"error": "as asked for"}, headers)
                return
        body = self.body()
        writes = method in ("POST", "PUT") and "validate-yaml" not in path and not path.startswith("/lfs/")
        if writes and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            known = READ_ONLY in (self.headers.get("Authorization") or "")
            self.send(403 if known else 401, {"error": "not allowed"})
            return
        for verb, pattern, endpoint in ENDPOINTS:
            found = re.fullmatch(pattern, path)
            if found and verb in (method, "GET" if method == "HEAD" else method):
                endpoint(self, body, *found.groups())
                return
        self.send(404, {"error": f"no endpoint {method} {path}"}, {"X-Error-Code": "RepoNotFound"})

    def body(self):
        """What was sent."""
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def send(self, status, value, headers=None):
        """Answers with JSON or bytes."""
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        kind = "application/octet-stream" if isinstance(value, bytes) else "application/json"
        for name, content in {"Content-Type": kind, "Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, content)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def create(self, body):
        """POST /api/repos/create"""
        request = json.loads(body)
        repo = f"{request['organization']}/{request['name']}" if request.get("organization") else request["name"]
        repo = repo if "/" in repo else f"me/{repo}"
        status = 409 if repo in self.hub.repositories else 200
        if status == 200:
            self.hub.repositories[repo] = {}
            self.hub.commit(repo, "main", {".gitattributes": b"*.safetensors filter=lfs\n"})
        self.send(status, {"url": f"{self.hub.url}/{repo}", "id": repo, "name": repo})

    def validate(self, body):
        """POST /api/validate-yaml"""
        self.send(200, {"errors": [], "warnings": []})

    def branch(self, body, repo, name):
        """POST /api/models/{id}/branch/{name}"""
        self.hub.repositories[repo].setdefault(name, self.hub.repositories[repo]["main"])
        self.send(200, {})

    def preupload(self, body, repo, revision):
        """POST /api/models/{id}/preupload/{rev}"""
        if repo not in self.hub.repositories:
            self.send(404, {"error": "no repo"}, {"X-Error-Code": "RepoNotFound"})
            return
        files = json.loads(body)["files"]
        there = self.hub.files(repo, revision)
        modes = []
        for name in (file["path"] for file in files):
            large, content = name.endswith((".safetensors", "tokenizer.json")), there.get(name)
            mode = {"path": name, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
            if content is not None:
                blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
                mode["oid"] = hashlib.sha256(content).hexdigest() if large else blob
            modes.append(mode)
        self.send(200, {"files": modes})

    def batch(self, body, repo):
        """POST /{id}.git/info/lfs/objects/batch"""
        objects = []
        for one in json.loads(body)["objects"]:
            entry = {"oid": one["oid"], "size": one["size"]}
            if one["oid"] not in self.hub.lfs:
                entry["actions"] = {"upload": {"href": f"{self.hub.url}/lfs/{one['oid']}"}}
            objects.append(entry)
        self.send(200, {"transfer": "basic", "objects": objects})

    def store(self, body, oid):
        """PUT /lfs/{oid}"""
        assert hashlib.sha256(body).hexdigest() == oid
        self.hub.lfs[oid] = body
        self.send(200, {})

    def make_commit(self, body, repo, revision):
        """POST /api/models/{id}/commit/{rev}: lines of JSON"""
        files = dict(self.hub.files(repo, revision))
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.hub.lfs[value["oid"]]
            elif entry["key"] == "deletedFile":
                del files[value["path"]]
            elif entry["key"] == "header":
                self.hub.messages.append(value["summary"])
        digest = self.hub.commit(repo, revision, files)
        url = f"{self.hub.url}/{repo}/commit/{digest}"
        self.send(200, {"success": True, "commitOid": digest, "commitUrl": url, "hookOutput": ""})

    def info(self, body, repo, revision="main"):
        """GET /api/models/{id}[/revision/{rev}]"""
        if repo not in self.hub.repositories:
            self.send(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
            return
        digest = self.hub.repositories[repo].get(revision or "main", revision)
        siblings = [{"rfilename": name, "size": len(data)} for name, data in self.hub.commits[digest].items()]
        self.send(200, {"id": repo, "modelId": repo, "sha": digest, "private": False, "tags": [], "siblings": siblings})

    def tree(self, body, repo, revision):
        """GET /api/models/{id}/tree/{rev}"""
        files = self.hub.files(repo, revision)
        oid = hashlib.sha1(b"").hexdigest()
        self.send(200, [{"type": "file", "path": n, "size": len(c), "oid": oid} for n, c in files.items()])

    def resolve(self, body, repo, revision, name):
        """GET /{id}/resolve/{rev}/{file}"""
        if repo not in self.hub.repositories:
            self.send(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
            return
        digest = self.hub.repositories[repo].get(revision, revision)
        content = self.hub.commits[digest].get(name)
        if content is None:
            self.send(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": digest})
            return
        etag = hashlib.sha256(content).hexdigest()
        self.send(200, content, {"ETag": f'"{etag}"', "X-Repo-Commit": digest})

    def whoami(self, body):
        """GET /api/whoami-v2"""
        roles = {f"Bearer {TOKEN}": "write", f"Bearer {READ_ONLY}": "read"}
        role = roles.get(self.headers.get("Authorization"))
        if role is None:
            self.send(401, {"error": "not logged in"})
            return
        self.send(200, {"name": "me", "type": "user", "auth": {"accessToken": {"role": role}}, "orgs": []})


ENDPOINTS = [
    ("POST", r"/api/repos/create", Handler.create),
    ("POST", r"/api/validate-yaml", Handler.validate),
    ("POST", r"/api/models/([^/]+/[^/]+)/branch/(.+)", Handler.branch),
    ("POST", r"/api/models/([^/]+/[^/]+)/preupload/(.+)", Handler.preupload),
    ("POST", r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", Handler.batch),
    ("PUT", r"/lfs/([0-9a-f]+)", Handler.store),
    ("POST", r"/api/models/([^/]+/[^/]+)/commit/(.+)", Handler.make_commit),
    ("GET", r"/api/whoami-v2", Handler.whoami),
    ("GET", r"/api/models/([^/]+/[^/]+)/revision/(.+)", Handler.info),
    ("GET", r"/api/models/([^/]+/[^/]+)/tree/([^/]+)(?:/.*)?", Handler.tree),
    ("GET", r"/api/models/([^/]+/[^/]+)", Handler.info),
    ("GET", r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", Handler.resolve),
]
