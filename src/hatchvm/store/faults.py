"""No exception of SQLAlchemy leaves this package: here each becomes a sentence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, Final

from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError

from hatchvm.base.errors import Conflict, HatchError, Internal, Invalid, NotFound
from hatchvm.store.engine import fault, is_dangling, taken_column

_NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})
#: Unique column -> how users call a value of it. A key's digest is not for showing.
_CALLED: Final = MappingProxyType(
    {
        "vms.name": 'vm name "{}"',
        "vms.ssh_port": "ssh port {}",
        "routes.subdomain": 'subdomain "{}"',
        "routes.domain": 'domain "{}"',
        "images.name": 'image name "{}"',
        "templates.name": 'template name "{}"',
        "keys.digest": "this key",
        "vms.guest_ip": "guest_ip {}",
        "vms.guest_mac": "guest_mac {}",
        "ssh_keys.fingerprint": "this SSH key",
    }
)


@contextmanager
def translated(written: Mapping[str, Any] = _NOTHING) -> Iterator[None]:
    """Raise what `base.errors` has for a database's failure; every other exception passes.

    `written`: column -> value of the row being written, for a sentence that names what is already in use.
    """
    try:
        yield
    except IntegrityError as error:
        raise _refusal(error, written) from error
    except DBAPIError as error:
        raise fault(error) from error
    except (OverflowError, UnicodeEncodeError):
        # Without its cause, which carries the value.
        raise Invalid("a number is too large, or a text is not valid Unicode") from None
    except SQLAlchemyError as error:
        raise Internal("the database refused a statement", detail=str(error)) from error


def _refusal(error: IntegrityError, written: Mapping[str, Any]) -> HatchError:
    taken = taken_column(error)
    if taken is not None:
        value = written.get(taken.partition(".")[2])
        return Conflict(f"{_CALLED.get(taken, 'id {}').format(value)} is already in use")
    # The only foreign keys are those of a VM's belongings.
    return NotFound("vm not found") if is_dangling(error) else fault(error)
