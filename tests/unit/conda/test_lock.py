"""The lock's text: it comes back as it was, and everything that is not a lock is refused with its line."""

from __future__ import annotations

import pytest
from groundcrew.conda.lock import (
    CondaPackage,
    Lock,
    PipPackage,
    PlatformLock,
    check_name,
    difference,
    parse,
    render,
    spec_digest,
)
from groundcrew.errors import GroundcrewError
from hypothesis import given
from hypothesis import strategies as st

SHA = "0123456789abcdef" * 4
SIX = f"conda local noarch six-1-0.conda sha256:{SHA}"
HEAD = f"lock-version 1\nspec sha256:{SHA}\n"

digests = st.integers(0, 2**256 - 1).map(lambda number: f"{number:064x}")
# Those that are hard to read back: a dash, a dot, an underscore in a name, an epoch, letters in a version.
names = st.sampled_from(
    ["a", "b", "_x", "ruamel.yaml", "ruamel.yaml-clib", "scikit-learn", "lib-1-2"]
)
versions = st.sampled_from(["1", "2.4.6", "2026b", "1!2.0", "2.9.0.post0", "1.0rc1", "5_0"])
builds = st.sampled_from(["0", "py_0", "py311h2ed4a0e_0", "cuda126_mkl_py311_h1_300"])
conda_packages = st.builds(
    lambda channel, subdir, name, version, build, suffix, sha: CondaPackage(
        channel, subdir, f"{name}-{version}-{build}{suffix}", sha
    ),
    st.sampled_from(["conda-forge", "local", "team/gpu"]),
    st.sampled_from(["linux-64", "noarch"]),
    names,
    versions,
    builds,
    st.sampled_from([".conda", ".tar.bz2"]),
    digests,
)
pip_packages = st.builds(
    lambda name, version, hashes: PipPackage(name, version, tuple(sorted(hashes))),
    st.sampled_from(["requests", "charset-normalizer", "zope.interface"]),
    st.sampled_from(["1", "2.4.6", "1!2.0", "2.9.0.post0", "1.0rc1", "2.5.1+cu124"]),
    st.sets(digests, min_size=1, max_size=3),
)
platform_locks = st.builds(
    PlatformLock,
    st.lists(conda_packages, max_size=5, unique_by=lambda p: p.name).map(
        lambda p: tuple(sorted(p))
    ),
    st.lists(pip_packages, max_size=3, unique_by=lambda p: p.name).map(lambda p: tuple(sorted(p))),
)
lock_values = st.builds(
    Lock,
    st.just("digits"),
    digests,
    st.dictionaries(st.sampled_from(["linux-64", "linux-aarch64"]), platform_locks),
)


@given(lock_values)
def test_a_lock_comes_back_from_its_text(lock: Lock) -> None:
    assert parse("digits", render(lock)) == lock
    assert render(parse("digits", render(lock))) == render(lock)


@given(lock_values, st.randoms(use_true_random=False))
def test_the_order_of_packages_does_not_matter(lock: Lock, random: st.DrawFn) -> None:
    def shuffled(items: tuple[object, ...]) -> tuple[object, ...]:
        return tuple(random.sample(items, len(items)))  # type: ignore[attr-defined]

    other = Lock(
        lock.name,
        lock.spec_sha256,
        {
            name: PlatformLock(shuffled(part.conda), shuffled(part.pip))  # type: ignore[arg-type]
            for name, part in lock.platforms.items()
        },
    )
    assert render(other) == render(lock)
    assert all(
        other.platforms[name].digest == lock.platforms[name].digest for name in lock.platforms
    )


@given(lock_values)
def test_a_lock_does_not_differ_from_itself_and_adds_all_to_none(lock: Lock) -> None:
    assert difference(lock, lock) == []
    added = [line for line in difference(None, lock) if line.startswith("  + ")]
    assert len(added) == sum(len(p.conda) + len(p.pip) for p in lock.platforms.values())


