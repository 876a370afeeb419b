"""Tokens of the local Hub: who someone is, what they may read and write.

    hub.tokens["hf_x"] = {"name": "alice", "role": "write"}      or "read", or "fineGrained" with
        "scopes": {"alice": ["repo.write"], "org/model": ["repo.content.read", "discussion.write"]}
    optional: "expired": True, "isPro": True, "orgs": {"org": "admin"}      admin, write or read

The texts are those of the real Hub where a public report quotes them; the fields of whoami-v2 are
those that its users read.
"""

from typing import TYPE_CHECKING, Any

from hub_http import Refusal, Reply

if TYPE_CHECKING:
    from fakehub import _Handler

Token = dict[str, Any]


def authenticate(call: "_Handler") -> Token | None:
    """Return the record of the request's token, None without one; 401 if it is not valid."""
    header = call.headers.get("Authorization", "")
    if not header:
        return None
    token = call.hub.tokens.get(header.removeprefix("Bearer "))
    if token is None:
        raise Refusal(401, "Invalid credentials in Authorization header")
    if token.get("expired"):
        raise Refusal(401, 'User Access Token "local" is expired')
    return token


def whoami(call: "_Handler") -> Reply:
    """Answer GET /api/whoami-v2"""
    if call.token is None:
        raise Refusal(401, "Invalid username or password.")
    name, orgs = call.token["name"], call.token.get("orgs", {})
    access: dict[str, Any] = {"displayName": "local", "role": call.token["role"]}
    if call.token["role"] == "fineGrained":
        scoped = [
            {
                "entity": {"type": entity_type(call.token, entity), "name": entity},
                "permissions": held,
            }
            for entity, held in call.token["scopes"].items()
        ]
        access["fineGrained"] = {"canReadGatedRepos": False, "global": [], "scoped": scoped}
    return Reply(
        {
            "type": "user",
            "name": name,
            "fullname": name,
            "isPro": call.token.get("isPro", False),
            "orgs": [
                {
                    "type": "org",
                    "name": org,
                    "fullname": org,
                    "isEnterprise": False,
                    "roleInOrg": role,
                }
                for org, role in orgs.items()
            ],
            "auth": {"type": "access_token", "accessToken": access},
        }
    )


def entity_type(token: Token, entity: str) -> str:
    return "model" if "/" in entity else "org" if entity in token.get("orgs", {}) else "user"


def may(token: Token | None, repo: str, permission: str) -> bool:
    """Return whether the token lets its account do this with what it owns: `repo.write`, ..."""
    if token is None:
        return False
    owner = repo.split("/")[0]
    role = "admin" if owner == token["name"] else token.get("orgs", {}).get(owner)
    if role is None or (permission == "repo.write" and role == "read"):
        return False
    if token["role"] == "fineGrained":
        held = [*token["scopes"].get(owner, []), *token["scopes"].get(repo, [])]
        return permission in held or (permission == "repo.content.read" and "repo.write" in held)
    return token["role"] == "write" or permission == "repo.content.read"


def may_discuss(token: Token | None, repo: str) -> bool:
    """Return whether the token may open a pull request in a repository that it can see."""
    if token is None or token["role"] == "read":
        return False
    held = token.get("scopes", {}).get(repo, []) + token.get("scopes", {}).get(token["name"], [])
    return token["role"] == "write" or bool({"discussion.write", "repo.write"} & set(held))


def check_read(call: "_Handler", repo: str) -> None:
    """Refuse a repository that is not there, or that this account must not know of."""
    found = call.hub.repos.get(repo)
    if found is None or (found["private"] and not may(call.token, repo, "repo.content.read")):
        if call.token is None:
            raise Refusal(401, "Invalid username or password.", "RepoNotFound")
        raise Refusal(404, "Repository not found", "RepoNotFound")


def check_write(call: "_Handler", repo: str, ref: str = "main") -> None:
    """Refuse to write to `ref`; a pull request is its author's to write to, too."""
    check_read(call, repo)
    if may(call.token, repo, "repo.write"):
        return
    if may_discuss(call.token, repo):
        pull = call.hub.repos[repo]["prs"].get(int(ref[8:])) if ref.startswith("refs/pr/") else None
        if call.query.get("create_pr") or (pull and pull.get("author") == call.token["name"]):
            return
    raise Refusal(
        403, "Forbidden: pass `create_pr=1` as a query parameter to create a Pull Request"
    )


def auth_check(call: "_Handler", repo: str, write: str | None) -> Reply:
    """Answer GET /api/models/REPO/auth-check[/write]"""
    check_read(call, repo)
    if write and not may(call.token, repo, "repo.write"):
        raise Refusal(403, "You don't have write access to this repository")
    return Reply()
