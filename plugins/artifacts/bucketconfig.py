"""An operator's own bucket, as the config file describes it."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Literal, Self

import httpx
from pydantic import AfterValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from worker.quantities import Duration, Size
from worker.schema import Document

MIB = 1024 * 1024

# S3 takes no smaller ones, but for the last, and no larger ones, nor more of them.
SMALLEST_PART = 5 * MIB
LARGEST_PUT = 5 * 1024 * MIB
MOST_PARTS = 10_000


def _check_url(text: str) -> str:
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL:
        url = httpx.URL()
    if url.scheme not in {"http", "https"} or not url.host or url.query or url.fragment or url.userinfo:
        raise PydanticCustomError("url", "expected an http or https URL without query")
    return text.rstrip("/")


Url = Annotated[str, AfterValidator(_check_url)]


class BucketConfig(Document):
    """A bucket of S3, or of a service that speaks its protocol; without keys those of boto3's own search are used.

    `partsAtOnce` pieces of `threshold` or `partSize` bytes are in memory, over all runs. `stall` is the longest
    silence of the service; an upload that is cancelled meanwhile goes on for twice as long at most.
    """

    bucket: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{1,254}$")]
    prefix: Annotated[str, Field(max_length=500, pattern=r"^[\x20-\x7e]*$")] = ""
    region: str | None = None
    endpoint: Url | None = None
    path_style: bool | None = None
    public_url: Url | None = None
    access_key_id: Annotated[str, Field(min_length=1)] | None = None
    secret_access_key: Annotated[str | None, Field(min_length=1, repr=False)] = None
    session_token: Annotated[str | None, Field(min_length=1, repr=False)] = None
    storage_class: Annotated[str, Field(pattern=r"^[A-Z_]+$")] | None = None
    server_side_encryption: Literal["AES256", "aws:kms", "aws:kms:dsse"] | None = None
    kms_key_id: str | None = None
    checksum: Literal["sha256", "md5"] = "sha256"
    threshold: Annotated[Size, Field(ge=1, le=LARGEST_PUT)] = SMALLEST_PART
    part_size: Annotated[Size, Field(ge=SMALLEST_PART, le=LARGEST_PUT)] = SMALLEST_PART
    parts_at_once: Annotated[int, Field(ge=1, le=32)] = 5
    stall: Duration = timedelta(seconds=20)

    @model_validator(mode="after")
    def _belong_together(self) -> Self:
        if (self.access_key_id is None) != (self.secret_access_key is None):
            raise PydanticCustomError("keys", "accessKeyId and secretAccessKey are given together, or neither is")
        if self.session_token is not None and self.access_key_id is None:
            raise PydanticCustomError("keys", "sessionToken is given with accessKeyId and secretAccessKey")
        if self.kms_key_id is not None and self.server_side_encryption in {None, "AES256"}:
            raise PydanticCustomError("kms", "kmsKeyId is for the serverSideEncryption aws:kms or aws:kms:dsse")
        return self

    @property
    def by_path(self) -> bool:
        """Whether the bucket is named in the path of URLs: what most services other than S3 want."""
        return self.path_style if self.path_style is not None else self.endpoint is not None

    def part_size_for(self, length: int) -> int:
        """Larger than configured only where there would be too many parts."""
        return max(self.part_size, -(-length // MOST_PARTS))
