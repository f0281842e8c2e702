import ast
import copy
import os
import pickle
import shutil
import subprocess
import sys
from fractions import Fraction

import numba
import pytest

from hesscale_rl.jit import FOLDERS, PACKAGE, UsersFolder, at, has_loops

CLEARANCE = """
import numpy as np
from hesscale_rl.envs.ur.safety import Bounds, clearance
from hesscale_rl.envs.ur.arms import DEFAULT
wide = np.full(6, 7.0), np.full(3, 9.0)
bounds = Bounds(DEFAULT.links, -wide[0], wide[0], -wide[1], wide[1], 1.0, 2.0)
print(clearance(np.array([1.6, -2.4, 1.5, -0.7, 1.6, 1.0]), bounds))
"""


@pytest.mark.slow
def test_an_edit_of_what_a_compiled_function_calls_is_never_answered_by_old_machine_code(tmp_path):
    # `clearance` is compiled from safety.py; what it calls for the links' places stands in kinematics.py.
    edited = tmp_path / "hesscale_rl"
    shutil.copytree(PACKAGE, edited, ignore=shutil.ignore_patterns("__pycache__"))

    def clearance():
        command = [sys.executable, "-c", CLEARANCE]
        done = subprocess.run(
            command, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True
        )
        assert not done.stderr
        return float(done.stdout)

    before = clearance()
    places = edited / "envs" / "ur" / "kinematics.py"
    origins = "frames(links, q)[:, :, 3]"
    assert origins in places.read_text()
    places.write_text(places.read_text().replace(origins, f"({origins} + 0.01)"))
    assert abs(clearance() - before - 0.01) < 1e-12  # the whole arm stands a centimetre higher above the table
    assert [*(edited / "envs" / "ur" / "__pycache__").glob("safety.clearance*.nbi")]  # it was kept, and found stale


def test_an_index_of_other_sources_is_passed_over_unread(tmp_path):
    index = at._cache._cache_file  # of any function
    mine = copy.copy(index)
    mine._index_path = str(tmp_path / "index.nbi")
    gone = pickle.dumps(("a stamp", {"key": Fraction(1)})).replace(b"Fraction", b"Fractiom")  # a class renamed since
    with open(mine._index_path, "wb") as file:
        pickle.dump(numba.__version__, file)
        file.write(gone)
    with pytest.raises(AttributeError):
        pickle.loads(gone)
    assert mine._load_index() == {}


def test_compiled_functions_have_their_constants_from_files_that_the_stamp_covers():
    texts = {path: path.read_text() for folder in FOLDERS for path in folder.rglob("*.py")}
    inside = {path for path, text in texts.items() if has_loops(path, text.encode())}
    covered = {path.stem for path in inside} | {"jit"}
    for path, text in texts.items():
        body = ast.parse(text).body if path in inside else []
        compiled = [node for node in body if isinstance(node, ast.FunctionDef) and node.decorator_list]
        used = {node.id for function in compiled for node in ast.walk(function) if isinstance(node, ast.Name)}
        for node in (node for node in body if isinstance(node, ast.ImportFrom)):
            if (node.level or node.module.startswith("hesscale_rl")) and used & {alias.name for alias in node.names}:
                modules = {(node.module or "").rpartition(".")[2], *(alias.name for alias in node.names)}
                assert modules & covered, f"{path}: line {node.lineno}"


def test_machine_code_goes_to_no_folder_named_tilde(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    for home in (str(tmp_path / "home"), "~"):  # what expanduser gives where there is neither HOME nor an account
        monkeypatch.setattr(os.path, "expanduser", lambda path, home=home: path.replace("~", home))
        assert (UsersFolder.from_function(UsersFolder.from_function, __file__) is None) == (home == "~")
    assert [path.name for path in tmp_path.iterdir()] == ["home"]
