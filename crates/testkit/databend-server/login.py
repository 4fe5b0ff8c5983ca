"""Who may come in: anybody, or who has the password, the token, or the private key that belongs to a public one."""

import base64
import binascii
from dataclasses import dataclass
from pathlib import Path

import jwt
from cryptography.hazmat.primitives.serialization import load_pem_public_key

METHOD = "X-DATABEND-AUTH-METHOD"
ALGORITHMS = ["RS256", "ES256", "ES384", "EdDSA"]
# Two clocks of one machine still differ by the second that a token's time is cut to.
LEEWAY_SECONDS = 5


@dataclass
class Logins:
    """What is None admits nobody; where all are, everybody may come in."""

    user: str | None = None
    password: str | None = None
    token: str | None = None
    public_key: object = None

    @classmethod
    def of(cls, user, password, token, public_key_file):
        key = load_pem_public_key(Path(public_key_file).read_bytes()) if public_key_file else None
        if user is not None and password is None and key is None:
            password = ""
        return cls(user, password, token, key)

    def refusal(self, headers):
        """Why these headers of a request admit nobody; None where they do."""
        if self.user is None and self.token is None:
            return None
        method, _, credentials = headers.get("Authorization", "").partition(" ")
        if method == "Basic":
            return self.refused_password(credentials)
        if method != "Bearer":
            return "no user, token or key was given"
        if headers.get(METHOD, "").lower() == "keypair":
            return self.refused_key(credentials)
        return None if self.token is not None and credentials == self.token else "the token is not valid"

    def refused_password(self, credentials):
        try:
            user, _, password = base64.b64decode(credentials).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            return "user and password cannot be read"
        right = self.password is not None and (user, password) == (self.user, self.password)
        return None if right else f"wrong password for user '{user}'"

    def refused_key(self, token):
        """The client signs a token that says who it is, good for a minute."""
        if self.public_key is None:
            return "the user has no public key"
        try:
            needed = {"require": ["sub", "iat", "exp"]}
            claims = jwt.decode(token, self.public_key, ALGORITHMS, options=needed, leeway=LEEWAY_SECONDS)
        except (jwt.PyJWTError, TypeError, ValueError) as error:
            return f"the key pair does not verify: {error}"
        return None if claims["sub"] == self.user else f"the key is not of user '{claims['sub']}'"