def test_a_name_and_its_parts_are_read_from_the_file_name() -> None:
    package = CondaPackage("c", "noarch", "Ruamel.yaml-clib-0.2.8-py_0.conda", SHA)
    assert (package.name, package.version, package.build) == ("ruamel.yaml-clib", "0.2.8", "py_0")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("conda local linux-64 six-1.16-0.conda", "a conda line has a channel"),
        (f"conda ../x linux-64 six-1.16-0.conda sha256:{SHA}", "channel or subdir is wrong"),
        (f"conda local win-64 six-1.16-0.conda sha256:{SHA}", "channel or subdir is wrong"),
        (f"conda local linux-64 six.conda sha256:{SHA}", "not a file name of a Conda package"),
        (f"conda local linux-64 ../six-1-0.conda sha256:{SHA}", "not a file name"),
        (f"conda local linux-64 six-1.16-0.whl sha256:{SHA}", "not a file name"),
        ("conda local linux-64 six-1.16-0.conda sha256:12", "not a sha256"),
        (f"conda local linux-64 six-1.16-0.conda md5:{SHA}", "not a sha256"),
        ("pip six==1.16", "at least one sha256"),
        (f"pip six>=1.16 sha256:{SHA}", "name==version"),
        (f"pip six==1.16 sha256:{SHA} sha256:1", "at least one sha256"),
        ("https://example.org/six-1.16-0.conda", "not a line of a lock"),
        ("platform linux-64", "not a line of a lock"),
        (f"spec sha256:{SHA}", "not a line of a lock"),
    ],
)
def test_a_wrong_line_is_named(line: str, words: str) -> None:
    with pytest.raises(GroundcrewError) as caught:
        parse("digits", f"{HEAD}platform linux-64\n{line}\n", "files/conda/digits.lock")
    message = str(caught.value)
    assert words in message and line in message
    assert "files/conda/digits.lock, line 4" in message and "make lock conda=digits" in message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "lock-version is missing"),
        (HEAD.replace("version 1", "version 2"), "lock-version is 2"),
        ("lock-version 1\n", "`spec sha256:…` is missing"),
        ("lock-version 1\nspec sha256:12\n", "`spec sha256:…` is missing or broken"),
        (f"{HEAD}{SIX}\n", "not a line of a lock"),
        (f"{HEAD}platform linux-64\n{SIX}\n{SIX}\n", "six is there twice for linux-64"),
    ],
)
def test_a_broken_lock_is_refused(text: str, words: str) -> None:
    with pytest.raises(GroundcrewError) as caught:
        parse("digits", text)
    assert words in str(caught.value) and "make lock conda=digits" in str(caught.value)


def test_comments_and_empty_lines_are_skipped() -> None:
    assert parse("digits", f"# a\n\n{HEAD}\n# b\nplatform linux-64\n").platforms == {
        "linux-64": PlatformLock()
    }


@pytest.mark.parametrize("name", ["", "Digits", "../x", "a b", "-x", "x" * 64, "a\n"])
def test_a_name_that_cannot_be_a_path_is_refused(name: str) -> None:
    with pytest.raises(GroundcrewError, match="no name for a Conda environment"):
        check_name(name)


def test_a_platform_that_is_not_locked_is_named() -> None:
    with pytest.raises(GroundcrewError, match="no packages for linux-aarch64, only for linux-64"):
        Lock("digits", SHA, {"linux-64": PlatformLock()}).platform("linux-aarch64")


def test_what_changed_is_told_by_platform() -> None:
    def lock(*files: str, pip: str) -> Lock:
        conda = tuple(CondaPackage("c", "noarch", name, SHA) for name in files)
        return Lock("e", SHA, {"linux-64": PlatformLock(conda, (PipPackage("p", pip, (SHA,)),))})

    before = lock("a-1-0.conda", "b-1-0.conda", pip="1")
    after = lock("b-2-0.conda", "d-1-0.conda", pip="2")
    assert difference(before, after) == [
        "e, linux-64: 1 added, 1 removed, 2 changed",
        "  + d 1 0 01234567",
        "  - a 1 0 01234567",
        "  ~ b 1 0 01234567 -> 2 0 01234567",
        "  ~ p (pip) 1 01234567 -> 2 01234567",
    ]


def test_a_file_that_was_replaced_under_its_name_is_a_change_and_another_digest() -> None:
    old = PlatformLock((CondaPackage("c", "noarch", "a-1-0.conda", SHA),))
    new = PlatformLock((CondaPackage("c", "noarch", "a-1-0.conda", SHA[::-1]),))
    assert old.digest != new.digest
    assert difference(Lock("e", SHA, {"linux-64": old}), Lock("e", SHA, {"linux-64": new}))[1:] == [
        "  ~ a 1 0 01234567 -> 1 0 fedcba98"
    ]


def test_the_digest_of_a_spec_is_that_of_its_bytes() -> None:
    assert spec_digest(b"") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
