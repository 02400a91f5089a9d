"""Files and folders that are either complete or absent."""

import os
import stat

import pytest

from utils.errors import InputError
from utils.files import atomic_folder, atomic_write, make_folder_for, make_writable_folder


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_empty_file_is_written(tmp_path):
    with atomic_write(tmp_path / "a") as temporary:
        temporary.touch()
    assert (tmp_path / "a").read_bytes() == b""


def test_file_appears_when_the_block_succeeds(tmp_path):
    path = tmp_path / "new" / "deep" / "a.txt"
    with atomic_write(path) as temporary:
        temporary.write_text("complete")
        assert temporary.parent == path.parent  # so that a rename suffices
        assert not path.exists()
    assert path.read_text() == "complete"
    assert names(path.parent) == ["a.txt"]


def test_file_is_replaced_when_the_block_succeeds(tmp_path):
    (tmp_path / "a").write_text("old")
    with atomic_write(tmp_path / "a") as temporary:
        temporary.write_text("new")
        assert (tmp_path / "a").read_text() == "old"
    assert (tmp_path / "a").read_text() == "new"
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt, InputError])
def test_failure_leaves_the_old_file_only(tmp_path, error):
    (tmp_path / "a").write_text("old")
    with pytest.raises(error), atomic_write(tmp_path / "a") as temporary:
        temporary.write_text("half")
        raise error
    assert (tmp_path / "a").read_text() == "old"
    assert names(tmp_path) == ["a"]


def test_full_disk_is_reported_with_the_path(tmp_path):
    (tmp_path / "a").write_text("old")
    with (
        pytest.raises(InputError, match=r"/a: No space left on device"),
        atomic_write(tmp_path / "a") as temporary,
    ):
        temporary.write_text("half")
        raise OSError(28, "No space left on device")
    assert (tmp_path / "a").read_text() == "old"
    assert names(tmp_path) == ["a"]


def test_block_that_writes_nothing_is_an_error(tmp_path):
    with pytest.raises(InputError, match="/a"), atomic_write(tmp_path / "a"):
        pass
    assert names(tmp_path) == []


def test_file_in_place_of_a_parent_folder_is_reported(tmp_path):
    (tmp_path / "blocked").touch()
    with pytest.raises(InputError, match="blocked"), atomic_write(tmp_path / "blocked" / "a") as temporary:
        temporary.write_text("x")


def test_folder_in_place_of_the_file_is_reported(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(InputError, match="/a"), atomic_write(tmp_path / "a") as temporary:
        temporary.write_text("x")
    assert names(tmp_path) == ["a"]


@pytest.fixture
def locked_folder(tmp_path):
    """A folder without write permission. Skips the test for users whom that does not stop."""
    folder = tmp_path / "locked"
    folder.mkdir()
    folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
    if os.access(folder, os.W_OK):
        folder.chmod(0o700)
        pytest.skip("this user can write everywhere")
    yield folder
    folder.chmod(0o700)


def test_missing_permission_is_reported(locked_folder):
    with pytest.raises(InputError, match="Permission denied"), atomic_write(locked_folder / "a") as temporary:
        temporary.write_text("x")
    with pytest.raises(InputError, match=r"locked: Permission denied"):
        make_writable_folder(locked_folder)


def test_writable_folder_is_created_and_left_empty(tmp_path):
    make_writable_folder(tmp_path / "new" / "deep")
    make_writable_folder(tmp_path / "new" / "deep")
    assert names(tmp_path / "new" / "deep") == []


def test_file_in_place_of_a_writable_folder_is_reported(tmp_path):
    (tmp_path / "blocked").touch()
    for folder in (tmp_path / "blocked", tmp_path / "blocked" / "deep"):
        with pytest.raises(InputError, match="blocked"):
            make_writable_folder(folder)


def test_folder_of_a_file_to_write_is_created_and_a_folder_in_its_place_is_reported(tmp_path):
    path = tmp_path / "new" / "a.json"
    make_folder_for(path)
    assert names(tmp_path / "new") == []
    path.mkdir()
    with pytest.raises(InputError, match=r"a\.json is a folder"):
        make_folder_for(path)


def test_empty_folder_is_written(tmp_path):
    with atomic_folder(tmp_path / "a"):
        pass
    assert names(tmp_path) == ["a"] and names(tmp_path / "a") == []


def test_folder_appears_when_the_block_succeeds(tmp_path):
    folder = tmp_path / "new" / "a"
    with atomic_folder(folder) as temporary:
        (temporary / "b.txt").write_text("complete")
        assert temporary.parent == folder.parent and not folder.exists()
    assert names(folder.parent) == ["a"] and (folder / "b.txt").read_text() == "complete"


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt, InputError, OSError(28, "No space left")])
def test_failure_leaves_no_folder(tmp_path, error):
    expected = InputError if isinstance(error, OSError) else error
    with pytest.raises(expected), atomic_folder(tmp_path / "a") as temporary:
        (temporary / "b.txt").write_text("half")
        raise error
    assert names(tmp_path) == []


def test_folder_created_in_the_meantime_is_kept(tmp_path):
    with (
        pytest.raises(InputError, match=r"/a: Directory not empty"),
        atomic_folder(tmp_path / "a") as temporary,
    ):
        (temporary / "b.txt").write_text("late")
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "b.txt").write_text("first")
    assert names(tmp_path) == ["a"] and (tmp_path / "a" / "b.txt").read_text() == "first"
