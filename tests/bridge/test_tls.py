"""Certificates: what is made of them."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from backplane.bridge import TLS

serialization = pytest.importorskip("cryptography.hazmat.primitives.serialization")

if TYPE_CHECKING:  # mypy knows the tests as single files, pytest as parts of packages
    from nodes import Papers
else:
    from .nodes import Papers


def test_both_sides_say_the_same_of_a_connection_and_nobody_else_does(papers: Papers) -> None:
    a, b, c = (papers.tls(name) for name in "abc")
    leaf = {
        name: ssl.PEM_cert_to_DER_cert(papers.files(name)[0].read_text().split("\n\n")[0])
        for name in "abc"
    }

    said = a.binding(leaf["b"], dialled=True)

    assert said == b.binding(leaf["a"], dialled=False)
    assert said != b.binding(leaf["a"], dialled=True)
    assert said != a.binding(leaf["c"], dialled=True)
    assert said != c.binding(leaf["b"], dialled=True)
    assert a.binding(None, dialled=True) != said


def test_a_certificate_is_for_the_names_and_uris_in_it(papers: Papers) -> None:
    tls = papers.tls("a", names={"spiffe://example/b": "b"})
    certificate = {
        "subjectAltName": (
            ("DNS", "a"), ("URI", "spiffe://example/b"), ("IP Address", "10.0.0.1"),
            ("email", "c@example.com"),
        )
    }  # fmt: skip

    assert tls.certified(certificate) == {"a", "b"}
    assert tls.certified({}) == frozenset()


def test_the_connection_must_be_tls_1_3_and_both_must_show_a_certificate(papers: Papers) -> None:
    tls = papers.tls("a")

    for context in (tls.server, tls.client):
        assert context.minimum_version is ssl.TLSVersion.TLSv1_3
        assert context.verify_mode is ssl.CERT_REQUIRED


def test_a_file_without_a_certificate_is_refused(papers: Papers, tmp_path: Path) -> None:
    certificate, key, authority = papers.files("a")
    empty = tmp_path / "empty.pem"
    empty.write_text("")
    cut = tmp_path / "cut.pem"
    cut.write_text(certificate.read_text()[:100])

    for path in (empty, cut):
        with pytest.raises(ValueError, match="holds none"):
            TLS(path, key, authority)
    with pytest.raises(ValueError, match="is damaged"):
        TLS(changed(certificate, tmp_path, drop=1), key, authority)
    with pytest.raises(FileNotFoundError):
        TLS(tmp_path / "missing", key, authority)
    with pytest.raises(ssl.SSLError):
        TLS(certificate, key, empty)
    with pytest.raises(ssl.SSLError):
        TLS(certificate, papers.files("b")[1], authority)


def changed(file: Path, folder: Path, drop: int = 0) -> Path:
    """A copy of a PEM file of which nothing can be made, though it begins and ends as one."""
    lines = file.read_text().splitlines()
    lines[1] = lines[1][::-1][drop:]
    copy = folder / f"changed-{drop}-{file.name}"
    copy.write_text("\n".join(lines))
    return copy


@pytest.mark.parametrize("role", ["certificate", "key", "authority"])
def test_the_error_says_which_file_cannot_be_read(
    papers: Papers, tmp_path: Path, role: str
) -> None:
    missing, files = tmp_path / "missing", list(papers.files("a"))
    which = ["certificate", "key", "authority"].index(role)

    files[which] = missing
    with pytest.raises(FileNotFoundError, match=f"cannot read the file of the {role}: ") as caught:
        TLS(*files)
    assert caught.value.filename == str(missing)
    files[which] = tmp_path
    with pytest.raises(IsADirectoryError, match=f"cannot read the file of the {role}: "):
        TLS(*files)


def test_the_error_says_which_file_is_wrong_and_what_is(papers: Papers, tmp_path: Path) -> None:
    certificate, key, authority = papers.files("a")
    other = papers.files("b")[1]
    encrypted = tmp_path / "encrypted.key"
    encrypted.write_bytes(
        serialization.load_pem_private_key(key.read_bytes(), None).private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"a passphrase"),
        )
    )
    bad, bad_key, bad_authority = (
        changed(path, tmp_path) for path in (certificate, key, authority)
    )
    of_key, of_authority = "the file of the key", "the file of the authority"
    pair = f"the certificate in '{certificate}' ("
    cases = [
        (bad, key, authority, f"'{bad}', the file of the certificate, is damaged ("),
        (certificate, certificate, authority, f"'{certificate}', {of_key}, holds no key"),
        (certificate, other, authority, f"'{other}', {of_key}, is not for {pair}"),
        (certificate, bad_key, authority, f"'{bad_key}', {of_key}, cannot be used with {pair}"),
        (certificate, encrypted, authority, f"'{encrypted}', {of_key}, is encrypted: "),
        (certificate, key, key, f"'{key}', {of_authority}, holds no certificate ("),
        (certificate, key, bad_authority, f"'{bad_authority}', {of_authority}, is damaged ("),
    ]

    for *files, text in cases:
        with pytest.raises(ssl.SSLError) as caught:
            TLS(*files)
        assert str(caught.value).startswith(text)
