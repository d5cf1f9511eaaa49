"""What reflection tells of services: the files that describe them, and all that those import."""

from collections.abc import Iterable

from google.protobuf.descriptor import FileDescriptor, ServiceDescriptor
from google.protobuf.descriptor_pool import DescriptorPool


def pool_of(services: Iterable[ServiceDescriptor]) -> DescriptorPool:
    """Return a pool that holds the description of some services.

    The default pool will not do: files whose names other packages use too are kept in pools of their own.
    """
    pool = DescriptorPool()
    added: set[str] = set()
    for service in services:
        _add(service.file, pool, added)
    return pool


def _add(file: FileDescriptor, pool: DescriptorPool, added: set[str]) -> None:
    if file.name in added:
        return
    added.add(file.name)
    for imported in file.dependencies:
        _add(imported, pool, added)
    pool.AddSerializedFile(file.serialized_pb)
