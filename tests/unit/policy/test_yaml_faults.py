"""What is wrong with a file is told with file, line and key path; nothing that a file holds can do harm."""

from __future__ import annotations

import pytest

from garrison.common import limits
from garrison.common.errors import PolicyError
from garrison.common.policy.load import check_text, load_files, load_text

NOTED = "  name: good\n  annotations: {garrison/%s}"

GOOD = """\
apiVersion: security.kubearmor.com/v1
kind: KubeArmorHostPolicy
metadata:
  name: good
spec:
  nodeSelector:
    matchLabels:
      kubearmor.io/hostname: "*"
  file:
    matchPaths:
    - path: /etc/x
      fromSource:
      - path: /usr/bin/a
"""


def with_(old: str, new: str) -> str:
    assert GOOD.count(old) == 1
    return GOOD.replace(old, new)


FAULTS = {
    "unknown-key": (with_("  file:", "  fil:"), 9, "spec.fil", "is no key here"),
    "unknown-key-deep": (with_("/usr/bin/a", "/usr/bin/a\n        recurse: true"), 14, "recurse", "is no key here"),
    "duplicate-key": (GOOD + "  file: {}\n", 14, "spec.file", "stands here twice"),
    "wrong-type": (with_('"*"', "yes"), 8, "spec.nodeSelector.matchLabels.kubearmor.io/hostname", "valid string"),
    "relative-path": (with_("/etc/x", "etc/x"), 11, "spec.file.matchPaths[0].path", "must be an absolute path"),
    "dots-in-path": (with_("/etc/x", "/etc/../x"), 11, "spec.file.matchPaths[0].path", ". or .."),
    "directory-as-path": (with_("/etc/x", "/etc/x/"), 11, "spec.file.matchPaths[0].path", "matchDirectories"),
    "directory-as-source": (
        with_("/usr/bin/a", "/usr/bin/"),
        13,
        "spec.file.matchPaths[0].fromSource[0].path",
        "matchDirectories",
    ),
    "source-of-nothing": (with_("- path: /usr/bin/a", "- recursive: true"), 13, "fromSource[0]", "either path or dir"),
    "no-name": (with_("  name: good", "  namespace: a"), 3, "metadata.name", "is missing"),
    "severity": (GOOD + "  severity: 11\n", 14, "spec.severity", "less than or equal to 10"),
    "action": (GOOD + "  action: Deny\n", 14, "spec.action", "'Allow', 'Audit' or 'Block'"),
    "kind": (with_("KubeArmorHostPolicy", "KubeArmorHost"), 2, "kind", "is no kind of"),
    "version": (with_("com/v1", "com/v2"), 1, "apiVersion", "security.kubearmor.com/v1"),
    "unknown-annotation": (
        with_("  name: good", NOTED % "expires: x"),
        5,
        "metadata.annotations",
        "expires",
    ),
    "annotation-value": (
        with_("  name: good", NOTED % "i-mean-it: 'yes'"),
        5,
        "annotations",
        '"true"',
    ),
    "hostname-regex": (
        with_('hostname: "*"', "hostnamereg: '['"),
        7,
        "matchLabels",
        "regular expression",
    ),
    "not-yaml": (with_("  file:", "  file: ]"), 9, "", "is not YAML"),
    "tab": (with_("  file:", "\tfile:"), 9, "", "is not YAML"),
    "tag": (with_("/etc/x", "!!python/object/apply:os.system [id]"), 11, "spec.file.matchPaths[0].path", "tag"),
    "tag-on-a-mapping": (with_("  file:", "  file: !evil"), 9, "spec.file", "tag"),
    "merge-key": (with_("  file:", "  <<: {}\n  file:"), 9, "spec", "merge keys"),
    "no-mapping": ("- a\n", 1, "", "is no mapping"),
    "no-kind": ("a: b\n", 1, "", "needs apiVersion and kind"),
    "second-document": (GOOD + "---\n" + with_("/etc/x", "x"), 25, "spec.file.matchPaths[0].path", "absolute"),
}


@pytest.mark.parametrize(("text", "line", "key", "says"), FAULTS.values(), ids=FAULTS)
def test_fault_is_told_with_file_line_and_key_path(text, line, key, says):
    _, errors = check_text(text, "p.yaml")

    assert len(errors) == 1, [str(error) for error in errors]
    (error,) = errors
    assert (error.file, error.line) == ("p.yaml", line)
    assert error.key.endswith(key)
    assert says in error.reason
    assert str(error).startswith(f"p.yaml:{line}: ")


def test_every_fault_of_a_file_is_told_and_what_is_right_is_kept():
    text = GOOD + "---\n" + with_("/etc/x", "x").replace("/usr/bin/a", "a")

    documents, errors = check_text(text)

    assert [document.name for document in documents] == ["good"]
    assert [error.line for error in errors] == [25, 27]
    with pytest.raises(PolicyError, match=":25:"):
        load_text(text)


def test_alias_bomb_is_refused_before_it_is_built():
    bomb = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{name}: &{name} [{','.join(['*' + before] * 10)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
    )

    _, (error,) = check_text(bomb, "bomb.yaml")

    assert f"more than {limits.YAML_NODES_MAX} values" in error.reason


@pytest.mark.parametrize("text", ["[" * 5_000, "a: " * 50, "&a [*a]", "\n".join(" " * i + "a:" for i in range(200))])
def test_deep_or_endless_nesting_is_an_error_and_nothing_worse(text):
    _, errors = check_text(text)

    assert len(errors) == 1


def test_size_and_number_of_documents_are_limited():
    _, (size,) = check_text("#" * (limits.POLICY_FILE_MAX_BYTES + 1), "big.yaml")
    _, errors = check_text("a: b\n---\n" * (limits.POLICY_DOCUMENTS_MAX + 1), "many.yaml")

    assert "bytes" in size.reason
    assert any("documents" in error.reason for error in errors)


def test_aliases_and_dates_are_read_as_plain_text():
    text = with_("metadata:\n", "metadata:\n  creationTimestamp: 2024-01-01\n  labels: &l {a: b}\n  annotations: *l\n")

    (document,) = load_text(text)

    assert document.model.metadata.annotations == {"a": "b"}
    assert document.model.metadata.creationTimestamp == "2024-01-01"


def test_files_that_cannot_be_read_are_told_by_name(tmp_path):
    (tmp_path / "latin.yaml").write_bytes(b"a: \xff\n")
    (tmp_path / "empty").mkdir()

    for path, says in [("latin.yaml", "UTF-8"), ("none.yaml", "No such file"), ("empty", "no *.yaml")]:
        with pytest.raises(PolicyError, match=says.replace("*", r"\*")) as caught:
            load_files([tmp_path / path])
        assert path in caught.value.file
