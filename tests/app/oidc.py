"""A provider of OpenID Connect on this machine, who knows one person and lets them in without asking."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

from joserfc import jwt
from joserfc.jwk import RSAKey


@dataclass
class Provider:
    """Where it is, and what it was asked for."""

    url: str
    asked: list[str] = field(default_factory=list)
    nonce: str = ""

    def secrets(self, page: str) -> str:
        """What stands in the secrets.toml of a page that signs in here."""
        return (
            f'[auth]\nredirect_uri = "{page}/oauth2callback"\ncookie_secret = "0123456789abcdef0123456789abcdef"\n'
            f'client_id = "viewer"\nclient_secret = "secret"\n'
            f'server_metadata_url = "{self.url}/.well-known/openid-configuration"\n'
        )


@contextmanager
def providing() -> Iterator[Provider]:
    """Runs one on a free port."""
    key = RSAKey.generate_key(2048, parameters={"kid": "one", "use": "sig", "alg": "RS256"})
    provider = Provider("")

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            place = urlsplit(self.path)
            asked = {name: values[0] for name, values in parse_qs(place.query).items()}
            provider.asked.append(place.path)
            if place.path == "/authorize":
                provider.nonce = asked.get("nonce", "")
                self.send_response(302)
                back = urlencode({"code": "let-me-in", "state": asked["state"]})
                self.send_header("Location", f"{asked['redirect_uri']}?{back}")
                self.end_headers()
            elif place.path == "/jwks":
                self.tell({"keys": [key.as_dict(private=False)]})
            else:
                self.tell(
                    {
                        "issuer": provider.url,
                        "authorization_endpoint": f"{provider.url}/authorize",
                        "token_endpoint": f"{provider.url}/token",
                        "jwks_uri": f"{provider.url}/jwks",
                        "response_types_supported": ["code"],
                        "subject_types_supported": ["public"],
                        "id_token_signing_alg_values_supported": ["RS256"],
                    }
                )

        def do_POST(self) -> None:
            provider.asked.append(self.path)
            self.rfile.read(int(self.headers["content-length"]))
            now = int(time.time())
            claims = {
                "iss": provider.url, "sub": "42", "aud": "viewer", "iat": now, "exp": now + 600,
                "nonce": provider.nonce, "name": "Ada Pathologist", "email": "ada@hospital.example",
            }  # fmt: skip
            token = jwt.encode({"alg": "RS256", "kid": "one"}, claims, key)
            self.tell({"access_token": "a", "token_type": "Bearer", "expires_in": 600, "id_token": token})

        def tell(self, content: dict[str, Any]) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(content).encode())

        def log_message(self, *_: Any) -> None:
            """Says nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        provider.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield provider
        server.shutdown()
