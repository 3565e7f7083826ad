"""`lodestar model` against a running router: what it shows, takes out and puts in."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest
import uvloop

from lodestar_fast import history
from lodestar_fast.errors import BlobError
from lodestar_fast.model import physics
from tests.oracle import Model
from tests.test_governor import Scripted
from tests.test_history import Publishing as Learner
from tests.test_history import publish
from tests.test_server import ROOT, Lodestar


async def program(*words: str) -> tuple[int, str]:
    """Exit status and all that `lodestar model` says."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "lodestar_fast", "model", *words),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, said.decode()


def test_weights_go_out_and_in(tmp_path: Path) -> None:
    blob, file, copy = Model([16], version=7).blob(), tmp_path / "seven", tmp_path / "copy"
    file.write_bytes(history.sealed(blob))
    keys = tmp_path / "keys"
    keys.write_text("sesame\n")

    async def main() -> None:
        lodestar = await Lodestar.start("--admin-key-file", str(keys), "--mode", "off")
        to = ("--admin", f"http://127.0.0.1:{lodestar.admin}")
        key = ("--admin-key-file", str(keys))
        try:
            code, said = await program("show", *to)
            assert code == 2 and "a key of --admin-key-file is needed" in said
            code, said = await program("show", *to, *key)
            assert code == 0 and "none yet" in said and "(no model yet)" in said
            code, said = await program("import", str(file), *to, *key)
            assert code == 0 and "version 7 is in use, frozen" in said
            code, said = await program("show", *to, *key)
            assert code == 0 and "7, frozen" in said and "in use" in said
            assert "queue_seconds: time to compute what was dispatched before" in said
            code, said = await program("export", str(copy), *to, *key)
            assert code == 0 and copy.read_bytes() == file.read_bytes()
            code, said = await program("export", str(copy), *to, *key)
            assert code == 2 and "File exists" in said
            code, said = await program("export", str(tmp_path / "x"), "--version", "5", *to, *key)
            assert code == 2 and "version 5 is not kept" in said
            other = Model([16], seed=3, version=7).blob()
            file.write_bytes(history.sealed(other))
            code, said = await program("import", str(file), *to, *key)
            assert code == 2 and "is kept, with other weights" in said
            code, said = await program("import", str(file), "--as", "8", *to, *key)
            assert code == 0 and "version 8 is in use" in said
            for bad, words in (
                (file.read_bytes()[:-1], "damaged"),
                (history.sealed(Model([16]).blob(schema=5)), "another table of features"),
                (history.sealed(Model([16], version=9).blob()[:-8]), "--admin"),
            ):
                file.write_bytes(bad)
                code, said = await program("import", str(file), *to, *key)
                assert code == 2 and words in said, said
        finally:
            await lodestar.stop()
        code, said = await program("show", *to)
        assert code == 2 and said.count("\n") == 1 and "--admin" in said

    uvloop.run(main())


def test_what_is_imported_stays_until_thawed() -> None:
    it = Scripted(learner=Learner())
    publish(it, 1)
    assert it.governor.adopt(Model([16], seed=9, version=40).blob(), it.now) == 40
    publish(it, 2)
    about = it.governor.status(it.now)
    assert (about["version"], about["frozen"], about["waiting_version"]) == (40, True, 2)
    it.governor.thaw(it.now)
    assert it.governor.policy.version == 2 and it.governor.rollback(40) == 40
    with pytest.raises(BlobError, match="version 0 is none"):
        it.governor.adopt(Model([16], version=0).blob(), it.now)
    with pytest.raises(BlobError):
        it.governor.adopt(b"x" * 100, it.now)


def test_coefficients_in_words() -> None:
    base, queue = physics({"base": 0.02, "queue_seconds": 1.25})
    assert base.lstrip().startswith("20.0 ms  base: constant")
    assert queue.lstrip().startswith("1.25 x  queue_seconds: time to compute")
