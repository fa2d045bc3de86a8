"""A trained model uploaded to the Hugging Face Hub: on request, private, and checked before training begins.

huggingface_hub is loaded when it is used.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any


def check_push(name: str) -> None:
    """What would fail only after hours of training: a name that cannot be, no log-in, no network allowed."""
    from huggingface_hub import constants, get_token
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ValueError(f"push_to_hub {name!r} is no name on the Hub ({error}); write owner/name") from None
    if constants.HF_HUB_OFFLINE:
        raise OSError(
            f"push_to_hub {name!r} needs the Hub, and HF_HUB_OFFLINE is set; unset it, or leave the option out"
        )
    if get_token() is None:
        raise PermissionError(f"push_to_hub {name!r} needs a log-in with write access; run `hf auth login` first")


def push_to_hub(folder: str | Path, name: str, *, hub: Any = None) -> str:
    """Upload a model's folder to the repository `name` of the Hub and return its address.

    A repository that is not there yet is made, private: whether others may see it is settled on its page. Into one that
    is public nothing is uploaded.
    hub: what uploads; None is `huggingface_hub.HfApi()`. Raises OSError with the way to try again.
    """
    check_push(name)
    if hub is None:
        from huggingface_hub import HfApi

        hub = HfApi()
    try:
        address = hub.create_repo(name, repo_type="model", private=True, exist_ok=True)
        if hub.repo_info(getattr(address, "repo_id", name), repo_type="model").private is False:
            raise PermissionError("it was there before and is public: everybody would see the model")
        hub.upload_folder(
            repo_id=getattr(address, "repo_id", name), repo_type="model", folder_path=str(folder),
            commit_message="Upload with DPO Lab",
        )  # fmt: skip
    except Exception as error:  # huggingface_hub, httpx and the operating system each have their own
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise OSError(
            f"{folder} is complete and could not be put on the Hub as {name} ({first}); try again with: "
            f"hf upload {name} {shlex.quote(str(folder))}"
        ) from error
    return str(address)
