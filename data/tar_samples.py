"""Samples of a tar: which of its members belong together, and which one is the image.

As in webdataset, members are of one sample if their paths are equal up to the first dot of the name
of the file: `a/0001.jpg`, `a/0001.seg.png` and `a/0001.json`. One rule says which is the image; a
sample in which that is ambiguous is broken, and is skipped, counted and named as all broken images
are.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field

from .images import IMAGE_SUFFIXES, READ_SUFFIXES
from .tar_index import Member

METADATA_SUFFIXES = (".json", ".cls", ".txt")


@dataclass(frozen=True, slots=True)
class TarSample:
    """An image in a tar with the members that say more about it.

    Attributes:
        path: Path of the sample in the archive, without extension.
        image: Member with the image; None: there is no image.
        metadata: Members by their suffix, such as `.json`.
        problem: Reason why there is no image.
    """

    path: str
    image: Member | None
    metadata: dict[str, Member] = field(default_factory=dict)
    problem: str = ""


def samples_of(members: dict[str, Member], image_member: str | None) -> Iterator[TarSample]:
    """Samples of an archive in the order of their first images.

    Args:
        members: Members of the archive by path.
        image_member: End of the name of the image after the first dot, e.g. `left.png`; `*`: each
            image is a sample of its own, with the metadata of exactly its name. None: the only
            image of the sample; or else the one whose name has no second dot; or else each of them,
            if each has metadata of exactly its name. Anything else is ambiguous.
    """
    groups: dict[str, list[Member]] = {}
    for path, member in members.items():
        folder, _, base = path.rpartition("/")
        if base.startswith(".") or os.path.splitext(base)[1].lower() not in IMAGE_SUFFIXES:
            continue
        key = base.partition(".")[0]
        groups.setdefault(f"{folder}/{key}" if folder else key, []).append(member)
    for key, images in groups.items():
        if image_member == "*":
            yield from (_own(image, members) for image in images)
        elif image_member is not None:
            yield _wanted(key, images, members, image_member.lstrip(".").lower())
        elif len(images) == 1:
            stem = os.path.splitext(images[0].path)[0]
            own = _metadata(members, stem)
            yield TarSample(stem, images[0], _metadata(members, key) | own)
        else:
            yield from _several(key, images, members)


def _several(key: str, images: list[Member], members: dict[str, Member]) -> Iterator[TarSample]:
    """Samples of several images of one name."""
    plain = [image for image in images if os.path.splitext(image.path)[0] == key]
    if len(plain) > 1:
        plain = [i for i in plain if os.path.splitext(i.path)[1].lower() in READ_SUFFIXES]
    if len(plain) == 1:
        yield TarSample(key, plain[0], _metadata(members, key))
        return
    own = [_own(image, members) for image in images]
    if not plain and all(sample.metadata for sample in own):
        yield from own
        return
    names = ", ".join(sorted(os.path.basename(image.path) for image in images)[:3])
    problem = (
        f"{len(images)} images of one sample ({names}); say which is the image with image_member, "
        "or image_member=* if each is a sample of its own"
    )
    yield TarSample(key, None, {}, problem)


def _wanted(key: str, images: list[Member], members: dict[str, Member], ending: str) -> TarSample:
    """The sample whose image has a given end of its name."""
    for image in images:
        if image.path[len(key) + 1 :].lower() == ending:
            return TarSample(key, image, _metadata(members, key))
    names = ", ".join(sorted(os.path.basename(image.path) for image in images)[:3])
    return TarSample(key, None, {}, f"no image member {ending!r}, found {names}")


def _own(image: Member, members: dict[str, Member]) -> TarSample:
    """An image with the metadata of exactly its name."""
    stem = os.path.splitext(image.path)[0]
    return TarSample(stem, image, _metadata(members, stem))


def _metadata(members: dict[str, Member], stem: str) -> dict[str, Member]:
    """Metadata members of a name without extension, by suffix."""
    return {kind: members[stem + kind] for kind in METADATA_SUFFIXES if stem + kind in members}
