"""What the configuration is made of: an immutable model, and types that say what is allowed."""

import re
from ipaddress import ip_address, ip_network
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr

MIB = 1024 * 1024
HOST = re.compile(r"[^\s/:@?#\[\]]+")


class Frozen(BaseModel):
    """Immutable; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def _network(text: str) -> str:
    ip_network(text)  # its message names the value and what is wrong with it
    return text


def _host(name: str) -> str:
    if not HOST.fullmatch(name.strip(".")):
        try:
            ip_address(name)
        except ValueError:
            message = f"{name!r} is not a host; write it as in example.com"
            raise ValueError(message) from None
    return name


def _whole_above_one(number: float) -> float:
    if number > 1 and not number.is_integer():
        raise ValueError(f"{number:g} GPUs: Ray gives a part of one GPU, or whole ones")
    return number


def _absolute(path: str) -> str:
    if not path.startswith("/"):
        raise ValueError(
            f"{path!r} is not an absolute path; name a folder of the file system, no store such as "
            "s3://"
        )
    return path


def _key(key: SecretStr) -> SecretStr:
    if not key.get_secret_value().strip():
        raise ValueError("an API key is empty")
    return key


Device = Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")]
Folder = Annotated[str, AfterValidator(_absolute)]
"""An absolute path: replicas start in folders of Ray's own."""
Gpus = Annotated[float, Field(ge=0), AfterValidator(_whole_above_one)]
Host = Annotated[str, AfterValidator(_host)]
Key = Annotated[SecretStr, AfterValidator(_key)]
Network = Annotated[str, AfterValidator(_network)]
"""In CIDR form."""
Port = Annotated[int, Field(ge=1, le=65_535)]
PositiveFloat = Annotated[float, Field(gt=0)]
PositiveInt = Annotated[int, Field(ge=1)]
