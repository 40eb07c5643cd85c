"""Whether one has to sign in, by Streamlit's own OpenID Connect settings, and whether somebody has."""

from __future__ import annotations

import streamlit as st
from streamlit.errors import StreamlitSecretNotFoundError


def signs_in() -> bool:
    """Whether the secrets have an [auth] section."""
    try:
        return bool(st.secrets.get("auth"))
    except (StreamlitSecretNotFoundError, FileNotFoundError):
        return False


def is_welcome() -> bool:
    """Whether the one who looks has signed in, or need not."""
    return not signs_in() or bool(st.user.get("is_logged_in", False))


def who() -> str:
    """Who has signed in, as the provider calls them; empty where nobody has to."""
    if not signs_in():
        return ""
    return str(st.user.get("name") or st.user.get("email") or "signed in")
